"""What the micro-batches of an optimiser batch add up, and what follows from it: scales and metrics.

Every entry is a sum over tokens (but for a minimum and for quantiles), so the split into micro-batches does not show.
"""

import math
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from ..config.terms import TermSettings
from ..errors import RunError
from ..world import World
from .weighing import Weighed, closed_gate


@dataclass
class Sums:
    """Of one term."""

    known: float | None = None
    """The denominator, where it was found before the micro-batches."""
    totals: dict[str, float] = field(default_factory=dict)
    least: float = math.inf
    """Smallest weight before normalisation."""
    least_factor: float = 0.0
    """Smallest value of any factor, or 0."""
    weights: list[Tensor] = field(default_factory=list)
    """All of them before normalisation, for their quantiles."""

    def add(self, totals: dict[str, Tensor], weighed: Weighed) -> None:
        """Add a micro-batch's sums over tokens, and what its weights amount to."""
        minima = {"least": weighed.raw.min(), "least_factor": weighed.least} if len(weighed.raw) else {}
        entries = totals | weight_sums(weighed)
        values = torch.stack([v.detach().double() for v in (*entries.values(), *minima.values())]).tolist()
        for name, value in zip(entries, values):
            self.totals[name] = self.totals.get(name, 0.0) + value
        for name, value in zip(minima, values[len(entries) :]):
            setattr(self, name, min(getattr(self, name), value))
        self.weights.append(weighed.raw)

    def over(self, world: World) -> "Sums":
        """The same over all ranks."""
        if world.size == 1:
            return self
        least, factors, weights = zip(*world.share((self.least, self.least_factor, [w.cpu() for w in self.weights])))
        return Sums(self.known, world.sum(self.totals), min(least), min(factors), list(chain(*weights)))

    def denominator(self, term: TermSettings, where: str) -> float:
        """What the sum of weight * loss is divided by: tokens, or those kept, times the mean of each factor that is to
        have mean 1 over the optimiser batch. Raises RunError where a gate closed on everything."""
        if self.least_factor < 0:
            raise RunError(
                f"a weight of {where} goes down to {self.least_factor:g}, but must not be negative; give its factor "
                f"a map (affine clips at 0)"
            )
        if self.known is not None:
            return self.known
        factors = [name for name, factor in term.weights.items() if factor.normalise == "minibatch"]
        value = self.totals.get(term.denominator, 0.0)
        for name in factors:
            mean = self.totals[f"factor.{name}"] / self.totals["tokens"]
            if mean <= 0 and term.weights[name].map.kind == "exp":
                raise RunError(closed_gate(name, term.weights[name], where))
            value *= mean
        return value

    def metrics(self, term: TermSettings, where: str) -> dict[str, float]:
        """Per-token means; `gate_` is the product of the term's factors before any is scaled.

        `gate_ess` is the share of the tokens that weights of this spread are worth (Kish).
        """
        t = self.totals
        if not t.get("tokens"):
            return {"tokens": 0.0}
        count, denominator = t["tokens"], self.denominator(term, where)
        mean, std = _mean_and_std(t)
        metrics = {
            "loss": t["loss"] / denominator if denominator else 0.0,
            "loss_ungated": t["ungated"] / count,
            "gate_mean": mean,
            "gate_min": self.least,
            "gate_std": std,
            "gate_ess": t["gate"] ** 2 / max(t["gate_squared"] * count, 1e-300),
            "tokens": count,
        }
        means = {n: t[n] / count for n in MEANS if n in t}
        if means.get("drift_abs"):
            means["cancellation"] = means["drift_span"] / means["drift_abs"]
        return metrics | {"gated": float(std > 1e-6 * mean)} | means | (self._quantiles(mean) if term.weights else {})

    def _quantiles(self, mean: float) -> dict[str, float]:
        """Of the weights divided by their mean."""
        if not mean:
            return {}
        found = np.quantile(torch.cat(self.weights).double().cpu().numpy(), QUANTILES) / mean
        return {f"gate_q{100 * q:02.0f}": value for q, value in zip(QUANTILES, found.tolist())}


def _mean_and_std(t: dict[str, float]) -> tuple[float, float]:
    """Of the weights; by way of 1 - g where they are near 1, as their spread would drown in rounding."""
    count, mean = t["tokens"], t["gate"] / t["tokens"]
    if mean < 0.5:
        return mean, math.sqrt(max(t["gate_squared"] / count - mean**2, 0.0))
    closed = t["closed"] / count
    return 1 - closed, math.sqrt(max(t["closed_squared"] / count - closed**2, 0.0))


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MEANS = ("clipped", "drift_abs", "drift_span", "entropy", "entropy_gap", "overlap", "overlap_advantage")
"""Sums whose mean over tokens is a metric under the same name."""


def weight_sums(weighed: Weighed) -> dict[str, Tensor]:
    """Sums over a term's weights [N] in float64, of 1 - g too: gates are near 1, and their spread would drown in
    rounding."""
    wide = weighed.raw.double()
    closed = 1 - wide
    sums = {"gate": wide.sum(), "gate_squared": wide.square().sum(), "tokens": wide.new_tensor(len(wide))}
    return sums | {"closed": closed.sum(), "closed_squared": closed.square().sum()} | weighed.sums
