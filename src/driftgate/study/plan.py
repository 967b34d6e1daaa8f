"""`driftgate study FILE --dry-run`: what the study would take, before anything is started."""

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from ..config import TrainConfig
from ..config.exam import ExamSettings
from ..data.benchmarks import EMBEDDED_SIZE, PUBLISHED, benchmark_name, load_benchmark
from ..data.tasks import BENCHMARKS
from ..estimate.estimate import Estimate, estimate
from ..estimate.gpus import GB
from ..estimate.table import estimate_table
from .config import Study, arm_configs, load_study


def print_plan(path: Path, console: Console, mean_length: float) -> None:
    """Runs, tokens, memory, time and assumptions. mean_length: of a response, as a fraction of its limit.

    Raises InputError for a wrong study.
    """
    study = load_study(path)
    configs = arm_configs(study)
    estimates = {name: _estimate(study, config, mean_length) for name, config in configs.items()}
    runs = len(study.arms) * len(study.seeds)
    console.print(f"{path}: {len(study.arms)} arms x {len(study.seeds)} seeds = {runs} runs", highlight=False)
    console.print(estimate_table(estimates, len(study.seeds)))
    console.print(f"- {disk_text(configs, estimates, len(study.seeds))}", highlight=False)
    if study.references:
        console.print("- not counted: examining the untrained student and the teacher once", highlight=False)


def disk_text(configs: Mapping[str, TrainConfig], estimates: Mapping[str, Estimate], seeds: int) -> str:
    """What checkpoints take, weights and AdamW's two means: of the largest run while it saves, and all runs at last."""
    whole = {arm: found.memory.saved for arm, found in estimates.items()}
    most = max((config.checkpoint.keep + 1) * whole[arm] for arm, config in configs.items())
    left = sum(seeds * config.checkpoint.keep * whole[arm] for arm, config in configs.items())
    return (
        f"disk: {most / GB:,.3g} GB for a run while it saves a checkpoint, {left / GB:,.3g} GB for all runs in the end"
    )


def _estimate(study: Study, config: TrainConfig, mean_length: float) -> Estimate:
    exam = study.exam
    return estimate(config, problems_of(exam), exam.samples, exam.max_new_tokens, mean_length, exam_batch=exam.batch)


def problems_of(exam: ExamSettings) -> int:
    """Problems of an examination; of published benchmarks by their pins, so that nothing is fetched."""
    return sum(min(_size(name), exam.limit or 10**9) for name in exam.benchmarks)


def _size(name: str) -> int:
    if name in BENCHMARKS:
        return EMBEDDED_SIZE
    published = PUBLISHED.get(benchmark_name(name))
    return published.problems if published else len(load_benchmark(name))
