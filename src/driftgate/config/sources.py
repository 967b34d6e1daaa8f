"""Where the problems of a run come from, as settings: the columns of a file, and one source of a mixture."""

import difflib
import re
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from ..settings import Settings
from .verify import VerifySettings

COLUMNS = ("id", "problem", "answer", "solution", "teacher")
"""What is read of a row."""
USUAL = {
    "problem": ("problem", "prompt", "question", "messages", "instruction", "query"),
    "answer": (
        "answer",
        "final_answer",
        "expected_answer",
        "ground_truth",
        "reward_model.ground_truth",
        "label",
        "target",
    ),
    "solution": ("solution", "response", "completion", "output"),
}
"""Names under which each of ours is looked for. The first that a row has something in is taken."""


def _known_columns(columns: dict[str, str]) -> dict[str, str]:
    for name, theirs in columns.items():
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            if theirs in COLUMNS:
                hint = f"; our name comes first: write {{{theirs}: {name}}}."
            raise ValueError(f"{name} is not read of a row{hint or '.'} There are {', '.join(COLUMNS)}")
    return columns


Columns = Annotated[dict[str, str], AfterValidator(_known_columns)]
"""Our name -> the file's."""


class SourceSettings(Settings):
    """One source of a mixture."""

    path: str
    """As `prompts.path`."""
    weight: PositiveFloat = 1.0
    """Its part of the prompts, in proportion to the weights of the other sources."""
    columns: Columns = Field(default={})
    """As `prompts.columns`."""
    limit: PositiveInt | None = None
    """As `prompts.limit`."""
    teacher: str | None = None
    """Which of `teachers` its problems have, where their column `teacher` names none."""
    verify: VerifySettings | None = None
    """What decides whether a response to its problems is right; null: `prompts.verify`."""


def _plain_names(sources: dict[str, SourceSettings]) -> dict[str, SourceSettings]:
    for name in sources:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"a source's name is made of letters, digits, - and _, not {name!r}; choose another")
    return sources


Mix = Annotated[dict[str, SourceSettings], AfterValidator(_plain_names)]
"""Sources by name."""
