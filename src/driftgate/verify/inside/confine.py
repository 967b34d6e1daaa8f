"""What a process gives up before it runs code that a model wrote: memory, time, files, the network, other processes."""

from __future__ import annotations

import _thread
import os
import resource
import sys

TYPE_CHECKING = False  # importing typing would take a quarter of the start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

REFUSED = 99
"""Exit status of a process that tried what is refused."""
LARGEST_FILE = 2**24
OPEN_FILES = 64

_HARMLESS = frozenset(
    (
        "array.__new__",
        "builtins.id",
        "builtins.input",
        "builtins.input/result",
        "compile",
        "cpython.PyInterpreterState_Clear",
        "cpython._PySys_ClearAuditHooks",
        "exec",
        "function.__new__",
        "marshal.load",
        "marshal.loads",
        "object.__delattr__",
        "object.__getattr__",
        "object.__setattr__",
        "os.putenv",
        "os.unsetenv",
        "pickle.find_class",
        "sys._getframe",
        "sys._getframemodulename",
        "sys.excepthook",
        "sys.set_asyncgen_hooks_finalizer",
        "sys.set_asyncgen_hooks_firstiter",
        "sys.unraisablehook",
        "time.sleep",
    )
)
"""Audit events of Python that reach nothing outside the process. All others are refused, or looked at."""
_MODULES = frozenset(
    (
        "_ctypes",
        "_interpreters",
        "_multiprocessing",
        "_posixshmem",
        "_posixsubprocess",
        "_testcapi",
        "_testinternalcapi",
        "_xxsubinterpreters",
        "ctypes",
    )
)
"""Modules that start processes, share memory or call C without an audit event."""
_UNAUDITED = (
    "chroot",
    "mkfifo",
    "mknod",
    "pidfd_open",
    "sched_setaffinity",
    "sched_setparam",
    "sched_setscheduler",
    "setns",
    "setpriority",
    "unshare",
)
"""Functions of `os` that reach outside without an audit event."""


def limit(seconds: float, memory_bytes: int) -> None:
    """Lower this process's limits for good. Seconds of CPU are rounded up, and one more: the parent's clock is the
    limit, this one holds should the parent be gone."""
    cpu = int(seconds) + 2
    for name, value in {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": cpu,
        "RLIMIT_FSIZE": LARGEST_FILE,
        "RLIMIT_NOFILE": OPEN_FILES,
        "RLIMIT_NPROC": 0,
        "RLIMIT_AS": memory_bytes,
    }.items():
        try:  # noqa: SIM105  (contextlib takes time to import)
            resource.setrlimit(getattr(resource, name), (value, value))
        except (ValueError, OSError, AttributeError):
            pass  # macOS refuses to bound the address space; a lower hard limit set from outside stands as it is


def confine() -> None:
    """From here on the process ends with REFUSED when it opens a file outside its folder and Python's own, or writes
    one outside its folder; starts a process or thread; uses a socket; or does anything that Python audits and that is
    not known to be harmless.

    It ends, without an exception: the frames of an exception would show the hook to the code that it holds. The hook
    reads its own arguments alone, so that nothing that the code changes reaches it.
    """
    sys.dont_write_bytecode = True
    for name in _UNAUDITED:
        if hasattr(os, name):
            delattr(os, name)
            delattr(sys.modules["posix"], name)
    _thread.start_new_thread = _thread.start_new = _no_thread
    sys.addaudithook(_hook(_opener(os.path.realpath(os.getcwd()), tuple(path.rstrip("/") + "/" for path in sys.path))))


def _no_thread(*_: Any, tell: Any = sys.audit) -> None:
    tell("_thread.start_new_thread")  # Python 3.11 does not tell by itself


def _opener(folder: str, library: tuple[str, ...]) -> Callable[[Any, bool], bool]:
    """Whether a path may be opened. library: folders that may be read, with a final slash."""

    def may_open(
        path: Any,
        writing: bool,
        own: tuple[str, ...] = (folder, "/dev/null"),
        inside: str = folder + "/",
        library: tuple[str, ...] = library,
        random: str = "/dev/urandom",
        kinds: Any = (type, int, bytes, str),
    ) -> bool:
        kind = kinds[0](path)
        if path is None or kind is kinds[1]:
            return True  # its own folder, or a file that is open
        if kind is kinds[2]:
            path = path.decode("utf-8", "surrogateescape")
        elif kind is not kinds[3]:
            return False
        if ".." in path:
            return False
        if path[:1] != "/" or path in own or path.startswith(inside):
            return True
        return not writing and (path.startswith(library) or path + "/" in library or path == random)

    return may_open


def _hook(may_open: Callable[[Any, bool], bool]) -> Callable[[str, tuple[Any, ...]], None]:
    def hook(
        event: str,
        given: tuple[Any, ...],
        may_open: Any = may_open,
        harmless: frozenset[str] = _HARMLESS,
        modules: frozenset[str] = _MODULES,
        writes: int = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
        kinds: Any = (type, str, BaseException),
        leave: Any = os._exit,
        status: int = REFUSED,
    ) -> None:
        try:
            if event in harmless:
                return
            if event == "open":
                allowed = may_open(given[0], (given[2] & writes) != 0)
            elif event == "os.listdir" or event == "os.scandir":
                allowed = may_open(given[0], False)
            elif event == "import" and kinds[0](given[0]) is kinds[1] and given[0] not in modules:
                # a file is named for a module in C alone, and that has to be Python's own
                allowed = given[1] is None or (may_open(given[1], False) and not may_open(given[1], True))
            else:
                allowed = False
            if allowed is True:
                return
        except kinds[2]:
            pass
        leave(status)

    return hook
