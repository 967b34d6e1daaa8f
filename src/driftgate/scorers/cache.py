"""Scores written once and read again, keyed by all that they depend on.

Shapes: B sequences, N valid response tokens of the batch, n of those that are scored.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..data.experience import Experience
from ..errors import InputError, RunError
from ..method.scores import Needs, TokenScores
from ..world import World
from .scorer import Scorer

FORMAT = 1
"""Of the files. Another number makes other keys."""


class CachedScorer:
    """A teacher's scorer whose scores are read where its folder has them, else computed and written there.

    One file holds what one call scores: a rollout batch, or of several teachers one's part of it. So what is read are
    the very bits that scoring in this layout would give.
    """

    def __init__(self, scorer: Scorer, folder: Path, identity: Mapping[str, Any], world: World, setting: str):
        """identity: what the scores depend on besides the batch: the model, the temperature, the layout of forwards.
        setting: the name that messages call the folder by. Raises InputError for a folder that cannot be made."""
        self.setting = f"{setting} = {folder}"
        self.scorer, self.folder, self.identity, self.world = scorer, folder, dict(identity), world
        self.can = scorer.can & Needs(True, True, 10**9, True)
        """Without hidden states, which would fill the disk."""
        self.hits = 0
        """Responses whose scores have been read since `take_hits`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.setting}: is no folder and cannot be made ({error.strerror}); choose another"
            ) from None

    def score(self, batch: Experience, needs: Needs, groups: Iterable[Sequence[int]] | None = None) -> TokenScores:
        """See `Scorer.score`. Raises RunError where scores cannot be written."""
        groups = [list(group) for group in ([range(len(batch.responses))] if groups is None else groups)]
        sequences = sorted(i for group in groups for i in group)
        tokens = batch.tokens_of(sequences)
        if not len(tokens):
            return self.scorer.score(batch, needs, groups)
        path = self.folder / f"{key_of(batch, needs, groups, self.identity)}.safetensors"
        if (found := self._agreed(path)) is not None:
            self.hits += len(sequences)
            return _spread(found, tokens, len(batch.ids))
        scores = self.scorer.score(batch, needs, groups)
        if self.world.rank == 0:
            try:
                write(path, {name: value[tokens].contiguous() for name, value in scores.items()})
            except (OSError, SafetensorError) as error:
                raise RunError(
                    f"{self.setting}: cannot be written to ({error}); free disk space, or set it to null"
                ) from None
        return scores

    def take_hits(self) -> int:
        """Responses whose scores have been read since the last call."""
        count, self.hits = self.hits, 0
        return count

    def _agreed(self, path: Path) -> dict[str, Tensor] | None:
        """What a file holds, where all ranks read the same; else None on all of them."""
        found, digest = read(path, say=self.world.rank == 0)
        same = len(set(self.world.share(digest))) == 1
        return found if same and digest is not None else None


def key_of(batch: Experience, needs: Needs, groups: Sequence[Sequence[int]], identity: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of all that scores depend on: identity, needs, the sequences with the teacher's prompts, which
    of their tokens are in the stream, how they are grouped, and the ids that the student chose, where these are
    scored."""
    sequences = sorted(i for group in groups for i in group)
    place = {sequence: number for number, sequence in enumerate(sequences)}
    parts = [[place[i] for i in group] for group in groups]
    head = [FORMAT, sorted(identity.items()), asdict(needs), parts]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    tensors = [t for i in sequences for t in (batch.teacher_prompts[i], batch.responses[i], batch.keep[i])]
    if needs.at_ids:
        tensors.append(batch.readable("student_top_ids")[batch.tokens_of(sequences)])
    for tensor in tensors:
        _add(digest, tensor)
    return digest.hexdigest()


def read(path: Path, say: bool) -> tuple[dict[str, Tensor] | None, str | None]:
    """The tensors [n, ...] of a file, by name, with their digest; (None, None) where there is none. A file that is
    broken is removed. say: tell the user so."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            digest = (file.metadata() or {}).get("sha256")
    except FileNotFoundError:
        return None, None
    except (SafetensorError, OSError) as error:
        found, digest, why = {}, None, str(error).splitlines()[0]
    else:
        why = "its numbers are not those that were written"
    if digest is not None and digest == digest_of(found):
        return found, digest
    if say:
        print(f"driftgate: {path}: is broken ({why}), so these responses are scored anew", file=sys.stderr, flush=True)
    with suppress(OSError):
        path.unlink()
    return None, None


def write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole or not at all; where another process was first, its file stays."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        save_file(dict(tensors), partial, metadata={"sha256": digest_of(tensors)})
        if not path.exists():
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hex, of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        _add(digest, tensor)
    return digest.hexdigest()


def _add(digest: Any, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def _spread(found: Mapping[str, Tensor], tokens: Tensor, count: int) -> TokenScores:
    """[n, ...] at their places among N rows, 0 elsewhere, as a scorer gives them."""
    whole = {name: torch.zeros(count, *value.shape[1:], dtype=value.dtype) for name, value in found.items()}
    for name, value in found.items():
        whole[name][tokens] = value
    return TokenScores(**whole)
