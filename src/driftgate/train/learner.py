"""One gated optimiser update, exact under any split into micro-batches.

Shapes: N valid response tokens of a micro-batch; M of the whole optimiser batch. The gates of a minibatch have mean 1
over all its micro-batches, a mean known only after the last. So the gradient of sum(g l) and the scalar sum(g) are
summed up, and the gradient is divided once before the step: sum(g l) / sum(g) is (1/M) sum of (g / mean g) l.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.experience import Experience
from ..data.packing import MicroBatch
from ..errors import RunError
from ..method import head
from ..method.gates import drift_gate, span_drift, unit_mean
from ..method.objectives import sampled_token_loss, topk_reverse_kl
from ..method.spans import fixed_spans, newline_spans
from ..models.policy import Policy


@dataclass
class Sums:
    """What micro-batches add up: every entry is a sum over tokens, but for the minimum."""

    totals: dict[str, float] = field(default_factory=dict)
    gate_min: float = math.inf

    def add(self, totals: dict[str, Tensor], gate_min: Tensor) -> None:
        for name, value in zip(totals, torch.stack([*totals.values()]).tolist()):
            self.totals[name] = self.totals.get(name, 0.0) + value
        self.gate_min = min(self.gate_min, float(gate_min))

    def metrics(self) -> dict[str, float]:
        """Per-token means. `gate_ess` is the share of the tokens that gates of this spread are worth (Kish)."""
        if not self.totals:
            return {"tokens": 0.0}
        t, count = self.totals, self.totals["tokens"]
        closed = t["closed"] / count
        metrics = {
            "loss": t["loss"] / t["weight"],
            "loss_ungated": t["ungated"] / count,
            "gate_mean": 1 - closed,
            "gate_min": self.gate_min,
            "gate_std": math.sqrt(max(t["closed_squared"] / count - closed**2, 0.0)),
            "gate_ess": t["gate"] ** 2 / max(t["gate_squared"] * count, 1e-300),
            "tokens": count,
        }
        drift = {name: t[name] / count for name in ("drift_abs", "drift_span") if name in t}
        return metrics | drift


class Learner:
    """Holds the student, its optimiser and its schedule."""

    def __init__(self, config: TrainConfig, policy: Policy, updates: int):
        """updates: optimiser updates of the whole run, where the schedule ends."""
        self.config = config
        self.policy = policy
        settings = config.optimizer
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.lr, settings.betas, settings.eps, settings.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: self._lr_factor(n, updates))

    def update(self, batch: Experience, spans: Tensor, sequences: Sequence[int]) -> dict[str, float]:
        """One optimiser step on `sequences` of the batch. Returns metrics.

        spans: int64 [tokens of the batch]. Raises RunError where loss or gradient is not finite.
        """
        self.optimizer.zero_grad()
        sums = Sums()
        micros = batch.micro_batches(sequences, self.config.microbatch_tokens, self.policy.device)
        for micro in micros:
            totals, gate_min = self.policy(micro, self._finish(batch, spans, micro))
            totals["loss"].backward()
            sums.add({name: value.detach().double() for name, value in totals.items()}, gate_min)
        lr = self.schedule.get_last_lr()[0]
        norm = self._step(sums)
        return sums.metrics() | {"grad_norm": norm, "lr": lr}

    def _step(self, sums: Sums) -> float:
        """Divide the gradient by the sum of weights, clip it, step. Returns the norm before clipping.

        Without a token in the stream (all were dropped) only the schedule moves on.
        """
        if not sums.totals:
            self.schedule.step()
            return 0.0
        if not math.isfinite(sums.totals["loss"]):
            raise RunError(f"the loss is {sums.totals['loss']}")
        if sums.totals["weight"] <= 0:
            raise RunError(f"every gate is 0: the drift is too large for gate.tau = {self.config.gate.tau}; lower it")
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= sums.totals["weight"]
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm))
        if not math.isfinite(norm):
            raise RunError(f"the gradient norm is {norm}")
        self.optimizer.step()
        self.schedule.step()
        return norm

    def _finish(self, batch: Experience, spans: Tensor, micro: MicroBatch):
        """The part of the forward after the body: per-token losses, gates, and their sums."""
        device = self.policy.device
        rows, spans = batch.rows[micro.tokens].to(device), spans[micro.tokens].to(device)

        def finish(hidden: Tensor, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
            losses, logp = self._losses(batch, micro, hidden, weight)
            gate, drift = self._gates(batch, micro, logp, spans)
            scaled = self._scaled(gate, rows)
            sums = {"loss": (scaled * losses).sum(), "weight": scaled.sum(), "ungated": losses.sum()}
            return sums | gate_sums(gate) | drift, gate.min()

        return finish

    def _losses(
        self, batch: Experience, micro: MicroBatch, hidden: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Per-token losses [N] and the current log p(y_t) [N], the latter None where nothing reads it."""
        objective, temperature = self.config.objective, self.config.rollout.temperature
        ids = self._of(batch.ids, micro)
        if objective.kind == "sampled_token":
            logp = head.token_logprobs(hidden, weight, ids, temperature)
            behaviour, teacher = self._of(batch.behaviour_logp, micro), self._of(batch.teacher_logp, micro)
            how = {"advantage": objective.advantage, "clip": objective.clip, "dual_clip": objective.dual_clip}
            return sampled_token_loss(logp, behaviour, teacher, **how), logp  # type: ignore[arg-type]
        support = self._of(batch.support_ids, micro).long()
        student_logits = head.support_logits(hidden, weight, support, temperature)
        losses = topk_reverse_kl(student_logits, self._of(batch.support_logits, micro))
        if not self.config.needs_behaviour:
            return losses, None
        with torch.no_grad():
            return losses, head.token_logprobs(hidden, weight, ids, temperature)

    def _gates(
        self, batch: Experience, micro: MicroBatch, logp: Tensor | None, spans: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Gates [N], all 1 where there is no gate, and the drift's sums over tokens."""
        gate, settings = torch.ones(len(spans), dtype=self.policy.wide, device=spans.device), self.config.gate
        if logp is None:
            return gate, {}
        behaviour = self._of(batch.behaviour_logp, micro)
        if settings.spans != "none":
            gate = drift_gate(logp, behaviour, spans, settings.tau, settings.statistic)
        shift = logp.detach() - behaviour
        return gate, {"drift_abs": shift.abs().sum(), "drift_span": span_drift(shift, spans)[spans].sum()}

    def _scaled(self, gate: Tensor, rows: Tensor) -> Tensor:
        """Gates [N] with mean 1 inside each sequence, where that is the scope; the minibatch's waits for `_step`."""
        if self.config.gate.scope == "minibatch":
            return gate
        try:
            return unit_mean(gate, rows)
        except ValueError as error:
            tau = self.config.gate.tau
            raise RunError(f"gate.tau = {tau}: {error}; the drift is too large for it, lower it") from None

    def _of(self, stream: Tensor | None, micro: MicroBatch) -> Tensor:
        """A micro-batch's part of a flat stream, on the model's device."""
        assert stream is not None
        return stream[micro.tokens].to(self.policy.device)

    def _lr_factor(self, update: int, updates: int) -> float:
        """Share of the peak learning rate at `update`, counted from 0."""
        settings = self.config.optimizer
        if update < settings.warmup:
            return (update + 1) / (settings.warmup + 1)
        left = 1 - (update - settings.warmup) / max(updates - settings.warmup, 1)
        shapes = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return max(shapes[settings.schedule], 0.0)


def gate_sums(gate: Tensor) -> dict[str, Tensor]:
    """Sums over gates [N] in float64, of 1 - g too: gates are near 1, and their spread would drown in rounding."""
    wide = gate.double()
    closed = 1 - wide
    sums = {"gate": wide.sum(), "gate_squared": wide.square().sum(), "tokens": wide.new_tensor(len(gate))}
    return sums | {"closed": closed.sum(), "closed_squared": closed.square().sum()}


def make_spans(config: TrainConfig, batch: Experience, newline_ids: Tensor) -> Tensor:
    """The partition that the gate averages over; for no gate, blocks of `gate.size` to measure the drift by.

    newline_ids: bool [V], True where a token's text contains a newline. Returns int64 [N].
    """
    gate = config.gate
    if gate.spans == "newline":
        return newline_spans(batch.rows, newline_ids[batch.ids], gate.min_tokens, gate.max_tokens, gate.size)
    return fixed_spans(batch.rows, gate.size)
