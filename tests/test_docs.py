"""What the documentation tells a reader to write works when it is written."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from driftgate.errors import InputError, RunError
from driftgate.method.signals import SIGNALS
from driftgate.recipe import check_config, load_recipe, run_code
from driftgate.train.command import run

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


BAD_SIGNALS = {
    "reads what it does not declare": ("s['teacher_logp']", "", "reads 'teacher_logp' without declaring it"),
    "gives another shape": ("s['behaviour_logp'][:1]", "'behaviour_logp'", r"return \[N\]"),
}


@pytest.mark.parametrize("case", BAD_SIGNALS)
def test_a_signal_that_goes_wrong_is_named(case, tmp_path, settings):
    body, reads, said = BAD_SIGNALS[case]
    file = tmp_path / "mine.py"
    file.write_text(
        f"from driftgate.method.signals import signal\n@signal({reads})\ndef crooked(s):\n    return {body}\n"
    )
    run_code(str(file))
    config = check_config(settings | {"code": str(file), "weights": {"w": {"signal": "crooked", "map": "exp"}}})
    try:
        with pytest.raises(RunError, match=f"signal crooked: .*{said}"):
            run(config, tmp_path / "run", Console(quiet=True))
    finally:
        SIGNALS.pop("crooked")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("from driftgate.method.signals import signal\n@signal('logp')\ndef drift(s): ...", "a signal drift already"),
        ("from driftgate.method.signals import signal\n@signal('logpp')\ndef mine(s): ...", "cannot read logpp"),
    ],
)
def test_code_that_fails_is_told_before_anything_is_loaded(tmp_path, text, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(InputError, match=f"code = .*{said}"):
        load_recipe("sandbox/lsm_none", [f"code={file}"])
    with pytest.raises(InputError, match=r"code = 'nowhere\.py'"):
        load_recipe("sandbox/lsm_none", ["code=nowhere.py"])


def test_code_runs_once_however_often_settings_are_checked(tmp_path, settings):
    file, log = tmp_path / "mine.py", tmp_path / "log"
    file.write_text(f"with open({str(log)!r}, 'a') as log:\n    log.write('x')\n")
    check_config(settings | {"code": str(file)})
    assert not log.exists()  # a check of settings runs nobody's code
    paths = [f"{name}.path={settings[name]['path']}" for name in ("student", "teacher", "prompts")]
    small = ["steps=1", "prompts.per_step=2", "rollout.max_new_tokens=12", "rollout.allow_truncated=true"]
    config = load_recipe("sandbox/lsm_none", [*paths, *small, "threads=1", f"code={file}"])
    check_config(config.model_dump(mode="json"))
    run(config, tmp_path / "run", Console(quiet=True))
    run(config, tmp_path / "run", Console(quiet=True))  # resumed: reads the folder's config.yaml
    assert log.read_text() == "x"


def test_an_objective_is_added_by_one_file_and_one_recipe(tmp_path, settings):
    """The page's own code, in a copy of the package: it trains by its recipe, and passes its twin."""
    package = tmp_path / "src" / "driftgate"
    shutil.copytree(DOCS.parent / "src" / "driftgate", package, ignore=shutil.ignore_patterns("__pycache__"))
    page = (DOCS / "adding_an_objective.md").read_text()
    for code in re.findall(r"```(?:python|yaml)\n(.*?)```", page, re.DOTALL):
        name = code.splitlines()[0].lstrip("# ")
        (package / "objectives" / name if name == "squared_ratio.py" else tmp_path / name).write_text(code)
    paths = [f"{name}.path={settings[name]['path']}" for name in ("student", "teacher", "prompts")]
    small = ["steps=2", "prompts.per_step=2", "rollout.max_new_tokens=30", "rollout.allow_truncated=true", "threads=1"]
    train = ["-m", "driftgate", "train", "squared_ratio.yaml", *paths, *small, "--out", "run"]
    for command in (train, ["-m", "pytest", "-q", "test_squared_ratio.py"]):
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    updates = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any(line.get("gate_min", 1.0) < 1.0 for line in updates)


PAGES = [*DOCS.rglob("*.md"), *(DOCS.parent / "results").rglob("*.md"), DOCS.parent / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_no_line_of_a_table_is_too_wide_to_read(page):
    wide = [line for line in page.read_text().splitlines() if line.startswith("|") and len(line) > 160]
    assert not wide, wide[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))
def test_a_page_links_to_what_is_there(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), target


def anchors(page):
    """Of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}
