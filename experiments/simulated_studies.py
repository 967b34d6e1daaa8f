"""Studies drawn from a model whose truth is known.

The logit of an arm's chance on a problem is

    benchmark + problem + (arm x problem) + (arm x training seed) + (arm x seed x problem),

all but the first normal and drawn anew in each study, `SAMPLES` answers of each; four benchmarks. As a sum of normals
is normal, the true pass@k of an arm is an integral over one normal, taken by quadrature, and an effect of so many
points is put in by shifting the arm's logit. Seed standard deviations are on the logit scale.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from driftgate.evaluate.passk import pass_at_k

BENCHMARKS = (-0.5, 0.0, 0.5, 1.0)
"""Mean logits, base arm."""
DIFFICULTY, ARM_BY_PROBLEM, SEED_BY_PROBLEM = 1.5, 0.5, 0.5
SAMPLES = 8
CELLS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Design:
    seeds: int
    problems: int
    """Of each benchmark."""
    seed_sd: float
    """Of a training seed's shift of all problems, on the logit scale."""
    arm_by_problem: float = ARM_BY_PROBLEM
    """0: arms differ on no single problem (the permutation test's own hypothesis)."""

    @property
    def logit_sd(self) -> float:
        return math.hypot(DIFFICULTY, self.arm_by_problem, SEED_BY_PROBLEM, self.seed_sd)


def true_pass(design: Design, shift: float, k: int) -> float:
    """pass@k over all problems and seeds of an arm whose logits are moved by `shift`; macro mean."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(120)
    chances = special.expit(np.add.outer(np.array(BENCHMARKS) + shift, design.logit_sd * nodes))
    return float(((1 - (1 - chances) ** k) @ weights).mean() / math.sqrt(2 * math.pi))


def shift_for(design: Design, effect: float, k: int = 1) -> float:
    """The shift of logits that raises the true pass@k by `effect`."""
    if not effect:
        return 0.0
    base = true_pass(design, 0.0, k)
    found = optimize.root_scalar(lambda s: true_pass(design, s, k) - base - effect, bracket=(-8, 8), method="brentq")
    return float(found.root)


def draw_counts(design: Design, shifts: Sequence[float], studies: int, rng: np.random.Generator) -> list[np.ndarray]:
    """A benchmark an entry: correct answers, int [arms, studies, seeds, problems]; all arms on the same problems."""
    arms, shape = len(shifts), (studies, design.seeds, design.problems)
    by_seed = design.seed_sd * rng.standard_normal((arms, studies, design.seeds, 1))
    counts = []
    for level in BENCHMARKS:
        difficulty = level + DIFFICULTY * rng.standard_normal((studies, 1, design.problems))
        own = design.arm_by_problem * rng.standard_normal((arms, studies, 1, design.problems))
        rest = SEED_BY_PROBLEM * rng.standard_normal((arms, *shape))
        logits = difficulty + own + by_seed + rest + np.reshape(shifts, (arms, 1, 1, 1))
        counts.append(rng.binomial(SAMPLES, special.expit(logits)))
    return counts


def differences(counts: list[np.ndarray], k: int, arm: int = 1) -> list[np.ndarray]:
    """[studies, seeds, problems] of pass@k, arm minus arm 0."""
    table = np.array([pass_at_k(c, SAMPLES, k) for c in range(SAMPLES + 1)])
    return [table[part[arm]] - table[part[0]] for part in counts]


def many_studies(
    design: Design,
    shifts: Sequence[float],
    studies: int,
    rng: np.random.Generator,
    look: Callable[[list[np.ndarray]], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """What `look` says of each study ([studies] an entry), drawn in portions that fit memory."""
    portion = max(1, CELLS_AT_ONCE // (len(shifts) * design.seeds * design.problems * len(BENCHMARKS)))
    sizes = [min(portion, studies - start) for start in range(0, studies, portion)]
    parts = [look(draw_counts(design, shifts, size, rng)) for size in sizes]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def share(hits: np.ndarray) -> list[float]:
    """[share, its Monte-Carlo standard error]."""
    return [round(float(hits.mean()), 5), round(float(hits.std(ddof=1) / math.sqrt(len(hits))), 5)]
