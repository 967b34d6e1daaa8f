"""Files that are written whole or not at all, and JSON whose rows are lines."""

import json
from pathlib import Path
from typing import Any

LINE = 400
"""Characters up to which a mapping stands on one line."""


def replace_file(path: Path, text: str) -> None:
    """Write `text` to a partial file beside `path`, then rename it: the old content stays until the new one is
    complete."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def json_rows(value: Any, indent: str = "") -> str:
    """JSON in which each entry of a list of rows, and each short mapping, is one line, so that a diff can be read."""
    if isinstance(value, dict) and (not indent or len(json.dumps(value)) > LINE):
        inside = [f"{indent} {json.dumps(key)}: {json_rows(each, indent + ' ')}" for key, each in value.items()]
        return "{\n" + ",\n".join(inside) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(each, (dict, list)) for each in value):
        return "[\n" + ",\n".join(f"{indent} {json.dumps(each)}" for each in value) + f"\n{indent}]"
    return json.dumps(value)
