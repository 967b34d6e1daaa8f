"""Rows of a data file, by the ending of its name, or of a data set on the hub.

A row comes with its place, for messages: "FILE:LINE" in a text of lines, else "FILE row NUMBER", counted from 0.
"""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config.sources import USUAL
from ..errors import InputError

Rows = list[tuple[str, Any]]
"""(place, row); a row is an object by column, if the file is right."""

ENDINGS = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
"""Of files that are known by name. A file with another ending is read as JSONL."""
PACKED = ".gz"
"""May follow the ending of a text file."""


def ending_of(path: Path) -> str:
    """The ending that says what a file holds."""
    name = path.name.lower().removesuffix(PACKED)
    return next((ending for ending in ENDINGS if name.endswith(ending)), "")


def read_rows(path: str, setting: str) -> Rows:
    """Rows of a file, or of `hub:OWNER/NAME[/CONFIG][@SPLIT]`. setting: that names it, for messages. Raises InputError
    for what is missing, empty or damaged."""
    if path.startswith("hub:"):
        return number_rows(path, hub_rows(path, setting))
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError(
            f"{setting} = {path}: there is no such file; give one that ends with {', '.join(ENDINGS)}, with a problem "
            f"in each row"
        )
    if ending_of(file) == ".parquet":
        return number_rows(path, _parquet_rows(file, setting))
    rows = _text_rows(file, _text_of(file, setting), setting)
    if not rows:
        raise InputError(f"{setting} = {path}: the file has no lines that are not blank; give at least one problem")
    return rows


def number_rows(name: str, rows: Iterable[Any]) -> Rows:
    return [(f"{name} row {number}", row) for number, row in enumerate(rows)]


def hub_rows(path: str, setting: str) -> Iterable[Any]:
    """Rows of `hub:OWNER/NAME[/CONFIG][@SPLIT]`. Needs the extra `datasets`.

    Raises InputError where the extra is missing or the data set cannot be loaded.
    """
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"{setting} = {path}: needs the extra `datasets`: pip install 'driftgate[datasets]', or in a clone "
            ".venv/bin/pip install -e '.[datasets]'"
        ) from None
    name, _, split = path.removeprefix("hub:").partition("@")
    owner_and_name, config = "/".join(name.split("/")[:2]), name.split("/")[2:]
    try:
        return datasets.load_dataset(owner_and_name, *config, split=split or "train")
    except (OSError, ValueError) as error:  # no such data set, no network, or no such configuration or split
        why = str(error).splitlines()[0]
        raise InputError(f"{setting} = {path}: cannot be loaded: {why}; check name, split and network") from None


def _parquet_rows(path: Path, setting: str) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(
            f"{setting} = {path}: needs the extra `parquet`: pip install 'driftgate[parquet]', or in a clone "
            ".venv/bin/pip install -e '.[parquet]'"
        ) from None
    try:
        rows = ParquetFile(path).read().to_pylist()
    except (ArrowException, OSError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"{setting} = {path}: cannot be read as parquet ({why}); write the file anew") from None
    if not rows:
        raise InputError(f"{setting} = {path}: the file has no rows; give at least one problem")
    return rows


def _text_of(path: Path, setting: str) -> str:
    """The file's text, unpacked, without the mark that some programs put first."""
    content = path.read_bytes()
    if path.suffix.lower() == PACKED:
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{setting} = {path}: cannot be unpacked ({error}); pack the file anew") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{setting} = {path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def _text_rows(path: Path, text: str, setting: str) -> Rows:
    match ending_of(path):
        case ".csv":
            return _table_rows(path, text, ",")
        case ".tsv":
            return _table_rows(path, text, "\t")
        case ".json":
            return _json_rows(path, text, setting)
        case _:
            return _line_rows(path, text)


def _line_rows(path: Path, text: str) -> Rows:
    """JSONL: an object on every line that is not blank."""
    rows = []
    # not splitlines(): it also splits at characters such as U+2028, which JSON strings may hold unescaped
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((f"{path}:{number}", json.loads(line)))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})") from None
    return rows


def _json_rows(path: Path, text: str, setting: str) -> Rows:
    """JSON: a list of objects, or one object that holds it; else as JSONL, which some files of this ending are."""
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("["):
            raise InputError(f"{path}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno})") from None
        return _line_rows(path, text)
    if isinstance(whole, list):
        return number_rows(str(path), whole)
    lists = [name for name, value in whole.items() if _is_table(value)] if isinstance(whole, dict) else []
    if not lists or any(name in whole for name in USUAL["problem"]):  # one problem
        return [(f"{path}:1", whole)]
    if len(lists) > 1:
        raise InputError(
            f"{setting} = {path}: one object with the lists {', '.join(lists)}; which of them holds the problems is "
            f"not said, so give a file with one list"
        )
    return number_rows(f"{path} {lists[0]}", whole[lists[0]])


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _table_rows(path: Path, text: str, delimiter: str) -> Rows:
    """CSV or TSV with the columns' names in its first row; an empty cell is None."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(len(text) + 1)
    try:
        return _cells(path, reader)
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV ({error}); quote the cell") from None
    finally:
        csv.field_size_limit(limit)


def _cells(path: Path, reader: Any) -> Rows:
    header: list[str] = []
    rows, line = [], 1
    for cells in reader:
        place, line = f"{path}:{line}", reader.line_num + 1
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = [cell.strip() for cell in cells]
            if len({*header}) < len(header) or "" in header:
                raise InputError(f"{place}: the first row must name every column once, and is {header}; mend it")
        elif len(cells) != len(header):
            raise InputError(
                f"{place}: {len(cells)} cells, but {len(header)} columns in the first row; put quotes around a cell "
                f"with a separator or a line break in it"
            )
        else:
            rows.append((place, {name: cell or None for name, cell in zip(header, cells)}))
    return rows
