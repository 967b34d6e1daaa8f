"""The `eval` command: progress, table, files."""

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from ..config import PromptSettings
from ..config.exam import ExamSettings
from ..progress import bars
from .evaluate import check_settings, evaluate, load_examinee, responses_of
from .measures import shown


def run_eval(
    model: str,
    settings: ExamSettings,
    out: Path,
    console: Console,
    device: str,
    dtype: str | None = None,
    compute: str | None = None,
) -> None:
    """Evaluate `model` and print its table; samples.jsonl and result.json go to `out`. Where neither dtype nor compute
    is given, a run folder's model has those that it was trained with, another float32."""
    settings = _as_trained(model, settings)
    check_settings(settings, lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True))
    quantise = None
    if dtype is None and compute is None:
        student = _settings_of_run(model).get("student", {})
        dtype, compute, quantise = (student.get(name) for name in ("dtype", "compute", "quantise"))
    examinee = load_examinee(model, device, dtype or "float32", compute, quantise)
    with bars(console) as progress:
        bar = progress.add_task("responses", total=responses_of(settings))
        result = evaluate(examinee, settings, out, lambda n: progress.advance(bar, n))
    console.print(results_table({model: result["pass"]}))
    console.print(f"samples and result in {out}", highlight=False)


def _as_trained(model: str, settings: ExamSettings) -> ExamSettings:
    """Where nothing is said, a run folder's model is shown problems as it was trained to see them."""
    run = _settings_of_run(model)
    shown = {name: value for name, value in run.get("prompts", {}).items() if name in PromptSettings.model_fields}
    stop_ids = run.get("rollout", {}).get("stop_ids")
    return settings.shown_as(PromptSettings.model_validate({"path": "", **shown}), tuple(stop_ids or ()) or None)


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
