"""docs/findings.md and docs/findings/*.md: their templates filled in from results/studies."""

import csv
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from driftgate.study.statistics import holm
from driftgate.study.verdict import points

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
UP = "../.."
"""From the pages of a study to the project's root."""
CONTROLS = {
    "sandbox_controls_paper_lsm": "paper, LSM",
    "sandbox_controls_paper_sampled": "paper, sampled token",
    "sandbox_controls_drift_lsm": "drift, LSM",
    "sandbox_controls_steep_lsm": "steep, LSM",
    "sandbox_controls_steep_sampled": "steep, sampled token",
}
"""Studies of the controls, and the regime and objective of each."""
SHORT = {
    "six": "six_variants",
    "again": "sampled_again",
    "paper_lsm": "controls_paper_lsm",
    "paper_sampled": "controls_paper_sampled",
    "drift": "controls_drift_lsm",
    "rates": "learning_rate",
    "tau": "tau",
    "spans": "spans",
    "steep_lsm": "controls_steep_lsm",
    "steep_sampled": "controls_steep_sampled",
    "reuse": "reuse",
}
"""What the templates call a study."""


PAGES = ("paper", "drift", "steep", "reuse", "reading")
"""Pages beside the index, each from the template of its name."""


def page() -> str:
    """The index: one table, five sentences."""
    return rendered("findings.j2")


def pages() -> dict[str, Callable[[], str]]:
    """File -> what makes it."""
    return {f"findings/{name}.md": partial(rendered, f"findings/{name}.j2") for name in PAGES}


def rendered(template: str) -> str:
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(template).render(found())


@cache
def found() -> dict[str, Any]:
    """What the templates show."""
    studies = {path.parent.name: Study(path) for path in sorted((RESULTS / "studies").glob("*/summary.json"))}
    named = {short: studies[f"sandbox_{name}"] for short, name in SHORT.items()}
    tables = {"regime": regime(), "controls": controls(studies), "over_all": over_all(studies)}
    return {"studies": studies, **named, **tables, "fixed_p": least_against_block64(studies)}


def regime() -> str:
    """The search for a regime, a row a run."""
    rows = list(csv.DictReader((RESULTS / "regime.csv").open()))
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def over_all(studies: dict[str, "Study"]) -> dict[str, Any]:
    """All comparisons in pass@1 of the page: how many; those that Holm's correction over all of them leaves; how many
    are shown to be equivalent within their studies."""
    every = [(study, c) for study in studies.values() for c in study.summary["comparisons"] if c["measure"] == "pass@1"]
    found = [(study, c) for study, c in every if c["p"] is not None]  # without are arms that score alike everywhere
    adjusted = holm([c["p"] for _, c in found], len(every))
    left = [(study.name, c["arm"], p) for (study, c), p in zip(found, adjusted) if p < 0.05]
    return {
        "count": len(every),
        "left": ", ".join(f"{arm} of `{study}` (p {p:.2g})" for study, arm, p in left) or "none",
        "p": {(study.name, c["arm"]): f"{p:.2g}" for (study, c), p in zip(found, adjusted)},
        "equivalent": sum(c["p_equivalence_holm"] < 0.05 for _, c in found),
    }


def least_against_block64(studies: dict[str, "Study"]) -> str:
    """The least of Holm's p over the comparisons with Block64 that were fixed before their results were seen."""
    fixed = ("sandbox_controls_paper_lsm", "sandbox_controls_paper_sampled", "sandbox_controls_steep_lsm")
    arms = ("random", "shuffled")
    found = [studies[name].beside("against_block64", arm, "pass@1")["p"] for name in fixed for arm in arms]
    return f"{min(holm(found)):.2g}"


def controls(studies: dict[str, "Study"]) -> str:
    """Differences in pass@1 to no gate, a row an arm, a column a study of the controls."""
    shown = {name: what for name, what in CONTROLS.items() if name in studies}
    arms = dict.fromkeys(arm for name in shown for arm in studies[name].summary["arms"] if arm != "none")
    rows = [[arm, *(studies[name].difference(arm) for name in shown)] for arm in arms]
    return markdown(["arm", *shown.values()], rows)


class Study:
    """A committed summary, as tables of Markdown."""

    def __init__(self, path: Path):
        self.summary: dict[str, Any] = json.loads(path.read_text())
        self.name = path.parent.name

    @property
    def table(self) -> str:
        """A row an arm: scores, and the difference to the arm that it is compared with."""
        margin = f"equal within {100 * self.summary['comparisons'][0]['margin']:g}, Holm p"
        tests = ["Holm p", "smallest detectable", "90 % interval", margin]
        heads = ["arm", "pass@1", "pass@8", "pass@1, points against", *tests]
        return markdown(heads, [self._row(arm) for arm in self.summary["scores"]])

    def _row(self, arm: str) -> list[str]:
        return [arm if arm in self.summary["arms"] else f"*{arm}*", *self._scores(arm), *self._compared(arm)]

    def _scores(self, arm: str) -> list[str]:
        """pass@1 and pass@8."""
        return [interval(self.summary["scores"][arm][measure]["mean"], "mean") for measure in ("pass@1", "pass@8")]

    def _compared(self, arm: str) -> list[str]:
        """The cells of its comparison in pass@1, if it is compared with another."""
        found = self._comparison(arm)
        return compared(found) if found else [""] * 5

    def _comparison(self, arm: str) -> Any:
        """Of an arm in pass@1; None where it is not compared."""
        return next((c for c in self.summary["comparisons"] if (c["arm"], c["measure"]) == (arm, "pass@1")), None)

    @property
    def verdicts(self) -> str:
        """A line a claim."""
        rows = [f"- **{c['verdict']}**: {c['text']} ({c['measure']}). {c['why']}" for c in self.summary["claims"]]
        return "\n".join(rows)

    @property
    def gates(self) -> str:
        """A row a weighed arm: the spread of its weights in the last pass."""
        rows = [
            [arm, f"{self.quantile(arm, 0.05):.3f}", f"{self.quantile(arm, 0.95):.3f}", f"{self.share(arm)} %"]
            for arm in self.summary["gates"]
            if self._last("gates", arm)
        ]
        heads = ["arm", "5 % of the tokens below", "95 % below", "effective share of the tokens"]
        return markdown(heads, rows)

    @property
    def sweep(self) -> str:
        """A row an arm: its weights in the last pass, its score, and the difference to the arm it is compared with."""
        heads = [
            "arm",
            "what",
            "drift",
            "5 % below",
            "effective share",
            "pass@1",
            "points against",
            "smallest detectable",
        ]
        return markdown(heads, [self._sweep_row(arm) for arm in self.summary["arms"]])

    def _sweep_row(self, arm: str) -> list[str]:
        weights = [self.low(arm), f"{self.share(arm)} %"] if self._last("gates", arm) else ["", ""]
        difference, _, seen, *_ = self._compared(arm)
        what = self.summary["arms"][arm]["what"]
        return [arm, what, self.drift(arm), *weights, self._scores(arm)[0], difference, seen]

    @property
    def costs(self) -> str:
        """A row an arm: what it took and what it gave."""
        heads = ["arm", "rollout tokens, thousands", "CPU-seconds", "drift", "pass@1", "pass@8", "points against"]
        return markdown(heads, [self._cost_row(arm) for arm in self.summary["arms"]])

    def _cost_row(self, arm: str) -> list[str]:
        spent = [f"{self.spent(arm, 'rollout_tokens') / 1000:.0f}", f"{self.spent(arm, 'cpu_seconds'):.0f}"]
        return [arm, *spent, self.drift(arm), *self._scores(arm), self._compared(arm)[0]]

    def spent(self, arm: str, what: str) -> float:
        """Mean over an arm's runs."""
        found = [row[what] for row in self.summary["runs"] if row["arm"] == arm]
        return sum(found) / len(found)

    def plot(self, name: str, alt: str) -> str:
        """One of the report's pictures."""
        return f"![{alt}]({UP}/results/studies/{self.name}/plots/{name}.png)"

    def share(self, arm: str) -> str:
        """The effective share of the tokens in the last pass, percent."""
        share = 100 * self._last("gates", arm)["ess"]
        return f"{share:.2f}" if share > 99.9 else f"{share:.1f}"

    def _last(self, kind: str, arm: str) -> Any:
        """What is known of an arm's last pass."""
        passes = self.summary[kind].get(arm)
        return passes.get(max(passes, key=int)) if passes else None

    @property
    def how(self) -> str:
        """What made it."""
        s = self.summary
        versions = ", ".join(f"{name} {version}" for name, version in s["versions"].items())
        return (
            f"`{s['command']}`, {len(s['seeds'])} seeds, {len(s['runs'])} runs, "
            f"{s['cpu_seconds'] / 3600:.1f} CPU-hours of training; {versions}. "
            f"[The report]({UP}/results/studies/{self.name}/report.md), "
            f"[the data]({UP}/results/studies/{self.name}/summary.json)."
        )

    def points(self, arm: str) -> str:
        """An arm's difference in pass@1 with its interval."""
        return interval(self._comparison(arm), "difference", "+")

    def difference(self, arm: str) -> str:
        """As `points`; bold where Holm's p is below 0.05, with "≈" where it is shown to lie within the margin."""
        c = self._comparison(arm)
        if c["p"] is None:  # nothing differs
            return "the same answers"
        text = f"**{self.points(arm)}**" if c["p_holm"] < 0.05 else self.points(arm)
        return text + " ≈" * (c["p_equivalence_holm"] < 0.05)

    def against_block64(self, arm: str) -> str:
        """An arm's difference in pass@1 to Block64."""
        found = self.beside("against_block64", arm, "pass@1")
        text = f"90 % {interval_90(found)}, equivalence Holm p {found['p_equivalence_holm']:.2g}"
        return f"{self.difference_to_block64(arm)} ({text})"

    def difference_to_block64(self, arm: str) -> str:
        """The same without the test."""
        return interval(self.beside("against_block64", arm, "pass@1"), "difference", "+")

    def p_against_block64(self, arm: str) -> str:
        """Its Holm p over the arms that are compared with Block64."""
        return f"{self.beside('against_block64', arm, 'pass@1')['p_holm']:.2g}"

    def same_answers(self, arm: str, measure: str = "pass@1") -> str:
        """An arm's difference to one pass over as many rollout batches."""
        return interval(self.beside("same_answers", arm, measure), "difference", "+")

    def beside(self, file: str, arm: str, measure: str) -> Any:
        """A comparison by `driftgate compare` on a study's runs, which lies beside its summary."""
        found = json.loads((RESULTS / "studies" / self.name / f"{file}.json").read_text())["comparisons"]
        return next(c for c in found if (c["arm"], c["measure"]) == (arm, measure))

    def of_90(self, arm: str) -> str:
        """The 90 % interval of an arm's difference in pass@1."""
        return interval_90(self._comparison(arm))

    @property
    def equal(self) -> str:
        """Arms that are shown to be equivalent to their base in pass@1."""
        rows = [c for c in self.summary["comparisons"] if c["measure"] == "pass@1" and c["p_equivalence_holm"]]
        return ", ".join(c["arm"] for c in rows if c["p_equivalence_holm"] < 0.05) or "none"

    def verdict(self, arm: str) -> str:
        """Of the claim on an arm's pass@1."""
        return next(c["verdict"] for c in self.summary["claims"] if (c["arm"], c["measure"]) == (arm, "pass@1"))

    def seen(self, arm: str) -> str:
        """The smallest detectable effect of an arm's comparison in pass@1, in points."""
        return points(self._comparison(arm)["detectable"], "")

    def worst(self, arm: str) -> str:
        """The lowest difference of a seed in pass@1, in points."""
        return points(min(self._comparison(arm)["per_seed"]))

    def best(self, arm: str) -> str:
        """The highest."""
        return points(max(self._comparison(arm)["per_seed"]))

    def p(self, arm: str, kind: str = "p") -> str:
        """A p of an arm's comparison in pass@1."""
        return f"{self._comparison(arm)[kind]:.2g}"

    def low(self, arm: str) -> str:
        """What a twentieth of the tokens weigh less than, in the last pass."""
        return f"{self.quantile(arm, 0.05):.2f}"

    def least(self, arm: str) -> str:
        """The smallest weight of an update of the last pass, before scaling, on average over updates and seeds."""
        return f"{self._last('gates', arm)['min']:.2f}"

    def spread(self, arm: str) -> str:
        """Standard deviation of the weights of the last pass, scaled to mean 1."""
        return f"{self._last('gates', arm)['std']:.2g}"

    def quantile(self, arm: str, share: float) -> float:
        """Of the weights in the last pass: what this share of the tokens weighs less than."""
        return dict(map(tuple, self._last("gates", arm)["quantiles"]))[share]

    def drift(self, arm: str) -> str:
        """Mean |d| of the last pass, in thousandths of a nat."""
        return f"{1000 * (self._last('drift', arm) or {'abs': 0.0})['abs']:.1f}"


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


def interval(found: dict[str, Any], middle: str, sign: str = "") -> str:
    """Percent, or points."""
    return f"{points(found[middle], sign)} [{points(found['low'], sign)}, {points(found['high'], sign)}]"


def interval_90(c: dict[str, Any]) -> str:
    """The interval of the equivalence test, in points; empty where nothing can be tested."""
    return f"[{points(c['low_90'])}, {points(c['high_90'])}]" if c["low_90"] is not None else ""


def compared(c: dict[str, Any]) -> list[str]:
    """Cells of a comparison."""
    tests = [f"{value:.2g}" if value is not None else "" for value in (c["p_holm"], c["p_equivalence_holm"])]
    seen = points(c["detectable"], "") if c["detectable"] is not None else ""
    return [f"{interval(c, 'difference', '+')} ({c['against']})", tests[0], seen, interval_90(c), tests[1]]
