"""The teachers of a run: their tokenizers, and the scorer that they make together."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..models import load
from ..models.policy import Policy
from ..scorers.cache import CachedScorer
from ..scorers.routed import RoutedScorer
from ..scorers.scorer import Scorer
from ..world import World


def teachers_tokenizers(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, PreTrainedTokenizerBase]:
    """Each teacher's, by its role. Raises InputError for a vocabulary that is not the student's."""
    found = {role: load.load_tokenizer(config.teacher_model(role), role) for role in config.teacher_roles}
    for role, theirs in found.items():
        load.check_vocabularies(tokenizer, theirs, role)
    return found


def cached(
    config: TrainConfig,
    scorers: Mapping[str, Scorer],
    targets: Mapping[str, Policy],
    fingerprints: Mapping[str, str],
    world: World,
) -> dict[str, Scorer]:
    """The same; those of teachers with a cache read what has been scored before. fingerprints: on rank 0 alone. Raises
    InputError for a folder that cannot be made."""
    folders = {role: Path(each.cache) for role, each in config.teacher_roles.items() if each.cache is not None}
    if not folders:
        return dict(scorers)
    known, found = world.share(dict(fingerprints))[0], dict(scorers)
    for role, folder in folders.items():
        identity = {
            "model": known[role],
            "vocabulary": targets[role].vocabulary_size,
            "temperature": config.rollout.temperature,
            "microbatch_tokens": config.microbatch_tokens,
            "ranks": world.size,
        }
        found[role] = CachedScorer(scorers[role], folder.expanduser(), identity, world, f"{role}.cache")
    return found


def routed(config: TrainConfig, scorers: Mapping[str, Scorer]) -> dict[str, Scorer]:
    """The same, with one scorer under "teacher" in place of several teachers' own."""
    if not config.teachers:
        return dict(scorers)
    kept = {name: scorer for name, scorer in scorers.items() if name not in config.teacher_roles}
    return kept | {"teacher": RoutedScorer([scorers[role] for role in config.teacher_roles])}


def caches_of(scorers: Mapping[str, Scorer]) -> list[CachedScorer]:
    """Those of the teachers that have one."""
    teacher = scorers["teacher"]
    every = teacher.scorers if isinstance(teacher, RoutedScorer) else [teacher]
    return [scorer for scorer in every if isinstance(scorer, CachedScorer)]


def cache_hits(scorers: Mapping[str, Scorer]) -> dict[str, float]:
    """Responses whose teacher's scores were read since the last call; empty without a cache."""
    caches = caches_of(scorers)
    return {"teacher_cache_hits": sum(cache.take_hits() for cache in caches)} if caches else {}
