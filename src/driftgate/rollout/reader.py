"""One model of a decoding batch: it reads the same tokens as the other models and gives logits of the next ones.

Shapes: U prompts, B responses being decoded, P longest prompt, t new positions, L positions so far, H hidden, V
vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..models.head import head_of
from .cache import GrowingCache, ResponseCache
from .decode_step import DecodeStep, can_decode

HEAD_FIRST_ROWS = 8
"""Up to so many rows, a CPU computes float32 logits as head @ hidden.T in half to two thirds of the time of
hidden @ head.T."""


class Reader:
    """A model, its own prompts and its cache. `hidden` [B, H] is the state that predicts each row's next token.

    This class itself is for models with full attention in every layer. Others read by a subclass, see `readers`.
    """

    hidden: Tensor

    def __init__(self, model: nn.Module, vocabulary: int | None, prompts: Sequence[tuple[int, ...]], new_tokens: int):
        """new_tokens: limit per response. Models that `DecodeStep` does not support decode through their modules."""
        self.model, self.prompts = model, prompts
        self.head = head_of(model, vocabulary)
        self.device = self.head.weight.device
        positions = max(map(len, prompts)) + new_tokens
        self.decode_step = DecodeStep(model, positions) if can_decode(model) else None
        self.cache: Any = GrowingCache() if self.decode_step is None else DynamicCache()

    def prefill(self, owner: Tensor) -> None:
        """Encode each prompt once, padded on the left, then make one row per response. owner: int64 [B], its prompt."""
        lengths = torch.tensor([len(prompt) for prompt in self.prompts])
        width = int(lengths.max())
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in self.prompts]
        place = torch.arange(width)[None] - (width - lengths)[:, None]
        self.visible = (place >= 0).to(self.device) if (lengths < width).any() else None
        self.lengths = lengths.to(self.device)
        self._forward(torch.tensor(padded, device=self.device), place.clamp(min=0).to(self.device))
        if self.decode_step is None:
            self.cache.select(owner)
        else:
            self.cache = ResponseCache([(layer.keys, layer.values) for layer in self.cache.layers], owner)
        self.hidden, self.lengths = self.hidden[owner], self.lengths[owner]
        if self.visible is not None:
            self.visible = self.visible[owner]

    def read(self, tokens: Tensor, step: int) -> None:
        """Read one token per row, int64 [B]. `step`: its index in the response, from 0."""
        positions = self.lengths + step
        if self.decode_step is None:
            self._forward(tokens[:, None], positions[:, None])
        else:
            self.hidden = self.decode_step(tokens, positions, self.cache, self.visible)

    def logits(self, temperature: float) -> Tensor:
        """Logits of each row's next token, float32 [B, V], divided by the temperature."""
        weight = self.head.weight
        if len(self.hidden) <= HEAD_FIRST_ROWS and self.hidden.dtype == torch.float32 and not self.hidden.is_cuda:
            logits = (weight @ self.hidden.T).T.contiguous()
        elif self.hidden.is_cuda and self.hidden.dtype == torch.bfloat16:  # not rounded, as in `logits.Chunked`
            logits = torch.mm(self.hidden, weight.T, out_dtype=torch.float32)  # pyright: ignore[reportCallIssue]
        else:
            logits = (self.hidden @ weight.T).float()
        return self.head.finish_(logits, temperature)

    def replace(self, places: Tensor, rows: Tensor, count: int) -> None:
        """Copy `rows` int64 [n] to `places` int64 [n], then keep the first `count` rows. Call `read` next: `hidden` is
        still that of all rows."""
        self.cache.replace(places, rows, count)
        for part in (self.lengths, self.visible):
            if part is not None:
                part[places] = part[rows]
        self.lengths, self.visible = self.lengths[:count], None if self.visible is None else self.visible[:count]

    def _forward(self, ids: Tensor, positions: Tensor) -> None:
        """One forward pass of t new tokens per row, int64 [B, t], through the model's modules."""
        body = self.model.base_model(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=None if self.visible is None else self._mask(self.visible, ids.shape[1]),
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden = body.last_hidden_state[:, -1]

    def _mask(self, visible: Tensor, new: int) -> Tensor:
        """bool [B, 1, t, L]: where the t new positions may attend. Padding before a short prompt is left out."""
        place = torch.arange(self.cache.get_seq_length() + new, device=self.device)
        seen = nn.functional.pad(visible, (0, len(place) - visible.shape[1]), value=True)
        queries = place[-new:, None]
        # a padding position attends to itself, because attention over nothing is NaN
        return (seen[:, None, None] & (place <= queries)) | (place == queries)
