"""The tokens that a student and its teachers share: one scores the other's, so an id must mean the same to both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import InputError

SHOWN = 10
"""Tokens that an error, or a line about tokens that are left out, names."""


@dataclass(frozen=True)
class SharedVocabulary:
    """What is left of a student's vocabulary where a teacher lacks some of its tokens, or has more."""

    size: int
    """The ids below this one are the same token for all models. Nothing else is written or learned."""
    left_out: tuple[str, ...]
    """The tokens that only some of the models have."""

    def describe(self) -> str:
        """One line for the start of a run."""
        more = f" and {len(self.left_out) - SHOWN} more" if len(self.left_out) > SHOWN else ""
        return (
            f"student and teacher share {self.size} token ids; left out on both sides: "
            f"{', '.join(map(repr, self.left_out[:SHOWN]))}{more}"
        )

    def check_ids(self, ids: tuple[int, ...], text: str, role: str) -> None:
        """Raises InputError for a text with a token that one of the models does not know. text: what it is."""
        odd = next((i for i in ids if i >= self.size), None)
        if odd is not None:
            raise InputError(
                f"{role}.path: {text} has the id {odd}, which is not among the {self.size} ids that student and "
                f"teacher share; take its token out of the template or the problem, or choose a teacher with the "
                f"student's added tokens"
            )

    def check_stop_ids(self, stop_ids: tuple[int, ...]) -> None:
        """Raises InputError for an end of the answer that the student could never write."""
        if all(i >= self.size for i in stop_ids):
            raise InputError(
                f"rollout.stop_ids = {list(stop_ids)}: student and teacher share only the ids below {self.size}, so no "
                f"answer could end; set rollout.stop_ids=[ID] to one of those"
            )


def shared_vocabulary(
    student: PreTrainedTokenizerBase, teachers: Mapping[str, PreTrainedTokenizerBase]
) -> SharedVocabulary | None:
    """What all models share; None where they have the same tokens. teachers: by their names in the settings.

    Models may differ in added tokens behind the shared ones. Raises InputError for any other difference.
    """
    ours, added = student.get_vocab(), _added(student)
    sizes, left_out = [], set[str]()
    for role, teacher in teachers.items():
        theirs = teacher.get_vocab()
        if ours == theirs:
            continue
        differing = _differing(ours, theirs)
        first, _ = differing[0]
        behind = {token for ids in (ours, theirs) for token, number in ids.items() if number >= first}
        moved = any(token in ours and token in theirs for _, token in differing)
        if moved or not behind <= added | _added(teacher):
            raise InputError(_unlike(ours, theirs, [token for _, token in differing], role))
        sizes.append(first)
        left_out |= behind
    return SharedVocabulary(min(sizes), tuple(sorted(left_out))) if sizes else None


def _added(tokenizer: Any) -> set[str]:
    """The tokens that have been added to a tokenizer."""
    return set(tokenizer.get_added_vocab())


def _differing(ours: Mapping[str, int], theirs: Mapping[str, int]) -> list[tuple[int, str]]:
    """(lowest id, token) of the tokens that have not the same id in both, in this order."""
    odd = {token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)}
    return sorted((min(ids[token] for ids in (ours, theirs) if token in ids), token) for token in odd)


def _unlike(ours: Mapping[str, int], theirs: Mapping[str, int], odd: Sequence[str], role: str) -> str:
    """The message about tokens, in order of their ids, that differ."""
    shown = ", ".join(f"{t!r} ({ours.get(t, 'absent')}, {theirs.get(t, 'absent')})" for t in odd[:SHOWN])
    return (
        f"{role}.path: its vocabulary ({len(theirs)} tokens) is not the student's ({len(ours)} tokens): {len(odd)} "
        f"tokens differ by more than added tokens at the end. The first of them, with their ids for student and "
        f"teacher: {shown}. Choose a teacher with the student's tokenizer, of the same family; or let this one write "
        f"solutions beforehand and learn from their text (rollout.on_policy=0 with objective.kind=nll)"
    )
