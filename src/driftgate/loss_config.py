"""What a run minimises: a sum of terms; a term is an objective with a product of weights; a weight is a `Factor`,
normalise(map(reduce over a partition of(signal))), without gradient.
"""

import difflib
import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from .method.signals import OF_SHIFT, SIGNALS
from .settings import NonNegativeFloat, Settings, Share


def _known_signal(name: str) -> str:
    if name not in SIGNALS:
        near = difflib.get_close_matches(name, SIGNALS, n=1, cutoff=0.4)
        raise ValueError(f"no such signal{f'; did you mean {near[0]}?' if near else ''} There are {', '.join(SIGNALS)}")
    return name


SignalName = Annotated[str, AfterValidator(_known_signal)]


def _by_kind(value: Any) -> Any:
    """A bare name as {kind: name}; block64 as {kind: block, size: 64}."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"block(\d+)", value)
    return {"kind": "block", "size": int(match[1])} if match else {"kind": value}


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


class SampledTokenObjective(Settings):
    """Clipped policy gradient whose reward is the teacher's log-ratio on the sampled token."""

    kind: Literal["sampled_token"]
    advantage: Literal["frozen", "recomputed"] = "frozen"
    """Whose log-probability the advantage subtracts: the student that wrote the rollout, or the current one."""
    clip: PositiveFloat | None = 0.2
    """PPO clip of the probability ratio; null for none."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Bound on the loss of a token with negative advantage, in units of the advantage; null for none."""
    ratio: Literal["behaviour", "current"] = "behaviour"
    """What the ratio divides by: the student that wrote the rollout (importance sampling), or the current one, which
    makes it 1 in value (plain score-function gradient)."""


class LsmObjective(Settings):
    """Local support matching: `divergence` with reverse_kl, the teacher's top K, renormalised."""

    kind: Literal["lsm"]
    k: Annotated[int, Field(ge=2)] = 32
    """Teacher tokens in the support of a position."""


class DivergenceObjective(Settings):
    """A divergence between the student's and a target's next-token distributions, gradient straight through."""

    kind: Literal["divergence"]
    divergence: Literal["reverse_kl", "forward_kl", "jsd"] = "reverse_kl"
    """KL(student || target), KL(target || student), or the generalised Jensen-Shannon divergence."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Of `jsd`: beta KL(q || m) + (1 - beta) KL(p || m) with m = beta q + (1 - beta) p."""
    support: Literal["vocabulary", "teacher", "student", "union", "intersection"] = "vocabulary"
    """Tokens compared at a position: all, the target's top `k`, the top `k` of the student that wrote the rollout, or
    the tokens in either or both of the two."""
    k: PositiveInt = 32
    """Tokens of a top-K support."""
    mass: Literal["renormalised", "tail", "raw"] = "renormalised"
    """Both sides renormalised inside the support; or the rest as one more class; or neither (`raw`)."""
    allow_raw_reverse_kl: bool = False
    """Let reverse KL run on raw mass, which has no lower bound: it falls by moving mass out of the support."""
    target: Literal["teacher", "initial"] = "teacher"
    """What the student is compared with: the teacher, or the student as it was when the run began."""

    @model_validator(mode="after")
    def _sound(self) -> "DivergenceObjective":
        if self.support == "vocabulary":
            return self
        if self.mass == "renormalised" and self.k < 2:
            raise ValueError(
                "k = 1 with mass = renormalised has no loss: one token's mass is always 1; set k=2 or more"
            )
        if self.mass == "raw" and self.divergence == "jsd":
            raise ValueError("jsd on raw mass is no divergence and can be negative; set mass=tail or renormalised")
        if self.mass == "raw" and self.divergence == "reverse_kl" and not self.allow_raw_reverse_kl:
            raise ValueError(
                "reverse_kl on raw mass has no lower bound: the student lowers it by moving probability out of the "
                "support, and training collapses; set mass=renormalised or tail, or allow_raw_reverse_kl=true"
            )
        return self


class CandidateObjective(Settings):
    """Clipped policy gradient on every token of the student's top K, each weighted by its renormalised probability
    (the public code of arXiv 2604.13016)."""

    kind: Literal["candidates"]
    k: PositiveInt = 16
    """Tokens of the support: the most probable ones of the student that wrote the rollout."""
    clip: PositiveFloat | None = 0.2
    """PPO clip of a candidate's probability ratio; null for none."""
    dual_clip: Annotated[float, Field(gt=1)] | None = 3.0
    """Bound on the loss of a candidate with negative advantage; null for none."""


class NllObjective(Settings):
    """Negative log-likelihood of the tokens."""

    kind: Literal["nll"]


Objective = Annotated[
    SampledTokenObjective | LsmObjective | DivergenceObjective | CandidateObjective | NllObjective,
    Field(discriminator="kind"),
    BeforeValidator(_by_kind),
]


class TokenPartition(Settings):
    """Every token by itself."""

    kind: Literal["token"] = "token"


class BlockPartition(Settings):
    """Blocks of `size` tokens from a response's first; `block64` for short."""

    kind: Literal["block"] = "block"
    size: PositiveInt = 64
    """Tokens of a block."""


class NewlinePartition(Settings):
    """Lines of text."""

    kind: Literal["newline"] = "newline"
    min_tokens: PositiveInt = 16
    """A shorter line joins the next."""
    max_tokens: PositiveInt = 128
    """A longer line is cut."""
    size: PositiveInt = 64
    """Blocks of a response without any newline."""

    @model_validator(mode="after")
    def _bounds(self) -> "NewlinePartition":
        if self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}; raise max_tokens")
        return self


class SequencePartition(Settings):
    """A whole response."""

    kind: Literal["sequence"] = "sequence"


class ChangepointPartition(Settings):
    """Spans between change points of the drift's mean (ours)."""

    kind: Literal["changepoint"] = "changepoint"
    min_tokens: PositiveInt = 16
    """Shortest span."""
    penalty: PositiveFloat = 2.0
    """Price of a cut, in units of the noise variance times log(tokens of the response)."""


class PrefixPartition(Settings):
    """All tokens of the response up to this one; reduced by sum, mean or share."""

    kind: Literal["prefix"] = "prefix"
    exclusive: bool = False
    """Leave the token itself out."""


Partition = Annotated[
    TokenPartition | BlockPartition | NewlinePartition | SequencePartition | ChangepointPartition | PrefixPartition,
    Field(discriminator="kind"),
]


class IdentityMap(Settings):
    """The value as it is."""

    kind: Literal["identity"] = "identity"


class ExpMap(Settings):
    """exp(-tau * v)."""

    kind: Literal["exp"] = "exp"
    tau: PositiveFloat = 1.0
    """Per unit of the value (for a drift: per nat)."""


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
    """1 for the greatest `share` of the optimiser batch's spans, 0 for the others."""

    kind: Literal["keep_top"] = "keep_top"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5


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
    partition: Annotated[Partition, BeforeValidator(_by_kind)] = TokenPartition()
    """What the signal is averaged over; a bare name such as `sequence` or `block64` for short."""
    reduce: Reducer = "mean"
    """One value of a span from its tokens' signals; `share` goes with the partition `prefix` alone."""
    map: Annotated[Map, BeforeValidator(_by_kind)] = IdentityMap()
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
        return {stream for name in self.signals for stream in SIGNALS[name].reads}

    @property
    def of_drift(self) -> bool:
        """Whether one of its signals by itself compares the current student with the one that wrote the rollout."""
        return any({"logp", "behaviour_logp"} <= set(SIGNALS[name].reads) for name in self.signals)

    @property
    def whole(self) -> bool:
        """Whether a token's weight, before normalisation, depends on other sequences of the optimiser batch."""
        controlled = self.control in ("constant", "resample", "shuffle_across")
        mapped = self.map.kind in ("target_ess", "keep_top")
        return controlled or mapped or any(SIGNALS[name].whole for name in self.signals)

    @property
    def _one_value(self) -> bool:
        """Whether tokens with one signal get one weight."""
        return self.where is None and self.map.kind != "bernoulli"

    @model_validator(mode="after")
    def _sound(self) -> "Factor":
        if (self.reduce == "share") != (self.partition.kind == "prefix" and self.reduce not in ("sum", "mean")):
            raise ValueError(
                f"reduce = {self.reduce} with partition {self.partition.kind}: a prefix is reduced by sum, mean or "
                f"share, and share goes with prefix alone; change one of the two"
            )
        if self.map.kind == "before_drop" and self.reduce != "mean":
            raise ValueError(f"map = before_drop looks at the spans' means; set reduce=mean, not {self.reduce}")
        if self.map.kind in ("target_ess", "keep_top") and self.where is not None:
            raise ValueError(
                f"map = {self.map.kind} holds its share over all tokens, which `where` would take away from; take "
                f"`where` out, or put the condition into a factor of its own"
            )
        if self.map.kind == "before_drop" and self.partition.kind not in ("token", "block", "newline"):
            raise ValueError(
                f"map = before_drop on partition {self.partition.kind} has no spans of an answer to compare; "
                f"use newline or block"
            )
        if self.partition.kind == "sequence" and self.control == "shuffle_within":
            raise ValueError(
                "control = shuffle_within on partition sequence has one span to shuffle; use shuffle_across"
            )
        if self.partition.kind == "sequence" and self.normalise == "sequence" and self.where is None:
            raise ValueError(
                "partition = sequence with normalise = sequence makes every weight 1; set normalise=minibatch, or none"
            )
        if self.control == "shuffle_boundaries" and self.partition.kind not in ("block", "newline", "changepoint"):
            raise ValueError(
                f"control = shuffle_boundaries on partition {self.partition.kind}, which has no bounds to move; "
                f"use block, newline or changepoint"
            )
        if set(self.signals) <= {"age", "freshness", "one"} and self.normalise != "none" and self._one_value:
            raise ValueError(
                f"signal = {', '.join(self.signals)} has one value for all tokens of an update, which mean 1 turns "
                f"into 1; set normalise=none"
            )
        return self


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

    objective: Objective
    weights: dict[str, Factor] = Field(default={})
    """Factors of the tokens' weight, by a name of your choice."""
    coef: Annotated[
        Annotated[NonNegativeFloat, Tag("number")] | Annotated[Ramp, Tag("ramp")],
        Discriminator(lambda value: "ramp" if isinstance(value, (dict, Ramp)) else "number"),
    ] = 1.0
    """A number, or {start, end, steps} for a linear ramp over rollout steps."""
    stream: Literal["student", "reference", "teacher"] = "student"
    """Whose responses: the student's rollouts, the prompts' reference solutions, or samples of the teacher."""
    denominator: Literal["tokens", "kept"] = "tokens"
    """What the sum is divided by: all tokens of the stream in the optimiser batch, or those with a weight above 0."""

    @property
    def off_policy(self) -> bool:
        """Whether the objective may learn from responses that the student did not write."""
        return self.objective.kind not in ("sampled_token", "candidates")

    def coef_at(self, step: int) -> float:
        return self.coef.at(step) if isinstance(self.coef, Ramp) else self.coef

    @property
    def unweighted(self) -> "TermSettings":
        """The same term without weights."""
        return self.model_copy(update={"weights": {}, "denominator": "tokens"})

    @property
    def reads_of_weights(self) -> set[str]:
        """The streams that the weights read."""
        return {stream for factor in self.weights.values() for stream in factor.reads}

    @property
    def of_shift_alone(self) -> bool:
        """Whether the weights depend on the student through its shift since the rollout alone, which is 0 at first."""
        return all(set(factor.signals) <= set(OF_SHIFT) for factor in self.weights.values())

    @property
    def reads(self) -> set[str]:
        """The streams that objective and weights read."""
        wanted = self.reads_of_weights
        if self.objective.kind == "sampled_token":
            wanted |= {"logp", "behaviour_logp", "teacher_logp"}
        return wanted

    @model_validator(mode="after")
    def _stream_fits(self) -> "TermSettings":
        if self.stream == "student":
            return self
        if not self.off_policy:
            raise ValueError(
                f"objective.kind = {self.objective.kind} on stream = {self.stream}: a policy gradient needs the "
                f"student's own samples; use divergence or nll"
            )
        refused = self.reads & {"logp", "behaviour_logp", "correct"}
        if refused:
            names = [name for name, factor in self.weights.items() if factor.reads & refused]
            raise ValueError(
                f"weights.{names[0]} on stream = {self.stream}: drift, gap and verdict are of the student's rollouts; "
                f"take the factor out or set stream=student"
            )
        return self


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
    tau: PositiveFloat = 1.0
    """Gate = exp(-tau * drift of the span in nats)."""
    target_ess: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Choose tau anew at each update so that the gates' effective sample size is this share of the tokens (ours);
    `tau` is then not used. Costs a forward without gradient an update."""
    statistic: Literal["abs_mean", "mean_abs", "rms"] = "abs_mean"
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
        if self.max_tokens < self.min_tokens:
            raise ValueError(f"max_tokens {self.max_tokens} is below min_tokens {self.min_tokens}; raise max_tokens")
        return self

    @model_validator(mode="after")
    def _does_something(self) -> "GateSettings":
        if self.spans == "none" and (self.control is not None or self.target_ess is not None):
            name = "control" if self.control is not None else "target_ess"
            raise ValueError(f"{name} is set but spans = none, so there is no gate; set gate.spans=block64")
        if self.spans == "sequence" and self.scope == "sequence":
            raise ValueError("spans = sequence with scope = sequence makes every gate 1; set scope=minibatch")
        if self.spans == "sequence" and self.control == "shuffle_within":
            raise ValueError(
                "control = shuffle_within with spans = sequence has one span to shuffle; use shuffle_across"
            )
        if self.control == "shuffle_boundaries" and self.spans in ("token", "sequence"):
            raise ValueError(
                f"control = shuffle_boundaries with spans = {self.spans}, which have no bounds to move; "
                f"use block, newline or changepoint"
            )
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
