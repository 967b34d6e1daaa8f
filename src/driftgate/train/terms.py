"""Losses and weights of all terms on one micro-batch. This is the part of the forward pass after the body.

Shapes: N valid response tokens of a micro-batch, H hidden, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..config import TrainConfig
from ..config.terms import TermSettings
from ..data.packing import MicroBatch
from ..method import head
from ..method.gates import span_drift
from ..method.logits import Head
from ..method.scores import Scored
from ..objectives import Outputs
from . import diagnostics
from .losses import Heads, read_head
from .update import Update
from .weighing import Weighed, streams_of, weigh

TermSums = tuple[dict[str, Tensor], Weighed]
"""Sums of a term over the tokens of a micro-batch, by name, and its weights."""
Finish = Callable[[Tensor, Head], tuple[Tensor, dict[str, TermSums]]]
"""(hidden [N, H], output head) -> the loss for the backward pass, and the sums of each term."""


@dataclass(frozen=True)
class Given:
    """The tokens of a micro-batch, with their scores and hidden states."""

    tokens: Tensor
    """int64 [N], on the CPU: places of the tokens among all tokens of their group of responses."""
    ids: Tensor
    """int64 [N]: the sampled token ids y_t."""
    scores: Scored
    hidden: Tensor
    """[N, H]: the states that predict the tokens, with gradient."""
    output: Head
    """The student's output head, with gradient."""


class Terms:
    """Losses and weights of the terms that the settings name. target_heads: see `losses.Heads`."""

    def __init__(self, config: TrainConfig, target_heads: Heads):
        self.config, self.target_heads = config, target_heads
        self.temperature = config.rollout.temperature
        self.want_logp = "logp" in config.reads
        """Whether a weight, an objective or a metric reads the student's log p(y_t)."""

    def finish(self, update: Update, responses: str, micro: MicroBatch) -> Finish:
        """The end of the policy's forward pass on a micro-batch: a function from hidden states to loss and sums."""
        terms = update.terms_on(responses)
        portion, tokens = update.portions[responses], micro.tokens
        fused = len(terms) == 1 and all(self._is_known(update, name) for name in terms)

        def finish(hidden: Tensor, output: Head) -> tuple[Tensor, dict[str, TermSums]]:
            ids = portion.batch.ids[tokens].to(hidden.device)
            given = Given(tokens, ids, portion.batch.scores.rows(tokens, hidden.device), hidden, output)
            if fused:
                total, outputs, sums = self._fused_loss(update, next(iter(terms)), given)
            else:
                total, outputs, sums = self._loss(update, terms, given)
            if responses == "student":
                update.note_logp(tokens, outputs.logp)
                sums["main"][0].update(self._student_sums(update, given, outputs))
            return total, sums

        return finish

    def weigh(self, update: Update, name: str, tokens: Tensor, logp: Tensor | None, device: torch.device) -> Weighed:
        """The weights of some tokens of a term's responses.

        tokens: int64 [N], places in their group of responses. logp: float [N], log p(y_t) of the current student, or
        None if nothing reads it. Raises RunError if a factor cannot be normalised.
        """
        term = update.terms[name]
        portion, k = update.portions[term.responses], self.config.diagnostics.k
        if term.weights and update.unmoved(term):
            logp = torch.zeros(len(tokens), device=device)  # the weights depend on the shift alone, which is 0
        streams = streams_of(portion.batch, tokens, term.reads_of_weights, logp, update.moment, k, device)
        weighed = weigh(term, streams, portion.spans_of(tokens, device), update.moment)
        update.tau |= {f"{name}.{factor}": value for factor, value in weighed.tau.items()}
        return weighed

    def _loss(
        self, update: Update, terms: Mapping[str, TermSettings], given: Given
    ) -> tuple[Tensor, Outputs, dict[str, TermSums]]:
        """All terms on a group of responses: one pass over the output embedding, then losses and weights."""
        objectives = [term.objective for term in terms.values()]
        student = any(term.responses == "student" for term in terms.values())
        how = self.temperature, self.want_logp and student, self.target_heads
        outputs = read_head(given.hidden, given.output, given.ids, objectives, given.scores, *how)
        scores = self._with_old_logp(update, student, given.scores, outputs.logp)
        total, sums = given.hidden.new_zeros(()), {}
        for name, term in terms.items():
            losses = term.objective.loss(outputs, scores)
            weighed = self._weighed(update, name, given.tokens, outputs)
            weighted = (weighed.weight * losses).sum()
            total = total + weighted * update.scale(name)
            sums[name] = {"loss": weighted, "ungated": losses.sum()}, weighed
        return total, outputs, sums

    def _fused_loss(self, update: Update, name: str, given: Given) -> tuple[Tensor, Outputs, dict[str, TermSums]]:
        """As `_loss`, for a single term that `_is_known`. The gradient is computed together with the
        log-probabilities, which saves one product with the vocabulary."""
        term, student = update.terms[name], update.terms[name].responses == "student"
        outputs = Outputs(given.hidden, given.output, None, self.temperature, self.target_heads)
        weighed = self._weighed(update, name, given.tokens, outputs)

        def loss_of(part: slice, logp: Tensor) -> Tensor:
            known = self._with_old_logp(update, student, given.scores.rows(part), logp)
            return term.objective.loss(replace(outputs, logp=logp), known)

        inputs = given.hidden, given.output, given.ids, weighed.weight
        total, losses, logp = head.weighted_loss(*inputs, loss_of, self.temperature)
        sums: TermSums = {"loss": total, "ungated": losses.sum()}, weighed
        return total * update.scale(name), replace(outputs, logp=logp), {name: sums}

    def _is_known(self, update: Update, name: str) -> bool:
        """Whether the gradient can be computed in the forward pass: the loss reads the student through the sampled
        tokens' log-probabilities alone, and the weights are known without them."""
        term = update.terms[name]
        waits = term.reads_of_weights & {"logp", "behaviour_logp"} and not update.unmoved(term)
        return term.objective.reads_sampled_token and (name in update.ahead or not waits)

    def _weighed(self, update: Update, name: str, tokens: Tensor, outputs: Outputs) -> Weighed:
        """The weights of a micro-batch's tokens. They were found before the backward pass, or follow now from the
        student's log-probabilities."""
        device = outputs.hidden.device
        if name in update.ahead:
            found = update.ahead[name]
            weight, raw = found.weight[tokens].to(device), found.raw[tokens].to(device)
            return Weighed(weight, raw, weight.new_zeros(()))
        return self.weigh(update, name, tokens, outputs.logp, device)

    def _with_old_logp(self, update: Update, student: bool, scores: Scored, logp: Tensor | None) -> Scored:
        """The scores with the old log-probabilities. At age 0 the current student wrote the rollout, so its own are the
        old ones."""
        if logp is None or not (student and update.fresh and self.want_logp):
            return scores
        return replace(scores, behaviour=replace(scores.behaviour, logp=logp.detach()))

    def _student_sums(self, update: Update, given: Given, outputs: Outputs) -> dict[str, Tensor]:
        """Sums over the student's tokens for metrics: drift and clipping, and in a diagnosed update how far student and
        teacher are apart."""
        scores = self._with_old_logp(update, True, given.scores, outputs.logp)
        portion, sums, old_logp = update.portions["student"], {}, scores.behaviour.logp
        if outputs.logp is not None and old_logp is not None:
            shift = outputs.logp.detach() - old_logp
            sums["drift_abs"] = shift.abs().sum()
            if portion.drift_spans is not None:
                spans = portion.drift_spans[given.tokens].to(shift.device)
                sums["drift_span"] = span_drift(shift, spans)[spans].sum()
        clips = self.config.objective.clipped(outputs, scores)
        if clips is not None:
            sums["clipped"] = clips.sum()
        if update.diagnose:
            k = self.config.diagnostics.k
            found = head.summary(outputs.hidden, outputs.head, given.ids[:, None], k, True, self.temperature)
            teacher = scores.teacher if self.config.teacher_roles else None
            sums |= diagnostics.distribution_sums(found, teacher, k)
        return sums
