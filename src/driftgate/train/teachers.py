"""The teachers of a run: their tokenizers, and the scorer that they make together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..config import TrainConfig
from ..config.models import TeacherSettings
from ..method.scores import Needs
from ..models import load
from ..models.policy import Policy
from ..scorers.cache import CachedScorer
from ..scorers.routed import RoutedScorer
from ..scorers.scorer import Scorer
from ..scorers.served_teacher import TeacherServers
from ..scorers.server import ServedScorer
from ..world import World
from .scoring import needs_of_run


def teachers_tokenizers(config: TrainConfig) -> dict[str, PreTrainedTokenizerBase]:
    """Each teacher's, by its role."""
    return {role: load.load_tokenizer(config.teacher_model(role), role) for role in config.teacher_roles}


def connected(config: TrainConfig, vocabulary: int, world: World) -> dict[str, ServedScorer]:
    """The scorers of the teachers on servers, by role. vocabulary: ids that student and teachers share. Raises
    InputError for servers that cannot be used."""
    top = needs_of_run(config).get("teacher", Needs()).top
    found = {}
    for role, settings in config.served_teachers.items():

        def connect(role: str = role, settings: TeacherSettings = settings) -> TeacherServers:
            return TeacherServers(settings, role, vocabulary, top)

        found[role] = ServedScorer(connect, world, top)
    return found


def models_of(
    config: TrainConfig, tokenizers: Mapping[str, PreTrainedTokenizerBase], targets: Mapping[str, Policy]
) -> dict[str, tuple[Any, PreTrainedTokenizerBase]]:
    """What says where each teacher ends an answer, by role: its model, or what is known of one on servers; and its
    tokenizer."""
    served = {role: load.declared_generation(config.teacher_model(role), role) for role in config.served_teachers}
    return {role: (served.get(role) or targets[role].model, each) for role, each in tokenizers.items()}


def contexts_of(
    config: TrainConfig, targets: Mapping[str, Policy], served: Mapping[str, ServedScorer]
) -> dict[str, int | None]:
    """Positions of each teacher, by role; None where it does not say."""
    return {
        role: served[role].about.context if role in served else load.context_length(targets[role].model)
        for role in config.teacher_roles
    }


def cached(
    config: TrainConfig,
    scorers: Mapping[str, Scorer],
    student: Policy,
    fingerprints: Mapping[str, str],
    world: World,
) -> dict[str, Scorer]:
    """The same; those of teachers with a cache read what has been scored before. student: what it shares
    with the teachers. fingerprints: on rank 0 alone. Raises InputError for a folder that cannot be made."""
    folders = {role: Path(each.cache) for role, each in config.teacher_roles.items() if each.cache is not None}
    if not folders:
        return dict(scorers)
    known, found = world.share(dict(fingerprints))[0], dict(scorers)
    for role, folder in folders.items():
        identity: dict[str, Any] = {"model": known[role], "vocabulary": student.vocabulary_size}
        if student.stop_group:
            identity["stop_group"] = list(student.stop_group)
        identity["temperature"] = config.rollout.temperature
        if not config.teacher_roles[role].served:  # a server cuts its forwards as it likes
            identity |= {"microbatch_tokens": config.microbatch_tokens, "ranks": world.size}
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
    teacher = scorers.get("teacher")
    every = teacher.scorers if isinstance(teacher, RoutedScorer) else [teacher]
    return [scorer for scorer in every if isinstance(scorer, CachedScorer)]


def cache_hits(scorers: Mapping[str, Scorer]) -> dict[str, float]:
    """Responses whose teacher's scores were read since the last call; empty without a cache."""
    caches = caches_of(scorers)
    return {"teacher_cache_hits": sum(cache.take_hits() for cache in caches)} if caches else {}
