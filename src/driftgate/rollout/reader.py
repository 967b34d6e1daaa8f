"""One model of a decoding batch: it reads tokens in lockstep with the others and says what may follow.

Shapes: U prompts, B responses being decoded, P longest prompt, L positions so far, H hidden, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .cache import GrowingCache


class Reader:
    """A model, its own prompts and its cache; `hidden` [B, H] is the state that predicts each row's next token."""

    hidden: Tensor

    def __init__(self, model: nn.Module, vocabulary: int | None, prompts: Sequence[tuple[int, ...]]):
        self.model, self.prompts = model, prompts
        self.head: Tensor = model.get_output_embeddings().weight[:vocabulary]  # type: ignore[operator, index, assignment]
        self.device = self.head.device
        self.cache = GrowingCache()

    def prefill(self, owner: Tensor) -> None:
        """Encode each prompt once, padded on the left; then one row per response, of prompt `owner` int64 [B]."""
        lengths = torch.tensor([len(prompt) for prompt in self.prompts])
        width = int(lengths.max())
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in self.prompts]
        place = torch.arange(width)[None] - (width - lengths)[:, None]
        self.visible = (place >= 0).to(self.device) if (lengths < width).any() else None
        self.lengths = lengths.to(self.device)
        self._forward(torch.tensor(padded, device=self.device), place.clamp(min=0).to(self.device))
        self.select(owner)

    def read(self, tokens: Tensor, step: int) -> None:
        """Take in one token a row, int64 [B], the response's number `step` from 0."""
        self._forward(tokens[:, None], (self.lengths + step)[:, None])

    def logits(self, temperature: float) -> Tensor:
        """Of each row's next token, float32 [B, V], divided by the temperature."""
        return (self.hidden @ self.head.T).float() / temperature

    def select(self, rows: Tensor) -> None:
        """Keep (or repeat) rows int64 [B'] only, in that order."""
        self.cache.select(rows)
        self.hidden, self.lengths = self.hidden[rows], self.lengths[rows]
        if self.visible is not None:
            self.visible = self.visible[rows]

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        """One forward of t new tokens a row, [B, t]."""
        mask = None
        if self.visible is not None:
            if self.cache.get_seq_length():
                self.visible = torch.cat([self.visible, torch.ones_like(ids, dtype=torch.bool)], 1)
            mask = self._mask(ids.shape[1])
        body = self.model.base_model(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden = body.last_hidden_state[:, -1]

    def _mask(self, new: int) -> Tensor:
        """Bool [B, 1, t, L]: what the t new positions may see, the padding before a short prompt excepted."""
        assert self.visible is not None
        total = self.visible.shape[1]
        place = torch.arange(total, device=self.device)
        causal = place[None] <= place[total - new :, None]
        mask = self.visible[:, None, None] & causal
        # a padding position sees itself: a row that sees nothing would be NaN
        return mask | (place[None] == place[total - new :, None])
