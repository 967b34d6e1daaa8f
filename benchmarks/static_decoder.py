"""Decoding by a step whose tensors never move, so that it can be recorded as a CUDA graph; and its twin.

Shapes: B rows with prompts of one length P, C positions that the cache has room for, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from driftgate.rollout.sampling import sample

STEPS_BEFORE_CAPTURE = 3
"""torch asks for a few on a stream of their own, so that libraries have set themselves up."""


class StaticDecoder:
    """Decodes rows with prompts of one length."""

    def __init__(self, model: Any, rows: int, positions: int):
        """positions: of a prompt and its response."""
        self.model, self.head = model, model.get_output_embeddings().weight
        self.device = self.head.device
        room = -(-positions // 64) * 64
        self.cache = StaticCache(config=model.config, max_cache_len=room)
        self.places = torch.arange(room, device=self.device)
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.graph: Any = None

    def prefill(self, prompts: Tensor) -> Tensor:
        """Begin anew with int64 [B, P]. Returns the logits [B, V] of the next tokens."""
        self.cache.reset()
        self.position.fill_(prompts.shape[1])
        return self._logits(prompts, self.places[None, : prompts.shape[1]], None)

    def step(self) -> Tensor:
        """The logits [B, V] after one more token a row, those in `tokens`."""
        mask = torch.zeros_like(self.places, dtype=self.head.dtype)
        mask.masked_fill_(self.places > self.position, -torch.inf)
        logits = self._logits(self.tokens, self.position[None], mask.expand(len(self.tokens), 1, 1, -1))
        self.position += 1
        return logits

    def _logits(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """The cache counts its positions itself, on the device. A finished mask [B, 1, 1, C] is added as it is."""
        body = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.expand(len(ids), -1),
            past_key_values=self.cache,
            use_cache=True,
        )
        return (body.last_hidden_state[:, -1] @ self.head.T).float()

    @torch.no_grad()
    def capture(self, prompts: Tensor) -> None:
        """Record `step` as a CUDA graph. What these steps leave in the cache is gone at the next prefill."""
        self.prefill(prompts)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(STEPS_BEFORE_CAPTURE):
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.captured = self.step()
        self.graph = graph

    def advance(self, tokens: Tensor) -> Tensor:
        """The logits after tokens int64 [B]: by the graph, if there is one."""
        self.tokens.copy_(tokens[:, None])
        if self.graph is None:
            return self.step()
        self.graph.replay()
        return self.captured

    @torch.no_grad()
    def decode(self, prompts: Tensor, uniforms: Tensor) -> Tensor:
        """int64 [B, n] from uniforms float64 [B, n]."""
        return drawn(self.prefill(prompts), self.advance, uniforms)


def drawn(logits: Tensor, advance: Callable[[Tensor], Tensor], uniforms: Tensor) -> Tensor:
    """A token for every uniform number, int64 [B, n]. advance: from tokens [B] to the next logits [B, V]."""
    written = torch.empty(uniforms.shape, dtype=torch.int64, device=uniforms.device)
    for step in range(uniforms.shape[1]):
        tokens, _ = sample(logits, uniforms[:, step], 1.0)
        written[:, step] = tokens
        if step + 1 < uniforms.shape[1]:
            logits = advance(tokens)
    return written


@torch.no_grad()
def plain_decode(model: Any, prompts: Tensor, uniforms: Tensor) -> Tensor:
    """The twin of StaticDecoder: a cache that grows, positions and masks as transformers makes them."""
    cache = DynamicCache(config=model.config)

    def advance(ids: Tensor) -> Tensor:
        return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()

    return drawn(advance(prompts), lambda tokens: advance(tokens[:, None]), uniforms)
