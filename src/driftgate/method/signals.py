"""What a weight can look at: one value per valid response token. Each signal is one function here.

Shapes: N valid response tokens of whole sequences, sequence after sequence; K most probable tokens.
Symbols: p the current student, o the behaviour student that wrote the rollout, q the teacher, y_t the sampled token.

To add one, write a function of `Streams` that returns float [N] and put `@signal(...)` over it with the names of the
streams that it reads; they are then scored where a configuration asks for the signal, and only there.
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
    "student_top_logp": "[N, K] log o of them",
    "teacher_top_ids": "[N, K] the most probable tokens of q",
    "teacher_top_logp": "[N, K] log q of them",
    "teacher_at_student": "[N, K] log q of the student's most probable tokens",
    "correct": "[N] 1 where the verifier accepts the token's response, else 0",
    "group": "[N] the prompt that the token's response answers",
}
"""The streams that a signal may read, beside rows, place and age."""


@dataclass(frozen=True)
class Streams:
    """What is known of the tokens that a weight is wanted for."""

    sequences: Tensor
    """int64 [N]: the sequence of each token by its number in the rollout batch, which addresses random draws."""
    rows: Tensor
    """int64 [N]: the same counted from 0 in the order in which they stand here: non-decreasing, without gaps."""
    place: Tensor
    """int64 [N]: index of each token among its response's tokens in the loss, from 0."""
    age: int
    """Optimiser updates since the rollout."""
    values: Mapping[str, Tensor]
    """The `READABLE` streams that have been scored."""

    def __getitem__(self, name: str) -> Tensor:
        """A stream, floats at least in float32. Raises ValueError for one that the signal does not declare."""
        if name not in self.values:
            raise ValueError(f"reads {name!r} without saying so; write it into @signal(...)")
        value = self.values[name]
        return widen(value) if value.is_floating_point() else value


Signal = Callable[[Streams], Tensor]


@dataclass(frozen=True)
class Described:
    """A signal, the streams it reads, and whether its value depends on the other sequences of the batch."""

    compute: Signal
    reads: tuple[str, ...]
    whole: bool

    @property
    def meaning(self) -> str:
        return " ".join((self.compute.__doc__ or "").split())


SIGNALS: dict[str, Described] = {}

OF_SHIFT = ("drift", "staleness", "ratio", "drift_kl")
"""Signals that are functions of the drift and of nothing else."""


def signal(*reads: str, whole: bool = False) -> Callable[[Signal], Signal]:
    """Make a function known as a signal under its own name. whole: it looks at all sequences of the optimiser batch."""

    unknown = set(reads) - set(READABLE)
    if unknown:
        raise ValueError(f"a signal cannot read {', '.join(sorted(unknown))}; there are {', '.join(READABLE)}")

    def describe(compute: Signal) -> Signal:
        before = SIGNALS.get(compute.__name__)
        if before is not None and _file_of(before.compute) != _file_of(compute):
            raise ValueError(f"there is a signal {compute.__name__} already; give yours another name")
        SIGNALS[compute.__name__] = Described(compute, reads, whole)
        return compute

    return describe


def _file_of(compute: Signal) -> str:
    return inspect.getsourcefile(compute) or ""


@signal("logp", "behaviour_logp")
def drift(s: Streams) -> Tensor:
    """log p(y_t) - log o(y_t): the student's own shift since the rollout (arXiv 2606.24084)."""
    return s["logp"] - s["behaviour_logp"]


@signal("logp", "behaviour_logp")
def staleness(s: Streams) -> Tensor:
    """log o(y_t) - log p(y_t): minus the drift."""
    return -drift(s)


@signal("logp", "behaviour_logp")
def ratio(s: Streams) -> Tensor:
    """p(y_t) / o(y_t): the importance ratio."""
    return drift(s).exp()


@signal("logp", "behaviour_logp")
def drift_kl(s: Streams) -> Tensor:
    """r log r - r + 1 with r = p(y_t) / o(y_t): unbiased for KL(p || o) on samples of o, in nats, never negative."""
    shift = drift(s)
    d = shift.double()  # the value is d^2 / 2 for a small d: in float32 rounding would be as large
    excess = torch.expm1(d)
    return (excess * (d - 1) + d).clamp(min=0).to(shift.dtype)


@signal("teacher_logp", "behaviour_logp")
def gap(s: Streams) -> Tensor:
    """log q(y_t) - log o(y_t): the teacher's log-ratio to the student that wrote the token."""
    return s["teacher_logp"] - s["behaviour_logp"]


@signal("teacher_logp", "logp")
def current_gap(s: Streams) -> Tensor:
    """log q(y_t) - log p(y_t): the teacher's log-ratio to the current student."""
    return s["teacher_logp"] - s["logp"]


@signal("teacher_logp", "behaviour_logp")
def gap_size(s: Streams) -> Tensor:
    """|log q(y_t) - log o(y_t)|."""
    return gap(s).abs()


@signal("teacher_logp", "logp")
def teacher_ratio(s: Streams) -> Tensor:
    """q(y_t) / p(y_t)."""
    return current_gap(s).exp()


@signal("teacher_logp")
def teacher_logp(s: Streams) -> Tensor:
    """log q(y_t)."""
    return s["teacher_logp"]


@signal("behaviour_entropy")
def student_entropy(s: Streams) -> Tensor:
    """Entropy of the student that wrote the rollout, in nats."""
    return s["behaviour_entropy"]


@signal("teacher_entropy")
def teacher_entropy(s: Streams) -> Tensor:
    """Entropy of the teacher, in nats."""
    return s["teacher_entropy"]


@signal("teacher_top_logp")
def teacher_margin(s: Streams) -> Tensor:
    """log q of the teacher's first choice less that of its second, in nats."""
    return s["teacher_top_logp"][:, 0] - s["teacher_top_logp"][:, 1]


@signal("student_top_ids", "teacher_top_ids")
def overlap(s: Streams) -> Tensor:
    """Share of the teacher's K most probable tokens that are among the student's K."""
    return overlap_ratio(s["student_top_ids"], s["teacher_top_ids"])


@signal("student_top_logp", "teacher_at_student")
def divergence(s: Streams) -> Tensor:
    """KL(o || q) over the student's K most probable tokens and the rest as one class, in nats: a close lower bound."""
    return support_divergence(s["student_top_logp"], s["teacher_at_student"], "reverse_kl", "tail")


@signal()
def position(s: Streams) -> Tensor:
    """Index of the token among its response's tokens in the loss, from 0."""
    return s.place.float()


@signal()
def relative_position(s: Streams) -> Tensor:
    """(i + 1/2) / T for the token of index i among the response's T, above 0 and below 1."""
    return (s.place + 0.5) / s.rows.bincount()[s.rows]


@signal()
def age(s: Streams) -> Tensor:
    """Optimiser updates since the rollout; the same for every token of an update."""
    return torch.full(s.rows.shape, float(s.age), device=s.rows.device)


@signal()
def freshness(s: Streams) -> Tensor:
    """1 / (age + 1)."""
    return 1 / (age(s) + 1)


@signal()
def one(s: Streams) -> Tensor:
    """1 everywhere: what is left of a weight without a signal."""
    return torch.ones(s.rows.shape, device=s.rows.device)


@signal("correct")
def correct(s: Streams) -> Tensor:
    """1 for the tokens of an answer that the verifier accepts, 0 for the others."""
    return s["correct"]


@signal("correct", "teacher_logp", "logp")
def agreement(s: Streams) -> Tensor:
    """1 where the verifier's verdict and the sign of log q - log p point the same way (0 counts as down), else 0
    (arXiv 2606.09304)."""
    return ((current_gap(s) > 0) == (correct(s) > 0.5)).float()


@signal("behaviour_entropy", "student_top_logp", "teacher_at_student", whole=True)
def soft_or(s: Streams) -> Tensor:
    """a + b - ab with a the student's entropy and b the divergence, each scaled to 0..1 over the optimiser batch
    (TIP, arXiv 2604.14084)."""
    a, b = _unit_range(student_entropy(s)), _unit_range(divergence(s))
    return a + b - a * b


@signal("behaviour_entropy", "teacher_entropy", whole=True)
def sure_teacher_unsure_student(s: Streams) -> Tensor:
    """(2 - H^T / max H^T)(1 + H^S / max H^S), the maxima over the optimiser batch (FiRe-OPD, arXiv 2606.02684)."""
    return (2 - _over_max(teacher_entropy(s))) * (1 + _over_max(student_entropy(s)))


@signal("correct", "group", "teacher_logp", whole=True)
def wrong_by_teacher(s: Streams) -> Tensor:
    """n times the softmax, over the n wrong answers of the prompt, of the mean log q: the teacher's perplexity to the
    power -1, with mean 1 over them; 0 for right answers (SCOPE, arXiv 2604.10688)."""
    return _group_softmax(span_mean(s["teacher_logp"], s.rows), s, members=correct(s) < 0.5)


@signal("correct", "group", "behaviour_logp", whole=True)
def right_by_student(s: Streams) -> Tensor:
    """n times the softmax, over the n right answers of the prompt, of the mean -log o: the student's perplexity, with
    mean 1 over them; 0 for wrong answers (SCOPE, arXiv 2604.10688)."""
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
    """Scaled so that the least is 0 and the greatest 1; 0 throughout where all are equal."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


def _over_max(values: Tensor) -> Tensor:
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny) if len(values) else values
