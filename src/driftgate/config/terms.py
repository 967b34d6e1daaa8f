"""A term of the loss: an objective with a product of weights."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag, model_validator

from ..method.scores import Needs
from ..method.signals import OF_SHIFT
from ..objectives import AnyObjective
from ..settings import NonNegativeFloat, Settings
from .factor import Factor
from .shorthand import by_kind

ObjectiveSettings = Annotated[AnyObjective, BeforeValidator(by_kind)]


class Ramp(Settings):
    """A coefficient that moves linearly from `start` to `end` over `steps` steps and stays there."""

    start: NonNegativeFloat
    end: NonNegativeFloat
    steps: PositiveInt

    def at(self, step: int) -> float:
        """Its value at a step, counted from 0."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


class TermSettings(Settings):
    """One term of the loss: coef * sum of (weight * objective) / denominator."""

    objective: ObjectiveSettings
    weights: dict[str, Factor] = Field(default={})
    """Factors of the tokens' weight, by a name of your choice."""
    coef: Annotated[
        Annotated[NonNegativeFloat, Tag("number")] | Annotated[Ramp, Tag("ramp")],
        Discriminator(lambda value: "ramp" if isinstance(value, (dict, Ramp)) else "number"),
    ] = 1.0
    """A number, or {start, end, steps} for a linear ramp over rollout steps."""
    responses: Literal["student", "reference", "teacher"] = "student"
    """Whose responses: the student's rollouts, the prompts' reference solutions, or samples of the teacher."""
    denominator: Literal["tokens", "kept"] = "tokens"
    """What the sum is divided by: all tokens of these responses in the optimiser batch, or those with a weight
    above 0."""

    @property
    def off_policy(self) -> bool:
        """Whether the objective may learn from responses that the student did not write."""
        return not self.objective.needs_own_samples

    def coef_at(self, step: int) -> float:
        return self.coef.at(step) if isinstance(self.coef, Ramp) else self.coef

    @property
    def unweighted(self) -> "TermSettings":
        """The same term without weights."""
        return self.model_copy(update={"weights": {}, "denominator": "tokens"})

    @property
    def reads_of_weights(self) -> set[str]:
        """Names of what the weights read (`method.signals.READABLE`)."""
        return {name for factor in self.weights.values() for name in factor.reads}

    @property
    def of_shift_alone(self) -> bool:
        """Whether the weights depend on the student through its shift since the rollout alone, which is 0 at first."""
        return all(set(factor.signals) <= set(OF_SHIFT) for factor in self.weights.values())

    @property
    def reads(self) -> set[str]:
        """Names of what objective and weights read."""
        wanted = self.reads_of_weights | self.objective.reads_batch
        if self.objective.needs.get("behaviour", Needs()).logp:
            wanted |= {"logp", "behaviour_logp"}
        return wanted

    @model_validator(mode="after")
    def _responses_fit(self) -> "TermSettings":
        if self.responses == "student":
            return self
        if not self.off_policy:
            raise ValueError(
                f"objective.kind = {self.objective.kind} on responses = {self.responses}: a policy gradient, or mass = "
                f"residual, needs the student's own samples; use divergence or nll"
            )
        refused = self.reads & {"logp", "behaviour_logp", "correct"}
        if refused:
            names = [name for name, factor in self.weights.items() if factor.reads & refused]
            raise ValueError(
                f"weights.{names[0]} on responses = {self.responses}: drift, gap and verdict are of the student's "
                f"rollouts; take the factor out or set responses=student"
            )
        return self
