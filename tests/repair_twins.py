"""Slow twins of the published repairs: one function a work. Those of controls and of our own are in `control_twins`.

Written from the works' rules, not from the package: float64, plain loops over answers and tokens, and both models' full
log-probabilities. Symbols: p the current student (carries the gradient), o the student that wrote the rollout, q the
teacher, y_t the sampled token; the numbers are the works' own, and arguments where a test has to scale them to a tiny
model. A twin returns its terms' losses by name, without coefficients, and its terms' weights.
"""

import math
from collections.abc import Callable

from torch import Tensor
from twin_batch import (
    Answer,
    Batch,
    Twin,
    Weights,
    candidate_loss,
    entropy,
    flat,
    forward_kl,
    kl,
    lsm_loss,
    mean_one,
    nll,
    per_token,
    policy_gradient,
    raw_forward_kl,
    reverse_kl,
    score_function,
    student_loss,
    top,
    weighted,
)


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
