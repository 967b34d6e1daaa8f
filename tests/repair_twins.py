"""Slow twins of the published repairs, of their controls and of our own variants: one function a work.

Written from the works' rules, not from the package: float64, plain loops over answers and tokens, and both models' full
log-probabilities. Symbols: p the current student (carries the gradient), o the student that wrote the rollout, q the
teacher, y_t the sampled token; the numbers are the works' own, and arguments where a test has to scale them to a tiny
model. A twin returns its terms' losses by name, without coefficients, and its terms' weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

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
    """One optimiser batch of one stream."""

    answers: list[Answer]
    age: int = 0
    """Updates since the rollout."""
    newlines: set[int] = field(default_factory=set)
    draws: Callable[[str, str], list[list[float]]] = lambda purpose, name: []
    """(purpose, factor) to a uniform number for each token of each answer."""

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
        parts = [
            share / sum(mass) * clipped_gain(a.p[t, v], a.o[t, v].item(), (a.q[t, v] - a.p[t, v]).item(), 0.2, 3.0)
            for v, share in zip(support, mass)
        ]
        return sum(parts)

    return loss


def raw_forward_kl(k: int) -> Callable[[Answer, int], Tensor]:
    """The terms of the forward KL over the vocabulary that belong to the teacher's top K."""
    return lambda a, t: kl(a.q[t, top(a.q[t], k)], a.p[t, top(a.q[t], k)])


# the works


def gkd(s: dict[str, Batch], loss: Callable[[Answer, int], Tensor]) -> Twin:
    return {"main": weighted(s["student"], loss)}, {}


def lsm(s: dict[str, Batch], k=32) -> Twin:
    return {"main": weighted(s["student"], lsm_loss(k))}, {}


def rethinking(s: dict[str, Batch], k=16) -> Twin:
    return {"main": weighted(s["student"], student_loss(k))}, {}


def rethinking_code(s: dict[str, Batch], k=16) -> Twin:
    return {"main": weighted(s["student"], candidate_loss(k))}, {}


def plain(s: dict[str, Batch]) -> Twin:
    """POPD and TOPD: their rule is where the rollout stops."""
    return {"main": weighted(s["student"], policy_gradient)}, {}


def async_opd(s: dict[str, Batch]) -> Twin:
    loss = weighted(s["student"], lambda a, t: policy_gradient(a, t, "recomputed", None, None))
    return {"main": loss}, {}


def stable_opd(s: dict[str, Batch]) -> Twin:
    anchor = weighted(s["student"], lambda a, t: kl(a.p[t], a.first[t]))
    return {"main": plain(s)[0]["main"], "gold": weighted(s["reference"], nll), "anchor": anchor}, {}


def eopd(s: dict[str, Batch], above=0.8, k=16) -> Twin:
    b = s["student"]
    unsure = per_token(b, lambda a, t: float(entropy(a.q[t]) > above))
    return {"main": plain(s)[0]["main"], "unsure": weighted(b, raw_forward_kl(k), unsure)}, {"unsure": unsure}


def prune_opd(s: dict[str, Batch], least=0.7, step=0.01, k=16) -> Twin:
    b, weights = s["student"], []
    for a in s["student"].answers:
        misses, group = 0, []
        for t in range(len(a)):
            misses += len(set(top(a.o[t], k)) & set(top(a.q[t], k))) / k < least
            group.append(min(max(1 - step * misses, 0), 1) + 0.5)
        weights.append(group)
    return {"main": weighted(b, candidate_loss(k), weights)}, {"main": weights}


def tip(s: dict[str, Batch], k=8) -> Twin:
    """Entropy and divergence (top K and the rest as one class) of the student that wrote the rollout."""
    b = s["student"]

    def apart(a: Answer, t: int) -> float:
        support = top(a.o[t], k)
        o, q = ([math.exp(side[t, v]) for v in support] for side in (a.o, a.q))
        classes = zip([*o, 1 - math.fsum(o)], [*q, 1 - math.fsum(q)])
        return math.fsum(x * (math.log(x) - math.log(y)) for x, y in classes)

    def unit_range(values: list[float]) -> list[float]:
        return [(v - min(values)) / (max(values) - min(values)) for v in values]

    unsure = unit_range(flat(per_token(b, lambda a, t: entropy(a.o[t]))))
    far = unit_range(flat(per_token(b, apart)))
    scores = [x + y - x * y for x, y in zip(unsure, far)]
    kept = set(sorted(range(len(scores)), key=lambda i: -scores[i])[: math.ceil(len(scores) / 2)])
    places = iter(range(len(scores)))
    weights = [[float(next(places) in kept) for _ in a.y] for a in b.answers]
    return {"main": weighted(b, reverse_kl, weights, kept=True)}, {"main": weights}


def scope(s: dict[str, Batch], wrong_loss: Callable[[Answer, int], Tensor]) -> Twin:
    """Softmax inside each prompt, of mean 1 there: of the wrong answers by 1 / teacher's perplexity, of the right ones
    by the student's perplexity."""
    b = s["student"]

    def weights_of(correct: bool, likelihood: Callable[[Answer], float]) -> Weights:
        weights = []
        for a in b.answers:
            group = [other for other in b.answers if other.prompt == a.prompt and other.correct == correct]
            member = a.correct == correct
            share = likelihood(a) * len(group) / math.fsum(map(likelihood, group)) if member else 0.0
            weights.append([share] * len(a))
        return weights

    def perplexity(a: Answer, who: str) -> float:
        return math.exp(-math.fsum(a.at(who)) / len(a))

    wrong = weights_of(False, lambda a: 1 / perplexity(a, "q"))
    right = weights_of(True, lambda a: perplexity(a, "o"))
    losses = {"main": weighted(b, wrong_loss, wrong, kept=True), "right": weighted(b, nll, right, kept=True)}
    return losses, {"main": wrong, "right": right}


def sg_opd(s: dict[str, Batch]) -> Twin:
    b = s["student"]

    def scale(a: Answer, t: int) -> float:
        verdict = 1 if a.correct else -1
        teacher = 1 if a.at("q")[t] > a.at("p")[t] else -1
        return 1.8 if verdict * teacher > 0 else 1.0

    weights = per_token(b, scale)
    return {"main": weighted(b, policy_gradient, weights)}, {"main": weights}


def sg_opd_phased(s: dict[str, Batch]) -> Twin:
    losses, weights = sg_opd(s)
    return losses | {"teacher_samples": weighted(s["teacher"], nll)}, weights


def tropd(s: dict[str, Batch], k=64) -> Twin:
    b, draws = s["student"], s["student"].draws("bernoulli", "trust")
    trusted = []
    for a, uniforms in zip(b.answers, draws):
        chance = [min(math.exp(q - p), 1.0) for q, p in zip(a.at("q"), a.at("p"))]
        trusted.append([float(u < c) for u, c in zip(uniforms, chance)])
    others = [[1 - m for m in group] for group in trusted]
    losses = {"main": weighted(b, policy_gradient, trusted), "outliers": weighted(b, raw_forward_kl(k), others)}
    return losses, {"main": trusted, "outliers": others}


def fire_opd(s: dict[str, Batch]) -> Twin:
    """A fifth of the answers, rounded down, is dropped; mean 1 is taken before."""
    b = s["student"]
    likely = [math.fsum(a.at("q")) / len(a) for a in b.answers]
    dropped = sorted(range(len(likely)), key=lambda i: likely[i])[: int(0.2 * len(likely) + 1e-9)]
    high_t, high_s = (max(entropy(row) for a in b.answers for row in getattr(a, side)) for side in "qo")
    weights = per_token(b, lambda a, t: (2 - entropy(a.q[t]) / high_t) * (1 + entropy(a.o[t]) / high_s))
    weights = mean_one(weights)
    weights = [[0.0 if i in dropped else w for w in group] for i, group in enumerate(weights)]
    return {"main": weighted(b, policy_gradient, weights, kept=True)}, {"main": weights}


def f_opd(s: dict[str, Batch], k=8) -> Twin:
    b, weights = s["student"], []
    for a in b.answers:
        moved = math.fsum(math.exp(d) * d - math.exp(d) + 1 for d in a.shift) / len(a)
        weights.append([math.exp(-math.sqrt(moved)) / (b.age + 1)] * len(a))
    return {"main": weighted(b, lsm_loss(k), weights)}, {"main": weights}


def iw_opd(s: dict[str, Batch]) -> Twin:
    b, weights = s["student"], []
    for a in b.answers:
        size = [abs(q - o) for q, o in zip(a.at("q"), a.at("o"))]
        weights.append([1 + 0.5 * (1 - math.fsum(size[:t]) / math.fsum(size)) for t in range(len(a))])
    return {"main": weighted(b, policy_gradient, weights)}, {"main": weights}


def pw_opsd(s: dict[str, Batch]) -> Twin:
    b = s["student"]

    def late(a: Answer, t: int) -> float:
        return 0.25 + 0.75 / (1 + math.exp(-((t + 0.5) / len(a) - 0.3) / 0.1))

    weights = per_token(b, late)
    return {"main": weighted(b, forward_kl, weights)}, {"main": weights}


def prefix_teach(s: dict[str, Batch]) -> Twin:
    b, weights = s["student"], []
    for a in b.answers:
        margins = []
        for row in a.q:
            first, second = top(row, 2)
            margins.append((row[first] - row[second]).item())
        lines = lines_of(a, b.newlines)
        means = [math.fsum(margins[t] for t in line) / len(line) for line in lines]
        taught = drop_of(means)
        weights.append(
            [1.0 if t < (lines[taught].start if taught is not None else len(a)) else 0.0 for t in range(len(a))]
        )
    return {"main": weighted(b, policy_gradient, weights, kept=True)}, {"main": weights}


def lines_of(a: Answer, newlines: set[int]) -> list[range]:
    ends = [t + 1 for t, token in enumerate(a.y) if token in newlines]
    ends = ends if ends[-1:] == [len(a)] else [*ends, len(a)]
    return [range(start, end) for start, end in zip([0, *ends], ends)]


def drop_of(means: list[float]) -> int | None:
    """The span with which the lower of two levels begins, if BIC wants two and there are 4 spans."""

    def squares(values: list[float]) -> float:
        mean = math.fsum(values) / len(values)
        return math.fsum((v - mean) ** 2 for v in values)

    n = len(means)
    if n < 4:
        return None
    cut = min(range(1, n), key=lambda c: squares(means[:c]) + squares(means[c:]))
    before, after = means[:cut], means[cut:]
    one = n * math.log(squares(means) / n) + 1 * math.log(n)
    two = n * math.log((squares(before) + squares(after)) / n) + 3 * math.log(n)
    return cut if two < one and math.fsum(before) / len(before) > math.fsum(after) / len(after) else None


def opsm(s: dict[str, Batch], loss: Callable[[Answer, int], Tensor], delta=1e-4) -> Twin:
    b, weights = s["student"], []
    for a in b.answers:
        stale = math.fsum(-d for d in a.shift) / len(a) > delta
        gain = [q - o for q, o in zip(a.at("q"), a.at("o"))]
        weights.append([0.0 if stale and g < 0 else 1.0 for g in gain])
    return {"main": weighted(b, loss, weights)}, {"main": weights}


def truncated_is(s: dict[str, Batch], cap=2.0) -> Twin:
    weights = [[min(math.exp(d), cap) for d in a.shift] for a in s["student"].answers]
    return {"main": weighted(s["student"], score_function, weights)}, {"main": weights}


# controls and our own


def lsm_truncated_is(s: dict[str, Batch], cap=2.0, k=8) -> Twin:
    weights = mean_one([[min(math.exp(d), cap) for d in a.shift] for a in s["student"].answers])
    return {"main": weighted(s["student"], lsm_loss(k), weights)}, {"main": weights}


def age_only(s: dict[str, Batch], k=8) -> Twin:
    weights = [[math.exp(-0.05 * s["student"].age)] * len(a) for a in s["student"].answers]
    return {"main": weighted(s["student"], lsm_loss(k), weights)}, {"main": weights}


def token_spans(b: Batch) -> Spans:
    return [[range(t, t + 1) for t in range(len(a))] for a in b.answers]


def sequence_spans(b: Batch) -> Spans:
    return [[range(len(a))] for a in b.answers]


def block_spans(b: Batch, size=8) -> Spans:
    return [[range(t, min(t + size, len(a))) for t in range(0, len(a), size)] for a in b.answers]


def random_spans(b: Batch, size=8) -> Spans:
    """As many spans as blocks; cut before the tokens (not the first) of the smallest draws."""
    spans = []
    for blocks, uniforms in zip(block_spans(b, size), b.draws("control", "gate")):
        order = sorted(range(1, len(uniforms)), key=lambda t: uniforms[t])
        cuts = [0, *sorted(order[: len(blocks) - 1]), len(uniforms)]
        spans.append([range(*pair) for pair in pairwise(cuts)])
    return spans


def changepoint_spans(b: Batch, min_tokens=4, penalty=0.5) -> Spans:
    """Least sum over segments of squares / sigma^2 + penalty log T (segments - 1): every last cut of every prefix."""
    spans = []
    for a in b.answers:
        v, best = a.shift, {0: (0.0, [])}
        sigma = max(
            math.sqrt(math.fsum((x - y) ** 2 for x, y in pairwise(v)) / (2 * max(len(v) - 1, 1))),
            1e-5 * (max(v) - min(v)),
        )
        for end in range(min_tokens, len(v) + 1) if len(v) >= 2 * min_tokens else []:
            ways = []
            for start in best:
                if end - start >= min_tokens:
                    part = v[start:end]
                    mean = math.fsum(part) / len(part)
                    cost = math.fsum((x - mean) ** 2 for x in part) / sigma**2
                    price = penalty * math.log(len(v)) if start else 0.0
                    ways.append((best[start][0] + cost + price, [*best[start][1], start]))
            best[end] = min(ways)
        cuts = [*best[len(v)][1], len(v)] if len(v) in best else [0, len(v)]
        spans.append([range(*pair) for pair in pairwise(cuts)])
    return spans


def drifts(b: Batch, spans: Spans) -> Weights:
    """|mean shift| of every span."""
    return [[abs(math.fsum(a.shift[t] for t in r)) / len(r) for r in own] for a, own in zip(b.answers, spans)]


def spread(values: Weights, spans: Spans) -> Weights:
    """Values of spans as values of tokens."""
    return [[v for v, r in zip(group, own) for _ in r] for group, own in zip(values, spans)]


def gated(
    s: dict[str, Batch],
    spans: Callable[[Batch], Spans] = block_spans,
    tau=3.0,
    control: str | None = None,
    target: float | None = None,
    loss: Callable[[Answer, int], Tensor] | None = None,
) -> Twin:
    """exp(-tau |mean shift of the span|), of mean 1 over the batch; with a control in the place of the values."""
    b, places = s["student"], spans(s["student"])
    drift = drifts(b, places)
    tau = tau if target is None else tau_for(spread(drift, places), target)
    gates = [[math.exp(-tau * d) for d in group] for group in drift]
    weights = mean_one(spread(controlled(b, gates, places, control), places))
    return {"main": weighted(b, loss or lsm_loss(8), weights)}, {"main": weights}


def controlled(b: Batch, gates: Weights, spans: Spans, control: str | None) -> Weights:
    if control is None:
        return gates
    if control == "inverse":
        return [[1 / max(g, 1e-3) for g in group] for group in gates]
    values = flat(gates)
    if control == "constant":
        mean = math.fsum(flat(spread(gates, spans))) / b.tokens
        return [[mean] * len(group) for group in gates]
    draws = [[uniforms[r.start] for r in own] for uniforms, own in zip(b.draws("control", "gate"), spans)]
    if control == "shuffle_within":  # the n-th span gets the value of the span with the n-th smallest draw
        orders = [sorted(range(len(u)), key=lambda i, u=u: u[i]) for u in draws]
        return [[group[i] for i in order] for group, order in zip(gates, orders)]
    if control == "shuffle_across":
        every = flat(draws)
        chosen = sorted(range(len(every)), key=lambda i: every[i])
    else:  # resample: with replacement
        chosen = [int(u * len(values)) for u in flat(draws)]
    drawn = iter([values[i] for i in chosen])
    return [[next(drawn) for _ in group] for group in gates]


def tau_for(drift: Weights, share: float) -> float:
    """The tau at which (sum g)^2 / (n sum g^2) is the share, by halving."""

    def worth(tau: float) -> float:
        g = [math.exp(-tau * d) for d in flat(drift)]
        return math.fsum(g) ** 2 / (len(g) * math.fsum(x * x for x in g))

    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if worth(middle) > share else (low, middle)
    return high
