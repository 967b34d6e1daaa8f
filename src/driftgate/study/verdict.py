"""What a comparison says of a claim."""

from typing import Literal

from .compare import Comparison
from .statistics import LEVEL

Verdict = Literal["supported", "refuted", "equivalent", "undetermined"]


def verdict(comparison: Comparison, claim: Literal["better", "equal"]) -> tuple[Verdict, str]:
    """Of "the arm is better than its base", or "the arm is equal to it within the margin", and why in a sentence.

    Both p are adjusted by Holm for all comparisons that are made together (`compare.with_holm`).
    Better: supported or refuted by the sign where p_holm is below 0.05; else equivalent where p_equivalence_holm is.
    Equal: supported where p_equivalence_holm is below 0.05; refuted where p_holm is and the whole 95 % interval lies
    outside the margin. Else undetermined, and so is anything from a single training seed. Arms that score alike on
    every problem of every seed leave nothing to test; they are equal where the interval over problems is within the
    margin.
    """
    c = comparison
    if c.p_holm is None or c.p_equivalence_holm is None:
        same = len(c.per_seed) > 1 and not c.difference and -c.margin < c.low <= c.high < c.margin
        return ("supported" if claim == "equal" else "equivalent", _same(c)) if same else ("undetermined", _open(c))
    significant, equivalent = c.p_holm < LEVEL, c.p_equivalence_holm < LEVEL
    outside = c.low > c.margin or c.high < -c.margin
    word: Verdict = "undetermined"
    if claim == "better":
        if significant:
            word = "supported" if c.difference > 0 else "refuted"
        elif equivalent:
            word = "equivalent"
    elif equivalent:
        word = "supported"
    elif significant and outside:
        word = "refuted"
    return word, _reason(c, significant, equivalent)


def points(fraction: float, sign: str = "+") -> str:
    """A fraction of 1 in percentage points. Rounded twice, so that 0.0175 reads alike however it was summed up."""
    return f"{round(100 * fraction, 6) + 0.0:{sign}.1f}"


def with_interval(c: Comparison) -> str:
    return f"{points(c.difference)} [{points(c.low)}, {points(c.high)}]"


def interval_90(c: Comparison) -> str:
    """The interval that goes with the equivalence test; "-" where nothing can be tested."""
    return "-" if c.low_90 is None or c.high_90 is None else f"[{points(c.low_90)}, {points(c.high_90)}]"


def p_text(p: float | None) -> str:
    """A p as it is printed; no digits that nobody needs."""
    return "-" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _same(c: Comparison) -> str:
    return (
        f"{with_interval(c)} points: on every problem of all {len(c.per_seed)} seeds both score the same; the interval "
        f"covers problems alone and is within {points(c.margin, '')} points either way."
    )


def _open(c: Comparison) -> str:
    if len(c.per_seed) == 1:
        return (
            f"{with_interval(c)} points over problems only: one training seed says nothing of training again, so there "
            "is no verdict; train at least 3 seeds."
        )
    return f"{with_interval(c)} points; seeds and problems show no variation to judge by, so there is no verdict."


def _reason(c: Comparison, significant: bool, equivalent: bool) -> str:
    margin = points(c.margin, "")
    text = f"{with_interval(c)} points over {len(c.per_seed)} seeds, Holm p {p_text(c.p_holm)}"
    tested = f"90 % interval {interval_90(c)}, Holm p of equivalence {p_text(c.p_equivalence_holm)}"
    inside = f"within {margin} points either way ({tested})"
    if significant:
        return f"{text}: a difference" + (f", and yet one {inside}." if equivalent else ".")
    if equivalent:
        return f"{text}: {inside}."
    alone = c.p_equivalence is not None and c.p_equivalence < LEVEL
    return (
        f"{text}: neither a difference nor equality within {margin} points is shown"
        + (f", the latter only before Holm's correction ({tested})" if alone else "")
        + f"; to be found in four of five such studies, a true difference would have to be about "
        f"{points(c.detectable or 0.0, '')} points (before Holm's correction)."
    )
