"""`driftgate study`: every arm with every seed, trained and examined in parallel processes; then the report.

What is in the folder is taken up: runs and examinations resume, finished ones are read. A run that fails is noted and
tried again the next time; the others go on.
"""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from rich.console import Console

from ..config import ModelSettings, TrainConfig
from ..config.exam import ExamSettings
from ..data.benchmarks import load_benchmark
from ..errors import InputError, RunError
from ..estimate.training import memory_savings
from ..evaluate.evaluate import check_settings, evaluate, load_examinee, responses_of
from ..files import json_rows, replace_file
from ..report.plots import read_metrics
from ..stop import Stopped
from ..train.command import run
from ..train.folder import check_resumable, config_of, lock
from ..workers import Killed, Workers
from .config import Study, arm_configs, load_study
from .report import write_report
from .runs import REFERENCES, reference_folder, run_folder
from .summary import summary_of

if TYPE_CHECKING:
    from .ray_workers import RayWorkers

Advance = Callable[[int], None]
Executor: TypeAlias = "Workers | RayWorkers"


@dataclass(frozen=True)
class Job:
    """One run, or one reference model's examination, and where it is kept."""

    name: str
    folder: Path
    exam: ExamSettings
    config: TrainConfig
    trained: bool = True
    """False for a reference: its model is the configuration's student or teacher, named by `model`."""
    model: str = ""

    @property
    def how(self) -> ModelSettings:
        """Of the model that is examined: how its numbers are held."""
        teacher = self.config.teacher
        return teacher if teacher is not None and self.model == teacher.path else self.config.student

    @property
    def examined(self) -> dict[str, Any] | None:
        """What a reference is; a run's own config.yaml says it of a trained model."""
        if self.trained:
            return None
        return {"path": self.model, "dtype": self.how.dtype, "compute": self.how.compute}

    @property
    def work(self) -> int:
        """Roughly what it costs, in responses written or gone over by the optimiser."""
        return (self.config.steps * self.per_step if self.trained else 0) + responses_of(self.exam)

    @property
    def per_step(self) -> int:
        return self.config.prompts.per_step * self.config.rollout.samples * (1 + self.config.passes)


def run_study(
    path: Path, out: Path, console: Console, workers: int | None, runs: Path | None = None, on: str | None = None
) -> None:
    """Do what is left of a study in `out`, then write summary.json and the report there.

    workers: runs at a time; null for one per GPU, else one per processor core; on Ray, as many as the cluster has room
    for. runs: the folder of the runs, where several studies share some. on: "ray", or null for processes of this
    machine. Raises InputError before any compute; RunError at the end if runs failed.
    """
    if on not in (None, "ray"):
        raise InputError(f"--on {on}: unknown; give ray, or leave it out for processes of this machine")
    study = load_study(path)
    configs = arm_configs(study)
    runs = runs or out / "runs"
    jobs = list(jobs_of(study, configs, runs))
    check(jobs)
    count = workers or (len(jobs) if on else torch.cuda.device_count() or os.cpu_count() or 1)
    check_servers(jobs, count)
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        failed = run_jobs(jobs, console, lambda left: executor_of(left, console, count, runs, on), out)
        command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        summary = summary_of(path.stem, study, configs, runs, command, seconds_spent(out))
        replace_file(out / "summary.json", json_rows(summary) + "\n")
        write_report(summary, out)
    for claim in summary["claims"]:
        console.print(f"{claim['verdict']}: {claim['text']} ({claim['why']})", highlight=False, soft_wrap=True)
    console.print(f"report in {out / 'report.html'} and {out / 'report.md'}", highlight=False)
    if failed:
        raise RunError(f"{len(failed)} runs failed: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))


def jobs_of(study: Study, configs: dict[str, TrainConfig], runs: Path) -> Iterator[Job]:
    """All runs, seed after seed so that arms stay level, and the models they begin from."""
    base = configs[study.base]
    for seed in study.seeds:
        for arm, config in configs.items():
            threads = 1 if config.threads is None else config.threads
            own = config.model_copy(update={"seed": seed, "threads": threads})
            yield Job(f"{arm}, seed {seed}", run_folder(runs, arm, seed), study.exam.as_trained(own), own)
    if study.references:
        if base.teachers:
            raise InputError(
                f"references = true with teachers in arm {study.base}: which of them is the reference is not said; "
                f"set references=false"
            )
        models = [base.student.path, *([base.teacher_model().path] if base.teacher else [])]
        for name, model in zip(REFERENCES, models):
            yield Job(name, reference_folder(runs, name), study.exam.as_trained(base), base, False, model)


def check(jobs: Sequence[Job]) -> None:
    """Raises InputError for examinations that cannot be and for folders that hold other runs."""
    for exam in {repr(job.exam): job.exam for job in jobs}.values():
        check_settings(exam)
        for name in exam.benchmarks:
            if len(load_benchmark(name, exam.limit)) < 2:
                raise InputError(f"exam: {name} has one problem, which has no spread to judge by; give at least 2")
    for job in jobs:
        _check_folder(job)


def check_servers(jobs: Sequence[Job], workers: int) -> None:
    """Raises InputError where several runs at a time would give their weights to the same servers."""
    for job in jobs:
        for setting, engine in (("rollout.engine", job.config.rollout.engine), ("exam.engine", job.exam.engine)):
            if workers > 1 and engine.kind == "vllm" and engine.urls:
                raise InputError(
                    f"{setting}.urls = {', '.join(engine.urls)} with {workers} runs at a time, which would overwrite "
                    f"each other's weights; give --workers 1, or {setting}.start={{}} for a server of each run's own"
                )


def _check_folder(job: Job) -> None:
    """Raises InputError where it holds a run or an examination of something else."""
    before = config_of(job.folder) if job.trained else None
    if before is not None:
        check_resumable(before, job.config, job.folder)
        if before.steps != job.config.steps:
            raise InputError(
                f"{job.folder}: holds a run of {before.steps} steps, the study asks for {job.config.steps}; choose "
                f"another --runs or --out, or remove the folder"
            )
    done = _done(job)
    updates = read_metrics(job.folder, "update") if done and job.trained else None
    steps = job.config.steps if updates is None else len({line["step"] for line in updates})
    if steps < job.config.steps:
        raise InputError(
            f"{job.folder}: is marked as finished, but its metrics.jsonl ends after {steps} of {job.config.steps} "
            f"steps, as when a run is copied before it has ended; copy it again, or remove the folder"
        )
    if done and (done["exam"] != _as_json(job.exam) or done.get("model") != job.examined):
        raise InputError(
            f"{job.folder}: was examined otherwise, or is another model; choose another --runs or --out, or remove "
            f"its eval folder"
        )


def run_jobs(
    jobs: Sequence[Job], console: Console, executor: Callable[[Sequence[Job]], Executor], out: Path
) -> dict[str, str]:
    """All jobs. Returns what failed and why. Prints a line as each ends. executor: of the jobs that are left."""
    left = [job for job in jobs if not is_done(job)]
    console.print(f"{len(jobs) - len(left)} of {len(jobs)} runs and examinations are there already", highlight=False)
    if not left:
        return {}
    total, done, began, failed = sum(job.work for job in left), 0, time.perf_counter(), {}
    finished: list[str] = []

    def report_end(job: Job, future: Future[str | None]) -> None:
        if future.cancelled() or future.exception() is not None:
            return
        error = future.result()
        if error is not None:
            failed[job.name] = error
        finished.append(job.name)
        elapsed = time.perf_counter() - began
        remaining = elapsed * (total / done - 1) if done else 0.0
        what = "done" if error is None else f"FAILED: {error}"
        console.print(
            f"[{len(finished)}/{len(left)}] {job.name}: {what}; about {remaining / 60:.0f} min left", highlight=False
        )

    with clock(out), executor(left) as pool:
        whole = pool.progress.add_task("study", total=total)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            pool.progress.advance(whole, count)

        for job in left:
            future = pool.start(job.name, job.work, run_job, job)
            future.add_done_callback(lambda future, job=job: report_end(job, future))
        try:
            pool.wait(advance)
        except Killed as error:
            failed |= dict.fromkeys([job.name for job in left if job.name not in finished], str(error))
    return failed


def executor_of(jobs: Sequence[Job], console: Console, count: int, runs: Path, on: str | None) -> Executor:
    """Where the jobs run, at most so many at a time. Raises InputError for a cluster that cannot run them."""
    if on is None:
        return Workers(console, min(count, len(jobs)))
    from .ray_workers import RayWorkers

    threads = max(job.config.threads or 1 for job in jobs)
    gpu = any(job.config.device != "cpu" for job in jobs)
    return RayWorkers(console, min(count, len(jobs)), runs, threads, gpu)


def run_job(job: Job, advance: Advance) -> str | None:
    """In a worker process: train, then examine. Returns what went wrong in the run, if anything did."""
    (job.folder / "failed.json").unlink(missing_ok=True)
    try:
        free_memory()  # of a run before that failed
        if job.trained:
            with costed(job.folder, "train"):
                console = Console(quiet=True)
                run(job.config, job.folder, console, lambda steps: advance(steps * job.per_step), memory_savings)
            free_memory()  # the examination takes what it finds
        with costed(job.folder, "exam"):
            path = job.model or str(job.folder)
            model = load_examinee(path, job.config.device, job.how.dtype, job.how.compute, job.how.quantise)
            evaluate(model, job.exam, job.folder / "eval", advance)
    except Stopped:
        raise
    except Exception as error:  # whatever it is, the other runs go on
        known = isinstance(error, (InputError, RunError, torch.OutOfMemoryError))
        why = str(error) if known else f"{type(error).__name__}: {error}"
        noted = {"error": why, "traceback": traceback.format_exc()}
        replace_file(job.folder / "failed.json", json.dumps(noted, indent=1) + "\n")
        return why
    done = {"steps": job.config.steps, "exam": _as_json(job.exam), "model": job.examined}
    replace_file(job.folder / "done.json", json.dumps(done) + "\n")
    return None


def free_memory() -> None:
    """What the process no longer uses: a run's learner refers to itself, and a GPU's memory waits for the collector."""
    gc.collect()
    torch.cuda.empty_cache()


def is_done(job: Job) -> bool:
    done = _done(job)
    return bool(done) and (done["steps"] == job.config.steps or not job.trained)


def _done(job: Job) -> dict[str, Any]:
    path = job.folder / "done.json"
    examined = (job.folder / "eval" / "result.json").is_file()
    return json.loads(path.read_text()) if examined and path.is_file() else {}


def _as_json(exam: ExamSettings) -> Any:
    return exam.described()


@contextmanager
def costed(folder: Path, what: str) -> Iterator[None]:
    """Appends a line to cost.jsonl: the processor's and the wall's seconds that the block took, however it ends."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        folder.mkdir(parents=True, exist_ok=True)
        spent = {"what": what, "seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        with (folder / "cost.jsonl").open("a") as file:
            file.write(json.dumps(spent) + "\n")


@contextmanager
def clock(out: Path) -> Iterator[None]:
    """Appends the wall's seconds that a session took."""
    began = time.perf_counter()
    try:
        yield
    finally:
        with (out / "sessions.jsonl").open("a") as file:
            file.write(json.dumps({"seconds": time.perf_counter() - began}) + "\n")


def seconds_spent(out: Path) -> float:
    """Over all sessions."""
    path = out / "sessions.jsonl"
    return sum(json.loads(line)["seconds"] for line in path.read_text().splitlines()) if path.is_file() else 0.0
