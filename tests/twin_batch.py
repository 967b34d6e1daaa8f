"""Answers, batches and the losses of one token, in slow float64: what the twins of the repairs are made of."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Answer:
    """The T tokens of one response that are learned from."""

    prompt: int
    y: list[int]
    p: Tensor
    """[T, V] log-probabilities, as are o, q and first (the student as the run began)."""
    o: Tensor
    q: Tensor
    first: Tensor
    correct: bool = False

    def __len__(self) -> int:
        return len(self.y)

    def at(self, who: str) -> list[float]:
        """log-probabilities of the sampled tokens."""
        return [getattr(self, who)[t, token].item() for t, token in enumerate(self.y)]

    @property
    def shift(self) -> list[float]:
        return [p - o for p, o in zip(self.at("p"), self.at("o"))]


@dataclass
class Batch:
    """What one optimiser batch takes of the responses of one writer."""

    answers: list[Answer]
    age: int = 0
    """Updates since the rollout."""
    newlines: set[int] = field(default_factory=set)
    draws: Callable[[str, str], list[list[float]]] = lambda purpose, name: []
    """(purpose, factor) to a uniform number for each token of each answer."""
    rollout: Callable[[], list[Answer]] = list
    """All answers of the rollout batch, of which `answers` may be a part."""

    @property
    def tokens(self) -> int:
        return sum(len(answer) for answer in self.answers)


Weights = list[list[float]]
Twin = tuple[dict[str, Tensor], dict[str, Weights]]
Spans = list[list[range]]


def ones(b: Batch) -> Weights:
    return [[1.0] * len(a) for a in b.answers]


def per_token(b: Batch, rule: Callable[[Answer, int], float]) -> Weights:
    return [[rule(a, t) for t in range(len(a))] for a in b.answers]


def flat(values: list[list]) -> list:
    return [value for group in values for value in group]


def product(one: Weights, other: Weights) -> Weights:
    return [[x * y for x, y in zip(a, b)] for a, b in zip(one, other)]


def mean_one(weights: Weights) -> Weights:
    mean = math.fsum(flat(weights)) / len(flat(weights))
    return [[w / mean for w in group] for group in weights]


def weighted(b: Batch, loss: Callable[[Answer, int], Tensor], weights: Weights | None = None, kept=False) -> Tensor:
    """Sum of weight times loss, over all tokens or over those of a weight above 0."""
    weights = ones(b) if weights is None else weights
    total = sum(w * loss(a, t) for a, group in zip(b.answers, weights) for t, w in enumerate(group) if w)
    count = sum(w > 0 for w in flat(weights)) if kept else b.tokens
    return total / count if count else torch.zeros((), dtype=torch.float64)


def entropy(row: Tensor) -> float:
    return -math.fsum(math.exp(x) * x for x in row.tolist())


def top(row: Tensor, k: int) -> list[int]:
    values = row.tolist()
    return sorted(range(len(values)), key=lambda v: -values[v])[:k]


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """Of one token: over the entries given."""
    return (log_a.exp() * (log_a - log_b)).sum()


# losses of one token


def policy_gradient(a: Answer, t: int, advantage="frozen", clip=0.2, dual_clip=3.0) -> Tensor:
    """-min(r A, clip(r, 1 - e, 1 + e) A), and where A < 0 at most -c A."""
    p, o, q = (side[t, a.y[t]] for side in (a.p, a.o, a.q))
    return clipped_gain(p, o.item(), (q - (o if advantage == "frozen" else p)).item(), clip, dual_clip)


def clipped_gain(p: Tensor, o: float, gain: float, clip: float | None, dual_clip: float | None) -> Tensor:
    r = torch.exp(p - o)
    loss = -r * gain
    if clip is not None and not 1 - clip <= r.item() <= 1 + clip:
        bound = min(max(r.item(), 1 - clip), 1 + clip)
        if bound * gain < r.item() * gain:
            loss = -bound * gain + 0 * p
    if dual_clip is not None and gain < 0 and loss.item() > -dual_clip * gain:
        loss = -dual_clip * gain + 0 * p
    return loss


def gain_loss(
    gain: Callable[[Answer, int], float], clip: float | None = 0.2, dual_clip: float | None = 3.0
) -> Callable[[Answer, int], Tensor]:
    """The clipped policy gradient of any advantage."""
    return lambda a, t: clipped_gain(a.p[t, a.y[t]], a.o[t, a.y[t]].item(), gain(a, t), clip, dual_clip)


def score_loss(gain: Callable[[Answer, int], float]) -> Callable[[Answer, int], Tensor]:
    """The score function's gradient of any advantage: -A grad log p, in value -A."""

    def loss(a: Answer, t: int) -> Tensor:
        p = a.p[t, a.y[t]]
        return -gain(a, t) * (1 + p - p.detach())

    return loss


def score_function(a: Answer, t: int) -> Tensor:
    """-A grad log p, in value -A."""
    p, o, q = (side[t, a.y[t]] for side in (a.p, a.o, a.q))
    return -(q - o).item() * (1 + p - p.detach())


def nll(a: Answer, t: int) -> Tensor:
    return -a.p[t, a.y[t]]


def reverse_kl(a: Answer, t: int) -> Tensor:
    return kl(a.p[t], a.q[t])


def forward_kl(a: Answer, t: int) -> Tensor:
    return kl(a.q[t], a.p[t])


def jsd(a: Answer, t: int, beta=0.5) -> Tensor:
    m = torch.log(beta * a.q[t].exp() + (1 - beta) * a.p[t].exp())
    return beta * kl(a.q[t], m) + (1 - beta) * kl(a.p[t], m)


def matched(a: Answer, t: int, support: list[int]) -> Tensor:
    """Reverse KL of the two sides renormalised inside the support."""
    p, q = (side[t, support] for side in (a.p, a.q))
    return kl(p - p.exp().sum().log(), q - q.exp().sum().log())


def lsm_loss(k: int) -> Callable[[Answer, int], Tensor]:
    return lambda a, t: matched(a, t, top(a.q[t], k))


def student_loss(k: int) -> Callable[[Answer, int], Tensor]:
    return lambda a, t: matched(a, t, top(a.o[t], k))


def candidate_loss(k: int) -> Callable[[Answer, int], Tensor]:
    """Each of the student's K tokens has a clipped policy gradient, weighted by its renormalised probability."""

    def loss(a: Answer, t: int) -> Tensor:
        support = top(a.o[t], k)
        mass = [a.p[t, v].exp().item() for v in support]
        losses = [
            share / sum(mass) * clipped_gain(a.p[t, v], a.o[t, v].item(), (a.q[t, v] - a.p[t, v]).item(), 0.2, 3.0)
            for v, share in zip(support, mass)
        ]
        return sum(losses)

    return loss


def raw_forward_kl(k: int) -> Callable[[Answer, int], Tensor]:
    """The terms of the forward KL over the vocabulary that belong to the teacher's top K."""
    return lambda a, t: kl(a.q[t, top(a.q[t], k)], a.p[t, top(a.q[t], k)])
