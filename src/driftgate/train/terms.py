"""The terms' losses and weights on one micro-batch: the part of the forward pass after the body.

Shapes: N valid response tokens of a micro-batch, H hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..config import TrainConfig
from ..config.terms import TermSettings
from ..data.packing import MicroBatch
from ..method import head
from ..method.gates import span_drift
from ..method.scores import Scored
from ..objectives import Outputs
from . import diagnostics
from .losses import Heads, read_head
from .update import Update
from .weighing import Weighed, streams_of, weigh

TermSums = tuple[dict[str, Tensor], Weighed]
"""A term's sums over the tokens of a micro-batch, and its weights."""
Finish = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, TermSums]]]
"""(hidden [N, H], output embedding [V, H]) -> the loss to go backward from, and each term's sums."""


class Terms:
    """Losses and weights of the configured terms."""

    def __init__(self, config: TrainConfig, target_heads: Heads):
        self.config, self.target_heads = config, target_heads
        self.temperature = config.rollout.temperature
        self.want_logp = "logp" in config.reads
        """Whether a weight, an objective or a metric reads the student's log p(y_t)."""

    def finish(self, update: Update, responses: str, micro: MicroBatch) -> Finish:
        """What a forward of the policy ends with."""
        terms = update.terms_on(responses)
        portion, tokens = update.portions[responses], micro.tokens
        fused = len(terms) == 1 and all(self._is_known(update, name) for name in terms)

        def finish(hidden: Tensor, embedding: Tensor) -> tuple[Tensor, dict[str, TermSums]]:
            ids = portion.batch.ids[tokens].to(hidden.device)
            scores = portion.batch.scores.rows(tokens, hidden.device)
            if fused:
                found = self._fused_loss(update, next(iter(terms)), micro, ids, scores, hidden, embedding)
            else:
                found = self._loss(update, terms, micro, ids, scores, hidden, embedding)
            total, outputs, sums = found
            if responses == "student":
                update.note_logp(tokens, outputs.logp)
                sums["main"][0].update(self._student_sums(update, micro, outputs, ids, scores))
            return total, sums

        return finish

    def weigh(self, update: Update, name: str, tokens: Tensor, logp: Tensor | None, device: torch.device) -> Weighed:
        """The weights of tokens int64 [N] of a term's responses. logp: log p(y_t) of the current student, where it is
        read."""
        term = update.terms[name]
        portion, k = update.portions[term.responses], self.config.diagnostics.k
        if term.weights and update.unmoved(term):
            logp = torch.zeros(len(tokens), device=device)  # only the shift counts, and it is 0
        streams = streams_of(portion.batch, tokens, term.reads_of_weights, logp, update.moment, k, device)
        weighed = weigh(term, streams, portion.spans_of(tokens, device), update.moment)
        update.tau |= {f"{name}.{factor}": value for factor, value in weighed.tau.items()}
        return weighed

    def _loss(
        self,
        update: Update,
        terms: Mapping[str, TermSettings],
        micro: MicroBatch,
        ids: Tensor,
        scores: Scored,
        hidden: Tensor,
        embedding: Tensor,
    ) -> tuple[Tensor, Outputs, dict[str, TermSums]]:
        """One pass over the head for all terms of a group of responses, then their losses and weights."""
        objectives = [term.objective for term in terms.values()]
        student = any(term.responses == "student" for term in terms.values())
        want_logp = self.want_logp and student
        outputs = read_head(hidden, embedding, ids, objectives, scores, self.temperature, want_logp, self.target_heads)
        scores = self._with_old_logp(update, student, scores, outputs.logp)
        total, sums = hidden.new_zeros(()), {}
        for name, term in terms.items():
            losses = term.objective.loss(outputs, scores)
            weighed = self._weighed(update, name, micro.tokens, outputs)
            weighted = (weighed.weight * losses).sum()
            total = total + weighted * update.scale(name)
            sums[name] = {"loss": weighted, "ungated": losses.sum()}, weighed
        return total, outputs, sums

    def _fused_loss(
        self,
        update: Update,
        name: str,
        micro: MicroBatch,
        ids: Tensor,
        scores: Scored,
        hidden: Tensor,
        embedding: Tensor,
    ) -> tuple[Tensor, Outputs, dict[str, TermSums]]:
        """As `_loss`, for the one term of a group of responses that `_is_known`: the gradient comes with the
        log-probabilities."""
        term, student = update.terms[name], update.terms[name].responses == "student"
        outputs = Outputs(hidden, embedding, None, self.temperature, self.target_heads)
        weighed = self._weighed(update, name, micro.tokens, outputs)

        def loss_of(part: slice, logp: Tensor) -> Tensor:
            known = self._with_old_logp(update, student, scores.rows(part), logp)
            return term.objective.loss(replace(outputs, logp=logp), known)

        total, losses, logp = head.weighted_loss(hidden, embedding, ids, weighed.weight, loss_of, self.temperature)
        sums: TermSums = {"loss": total, "ungated": losses.sum()}, weighed
        return total * update.scale(name), replace(outputs, logp=logp), {name: sums}

    def _is_known(self, update: Update, name: str) -> bool:
        """Whether a term reads the student through the sampled tokens' log-probabilities alone, with weights that do
        not wait for them."""
        term = update.terms[name]
        waits = term.reads_of_weights & {"logp", "behaviour_logp"} and not update.unmoved(term)
        return term.objective.reads_sampled_token and (name in update.ahead or not waits)

    def _weighed(self, update: Update, name: str, tokens: Tensor, outputs: Outputs) -> Weighed:
        """The weights of a micro-batch's tokens: those found ahead, or from the student's log-probabilities now."""
        device = outputs.hidden.device
        if name in update.ahead:
            found = update.ahead[name]
            weight, raw = found.weight[tokens].to(device), found.raw[tokens].to(device)
            return Weighed(weight, raw, weight.new_zeros(()))
        return self.weigh(update, name, tokens, outputs.logp, device)

    def _with_old_logp(self, update: Update, student: bool, scores: Scored, logp: Tensor | None) -> Scored:
        """At age 0 the current student wrote the rollout: its log-probabilities are the old ones."""
        if logp is None or not (student and update.fresh and self.want_logp):
            return scores
        return replace(scores, behaviour=replace(scores.behaviour, logp=logp.detach()))

    def _student_sums(
        self, update: Update, micro: MicroBatch, outputs: Outputs, ids: Tensor, scores: Scored
    ) -> dict[str, Tensor]:
        """Sums over the student's tokens for the metrics: drift, clipping and, to diagnose, both distributions."""
        scores = self._with_old_logp(update, True, scores, outputs.logp)
        portion, sums, old_logp = update.portions["student"], {}, scores.behaviour.logp
        if outputs.logp is not None and old_logp is not None:
            shift = outputs.logp.detach() - old_logp
            sums["drift_abs"] = shift.abs().sum()
            if portion.drift_spans is not None:
                spans = portion.drift_spans[micro.tokens].to(shift.device)
                sums["drift_span"] = span_drift(shift, spans)[spans].sum()
        clips = self.config.objective.clipped(outputs, scores)
        if clips is not None:
            sums["clipped"] = clips.sum()
        if update.diagnose:
            k = self.config.diagnostics.k
            found = head.summary(outputs.hidden, outputs.head, ids[:, None], k, True, self.temperature)
            sums |= diagnostics.distribution_sums(found, scores.teacher, k)
        return sums
