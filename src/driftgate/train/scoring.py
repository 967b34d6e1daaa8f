"""What the loss, the weights and the metrics need of a rollout batch, so that no more than that is computed.

Every group of responses (the student's rollouts, reference solutions, the teacher's samples) has needs of its own.
"""

from collections.abc import Mapping
from dataclasses import replace

from ..config import TrainConfig
from ..data.experience import Experience
from ..errors import InputError
from ..method.scores import Needs
from ..scorers.scorer import Scorer
from .portions import schedule, sequences_of
from .weighing import weighed_ahead

NeedsOf = dict[str, Needs]
"""What "behaviour" (the student that wrote the responses, or is about to learn from them), "teacher" and "initial" have
to score."""


def needs_of(config: TrainConfig, responses: str, *steps: int) -> NeedsOf:
    """What a group of responses has to be scored with for these steps, counted from 0."""
    needs: NeedsOf = {}
    for step in steps:
        for term in config.terms_at(step).values():
            if term.responses == responses:
                needs = _both(needs, term.objective.needs)
                reads = term.reads_of_weights | term.objective.reads_batch
                needs = _both(needs, needs_of_signals(reads, config.diagnostics.k))
        if responses == "student":
            needs = _both(needs, {"behaviour": Needs(logp=config.log_drift)})
            if diagnosed(config, step):
                wanted = {"behaviour_logp"} | (
                    {"teacher_entropy", "teacher_top_logp"} if config.teacher_roles else set()
                )
                needs = _both(needs, needs_of_signals(wanted, config.diagnostics.k))
    return {scorer: wanted for scorer, wanted in needs.items() if wanted}


def needs_of_signals(reads: set[str], k: int) -> NeedsOf:
    """reads: names of `method.signals.READABLE`; k: most probable tokens that signals look at."""
    behaviour = Needs(
        logp="behaviour_logp" in reads,
        entropy="behaviour_entropy" in reads,
        top=k if reads & {"student_top_ids", "student_top_logp", "teacher_at_student"} else 0,
    )
    teacher = Needs(
        logp="teacher_logp" in reads,
        entropy="teacher_entropy" in reads,
        top=k if reads & {"teacher_top_ids", "teacher_top_logp"} else 0,
        at_ids="teacher_at_student" in reads,
    )
    return {"behaviour": behaviour, "teacher": teacher}


def check_scorers(config: TrainConfig, scorers: Mapping[str, Scorer]) -> None:
    """Every need can be met by its scorer. Raises InputError before any compute."""
    for name, needs in needs_of_run(config).items():
        if lacking := needs.beyond(scorers[name].can):
            raise InputError(
                f"{name}: cannot score {', '.join(lacking)}, which the loss or a metric needs; choose another "
                f"objective or weight, or set diagnostics.every=0"
            )


def needs_of_run(config: TrainConfig) -> NeedsOf:
    """What has to be scored at any step, of any responses."""
    every = config.diagnostics.every
    needs: NeedsOf = {}
    # ramps are at their ends, diagnostics on
    steps = {0, config.steps - 1, *([every - 1] if 0 < every <= config.steps else [])}
    for responses in {term.responses for term in config.all_terms.values()} | {"student"}:
        for step in steps:
            needs = _both(needs, needs_of(config, responses, step))
    return needs


def behaviour_scores(
    config: TrainConfig, scorer: Scorer, responses: str, batch: Experience, *steps: int, fresh: bool = True
) -> Experience:
    """What the student that wrote a group of responses, or is about to learn from them, says of them, by the trainer's
    own forward: the old log-probabilities log o(y_t) and, as needed, its entropy and most probable tokens.

    In the very micro-batches of the first pass, so that the drift of an update by the same weights is exactly 0, not
    rounding noise. steps: those that learn from the responses. fresh: whether the first of them is by the weights that
    wrote: then the first minibatch stays `unscored` where its own update will find its log-probabilities.
    """
    needs = needs_of(config, responses, *steps).get("behaviour")
    if needs is None:
        return batch
    first_pass = [update for update in schedule(config, steps[0]) if update.pass_ == 0]
    groups = [sequences_of(config, responses, batch, update) for update in first_pass]
    found_later = fresh and responses == "student" and _found_by_first_update(config, needs, steps[0])
    unscored = tuple(groups.pop(0)) if found_later else ()
    return replace(batch.with_scores(behaviour=scorer.score(batch, needs, groups)), unscored=unscored)


def target_scores(
    config: TrainConfig, scorers: Mapping[str, Scorer], responses: str, batch: Experience, *steps: int
) -> Experience:
    """What the teacher, and the initial student where a term is held to it, say of a group of responses."""
    for name, needs in needs_of(config, responses, *steps).items():
        if name != "behaviour":
            batch = batch.with_scores(**{name: scorers[name].score(batch, needs)})
    return batch


def diagnosed(config: TrainConfig, step: int) -> bool:
    """Whether a step, counted from 0, is one whose updates are measured in full."""
    every = config.diagnostics.every
    return every > 0 and (step + 1) % every == 0


def _both(one: NeedsOf, other: NeedsOf) -> NeedsOf:
    return {name: one.get(name, Needs()) | other.get(name, Needs()) for name in {**one, **other}}


def _found_by_first_update(config: TrainConfig, needs: Needs, step: int) -> bool:
    """Whether the first update needs no forward before it: it finds log p(y_t) itself, before anything reads it."""
    terms = config.terms_at(step).values()
    ahead = any(weighed_ahead(t, len(terms)) and t.reads_of_weights & {"logp", "behaviour_logp"} for t in terms)
    ahead = ahead or any("behaviour_logp" in t.objective.reads_batch for t in terms)
    return "logp" in config.reads and not (needs.entropy or needs.top or ahead)
