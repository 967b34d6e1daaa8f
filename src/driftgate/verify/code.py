"""Code that passes its tests."""

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from ..config.verify import CodeSettings
from .code_sandbox import CodeSandbox
from .code_tests import read_tests
from .verifier import Verifier

_BLOCK = re.compile(r"^[ \t]*```([^`\n]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "py", "python", "python3")


class Code(Verifier):
    """Right where the response's Python passes the problem's tests, in processes that are limited (`code_sandbox`).

    The Python is the last fenced block of the response that is marked as Python or not marked; without one, the whole
    response. A block that is not closed goes to the end. Answers run side by side, `workers` at a time.
    """

    votes = False

    def __init__(self, settings: CodeSettings) -> None:
        self.worker = CodeSandbox(settings.seconds, int(settings.memory_gib * 2**30))
        self.workers = settings.workers
        self._tried = False

    def check(self, gold: str) -> None:
        """Raises InputError where answers cannot be run here, by a trial before the first check."""
        read_tests(gold)
        if not self._tried:
            self.worker.try_out()
            self._tried = True

    def grade(self, text: str, gold: str | None) -> bool:
        return self.grade_many([(text, gold)])[0]

    def grade_many(self, pairs: Iterable[tuple[str, str | None]]) -> list[bool]:
        asked = [(code_of(text), gold) for text, gold in pairs]
        distinct = list(dict.fromkeys(asked))
        pool = ThreadPoolExecutor(self.workers)
        try:
            verdicts = dict(zip(distinct, pool.map(self._passes, distinct)))
        finally:
            pool.shutdown(cancel_futures=True)
        return [verdicts[pair] for pair in asked]

    def _passes(self, pair: tuple[str, str | None]) -> bool:
        code, gold = pair
        return gold is not None and bool(code.strip()) and self.worker.passes(code, read_tests(gold))


def code_of(text: str) -> str:
    """The Python of a response."""
    blocks = [code for mark, code in _BLOCK.findall(text) if mark.strip().lower() in _PYTHON]
    return blocks[-1] if blocks else text
