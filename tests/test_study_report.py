"""The report of a study: both pages say what the summary says."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_summary import EQUIVALENCE, NAMES, fake_summary, minimal_summary

from driftgate.report import by_pass, effects, learning, study_style
from driftgate.report.costs import costs as cost_plot
from driftgate.study import report
from driftgate.study.report import write_report


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
