"""Regular expressions, with a limit on time."""

from ..config.verify import RegexSettings, compiled
from .process import JudgeProcess
from .verifier import Verifier

MEMORY_BYTES = 2**30


class Regex(Verifier):
    """Right where Python's re.search finds the pattern in the response: the setting's or, without one, the problem's
    answer. Anchor it with \\A and \\Z to ask for the whole response; flags are written inside: (?i).

    The search runs in a worker. One that overruns is wrong, and nothing else stops: no pattern can hold up a run.
    """

    votes = False

    def __init__(self, settings: RegexSettings) -> None:
        self.pattern, self.needs_answer = settings.pattern, settings.needs_answer
        self.worker = JudgeProcess(["regex"], ["a+b", "xaab"], settings.seconds, MEMORY_BYTES)

    def __exit__(self, *error: object) -> None:
        self.worker.close()

    def check(self, gold: str) -> None:
        if self.pattern is None:
            compiled(gold)

    def grade(self, text: str, gold: str | None) -> bool:
        pattern = gold if self.pattern is None else self.pattern
        return pattern is not None and self.worker.ask(pattern, text)
