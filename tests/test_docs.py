"""What the documentation tells a reader to write works when it is written."""

import re
from pathlib import Path

import pytest
from rich.console import Console

from driftgate.errors import InputError, RunError
from driftgate.method.signals import SIGNALS
from driftgate.recipe import check_config, load_recipe
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


BAD_SIGNALS = {
    "reads what it does not declare": ("s['teacher_logp']", "", "reads 'teacher_logp' without saying so"),
    "gives another shape": ("s['behaviour_logp'][:1]", "'behaviour_logp'", r"return \[N\]"),
}


@pytest.mark.parametrize("case", BAD_SIGNALS)
def test_a_signal_that_goes_wrong_is_named(case, tmp_path, settings):
    body, reads, said = BAD_SIGNALS[case]
    file = tmp_path / "mine.py"
    file.write_text(
        f"from driftgate.method.signals import signal\n@signal({reads})\ndef crooked(s):\n    return {body}\n"
    )
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
def test_code_that_fails_is_told_before_anything_is_loaded(tmp_path, settings, text, said):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(InputError, match=f"code = .*{said}"):
        check_config(settings | {"code": str(file)})
    with pytest.raises(InputError, match=r"code = 'nowhere\.py'"):
        check_config(settings | {"code": "nowhere.py"})


LONGEST_ROW = 160
ROOT = DOCS.parent
FINDINGS = [DOCS / "findings.md", *sorted((DOCS / "findings").glob("*.md"))]
GENERATED = [*FINDINGS, *sorted(ROOT.glob("results/studies/*/report.md"))]


@pytest.mark.parametrize("page", GENERATED, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_row_of_a_generated_table_is_too_long_to_read(page):
    rows = [line for line in page.read_text().splitlines() if line.startswith("|")]
    assert max(map(len, rows), default=0) <= LONGEST_ROW


@pytest.mark.parametrize("page", FINDINGS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_the_pages_of_findings_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", " ".join(page.read_text().split())):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_first_page_of_findings_is_a_table_and_five_sentences():
    text = (DOCS / "findings.md").read_text()
    blocks = [block.splitlines() for block in text.split("\n\n")]
    tables = [block for block in blocks if block[0].startswith("|")]
    assert len(tables) == 1
    points = next(block for block in blocks if block[0].startswith("- **"))
    assert sum(line.startswith("- ") for line in points) == 5
    assert len(text.splitlines()) < 60
