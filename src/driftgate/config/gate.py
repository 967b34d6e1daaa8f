"""The drift gate (arXiv 2606.24084), its variants and controls, as settings."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..method.gates import Statistic
from ..settings import NonNegativeFloat, Settings
from .factor import Control, Factor, check_control
from .maps import ExpMap, TargetEssMap
from .partitions import (
    BlockPartition,
    ChangepointPartition,
    NewlinePartition,
    Partition,
    SequencePartition,
    TokenPartition,
    check_bounds,
)


class GateSettings(Settings):
    """The drift gate (arXiv 2606.24084), its variants and its controls: the factor `gate` of the main term."""

    spans: Literal["none", "token", "block", "newline", "sequence", "changepoint"] = "none"
    """What the drift is averaged over: `block` of `size` tokens, `newline` for lines of text, each `token`, the whole
    `sequence`, between `changepoint`s of the drift (ours); `none` for no gate. `block64` is short for `block` with
    size 64."""
    size: PositiveInt = 64
    """Tokens of a block (and of the blocks that a response without any newline falls back to)."""
    min_tokens: PositiveInt = 16
    """Newline and change-point spans: a shorter one joins the next, or is not made."""
    max_tokens: PositiveInt = 128
    """Newline spans: a longer one is cut."""
    penalty: PositiveFloat = 2.0
    """Change-point spans: price of a cut, in units of the noise variance times log(tokens of the response)."""
    tau: NonNegativeFloat = 1.0
    """Gate = exp(-tau * drift of the span in nats); 0 makes every gate 1."""
    target_ess: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Choose tau anew at each update so that the gates' effective sample size is this share of the tokens (ours);
    `tau` is then not used. Costs a forward without gradient an update."""
    statistic: Statistic = "abs_mean"
    """Drift of a span from its tokens' shifts; the paper's is the absolute value of the mean."""
    control: Control | None = None
    """A control experiment on the gate: see `weights.NAME.control`. All but `shuffle_within`, `inverse` and
    `shuffle_boundaries` cost a forward without gradient an update."""
    scope: Literal["minibatch", "sequence"] = "minibatch"
    """Gates have mean 1 over the whole optimiser batch, or inside each sequence."""

    @model_validator(mode="before")
    @classmethod
    def _block_shorthand(cls, values: Any) -> Any:
        match = re.fullmatch(r"block(\d+)", str(values.get("spans"))) if isinstance(values, dict) else None
        return {**values, "spans": "block", "size": int(match[1])} if match else values

    @model_validator(mode="after")
    def _bounds(self) -> "GateSettings":
        check_bounds(self.min_tokens, self.max_tokens)
        return self

    @model_validator(mode="after")
    def _does_something(self) -> "GateSettings":
        if self.spans == "none" and (self.control is not None or self.target_ess is not None):
            name = "control" if self.control is not None else "target_ess"
            raise ValueError(f"{name} is set but spans = none, so there is no gate; set gate.spans=block64")
        if self.spans == "sequence" and self.scope == "sequence":
            raise ValueError("spans = sequence with scope = sequence makes every gate 1; set scope=minibatch")
        if self.spans != "none":
            check_control(self.spans, self.control, "spans")
        return self

    @property
    def partition(self) -> Partition:
        """What the drift is averaged over; blocks of `size` where there is no gate, to measure the drift by."""
        partitions: dict[str, Partition] = {
            "token": TokenPartition(),
            "newline": NewlinePartition(min_tokens=self.min_tokens, max_tokens=self.max_tokens, size=self.size),
            "sequence": SequencePartition(),
            "changepoint": ChangepointPartition(min_tokens=self.min_tokens, penalty=self.penalty),
        }
        return partitions.get(self.spans, BlockPartition(size=self.size))

    @property
    def factor(self) -> Factor:
        """The gate as one factor among others."""
        return Factor(
            signal="drift",
            partition=self.partition,
            reduce=self.statistic,
            map=ExpMap(tau=self.tau) if self.target_ess is None else TargetEssMap(share=self.target_ess),
            control=self.control,
            normalise=self.scope,
        )
