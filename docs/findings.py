"""docs/findings.md: docs/findings.j2 filled in from results/studies."""

import csv
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"


def page() -> str:
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    studies = {path.parent.name: Study(path) for path in sorted((RESULTS / "studies").glob("*/summary.json"))}
    return environment.get_template("findings.j2").render(studies=studies, regime=regime())


def regime() -> str:
    """The search for a regime, a row a run."""
    rows = list(csv.DictReader((RESULTS / "regime.csv").open()))
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(row.values()) + " |" for row in rows)])


class Study:
    """A committed summary, as tables of Markdown."""

    def __init__(self, path: Path):
        self.summary: dict[str, Any] = json.loads(path.read_text())
        self.name = path.parent.name

    @property
    def table(self) -> str:
        """A row an arm: scores, and the difference to the arm that it is compared with."""
        lines = [
            "| arm | pass@1 | pass@8 | pass@1, points against | Holm p | smallest detectable | equal within "
            f"{100 * self.summary['comparisons'][0]['margin']:g}, p |",
            "|---|---|---|---|---|---|---|",
        ]
        return "\n".join([*lines, *(self._row(arm) for arm in self.summary["scores"])])

    def _row(self, arm: str) -> str:
        scores = self.summary["scores"][arm]
        cells = [arm if arm in self.summary["arms"] else f"*{arm}*"]
        cells += [interval(scores[measure]["mean"], "mean") for measure in ("pass@1", "pass@8")]
        found = [c for c in self.summary["comparisons"] if c["arm"] == arm and c["measure"] == "pass@1"]
        return "| " + " | ".join(cells + (compared(found[0]) if found else [""] * 4)) + " |"

    @property
    def verdicts(self) -> str:
        """A line a claim."""
        lines = ["| claim | measure | verdict | why |", "|---|---|---|---|"]
        return "\n".join(
            lines
            + [f"| {c['text']} | {c['measure']} | **{c['verdict']}** | {c['why']} |" for c in self.summary["claims"]]
        )

    @property
    def gates(self) -> str:
        """A row a weighed arm: the spread of its weights in the last pass."""
        lines = ["| arm | 5 % of the tokens below | 95 % below | effective share of the tokens |", "|---|---|---|---|"]
        for arm, passes in self.summary["gates"].items():
            last = passes.get(max(passes, key=int)) if passes else None
            if last:
                known = dict(map(tuple, last["quantiles"]))
                lines.append(f"| {arm} | {known[0.05]:.3f} | {known[0.95]:.3f} | {100 * last['ess']:.1f} % |")
        return "\n".join(lines)

    @property
    def how(self) -> str:
        """What made it."""
        s = self.summary
        versions = ", ".join(f"{name} {version}" for name, version in s["versions"].items())
        return (
            f"`driftgate study studies/{self.name}.yaml`, {len(s['seeds'])} seeds, {len(s['runs'])} runs, "
            f"{s['cpu_seconds'] / 3600:.1f} CPU-hours of training; {versions}. "
            f"[The report](../results/studies/{self.name}/report.md), "
            f"[the data](../results/studies/{self.name}/summary.json)."
        )

    def points(self, arm: str, measure: str = "pass@1") -> str:
        """An arm's difference with its interval."""
        found = next(c for c in self.summary["comparisons"] if c["arm"] == arm and c["measure"] == measure)
        return interval(found, "difference", "+")

    def detectable(self, measure: str = "pass@1") -> str:
        """The least and the largest of the smallest detectable effects, in points."""
        found = [c["detectable"] for c in self.summary["comparisons"] if c["measure"] == measure and c["detectable"]]
        return f"{100 * min(found):.1f} to {100 * max(found):.1f}"

    def least_holm(self, measure: str = "pass@1") -> str:
        found = [
            c["p_holm"] for c in self.summary["comparisons"] if c["measure"] == measure and c["p_holm"] is not None
        ]
        return f"{min(found):.2f}"

    def low(self, arm: str) -> str:
        """What a twentieth of the tokens weigh less than, in the last pass."""
        passes = self.summary["gates"][arm]
        return f"{dict(map(tuple, passes[max(passes, key=int)]['quantiles']))[0.05]:.2f}"

    def drift(self, arm: str) -> str:
        """Mean |d| of the last pass, in thousandths of a nat."""
        passes = self.summary["drift"][arm]
        return f"{1000 * passes[max(passes, key=int)]['abs']:.1f}"


def interval(found: dict[str, Any], middle: str, sign: str = "") -> str:
    """Percent, or points."""
    return f"{100 * found[middle]:{sign}.1f} [{100 * found['low']:{sign}.1f}, {100 * found['high']:{sign}.1f}]"


def compared(c: dict[str, Any]) -> list[str]:
    """Cells of a comparison."""
    tests = [f"{value:.2g}" if value is not None else "" for value in (c["p_holm"], c["p_equivalence"])]
    seen = f"{100 * c['detectable']:.1f}" if c["detectable"] is not None else ""
    return [f"{interval(c, 'difference', '+')} ({c['against']})", tests[0], seen, tests[1]]
