"""Summaries of studies made before equivalence was adjusted: adds what they lack, from what they hold.

    python experiments/complete_summaries.py

The runs behind results/studies are gone, and the 90 % interval was not written then. It follows from what was: the
95 % interval's half width over the standard error is the 97.5 % point of the comparison's distribution,

    t(q) = share * t(q; seeds - 1) + (1 - share) * t(q; df of problems)      (driftgate/study/cochran.py),

which gives the share. The degrees of freedom of problems were not written; they lie between those of one benchmark and
those of all together, and the 90 % interval's ends differ by less than 0.003 points between the two. Every result is
checked: the 90 % interval is within the margin exactly where the p of equivalence, which was written, is below 0.05.
Holm's correction of the p of equivalence, verdicts and their reasons are then those of the shipped functions.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from driftgate.files import json_rows, replace_file
from driftgate.study.compare import Comparison, with_holm
from driftgate.study.statistics import equivalence_interval
from driftgate.study.two_way import TwoWayMean
from driftgate.study.verdict import verdict

STUDIES = Path(__file__).parents[1] / "results" / "studies"
LEVEL = 0.05


def with_interval_90(c: Comparison, problems: list[int]) -> Comparison:
    """A comparison with the ends of its 90 % interval. problems: of each benchmark."""
    if c.se is None or c.p_equivalence is None:
        return c
    seeds, of_problems = len(c.per_seed) - 1.0, math.sqrt((min(problems) - 1) * sum(n - 1 for n in problems))
    widest, narrowest = stats.t.isf(LEVEL / 2, seeds), stats.t.isf(LEVEL / 2, of_problems)
    share = np.clip(((c.high - c.low) / 2 / c.se - narrowest) / (widest - narrowest), 0.0, 1.0)
    mean = TwoWayMean(np.array(c.difference), np.array(c.se), share, seeds, np.array(of_problems))
    low, high = (float(end) for end in equivalence_interval(mean))
    if (-c.margin < low and high < c.margin) != (c.p_equivalence < LEVEL):
        raise ValueError(f"{c.arm} - {c.against}, {c.measure}: [{low}, {high}] does not go with p {c.p_equivalence}")
    return replace(c, low_90=float(f"{low:.5g}"), high_90=float(f"{high:.5g}"))


def completed(rows: list[dict[str, Any]], problems: list[int], planned: int | None = None) -> list[Comparison]:
    """Comparisons as they were written, with the 90 % interval and Holm's p of equivalence."""
    known = Comparison.__dataclass_fields__
    found = [Comparison(**{key: value for key, value in row.items() if key in known}) for row in rows]
    adjusted = with_holm([with_interval_90(c, problems) for c in found], planned)
    return [replace(new, p_holm=c.p_holm) for new, c in zip(adjusted, found)]  # that one was written, with more digits


def complete_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """A study's summary.json. The family is all comparisons of the study in one measure, as all arms were finished."""
    found = completed(summary["comparisons"], list(summary["problems"].values()), _planned(summary["comparisons"]))
    rows = [{key: _short(value) for key, value in asdict(c).items()} for c in found]
    by_place = {(c.arm, c.against, c.measure): c for c in found}
    claims = []
    for claim in summary["claims"]:
        word, why = verdict(by_place[claim["arm"], claim["against"], claim["measure"]], claim["says"])
        claims.append(claim | {"verdict": word, "why": why})
    return summary | {"comparisons": rows, "claims": claims}


def complete_comparison(written: dict[str, Any], problems: list[int]) -> dict[str, Any]:
    """What `driftgate compare --out` wrote."""
    found = completed(written["comparisons"], problems)
    return written | {"comparisons": [asdict(c) | dict(zip(("verdict", "why"), verdict(c, "better"))) for c in found]}


def _planned(rows: list[dict[str, Any]]) -> int:
    measures = [row["measure"] for row in rows]
    return max(map(measures.count, measures))


def _short(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main() -> None:
    for folder in sorted(path.parent for path in STUDIES.glob("*/summary.json")):
        summary = complete_summary(json.loads((folder / "summary.json").read_text()))
        replace_file(folder / "summary.json", json_rows(summary) + "\n")
        for path in set(folder.glob("*.json")) - {folder / "summary.json"}:
            written = complete_comparison(json.loads(path.read_text()), list(summary["problems"].values()))
            replace_file(path, json_rows(written) + "\n")


if __name__ == "__main__":
    main()
