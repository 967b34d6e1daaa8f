"""What a study would take, told without starting it; and the shipped studies."""

import sys
from pathlib import Path

import pytest

from driftgate import cli
from driftgate.config.exam import ExamSettings
from driftgate.recipe import check_config
from driftgate.study.config import arm_configs, load_study
from driftgate.study.plan import problems_of

STUDIES = Path(__file__).parents[1] / "studies"


def test_a_dry_run_says_what_the_paper_s_table_would_take_and_starts_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = ["study", str(STUDIES / "qwen3_six_variants.yaml"), "--dry-run", "--mean-length", "0.5"]
    monkeypatch.setattr(sys, "argv", ["driftgate", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = capsys.readouterr().out
    assert "6 arms x 5 seeds = 30 runs" in told
    # 200 steps x 32 responses x 8,192 tokens x 5 seeds
    assert "262.14" in told
    assert all(gpu in told for gpu in ("H100", "H200", "A100"))
    assert "fraction of max_new_tokens: 0.5" in told
    assert "not counted: examining the untrained student and the teacher" in told
    # float32 weights and two means of 1.72 B, two of them while the one kept is replaced
    assert "disk: 41.3 GB for a run" in told
    assert list(tmp_path.iterdir()) == []


def test_a_plan_counts_published_problems_without_fetching_them():
    exam = ExamSettings(benchmarks=("math500", "aime24", "lock16"), limit=40)
    assert problems_of(exam) == 40 + 30 + 40


def test_every_shipped_study_is_sound():
    files = sorted(STUDIES.glob("*.yaml"))
    assert files
    for file in files:
        configs = arm_configs(load_study(file))
        assert all(check_config(config.model_dump(mode="json")) for config in configs.values())
