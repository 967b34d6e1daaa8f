"""The tests of a problem, read from its answer: Python with assertions, or input and output of a program."""

import ast
import builtins
import json
import symtable
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_BUILT_IN = frozenset(dir(builtins))


@dataclass(frozen=True)
class Assertions:
    """Python that raises where an answer is wrong."""

    source: str
    names: tuple[str, ...]
    """What the response has to define: names that are read and neither defined by the tests nor built in."""
    modules: tuple[str, ...]
    """Modules of the standard library whose attributes are read and that the tests do not import."""


@dataclass(frozen=True)
class Programs:
    """(input, output) pairs: what a program reads, and what it must write."""

    pairs: tuple[tuple[str, str], ...]


def read_tests(answer: str) -> Assertions | Programs:
    """Raises ValueError for what is no test, or passes whatever the response is."""
    value = _literal(answer)
    if value is None:
        return _assertions(answer)
    if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
        return _assertions("\n".join(value))
    return Programs(tuple(_pairs(value)))


def _literal(text: str) -> Any:
    """The value of JSON, or of a list or dict of Python; None for anything else."""
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if isinstance(value, list | dict) else None
    return None


def _pairs(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value.keys() == {"inputs", "outputs"}:
        given, wanted = value["inputs"], value["outputs"]
        if isinstance(given, list) and isinstance(wanted, list) and len(given) == len(wanted):
            value = [{"input": one, "output": other} for one, other in zip(given, wanted)]
    for pair in value if isinstance(value, list) else [None]:
        match pair:
            case {"input": str(one), "output": str(other)} if len(pair) == 2:
                yield one, other
            case _:
                raise ValueError(
                    'holds no tests: give assertions, or [{"input": text, "output": text}, ...], or texts of equal '
                    'number in {"inputs": [...], "outputs": [...]}'
                )
    if not value:
        raise ValueError("holds no tests")


def _assertions(source: str) -> Assertions:
    try:
        tree = ast.parse(source)
        free = _free(symtable.symtable(source, "tests", "exec"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"is no Python ({' '.join(str(error).split())})") from None
    if not any(isinstance(node, ast.Assert | ast.Raise) for node in ast.walk(tree)):
        raise ValueError("holds no assert: any response would pass")
    if not _runs(tree.body):
        raise ValueError("defines tests that it never calls: call them at the end, as in check(NAME)")
    modules = {name for name in free & sys.stdlib_module_names if name not in _used_as_values(tree)}
    names = {name for name in free - modules - _BUILT_IN if not name.startswith("__")}
    if not names:
        raise ValueError("reads no name that the response could define (one of Python's own names cannot be tested)")
    return Assertions(source, tuple(sorted(names)), tuple(sorted(modules)))


def _free(table: symtable.SymbolTable, bound: frozenset[str] | None = None) -> set[str]:
    """Global names that are read anywhere and set nowhere at the top."""
    if bound is None:
        bound = frozenset(s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported())
    is_module = table.get_type() == "module"
    found = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (is_module or s.is_global())}
    return (found - bound).union(*(_free(child, bound) for child in table.get_children()))


def _used_as_values(tree: ast.AST) -> set[str]:
    """Names that stand anywhere but before a dot."""
    owners = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in owners}


def _runs(body: Sequence[ast.stmt]) -> bool:
    """Whether an assertion, or a call of a function that the tests define, is outside all functions and classes."""
    defined = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    left: list[ast.AST] = list(body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(node, ast.Assert | ast.Raise):
            return True
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
            return True
        left.extend(ast.iter_child_nodes(node))
    return False
