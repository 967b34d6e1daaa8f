"""Calls between two processes that do not trust each other: plain data goes by value, all else stays where it is."""

from __future__ import annotations

import builtins
import json

TYPE_CHECKING = False  # importing typing would take a quarter of the start
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, BinaryIO

LONGEST_MESSAGE = 2**24
_GROUPS = {"l": list, "t": tuple, "s": set, "z": frozenset}


class GoneError(BaseException):
    """The other process has ended, or says nothing that can be read. No `except Exception` of a test catches it."""


class Peer:
    """One end of a pair of pipes.

    operations: what the other end may ask for, by name. proxy: makes, of this peer and a number, what stands here for
    an object of the other end. keeps: whether an object of this end may be known there.

    None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset and dict, and what is derived from these,
    go by value, as exactly these types. Lists, dicts and sets that a call changes are changed at the caller too.
    """

    def __init__(
        self,
        source: BinaryIO,
        sink: BinaryIO,
        operations: Mapping[str, Callable[..., Any]],
        proxy: Callable[[Peer, int], Any],
        keeps: Callable[[Any], bool],
    ) -> None:
        self.source, self.sink = source, sink
        self.operations, self.proxy, self.keeps = operations, proxy, keeps
        self.kept: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._proxies: dict[int, Any] = {}
        self._proxied: dict[int, int] = {}

    def send(self, *message: Any) -> None:
        try:
            self.sink.write(json.dumps(message).encode("ascii") + b"\n")
            self.sink.flush()
        except OSError:
            raise GoneError from None

    def receive(self) -> Any:
        """The next message. Raises GoneError."""
        line = self.source.readline(LONGEST_MESSAGE)
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise GoneError from None

    def ask(self, operation: str, /, *given: Any, **named: Any) -> Any:
        """What the other end's operation returns; raises what it raises, as the built-in exception next to it."""
        self.send("ask", operation, [self.pack(x) for x in given], {name: self.pack(x) for name, x in named.items()})
        while True:
            match self.receive():
                case ["ask", str(wanted), list(packed), dict(by_name)]:
                    self._answer(wanted, packed, by_name)
                case ["return", value, list(changed)]:
                    for place, content in changed:
                        _replace(given[place], self.unpack(content))
                    return self.unpack(value)
                case ["raise", str(name), str(text)]:
                    raise _exception(name, text)
                case _:
                    raise GoneError

    def serve(self) -> None:
        """Answer what the other end asks, until it is gone."""
        while True:
            _, operation, packed, named = self.receive()
            self._answer(operation, packed, named)

    def _answer(self, operation: str, packed: list[Any], named: dict[str, Any]) -> None:
        try:
            given = [self.unpack(x) for x in packed]
            value = self.operations[operation](*given, **{name: self.unpack(x) for name, x in named.items()})
            changed = [[place, now] for place, old in enumerate(packed) if (now := self._changed(given[place], old))]
            reply = ["return", self.pack(value), changed]
        except GoneError:
            raise
        except BaseException as error:
            reply = ["raise", *_described(error)]
        self.send(*reply)

    def _changed(self, value: Any, packed: Any) -> Any:
        """A list, dict or set as it is packed now; None for what is as it was."""
        if not isinstance(packed, list) or packed[0] not in ("l", "d", "s"):
            return None
        return None if (now := self.pack(value)) == packed else now

    def pack(self, value: Any) -> Any:
        """The value as JSON holds it. Raises TypeError for what may not leave this end."""
        match value:
            case None | bool():
                return value
            case str():
                return str.__str__(value)
            case int():
                return ["i", hex(int.__int__(value))]
            case float():
                return ["f", float.hex(value)]
            case complex():
                return ["c", float.hex(value.real), float.hex(value.imag)]
            case bytes():
                return ["b", bytes.hex(value)]
            case dict():
                return ["d", *([self.pack(key), self.pack(content)] for key, content in dict.items(value))]
        for tag, kind in _GROUPS.items():
            if isinstance(value, kind):
                return [tag, *map(self.pack, kind.__iter__(value))]
        if id(value) in self._proxied:
            return ["yours", self._proxied[id(value)]]
        if not self.keeps(value):
            raise TypeError(f"an object of type {type(value).__name__} cannot be given to the answer")
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.kept)
            self.kept.append(value)
        return ["mine", self._numbers[id(value)]]

    def unpack(self, packed: Any) -> Any:
        """The value of what `pack` made. Raises GoneError for anything else."""
        try:
            match packed:
                case None | bool() | str():
                    return packed
                case ["i", digits]:
                    return int(digits, 16)
                case ["f", digits]:
                    return float.fromhex(digits)
                case ["c", real, imaginary]:
                    return complex(float.fromhex(real), float.fromhex(imaginary))
                case ["b", digits]:
                    return bytes.fromhex(digits)
                case ["d", *items]:
                    return {self.unpack(key): self.unpack(content) for key, content in items}
                case ["l" | "t" | "s" | "z" as tag, *items]:
                    return _GROUPS[tag](map(self.unpack, items))
                case ["yours", int(number)] if number >= 0:
                    return self.kept[number]
                case ["mine", int(number)]:
                    return self._proxy(number)
        except (TypeError, ValueError, IndexError, RecursionError):
            pass
        raise GoneError

    def _proxy(self, number: int) -> Any:
        if number not in self._proxies:
            self._proxies[number] = made = self.proxy(self, number)
            self._proxied[id(made)] = number
        return self._proxies[number]


def _replace(old: Any, new: Any) -> None:
    """Give a list, dict or set the content of another."""
    if type(old) is list and type(new) is list:
        old[:] = new
    elif type(old) is type(new) and isinstance(old, dict | set):
        old.clear()
        old.update(new)


def _described(error: BaseException) -> tuple[str, str]:
    """The nearest built-in class of an exception, and its text."""
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        return names[0], str(error)[:1_000]
    except BaseException:
        return names[0], ""


def _exception(name: str, text: str) -> Exception:
    """An exception of that built-in class; a RuntimeError for what is none, or would end the process."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # some want more than a text
            pass
    return RuntimeError(f"{name}: {text}")
