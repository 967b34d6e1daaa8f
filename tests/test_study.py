"""A study from end to end on tiny models, and what it refuses."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from study_case import write_study

from driftgate.errors import InputError, RunError
from driftgate.study import runner
from driftgate.study.compare import compare_arms
from driftgate.study.config import arm_configs, load_study
from driftgate.study.counts import arms_of
from driftgate.study.locked import locked
from driftgate.study.runner import check, is_done, jobs_of, run_job, run_study
from driftgate.study.runs import run_folder

QUIET = Console(quiet=True)


@pytest.fixture
def study_file(settings, prompt_file, tmp_path):
    """A study's file with changes: `study_file(seeds=[0])`."""
    return partial(write_study, tmp_path, settings, prompt_file)


@pytest.fixture
def inline(monkeypatch):
    """Jobs run here, one after the other, instead of in processes of their own."""

    class Inline(runner.Workers):
        def __init__(self, console, count=2):
            super().__init__(console, 1)
            self.pool.shutdown()
            self.pool = self

        def submit(self, guard, work, *args):
            future = runner.Future()
            try:
                future.set_result(work(*args))
            except BaseException as error:
                future.set_exception(error)
            return future

        def shutdown(self, **_):
            return None

    monkeypatch.setattr(runner, "Workers", Inline)


def test_a_study_trains_examines_compares_and_reports(study_file, tmp_path):
    """In processes of their own."""
    out = tmp_path / "out"
    console = Console(record=True, width=200)
    run_study(study_file(), out, console, workers=2)
    summary = json.loads((out / "summary.json").read_text())
    assert [(r["arm"], r["seed"], r["status"]) for r in summary["runs"]] == [
        (arm, seed, "done") for arm in ("none", "gated") for seed in (0, 1)
    ]
    assert all(entry["same"] for entry in summary["locked"])
    assert summary["arms"]["gated"]["settings"]["gate.tau"] == 50.0
    assert summary["gates"]["gated"]["2"]["ess"] < 1 == summary["gates"]["gated"]["1"]["ess"]
    assert summary["gates"]["none"] == {}
    assert summary["scores"].keys() == {"none", "gated", "student, before", "teacher"}
    assert [c["arm"] for c in summary["comparisons"]] == ["gated"]
    assert summary["claims"][0]["verdict"] in ("supported", "refuted", "equivalent", "undetermined")
    assert all((out / name).is_file() for name in ("report.html", "report.md", "plots/learning.png"))
    again = compare_arms(arms_of(summary), "none", ["pass@1"])[0]  # from the counts alone
    for key in ("difference", "low", "high"):
        assert getattr(again, key) == pytest.approx(summary["comparisons"][0][key], rel=1e-5)
    told = console.export_text()
    assert "[6/6]" in told
    assert "gates help" in told


def test_a_finished_study_is_only_read(study_file, tmp_path, inline):
    out = tmp_path / "out"
    run_study(study_file(), out, QUIET, 1)
    made = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*") if path.is_file()}
    run_study(study_file(), out, QUIET, 1)
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_finished_run_whose_metrics_end_early_is_refused(study_file, tmp_path, inline):
    """It was copied before it had ended."""
    out = tmp_path / "out"
    run_study(study_file(), out, QUIET, 1)
    metrics = run_folder(out / "runs", "gated", 1) / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[: len(lines) // 2]))
    with pytest.raises(InputError, match="ends after 1 of 2 steps"):
        run_study(study_file(), out, QUIET, 1)


def test_a_study_that_was_cut_off_ends_as_if_it_had_not_been(study_file, tmp_path, inline, monkeypatch):
    study = study_file()
    run_study(study, tmp_path / "whole", QUIET, 1)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_study(study, tmp_path / "cut", QUIET, 1)
    run_study(study, tmp_path / "cut", QUIET, 1)
    one, other = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "cut"))
    for key in ("scores", "comparisons", "claims", "locked", "curves", "gates", "drift"):
        assert one[key] == other[key]


def test_a_failed_run_is_named_and_decides_nothing_and_the_others_go_on(study_file, tmp_path, inline, monkeypatch):
    original = runner.run

    def failing(config, folder, *more):
        if config.seed == 1 and config.gate.spans != "none":
            raise RunError("the loss is nan")
        original(config, folder, *more)

    study = study_file()
    with monkeypatch.context() as patch:
        patch.setattr(runner, "run", failing)
        with pytest.raises(RunError, match=r"gated, seed 1: the loss is nan"):
            run_study(study, tmp_path / "out", QUIET, 1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [r["error"] for r in summary["runs"] if r["status"] == "failed"] == ["the loss is nan"]
    assert summary["comparisons"] == []
    assert summary["claims"][0]["verdict"] == "undetermined"
    assert "failed" in summary["claims"][0]["why"]
    assert "the loss is nan" in (tmp_path / "out" / "report.md").read_text()
    run_study(study, tmp_path / "out", QUIET, 1)  # tried again, now it works
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["comparisons"]


def test_arms_may_differ_only_in_what_is_under_test(study_file):
    path = study_file()
    values = yaml.safe_load(path.read_text())
    values["arms"]["gated"]["settings"]["optimizer"] = {"lr": 0.5}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(InputError, match=r"arm gated: optimizer.lr = 0.5 but 0.01 in none"):
        arm_configs(load_study(path))
    path.write_text(yaml.safe_dump(values | {"varies": ["gate", "optimizer.lr"]}))
    assert arm_configs(load_study(path))["gated"].optimizer.lr == 0.5


def test_common_settings_are_those_of_every_arm(study_file):
    configs = arm_configs(load_study(study_file(common={"objective": {"kind": "sampled_token"}, "steps": 9})))
    assert {config.objective.kind for config in configs.values()} == {"sampled_token"}
    assert {config.steps for config in configs.values()} == {9}
    assert configs["gated"].gate.tau == 50.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "nothing"}, r"base = nothing: there is no such arm; there are none, gated"),
        ({"seeds": [1, 1]}, r"give each seed once"),
        ({"claims": [{"arm": "gated", "text": "x", "measure": "pass@2"}]}, r"pass@2 is not among measures"),
        ({"claims": [{"arm": "none", "text": "x"}]}, r"it is what the others are compared with"),
        ({"common": {"steeps": 3}}, r"arm none: steeps: unknown setting; did you mean steps"),
        ({"sedes": [1]}, r"sedes: unknown setting; did you mean seeds"),
        ({"arms": {"a b": {"recipe": "x"}}}, r"arms"),
        (
            {"arms": {"none": {"recipe": "x"}, "teacher": {"recipe": "x"}}, "claims": []},
            r"arms.teacher: the name is taken",
        ),
        ({"measures": ["pass@3"], "claims": []}, r"measure pass@3: the exam has 2 samples a problem"),
        ({"measures": ["maj@2"], "claims": []}, r"measure maj@2: give pass@k, such as pass@1"),
        ({"measures": [], "claims": []}, r"give at least one, and none twice"),
        ({"measures": ["pass@1", "pass@1"]}, r"give at least one, and none twice"),
    ],
)
def test_a_wrong_study_is_refused(study_file, changes, said):
    with pytest.raises(InputError, match=said):
        arm_configs(load_study(study_file(**changes)))


def test_a_study_that_is_not_there_is_refused():
    with pytest.raises(InputError, match=r"no such file"):
        load_study(Path("nowhere.yaml"))


def test_a_folder_that_holds_another_run_is_refused_before_anything_is_trained(study_file, config, tmp_path):
    study = load_study(study_file())
    configs = arm_configs(study)
    folder = run_folder(tmp_path, "gated", 1)
    folder.mkdir(parents=True)
    other = config.model_copy(update={"threads": 1, "passes": 3})
    (folder / "config.yaml").write_text(yaml.safe_dump(other.model_dump(mode="json")))
    with pytest.raises(InputError, match=r"holds a run with other settings"):
        check(list(jobs_of(study, configs, tmp_path)))


def test_another_examination_of_the_same_runs_is_refused_until_the_old_one_is_gone(study_file, tmp_path, inline):
    run_study(study_file(), tmp_path / "out", QUIET, 1)
    other = study_file(exam=yaml.safe_load(study_file().read_text())["exam"] | {"samples": 3})
    with pytest.raises(InputError, match=r"was examined otherwise, or is another model; .* or remove its eval folder"):
        run_study(other, tmp_path / "out", QUIET, 1)
    for folder in (tmp_path / "out").rglob("eval"):
        shutil.rmtree(folder)
    run_study(other, tmp_path / "out", QUIET, 1)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["samples"] == 3


def test_the_mean_over_samples_is_a_measure(study_file, tmp_path, inline):
    run_study(study_file(measures=["avg@n"], claims=[]), tmp_path / "out", QUIET, 1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {row["scores"]["mean"].keys() == {"avg@n"} for row in summary["runs"]} == {True}


def test_one_problem_is_refused_before_anything_is_trained(study_file, tmp_path):
    exam = yaml.safe_load(study_file().read_text())["exam"] | {"limit": 1}
    with pytest.raises(InputError, match=r"has one problem, which has no spread"):
        run_study(study_file(exam=exam), tmp_path / "out", QUIET, 1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("error", "said"), [(ValueError("odd"), "ValueError: odd"), (InputError("k = 99"), "k = 99")])
def test_whatever_fails_in_a_run_the_others_go_on(study_file, tmp_path, inline, monkeypatch, error, said):
    original = runner.run

    def failing(config, folder, *more):
        if config.gate.spans != "none":
            raise error
        original(config, folder, *more)

    monkeypatch.setattr(runner, "run", failing)
    with pytest.raises(RunError, match=f"2 runs failed: gated, seed 0: {said}"):
        run_study(study_file(), tmp_path / "out", QUIET, 1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["error"] for row in summary["runs"]] == [None, None, said, said]
    assert (
        "failing"
        in json.loads((run_folder(tmp_path / "out" / "runs", "gated", 0) / "failed.json").read_text())["traceback"]
    )


def end_of_process(job, tell):
    os._exit(9)


def test_a_process_that_is_killed_does_not_take_the_report_with_it(study_file, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "run_job", end_of_process)
    with pytest.raises(RunError, match=r"gated, seed 0: its process was killed"):
        run_study(study_file(), tmp_path / "out", QUIET, 1)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert {row["status"] for row in summary["runs"]} == {"failed"}
    assert (tmp_path / "out" / "report.md").is_file()


def test_runs_of_another_length_are_refused(study_file, tmp_path, inline):
    run_study(study_file(), tmp_path / "out", QUIET, 1)
    for steps in (1, 3):
        longer = study_file(common={"diagnostics": {"every": 0}, "steps": steps})
        with pytest.raises(InputError, match=rf"holds a run of 2 steps, the study asks for {steps}"):
            run_study(longer, tmp_path / "out", QUIET, 1)


def test_a_reference_that_is_another_model_is_refused(study_file, tmp_path, inline):
    run_study(study_file(), tmp_path / "out", QUIET, 1)
    note = tmp_path / "out" / "runs" / "references" / "teacher" / "done.json"
    done = json.loads(note.read_text())
    note.write_text(json.dumps(done | {"model": done["model"] | {"path": "elsewhere"}}))
    with pytest.raises(InputError, match=r"teacher: was examined otherwise, or is another model"):
        run_study(study_file(), tmp_path / "out", QUIET, 1)


def test_what_arms_do_not_share_is_told(study_file, tmp_path):
    """Here the rollouts of one arm are made at another temperature."""
    path = study_file(varies=["gate", "rollout.temperature"], seeds=[0])
    values = yaml.safe_load(path.read_text())
    values["arms"]["gated"]["settings"]["rollout"] = {"temperature": 0.7}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    study = load_study(path)
    configs = arm_configs(study)
    jobs = [job for job in jobs_of(study, configs, tmp_path) if job.trained]
    for job in jobs:
        assert run_job(job, lambda count: None) is None
        assert is_done(job)
    entries = {e["what"]: e for e in locked(study, {arm: [run_folder(tmp_path, arm, 0)] for arm in configs})}
    assert entries["first rollout batch, token by token"]["differs"] == ["gated"]
    assert not entries["first rollout batch, token by token"]["same"]
    assert entries["prompts shown, in order"]["same"]
    assert entries["student before training: weights, tokenizer"]["same"]


def test_prompts_are_the_same_as_far_as_runs_of_different_lengths_go(study_file, tmp_path):
    path = study_file(varies=["gate", "steps"], seeds=[0])
    values = yaml.safe_load(path.read_text())
    values["arms"]["gated"]["settings"]["steps"] = 1
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    study = load_study(path)
    configs = arm_configs(study)
    for job in jobs_of(study, configs, tmp_path):
        assert not job.trained or run_job(job, lambda count: None) is None
    entries = {e["what"]: e for e in locked(study, {arm: [run_folder(tmp_path, arm, 0)] for arm in configs})}
    assert entries["prompts shown, in order, in the first 1 steps"]["same"]
