"""The report of a study: both pages say what the summary says."""

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from driftgate.report import by_pass, effects, learning, study_style
from driftgate.report.costs import costs as cost_plot
from driftgate.study import report
from driftgate.study.report import write_report

NAMES = (
    "no gate", "block64", "newline", "token", "sequence", "changepoint", "block64, tau 4", "block64, resampled",
    "block64, shuffled within", "block64, inverse", "EOPD weights", "sampled token, block64", "fixed ESS", "one pass",
)  # fmt: skip
BENCHMARKS = {"lock16": 40, "lock19": 40, "lock22": 40, "lock25": 40}

EQUIVALENCE = ("p_equivalence", "p_equivalence_holm", "low_90", "high_90")


def fake_summary(arms: int = 12, seeds: int = 5, steps: int = 50, claims: bool = True) -> dict[str, Any]:
    """A summary of the shape that a study writes, with made-up numbers; one seed has no comparisons."""
    draw = np.random.default_rng(0)
    names = NAMES[:arms]
    comparisons = _comparisons(names, seeds, draw) if seeds > 1 else []
    scores = {
        name: _scores(0.4 + 0.05 * place, draw) for place, name in enumerate(["student, before", *names, "teacher"])
    }
    return {
        "name": "Does a gate help when rollouts are reused?",
        "what": "The embedded pair, LSM with K = 32; arms differ in the gate alone.",
        "command": "driftgate study gate --out study/gate",
        "commit": "d9db634aa",
        "versions": {"driftgate": "0.1.0", "torch": "2.13.0+cpu", "transformers": "5.17.0"},
        "cpus": 2,
        "seconds": 9243.0,
        "cpu_seconds": 17640.0,
        "steps": steps,
        "passes": dict.fromkeys(names, 4),
        "seeds": list(range(seeds)),
        "samples": 8,
        "problems": dict(BENCHMARKS),
        "common": {"objective.kind": "sampled_token"},
        "arms": {name: _arm(name) for name in names},
        "locked": _locked(seeds),
        "runs": [_run(name, seed, draw) for name in names for seed in range(seeds)],
        "scores": scores,
        "comparisons": comparisons,
        "claims": _claims(names) if claims else [],
        "curves": {name: {str(seed): _curve(steps, draw) for seed in range(seeds)} for name in names},
        "gates": {name: _gates(place, draw) for place, name in enumerate(names)},
        "drift": {name: _drift(place, draw) for place, name in enumerate(names)},
    }


def minimal_summary() -> dict[str, Any]:
    """Two arms, one seed, no claims, no gates, one failed run."""
    summary = fake_summary(2, 1, 4, claims=False) | {"gates": {}, "drift": {}, "locked": [], "commit": None}
    summary["runs"][1] |= {"status": "failed", "error": "loss is not finite", "scores": {}, "rollout_tokens": None}
    summary["runs"][1] |= {"cpu_seconds": None, "updates": None, "truncated": None, "tokens_mean": None}
    summary["scores"].pop("block64")
    summary["problems"] = {"lock16": 40}
    return summary


def _arm(name: str) -> dict[str, Any]:
    own = {} if name == "no gate" else {"gate.spans": "block64", "gate.tau": 1.0}
    return {"what": f"LSM, gate: {name}", "recipe": "sandbox/lsm_block64", "settings": own}


def _scores(level: float, draw: np.random.Generator) -> dict[str, Any]:
    def one(middle: float) -> dict[str, float]:
        middle = float(np.clip(middle + draw.normal(0, 0.02), 0.05, 0.97))
        return {"mean": middle, "low": middle - 0.06, "high": min(middle + 0.06, 1.0)}

    return {m: {b: one(level + up) for b in [*BENCHMARKS, "mean"]} for m, up in (("pass@1", -0.1), ("pass@8", 0.15))}


def _comparisons(names: tuple[str, ...], seeds: int, draw: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for measure in ("pass@1", "pass@8"):
        for place, name in enumerate(names[1:]):
            shift = 0.12 if place in (0, 6) else -0.15 if place == 8 else 0.01
            spread = 0.06 if place != 3 else 0.005
            rows.append(_comparison(name, names[0], measure, shift + draw.normal(0, spread, seeds)))
    return rows


def _comparison(arm: str, against: str, measure: str, values: np.ndarray) -> dict[str, Any]:
    se = float(values.std(ddof=1) / math.sqrt(len(values)))
    middle, p = float(values.mean()), min(1.0, 0.6 * math.exp(-abs(values.mean()) / se))
    ends = {
        "low": middle - 2.8 * se,
        "high": middle + 2.8 * se,
        "low_90": middle - 2.1 * se,
        "high_90": middle + 2.1 * se,
    }
    tests = {"p": p, "p_holm": min(1.0, 5 * p), "p_permutation": 0.0625, "least_p_permutation": 0.0625}
    tests |= {"p_equivalence": 1 - p, "p_equivalence_holm": min(1.0, 5 * (1 - p))}
    sizes = {"margin": 0.05, "detectable": 4 * se, "se": se, "df": len(values) - 1.0}
    named = {"arm": arm, "against": against, "measure": measure, "difference": middle}
    return named | ends | tests | sizes | {"per_seed": [float(v) for v in values]}


def _claims(names: tuple[str, ...]) -> list[dict[str, Any]]:
    texts = (
        ("A gate on blocks of 64 tokens helps.", "supported", "+13.1 points [4.0, 22.2], Holm p 0.012, above zero."),
        (
            "A gate on lines of text helps.",
            "undetermined",
            "+1.2 points [-6.0, 8.4] includes 0 and reaches beyond the margin.",
        ),
        (
            "Gates by token equal no gate.",
            "equivalent",
            "+0.9 points [-0.2, 2.0] lies inside the margin of 5.0 points.",
        ),
        ("The inverse gate does no harm.", "refuted", "-15.2 points [-22.1, -8.3], Holm p 0.004, below zero."),
    )
    return [
        {"text": t, "arm": arm, "against": names[0], "measure": "pass@1", "margin": 0.05, "verdict": v, "why": why}
        for (t, v, why), arm in zip(texts, names[1:])
    ]


def _locked(seeds: int) -> list[dict[str, Any]]:
    by_seed = {str(seed): f"{seed + 1:02d}" * 32 for seed in range(seeds)}
    return [
        {"what": "problems shown in training, in their order", "hash": by_seed, "same": True, "differs": []},
        {"what": "examination's problems and answers", "hash": "ab12cd34ef56" + "0" * 52, "same": True, "differs": []},
        {"what": "student's first weights", "hash": "feedc0de1234" + "1" * 52, "same": True, "differs": []},
    ]


def _run(name: str, seed: int, draw: np.random.Generator) -> dict[str, Any]:
    score = {"mean": {"pass@1": float(draw.uniform(0.3, 0.7))}}
    counts = {"rollout_tokens": 300_000 + 1000 * seed, "cpu_seconds": 120.0 + seed, "updates": 200}
    rates = {"truncated": 0.01, "tokens_mean": 190.0}
    return {"arm": name, "seed": seed, "status": "done", "error": None, "scores": score} | counts | rates


def _curve(steps: int, draw: np.random.Generator) -> dict[str, Any]:
    x = np.arange(1, steps + 1)
    share = 0.2 + draw.uniform(0.2, 0.5) * (1 - np.exp(-x / 15)) + draw.normal(0, 0.06, steps)
    return {"step": x.tolist(), "correct": share.clip(0, 1).tolist(), "loss": np.exp(-x / 20).tolist()}


def _gates(place: int, draw: np.random.Generator) -> dict[str, Any]:
    if place == 0:
        return {}
    spread = 0.02 if place < 5 else 0.6 if place == 9 else 0.15
    found = {}
    for number in range(1, 5):
        values = np.exp(-np.abs(draw.normal(0, spread * (number - 1) + 1e-6, 4000)))
        values /= values.mean()
        marks = [[q, float(np.quantile(values, q))] for q in (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)]
        ess = float(values.sum() ** 2 / (values**2).sum() / len(values))
        found[str(number)] = {
            "quantiles": marks,
            "ess": ess,
            "min": float(values.min()),
            "std": float(values.std()),
        }
    return found


def _drift(place: int, draw: np.random.Generator) -> dict[str, Any]:
    size = 0.002 * (1 + place)
    return {str(n): {"abs": size * (n - 1) * draw.uniform(0.9, 1.1), "span": 0.3 * size * (n - 1)} for n in range(1, 5)}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A summary of 12 arms and the folder of its report."""
    summary, out = fake_summary(), tmp_path_factory.mktemp("study")
    write_report(summary, out)
    return summary, out


@pytest.fixture
def text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without plots, which take most of the time."""
    monkeypatch.setattr(report, "PLOTS", {})


def both(out: Path) -> list[str]:
    return [(out / "report.html").read_text(), (out / "report.md").read_text()]


def test_the_files_are_there_and_the_markdown_links_to_them(pages):
    _, out = pages
    linked = re.findall(r"\]\((plots/\w+\.png)\)", both(out)[1])
    assert linked == [f"plots/{name}.png" for name in ("effects", "learning", "gates", "drift")]
    assert all((out / path).read_bytes().startswith(b"\x89PNG") for path in linked)


def test_the_html_page_needs_nothing_else(pages):
    page = both(pages[1])[0]
    assert page.count("<svg") == 4
    assert not re.findall(r"""(?:src|href)=["'](?!#)""", page)
    assert "<script" not in page
    assert "url(http" not in page


def test_every_arm_and_every_verdict_is_on_both_pages(pages):
    summary, out = pages
    for page in (" ".join(page.split()) for page in both(out)):
        assert all(arm in page for arm in summary["arms"])
        for claim in summary["claims"]:
            at = page.index(claim["text"])
            assert claim["verdict"] in page[at - 120 : at]
            assert claim["why"] in page[at:]


def test_the_numbers_are_the_summary_s(pages):
    summary, out = pages
    table, compared = (rows_of(both(out)[1], title) for title in ("The table", "Differences in pass@1"))
    for row in (row for row in summary["comparisons"] if row["measure"] == "pass@1"):
        cells, score = table[row["arm"]], summary["scores"][row["arm"]]["pass@1"]["mean"]
        assert numbers(cells[1]) == pytest.approx([100 * score[key] for key in ("mean", "low", "high")], abs=0.05)
        cells = compared[f"{row['arm']} - {row['against']}"]
        assert numbers(cells[1]) == pytest.approx([100 * row[k] for k in ("difference", "low", "high")], abs=0.05)
        assert numbers(cells[3]) == pytest.approx([100 * row[k] for k in ("low_90", "high_90")], abs=0.05)
        assert numbers(cells[5]) == pytest.approx([100 * row["detectable"]], abs=0.05)
        for cell, key in zip(cells[2:5:2], ("p_holm", "p_equivalence_holm")):
            assert numbers(cell)[0] == pytest.approx(row[key], abs=0.0006) or "<0.001" in cell


def test_html_and_markdown_show_the_same_numbers(pages):
    html, markdown = both(pages[1])
    page = re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    for title in ("The table", "Differences in pass@1"):
        for cells in rows_of(markdown, title).values():
            for cell in cells[1:]:
                assert cell.replace("\\<", "&lt;") in page


@pytest.mark.usefixtures("text_alone")
def test_each_seed_stands_under_its_number():
    summary = fake_summary(2, 4)
    row = summary["comparisons"][0]
    cells = rows_of(rendered(summary), "Differences seed by seed")["block64 - no gate"]
    assert cells[1:5] == [f"{100 * value:+.1f}" for value in row["per_seed"]]


def test_hashes_are_shown_short(pages):
    out = pages[1]
    for page in both(out):
        assert "ab12cd34ef56<" in page or "`ab12cd34ef56`" in page
        assert "ab12cd34ef560" not in page
        assert "Not all that should have been the same" not in page


@pytest.mark.usefixtures("text_alone")
def test_a_lock_that_broke_is_called_out():
    summary = fake_summary(3, 2)
    summary["locked"][1] |= {"same": False, "differs": ["newline"]}
    page = rendered(summary)
    assert "Not all that should have been the same" in page
    assert "examination's problems and answers: **NOT the same in all arms**: not in newline" in page


def test_names_are_text_and_no_markup(tmp_path):
    summary = json.loads(json.dumps(fake_summary(3, 2)).replace("block64", "<b>a|b $x$ & 'c'"))
    write_report(summary, tmp_path)
    html, markdown = both(tmp_path)
    assert "<b>" not in re.sub(r"<svg.*?</svg>", "", html, flags=re.DOTALL)
    assert "&lt;b&gt;a|b $x$ &amp; &#39;c&#39;" in html
    assert r"\<b\>a\|b $x$ & 'c'" in markdown


def test_the_smallest_study_has_a_report_that_promises_nothing(tmp_path):
    write_report(minimal_summary(), tmp_path)
    for page in both(tmp_path):
        assert "With one training seed" in page
        assert not any(
            word in page for word in ("Verdicts", "Effects", "Holm", "locked", "Drift by pass", "None", "nan")
        )
        assert "block64, seed 0: loss is not finite" in page


def test_with_one_seed_a_difference_has_an_interval_and_no_test(tmp_path):
    summary, tests = fake_summary(2, 2), ("p", "p_holm", "p_permutation", "least_p_permutation", "p_equivalence")
    tests += ("p_equivalence_holm", "low_90", "high_90")
    summary |= {"seeds": [0], "claims": summary["claims"][:1]}
    for row in summary["comparisons"]:
        row |= dict.fromkeys((*tests, *EQUIVALENCE, "detectable", "se", "df")) | {"per_seed": row["per_seed"][:1]}
    summary["claims"][0] |= {"verdict": "undetermined", "why": "one seed"}
    write_report(summary, tmp_path)
    cells = rows_of(both(tmp_path)[1], "Differences in pass@1")["block64 - no gate"]
    assert len(numbers(cells[1])) == 3
    assert cells[2:6] == ["–"] * 4
    assert all("a difference without p covers problems alone" in page for page in both(tmp_path))


def test_what_all_arms_have_of_the_study_is_named(tmp_path):
    write_report(fake_summary(2, 2), tmp_path)
    assert all(re.search(r"objective\.kind=sampled.?_token", page) for page in both(tmp_path))


def test_a_report_made_again_leaves_no_plot_of_the_one_before(tmp_path):
    write_report(fake_summary(2, 2, 4), tmp_path)
    write_report(minimal_summary(), tmp_path)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["learning.png"]


def test_only_a_holm_p_below_the_level_fills_a_square():
    summary = fake_summary(3, 3)
    for row, p_holm in zip(summary["comparisons"], (0.049, 0.051)):
        row["p_holm"] = p_holm
    figure = effects.effects(summary)
    assert figure is not None
    squares = [line for line in figure.axes[0].lines if line.get_marker() == "s"]
    assert [line.get_markerfacecolor() for line in squares] == [study_style.BLUE, "white"]


def test_learning_curves_are_the_seeds_that_finished():
    summary = fake_summary(2, 3, 6)
    summary["runs"][4] |= {"status": "failed"}
    figure = learning.learning(summary)
    assert figure is not None
    drawn = figure.axes[1].lines[-1].get_ydata()
    curves = [summary["curves"]["block64"][seed]["correct"] for seed in ("0", "2")]
    by_hand = [np.mean([np.mean(c[max(0, i - 1) : i + 2]) for c in curves]) for i in range(6)]
    assert drawn == pytest.approx(by_hand)


def test_a_curve_is_smoothed_by_the_length_of_its_own_run():
    assert [learning.smoothing(steps) for steps in (6, 40, 80, 400)] == [3, 5, 9, 41]


@pytest.mark.parametrize("passes", [2, 5, 8, 30])
def test_every_pass_has_a_colour_of_its_own(passes):
    moved = {str(number): {"abs": 0.001 * number, "span": None} for number in range(1, passes + 1)}
    figure = by_pass.drift({"drift": {"block64": moved}})
    assert figure is not None
    assert len({line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"}) == passes


def test_steps_without_a_graded_rollout_are_left_out_of_the_learning_curve():
    summary = fake_summary(2, 2, 6)
    summary["curves"]["block64"]["1"]["correct"][2] = None
    summary["curves"]["no gate"] = {
        seed: c | {"correct": [None] * 6} for seed, c in summary["curves"]["no gate"].items()
    }
    figure = learning.learning(summary)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["block64"]
    assert list(figure.axes[0].lines[-1].get_xdata()) == [
        x for x in summary["curves"]["block64"]["0"]["step"] if x != 3
    ]


LONGEST_LINE = 160


def test_no_line_of_a_report_is_longer_than_160_characters(pages):
    summary = json.loads(json.dumps(pages[0])) | {"seeds": list(range(30))}
    for row in summary["comparisons"]:
        row["per_seed"] = [value for value in row["per_seed"] for _ in range(6)]
    for page in (both(pages[1])[1], rendered(summary)):
        assert max(map(len, page.splitlines())) <= LONGEST_LINE


def rendered(summary: dict[str, Any]) -> str:
    """report.md of a summary."""
    with tempfile.TemporaryDirectory() as folder:
        write_report(summary, Path(folder))
        return (Path(folder) / "report.md").read_text()


def rows_of(markdown: str, title: str) -> dict[str, list[str]]:
    """Cells of a section's table by the text of the first one."""
    section = markdown.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(): [cell.strip() for cell in row] for row in rows[2:]}


def numbers(cell: str) -> list[float]:
    return [float(found) for found in re.findall(r"[-+]?\d+(?:\.\d+)?", cell)]


if __name__ == "__main__":  # to look at the pages: python tests/test_study_report.py FOLDER
    import sys

    for kind, made in {"large": fake_summary(14), "usual": fake_summary(6), "minimal": minimal_summary()}.items():
        folder = Path(sys.argv[1]) / kind
        folder.mkdir(parents=True, exist_ok=True)
        write_report(made, folder)


def test_scores_stand_against_costs_where_costs_differ():
    summary = fake_summary(4)
    assert cost_plot(summary) is None
    for run in summary["runs"]:
        run["cpu_seconds"] *= 1 + summary["seeds"].index(run["seed"]) / 10 + NAMES.index(run["arm"])
    summary["passes"] = dict(zip(summary["arms"], (1, 2, 4, 8)))
    figure = cost_plot(summary)
    assert figure is not None
    grid = np.array(figure.axes).reshape(2, 2)
    dots = [line for line in grid[0, 1].lines if len(line.get_xdata()) == 1]
    costs = [np.mean([r["cpu_seconds"] for r in summary["runs"] if r["arm"] == arm]) for arm in summary["arms"]]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx(costs)
    assert [line.get_ydata()[0] for line in dots] == pytest.approx(
        [100 * summary["scores"][arm]["pass@1"]["mean"]["mean"] for arm in summary["arms"]]
    )
