r"""Right or wrong: the last \boxed{} of an answer against the reference.

Only a box counts: a text without one is wrong, whatever else it says. One rule for all references, in this order:

1. Both are plain integers (`canonical_integer`): right if they are the same.
2. The box has the reference's text: right.
3. The bases of numbers, words such as "negative", or the number of answers differ (`marks`): wrong.
4. The reference is a number: the number in the box, without unit and words (`words`), is compared with it.
5. What is then no pair of integers goes to math-verify, in a process of its own (`process`).

Nothing an answer holds may stop the run. Answers are judged one at a time; use one grader from one thread.
"""

from collections.abc import Iterable

from .boxed import LONGEST_ANSWER, answer_of, bare, canonical_integer, last_boxed
from .marks import agree, powers_agree, several
from .process import MathProcess
from .verifier import Verifier
from .words import Number, number_in


class Grader(Verifier):
    """Judges texts against references, inside a `with` block, which ends the worker.

    The worker of math-verify starts with the first answer that needs it. An answer that overruns `limit_s` seconds
    there, or kills the worker by more than `memory_bytes` of memory, is wrong. `math` counts what was asked of it.
    Raises InputError for limits that are not positive, RunError if a worker cannot start.
    """

    def __init__(self, limit_s: float = 5.0, memory_bytes: int = 2 * 2**30) -> None:
        self.math = MathProcess(limit_s, memory_bytes)

    def __exit__(self, *error: object) -> None:
        self.math.close()

    def grade(self, text: str, gold: str | None) -> bool:
        """Whether the last box of the text equals `gold`, given without a box. Never raises for the text."""
        return gold is not None and self._judge(last_boxed(text), gold)

    def grade_many(self, pairs: Iterable[tuple[str, str | None]]) -> list[bool]:
        """One verdict for each (text, gold), in order; equal boxes with equal references are judged once."""
        known: dict[tuple[str | None, str | None], bool] = {}
        verdicts = []
        for text, gold in pairs:
            key = (last_boxed(text), gold)
            if key not in known:
                known[key] = gold is not None and self._judge(key[0], gold)
            verdicts.append(known[key])
        return verdicts

    def answer_of(self, text: str) -> str | None:
        return answer_of(text)

    def _judge(self, content: str | None, gold: str) -> bool:
        """The verdict on the content of a box."""
        if content is None:
            return False
        given, wanted = canonical_integer(content), canonical_integer(gold)
        if given is not None and wanted is not None:
            return given == wanted
        if not bare(content) or len(content) > LONGEST_ANSWER:
            return False
        if bare(content) == bare(gold):
            return True
        if not agree(content, gold):
            return False
        number = None if "=" in gold or several(gold) else number_in(gold)
        if number is None:
            return self.math.equal(bare(content), bare(gold))
        return powers_agree(content, gold) and self._same_number(number_in(content), number)

    def _same_number(self, given: Number | None, wanted: Number) -> bool:
        """Whether the numbers are equal. A percent sign that one of them lacks may mean a hundredth or nothing."""
        if given is None:
            return False
        if self._equal(given.text, wanted.text):
            return True
        if given.percent == wanted.percent:
            return False
        hundredth = [rf"\frac{{{n.text}}}{{100}}" if n.percent else n.text for n in (given, wanted)]
        return self.math.equal(*hundredth)

    def _equal(self, given: str, wanted: str) -> bool:
        """Whether two numbers without words are equal: integers here, others by math-verify."""
        integers = canonical_integer(given), canonical_integer(wanted)
        if None not in integers:
            return integers[0] == integers[1]
        return given == wanted or self.math.equal(given, wanted)
