"""What the loss, the weights and the metrics read of a rollout batch; so that no more than that is computed.

Every response stream (the student's rollouts, reference solutions, the teacher's samples) has needs of its own.
"""

from dataclasses import dataclass, field

from ..config import TrainConfig
from ..loss_config import CandidateObjective, DivergenceObjective, LsmObjective, TermSettings
from ..teacher.local import TargetNeeds

TARGETS = ("teacher", "initial")


@dataclass
class Needs:
    """Scores of one stream: by the student that wrote it (or is about to learn from it), and by each target."""

    logp: bool = False
    """The student's log-probability of each token, before the first update."""
    entropy: bool = False
    """The student's entropy."""
    top: int = 0
    """The student's so many most probable tokens."""
    targets: dict[str, TargetNeeds] = field(default_factory=dict)

    @property
    def behaviour(self) -> bool:
        """Whether a forward of the student is wanted at all."""
        return self.logp or self.entropy or self.top > 0

    def target(self, name: str) -> TargetNeeds:
        return self.targets.setdefault(name, TargetNeeds())


def needs_of(config: TrainConfig, stream: str, diagnose: bool = False) -> Needs:
    """What `stream` has to be scored with. diagnose: also for the metrics of `diagnostics.every`."""
    needs = Needs()
    for term in config.all_terms.values():
        if term.stream == stream:
            _add_objective(needs, term)
            _add_signals(needs, term.reads, config.diagnostics.k)
    if stream == "student":
        needs.logp |= config.log_drift
        if diagnose:
            _add_signals(needs, {"behaviour_logp", "teacher_entropy", "teacher_top_logp"}, config.diagnostics.k)
    return needs


def _add_objective(needs: Needs, term: TermSettings) -> None:
    objective = term.objective
    if isinstance(objective, LsmObjective):
        _add_support(needs, "teacher", "teacher", objective.k)
    elif isinstance(objective, CandidateObjective):
        _add_support(needs, "teacher", "student", objective.k)
    elif isinstance(objective, DivergenceObjective):
        _add_support(needs, objective.target, objective.support, objective.k)


def _add_support(needs: Needs, name: str, support: str, k: int) -> None:
    target = needs.target(name)
    if support == "vocabulary":
        target.hidden = True
    if support in ("teacher", "union", "intersection"):
        target.top = max(target.top, k)
    if support in ("student", "union", "intersection"):
        needs.top = max(needs.top, k)
    target.at_student |= support in ("student", "union")


def _add_signals(needs: Needs, reads: set[str], k: int) -> None:
    """reads: names of `Streams` fields."""
    needs.logp |= "behaviour_logp" in reads
    needs.entropy |= "behaviour_entropy" in reads
    if reads & {"student_top_ids", "student_top_logp", "teacher_at_student"}:
        needs.top = max(needs.top, k)
    of_teacher = {name for name in reads if name.startswith("teacher_")}
    if of_teacher:
        teacher = needs.target("teacher")
        teacher.entropy |= "teacher_entropy" in reads
        teacher.at_student |= "teacher_at_student" in reads
        if reads & {"teacher_top_ids", "teacher_top_logp"}:
            teacher.top = max(teacher.top, k)
