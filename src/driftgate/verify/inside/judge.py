"""The process that the tests of an answer run in. Nothing of the answer runs here.

    python -S judge.py READ WRITE SECONDS MEMORY_BYTES

stdin: {"source": the tests, "names": what they take of the answer, "modules": modules that they use without importing
them}. stdout: "r" when both processes are ready, then "1" for tests that pass, "0" for tests that do not, "g" where the
answer's process is gone.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False  # importing typing would take a quarter of the start
if TYPE_CHECKING:
    from typing import Any

    from .confine import confine, limit
    from .peer import GoneError, Peer
else:  # a script has its own folder's modules beside it
    from confine import confine, limit
    from peer import GoneError, Peer


class Remote:
    """An object of the answer's. It can be called, and has attributes, items, a length and a text.

    It is equal to nothing but itself, has no order, no truth and no arithmetic: these would ask the answer whether the
    answer is right.
    """

    __slots__ = ("_ask",)

    def __init__(self, peer: Peer, number: int) -> None:
        def ask(operation: str, /, *given: Any, **named: Any) -> Any:
            return peer.ask(operation, self, *given, **named)

        object.__setattr__(self, "_ask", ask)

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._ask("call", *given, **named)

    def __getattr__(self, name: str) -> Any:
        return self._ask("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._ask("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._ask("getitem", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("setitem", key, value)

    def __iter__(self) -> Any:
        return self._ask("iter")

    def __next__(self) -> Any:
        return self._ask("next")

    def __len__(self) -> int:
        return self._ask("len")

    def __str__(self) -> str:
        return self._ask("str")

    def __repr__(self) -> str:
        return self._ask("repr")

    def __bool__(self) -> bool:
        raise TypeError("an object of the answer's is neither true nor false; compare plain data")


def passed(tests: dict[str, Any], peer: Peer) -> bytes:
    """The verdict."""
    try:
        defined = peer.ask("names", tests["names"])
        # only what was asked for: the answer must not put its own `abs` or `len` under the tests
        namespace = {"__name__": "tests"} | {name: defined[name] for name in tests["names"] if name in defined}
        namespace |= {name: __import__(name) for name in tests["modules"]}
        exec(compile(tests["source"], "tests", "exec", dont_inherit=True, optimize=0), namespace)
    except GoneError:
        return b"g"
    except BaseException:
        return b"0"
    return b"1"


def main() -> None:
    read, write, seconds, memory_bytes = sys.argv[1:]
    tests = json.load(sys.stdin)
    del sys.path[0]
    ends = os.fdopen(int(read), "rb"), os.fdopen(int(write), "wb")
    verdict = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    limit(float(seconds), int(memory_bytes))
    confine()
    operations = {"call": lambda function, /, *given, **named: function(*given, **named)}
    peer = Peer(*ends, operations, Remote, callable)
    if peer.receive() != ["ready"]:
        return
    os.write(verdict, b"r")
    os.write(verdict, passed(tests, peer))
    os._exit(0)


if __name__ == "__main__":
    main()
