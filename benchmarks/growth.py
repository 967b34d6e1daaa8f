"""How a figure grows with a size: the slope of a straight line through the logarithms of both."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import measure
from scipy.stats import linregress

COLUMNS = {"slope": "+.3f", "standard_error": ".3f", "slope_least": "+.3f", "slope_most": "+.3f"}


def growth(sizes: Sequence[int], rounds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Median and range at each size, and the slope of the medians with the standard error of the fit and the range of
    the slopes of single rounds. rounds: of each size, a figure of each round."""
    fit = slope(sizes, [statistics.median(each) for each in rounds])
    single = [slope(sizes, each)["slope"] for each in zip(*rounds)]
    return {
        "sizes": list(sizes),
        "median": [statistics.median(each) for each in rounds],
        "least": [min(each) for each in rounds],
        "most": [max(each) for each in rounds],
        **fit,
        "slope_least": min(single),
        "slope_most": max(single),
    }


def growth_of(rounds: Mapping[int, Sequence[float]]) -> dict[str, Any]:
    """The same, from the figures of each round by size."""
    return growth(list(rounds), list(rounds.values()))


def slope(sizes: Sequence[int], figures: Sequence[float]) -> dict[str, float]:
    """Slope of the logarithms. `at_zero` and `each` are of a straight line through the figures themselves: the cost at
    size 0, and the cost of one more."""
    fit = linregress([math.log(size) for size in sizes], [math.log(figure) for figure in figures])
    straight = linregress(sizes, figures)
    found = {"slope": fit.slope, "standard_error": fit.stderr, "at_zero": straight.intercept, "each": straight.slope}
    return {name: float(value) for name, value in found.items()}


def rounded(value: Any) -> Any:
    """Figures to five digits. They are not more exact than that."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def print_growth(found: Mapping[str, Any]) -> None:
    """A table for each group of lines."""
    for what, lines in found.items():
        if isinstance(lines, Mapping) and all(isinstance(each, Mapping) for each in lines.values()):
            measure.table(dict(lines), COLUMNS, f"{what}:")
