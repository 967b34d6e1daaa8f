"""What a run's settings ask of its problems, vocabulary and scorers; refused before any compute is spent."""

from collections.abc import Sequence
from importlib import metadata

from ..config import TrainConfig
from ..data.prompts import Problem
from ..errors import InputError
from ..world import World

TOPS = {"student_top_ids", "teacher_top_ids", "student_top_logp", "teacher_top_logp"}
"""What reads `diagnostics.k` most probable tokens."""


def check_problems(problems: Sequence[Problem], config: TrainConfig) -> None:
    """Answers where a weight asks the verifier, solutions where one is learned from. Raises InputError."""
    wants = {
        "answer": "a weight reads the verifier's verdict" if needs_verifier(config) else None,
        "solution": "reference solutions are learned from (rollout.on_policy, or a term's responses)"
        if learns_from_solutions(config)
        else None,
    }
    for name, why in wants.items():
        lacking = [problem.id for problem in problems if getattr(problem, name) is None]
        if why and lacking:
            raise InputError(
                f"prompts.path = {config.prompts.path}: {why}, but problem {lacking[0]!r} has no {name} "
                f"({len(lacking)} of {len(problems)} lack it); add it, rename with prompts.columns, or take that "
                f"setting out"
            )


def check_ranks(config: TrainConfig, world: World) -> None:
    """Work for every rank, and the same packages and settings everywhere. Raises InputError."""
    responses = config.prompts.per_step * config.rollout.samples
    update = min(config.minibatch or responses, responses)
    if world.size > update:
        raise InputError(
            f"{world.size} processes: an optimiser update learns from {update} responses, so some would have none; "
            f"start fewer, or raise prompts.per_step, rollout.samples or minibatch"
        )
    versions = {name: metadata.version(name) for name in ("driftgate", "torch", "transformers")}
    settings = config.model_dump(mode="json")
    for rank, (other_versions, other_settings) in enumerate(world.share((versions, settings))):
        for name, value in versions.items():
            if other_versions[name] != value:
                raise InputError(
                    f"rank {rank} has {name} {other_versions[name]}, rank {world.rank} has {value}; install the same "
                    f"version everywhere"
                )
        changed = [name for name in settings if settings[name] != other_settings.get(name)]
        if changed:
            raise InputError(
                f"rank {rank} was started with other settings than rank {world.rank}: {', '.join(changed)}; start "
                f"all ranks with the same command"
            )


def check_supports(config: TrainConfig, vocabulary: int) -> None:
    """No more most probable tokens than there are. Raises InputError."""
    wanted = {"objective.k": config.objective.support_size}
    wanted |= {f"terms.{name}.objective.k": term.objective.support_size for name, term in config.terms.items()}
    if config.diagnostics.every or any(TOPS & term.reads for term in config.all_terms.values()):
        wanted["diagnostics.k"] = config.diagnostics.k
    for name, k in wanted.items():
        if k > vocabulary:
            raise InputError(f"{name} = {k}: the vocabulary has {vocabulary} tokens; lower {name}")


def needs_verifier(config: TrainConfig) -> bool:
    return "correct" in config.reads


def learns_from_solutions(config: TrainConfig) -> bool:
    return config.rollout.on_policy < 1 or any(term.responses == "reference" for term in config.all_terms.values())


def reads_newlines(config: TrainConfig) -> bool:
    """Whether a weight looks at lines of text."""
    weights = [term.weights.values() for term in config.all_terms.values()]
    return any(factor.partition.kind == "newline" for factors in weights for factor in factors)


def needs_initial(config: TrainConfig) -> bool:
    """Whether a term compares the student with what it was when the run began."""
    return any("initial" in term.objective.needs for term in config.all_terms.values())
