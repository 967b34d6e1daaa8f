"""One factor of a token's weight: normalise(map(reduce over a partition of(signal))), without gradient."""

import difflib
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag, model_validator

from ..method.gates import Statistic
from ..method.signals import SIGNALS
from ..settings import NonNegativeFloat, Settings
from .maps import IdentityMap, Map, OneSided
from .partitions import Partition, TokenPartition
from .shorthand import by_kind


def _known_signal(name: str) -> str:
    if name not in SIGNALS:
        near = difflib.get_close_matches(name, SIGNALS, n=1, cutoff=0.4)
        raise ValueError(f"no such signal{f'; did you mean {near[0]}?' if near else ''} There are {', '.join(SIGNALS)}")
    return name


SignalName = Annotated[str, AfterValidator(_known_signal)]


Reducer = Literal["mean", "abs_mean", "mean_abs", "rms", "root_mean", "max", "first", "sum", "share"]


Control = Literal["constant", "resample", "shuffle_within", "shuffle_across", "inverse", "shuffle_boundaries"]


class Condition(OneSided):
    """Whether a token's signal is above or below a threshold."""

    signal: SignalName
    """What is looked at."""


class Factor(Settings):
    """One factor of a term's weight: normalise(map(reduce over a partition of(signal))), without gradient."""

    signal: Annotated[
        Annotated[SignalName, Tag("name")] | Annotated[Condition, Tag("condition")],
        Discriminator(lambda value: "name" if isinstance(value, str) else "condition"),
    ]
    """What it looks at, token by token (docs/signals.md); with `above` or `below` 1 where that holds, else 0."""
    partition: Annotated[Partition, BeforeValidator(by_kind)] = TokenPartition()
    """What the signal is averaged over; a bare name such as `sequence` or `block64` for short."""
    reduce: Reducer = "mean"
    """One value of a span from its tokens' signals; `share` goes with the partition `prefix` alone."""
    map: Annotated[Map, BeforeValidator(by_kind)] = IdentityMap()
    """From that value to a weight; a bare name for short."""
    control: Control | None = None
    """Break the weight to see what it was good for: give all spans the mean, values drawn from all spans, another
    span's value of the same response or of the batch, the reciprocal (a thousandfold at most); or cut the spans at
    random places, as many as there were."""
    normalise: Literal["none", "minibatch", "sequence"] = "minibatch"
    """Scale to mean 1 over the term's tokens of the optimiser batch, or of each response."""
    where: Condition | None = None
    """Tokens that the factor holds for; others get `otherwise`."""
    otherwise: NonNegativeFloat = 1.0

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of all signals that the factor looks at."""
        named = [part.signal if isinstance(part, Condition) else part for part in (self.signal, self.where) if part]
        return (*named, "drift") if self.partition.kind == "changepoint" else tuple(named)

    @property
    def reads(self) -> set[str]:
        """The streams that its signals read."""
        return {read for name in self.signals for read in SIGNALS[name].reads}

    @property
    def of_drift(self) -> bool:
        """Whether one of its signals by itself compares the current student with the one that wrote the rollout."""
        return any({"logp", "behaviour_logp"} <= set(SIGNALS[name].reads) for name in self.signals)

    @property
    def whole(self) -> bool:
        """Whether a token's weight, before normalisation, depends on other sequences of the optimiser batch."""
        controlled = self.control in ("constant", "resample", "shuffle_across")
        mapped = self.map.kind == "target_ess" or (self.map.kind == "keep_top" and self.map.scope == "minibatch")
        return controlled or mapped or any(SIGNALS[name].whole for name in self.signals)

    @property
    def _one_value(self) -> bool:
        """Whether tokens with one signal get one weight."""
        return self.where is None and self.map.kind != "bernoulli"

    @property
    def is_drift_gate(self) -> bool:
        """Whether it is exp(-tau * drift of a span), which `method.gates.drift_gate` computes."""
        reduced = self.reduce in get_args(Statistic) and self.partition.kind != "prefix"
        return self.signal == "drift" and self.map.kind == "exp" and reduced

    @model_validator(mode="after")
    def _parts_fit(self) -> "Factor":
        if (self.reduce == "share") != (self.partition.kind == "prefix" and self.reduce not in ("sum", "mean")):
            raise ValueError(
                f"reduce = {self.reduce} with partition {self.partition.kind}: a prefix is reduced by sum, mean or "
                f"share, and share goes with prefix alone; change one of the two"
            )
        if self.map.kind == "before_drop" and self.reduce != "mean":
            raise ValueError(f"map = before_drop looks at the spans' means; set reduce=mean, not {self.reduce}")
        if self.map.kind == "before_drop" and self.partition.kind not in ("token", "block", "newline"):
            raise ValueError(
                f"map = before_drop on partition {self.partition.kind} has no spans of an answer to compare; "
                f"use newline or block"
            )
        if self.map.kind in ("target_ess", "keep_top") and self.where is not None:
            raise ValueError(
                f"map = {self.map.kind} holds its share over all tokens, which `where` would take away from; take "
                f"`where` out, or put the condition into a factor of its own"
            )
        return self

    @model_validator(mode="after")
    def _does_something(self) -> "Factor":
        check_control(self.partition.kind, self.control, "partition")
        if self.partition.kind == "sequence" and self.normalise == "sequence" and self.where is None:
            raise ValueError(
                "partition = sequence with normalise = sequence makes every weight 1; set normalise=minibatch, or none"
            )
        if set(self.signals) <= {"age", "freshness", "one"} and self.normalise != "none" and self._one_value:
            raise ValueError(
                f"signal = {', '.join(self.signals)} has one value for all tokens of an update, which mean 1 turns "
                f"into 1; set normalise=none"
            )
        return self


def check_control(kind: str, control: Control | None, setting: str) -> None:
    """kind: of the partition; setting: what the user calls it. Raises ValueError for a control that changes nothing."""
    if kind == "sequence" and control == "shuffle_within":
        raise ValueError(
            f"control = shuffle_within with {setting} = sequence has one span to shuffle; use shuffle_across"
        )
    if control == "shuffle_boundaries" and kind not in ("block", "newline", "changepoint"):
        raise ValueError(
            f"control = shuffle_boundaries with {setting} = {kind}, which has no bounds to move; "
            f"use block, newline or changepoint"
        )
