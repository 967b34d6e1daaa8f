"""The verifiers of a run: one for all problems, or one for each kind of source in a mixture."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from ..config import PromptSettings
from ..data.prompts import Prompt
from ..data.response import Response
from ..verify.choose import verifier_of
from ..verify.verifier import Verifier
from .records import rollout_rows


class Graders:
    """Use it inside a `with` block, which ends the verifiers' processes. Sources with the same settings share one."""

    def __init__(self, prompts: PromptSettings) -> None:
        every = {name: prompts.verify_of(name) for name in prompts.sources}
        made = {repr(settings): verifier_of(settings) for settings in every.values()}
        self.verifiers: dict[str, Verifier] = {name: made[repr(settings)] for name, settings in every.items()}
        """By source; "" where there is no mixture."""
        self._distinct = list(made.values())
        self._open = ExitStack()

    def __enter__(self) -> "Graders":
        for verifier in self._distinct:
            self._open.enter_context(verifier)
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def of(self, prompt: Prompt) -> Verifier:
        """The verifier of a prompt's responses."""
        return self.verifiers[prompt.problem.source or ""]

    def rows(
        self, prompts: Sequence[Prompt], responses: Sequence[Sequence[Response]], decode: Callable
    ) -> list[dict[str, Any]]:
        """The rows of rollouts/, in the order of the prompts; see `rollout_rows`."""
        graded: dict[int, list[dict[str, Any]]] = {}
        for verifier in self._distinct:
            own = [place for place, prompt in enumerate(prompts) if self.of(prompt) is verifier]
            groups = [responses[place] for place in own]
            rows = iter(rollout_rows([prompts[place] for place in own], groups, decode, verifier))
            graded |= {place: [next(rows) for _ in group] for place, group in zip(own, groups)}
        return [row for place in range(len(prompts)) for row in graded[place]]
