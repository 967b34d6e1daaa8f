"""The demo from end to end, as small as it gets."""

import json

from rich.console import Console

from driftgate import demo
from driftgate.data.tasks import BENCHMARKS
from driftgate.evaluate.exam import ExamSettings


def test_the_demo_trains_twice_examines_four_models_and_writes_a_report(tmp_path):
    exam = ExamSettings(benchmarks=BENCHMARKS, limit=2)
    console = Console(record=True, width=180, quiet=False)
    demo.run_demo(tmp_path, console, steps=1, seed=0, exam=exam)
    told = console.export_text()
    assert all(name in told for name in ("student, before", "no gate", "Block64 gate", "teacher", "lock25", "pass@8"))
    assert "one seed cannot tell" in told
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 5
    assert json.loads((tmp_path / "summary.json").read_text())["pass"].keys() >= {"teacher", "no gate"}
    assert "https://" not in page.replace("https://matplotlib.org/", "")
    configs = [(tmp_path / run / "config.yaml").read_text() for run in ("lsm_none", "lsm_block64")]
    first, second = (text.splitlines() for text in configs)
    assert [a for a, b in zip(first, second) if a != b] == ["  spans: none"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("result.json")}
    demo.run_demo(tmp_path, console, steps=1, seed=0, exam=exam)  # takes up what is there
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(before) == 4


def test_the_paired_difference_is_that_of_the_problems(tmp_path):
    for name, right in (("Block64 gate", [True, True]), ("no gate", [True, False])):
        folder = tmp_path / "eval" / name
        folder.mkdir(parents=True)
        rows = [
            {"benchmark": b, "problem": p, "sample": sample, "correct": correct}
            for b in BENCHMARKS
            for p in range(10)
            for sample, correct in enumerate(right)
        ]
        (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = demo.compare_runs(tmp_path)
    assert "+50.0 points" in said
    assert "which excludes 0" in said
