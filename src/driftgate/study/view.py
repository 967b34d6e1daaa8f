"""What the pages of a study's report show, from its summary."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..report.effects import HOLM_LEVEL
from .formats import duration, plural

MEANING = (
    "A claim that an arm is better is supported where the Holm-adjusted test rejects zero and the difference is above "
    "it, refuted where it is below, and else equivalent where the Holm-adjusted test of equivalence shows the "
    "difference to lie inside the margin. A claim that two arms are equal is supported where that is shown, and "
    "refuted where the test rejects zero and the whole 95 % interval lies outside the margin. All else is "
    "undetermined, which is evidence for neither side. Tests of difference and "
    "of equivalence are two families, adjusted each by itself."
)
COMPARED_NOTE = (
    "In points. p are adjusted by Holm for all comparisons of the study in the same measure. Equivalence: the test "
    "that the difference is smaller than the margin; it goes with the 90 % interval, not the 95 % one, because it is "
    "two one-sided tests of 5 %. The interval is of one comparison by itself, the p is adjusted. Smallest detectable: "
    "the difference that the study finds in 4 of 5 cases by the test of one comparison. Holm's correction asks for "
    "more."
)
FULL_NOTE = (
    "In points: the difference, its 95 and 90 % intervals and the standard error (s.e., with its degrees of freedom, "
    "d.f.). p are given as they come, with those adjusted by Holm in brackets. The permutation test flips the signs of "
    "whole seeds; in brackets the least p that so many seeds can give."
)
LOCKED_NOTE = (
    "Taken from what the runs left, by arm or by arm and seed, and compared between arms; the whole hashes are in "
    "summary.json."
)


def view_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show."""
    measures = list(_measures(summary))
    seeds = _seeds_table(summary, measures[0]) if measures else []
    return {
        **{key: summary[key] for key in ("name", "what", "claims", "common", "arms", "command", "seeds")},
        "size": _size(summary),
        "coverage": _coverage(summary),
        "tally": _tally(summary["claims"]),
        "meaning": MEANING,
        "measures": measures,
        "measure": measures[0] if measures else "",
        "table": _table(summary, measures),
        "compared": [row for row in summary["comparisons"] if row["measure"] == measures[0]],
        "table_note": _table_note(summary),
        "seeds_table": seeds if len(summary["seeds"]) > 1 else [],
        "every": summary["comparisons"],
        "compared_note": COMPARED_NOTE,
        "full_note": FULL_NOTE,
        "by_benchmark": _by_benchmark(summary, measures) if len(summary["problems"]) > 1 else [],
        "benchmarks": list(summary["problems"]),
        "locked": _locked(summary["locked"]),
        "locked_note": LOCKED_NOTE,
        "differs": [lock for lock in summary["locked"] if not lock["same"]],
        "made": _made(summary),
        "runs": len(summary["runs"]),
        "failed": [run for run in summary["runs"] if run["status"] != "done"],
    }


def _measures(summary: Mapping[str, Any]) -> dict[str, None]:
    """Measures in the order of the comparisons, then of the scores."""
    compared = [row["measure"] for row in summary["comparisons"]]
    return dict.fromkeys([*compared, *(name for scores in summary["scores"].values() for name in scores)])


def _table(summary: Mapping[str, Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each model examined: the untrained student first, the teacher last, both marked `outside`."""
    arms, scores = summary["arms"], summary["scores"]
    outside = [name for name in scores if name not in arms]
    before = [name for name in outside if name != "teacher"]
    names = [*before, *arms, *(name for name in outside if name == "teacher")]
    return [
        {
            "arm": name,
            "outside": name not in arms,
            "scores": [_mean_score(scores.get(name, {}), measure) for measure in measures],
            "tokens": _mean_of_runs(summary, name, "rollout_tokens"),
            "cpu": _mean_of_runs(summary, name, "cpu_seconds"),
        }
        for name in names
    ]


def _mean_score(scores: Mapping[str, Any], measure: str) -> Mapping[str, float] | None:
    return scores.get(measure, {}).get("mean")


def _mean_of_runs(summary: Mapping[str, Any], arm: str, key: str) -> float | None:
    values = [run[key] for run in _done(summary, arm) if run[key] is not None]
    return sum(values) / len(values) if values else None


def _done(summary: Mapping[str, Any], arm: str) -> list[Mapping[str, Any]]:
    return [run for run in summary["runs"] if run["arm"] == arm and run["status"] == "done"]


def _seeds_table(summary: Mapping[str, Any], measure: str) -> list[dict[str, Any]]:
    """A row for each comparison of a measure, a column for each seed."""
    return [
        {"name": f"{row['arm']} - {row['against']}", "by_seed": row["per_seed"], "all": row["difference"]}
        for row in summary["comparisons"]
        if row["measure"] == measure
    ]


def _by_benchmark(summary: Mapping[str, Any], measures: Sequence[str]) -> list[dict[str, Any]]:
    if not measures:
        return []
    found = {arm: scores.get(measures[0], {}) for arm, scores in summary["scores"].items()}
    return [{"arm": arm, "scores": [by.get(b) for b in summary["problems"]]} for arm, by in found.items()]


def _locked(locked: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each lock with its hashes as (seed or None, hash)."""
    return [
        {**lock, "hashes": list(lock["hash"].items()) if isinstance(lock["hash"], Mapping) else [(None, lock["hash"])]}
        for lock in locked
    ]


def _size(summary: Mapping[str, Any]) -> str:
    arms, seeds = plural(len(summary["arms"]), "arm"), plural(len(summary["seeds"]), "training seed")
    passes = " or ".join(map(str, sorted(set(summary["passes"].values()))))
    problems = plural(sum(summary["problems"].values()), "held-out problem")
    benchmarks = plural(len(summary["problems"]), "benchmark")
    return (
        f"{arms}, {seeds}, {plural(summary['steps'], 'step')} with {passes or 'no'} passes over each rollout batch; "
        f"examined on {problems} in {benchmarks}, {plural(summary['samples'], 'sample')} each. Scores are means over "
        f"benchmarks."
    )


def _coverage(summary: Mapping[str, Any]) -> str:
    """What the intervals are about, and what not."""
    rest = "other models, tasks and settings are not covered."
    if len(summary["seeds"]) < 2:
        return (
            f"With one training seed the 95 % intervals cover the choice of problems alone: they cannot tell an effect "
            f"of an arm from the luck of its seed; {rest}"
        )
    return f"All intervals cover the choice of training seeds and of problems; {rest}"


def _tally(claims: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(claim["verdict"] for claim in claims)
    named = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"Of {plural(len(claims), 'claim')}: {named}."


def _table_note(summary: Mapping[str, Any]) -> str:
    notes = ["Brackets: 95 % intervals; those of models that no arm trained cover problems alone."]
    notes.append("Rollout tokens and CPU-seconds (of training) are means over an arm's finished runs.")
    if any(row["p"] is None for row in summary["comparisons"]):
        notes.append("The interval of a difference without p covers problems alone.")
    return " ".join(notes)


def captions_of(summary: Mapping[str, Any]) -> dict[str, str]:
    many, seeds = len(summary["seeds"]) > 1, plural(len(summary["seeds"]), "seed")
    over = f"{seeds} and problems" if many else "problems alone"
    band = " Band: from the least to the largest seed, which is not an interval." if many else ""
    return {
        "effects": f"Difference of each arm to the one that it is compared with; thin lines are 95 % intervals over "
        f"{over}, thick ones the 90 % intervals of the test of equivalence. A filled square has a Holm-adjusted p "
        f"below {HOLM_LEVEL}, a hollow one has not. Small dots: single seeds. Grey ticks: the smallest effect that the "
        f"study would mostly detect. Shaded: the equivalence margin.",
        "costs": "What an arm scores against what a run of it cost: rollout tokens, and CPU time for training. "
        f"Lines are 95 % intervals over {over}, of scores, not of differences. On the left, arms of more "
        "passes stand a little to the right of their cost, so that none hides another.",
        "learning": f"Share of rollouts right on each step's prompts, as a running mean over a tenth of an "
        f"arm's steps, three at least. Line: mean "
        f"over {seeds}.{band} Runs that failed are left out.",
        "gates": "Weights of the tokens by pass, scaled to mean 1, averaged over updates and seeds. Box: quartiles, "
        "with the median; line: to the outermost quantiles recorded. ESS: share of the tokens that the "
        "weighted mean is worth (Kish).",
        "drift": "How far the student has moved from the one that wrote the rollout, averaged over updates and seeds. "
        "Full dots: mean |d| over tokens. Open dots: mean over spans of |mean d|. A pass in which nothing moved is not "
        "drawn.",
    }


def _made(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    failed = sum(run["status"] != "done" for run in summary["runs"])
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return [
        ("commit of the code that made the runs", summary["commit"] or "not known"),
        ("versions", versions),
        ("machine", f"{plural(summary['cpus'], 'CPU core')}"),
        ("wall time", duration(summary["seconds"])),
        ("CPU time", f"{duration(summary['cpu_seconds'])}, in training the runs that are finished"),
        ("training seeds", ", ".join(map(str, summary["seeds"]))),
        ("passes", ", ".join(f"{arm}: {count}" for arm, count in summary["passes"].items())),
        ("problems", ", ".join(f"{name}: {count}" for name, count in summary["problems"].items())),
        ("samples a problem", str(summary["samples"])),
        ("runs", f"{len(summary['runs']) - failed} finished, {failed} failed"),
    ]
