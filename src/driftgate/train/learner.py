"""One weighted optimiser update, exact under any split into micro-batches.

The loss is a sum of terms, L = sum_k coef_k * sum_t w_kt l_kt / D_k, where D_k holds the tokens of the term's stream
in the whole optimiser batch and the means of the factors that are to have mean 1 over it.

These means are known only after the last micro-batch. With one term, its gradient is summed up unscaled and divided
once before the step, at no extra forward. With several, or with weights that look across sequences, the weights are
found before the first backward: from scores at hand, else by a forward without gradient.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.packing import MicroBatch
from ..errors import RunError
from ..loss_config import NllObjective, SampledTokenObjective, TermSettings
from ..method import head
from ..method.gates import span_drift
from ..models.policy import Policy
from ..scorers.local import TargetNeeds, score_tokens
from . import diagnostics
from .losses import Outputs, Scores, clipped, read_head, token_losses
from .portions import Portion
from .sums import Sums
from .weighing import Moment, Weighed, streams_of, weigh, weighed_ahead

TermSums = tuple[dict[str, Tensor], Weighed]
"""A term's sums over the tokens of a micro-batch, and what its weights amount to."""


@dataclass
class Ahead:
    """A term's weights and denominator, found before the backward."""

    weight: Tensor
    """[tokens of the stream]; 0 for those of other portions."""
    raw: Tensor
    """The same before any normalisation."""
    denominator: float


@dataclass
class Update:
    """What is known of an update while it runs."""

    terms: Mapping[str, TermSettings]
    portions: Mapping[str, Portion]
    moment: Moment
    diagnose: bool = False
    ahead: dict[str, Ahead] = field(default_factory=dict)
    """Weights found before the backward, by term."""
    tau: dict[str, float] = field(default_factory=dict)
    """The tau that a factor chose, by term and factor."""
    positions: int = 0
    """Positions that the forwards with a gradient went over, padding included."""
    padding: int = 0
    """Those of them that were padding."""

    @property
    def divided_last(self) -> bool:
        """Whether the one term's gradient is summed up unscaled and divided before the step."""
        return len(self.terms) == 1 and not self.ahead


@contextmanager
def repeatable() -> Iterator[None]:
    """Attention's backward on a GPU adds in a fixed order only while torch refuses what is not deterministic; where it
    merely warns, as `prepare_torch` has it, flash attention takes its faster way. Sums of the forward would be refused,
    so it goes for the backward alone."""
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


class Learner:
    """Holds the student, its optimiser and its schedule."""

    def __init__(
        self,
        config: TrainConfig,
        policy: Policy,
        updates: int,
        target_heads: Mapping[str, Callable[[], Tensor]] | None = None,
    ):
        """updates: optimiser updates of the whole run, where the schedule ends. target_heads: output embeddings
        [V, H'] of "teacher" and "initial", for divergences over the vocabulary."""
        self.config = config
        self.want_logp = "logp" in config.reads
        self.policy = policy
        self.target_heads = target_heads or {}
        settings = config.optimizer
        self.parameters = [p for p in policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.lr, settings.betas, settings.eps, settings.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: self._lr_factor(n, updates))

    def update(self, portions: Mapping[str, Portion], moment: Moment, diagnose: bool = False) -> dict[str, float]:
        """One optimiser step on a portion of each stream ("student", ...). Returns metrics; more of them, at the cost
        of a second forward and backward, for `diagnose`. Raises RunError where loss or gradient is not finite."""
        work = Update(self.config.terms_at(moment.step), portions, moment, diagnose)
        plain = self._plain_norm(work) if diagnose else None
        self._weigh_ahead(work)
        sums = self._accumulate(work)
        lr = self.schedule.get_last_lr()[0]
        norm = self._step(work, sums)
        metrics = _metrics(work, sums) | {f"tau.{name}": value for name, value in work.tau.items()}
        if diagnose:
            metrics["grad_norm_ratio"] = norm / plain if plain else 1.0
        return metrics | {"padding": work.padding / max(work.positions, 1), "grad_norm": norm, "lr": lr}

    def _accumulate(self, work: Update) -> dict[str, Sums]:
        """Forward and backward of every micro-batch. Returns each term's sums."""
        self.optimizer.zero_grad()
        sums = {name: Sums(work.ahead[name].denominator if name in work.ahead else None) for name in work.terms}
        for stream, portion in work.portions.items():
            for micro in self._micro_batches(portion):
                loss, totals = self.policy(micro, self._finish(work, stream, micro))
                with repeatable():
                    loss.backward()
                work.positions += micro.input_ids.numel()
                work.padding += micro.padding
                for name, (values, weighed) in totals.items():
                    sums[name].add(values, weighed)
        return sums

    def _micro_batches(self, portion: Portion) -> Iterator[MicroBatch]:
        return portion.batch.micro_batches(portion.sequences, self.config.microbatch_tokens, self.policy.device)

    def _finish(self, work: Update, stream: str, micro: MicroBatch):
        """The part of the forward after the body: the loss to go backward from, and each term's sums over tokens."""
        terms = {name: term for name, term in work.terms.items() if term.stream == stream}
        scores = self._scores(work, stream, micro.tokens)
        fused = len(terms) == 1 and all(self._is_known(work, name) for name in terms)

        def finish(hidden: Tensor, weight: Tensor):
            if fused:
                total, outputs, sums = self._fused_loss(work, next(iter(terms)), micro.tokens, hidden, weight)
            else:
                total, outputs, sums = self._loss(work, stream, terms, micro.tokens, hidden, weight, scores)
            if stream == "student":
                sums["main"][0].update(self._student_sums(work, micro, outputs, scores))
            return total, sums

        return finish

    def _loss(
        self,
        work: Update,
        stream: str,
        terms: Mapping[str, TermSettings],
        tokens: Tensor,
        hidden: Tensor,
        weight: Tensor,
        scores: Scores,
    ) -> tuple[Tensor, Outputs, dict[str, TermSums]]:
        """One look at the head for all terms of a stream, then their losses and weights."""
        temperature = self.config.rollout.temperature
        ids, objectives = self._ids(work, stream, tokens), [term.objective for term in terms.values()]
        outputs = read_head(
            hidden, weight, ids, objectives, scores, temperature, self.want_logp and stream == "student"
        )
        _note_behaviour(work, stream, tokens, outputs.logp)
        total, sums = hidden.new_zeros(()), {}
        for name, term in terms.items():
            losses = token_losses(term.objective, outputs, scores, self._target_head, temperature)
            weighed = self._weighed(work, name, tokens, outputs)
            weighted = (weighed.weight * losses).sum()
            total = total + weighted * self._scale(work, name)
            sums[name] = {"loss": weighted, "ungated": losses.sum()}, weighed
        return total, outputs, sums

    def _fused_loss(
        self, work: Update, name: str, tokens: Tensor, hidden: Tensor, weight: Tensor
    ) -> tuple[Tensor, Outputs, dict[str, TermSums]]:
        """As `_loss`, for a stream's one term that `_is_known`: the gradient comes with the log-probabilities."""
        term, temperature = work.terms[name], self.config.rollout.temperature
        weighed = self._weighed(work, name, tokens, Outputs(hidden, weight, None))

        def loss_of(part: slice, logp: Tensor) -> Tensor:
            _note_behaviour(work, term.stream, tokens[part], logp)
            outputs, scores = Outputs(hidden, weight, logp), self._scores(work, term.stream, tokens[part])
            return token_losses(term.objective, outputs, scores, self._target_head, temperature)

        ids = self._ids(work, term.stream, tokens)
        total, losses, logp = head.weighted_loss(hidden, weight, ids, weighed.weight, loss_of, temperature)
        sums: TermSums = {"loss": total, "ungated": losses.sum()}, weighed
        return total * self._scale(work, name), Outputs(hidden, weight, logp), {name: sums}

    def _is_known(self, work: Update, name: str) -> bool:
        """Whether a term reads the sampled tokens' log-probabilities alone, with weights that do not wait for them."""
        term = work.terms[name]
        waits = term.reads_of_weights & {"logp", "behaviour_logp"} and not _unmoved(work, term)
        return isinstance(term.objective, (SampledTokenObjective, NllObjective)) and (name in work.ahead or not waits)

    def _ids(self, work: Update, stream: str, tokens: Tensor) -> Tensor:
        return work.portions[stream].batch.ids[tokens].to(self.policy.device)

    def _scores(self, work: Update, stream: str, tokens: Tensor) -> Scores:
        """Scores of tokens of a stream by their names, moved to the device once."""
        known, device = work.portions[stream].batch.scores, self.policy.device
        return cache(lambda name: known[name][tokens].to(device))

    def _weighed(self, work: Update, name: str, tokens: Tensor, outputs: Outputs) -> Weighed:
        """The weights of a micro-batch's tokens: those found ahead, or from the student's log-probabilities now."""
        device = outputs.hidden.device
        if name in work.ahead:
            found = work.ahead[name]
            weight, raw = found.weight[tokens].to(device), found.raw[tokens].to(device)
            return Weighed(weight, raw, weight.new_zeros(()))
        return self._weigh(work, name, tokens, outputs.logp, device)

    def _weigh(self, work: Update, name: str, tokens: Tensor, logp: Tensor | None, device: torch.device) -> Weighed:
        """The weights of tokens [N] of a term's stream. logp: log p(y_t) of the current student, where it is read."""
        term = work.terms[name]
        portion, k = work.portions[term.stream], self.config.diagnostics.k
        streams = streams_of(portion.batch, tokens, term.reads_of_weights, logp, work.moment, k, device)
        if term.weights and _unmoved(work, term):
            still = torch.zeros(len(tokens), device=device)
            streams = replace(streams, values={**streams.values, "logp": still, "behaviour_logp": still})
        weighed = weigh(term, streams, portion.spans_of(tokens, device), work.moment)
        work.tau |= {f"{name}.{factor}": value for factor, value in weighed.tau.items()}
        return weighed

    def _weigh_ahead(self, work: Update) -> None:
        """Find the weights of the terms that need all of the optimiser batch's before the backward."""
        logp: Tensor | None = None
        for name, term in work.terms.items():
            portion = work.portions.get(term.stream)
            if portion is None or not len(portion.tokens) or not weighed_ahead(term, len(work.terms)):
                continue
            tokens, live = portion.tokens, None
            if "logp" in term.reads_of_weights:
                logp = self._live_logp(portion, work.moment) if logp is None else logp
                live = logp[tokens]
            weighed = self._weigh(work, name, tokens, live, torch.device("cpu"))
            sums = Sums()
            sums.add({}, weighed)
            weight, raw = (torch.zeros(len(portion.batch.ids), dtype=w.dtype) for w in (weighed.weight, weighed.raw))
            weight[tokens], raw[tokens] = weighed.weight, weighed.raw
            work.ahead[name] = Ahead(weight, raw, sums.denominator(term, f"term {name}"))

    def _live_logp(self, portion: Portion, moment: Moment) -> Tensor:
        """log p(y_t) of the current student, [tokens of the stream] on the CPU; at a rollout's first update it is the
        student that wrote it."""
        if moment.update == 0 and "behaviour_logp" in portion.batch.scores:
            return portion.batch.scores["behaviour_logp"]
        ids, temperature = portion.batch.ids[:, None], self.config.rollout.temperature
        return score_tokens(self.policy, self._micro_batches(portion), ids, TargetNeeds(), temperature)["logp"][:, 0]

    def _scale(self, work: Update, name: str) -> float:
        """What the sum of weight * loss is multiplied by before the backward, but for a division that comes last."""
        term = work.terms[name]
        coef = term.coef_at(work.moment.step)
        if name in work.ahead:
            denominator = work.ahead[name].denominator
            return coef / denominator if denominator else 0.0
        return coef if work.divided_last else coef / len(work.portions[term.stream].tokens)

    def _step(self, work: Update, sums: dict[str, Sums]) -> float:
        """Divide the gradient where that had to wait, clip it, step. Returns the norm before clipping.

        Without a token in the streams (all were dropped) there is no gradient, and only the schedule moves on.
        """
        if not any(part.totals for part in sums.values()):
            self.optimizer.step()  # leaves all as it is; the schedule looks for it
            self.schedule.step()
            return 0.0
        for name, part in sums.items():
            if not math.isfinite(part.totals.get("loss", 0.0)):
                raise RunError(f"the loss is {part.totals['loss']}" + (f" (term {name})" if name != "main" else ""))
        self._divide(work, sums)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.optimizer.clip_norm))
        if not math.isfinite(norm):
            raise RunError(f"the gradient norm is {norm}")
        self.optimizer.step()
        self.schedule.step()
        return norm

    def _divide(self, work: Update, sums: dict[str, Sums]) -> None:
        """The summed gradient by the denominator that is known only now; where nothing was kept it is 0 already."""
        denominator = sums["main"].denominator(work.terms["main"], "the main term") if work.divided_last else 0.0
        for parameter in self.parameters:
            if parameter.grad is not None and denominator:
                parameter.grad /= denominator

    def _plain_norm(self, work: Update) -> float | None:
        """Gradient norm of the same terms without their weights, over all tokens; None where there are no weights."""
        if not any(term.weights for term in work.terms.values()):
            return None
        plain = Update({name: term.unweighted for name, term in work.terms.items()}, work.portions, work.moment)
        sums = self._accumulate(plain)
        if sums["main"].totals:
            self._divide(plain, sums)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _student_sums(self, work: Update, micro: MicroBatch, outputs: Outputs, scores: Scores) -> dict[str, Tensor]:
        """Sums over the student's tokens for the metrics: drift, clipping and, to diagnose, both distributions."""
        portion, sums = work.portions["student"], {}
        if outputs.logp is not None and "behaviour_logp" in portion.batch.scores:
            shift = outputs.logp.detach() - scores("behaviour_logp")
            sums["drift_abs"] = shift.abs().sum()
            if portion.drift_spans is not None:
                spans = portion.drift_spans[micro.tokens].to(shift.device)
                sums["drift_span"] = span_drift(shift, spans)[spans].sum()
        clips = clipped(self.config.objective, outputs, scores)
        if clips is not None:
            sums["clipped"] = clips.sum()
        if work.diagnose:
            ids = portion.batch.ids[micro.tokens].to(outputs.hidden.device)[:, None]
            k, temperature = self.config.diagnostics.k, self.config.rollout.temperature
            found = head.summary(outputs.hidden, outputs.weight, ids, k, True, temperature)
            sums |= diagnostics.distribution_sums(found, scores, k)
        return sums

    def _target_head(self, name: str) -> Tensor:
        return self.target_heads[name]()

    def _lr_factor(self, update: int, updates: int) -> float:
        """Share of the peak learning rate at `update`, counted from 0."""
        settings = self.config.optimizer
        if update < settings.warmup:
            return (update + 1) / (settings.warmup + 1)
        left = 1 - (update - settings.warmup) / max(updates - settings.warmup, 1)
        shapes = {"constant": 1.0, "linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2}
        return max(shapes[settings.schedule], 0.0)


def _unmoved(work: Update, term: TermSettings) -> bool:
    """Whether a term's weights hang on the student's shift alone and the student is still the one that wrote."""
    return work.moment.update == 0 and term.stream == "student" and term.of_shift_alone


def _note_behaviour(work: Update, stream: str, tokens: Tensor, logp: Tensor | None) -> None:
    """The first update's student is the one that wrote the rollout: where its log-probabilities of `tokens` were left
    open (NaN, see `scoring.behaviour_scores`), `logp` [N] is them."""
    behaviour = work.portions[stream].batch.scores.get("behaviour_logp")
    first = stream == "student" and work.moment.update == 0
    if first and logp is not None and behaviour is not None and behaviour[tokens].isnan().any():
        behaviour[tokens] = logp.detach().to(behaviour)


def _metrics(work: Update, sums: dict[str, Sums]) -> dict[str, float]:
    """The main term's under their own names, another's behind its name; `loss_total` is what goes backward."""
    metrics = sums["main"].metrics(work.terms["main"], "the main term")
    if len(work.terms) == 1:
        return metrics
    metrics["loss_total"] = metrics.get("loss", 0.0)
    for name, part in sums.items():
        if name != "main":
            coef = work.terms[name].coef_at(work.moment.step)
            found = part.metrics(work.terms[name], f"term {name}")
            metrics["loss_total"] += coef * found.get("loss", 0.0)
            metrics |= {f"{name}.{key}": value for key, value in (found | {"coef": coef}).items()}
    return metrics
