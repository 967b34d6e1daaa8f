"""A function of the user's."""

from ..config.verify import FunctionSettings
from ..errors import InputError, RunError
from .process import JudgeProcess
from .verifier import Verifier


class Function(Verifier):
    """Right where the user's function, called with (text, answer), returns True.

    It runs in a worker, which imports its module once. A call that overruns, ends the worker, raises, or returns
    anything but True or False is wrong; the worker counts these, and the first error is shown. The limits guard a run
    against accidents: the function is trusted, and may do whatever the user may.
    """

    votes = False

    def __init__(self, settings: FunctionSettings) -> None:
        self.path = settings.path
        memory_bytes = int(settings.memory_gib * 2**30)
        self.worker = JudgeProcess(["function", settings.path], [], settings.seconds, memory_bytes)
        self._tried = False

    def __exit__(self, *error: object) -> None:
        self.worker.close()

    def check(self, gold: str) -> None:
        """One trial, on the first answer and an empty response. Raises InputError where the function cannot be
        imported, raises, overruns, or returns anything but True or False."""
        if self._tried:
            return
        self._tried = True
        try:
            self.worker.ask("", gold)
        except RunError as error:
            raise InputError(f"verify.path = {self.path}: {error}") from None
        if self.worker.errors:
            raise InputError(f"verify.path = {self.path}: fails on an empty response: {self.worker.error}")
        if self.worker.overruns or self.worker.deaths:
            raise InputError(
                f"verify.path = {self.path}: gave no verdict on an empty response within verify.seconds = "
                f"{self.worker.limit_s:g}, or ended its process; make it faster, or raise seconds or memory_gib"
            )

    def grade(self, text: str, gold: str | None) -> bool:
        return gold is not None and self.worker.ask(text, gold)
