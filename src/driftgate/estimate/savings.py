"""What each memory setting would save at the peak of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from .adapters import Adapters
from .gpus import GB
from .memory import longest_sequence, memory_of
from .workload import Workload

RANK = 16
"""Of the adapters that are compared with training the weights."""
Change = Callable[[Workload], Workload]


@dataclass(frozen=True)
class Saving:
    """One setting, or several, and what it would do to the peak."""

    setting: str
    """As on the command line."""
    saved: float
    """Bytes less at the peak, with all responses at their limit. 0 where another phase than the setting's has the peak;
    negative where it costs memory."""


def savings(work: Workload) -> list[Saving]:
    """Every setting that would do something to this run, the one that saves most first."""
    found = [_saving(work, name, [change]) for name, change in {**same_training(work), **other_training(work)}.items()]
    return sorted(found, key=lambda saving: -saving.saved)


def all_together(work: Workload) -> Saving:
    """All settings that leave the training as it is, at once."""
    changes = same_training(work)
    return _saving(work, " ".join(_joined(changes)), list(changes.values()))


def same_training(work: Workload) -> dict[str, Change]:
    """Settings that change results by rounding at most, on as many GPUs."""
    config, found = work.config, {}
    waiting = [part for part in ("teacher", "optimizer") if part not in config.offload]
    for part in waiting:
        parts = (*config.offload, part)
        found[f"offload=[{','.join(parts)}]"] = lambda work, part=part: _offloaded(work, part)
    if not config.student.gradient_checkpointing:
        found["student.gradient_checkpointing=true"] = lambda work: _student(work, gradient_checkpointing=True)
    rows = max(config.rollout.samples, work.rows // 2 // config.rollout.samples * config.rollout.samples)
    if rows < work.rows and config.rollout.engine.kind == "hf":
        rollout = config.rollout.model_copy(update={"batch": rows})
        found[f"rollout.batch={rows}"] = lambda work: _changed(work, rollout=rollout)
    tokens = config.microbatch_tokens // 2
    if longest_sequence(work) <= tokens:
        found[f"microbatch_tokens={tokens}"] = lambda work: _changed(work, microbatch_tokens=tokens)
    return found


def other_training(work: Workload) -> dict[str, Change]:
    """Settings that train something else, or on more GPUs."""
    found: dict[str, Change] = {}
    if work.adapters is None:
        found[f"student.lora.rank={RANK}"] = lambda work: replace(work, adapters=Adapters(RANK))
    ranks = 2 * work.ranks
    found[f"--processes {ranks}"] = lambda work: replace(work, ranks=ranks)
    return found


def bytes_text(count: float) -> str:
    """For people, in three figures: "22.1 GB", "3.4 MB"."""
    unit, name = (GB, "GB") if abs(count) >= GB / 10 else (1e6, "MB")
    return f"{count / unit:,.3g} {name}"


def _saving(work: Workload, setting: str, changes: Sequence[Change]) -> Saving:
    changed = reduce(lambda before, change: change(before), changes, work)
    return Saving(setting, memory_of(work).peak - memory_of(changed).peak)


def _joined(changes: dict[str, Change]) -> list[str]:
    """Both parts of `offload` in one."""
    others = [name for name in changes if not name.startswith("offload=")]
    return (["offload=[teacher,optimizer]"] if len(others) < len(changes) else []) + others


def _offloaded(work: Workload, part: str) -> Workload:
    return _changed(work, offload=(*work.config.offload, part))


def _student(work: Workload, **changes: Any) -> Workload:
    return _changed(work, student=work.config.student.model_copy(update=changes))


def _changed(work: Workload, **changes: Any) -> Workload:
    return replace(work, config=work.config.model_copy(update=changes))
