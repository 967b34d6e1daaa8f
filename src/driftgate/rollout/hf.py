"""The default engine: decodes in this process, on the live weights, through the Hugging Face modules.

Shapes: U prompts, B responses being decoded, P longest prompt, L positions so far.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .. import keyed
from ..models.policy import Policy
from .cache import GrowingCache
from .engine import Request, Response, Sampling
from .sampling import sample

COMPACT_BELOW = 0.75
"""Share of rows still running under which the finished ones are dropped from the batch."""


class HFEngine:
    """Decodes `batch` responses at once (all of them for None); a prompt is encoded once for all its responses."""

    def __init__(self, policy: Policy, batch: int | None = None):
        self.policy = policy
        self.batch = batch

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """See `Engine.generate`. Prompts of like length are decoded together."""
        model = self.policy.for_decoding()
        responses: list[list[Response]] = [[] for _ in requests]
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), i))
        for part in self._parts(requests, order):
            decoder = _Decoder(
                model, self.policy.vocabulary, sampling, [requests[i] for i in part], advance or (lambda n: None)
            )
            for index, answers in zip(part, decoder.run()):
                responses[index] = answers
        return responses

    def _parts(self, requests: Sequence[Request], order: list[int]) -> list[list[int]]:
        """Cut the order into runs of at most `batch` responses (a single request may exceed it)."""
        parts: list[list[int]] = []
        size = 0
        for index in order:
            wanted = len(requests[index].keys)
            if parts and (self.batch is None or size + wanted <= self.batch):
                parts[-1].append(index)
                size += wanted
            else:
                parts.append([index])
                size = wanted
        return parts


class _Decoder:
    """One batch from prefill to the last token. `rows` [B] says which response each running row is."""

    def __init__(
        self,
        model: nn.Module,
        vocabulary: int | None,
        sampling: Sampling,
        requests: list[Request],
        advance: Callable[[int], None],
    ):
        self.model, self.sampling, self.requests, self.advance = model, sampling, requests, advance
        self.head: Tensor = model.get_output_embeddings().weight[:vocabulary]  # type: ignore[operator, index, assignment]
        self.device = self.head.device
        keys = [key for request in requests for key in request.keys]
        draws = np.stack([keyed.generator(*key).random(sampling.max_new_tokens) for key in keys])
        self.uniforms = torch.from_numpy(draws).to(self.device)
        self.ids = torch.zeros(len(keys), sampling.max_new_tokens, dtype=torch.int64, device=self.device)
        self.logprobs = torch.zeros(self.ids.shape, device=self.device)
        self.lengths = torch.zeros(len(keys), dtype=torch.int64, device=self.device)
        self.finished = torch.zeros(len(keys), dtype=torch.bool, device=self.device)
        self.stops = torch.tensor(sampling.stop_ids, device=self.device)
        self.cache = GrowingCache()

    def run(self) -> list[list[Response]]:
        hidden = self._prefill()
        running = torch.ones_like(self.rows, dtype=torch.bool)
        for step in range(self.sampling.max_new_tokens):
            tokens = self._draw(hidden, step, running)
            ended = running & torch.isin(tokens, self.stops)
            self.finished[self.rows[ended]] = True
            running = running & ~ended
            self.advance(int(ended.sum()))
            if step + 1 == self.sampling.max_new_tokens or not running.any():
                break
            if running.float().mean() < COMPACT_BELOW:
                tokens, running = self._compact(tokens, running)
            hidden = self._forward(tokens[:, None], (self.prompt_lengths + step)[:, None])[:, -1]
        self.advance(int(running.sum()))
        return self._responses()

    def _prefill(self) -> Tensor:
        """Encode each prompt once, padded on the left; then one row per response. Returns hidden [B, H]."""
        lengths = torch.tensor([len(r.prompt) for r in self.requests])
        width = int(lengths.max())
        padded = [[0] * (width - len(r.prompt)) + list(r.prompt) for r in self.requests]
        place = torch.arange(width)[None] - (width - lengths)[:, None]
        self.visible = (place >= 0).to(self.device) if (lengths < width).any() else None
        self.prompt_lengths = lengths.to(self.device)
        hidden = self._forward(torch.tensor(padded, device=self.device), place.clamp(min=0).to(self.device))[:, -1]
        counts = torch.tensor([len(r.keys) for r in self.requests], device=self.device)
        owner = torch.repeat_interleave(counts)
        self.rows = torch.arange(len(owner), device=self.device)
        self._select(owner)
        return hidden[owner]

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """One forward of t new tokens a row, [B, t]; returns hidden [B, t, H]."""
        seen = self.cache.get_seq_length()
        mask = None
        if self.visible is not None:
            if seen:
                self.visible = torch.cat([self.visible, torch.ones_like(ids, dtype=torch.bool)], 1)
            mask = self._mask(ids.shape[1])
        body = self.model.base_model(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        return body.last_hidden_state

    def _mask(self, new: int) -> Tensor:
        """Bool [B, 1, t, L]: what the t new positions may see, the padding before a short prompt excepted."""
        assert self.visible is not None
        total = self.visible.shape[1]
        place = torch.arange(total, device=self.device)
        causal = place[None] <= place[total - new :, None]
        mask = self.visible[:, None, None] & causal
        # a padding position sees itself: a row that sees nothing would be NaN
        return mask | (place[None] == place[total - new :, None])

    def _draw(self, hidden: Tensor, step: int, running: Tensor) -> Tensor:
        """Sample a token for every row [B]; record it for those still running."""
        logits = (hidden @ self.head.T).float() / self.sampling.temperature
        tokens, logprobs = sample(logits, self.uniforms[self.rows, step], self.sampling.top_p)
        rows = self.rows[running]
        self.ids[rows, step] = tokens[running]
        self.logprobs[rows, step] = logprobs[running]
        self.lengths[rows] = step + 1
        return tokens

    def _compact(self, tokens: Tensor, running: Tensor) -> tuple[Tensor, Tensor]:
        """Drop finished rows from the batch."""
        keep = running.nonzero().flatten()
        self.rows = self.rows[keep]
        self._select(keep)
        return tokens[keep], running[keep]

    def _select(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self.prompt_lengths = self.prompt_lengths[rows]
        if self.visible is not None:
            self.visible = self.visible[rows]

    def _responses(self) -> list[list[Response]]:
        lengths, finished = self.lengths.tolist(), self.finished.tolist()
        ids, logprobs = self.ids.tolist(), self.logprobs.tolist()
        flat = [
            Response(tuple(ids[i][:n]), tuple(logprobs[i][:n]), done)
            for i, (n, done) in enumerate(zip(lengths, finished))
        ]
        answers = iter(flat)
        return [[next(answers) for _ in request.keys] for request in self.requests]
