"""A study's summary as a report for a referee: report.html, which needs nothing else, and report.md with plots/.

Both pages hold the same numbers, formatted here once; differences are in points (hundredths of a share).
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib import pyplot as plt

from ..report import study_plots
from .verdict import points

MEANING = (
    "A claim that an arm is better is supported where the Holm-adjusted test rejects zero and the difference is above "
    "it, refuted where it is below, and else equivalent where the Holm-adjusted test shows that the difference lies "
    "inside the margin. A claim that two arms are equal is supported where that is shown, and refuted where the test "
    "rejects zero and the whole interval lies outside the margin. All else is undetermined, which is "
    "evidence for neither side."
)
FULL_NOTE = (
    "In points: the standard error (s.e., with its degrees of freedom, d.f.), the equivalence margin and the smallest "
    "detectable effect. The permutation test flips the signs of whole seeds; beside it the least p that so many seeds "
    "can give."
)
LOCKED_NOTE = (
    "Taken from what the runs left, by arm or by arm and seed, and compared between arms; the whole hashes are in "
    "summary.json."
)
COST_NOTE = "Rollout tokens and CPU-seconds (of training) are means over an arm's finished runs."
NONE = "–"
"""Stands for a number that is not there."""
PLOTS = {
    "effects": study_plots.effects,
    "costs": study_plots.costs,
    "learning": study_plots.learning,
    "gates": study_plots.gates,
    "drift": study_plots.drift,
}


def write_report(summary: dict[str, Any], out: Path) -> None:
    """Write report.html, report.md and plots/*.png into the folder `out`, from what is in summary.json.

    Sections without data are left out. Files of the same names are replaced.
    """
    plots = _draw(summary, out / "plots")
    view = _view(summary) | {"plots": plots}
    for name, escape in (("html", True), ("md", False)):
        page = _environment(escape).get_template(f"study.{name}.j2")
        (out / f"report.{name}").write_text(page.render(view), encoding="utf-8")


def _draw(summary: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """name -> {"svg", "file", "caption"} of each plot that there is data for; the PNGs go to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = _captions(summary)
    drawn: dict[str, dict[str, Any]] = {}
    for name, plot in PLOTS.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier report that had the data
        figure = plot(summary)
        if figure is not None:
            study_plots.save_png(figure, path)
            svg = Markup(study_plots.as_svg(figure))
            drawn[name] = {"svg": svg, "file": f"plots/{path.name}", "caption": captions[name]}
            plt.close(figure)
    return drawn


def _view(summary: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show."""
    measures, base = list(_measures(summary)), study_plots.base_of(summary)
    seeds = _seeds_table(summary, measures[0]) if measures else []
    return {
        **{key: summary[key] for key in ("name", "what", "claims", "common", "arms", "command", "seeds")},
        "size": _size(summary),
        "coverage": _coverage(summary),
        "tally": _tally(summary["claims"]),
        "meaning": MEANING,
        "measures": measures,
        "measure": measures[0] if measures else "",
        "base": base,
        "compared": bool(summary["comparisons"]),
        "table": _table(summary, measures, base),
        "table_note": _table_note(summary),
        "cost_note": COST_NOTE,
        "seeds_table": seeds if len(summary["seeds"]) > 1 else [],
        "more_comparisons": summary["comparisons"],
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


def _table(summary: Mapping[str, Any], measures: Sequence[str], base: str | None) -> list[dict[str, Any]]:
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
            "comparison": _comparison(summary, name, measures[0], base) if measures else None,
            "tokens": _mean_of_runs(summary, name, "rollout_tokens"),
            "cpu": _mean_of_runs(summary, name, "cpu_seconds"),
        }
        for name in names
    ]


def _mean_score(scores: Mapping[str, Any], measure: str) -> Mapping[str, float] | None:
    return scores.get(measure, {}).get("mean")


def _comparison(summary: Mapping[str, Any], arm: str, measure: str, base: str | None) -> Mapping[str, Any] | None:
    """An arm's comparison with the base; where there is none, its first with another arm."""
    rows = [row for row in summary["comparisons"] if row["arm"] == arm and row["measure"] == measure]
    return next((row for row in rows if row["against"] == base), rows[0] if rows else None)


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
    arms, seeds = _plural(len(summary["arms"]), "arm"), _plural(len(summary["seeds"]), "training seed")
    passes = " or ".join(map(str, sorted(set(summary["passes"].values()))))
    problems = _plural(sum(summary["problems"].values()), "held-out problem")
    benchmarks = _plural(len(summary["problems"]), "benchmark")
    return (
        f"{arms}, {seeds}, {_plural(summary['steps'], 'step')} with {passes or 'no'} passes over each rollout batch; "
        f"examined on {problems} in {benchmarks}, {_plural(summary['samples'], 'sample')} each. Scores are means over "
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
    return f"All intervals are 95 % and cover the choice of training seeds and of problems; {rest}"


def _tally(claims: Sequence[Mapping[str, Any]]) -> str:
    counts = Counter(claim["verdict"] for claim in claims)
    named = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return f"Of {_plural(len(claims), 'claim')}: {named}."


def _table_note(summary: Mapping[str, Any]) -> str:
    notes = ["Brackets: 95 % intervals; those of models that no arm trained cover problems alone."]
    if summary["comparisons"]:
        notes.append(
            "Differences and the smallest difference that the study finds in 4 of 5 cases are in points. Holm p is "
            "adjusted for all comparisons of the study in the same measure. The 90 % interval belongs to the test of "
            "equivalence at 5 %: it lies within the margin where that p, before Holm's correction, is below 0.05. The "
            "smallest detectable is of a comparison by itself: Holm's correction asks for more."
        )
    if any(row["p"] is None for row in summary["comparisons"]):
        notes.append("The interval of a difference without p covers problems alone.")
    return " ".join(notes)


def _captions(summary: Mapping[str, Any]) -> dict[str, str]:
    many, seeds = len(summary["seeds"]) > 1, _plural(len(summary["seeds"]), "seed")
    over = f"{seeds} and problems" if many else "problems alone"
    band = " Band: from the least to the largest seed, which is not an interval." if many else ""
    level = study_plots.HOLM_LEVEL
    return {
        "effects": f"Difference of each arm to the one that it is compared with; lines are 95 % intervals over {over}. "
        f"A filled square has a Holm-adjusted p below {level}, a hollow one has not. Small dots: single seeds. Grey "
        f"ticks: the smallest effect that the study would mostly detect. Shaded: the equivalence margin.",
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
        ("machine", f"{_plural(summary['cpus'], 'CPU core')}"),
        ("wall time", _duration(summary["seconds"])),
        ("CPU time", f"{_duration(summary['cpu_seconds'])}, in training the runs that are finished"),
        ("training seeds", ", ".join(map(str, summary["seeds"]))),
        ("passes", ", ".join(f"{arm}: {count}" for arm, count in summary["passes"].items())),
        ("problems", ", ".join(f"{name}: {count}" for name, count in summary["problems"].items())),
        ("samples a problem", str(summary["samples"])),
        ("runs", f"{len(summary['runs']) - failed} finished, {failed} failed"),
    ]


def _environment(escape: bool) -> Environment:
    page = Environment(loader=PackageLoader("driftgate", "report"), autoescape=escape, keep_trailing_newline=True)
    page.filters |= {
        "percent": _percent,
        "points": _points,
        "bare_points": _bare_points,
        "difference": _difference,
        "interval_90": _interval_90,
        "p": _p,
        "number": _number,
        "count": _count,
        "short_hash": lambda digest: str(digest)[:12],
        "setting": lambda value: value if isinstance(value, str) else json.dumps(value),
        "md": _markdown,
    }
    return page


def _percent(score: Mapping[str, float] | None) -> str:
    """A score with its interval, in percent."""
    if not score or not _known(score["mean"]):
        return NONE
    return _bare_points(score["mean"]) + _interval(score)


def _difference(row: Mapping[str, Any]) -> str:
    return _points(row["difference"]) + (_interval(row) if _known(row["difference"]) else "")


def _interval(row: Mapping[str, Any]) -> str:
    if not (_known(row["low"]) and _known(row["high"])):
        return ""
    return f" [{_bare_points(row['low'])}, {_bare_points(row['high'])}]"


def _interval_90(row: Mapping[str, Any]) -> str:
    """The interval of the equivalence test."""
    low, high = row["low_90"], row["high_90"]
    return f"[{_points(low)}, {_points(high)}]" if _known(low) and _known(high) else NONE


def _points(share: float | None) -> str:
    return points(share) if share is not None and _known(share) else NONE


def _bare_points(share: float | None) -> str:
    return points(share, "") if share is not None and _known(share) else NONE


def _p(value: float | None) -> str:
    """A probability; never rounded to 0."""
    if not _known(value):
        return NONE
    assert value is not None
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _number(value: float | None) -> str:
    return f"{value:.1f}" if _known(value) else NONE  # type: ignore[str-format]


def _count(value: float | None) -> str:
    return f"{value:,.0f}" if _known(value) else NONE  # type: ignore[str-format]


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _markdown(text: object) -> str:
    """Text that neither ends a table's cell nor is taken for mark-up."""
    return re.sub(r"([\\`*<>|~]|\b_(?!\w)|(?<!\w)_\b|(?<=\])\()", r"\\\1", " ".join(str(text).split()))


def _duration(seconds: float | None) -> str:
    """1 h 5 min, 3.4 min, 12 s."""
    if seconds is None:
        return NONE
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
