"""Signals: the values from which a weight is computed, one per valid response token. Each is one function here.

Shapes: N valid response tokens of whole sequences, sequence after sequence; K most probable tokens.
Symbols: p the current student, o the behaviour student that wrote the rollout, q the teacher, y_t the sampled token.

To add one, write a function of `Streams` that returns float [N] and put `@signal(...)` over it with the names of the
streams that it reads. These streams are scored only where a configuration uses the signal.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .gates import span_mean, widen
from .objectives import support_divergence
from .supports import overlap_ratio

READABLE = {
    "logp": "[N] log p(y_t), in nats, detached",
    "behaviour_logp": "[N] log o(y_t)",
    "teacher_logp": "[N] log q(y_t)",
    "behaviour_entropy": "[N] entropy of o, in nats",
    "teacher_entropy": "[N] entropy of q",
    "student_top_ids": "[N, K] the most probable tokens of o, most probable first",
    "student_top_logp": "[N, K] log o of the student's most probable tokens",
    "teacher_top_ids": "[N, K] the most probable tokens of q, most probable first",
    "teacher_top_logp": "[N, K] log q of the teacher's most probable tokens",
    "teacher_at_student": "[N, K] log q of the student's most probable tokens",
    "correct": "[N] 1 where the verifier accepts the token's response, else 0",
    "group": "[N] the prompt of the token's response, as a number",
    "group_mean": "[N] mean of `correct` over the responses that the student wrote to the prompt",
    "group_std": "[N] their standard deviation, with n - 1; 0 for one response",
}
"""The streams that a signal may read, besides rows, place and age."""


@dataclass(frozen=True)
class Streams:
    """The values known for the tokens of one optimiser batch, from which signals are computed."""

    sequences: Tensor
    """int64 [N]: each token's sequence, by its number in the rollout batch. Random draws are keyed by it."""
    rows: Tensor
    """int64 [N]: each token's sequence, counted from 0 in the order of this batch: non-decreasing, without gaps."""
    place: Tensor
    """int64 [N]: index of each token among its response's tokens in the loss, from 0."""
    age: int
    """Optimiser steps since the rollout."""
    values: Mapping[str, Tensor]
    """The `READABLE` streams that have been scored."""

    def __getitem__(self, name: str) -> Tensor:
        """A stream, floats in float32 at least. Raises ValueError for one that the signal does not declare."""
        if name not in self.values:
            raise ValueError(f"reads {name!r} without declaring it; add it to @signal(...)")
        value = self.values[name]
        return widen(value) if value.is_floating_point() else value


Signal = Callable[[Streams], Tensor]


@dataclass(frozen=True)
class Described:
    """A signal, the streams that it reads, and whether its value depends on other sequences of the batch."""

    compute: Signal
    reads: tuple[str, ...]
    whole: bool

    @property
    def meaning(self) -> str:
        return " ".join((self.compute.__doc__ or "").split())


SIGNALS: dict[str, Described] = {}

OF_SHIFT = ("drift", "staleness", "ratio", "drift_kl")
"""Signals that depend on the signed shift log p - log o only."""


def signal(*reads: str, whole: bool = False) -> Callable[[Signal], Signal]:
    """Register a function as a signal under its own name.

    reads: names of `READABLE` streams; whole: whether a value depends on all sequences of the optimiser batch.
    Raises ValueError for an unknown stream, or a name that a signal of another file has.
    """

    unknown = set(reads) - set(READABLE)
    if unknown:
        raise ValueError(f"a signal cannot read {', '.join(sorted(unknown))}; it can read {', '.join(READABLE)}")

    def describe(compute: Signal) -> Signal:
        before = SIGNALS.get(compute.__name__)
        if before is not None and _file_of(before.compute) != _file_of(compute):
            raise ValueError(f"there is a signal {compute.__name__} already; choose another name")
        SIGNALS[compute.__name__] = Described(compute, reads, whole)
        return compute

    return describe


def _file_of(compute: Signal) -> str:
    return inspect.getsourcefile(compute) or ""


@signal("logp", "behaviour_logp")
def drift(s: Streams) -> Tensor:
    """Signed shift of the student since the rollout, log p(y_t) - log o(y_t), in nats (arXiv 2606.24084). The drift of
    a span, from which a gate is computed, is its absolute mean."""
    return s["logp"] - s["behaviour_logp"]


@signal("logp", "behaviour_logp")
def staleness(s: Streams) -> Tensor:
    """log o(y_t) - log p(y_t), in nats: minus `drift`."""
    return -drift(s)


@signal("logp", "behaviour_logp")
def ratio(s: Streams) -> Tensor:
    """p(y_t) / o(y_t): the importance ratio."""
    return drift(s).exp()


@signal("logp", "behaviour_logp")
def drift_kl(s: Streams) -> Tensor:
    """r log r - r + 1 with r = p(y_t) / o(y_t), in nats. On samples of o it is an unbiased estimate of KL(p || o), and
    it is never negative."""
    shift = drift(s)
    d = shift.double()  # for a small d the value is d^2 / 2; in float32, rounding errors would be as large
    excess = torch.expm1(d)
    return (excess * (d - 1) + d).clamp(min=0).to(shift.dtype)


@signal("teacher_logp", "behaviour_logp")
def gap(s: Streams) -> Tensor:
    """log q(y_t) - log o(y_t), in nats: the teacher's log-ratio to the behaviour student."""
    return s["teacher_logp"] - s["behaviour_logp"]


@signal("teacher_logp", "logp")
def current_gap(s: Streams) -> Tensor:
    """log q(y_t) - log p(y_t), in nats: the teacher's log-ratio to the current student."""
    return s["teacher_logp"] - s["logp"]


@signal("teacher_logp", "behaviour_logp")
def gap_size(s: Streams) -> Tensor:
    """|log q(y_t) - log o(y_t)|, in nats."""
    return gap(s).abs()


@signal("teacher_logp", "logp")
def teacher_ratio(s: Streams) -> Tensor:
    """q(y_t) / p(y_t)."""
    return current_gap(s).exp()


@signal("behaviour_logp")
def surprisal(s: Streams) -> Tensor:
    """-log o(y_t), in nats: how unlikely the sampled token was to the student that wrote it."""
    return -s["behaviour_logp"]


@signal("teacher_logp", "behaviour_logp")
def log_mean_gap(s: Streams) -> Tensor:
    """sqrt(L) |log q - log o|, with the logarithmic mean L = (q - o) / (log q - log o) of the sampled token's two
    probabilities, which is q where they are equal (DIAL-OPD, arXiv 2610.11659, with beta = 1/2)."""
    size = gap(s).abs()
    larger = torch.maximum(s["teacher_logp"], s["behaviour_logp"]).exp()
    return (larger * -torch.expm1(-size) * size).sqrt()  # L |gap| = |q - o|, and so sqrt(L) |gap| = sqrt(|q - o| |gap|)


@signal("teacher_logp")
def teacher_logp(s: Streams) -> Tensor:
    """log q(y_t), in nats."""
    return s["teacher_logp"]


@signal("behaviour_entropy")
def student_entropy(s: Streams) -> Tensor:
    """Entropy of the behaviour student, in nats."""
    return s["behaviour_entropy"]


@signal("teacher_entropy")
def teacher_entropy(s: Streams) -> Tensor:
    """Entropy of the teacher, in nats."""
    return s["teacher_entropy"]


@signal("teacher_top_logp")
def teacher_margin(s: Streams) -> Tensor:
    """log q of the teacher's most probable token minus log q of its second, in nats."""
    return s["teacher_top_logp"][:, 0] - s["teacher_top_logp"][:, 1]


@signal("student_top_ids", "teacher_top_ids")
def overlap(s: Streams) -> Tensor:
    """Share of the teacher's K most probable tokens that are among the student's K."""
    return overlap_ratio(s["student_top_ids"], s["teacher_top_ids"])


@signal("student_top_logp", "teacher_at_student")
def divergence(s: Streams) -> Tensor:
    """KL(o || q) over the behaviour student's K most probable tokens, all other tokens as one class, in nats. A close
    lower bound of the KL over the vocabulary."""
    return support_divergence(s["student_top_logp"], s["teacher_at_student"], "reverse_kl", "tail")


@signal("student_top_logp", "teacher_at_student", "behaviour_logp", "teacher_logp")
def signal_to_noise(s: Streams) -> Tensor:
    """Var[rho] / (E[(rho - b)^2 L] - Var[rho]) under o, with rho = log o - log q, L = 1/o - 1 and the baseline b =
    E[rho L] / E[L] that makes it largest. In the Fisher metric this is the squared mean of a sampled token's gradient
    over its variance. Over the behaviour student's K most probable tokens and the sampled one, renormalised (a sketch
    of IER-OPD, arXiv 2609.24432)."""
    log_o = torch.cat([s["student_top_logp"], s["behaviour_logp"][:, None]], 1)
    log_q = torch.cat([s["teacher_at_student"], s["teacher_logp"][:, None]], 1)
    twice = s["behaviour_logp"] >= s["student_top_logp"][:, -1]  # the sampled token is among the K
    log_o = torch.cat([log_o[:, :-1], log_o[:, -1:].masked_fill(twice[:, None], -torch.inf)], 1)
    o, rho = log_o.softmax(1), (log_o - log_q).masked_fill(log_o == -torch.inf, 0.0)
    rest = (1 - o).masked_fill(log_o == -torch.inf, 0.0)  # o L
    size = rest.sum(1, keepdim=True).clamp(min=torch.finfo(o.dtype).tiny)
    signal = (o * (rho - (o * rho).sum(1, keepdim=True)).square()).sum(1)
    noise = (rest * (rho - (rest * rho).sum(1, keepdim=True) / size).square()).sum(1) - signal
    return signal / noise.clamp(min=torch.finfo(o.dtype).eps)


@signal()
def position(s: Streams) -> Tensor:
    """Index of the token among its response's tokens in the loss, from 0."""
    return s.place.float()


@signal()
def relative_position(s: Streams) -> Tensor:
    """(i + 1/2) / T for the token with index i among its response's T tokens in the loss; above 0 and below 1."""
    return (s.place + 0.5) / s.rows.bincount()[s.rows]


@signal()
def age(s: Streams) -> Tensor:
    """Optimiser steps since the rollout; the same for every token of a step."""
    return torch.full(s.rows.shape, float(s.age), device=s.rows.device)


@signal()
def freshness(s: Streams) -> Tensor:
    """1 / (age + 1)."""
    return 1 / (age(s) + 1)


@signal()
def one(s: Streams) -> Tensor:
    """1 everywhere: for a weight that needs no signal."""
    return torch.ones(s.rows.shape, device=s.rows.device)


@signal("correct")
def correct(s: Streams) -> Tensor:
    """1 for the tokens of a response that the verifier accepts, 0 for the others."""
    return s["correct"]


@signal("correct", "teacher_logp", "logp")
def agreement(s: Streams) -> Tensor:
    """1 where the response is correct and log q - log p > 0, or is wrong and log q - log p <= 0; else 0
    (arXiv 2606.09304)."""
    return ((current_gap(s) > 0) == (correct(s) > 0.5)).float()


@signal("behaviour_entropy", "student_top_logp", "teacher_at_student", whole=True)
def soft_or(s: Streams) -> Tensor:
    """a + b - ab. a is the behaviour student's entropy and b the divergence from the teacher, each scaled to 0..1 over
    the optimiser batch (TIP, arXiv 2604.14084)."""
    a, b = _unit_range(student_entropy(s)), _unit_range(divergence(s))
    return a + b - a * b


@signal("behaviour_entropy", "teacher_entropy", whole=True)
def sure_teacher_unsure_student(s: Streams) -> Tensor:
    """(2 - H^T / max H^T)(1 + H^S / max H^S). H^T and H^S are the entropies of teacher and behaviour student, the
    maxima are over the optimiser batch (FiRe-OPD, arXiv 2606.02684)."""
    return (2 - _over_max(teacher_entropy(s))) * (1 + _over_max(student_entropy(s)))


@signal("correct", "group", "teacher_logp", whole=True)
def wrong_by_teacher(s: Streams) -> Tensor:
    """n times the softmax, over the n wrong responses of the prompt, of the mean log q. That is the teacher's
    perplexity to the power -1, scaled to mean 1 over them. 0 for right responses (SCOPE, arXiv 2604.10688)."""
    return _group_softmax(span_mean(s["teacher_logp"], s.rows), s, members=correct(s) < 0.5)


@signal("correct", "group", "behaviour_logp", whole=True)
def right_by_student(s: Streams) -> Tensor:
    """n times the softmax, over the n right responses of the prompt, of the mean -log o. That is the behaviour
    student's perplexity, scaled to mean 1 over them. 0 for wrong responses (SCOPE, arXiv 2604.10688)."""
    return _group_softmax(-span_mean(s["behaviour_logp"], s.rows), s, members=correct(s) > 0.5)


def _group_softmax(scores: Tensor, s: Streams, members: Tensor) -> Tensor:
    """n * softmax of the sequences' scores [sequences] over the n members (bool [N]) of each prompt: [N]."""
    first = s.place == 0
    group, member = s["group"][first], members[first]
    weights = torch.zeros_like(scores)
    for prompt in group.unique():
        chosen = (group == prompt) & member
        weights[chosen] = scores[chosen].softmax(0) * chosen.sum()
    return weights[s.rows]


def _unit_range(values: Tensor) -> Tensor:
    """Values [N] scaled so that the smallest is 0 and the largest 1; all 0 where all are equal."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


def _over_max(values: Tensor) -> Tensor:
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny) if len(values) else values
