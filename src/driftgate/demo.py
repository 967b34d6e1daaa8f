"""`driftgate demo`: the main job on the embedded pair, twice, side by side, with a report.

Two runs that differ in the gate alone, each in a process of its own, then four evaluations. What is already in the
folder is taken up: runs resume, finished evaluations are read.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from rich.console import Console

from .config import TrainConfig
from .config.exam import ExamSettings
from .data.tasks import BENCHMARKS, benchmark
from .evaluate.command import results_table
from .evaluate.evaluate import evaluate, load_examinee, responses_of
from .evaluate.folder import OtherEvaluationError
from .evaluate.measures import shown
from .evaluate.passk import bootstrap_interval
from .files import json_rows
from .recipe import load_recipe
from .report import plots
from .study.scores import read_scores, require_same_problems, values_of
from .train.command import run
from .workers import Workers

RECIPES = {"no gate": "sandbox/lsm_none", "Block64 gate": "sandbox/lsm_block64"}
EXAM = ExamSettings(benchmarks=BENCHMARKS, limit=40)


def run_demo(out: Path, console: Console, steps: int | None, seed: int, exam: ExamSettings = EXAM) -> None:
    """Train, evaluate, print the table, write report.html. Raises what a run raises."""
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    overrides = [f"seed={seed}", "threads=1", *([f"steps={steps}"] if steps else [])]
    config = load_recipe(RECIPES["no gate"], overrides)
    runs = {name: out / Path(recipe).name for name, recipe in RECIPES.items()}
    models = {
        "student, before": "sandbox/student",
        **{n: str(run) for n, run in runs.items()},
        "teacher": "sandbox/teacher",
    }
    console.print(f"training the embedded student twice, {config.steps} steps, in {out}", highlight=False)
    with Workers(console) as workers:
        for name, recipe in RECIPES.items():
            workers.start(f"training, {name}", config.steps, _train, recipe, overrides, runs[name])
        workers.wait()
        for name, model in models.items():
            workers.start(f"examining: {name}", responses_of(exam), _examine, model, exam, out / "eval" / name)
        workers.wait()
    passes = {name: json.loads((out / "eval" / name / "result.json").read_text())["pass"] for name in models}
    difference = compare_runs(out)
    seconds = time.perf_counter() - began
    write_report(out, passes, runs, config, exam, difference, seconds)
    write_summary(out / "summary.json", passes, config, exam, difference, seconds)
    console.print(results_table(passes))
    console.print(difference, highlight=False, soft_wrap=True)
    console.print(f"report in {out / 'report.html'}; {seconds:.0f} s in all", highlight=False)


def compare_runs(out: Path) -> str:
    """The paired difference between the two runs in a sentence that claims no more than one seed can."""
    both = [read_scores([out / "eval" / name]) for name in ("Block64 gate", "no gate")]
    require_same_problems(*both)
    gated, ungated = (values_of(scores, "pass@1") for scores in both)
    differences = {b: (gated[b] - ungated[b])[0] for b in BENCHMARKS}
    low, high = bootstrap_interval(differences, bounds=(-1, 1))
    mean = sum(d.mean() for d in differences.values()) / len(differences)
    inside = "which includes 0" if low <= 0 <= high else "which excludes 0"
    return (
        f"Block64 minus no gate, mean pass@1 on the same problems and random numbers: {100 * mean:+.1f} points "
        f"[{100 * low:.1f}, {100 * high:.1f}], {inside}. The interval covers the choice of problems, not of the "
        f"training seed: one seed cannot tell whether a gate helps."
    )


def effective_share(run: Path) -> float:
    """Share of the tokens that the gated mean is worth (Kish), averaged over the updates after the first pass."""
    shares = [line["gate_ess"] for line in plots.read_metrics(run, "update") if line["pass"] > 1]
    return sum(shares) / max(len(shares), 1)


def write_report(
    out: Path,
    passes: dict[str, Any],
    folders: dict[str, Path],
    config: TrainConfig,
    exam: ExamSettings,
    difference: str,
    seconds: float,
) -> None:
    """report.html, one file that needs nothing else."""
    before, teacher = (passes[name]["mean"]["pass@1"]["mean"] for name in ("student, before", "teacher"))
    drawn = {
        "learning": plots.learning_curve(folders, {"student, before": before, "teacher": teacher}),
        "gates": plots.gate_spread(folders["Block64 gate"], "Block64"),
        "drift": plots.drift_by_pass(folders),
        "pass_1": plots.scores(passes, "pass@1"),
        "pass_8": plots.scores(passes, "pass@8"),
    }
    page = Environment(loader=PackageLoader("driftgate", "report"), autoescape=False).get_template("demo.html.j2")
    text = page.render(
        passes=passes,
        benchmarks=[*BENCHMARKS, "mean"],
        measures=shown(passes["teacher"]["mean"]),
        plots=drawn,
        example=_example(out, list(passes)),
        verdict=difference,
        effective=effective_share(folders["Block64 gate"]),
        parameters=_parameters(),
        problems=exam.limit,
        samples=exam.samples,
        seed=config.seed,
        steps=config.steps,
        passes_over=config.passes,
        minutes=f"{seconds / 60:.1f} minutes",
        cpus=os.cpu_count(),
    )
    (out / "report.html").write_text(text, encoding="utf-8")


def write_summary(
    path: Path, passes: dict[str, Any], config: TrainConfig, exam: ExamSettings, difference: str, seconds: float
) -> None:
    """The table as JSON, with what it takes to make it again."""
    summary = {
        "command": f"driftgate demo --steps {config.steps} --seed {config.seed}",
        "versions": {name: metadata.version(name) for name in ("driftgate", "torch", "transformers")},
        "cpus": os.cpu_count(),
        "seconds": round(seconds),
        "problems_per_benchmark": exam.limit,
        "samples_per_problem": exam.samples,
        "pass": {
            model: {name: {measure: scores[measure] for measure in shown(scores)} for name, scores in found.items()}
            for model, found in passes.items()
        },
        "difference": difference,
    }
    path.write_text(json_rows(summary) + "\n")


def _train(recipe: str, overrides: list[str], out: Path, advance: Callable[[int], None]) -> None:
    """In a worker process."""
    run(load_recipe(recipe, overrides), out, Console(quiet=True), advance)


def _examine(model: str, exam: ExamSettings, out: Path, advance: Callable[[int], None]) -> None:
    """In a worker process. What is there of this examination is taken up, another one (of an earlier checkpoint, or
    with other settings) replaced."""
    examinee = load_examinee(model, "cpu")
    try:
        evaluate(examinee, exam, out, advance)
    except OtherEvaluationError:
        shutil.rmtree(out)
        evaluate(examinee, exam, out, advance)


def _example(out: Path, names: list[str]) -> dict[str, Any]:
    """The first sample of the first problem that the untrained student got wrong, by every model."""
    rows = {
        name: [json.loads(line) for line in (out / "eval" / name / "samples.jsonl").read_text().splitlines()]
        for name in names
    }
    place = next((i for i, row in enumerate(rows[names[0]]) if not row["correct"]), 0)
    first = rows[names[0]][place]
    texts = {f"{name}: {'right' if r[place]['correct'] else 'wrong'}": r[place]["text"] for name, r in rows.items()}
    problem = next(p.problem for p in benchmark(first["benchmark"]) if p.id == first["problem"])
    return {"problem": problem, "gold": first["gold"], "texts": texts}


def _parameters() -> dict[str, str]:
    from transformers import AutoModelForCausalLM

    from .models.sources import resolve

    models = {
        name: AutoModelForCausalLM.from_pretrained(resolve(f"sandbox/{name}", name)) for name in ("student", "teacher")
    }
    return {name: f"{model.num_parameters():,}" for name, model in models.items()}
