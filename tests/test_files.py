"""JSON whose rows are lines: the same content, and a diff that can be read."""

import json

from driftgate.files import json_rows


def test_rows_are_lines_and_the_content_is_the_same():
    value = {
        "name": "a",
        "rows": [{"arm": "none", "values": [0.1] * 60}, {"arm": "gated", "values": []}],
        "tree": {"none": {"pass@1": {"mean": 0.1, "low": 0.0, "high": 1.0}}, "gated": {"text": "x" * 200}},
        "empty": {},
        "numbers": list(range(200)),
    }
    text = json_rows(value)
    assert json.loads(text) == value
    lines = text.splitlines()
    assert sum('"arm"' in line for line in lines) == 2
    assert sum("mean" in line for line in lines) == 1
    assert len(lines) < 20
