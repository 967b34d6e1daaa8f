"""Rollouts: how responses are sampled, as settings."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ..horizon import share
from ..settings import NonNegativeFloat, Settings, Share
from .engine import EngineSettings, HFSettings


class Horizon(Settings):
    """How long responses may grow: a limit below `rollout.max_new_tokens`, which stays the upper bound."""

    kind: Literal["growing", "share", "controller"]
    """`growing`: start + increment * floor(step / every), steps from 0. `share`: rho * max_new_tokens. `controller`:
    up by `change` when at least `least_share` of the responses come within `near` tokens of the limit, and have
    at least `start` tokens; down by it after `patience` steps without."""
    start: PositiveInt = 256
    """First limit (`growing`, `controller`), in tokens."""
    increment: PositiveInt = 256
    """`growing`: tokens added at a time."""
    every: PositiveInt = 10
    """`growing`: steps between additions."""
    rho: Annotated[float, Field(gt=0, le=1)] = 0.5
    """`share`: of `max_new_tokens`."""
    near: PositiveInt = 100
    """`controller`: tokens from the limit that count as near."""
    least_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """`controller`: share of near responses that raises the limit."""
    change: PositiveInt = 100
    """`controller`: tokens by which the limit moves."""
    patience: PositiveInt = 3
    """`controller`: steps with too few near responses before the limit falls."""
    unpruned_by: str | None = None
    """`controller`: a weight of the main term with an affine map. Only tokens above its lower bound count towards a
    response's length; null counts all tokens."""


class RolloutSettings(Settings):
    engine: EngineSettings = HFSettings()
    """What writes the student's responses."""
    samples: PositiveInt = 8
    """Responses per prompt."""
    max_new_tokens: PositiveInt = 16384
    """Longest response; what reaches it is marked truncated and still learned from."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature. All log-probabilities, the teacher's too, are taken at it."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus of the sampler. Log-probabilities are of the whole distribution."""
    batch: PositiveInt | None = None
    """Responses decoded at once; null decodes a whole rollout batch."""
    lag: Annotated[int, Field(ge=0)] = 0
    """A step's responses are written by the weights of so many steps before, so that servers can write them while the
    student learns (docs/stale_rollouts.md). The first lag + 1 batches are written by the initial weights."""
    refresh: PositiveInt = 1
    """Steps that learn from one rollout batch, one after the other."""
    reuse: Literal["run"] | None = None
    """`run`: the initial student writes one batch for each group of prompts before the first step, and the whole run
    learns from these, every epoch in an order of its own. Null: rollouts follow the student."""
    stop_ids: tuple[int, ...] | None = None
    """Token ids that end a response; null takes them from the student's generation config and tokenizer."""
    stop_group: bool = False
    """Whether all of `stop_ids` are one action: their probabilities are summed, for the student, the teacher and the
    initial student (arXiv 2609.20511; docs/stopping.md)."""
    allow_truncated: bool = False
    """Go on even when every response of a step was cut at its limit (so that none shows how to stop)."""
    on_policy: Share = 1.0
    """Share of the responses that the student writes; the others are the prompt's reference solution (GKD's lambda,
    arXiv 2306.13649), drawn for each response."""
    horizon: Horizon | None = None
    """A limit on the responses' length that moves with the run; null stays at `max_new_tokens`."""
    teacher_prefix: Annotated[int, Field(ge=0)] = 0
    """Tokens at the head of each response that the teacher writes; they are context, not loss."""
    teacher_prefix_steps: PositiveInt | None = None
    """Steps over which the prefix shrinks linearly to nothing; null keeps it."""
    kl_budget: NonNegativeFloat = 0.0
    """Sample from p^(1-b) q^b, b per token as large as KL to the student's p stays within so many nats (TRB, arXiv
    2605.31159); 0 samples from the student."""
    kl_budget_steps: PositiveInt | None = None
    """Steps over which the budget falls linearly to 0; null keeps it."""

    @model_validator(mode="after")
    def _servers_know_no_teacher(self) -> "RolloutSettings":
        if self.engine.kind == "vllm" and self.kl_budget:
            raise ValueError(
                f"kl_budget = {self.kl_budget} with engine.kind = vllm: a server draws from the student alone; set "
                f"kl_budget=0, or engine=hf"
            )
        return self

    @model_validator(mode="after")
    def _groups_several(self) -> "RolloutSettings":
        if self.stop_group and self.stop_ids is not None and len(set(self.stop_ids)) < 2:
            raise ValueError(
                f"stop_group = true with stop_ids = {list(self.stop_ids)}: a group needs two ids or more; set "
                f"stop_ids=[ID,ID], or stop_group=false"
            )
        return self

    @model_validator(mode="after")
    def _horizon_fits(self) -> "RolloutSettings":
        horizon = self.horizon
        if horizon is not None and horizon.kind != "share" and horizon.start > self.max_new_tokens:
            raise ValueError(
                f"horizon.start = {horizon.start} is above max_new_tokens = {self.max_new_tokens}; lower start"
            )
        return self

    @model_validator(mode="after")
    def _one_staleness(self) -> "RolloutSettings":
        for name, neutral in (("lag", 0), ("refresh", 1)):
            if self.reuse is not None and getattr(self, name) != neutral:
                raise ValueError(
                    f"reuse = run with {name} = {getattr(self, name)}: all rollouts are written before the first step; "
                    f"set {name}={neutral}, or reuse=null"
                )
        return self

    @property
    def stale(self) -> bool:
        """Whether a step may learn from rollouts that older weights have written, beyond its own passes."""
        return self.lag > 0 or self.refresh > 1 or self.reuse is not None

    @property
    def least_limit(self) -> int:
        """Tokens of the shortest limit that a response may have."""
        if self.horizon is None:
            return self.max_new_tokens
        return share(self.horizon.rho, self.max_new_tokens) if self.horizon.kind == "share" else self.horizon.start
