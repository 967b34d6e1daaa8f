"""Writing a file whole or not at all, and JSON that can be read and compared line by line."""

import json
from pathlib import Path
from typing import Any

ROW = 320
"""Characters up to which an object is one line."""


def replace_file(path: Path, text: str) -> None:
    """Write `text` to a partial file beside `path`, then rename it: the old content stays until the new one is
    complete."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def json_rows(value: Any, indent: int = 0) -> str:
    """JSON with one row of a table a line, so that a change of one row is a change of one line.

    On one line: a scalar, a list of scalars, each item of a list, and an object of at most 320 characters. A longer
    object has a line for each of its entries.
    """
    line = json.dumps(value)
    nested = isinstance(value, (dict, list, tuple)) and any(isinstance(each, (dict, list, tuple)) for each in value)
    if not (isinstance(value, dict) or nested) or len(line) + indent <= ROW:
        return line
    if isinstance(value, dict):
        rows, ends = [f"{json.dumps(str(key))}: {json_rows(each, indent + 1)}" for key, each in value.items()], "{}"
    else:
        rows, ends = [json.dumps(each) for each in value], "[]"
    space = "\n" + " " * indent
    return ends[0] + space + " " + f",{space} ".join(rows) + space + ends[1]
