"""No circle of imports between rooms; files and functions that can be read at a sitting."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "driftgate"
LONGEST_FILE, LONGEST_FUNCTION = 350, 45
SOURCES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("benchmarks", "docs", "examples", "experiments", "tests")
ELSEWHERE = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]


def room_of(path):
    """A folder of the package, or a file beside the folders."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_rooms(path):
    """The rooms that a file imports, in functions too."""
    folder = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = tuple((node.module or "").split(".")) if node.module else ()
        if node.level:
            target = folder[: len(folder) - node.level + 1] + module
        elif module[:1] == ("driftgate",):
            target = module[1:]
        else:
            continue
        yield from (target[:1] if target else [alias.name for alias in node.names if not alias.name.startswith("__")])


def arrows():
    """room -> room it imports -> a file that does."""
    found = {}
    for path in SOURCES:
        if path.parent == PACKAGE and path.stem.startswith("__"):
            continue
        for room in imported_rooms(path):
            if room != room_of(path):
                found.setdefault(room_of(path), {}).setdefault(room, str(path.relative_to(PACKAGE)))
    return found


def reached(found, room):
    seen, left = set(), [room]
    while left:
        new = set(found.get(left.pop(), {})) - seen
        seen |= new
        left += new
    return seen


def test_no_arrow_between_rooms_runs_back():
    found = arrows()
    back = [
        f"{room} -> {other} ({path})"
        for room, others in found.items()
        for other, path in others.items()
        if room in reached(found, other)
    ]
    assert not back, "these imports close a circle of rooms: " + ", ".join(back)


@pytest.mark.parametrize("room", ["method", "keyed", "files", "errors", "settings", "progress", "stop", "horizon"])
def test_the_lowest_rooms_know_nobody(room):
    assert not arrows().get(room)


def test_the_map_in_contributing_is_true():
    """Every room stands in the table, below all rooms that it imports."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2].partition("Recipes are in")[0]
    lines = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    place = {room: number for number, line in enumerate(lines) for room in re.findall(r"`(\w+)`", line)}
    rooms = {room_of(path) for path in SOURCES if not room_of(path).startswith("__")}
    assert place.keys() == rooms
    wrong = [
        f"{room} -> {other}" for room, others in arrows().items() for other in others if place[other] > place[room]
    ]
    assert not wrong, "these arrows run against the map: " + ", ".join(wrong)


@pytest.mark.parametrize("path", [*SOURCES, *ELSEWHERE], ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_can_be_read_at_a_sitting(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST_FILE
    functions = [
        node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = [
        f"{f.name}: {f.end_lineno - f.lineno + 1} lines"
        for f in functions
        if f.end_lineno - f.lineno >= LONGEST_FUNCTION
    ]
    assert not long, ", ".join(long)
