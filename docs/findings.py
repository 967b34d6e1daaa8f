"""docs/findings.md and the pages under docs/findings/, filled in from results/studies."""

import csv
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from study_tables import Study, interval, markdown, reflowed

from driftgate.study.report import PLOTS, markdown_report, write_report
from driftgate.study.statistics import LEVEL, holm

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
PARTS = ("paper", "controls", "sweeps", "reuse", "reading", "qwen3")
"""Pages one click away."""
CONTROLS = {
    "controls_paper_lsm": "paper, LSM",
    "controls_paper_sampled": "paper, sampled token",
    "controls_drift_lsm": "drift, LSM",
    "controls_steep_lsm": "steep, LSM",
    "controls_steep_sampled": "steep, sampled token",
}
"""Studies of the controls, and the regime and objective of each."""
TOLD = ("six_variants", *CONTROLS, "sampled_again", "learning_rate", "tau", "spans", "reuse")
"""Studies that the pages tell of, without the "sandbox_" of their folders; Holm's correction over all is over these."""


def pages() -> dict[str, Any]:
    """Path from docs/ -> what makes the page."""
    environment = Environment(loader=FileSystemLoader(HERE), undefined=StrictUndefined, keep_trailing_newline=True)
    studies = {name: Study(RESULTS / "studies" / f"sandbox_{name}") for name in TOLD}
    found = {
        **studies,
        "regime": regime(),
        "controls": controls(studies),
        "over_all": over_all(studies),
        "fixed_p": least_against_block64(studies),
        "answers": answers(studies),
        "rate_none": rate_without_gate(studies["learning_rate"]),
    }

    def page(template: str) -> str:
        return reflowed(environment.get_template(template).render(found))

    names = ["findings", *(f"findings/{name}" for name in PARTS)]
    return {f"{name}.md": (lambda template=f"{name}.j2": page(template)) for name in names} | reports()


def reports() -> dict[str, Any]:
    """The same of the report beside each committed summary. Plots are drawn by `python docs/findings.py`."""
    folders = sorted(path.parent for path in (RESULTS / "studies").glob("*/summary.json"))
    return {f"../results/studies/{folder.name}/report.md": (lambda folder=folder: report(folder)) for folder in folders}


def report(folder: Path) -> str:
    return markdown_report(Study(folder).summary, [name for name in PLOTS if (folder / f"plots/{name}.png").is_file()])


def answers(s: dict[str, Study]) -> str:
    """The table of the first page: a row a question."""
    paper, steep = "[paper](findings/paper.md)", "[controls](findings/controls.md)"
    sweeps, reuse = "[sweeps](findings/sweeps.md)", "[reuse](findings/reuse.md)"
    asked = [
        ("Block64 as published, LSM", s["six_variants"], "lsm_block64", paper),
        ("Block64 as published, sampled token, five seeds", s["six_variants"], "sampled_block64", paper),
        ("the same, ten other seeds", s["sampled_again"], "sampled_block64", paper),
        ("Block64, steep gates (tau 100), LSM", s["controls_steep_lsm"], "block64", steep),
        ("Block64, steep gates, sampled token", s["controls_steep_sampled"], "block64", steep),
        ("Block64 where drift is larger, LSM", s["controls_drift_lsm"], "block64", steep),
        ("a gate on each token, steep, LSM", s["controls_steep_lsm"], "token", steep),
        ("a gate on each token, steep, sampled token", s["controls_steep_sampled"], "token", steep),
        ("Block64 at a higher learning rate (6e-4), LSM", s["learning_rate"], "block64_lr6e-4", sweeps),
        ("a quarter of the answers in four passes", s["reuse"], "none_4x20", reuse),
        ("Block64 with eight passes", s["reuse"], "block64_8x20", reuse),
    ]
    heads = ["asked: does it change pass@1?", "points [95 %]", "90 %", "verdict (Holm p)", "where"]
    rows = [
        [text, study.points(arm), study.points_90(arm), study.word(arm), where] for text, study, arm, where in asked
    ]
    return markdown(heads, rows)


def regime() -> str:
    """The search for a regime, a row a run."""
    rows = list(csv.DictReader((RESULTS / "regime.csv").open()))
    heads = ["gate", "peak rate", "passes", "updates a pass", "steps", "clipped at", "pass@1, %", "pass@8, %", "CPU-s"]
    return markdown(heads, [list(row.values()) for row in rows])


def over_all(studies: dict[str, Study]) -> dict[str, Any]:
    """All comparisons in pass@1 of the pages: how many; which of them Holm's correction over all of them leaves."""
    every = [(study, c) for study in studies.values() for c in study.summary["comparisons"] if c["measure"] == "pass@1"]
    found = [(study, c) for study, c in every if c["p"] is not None]  # without are arms that score alike everywhere
    p = dict(zip([(study.name, c["arm"]) for study, c in found], holm([c["p"] for _, c in found], len(every))))
    equivalence = holm([c["p_equivalence"] for _, c in found], len(every))
    return {
        "count": len(every),
        "p": {place: f"{value:.2g}" for place, value in p.items()},
        "left": ", ".join(f"{arm} of `{name}` (p {value:.2g})" for (name, arm), value in p.items() if value < LEVEL),
        "alone": sum(c["p_equivalence"] < LEVEL for _, c in found),
        "equivalent": sum(c["p_equivalence_holm"] < LEVEL for _, c in found),
        "equivalent_over_all": sum(value < LEVEL for value in equivalence),
    }


def least_against_block64(studies: dict[str, Study]) -> str:
    """The least of Holm's p over the comparisons with Block64 that were fixed before their results were seen."""
    fixed = ("controls_paper_lsm", "controls_paper_sampled", "controls_steep_lsm")
    arms = ("random", "shuffled")
    found = [studies[name].beside("against_block64", arm, "pass@1")["p"] for name in fixed for arm in arms]
    return f"{min(holm(found)):.2g}"


def rate_without_gate(study: Study) -> str:
    """Points of pass@1 at 3e-4 against 1e-4, without a gate."""
    return interval(study.beside("none_by_rate", "none", "pass@1"), "difference", "+")


def controls(studies: dict[str, Study]) -> str:
    """Differences in pass@1 to no gate, a row an arm, a column a study of the controls."""
    arms = dict.fromkeys(arm for name in CONTROLS for arm in studies[name].summary["arms"] if arm != "none")
    return markdown(["arm", *CONTROLS.values()], [[a, *(studies[n].difference(a) for n in CONTROLS)] for a in arms])


def draw() -> None:
    """Every report of results/studies with its plots."""
    for path in sorted((RESULTS / "studies").glob("*/summary.json")):
        write_report(Study(path.parent).summary, path.parent)
        (path.parent / "report.html").unlink()  # as large as all else; `driftgate study` writes it


if __name__ == "__main__":
    draw()
