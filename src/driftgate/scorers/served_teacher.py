"""The servers of one teacher, looked at before they are used: which model, how long a context, what they can score.

Shapes: R tokens of a response, n of those in the stream, K most probable tokens, K' chosen ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from .. import keyed
from ..config.models import TeacherSettings
from ..errors import InputError
from ..method.scores import Needs
from ..serving import vllm_api
from ..serving.client import Limits, LostError, RefusedError, RubbishError, Server, ServerError
from ..serving.pool import Servers

PROBED = 37
"""Tokens of the prompt by whose log-probabilities a model is known again."""
PATIENCE = 120.0
"""Seconds that an answer to one of the first questions may take."""
SAME = 0.02
"""Largest mean difference, in nats, of what one model says of these tokens twice. In bfloat16 it is about 0.004."""


@dataclass(frozen=True)
class About:
    """What servers say of themselves, and of fixed tokens."""

    model: str
    """The name under which the model is served."""
    context: int
    """Longest sequence that can be scored, in tokens."""
    chosen: bool
    """Whether log-probabilities of chosen ids can be had."""
    probe: tuple[float, ...]
    """In nats: the log-probabilities of fixed tokens."""

    def is_another(self, other: "About") -> str | None:
        """How the other differs, if it is another model; else None."""
        if self.model != other.model:
            return f"serves {other.model!r}, not {self.model!r}"
        gap = mean_gap(self.probe, other.probe)
        return f"says other log-probabilities, by {gap:.2g} nats in the mean" if not gap <= SAME else None


def mean_gap(one: Sequence[float], other: Sequence[float]) -> float:
    """Mean difference of two probes, in nats; infinite for probes of other lengths."""
    return float(np.abs(np.subtract(one, other)).mean()) if len(one) == len(other) else float("inf")


@dataclass(frozen=True)
class Job:
    """A sequence to score."""

    ids: tuple[int, ...]
    """Prompt and response."""
    first: int
    """Place of the response in `ids`; at least 1."""
    kept: Tensor
    """int64 [n]: the places in the response that are in the stream."""
    chosen: Tensor | None
    """int [n, K']: ids asked for at each of them."""


class TeacherServers:
    """Servers of one model. Those that die are left out; one that comes back is looked at again."""

    def __init__(self, settings: TeacherSettings, role: str, vocabulary: int, top: int):
        """role: the teacher's name in the settings. vocabulary: ids of the student. top: most probable tokens that will
        be asked for. Raises InputError for servers that cannot be used, or that serve different models."""
        self.role, self.vocabulary, self.top = role, vocabulary, top
        limits = Limits(answer=settings.timeout, lost=settings.patience)
        self.pool = Servers(settings.urls, limits, settings.concurrency, self._revive)
        found = [self._examined(server) for server in self.pool.servers]
        for server, about in zip(self.pool.servers, found):
            if other := found[0].is_another(about):
                raise InputError(
                    f"{role}.urls: {server.url} {other}, as {self.pool.servers[0].url} does; give servers of one model"
                )
        context, chosen = min(about.context for about in found), all(about.chosen for about in found)
        self.about = replace(found[0], context=context, chosen=chosen)

    def scored(self, jobs: Sequence[Job], needs: Needs, advance: Callable[[int], None]) -> list[dict[str, Tensor]]:
        """Of each job `logp` float32 [n] and, as needed, `top_ids` int32 [n, K], `top_logp`, `at_ids` [n, K'].
        Raises ServingError."""
        return self.pool.run(jobs, lambda server, job: self._scores(server, job, needs), advance)

    def _scores(self, server: Server, job: Job, needs: Needs) -> dict[str, Tensor]:
        """Numbers are packed at once, so that no more than a few answers are held as JSON."""
        found: dict[str, Tensor] = {}
        if needs.top or not self.about.chosen:
            found |= most_probable(server, job, needs.top)
        if needs.at_ids or not found:
            found |= at_chosen(server, job)
        for name, values in found.items():
            if not torch.isfinite(values).all():
                raise RubbishError(server.url, f"answers a {name} that is no finite number")
        return found

    def _examined(self, server: Server) -> About:
        waited = min(server.limits.answer, PATIENCE)
        try:
            return self._look(Server(server.url, replace(server.limits, answer=waited)))
        except RefusedError as error:
            raise InputError(f"{self.role}.urls: {error}; see docs/teachers.md for how to start one") from None
        except ServerError as error:
            raise InputError(f"{self.role}.urls: {error}; start vLLM at this address, or give another") from None

    def _look(self, server: Server) -> About:
        """Raises ServerError, and InputError for another vocabulary, or too few log-probabilities."""
        served = vllm_api.served(server)
        if not vllm_api.knows_id(server, self.vocabulary - 1) or vllm_api.knows_id(server, self.vocabulary):
            raise InputError(
                f"{self.role}.urls: {server.url} serves a model whose vocabulary is not the {self.vocabulary} ids that "
                f"the student has, so its log-probabilities are of other tokens; use {self.role}.kind=local"
            )
        ids = keyed.generator("teacher").integers(self.vocabulary, size=min(PROBED, served.context - 1)).tolist()
        try:
            rows = vllm_api.prompt_logprobs(server, ids, self.top)
        except RefusedError as error:
            raise InputError(
                f"{self.role}.urls: {error}; start it with --max-logprobs {self.top}, or lower the k that is asked for"
            ) from None
        probe = tuple(round(row.get(id, -100.0), 3) for id, row in zip(ids[1:], rows))
        return About(served.model, served.context - 1, self._chooses(server, ids), probe)  # a token is decoded, too

    def _chooses(self, server: Server, ids: Sequence[int]) -> bool:
        try:
            vllm_api.chosen_logprobs(server, ids, 0, [[id] for id in ids[1:]])
        except (RefusedError, RubbishError):
            return False
        return True

    def _revive(self, server: Server) -> None:
        """Raises LostError for a server that came back as something else."""
        try:
            other = self.about.is_another(self._look(server))
        except (ServerError, InputError) as error:
            raise LostError(server.url, str(error)) from None
        if other:
            raise LostError(server.url, f"{other}, since it came back")


def most_probable(server: Server, job: Job, top: int) -> dict[str, Tensor]:
    """`logp`, and with `top` above 0 `top_ids` and `top_logp`, most probable first. Raises ServerError."""
    rows = vllm_api.prompt_logprobs(server, job.ids, top)[job.first - 1 :]
    kept = job.kept.tolist()
    try:
        found = {"logp": torch.tensor([rows[place][job.ids[job.first + place]] for place in kept])}
    except KeyError:
        raise RubbishError(server.url, "has no log-probability of a prompt's own token") from None
    if not top:
        return found
    best = [sorted(rows[place].items(), key=lambda entry: -entry[1])[:top] for place in kept]
    if min(map(len, best)) < top:
        raise RubbishError(server.url, f"answers fewer than {top} log-probabilities of a token")
    found["top_ids"] = torch.tensor([[id for id, _ in row] for row in best], dtype=torch.int32)
    found["top_logp"] = torch.tensor([[logp for _, logp in row] for row in best])
    return found


def at_chosen(server: Server, job: Job) -> dict[str, Tensor]:
    """`logp` and, where ids are chosen, `at_ids`. Only the response's rows travel. Raises ServerError."""
    own = torch.tensor(job.ids[job.first :])[:, None]
    ids = own if job.chosen is None else torch.cat([own, torch.full((len(own), job.chosen.shape[1]), -1)], 1)
    if job.chosen is not None:
        ids[job.kept, 1:] = job.chosen.long()
    values = torch.from_numpy(vllm_api.chosen_logprobs(server, job.ids, job.first - 1, ids.tolist()))[job.kept]
    found = {"logp": values[:, 0].float()}
    return found if job.chosen is None else found | {"at_ids": values[:, 1:].float()}
