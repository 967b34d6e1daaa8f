"""From a term's factors to its tokens' weights, as the settings say. The arithmetic is in `method`.

Shapes: N tokens of whole sequences, S spans. A factor that must have mean 1 over the optimiser batch is returned
unscaled, together with its sum. Its mean is known only after the last micro-batch: see `Sums.denominator`.
"""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from .. import keyed
from ..config.factor import Condition, Factor
from ..config.maps import ExpMap, OneSided
from ..config.partitions import Partition
from ..config.terms import TermSettings
from ..data.experience import Experience
from ..errors import RunError
from ..method import weights as steps
from ..method.changepoint import changepoint_spans, keep_before_drop
from ..method.gates import Statistic, drift_gate, unit_mean
from ..method.signals import SIGNALS, Streams, drift
from ..method.spans import fixed_spans, newline_spans, random_spans, sequence_spans, token_spans


@dataclass(frozen=True)
class Moment:
    """The place of an update in the run: the key of its random draws, and the age of its rollouts."""

    seed: int
    step: int
    """Number of rollout batches before this one."""
    age: int = 0
    """Number of optimiser updates since the weights that wrote the rollout. At 0 these are the current weights."""

    def uniforms(self, purpose: str, name: str, sequences: Tensor) -> Tensor:
        """float64 [N] in [0, 1): a random draw for each token. It does not depend on which other sequences are present.

        purpose, name: keys of the draws, for instance "control" and the factor's name. sequences: int64 [N], the number
        of each token's sequence.
        """
        numbers, counts = sequences.cpu().unique_consecutive(return_counts=True)
        parts = [
            keyed.generator(self.seed, purpose, name, self.step, self.age, number).random(count)
            for number, count in zip(numbers.tolist(), counts.tolist())
        ]
        draws = torch.cat([torch.from_numpy(part) for part in parts]) if parts else torch.zeros(0, dtype=torch.float64)
        return draws.to(sequences.device)


@dataclass
class Weighed:
    """The weights of some tokens, and their sums."""

    weight: Tensor
    """[N]: the product of all factors. Factors with mean 1 over the optimiser batch are not scaled yet."""
    raw: Tensor
    """[N]: the product before any normalisation. Metrics describe this one."""
    least: Tensor
    """[]: the smallest value of any factor. It must not be negative."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """`factor.NAME`: the sum over tokens of each factor with mean 1 over the optimiser batch. `kept`: the number of
    weights above 0."""
    tau: dict[str, float] = field(default_factory=dict)
    """By factor: the tau that gives it the effective sample size that its settings ask for."""


Spans = dict[Partition, Tensor]
"""int64 [N] by partition: the span of each token."""


def weighed_ahead(term: TermSettings, terms: int) -> bool:
    """Whether a term's weights, or the denominator of its loss, must be known before the backward pass. terms: number
    of terms in the loss."""
    factors = term.weights.values()
    summed = term.denominator == "kept" or any(factor.normalise == "minibatch" for factor in factors)
    return any(factor.whole for factor in factors) or (terms > 1 and summed)


def fixed_partitions(term: TermSettings, batch: Experience, newline_ids: Tensor) -> Spans:
    """The term's partitions that do not depend on the drift, for all tokens of the batch: int64 [N] each.

    newline_ids: bool [V], True where a token's text contains a newline.
    """
    return {f.partition: partition_spans(f.partition, batch, newline_ids) for f in term.weights.values() if _fixed(f)}


def partition_spans(partition: Partition, batch: Experience, newline_ids: Tensor) -> Tensor:
    """int64 [N]: the span of each token, for a partition of kind block, newline, token or sequence."""
    if partition.kind == "newline":
        ends = newline_ids[batch.ids]
        return newline_spans(batch.rows, ends, partition.min_tokens, partition.max_tokens, partition.size)
    if partition.kind == "block":
        return fixed_spans(batch.rows, partition.size)
    return sequence_spans(batch.rows) if partition.kind == "sequence" else token_spans(batch.rows)


def weigh(term: TermSettings, streams: Streams, spans: Spans, moment: Moment) -> Weighed:
    """The weights of the tokens in `streams`. spans: the `fixed_partitions` of the same tokens.

    Raises RunError if a factor cannot be normalised.
    """
    ones = torch.ones(streams.rows.shape, device=streams.rows.device)
    weighed = Weighed(ones, ones, ones.new_zeros(()))
    for name, factor in term.weights.items():
        values = factor_values(name, factor, streams, spans, moment, weighed.tau)
        weighed.raw = weighed.raw * values
        if len(values):
            weighed.least = torch.minimum(weighed.least, values.min())
        if factor.normalise == "minibatch":
            weighed.sums[f"factor.{name}"] = values.double().sum()
        elif factor.normalise == "sequence":
            values = _unit_mean_by_sequence(name, factor, values, streams.rows)
        weighed.weight = weighed.weight * values
    weighed.sums["kept"] = (weighed.weight > 0).double().sum()
    return weighed


def factor_values(
    name: str, factor: Factor, streams: Streams, spans: Spans, moment: Moment, tau: dict[str, float]
) -> Tensor:
    """[N]: one factor before normalisation: signal -> reduce -> map -> control. A factor that chooses its tau writes it
    into `tau` under its name. Raises RunError for a signal that goes wrong."""
    signal, ids = observe(factor.signal, streams), _spans(name, factor, streams, spans, moment)
    if factor.map.kind == "before_drop":
        mapped = keep_before_drop(streams.rows, signal, ids)[steps.first_of(ids)].float()
    elif factor.is_drift_gate:
        how = cast(ExpMap, factor.map).tau, cast(Statistic, factor.reduce)
        mapped = drift_gate(streams["logp"], streams["behaviour_logp"], ids, *how)[steps.first_of(ids)]
    else:
        mapped = _mapped(name, factor, _reduced(factor, signal, ids, streams), ids, streams, moment, tau)
    values = _controlled(name, factor, mapped, ids, streams, moment)[ids]
    if factor.where is not None:
        values = torch.where(observe(factor.where, streams) > 0, values, factor.otherwise)
    return values


def observe(wanted: str | Condition, streams: Streams) -> Tensor:
    """float [N]: the values of a signal. For a condition: 1 where it holds, 0 elsewhere. Raises RunError if the signal
    fails or has another shape."""
    name = wanted if isinstance(wanted, str) else wanted.signal
    try:
        values = SIGNALS[name].compute(streams)
    except ValueError as error:
        raise RunError(f"signal {name}: {error}") from error
    if values.shape != streams.rows.shape:
        raise RunError(f"signal {name}: has shape {list(values.shape)} for {len(streams.rows)} tokens; return [N]")
    return values if isinstance(wanted, str) else _beyond(values, wanted).float()


def streams_of(
    batch: Experience,
    tokens: Tensor,
    reads: set[str],
    logp: Tensor | None,
    moment: Moment,
    k: int,
    device: torch.device,
) -> Streams:
    """What the weights of some tokens read, on a device.

    tokens: int64 [N], places of the tokens in the batch. reads: names of the streams. logp: float [N], log p(y_t) of
    the current student, or None if nothing reads it. At age 0 it also serves as the old log-probabilities. k: number of
    most probable tokens of each model that overlap and divergence compare.
    """
    values = {} if logp is None else {"logp": logp.detach()}
    if logp is not None and moment.age == 0:
        values["behaviour_logp"] = logp.detach()
    values = {name: value for name, value in values.items() if name in reads}
    for name in reads - values.keys() - {"logp"}:
        known = batch.readable(name)
        values[name] = (known[:, :k] if known.dim() > 1 else known)[tokens].to(device)
    sequences = batch.rows[tokens].to(device)
    rows = torch.unique_consecutive(sequences, return_inverse=True)[1]  # numbered from 0, without gaps
    return Streams(sequences, rows, batch.place[tokens].to(device), moment.age, values)


def _beyond(values: Tensor, threshold: OneSided) -> Tensor:
    """bool: where values are above `above`, or below `below`. A threshold has one of the two."""
    if threshold.above is not None:
        return values > threshold.above
    assert threshold.below is not None
    return values < threshold.below


def _fixed(factor: Factor) -> bool:
    """Whether the factor's spans stay the same while the student changes."""
    return factor.partition.kind not in ("prefix", "changepoint")


def _spans(name: str, factor: Factor, streams: Streams, spans: Spans, moment: Moment) -> Tensor:
    """int64 [N]: the span of each token, numbered from 0 without gaps."""
    partition = factor.partition
    if partition.kind == "prefix":
        return token_spans(streams.rows)
    if partition.kind == "changepoint":
        ids = changepoint_spans(streams.rows, drift(streams), partition.min_tokens, partition.penalty)
    else:
        ids = torch.unique_consecutive(spans[partition], return_inverse=True)[1]
    if factor.control == "shuffle_boundaries":
        return random_spans(streams.rows, ids, moment.uniforms("control", name, streams.sequences))
    return ids


def _reduced(factor: Factor, signal: Tensor, ids: Tensor, streams: Streams) -> Tensor:
    """[N] to [S]: one value per span. In a prefix partition each token is a span of its own."""
    if factor.partition.kind == "prefix":
        return steps.reduce_prefix(signal, streams.rows, factor.reduce, factor.partition.exclusive)
    return steps.reduce_spans(signal, ids, factor.reduce)


def _mapped(
    name: str, factor: Factor, values: Tensor, ids: Tensor, streams: Streams, moment: Moment, tau: dict[str, float]
) -> Tensor:
    """[S] to [S]: the factor's map."""
    how = factor.map
    if how.kind == "exp":
        return torch.exp(-how.tau * values)
    if how.kind == "target_ess":
        tau[name] = steps.tau_for_ess(values, ids.bincount(), how.share, how.max_tau)
        return torch.exp(-tau[name] * (values - values.min())) if len(values) else values
    if how.kind == "threshold":
        return torch.where(_beyond(values, how), how.hit, how.miss)
    if how.kind == "affine":
        return steps.affine(values, how.offset, how.scale, how.low, how.high, how.shift)
    if how.kind == "sigmoid":
        return steps.sigmoid(values, how.centre, how.width, how.low)
    if how.kind == "keep_top":
        owners = streams.rows[steps.first_of(ids)] if how.scope == "sequence" else None
        return steps.keep_top(values, how.share, owners)
    if how.kind == "bernoulli":
        trusted = moment.uniforms("bernoulli", name, streams.sequences)[steps.first_of(ids)] < values
        return (trusted ^ how.complement).to(values.dtype)
    return values


def _controlled(name: str, factor: Factor, values: Tensor, ids: Tensor, streams: Streams, moment: Moment) -> Tensor:
    """[S] to [S]: the factor's control applied to the values of its spans; the values themselves without a control."""
    if factor.control in (None, "shuffle_boundaries"):
        return values
    if factor.control == "inverse":
        return steps.inverse(values)
    if factor.control == "constant":
        return steps.constant(values, ids.bincount())
    first = steps.first_of(ids)
    draws = moment.uniforms("control", name, streams.sequences)[first]
    if factor.control == "shuffle_within":
        return steps.shuffle_within(values, streams.rows[first], draws)
    return steps.shuffle_across(values, draws) if factor.control == "shuffle_across" else steps.resample(values, draws)


def _unit_mean_by_sequence(name: str, factor: Factor, values: Tensor, rows: Tensor) -> Tensor:
    """[N]: scaled to mean 1 inside each sequence. A sequence whose values are all 0 stays 0. For a gate that is an
    error: raises RunError."""
    gate = factor.map.kind == "exp"
    try:
        return unit_mean(values, rows, keep_zeros=not gate)
    except ValueError as error:
        why = closed_gate(name, factor, "on a whole response") if gate else f"weight {name}: {error}"
        raise RunError(why) from error


def closed_gate(name: str, factor: Factor, where: str) -> str:
    """The message for a gate exp(-tau * v) that is 0 on every token. where: the tokens meant."""
    setting = "gate.tau" if name == "gate" else f"tau of the weight {name}"
    tau = getattr(factor.map, "tau", None)
    return f"every gate is 0 ({where}): the drift is too large for {setting} = {tau}; lower it"
