"""A committed study as tables and figures of Markdown, for the pages of findings."""

import json
from pathlib import Path
from typing import Any

from driftgate.study.formats import wrapped
from driftgate.study.statistics import LEVEL
from driftgate.study.verdict import p_text, points


class Study:
    """A folder of results/studies; links are those of a page in docs/findings/."""

    def __init__(self, folder: Path):
        self.folder, self.name = folder, folder.name
        self.summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
        self.link = f"../../results/studies/{folder.name}"

    @property
    def table(self) -> str:
        """A row an arm: scores, and the difference to the arm that it is compared with."""
        margin = f"{100 * self.summary['comparisons'][0]['margin']:g}"
        heads = ["arm", "pass@1", "pass@8", "points of pass@1 [95 %]", "Holm p", "detectable", "90 %"]
        return markdown([*heads, f"within {margin}, Holm p"], [self._row(arm) for arm in self.summary["scores"]])

    def _row(self, arm: str) -> list[str]:
        return [arm if arm in self.summary["arms"] else f"*{arm}*", *self._scores(arm), *self._compared(arm)]

    def _scores(self, arm: str) -> list[str]:
        """pass@1 and pass@8."""
        return [interval(self.summary["scores"][arm][measure]["mean"], "mean") for measure in ("pass@1", "pass@8")]

    def _compared(self, arm: str) -> list[str]:
        """The cells of its comparison in pass@1, if it is compared with another."""
        c = self._comparison(arm)
        if c is None:
            return [""] * 5
        seen = points(c["detectable"], "") if c["detectable"] is not None else ""
        tests = [p_text(c["p_holm"]), seen, interval_90(c), p_text(c["p_equivalence_holm"])]
        return [f"{interval(c, 'difference', '+')} ({c['against']})", *tests]

    def _comparison(self, arm: str) -> Any:
        """Of an arm in pass@1; None where it is not compared."""
        return next((c for c in self.summary["comparisons"] if (c["arm"], c["measure"]) == (arm, "pass@1")), None)

    @property
    def verdicts(self) -> str:
        """An item a claim."""
        return "\n".join(
            f"- **{c['verdict']}**: {c['text']} ({c['measure']}). {c['why']}" for c in self.summary["claims"]
        )

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
        heads = ["arm", "drift", "5 % below", "effective share", "pass@1", "points [95 %]", "detectable", "90 %"]
        return markdown([*heads, "within 2, Holm p"], [self._sweep_row(arm) for arm in self.summary["arms"]])

    def _sweep_row(self, arm: str) -> list[str]:
        weights = [self.low(arm), f"{self.share(arm)} %"] if self._last("gates", arm) else ["", ""]
        difference, _, seen, ends, equivalence = self._compared(arm)
        return [arm, self.drift(arm), *weights, self._scores(arm)[0], difference, seen, ends, equivalence]

    @property
    def arms(self) -> str:
        """What each arm is."""
        return ", ".join(f"`{name}` ({arm['what']})" for name, arm in self.summary["arms"].items())

    @property
    def costs(self) -> str:
        """A row an arm: what it took and what it gave."""
        heads = ["arm", "rollout tokens, thousands", "CPU-seconds", "drift", "pass@1", "pass@8", "points [95 %]"]
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
        return f"![{alt}]({self.link}/plots/{name}.png)"

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
            f"[The report]({self.link}/report.md), [the data]({self.link}/summary.json)."
        )

    def points(self, arm: str) -> str:
        """An arm's difference in pass@1 with its 95 % interval."""
        return interval(self._comparison(arm), "difference", "+")

    def points_90(self, arm: str) -> str:
        """The 90 % interval alone."""
        return interval_90(self._comparison(arm))

    def word(self, arm: str) -> str:
        """What is shown of an arm's difference in pass@1, by the p that are adjusted in its study."""
        c = self._comparison(arm)
        if c["p_holm"] < LEVEL:
            return f"{'higher' if c['difference'] > 0 else 'lower'} (p {p_text(c['p_holm'])})"
        within = f"within {100 * c['margin']:g} points (p {p_text(c['p_equivalence_holm'])})"
        return within if c["p_equivalence_holm"] < LEVEL else "undetermined"

    def difference(self, arm: str) -> str:
        """As `points`; bold where Holm's p is below 0.05, with "≈" where it is shown to lie within the margin."""
        c = self._comparison(arm)
        if c["p"] is None:  # nothing differs
            return "the same answers"
        text = f"**{self.points(arm)}**" if c["p_holm"] < LEVEL else self.points(arm)
        return text + " ≈" * (c["p_equivalence_holm"] < LEVEL)

    def against_block64(self, arm: str) -> str:
        """An arm's difference in pass@1 to Block64, with its 90 % interval and Holm's p of equivalence."""
        c = self.beside("against_block64", arm, "pass@1")
        return (
            f"{interval(c, 'difference', '+')} (90 % {interval_90(c)}, equivalence p {p_text(c['p_equivalence_holm'])})"
        )

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
        found = json.loads((self.folder / f"{file}.json").read_text())["comparisons"]
        return next(c for c in found if (c["arm"], c["measure"]) == (arm, measure))

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

    def p(self, arm: str, kind: str = "p_holm") -> str:
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
    """Percent, or points, with the 95 % interval."""
    return f"{points(found[middle], sign)} [{points(found['low'], sign)}, {points(found['high'], sign)}]"


def interval_90(c: dict[str, Any]) -> str:
    return "" if c["low_90"] is None else f"[{points(c['low_90'])}, {points(c['high_90'])}]"


def reflowed(page: str) -> str:
    """A page of Markdown with its paragraphs and lists in lines of 120 characters; tables and code stay."""
    blocks = []
    for block in page.split("\n\n"):
        lines = [line for line in block.strip("\n").splitlines() if line.strip()]
        if not lines:
            continue
        whole = lines[0].startswith(("|", "#", "```", "<!--", "!["))
        blocks.append("\n".join(lines) if whole else "\n".join(map(_paragraph, _items(lines))))
    return "\n\n".join(blocks) + "\n"


def _items(lines: list[str]) -> list[str]:
    """Lines of a block joined to one text an item of a list, or to one text."""
    items: list[str] = []
    for line in lines:
        if line.startswith("- ") or not items:
            items.append(line)
        else:
            items[-1] += " " + line.strip()
    return items


def _paragraph(text: str) -> str:
    return wrapped(text, 2 if text.startswith("- ") else 0)
