"""JSON by rows: the same content, a line a row; and the committed results are written so."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftgate.files import ROW, json_rows

RESULTS = Path(__file__).parents[1] / "results"
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=60)


@given(VALUES)
def test_what_is_written_is_what_is_read(value):
    assert json.loads(json_rows(value)) == value


def test_a_row_of_a_table_is_a_line_however_long():
    rows = [{"arm": name, "per_seed": [0.125] * 100, "scores": {"a": {"mean": 1.0}}} for name in ("none", "gate")]
    lines = [line.strip(" ,") for line in json_rows({"seeds": [0, 1], "rows": rows}).splitlines()]
    assert lines == ["{", '"seeds": [0, 1]', '"rows": [', *map(json.dumps, rows), "]", "}"]


def test_a_long_object_has_a_line_for_each_entry():
    lines = json_rows({"curve": {"step": list(range(200)), "loss": [1.0] * 200}}).splitlines()
    assert len(lines) == 6
    assert all(len(line) > ROW for line in lines[2:4])


@pytest.mark.parametrize("path", sorted(RESULTS.glob("studies/*/*.json")), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_committed_studies_are_written_by_rows(path):
    assert json_rows(json.loads(path.read_text())) + "\n" == path.read_text()
