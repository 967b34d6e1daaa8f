"""One prompt as each role sees it, and how the roles' prompts differ: what a run says before its first step."""

from collections.abc import Mapping, Sequence

from ..config import TrainConfig
from ..data.prompts import Prompt
from ..data.templates import View

LONGEST = 1_000
"""Characters of a prompt that are shown; of a longer one the middle is left out."""


def shown_prompts(config: TrainConfig, prompts: Sequence[Prompt], views: Mapping[str, View]) -> dict[str, str]:
    """The first prompt of each role with its special tokens, by role; a teacher that sees what the student sees is left
    out. views: by role."""
    decode = views["student"].tokenizer.decode
    found = {"student": str(decode(list(prompts[0].ids)))}
    for number, role in enumerate(config.teacher_roles):
        prompt = _first_of(prompts, number)
        if prompt.teacher_ids != prompt.ids:
            found[role] = str(decode(list(prompt.teacher_ids)))
    return found


def differences(config: TrainConfig, prompts: Sequence[Prompt], views: Mapping[str, View]) -> list[str]:
    """One line for each way in which a teacher's prompts differ from the student's in thinking, or end otherwise."""
    lines, ours = [], views["student"]
    for number, role in enumerate(config.teacher_roles):
        problem, theirs = _first_of(prompts, number).problem, views[role]
        ends = ours.ending(problem), theirs.ending(problem)
        if ends[0] != ends[1]:
            lines.append(f"{role}: its prompt ends with {ends[1]!r}, the student's with {ends[0]!r}")
        thinking = _thinking(ours, ends[0]), _thinking(theirs, ends[1])
        if thinking[0] != thinking[1]:
            lines.append(f"{role}: thinking differs: its prompt has {thinking[1]}, the student's {thinking[0]}")
    return lines


def lines_of(shown: Mapping[str, str], different: Sequence[str], taught: bool = True) -> list[str]:
    """What the terminal gets of both. taught: whether there is a teacher."""
    lines = []
    for role, text in shown.items():
        lines += [f"a prompt as {role} sees it:", _shortened(text)]
    if taught and len(shown) == 1:
        lines.append("the teacher sees the same")
    return lines + list(different)


def _first_of(prompts: Sequence[Prompt], number: int) -> Prompt:
    """The first prompt of a teacher. number: among several; with one teacher prompts name none."""
    return next(prompt for prompt in prompts if prompt.teacher in (None, number))


def _thinking(view: View, ending: str) -> str:
    """Where a prompt leaves its reader: by the last tag of its end, and the arguments that name thinking."""
    opened, closed = ending.rfind("<think>"), ending.rfind("</think>")
    place = "no thought" if opened == closed else "an open thought" if opened > closed else "a closed thought"
    args = view.chat.args if view.chat is not None else {}
    named = [f"{name} = {value}" for name, value in sorted(args.items()) if "think" in name or "reason" in name]
    return ", ".join([place, *named])


def _shortened(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"
