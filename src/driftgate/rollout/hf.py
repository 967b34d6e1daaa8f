"""The default engine: decodes Hugging Face models in this process, on the live weights.

Shapes: B responses being decoded, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from .. import keyed
from ..data.response import Response
from ..models.policy import Policy
from .blend import blend
from .engine import Request, Sampling
from .reader import Reader
from .readers import kind_of_reader
from .sampling import sample


class HFEngine:
    """Decodes `batch` responses at once (None: all). A prompt is encoded once for all its responses.

    `guide` is the teacher towards which `Sampling.budget` lets the draws lean. It has the student's device and
    vocabulary.
    """

    concurrent = False
    """It decodes the weights that are being trained."""

    def __init__(self, policy: Policy, batch: int | None = None, guide: Policy | None = None):
        self.policy = policy
        self.batch = batch
        self.guide = guide
        self.version = 0
        self.kinds: dict[int, type[Reader]] = {}

    def load(self, policy: Policy, version: int) -> None:
        """Only the number: it decodes on the live weights of `policy`."""
        self.policy, self.version = policy, version

    @torch.no_grad()
    def generate(
        self, requests: Sequence[Request], sampling: Sampling, advance: Callable[[int], None] | None = None
    ) -> list[list[Response]]:
        """See `Engine.generate`. Prompts of similar length are decoded together.

        Raises ValueError for a budget without a guide, or a guide with another vocabulary.
        """
        models = [(policy.for_decoding(), policy.vocabulary) for policy in self._policies(sampling.budget)]
        kinds = [self._kind(number, model) for number, (model, _) in enumerate(models)]
        responses: list[list[Response]] = [[] for _ in requests]
        order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prompt), i))
        for part in self._parts(requests, order):
            chosen = [requests[i] for i in part]
            prompts = [r.prompt for r in chosen], [r.for_teacher for r in chosen]
            readers = [
                kind(*model, shown, sampling.max_new_tokens) for kind, model, shown in zip(kinds, models, prompts)
            ]
            for index, group in zip(part, _Decoder(readers, sampling, chosen, advance or (lambda n: None)).run()):
                responses[index] = [replace(response, version=self.version) for response in group]
        return responses

    def _kind(self, number: int, model: nn.Module) -> type[Reader]:
        """How the student (0) or the guide (1) is read; found out once."""
        if number not in self.kinds:
            self.kinds[number] = kind_of_reader(model)
        return self.kinds[number]

    def _policies(self, budget: float | None) -> list[Policy]:
        """The models that decode: the student, then the guide where there is a budget."""
        if not budget:
            return [self.policy]
        if self.guide is None:
            raise ValueError(f"budget = {budget} nats needs a guide: HFEngine(policy, batch, guide)")
        ours, theirs = self.policy.vocabulary_size, self.guide.vocabulary_size
        if ours != theirs:
            raise ValueError(f"the guide has {theirs} tokens, the student {ours}: set Policy.vocabulary to the fewer")
        return [self.policy, self.guide]

    def _parts(self, requests: Sequence[Request], order: list[int]) -> list[list[int]]:
        """Cut the order into parts of at most `batch` responses. A single request may exceed it."""
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
    """One batch from prefill to the last token. `rows` int64 [B] is the response of each running row.

    The first reader is the student. A second one is the guide.
    """

    def __init__(
        self,
        readers: list[Reader],
        sampling: Sampling,
        requests: list[Request],
        advance: Callable[[int], None],
    ):
        self.readers, self.sampling, self.requests, self.advance = readers, sampling, requests, advance
        self.device = readers[0].device
        keys = [key for request in requests for key in request.keys]
        draws = np.stack([keyed.generator(*key).random(sampling.max_new_tokens) for key in keys])
        self.uniforms = torch.from_numpy(draws).to(self.device)
        self.ids = torch.zeros(len(keys), sampling.max_new_tokens, dtype=torch.int64, device=self.device)
        self.logprobs = torch.zeros(self.ids.shape, device=self.device)
        self.lengths = torch.full((len(keys),), sampling.max_new_tokens, device=self.device)
        self.finished = torch.zeros(len(keys), dtype=torch.bool, device=self.device)
        self.stops = torch.tensor(sampling.stop_ids, device=self.device)
        self.rows = torch.arange(len(keys), device=self.device)

    def run(self) -> list[list[Response]]:
        owner = torch.repeat_interleave(torch.tensor([len(r.keys) for r in self.requests], device=self.device))
        for reader in self.readers:
            reader.prefill(owner)
        for step in range(self.sampling.max_new_tokens):
            tokens, logprobs = self._sample(self.uniforms[self.rows, step])
            self.ids[self.rows, step], self.logprobs[self.rows, step] = tokens, logprobs
            ended = torch.isin(tokens, self.stops)
            count = int(ended.sum())
            self.advance(count)  # at every token, also with 0, because it may raise to stop
            if count:
                tokens = self._drop(tokens, ended, step)
            if not len(tokens) or step + 1 == self.sampling.max_new_tokens:
                break
            for reader in self.readers:
                reader.read(tokens, step)
        self.advance(len(self.rows))
        return self._responses()

    def _drop(self, tokens: Tensor, ended: Tensor, step: int) -> Tensor:
        """Remove the rows that ended (bool [B]) from the batch. The last rows move into their places."""
        self.finished[self.rows[ended]] = True
        self.lengths[self.rows[ended]] = step + 1
        running = (~ended).nonzero().flatten()
        count = len(running)
        places, movers = ended[:count].nonzero().flatten(), running[running >= count]
        for reader in self.readers:
            reader.replace(places, movers, count)
        for part in (tokens, self.rows):
            part[places] = part[movers]
        self.rows = self.rows[:count]
        return tokens[:count]

    def _sample(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Next tokens int64 [B] and their log-probabilities under the student, with or without a guide."""
        how = self.sampling
        logits = [reader.logits(how.temperature) for reader in self.readers]
        if len(logits) == 1:
            return sample(logits[0], uniforms, how.top_p)
        assert how.budget is not None
        tokens, _ = sample(blend(logits[0], logits[1], how.budget)[0], uniforms, how.top_p)
        return tokens, logits[0].log_softmax(-1).gather(1, tokens[:, None])[:, 0]

    def _responses(self) -> list[list[Response]]:
        lengths, finished = self.lengths.tolist(), self.finished.tolist()
        ids, logprobs = self.ids.tolist(), self.logprobs.tolist()
        flat = [
            Response(tuple(ids[i][:n]), tuple(logprobs[i][:n]), done)
            for i, (n, done) in enumerate(zip(lengths, finished))
        ]
        ordered = iter(flat)
        return [[next(ordered) for _ in request.keys] for request in self.requests]
