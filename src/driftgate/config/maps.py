"""From the value of a span to its weight, as settings; the functions are in `method.weights`."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, field_validator, model_validator

from ..settings import NonNegativeFloat, Settings, Share


class OneSided(Settings):
    """A threshold, passed from one side."""

    above: float | None = None
    """The threshold; give this or `below`."""
    below: float | None = None
    """The threshold; give this or `above`."""

    @model_validator(mode="after")
    def _one_side(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        return self


class IdentityMap(Settings):
    """The value as it is."""

    kind: Literal["identity"] = "identity"


class ExpMap(Settings):
    """exp(-tau * v)."""

    kind: Literal["exp"] = "exp"
    tau: NonNegativeFloat = 1.0
    """Per unit of the value (for a drift: per nat); 0 makes every weight 1."""


class TargetEssMap(Settings):
    """exp(-tau * (v - least v)), greatest 1, with the tau at which the weights are worth `share` of the optimiser
    batch's tokens (ours)."""

    kind: Literal["target_ess"] = "target_ess"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Effective sample size to hold, as a share of the tokens."""
    max_tau: PositiveFloat = 1000.0
    """Highest tau: a drift that is rounding noise is not magnified without bound."""


class ThresholdMap(OneSided):
    """`hit` where the value is above (or below) the threshold, else `miss`."""

    kind: Literal["threshold"] = "threshold"
    hit: NonNegativeFloat = 1.0
    miss: NonNegativeFloat = 0.0


class AffineMap(Settings):
    """clip(offset + scale * v, low, high) + shift."""

    kind: Literal["affine"] = "affine"
    offset: float = 0.0
    scale: float = 1.0
    low: float | None = 0.0
    """Lower clip; null for none."""
    high: float | None = None
    """Upper clip; null for none."""
    shift: float = 0.0


class SigmoidMap(Settings):
    """low + (1 - low) * sigmoid((v - centre) / width)."""

    kind: Literal["sigmoid"] = "sigmoid"
    centre: float = 0.5
    width: float = 0.1
    """Negative for a weight that falls."""
    low: Share = 0.0

    @field_validator("width")
    @classmethod
    def _not_flat(cls, width: float) -> float:
        if width == 0:
            raise ValueError("is 0, which divides by nothing; give a width above 0, or below 0 for a falling weight")
        return width


class KeepTopMap(Settings):
    """1 for the greatest `share` of the spans, rounded up, 0 for the others."""

    kind: Literal["keep_top"] = "keep_top"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    scope: Literal["minibatch", "sequence"] = "minibatch"
    """Of the spans of the whole optimiser batch, or of each response."""


class BernoulliMap(Settings):
    """1 with probability min(v, 1), else 0; drawn anew at each update, keyed by the factor's name."""

    kind: Literal["bernoulli"] = "bernoulli"
    complement: bool = False
    """1 where a factor of the same name without `complement` has 0, and the other way round."""


class BeforeDropMap(Settings):
    """1 up to the end of the span before the response's one downward change point (by BIC), 0 after it; 1 throughout
    where there is none."""

    kind: Literal["before_drop"] = "before_drop"


Map = Annotated[
    IdentityMap
    | ExpMap
    | TargetEssMap
    | ThresholdMap
    | AffineMap
    | SigmoidMap
    | KeepTopMap
    | BernoulliMap
    | BeforeDropMap,
    Field(discriminator="kind"),
]
