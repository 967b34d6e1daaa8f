"""Whether `driftgate compare` keeps its word: coverage, false positives and power where the truth is known.

    python experiments/statistics_simulation.py

Studies are drawn from a model (`simulated_studies.py`), the shipped functions judge them, and the truth judges the
functions. Seed standard deviations are on the logit scale; the file says what they are worth in points. Writes
results/statistics_simulation.json, every share with its Monte-Carlo standard error.
"""

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from scipy import stats
from simulated_studies import (
    ARM_BY_PROBLEM,
    BENCHMARKS,
    DIFFICULTY,
    SAMPLES,
    SEED_BY_PROBLEM,
    Design,
    differences,
    draw_counts,
    many_studies,
    share,
    shift_for,
    true_pass,
)

from driftgate.files import json_rows
from driftgate.keyed import generator
from driftgate.study.bootstrap import bootstrap_differences, corrected_interval
from driftgate.study.cochran import effective_df
from driftgate.study.permutation import sign_flip_p
from driftgate.study.statistics import holm, interval, p_equivalence, p_two_sided, smallest_detectable
from driftgate.study.two_way import TwoWayMean, seed_means, two_way_mean


def satterthwaite(mean: TwoWayMean) -> np.ndarray:
    """[studies]: half the width of the usual interval, for comparison."""
    df = 1 / (mean.seed_share**2 / mean.df_seeds + (1 - mean.seed_share) ** 2 / mean.df_problems)
    return stats.t.isf(0.025, df) * mean.se


def judged(counts: list[np.ndarray], k: int, truth: float, margin: float) -> dict[str, np.ndarray]:
    """All tests of arm 1 minus arm 0 on each study."""
    tables = differences(counts, k)
    mean = two_way_mean(tables)
    low, high = interval(mean)
    per_seed = seed_means(tables)
    over_problems = sum(t.mean(axis=1).var(axis=1, ddof=1) / t.shape[2] for t in tables) / len(tables) ** 2
    return {
        "covered": np.asarray((low <= truth) & (truth <= high)),
        "covered_satterthwaite": np.asarray(np.abs(mean.mean - truth) <= satterthwaite(mean)),
        "covered_problems_only": np.asarray(np.abs(mean.mean - truth) <= 1.96 * np.sqrt(over_problems)),
        "half_width": (high - low) / 2,
        "significant": np.asarray(p_two_sided(mean) < 0.05),
        "permutation": np.array([sign_flip_p(row)[0] < 0.05 for row in per_seed]),
        "equivalent": np.asarray(p_equivalence(mean, margin) < 0.05),
        "seed_variance": per_seed.var(axis=1, ddof=1),
        "variance": mean.se**2,
        "seed_share": mean.seed_share,
        "df_problems": np.asarray(mean.df_problems),
        "error": mean.mean - truth,
    }


SHARES = ("covered", "covered_satterthwaite", "covered_problems_only", "significant", "permutation", "equivalent")


def cell(design: Design, effect: float, k: int, studies: int, seed: int, margin: float = 0.02) -> dict[str, Any]:
    """A design with a true difference: how often everything came out."""
    shift = shift_for(design, effect, k)
    truth = true_pass(design, shift, k) - true_pass(design, 0.0, k)
    rng = generator(seed, "cell", repr(design), repr(effect), k)
    seen = many_studies(design, (0.0, shift), studies, rng, lambda counts: judged(counts, k, truth, margin))
    return {
        "seeds": design.seeds,
        "problems": design.problems,
        "seed_sd_logit": design.seed_sd,
        "arm_by_problem_logit": design.arm_by_problem,
        "seed_sd_of_difference": round(float(np.sqrt(seen["seed_variance"].mean())), 4),
        "measure": f"pass@{k}",
        "effect": effect,
        "margin": margin,
        "studies": studies,
        **{name: share(seen[name]) for name in SHARES},
        "half_width_median": round(float(np.median(seen["half_width"])), 4),
        "true_sd_of_estimate": round(float(seen["error"].std()), 5),
        "rms_se": round(float(np.sqrt(seen["variance"].mean())), 5),
        "typical": {
            "se": float(np.sqrt(seen["variance"].mean())),
            "seed_share": float(np.average(seen["seed_share"], weights=seen["variance"])),
            "df_problems": float(np.median(seen["df_problems"])),
        },
    }


def detection(null: dict[str, Any], design: Design, studies: int, seed: int) -> dict[str, Any]:
    """How often the design's smallest detectable effect (from its mean squared error) is found."""
    t = null["typical"]
    mean = TwoWayMean(
        np.array(0.0), np.array(t["se"]), np.array(t["seed_share"]), design.seeds - 1.0, np.array(t["df_problems"])
    )
    effect = float(smallest_detectable(mean))
    if effect > 0.3:  # beyond, shares near 1 squeeze the seeds' spread and the design is another
        return {"seeds": design.seeds, "problems": design.problems, "seed_sd_logit": design.seed_sd, "stated": effect}
    found = cell(design, effect, 1, studies, seed)
    return {
        "seeds": design.seeds,
        "problems": design.problems,
        "seed_sd_logit": design.seed_sd,
        "stated": round(effect, 4),
        "df": round(float(effective_df(mean)), 1),
        "found": found["significant"],
        "covered": found["covered"],
    }


def family(design: Design, arms: int, studies: int, seed: int) -> dict[str, Any]:
    """`arms` arms without effect against one base: how often any is called different."""

    def look(counts: list[np.ndarray]) -> dict[str, np.ndarray]:
        p = np.stack([p_two_sided(two_way_mean(differences(counts, 1, arm))) for arm in range(1, arms + 1)], axis=1)
        return {"plain": np.asarray((p < 0.05).any(axis=1)), "holm": np.array([min(holm(row)) < 0.05 for row in p])}

    seen = many_studies(design, (0.0,) * (arms + 1), studies, generator(seed, "family", repr(design)), look)
    return {
        "seeds": design.seeds,
        "problems": design.problems,
        "seed_sd_logit": design.seed_sd,
        "arms": arms,
        "studies": studies,
        "any_unadjusted": share(seen["plain"]),
        "any_holm": share(seen["holm"]),
    }


def family_at_margin(design: Design, arms: int, studies: int, seed: int, margin: float = 0.02) -> dict[str, Any]:
    """`arms` arms that differ from one base by exactly the margin: how often any is called equivalent."""

    def look(counts: list[np.ndarray]) -> dict[str, np.ndarray]:
        means = [two_way_mean(differences(counts, 1, arm)) for arm in range(1, arms + 1)]
        p = np.stack([p_equivalence(mean, margin) for mean in means], axis=1)
        return {"plain": np.asarray((p < 0.05).any(axis=1)), "holm": np.array([min(holm(row)) < 0.05 for row in p])}

    shifts = (0.0, *(shift_for(design, margin),) * arms)
    seen = many_studies(design, shifts, studies, generator(seed, "family at margin", repr(design)), look)
    return {
        "seeds": design.seeds,
        "problems": design.problems,
        "seed_sd_logit": design.seed_sd,
        "arms": arms,
        "margin": margin,
        "studies": studies,
        "any_unadjusted": share(seen["plain"]),
        "any_holm": share(seen["holm"]),
    }


def bootstrap(design: Design, effect: float, k: int, studies: int, draws: int, seed: int) -> dict[str, Any]:
    """Coverage of the hierarchical bootstrap, percentiles as they are and corrected, beside the t interval."""
    shift = shift_for(design, effect, k)
    truth = true_pass(design, shift, k) - true_pass(design, 0.0, k)
    rng = generator(seed, "bootstrap", repr(design), repr(effect), k)
    ends: dict[str, list[tuple[float, float]]] = {"percentile": [], "corrected": [], "t": []}
    for _ in range(studies):
        counts = [part[:, 0] for part in draw_counts(design, (0.0, shift), 1, rng)]
        mean = two_way_mean([part[0] for part in differences([c[:, None] for c in counts], k)])
        base, arm = ([np.arange(SAMPLES) < part[a][..., None] for part in counts] for a in (0, 1))
        drawn = bootstrap_differences(arm, base, [k] * len(base), draws, rng)
        low, high = np.quantile(drawn, [0.025, 0.975])
        ends["percentile"].append((float(low), float(high)))
        ends["corrected"].append(corrected_interval(mean, drawn))
        ends["t"].append((float(interval(mean)[0]), float(interval(mean)[1])))
    row: dict[str, Any] = {
        "seeds": design.seeds,
        "problems": design.problems,
        "seed_sd_logit": design.seed_sd,
        "measure": f"pass@{k}",
        "effect": effect,
        "studies": studies,
        "draws": draws,
    }
    for name, pairs in ends.items():
        low, high = np.array(pairs).T
        row[name] = {
            "covered": share((low <= truth) & (truth <= high)),
            "half_width_median": round(float(np.median(high - low)) / 2, 4),
        }
    return row


SIZES = ((3, 40), (3, 200), (5, 40), (5, 200), (10, 40), (10, 200), (30, 40))
"""Seeds, and problems of each benchmark."""
DESIGNS = [Design(s, p, sd) for s, p in SIZES for sd in (0.0, 0.1, 0.25, 0.6)]


def families(studies: int, seed: int) -> dict[str, Any]:
    """Five arms at once: false differences, and false equivalences."""
    few = [d for d in DESIGNS if d.seeds < 30 and d.problems == 40 and d.seed_sd in (0.0, 0.25)]
    calm = [d for d in DESIGNS if d.seeds in (5, 10) and d.seed_sd <= 0.1]
    return {
        "holm": [_told(family(d, 5, studies * (3 if d.seeds <= 5 else 1), seed)) for d in few],
        "holm_at_margin": [_told(family_at_margin(d, 5, studies, seed)) for d in calm],
    }


def simulate(studies: int, seed: int) -> dict[str, Any]:
    designs = DESIGNS
    few = [d for d in designs if d.seeds < 30 and d.problems == 40]

    def many(design: Design) -> int:
        return 3 * studies if design.seeds <= 5 else studies

    null = [_told(cell(d, 0.0, 1, many(d), seed)) for d in designs]
    found = [_told(detection(row, d, many(d), seed)) for row, d in zip(null, designs)]
    effect = [_told(cell(d, 0.03, 1, many(d), seed)) for d in designs]
    pass_8 = [_told(cell(d, e, 8, many(d), seed)) for d in few for e in (0.0, 0.03, 0.09)]
    sharp = [_told(cell(replace(d, arm_by_problem=0.0), 0.0, 1, many(d), seed)) for d in designs if d.problems == 40]
    at_margin = [_told(cell(d, 0.02, 1, many(d), seed)) for d in designs if d.seed_sd <= 0.1]
    of_pass_1 = [d for d in few if d.seed_sd == 0.25 or (d.seeds < 10 and d.seed_sd != 0.1)]
    resampled = [_told(bootstrap(d, 0.0, 1, studies // 2, 400, seed)) for d in of_pass_1]
    few_seeds = [d for d in few if d.seeds < 10 and d.seed_sd == 0.25]
    resampled += [_told(bootstrap(d, e, 8, studies // 2, 400, seed)) for d in few_seeds for e in (0.0, 0.09)]
    for row in null + effect + pass_8 + sharp + at_margin:
        row.pop("typical")
    return {
        "no_effect": null,
        "effect_0.03": effect,
        "pass@8": pass_8,
        "no_effect_on_any_problem": sharp,
        "effect_at_margin": at_margin,
        **families(studies, seed),
        "detectable": found,
        "bootstrap": resampled,
    }


def _told(row: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps({name: value for name, value in row.items() if name != "typical"}), flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulate studies and judge `driftgate compare` by the truth.")
    parser.add_argument(
        "--studies",
        type=int,
        default=2000,
        help="of each cell; three times as many with 3 and 5 seeds, half with bootstrap",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--families-only", action="store_true", help="put what concerns several arms at once into a file that is there"
    )
    parser.add_argument("--out", type=Path, default=Path("results/statistics_simulation.json"))
    args = parser.parse_args()
    if args.families_only:
        whole = json.loads(args.out.read_text()) | families(args.studies, args.seed)
        args.out.write_text(json_rows(whole) + "\n")
        return
    start, cpu = time.time(), time.process_time()
    tables = simulate(args.studies, args.seed)
    result = {
        "command": "python experiments/statistics_simulation.py"
        + (f" --studies {args.studies}" if args.studies != parser.get_default("studies") else ""),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "seed": args.seed,
        "seconds": round(time.time() - start),
        "cpu_seconds": round(time.process_time() - cpu),
        "model": {
            "benchmark_logits": BENCHMARKS,
            "difficulty_sd": DIFFICULTY,
            "arm_by_problem_sd": ARM_BY_PROBLEM,
            "seed_by_problem_sd": SEED_BY_PROBLEM,
            "samples": SAMPLES,
        },
        "note": "shares are [share, Monte-Carlo standard error]; seed_sd_of_difference is that of the macro difference "
        "of one seed, samples and seed x problem included, in fractions of 1",
        **tables,
    }
    args.out.write_text(json_rows(result) + "\n")


if __name__ == "__main__":
    main()
