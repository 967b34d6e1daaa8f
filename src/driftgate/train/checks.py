"""Checks of a run's settings against its problems and its vocabulary, before any compute."""

from collections.abc import Sequence
from importlib import metadata

from ..config import TrainConfig
from ..data.problems import Problem
from ..data.prompts import Prompt
from ..errors import InputError
from ..models.vocabularies import SharedVocabulary
from ..world import World
from .rollouts import Engines, reference_responses

TOPS = {"student_top_ids", "teacher_top_ids", "student_top_logp", "teacher_top_logp"}
"""Streams that hold `diagnostics.k` most probable tokens."""


def check_problems(problems: Sequence[Problem], config: TrainConfig) -> None:
    """Every problem has an answer if a weight or an objective reads the verifier's verdict, and a solution if solutions
    are learned from. Raises InputError."""
    wants = {
        "answer": "a weight or objective.reward reads the verifier's verdict" if needs_verifier(config) else None,
        "solution": "reference solutions are learned from (rollout.on_policy, or a term's responses)"
        if learns_from_solutions(config)
        else None,
    }
    for name, why in wants.items():
        needed = (p for p in problems if name != "answer" or config.prompts.verify_of(p.source).needs_answer)
        lacking = [problem.id for problem in needed if getattr(problem, name) is None]
        if why and lacking:
            raise InputError(
                f"{config.prompts.place}: {why}, but problem {lacking[0]!r} has no {name} ({len(lacking)} of "
                f"{len(problems)} lack it); add it, name its column with prompts.columns, or remove that setting"
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
    models = {"student": config.student, **config.teacher_roles}
    quantised = [name for name, model in models.items() if model.quantise]
    if world.size > 1 and quantised:
        raise InputError(
            f"{quantised[0]}.quantise with {world.size} processes: 4-bit weights are not sharded; set it to null"
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
    """No setting asks for more most probable tokens than the vocabulary has. Raises InputError."""
    wanted = {"objective.k": config.objective.support_size}
    wanted |= {f"terms.{name}.objective.k": term.objective.support_size for name, term in config.terms.items()}
    if config.diagnostics.every or any(TOPS & term.reads for term in config.all_terms.values()):
        wanted["diagnostics.k"] = config.diagnostics.k
    for name, k in wanted.items():
        if k > vocabulary:
            raise InputError(f"{name} = {k}: the vocabulary has {vocabulary} tokens; lower {name}")


def check_engines(config: TrainConfig, shared: SharedVocabulary | None) -> SharedVocabulary | None:
    """The same. Servers know all of a model's tokens: they would write, or score, those that not all models share. What
    they say of a token is of its single id. Raises InputError."""
    if config.rollout.stop_group and config.served_teachers:
        role = next(iter(config.served_teachers))
        raise InputError(
            f"rollout.stop_group = true with {role}.kind = server: a server says what it thinks of single ids, not of "
            f"the group; set {role}.kind=local, or rollout.stop_group=false"
        )
    served = [("rollout.engine", "rollout.engine=hf")] if config.rollout.engine.kind != "hf" else []
    served += [(role, f"{role}.kind=local") for role in config.served_teachers]
    if shared is not None and served:
        setting, mend = served[0]
        raise InputError(
            f"{setting} on servers, where {shared.describe()}: a server writes and scores all its tokens; give student "
            f"and teacher the same added tokens, or set {mend}"
        )
    return shared


def stop_group_of(config: TrainConfig, stop_ids: Sequence[int], vocabulary: int) -> tuple[int, ...]:
    """The ids that end an answer and count as one action; empty where each is its own. vocabulary: ids that all models
    share. Raises InputError for a group of one."""
    if not config.rollout.stop_group:
        return ()
    group = tuple(dict.fromkeys(i for i in stop_ids if i < vocabulary))
    if len(group) < 2:
        raise InputError(
            f"rollout.stop_group = true: an answer ends with {list(stop_ids)}, and a group needs two ids or more among "
            f"the {vocabulary} that student and teacher share; set rollout.stop_ids=[ID,ID], or stop_group=false"
        )
    check_supports(config, vocabulary - len(group) + 1)
    return group


def check_shared(
    config: TrainConfig, shared: SharedVocabulary | None, prompts: Sequence[Prompt], engines: Engines
) -> None:
    """Prompts, solutions that are learned from, and ends of answers are made of tokens that student and teachers share.
    Raises InputError."""
    if shared is None:
        return
    shared.check_stop_ids(engines.stop_ids)
    roles = list(config.teacher_roles)
    for prompt in prompts:
        name = f"problem {prompt.problem.id!r}"
        shared.check_ids(prompt.ids, f"the prompt of {name}", "student")
        shared.check_ids(prompt.teacher_ids, f"the prompt of {name}", roles[prompt.teacher or 0])
        if learns_from_solutions(config):
            [whole] = reference_responses(engines, [prompt], config.rollout.max_new_tokens)
            shared.check_ids(whole[0].ids, f"the solution of {name}", "student")


def needs_verifier(config: TrainConfig) -> bool:
    """Whether a weight or an objective reads whether a response is right."""
    return "correct" in config.reads


def learns_from_solutions(config: TrainConfig) -> bool:
    """Whether reference solutions are trained on, in place of rollouts or by a term of their own."""
    return config.rollout.on_policy < 1 or any(term.responses == "reference" for term in config.all_terms.values())


def reads_newlines(config: TrainConfig) -> bool:
    """Whether a weight cuts responses into lines of text."""
    weights = [term.weights.values() for term in config.all_terms.values()]
    return any(factor.partition.kind == "newline" for factors in weights for factor in factors)


def needs_initial(config: TrainConfig) -> bool:
    """Whether a term compares the student with the student before training."""
    return any("initial" in term.objective.needs for term in config.all_terms.values())
