"""Which column of a file holds what: as `prompts.columns` says, by our names, else by usual ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config.sources import COLUMNS, USUAL
from ..errors import InputError
from .rows import Rows


@dataclass(frozen=True)
class Found:
    """The columns of a file."""

    names: Mapping[str, str]
    """Ours -> the file's, of those that it has."""
    setting: str | None
    """The setting that renames them, such as prompts.columns; None where there is none."""
    passed_over: Mapping[str, Sequence[str]]
    """Ours -> others of the file's by usual names, which are not read."""
    given: Mapping[str, str]
    """What the setting says."""

    @property
    def mend(self) -> str:
        """What a user can do who has other names."""
        return "rename one of them to `problem`" if self.setting is None else f"rename with {self.setting}"

    def describe(self) -> str:
        """Such as "problem from `question`, answer from `label`"."""
        parts = [self._part(name) for name in ("problem", "answer", "solution") if name in self.names]
        return ", ".join([*parts, *([] if "answer" in self.names else ["no answers"])])

    def _part(self, name: str) -> str:
        others = " or ".join(f"`{other}`" for other in self.passed_over.get(name, ()))
        return f"{name} from `{self.names[name]}`" + (f" (not {others})" if others else "")


def find_columns(rows: Rows, given: Mapping[str, str], setting: str | None) -> Found:
    """given: ours -> the file's, which comes first. setting: that gives them, if one does.

    Raises InputError for a given column that no row has, and for a problem that stands in two columns.
    """
    named, filled = _present(rows)
    for ours, theirs in given.items():
        if named and theirs not in named:
            name = f"{setting}.{ours}" if setting else f"column of `{ours}`"
            raise InputError(f"{name} = {theirs!r}: no row has this column; the columns are {sorted(named)}")
    names, passed = dict(given), {}
    for ours in COLUMNS:
        usual = [n for n in USUAL.get(ours, (ours,)) if n in filled and (n == ours or n not in given.values())]
        if ours not in given and usual:
            names[ours] = usual[0]
            passed[ours] = usual[1:]
    if names.get("problem") == "instruction" and "problem" not in given and "input" in filled:
        raise InputError(
            f"{setting or rows[0][0]}: rows have text in `instruction` and in `input`, so neither is the problem; join "
            f"them into one column `problem`"
        )
    return Found(names, setting, passed, given)


def _present(rows: Rows) -> tuple[set[str], set[str]]:
    """Names of the columns that a row has, and of those that one has something in; of objects their parts too."""
    named: set[str] = set()
    filled: set[str] = set()
    for _, row in rows:
        for name, value in row.items() if isinstance(row, dict) else ():
            parts = {f"{name}.{part}": each for part, each in value.items()} if isinstance(value, dict) else {}
            for each, content in {name: value, **parts}.items():
                named.add(each)
                if not _empty(content):
                    filled.add(each)
    return named, filled


def value_of(row: Mapping[str, Any], column: str | None) -> Any:
    """What a row has in a column, or in a part of it: `reward_model.ground_truth`. None for nothing."""
    if column is None:
        return None
    value = row.get(column)
    if column not in row and "." in column:
        name, _, part = column.partition(".")
        inside = row.get(name)
        value = inside.get(part) if isinstance(inside, dict) else None
    return None if _empty(value) else value


def _empty(value: Any) -> bool:
    """Whether a cell has nothing in it. Tables that pandas wrote have "not a number" there."""
    return value is None or value == "" or value != value
