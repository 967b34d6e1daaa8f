"""What the documentation tells a reader to write works when it is written."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from driftgate.method.signals import SIGNALS
from driftgate.recipe import load_recipe
from driftgate.train.run import run

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """The files that docs/adding_a_weight.md shows, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"```(?:python|yaml)\n(.*?)```", (DOCS / "adding_a_weight.md").read_text(), re.DOTALL):
        name = code.splitlines()[0].lstrip("# ")
        (tmp_path / name).write_text(code)
    yield tmp_path
    SIGNALS.pop("teacher_confidence", None)


def test_a_weight_is_added_by_one_function_and_one_recipe(written, settings):
    paths = [f"{name}.path={settings[name]['path']}" for name in ("student", "teacher", "prompts")]
    small = ["steps=2", "prompts.per_step=2", "rollout.max_new_tokens=30", "rollout.allow_truncated=true"]
    config = load_recipe("confident_lines.yaml", [*paths, *small, "threads=1"])
    assert config.weights["confidence"].signal == "teacher_confidence"
    run(config, written / "run", Console(quiet=True))
    lines = (written / "run" / "metrics.jsonl").read_text()
    assert '"gate_std"' in lines
    assert config.code == "teacher_confidence.py"
