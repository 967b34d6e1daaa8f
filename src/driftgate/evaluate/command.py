"""The `eval` command: progress, table, files."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from ..errors import InputError
from ..progress import bars
from .evaluate import check_benchmarks, evaluate, load_examinee, responses_of
from .exam import ExamSettings
from .measures import shown


def run_eval(
    model: str,
    exam: ExamSettings,
    out: Path,
    console: Console,
    device: str,
    dtype: str | None = None,
    compute: str | None = None,
) -> None:
    """Evaluate `model` and print its table; samples.jsonl and result.json go to `out`.

    A run folder's model is shown problems as it was trained to see them, where `exam` leaves that open. Where neither
    dtype nor compute is given, it has those that it was trained with; another model has float32.
    """
    run = _settings_of_run(model)
    exam = exam.as_trained(run.get("prompts", {}), run.get("rollout", {}).get("stop_ids"))
    check_benchmarks(exam)
    if dtype is None and compute is None:
        student = run.get("student", {})
        dtype, compute = student.get("dtype"), student.get("compute")
    examinee = load_examinee(model, device, dtype or "float32", compute)
    with bars(console) as progress:
        bar = progress.add_task("responses", total=responses_of(exam))
        result = evaluate(examinee, exam, out, lambda n: progress.advance(bar, n))
    console.print(results_table({model: result["pass"]}))
    console.print(f"samples and result in {out}", highlight=False)


def exam_of_flags(**flags: Any) -> ExamSettings:
    """Raises InputError that names the flag."""
    try:
        return ExamSettings(**flags)
    except ValidationError as error:
        raise InputError("\n".join(map(_flag_line, error.errors()))) from None


def _flag_line(problem: Any) -> str:
    setting = str(problem["loc"][0])
    flag = "benchmark" if setting == "benchmarks" else setting.replace("_", "-")
    given = ", ".join(problem["input"]) if setting == "benchmarks" else problem["input"]
    return f"--{flag} {given}: {problem['msg'].removeprefix('Value error, ')}"


def _settings_of_run(model: str) -> dict[str, Any]:
    """Empty where `model` is no run folder."""
    path = Path(model) / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def results_table(passes: dict[str, dict]) -> Table:
    """A row per model and shown measure, a column per benchmark and the mean; percent with 95 % interval."""
    benchmarks = list(next(iter(passes.values())))
    table = Table("model", "", *benchmarks, title="percent [95 % interval over problems]")
    for model, scores in passes.items():
        for measure in shown(scores[benchmarks[0]]):
            cells = (percent(scores[name][measure]) for name in benchmarks)
            table.add_row(model if measure == "pass@1" else "", measure, *cells)
        table.add_section()
    return table


def percent(estimate: dict[str, float]) -> str:
    return f"{100 * estimate['mean']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
