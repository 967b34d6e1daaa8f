"""The process that an answer runs in.

    python -S answer.py FILE SECONDS MEMORY_BYTES [READ WRITE]

FILE is the answer's code. With two file numbers, of pipes, the code is loaded as a module and does what is asked over
them; it never holds the tests. Without, it runs as a program on its stdin and stdout, after one byte on stderr.
"""

from __future__ import annotations

import operator
import os
import sys
import types

TYPE_CHECKING = False  # importing typing would take a quarter of the start
if TYPE_CHECKING:
    from typing import Any

    from .confine import confine, limit
    from .peer import GoneError, Peer
else:  # a script has its own folder's modules beside it
    from confine import confine, limit
    from peer import GoneError, Peer


def load(code: str, name: str) -> types.ModuleType:
    """The code, run as a module of that name."""
    module = types.ModuleType(name)
    sys.modules[name] = module  # dataclasses and pickle look for it
    exec(compile(code, "answer.py", "exec", dont_inherit=True), module.__dict__)
    return module


def names_of(code: str, wanted: list[str]) -> dict[str, Any]:
    """What the code defines of the names that are wanted."""
    defined = vars(load(code, "answer"))
    return {name: defined[name] for name in wanted if name in defined}


def callback(peer: Peer, number: int) -> Any:
    """A function of the tests."""

    def call(*given: Any, **named: Any) -> Any:
        return peer.ask("call", call, *given, **named)

    return call


def main() -> None:
    file, seconds, memory_bytes, *pipes = sys.argv[1:]
    with open(file, encoding="utf-8", newline="") as source:
        code = source.read()
    del sys.path[0]
    ends = (os.fdopen(int(pipes[0]), "rb"), os.fdopen(int(pipes[1]), "wb")) if pipes else None
    nowhere = os.open(os.devnull, os.O_RDWR)
    limit(float(seconds), int(memory_bytes))
    confine()
    if ends is None:
        os.write(2, b"r")
        os.dup2(nowhere, 2)
        load(code, "__main__")
        return
    operations = {
        "names": lambda wanted: names_of(code, wanted),
        "call": lambda function, /, *given, **named: function(*given, **named),
        "getattr": getattr,
        "setattr": setattr,
        "getitem": operator.getitem,
        "setitem": operator.setitem,
        "iter": iter,
        "next": next,
        "len": len,
        "str": str,
        "repr": repr,
    }
    peer = Peer(*ends, operations, callback, lambda value: True)
    peer.send("ready")
    try:
        peer.serve()
    except GoneError:
        os._exit(0)


if __name__ == "__main__":
    main()
