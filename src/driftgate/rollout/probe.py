"""Probes: whether a server says what the trainer's own forward says, after it was given the weights.

Two are needed. The log-probabilities of a prompt are computed anew. The answer to a prompt that the server knows comes
from its cache, which an update must not leave behind.
Shapes: T tokens of a prompt, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import keyed
from ..data.packing import pack
from ..models.policy import Policy
from ..serving import vllm_api
from ..serving.client import Server, ServerError

SHORT, LONG = 37, 400
"""Tokens of the two prompts. The long one fills many blocks of a server's cache."""


@dataclass(frozen=True)
class Probe:
    """Two prompts of fixed ids, and what the trainer says of them."""

    short: tuple[int, ...]
    logp: Tensor
    """float [T - 1], on the CPU, in nats: of the ids of `short` after the first."""
    long: tuple[int, ...]
    next: Tensor
    """float [V], on the CPU, in nats: of every id behind `long`."""
    tolerance: float
    """Largest difference, in nats."""
    tied: bool
    """Whether the output embedding is the input embedding."""

    def ask(self, server: Server) -> None:
        """Have the long prompt in the server's cache. Raises ServerError."""
        vllm_api.generate(server, self.long, 1, 0)

    def check(self, server: Server, before: "Probe | None") -> None:
        """Raises ServerError, naming the cause, where the server says something else. before: of the last weights."""
        rows = vllm_api.prompt_logprobs(server, self.short)
        said = torch.tensor([row.get(id, -torch.inf) for id, row in zip(self.short[1:], rows)])
        if (gap := _gap(said, self.logp)) > self.tolerance:
            raise self._wrong(server, "prompt log-probabilities differ", gap, self._cause(said, before))
        answer = vllm_api.generate(server, self.long, 1, 0)
        if (gap := _gap(torch.tensor(answer.logprobs), self.next[list(answer.ids)])) > self.tolerance:
            cause = "a cache of prompts by older weights has survived the update, which needs a pause around it"
            raise self._wrong(server, "a token decoded behind a cached prompt differs", gap, cause)

    def _cause(self, said: Tensor, before: "Probe | None") -> str:
        if before is not None and _gap(said, before.logp) <= self.tolerance:
            return "it still answers by the weights before the update"
        if self.tied:
            return "its tied output embedding may be stale: start it with driftgate's extension, see docs/servers.md"
        return "it has other weights, or computes in another type: start it with the student's folder and dtype"

    def _wrong(self, server: Server, where: str, gap: float, cause: str) -> ServerError:
        return ServerError(
            server.url,
            f"after the sync {where} by {gap:.3g} nats from the trainer's, allowed are "
            f"{self.tolerance:g} (rollout.engine.tolerance); {cause}",
        )


@torch.no_grad()
def probe_of(policy: Policy, context: int, tolerance: float | None) -> Probe:
    """What the policy says now; every rank has to call this. context: longest sequence of the servers, in tokens.
    tolerance: in nats; None for that of the policy's type."""
    draws = keyed.generator("probe").integers(policy.vocabulary_size, size=LONG)
    short, long = (tuple(draws[: min(n, context - 1)].tolist()) for n in (SHORT, LONG))

    def logp_after(prompt: Sequence[int], first: int) -> Tensor:
        """float [T - first, V]: of the ids at the places from `first` on, and of the one behind the prompt."""
        parts = torch.tensor(prompt[:first]), torch.tensor([*prompt[first:], 0])
        micro = pack([parts[0]], [parts[1]], [torch.ones(len(parts[1]), dtype=torch.bool)], [0], policy.device)
        wide = policy.wide
        logits = policy(micro, lambda hidden, head: head.finish_(hidden.to(wide) @ head.weight.to(wide).T))
        return logits.log_softmax(-1).cpu()

    ids = torch.tensor(short[1:])
    own = logp_after(short, 1)[:-1].gather(1, ids[:, None])[:, 0]
    after = logp_after(long, len(long))[0]
    policy.release()
    tied = bool(getattr(policy.model.config.get_text_config(), "tie_word_embeddings", False))  # type: ignore
    return Probe(short, own, long, after, tolerance or (0.1 if is_narrow(policy) else 1e-3), tied)


def is_narrow(policy: Policy) -> bool:
    """Whether its products run in bfloat16."""
    return policy.compute == "bfloat16" or policy.head.weight.dtype == torch.bfloat16


def _gap(one: Tensor, other: Tensor) -> float:
    """Largest difference; infinite where one of them is no number."""
    return float((one.double() - other.double()).abs().nan_to_num(torch.inf).max())
