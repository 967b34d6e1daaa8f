"""The benchmarks' calls into the training loop, its learner and its scorers.

All of them are here, so that the benchmarks do not depend on how these parts are put together. Shapes: N response
tokens, K most probable tokens.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from driftgate.config import TrainConfig
from driftgate.data.experience import Experience
from driftgate.data.packing import MicroBatch
from driftgate.data.problems import Problem
from driftgate.data.prompts import Prompt
from driftgate.data.response import Response
from driftgate.method import head
from driftgate.method.scores import Needs, TokenScores
from driftgate.models.policy import Policy
from driftgate.models.shard import whole_tensor
from driftgate.rollout.engine import Request
from driftgate.scorers.local import LocalScorer
from driftgate.train import build, loop, portions, sums, writing
from driftgate.train.build import build_run, shard_policies
from driftgate.train.determinism import prepare_torch
from driftgate.train.learner import Learner
from driftgate.train.portions import Portion, schedule, spans_of
from driftgate.train.rollouts import prompts_of_batch, sample_responses
from driftgate.train.sharded import ShardedCheckpoints
from driftgate.train.terms import Terms
from driftgate.train.weighing import Moment
from driftgate.world import World

__all__ = ["prepare_torch", "prompts_of_batch"]  # for benchmarks that need no more than these

PHASES = {
    "rollout": (writing, "sample_responses"),
    "behaviour": (writing, "behaviour_scores"),
    "teacher": (writing, "target_scores"),
    "update": (loop, "timed_update"),
}
"""Functions of a training step, by the phase that they are."""
UPDATE_PARTS = {"forward and backward": (Learner, "_accumulate"), "optimiser": (Learner, "_step")}
GATE_PARTS = {
    "spans": (portions, "fixed_partitions"),
    "weights": (Terms, "weigh"),
    "sums": (sums, "weight_sums"),
    "logp": (head, "token_logprobs"),
    "drift_metric": (Terms, "_student_sums"),
}
"""Functions that a gate needs. Spans, weights and sums are all of its arithmetic, and a little more: without a gate the
loss goes through the last two as well, with weights of 1. "logp" is called once in an update of LSM."""

Responses = Mapping[str, Experience]
"""By whose they are."""


class Run:
    """A run of a recipe, step by step, with all that it logs. Checkpoints are written by `save` alone."""

    def __init__(self, config: TrainConfig, out: Path, world: World | None = None):
        """out: the run folder, which must not be there yet. world: the ranks that make the run together."""
        if world is None or world.rank == 0:
            out.mkdir(parents=True)
        self.config, self.out = config, out
        self.made = build_run(config, out, world)

    @property
    def student(self) -> Policy:
        return self.made.policy

    @property
    def teacher(self) -> Policy:
        return self.made.targets["teacher"]

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self.made.prompts

    def shard(self, world: World) -> None:
        """Shard a run that one process has loaded, as that of several ranks is sharded. world: a group of one rank."""
        made, config = self.made, self.config
        shard_policies(config, made.policy, made.targets, made.policy.device)
        made.learner = build.learner_of(config, made.policy, made.targets, {}, world)
        folder = self.out / "checkpoints"
        made.sharded = ShardedCheckpoints(world, folder, 1, made.policy, made.tokenizer, made.learner, dict)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the student's whole weights, on the CPU. Every rank has to call this."""
        self.student.release()
        return {name: whole_tensor(p.detach()).cpu().clone() for name, p in self.student.model.named_parameters()}

    def step(self, passes: int | None = None) -> None:
        """The next step. passes: another number than the configuration's; it is not checked against the recipe."""
        made = self.made
        made.config = self.config if passes is None else self.config.model_copy(update={"passes": passes})
        batch = made.source.take(made.position)
        for each in schedule(made.config, made.position.step):
            updated = loop.timed_update(made, batch, each)
            batch.add_behaviour(updated.old_logp)
            made.track(each, updated.metrics, batch)
        made.end_step(batch)

    def last_loss(self) -> float:
        """The loss of the last update."""
        return json.loads((self.out / "metrics.jsonl").read_text().splitlines()[-1])["loss"]

    def last_lengths(self) -> list[int]:
        """Tokens of each response of the last rollout."""
        path = max((self.out / "rollouts").iterdir())
        return [len(json.loads(row)["ids"]) for row in path.read_text().splitlines()]

    def rollout(self, step: int) -> Experience:
        """The responses of a step, without scores."""
        prompts, limit = prompts_of_batch(self.prompts, self.config, step), self.config.rollout.max_new_tokens  # type: ignore[arg-type]
        responses = sample_responses(self.made.engines, prompts, self.config, step, limit, lambda count: None)
        return Experience.of(prompts, responses)

    def collect(self) -> Responses:
        """Rollout and scores of the next step."""
        return self.made.source.take(self.made.position).responses

    def score(self, batch: Experience, k: int) -> TokenScores:
        """The teacher's log-probabilities and its K most probable tokens, by all ranks."""
        return self.made.scorers["teacher"].score(batch, Needs(top=k))

    def save(self) -> None:
        """A checkpoint. With several ranks it is written in the background; `finish` waits until it is whole."""
        self.made.save()

    def finish(self) -> None:
        self.made.finish()

    def held_bytes(self) -> dict[str, int]:
        """Bytes that this rank holds of what is trained, by kind."""
        learner = self.made.learner
        return {
            "parameters": bytes_of(learner.parameters),
            "gradients": bytes_of([p.grad for p in learner.parameters if p.grad is not None]),
            "optimiser state": bytes_of([v for state in learner.optimizer.state.values() for v in state.values()]),
        }

    def portions(self, responses: Responses) -> dict[str, Portion]:
        """All responses as one optimiser batch."""
        return portions_of(self.config, responses, self.made.newline_ids)

    def update(self, portions: Mapping[str, Portion], number: int) -> dict[str, float]:
        """Update `number` of the first step, counted from 0. Returns its metrics."""
        return update(self.made.learner, portions, number)


def bytes_of(tensors: Sequence[Tensor]) -> int:
    """Bytes of the memory behind tensors, each piece of memory counted once; of a sharded tensor this rank's."""
    local = (value.to_local() if isinstance(value, DTensor) else value for value in tensors)
    pieces = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in local}
    return sum(pieces.values())


def portions_of(config: TrainConfig, responses: Responses, newline_ids: Tensor) -> dict[str, Portion]:
    """All responses. newline_ids: bool [V], True where a token's text contains a newline."""
    return {
        name: Portion(batch, range(len(batch.responses)), *spans_of(config, name, batch, newline_ids))
        for name, batch in responses.items()
    }


def learner_of(config: TrainConfig, policy: Policy) -> Learner:
    """A learner of a run of 1,000 updates."""
    return Learner(config, policy, updates=1000)


def update(learner: Learner, portions: Mapping[str, Portion], number: int) -> dict[str, float]:
    """Update `number` of the first step, counted from 0. Returns its metrics."""
    return learner.update(portions, Moment(learner.config.seed, 0, number)).metrics


def batch_of(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[Response]]) -> Experience:
    """Responses to prompts of token ids, without scores."""
    shown = [Prompt(Problem(str(number), ""), tuple(ids), tuple(ids)) for number, ids in enumerate(prompts)]
    return Experience.of(shown, responses)


def random_batch(prompts: Tensor, responses: Tensor, vocabulary: int, k: int) -> Experience:
    """A batch whose scores are near those of random weights, the same each time.

    prompts: int64 [B, P]; responses: int64 [B, R]; k: of the teacher's most probable tokens.
    """
    written = [[Response(tuple(ids), (0.0,) * len(ids), False)] for ids in responses.tolist()]
    count, generator = responses.numel(), torch.Generator().manual_seed(1)
    uniform = -torch.tensor(float(vocabulary)).log()
    noise = torch.randn(count, 2, generator=generator) * 0.5
    top_logp = torch.randn(count, k, generator=generator).log_softmax(-1).sort(-1, descending=True).values
    top_ids = torch.randint(vocabulary, (count, k), generator=generator).int()
    return batch_of(prompts.tolist(), written).with_scores(
        behaviour=TokenScores(logp=uniform + noise[:, 0]),
        teacher=TokenScores(logp=uniform + noise[:, 1], top_ids=top_ids, top_logp=top_logp),
    )


def micro_batches(batch: Experience, budget: int, device: torch.device) -> list[MicroBatch]:
    """The forwards that cover the batch. budget: most tokens of one."""
    return list(batch.micro_batches(range(len(batch.responses)), budget, device))


def student_logp(policy: Policy, batch: Experience, budget: int) -> Tensor:
    """[N]: the policy's log-probabilities of the sampled tokens, in nats, by the trainer's forward."""
    logp = LocalScorer(policy, budget, temperature=1.0).score(batch, Needs(logp=True)).logp
    assert logp is not None
    return logp


def teacher_scores(policy: Policy, batch: Experience, budget: int, k: int) -> TokenScores:
    """The teacher's log-probabilities of the sampled tokens [N], and its K most probable tokens with theirs [N, K]."""
    return LocalScorer(policy, budget, temperature=1.0).score(batch, Needs(top=k))


def requests_of(prompts: Tensor, purpose: str) -> list[Request]:
    """One response to each prompt of int64 [B, P]. purpose: part of the address of its random numbers."""
    return [Request(tuple(prompt), ((purpose, row),)) for row, prompt in enumerate(prompts.tolist())]
