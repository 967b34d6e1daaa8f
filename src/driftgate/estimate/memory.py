"""Memory of a run on one GPU, by component, in bytes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import ModelSettings, StudentSettings
from ..evaluate.batch import EXAM_CACHE_SHARE, EXAM_ROWS_LIMIT
from ..method.head import CHUNK
from ..rollout.cache import GROWTH
from ..train.timetable import overlaps
from .adapters import ADAPTER_WIDTH
from .gpus import Gpu
from .precision import NUMBER_BYTES, product_width, weight_width
from .shapes import Shape
from .workload import Workload

PHASES = ("resident", "rollout", "scoring", "update", "step")
"""Parts of Memory."""


@dataclass(frozen=True)
class Memory:
    """Bytes by component on one GPU: what stays in memory, and what each phase adds."""

    resident: Mapping[str, float]
    rollout: Mapping[str, float]
    """With every response at its limit."""
    rollout_mean: float
    """The same sum with every response at the mean length."""
    scoring: Mapping[str, float]
    """While the teacher scores. Empty where it is resident: then an update takes more."""
    update: Mapping[str, float]
    step: Mapping[str, float]
    """While the optimiser steps. Empty where its state is resident: then the rest of an update takes more."""
    a_response: float
    """Bytes that one more response adds to a rollout, at its limit."""
    saved: float
    """Bytes of a checkpoint: what is trained, and AdamW's two means of it."""

    @property
    def peak(self) -> float:
        """Most bytes at a time, whatever the responses' lengths."""
        return self._with(sum(self.rollout.values()))

    @property
    def peak_mean(self) -> float:
        """Most bytes at a time, with responses of the mean length."""
        return self._with(self.rollout_mean)

    @property
    def beside_rollout(self) -> float:
        """Most bytes that a phase other than the rollout adds."""
        return max(sum(phase.values()) for phase in (self.scoring, self.update, self.step))

    def _with(self, rollout: float) -> float:
        return sum(self.resident.values()) + max(rollout, self.beside_rollout)


def memory_of(work: Workload) -> Memory:
    """Memory of a run on each of its GPUs. The phases alternate, so the largest of them counts in the peak."""
    copies = _decoding_copies(work)
    waits = "teacher" in work.config.offload
    optimizer_waits = "optimizer" in work.config.offload
    trained = _trained(work)
    return Memory(
        resident=_resident(work),
        rollout={**copies, **_decoding(work, work.rows, work.limit)},
        rollout_mean=sum(copies.values()) + sum(_decoding(work, work.rows, work.mean).values()),
        scoring=_scoring(work) if waits else {},
        update=_update(work),
        step={"gradients": trained / work.ranks, "AdamW": 2 * trained / work.ranks} if optimizer_waits else {},
        a_response=sum(_decoding(work, 1, work.limit).values()),
        saved=3 * trained,
    )


def longest_sequence(work: Workload) -> int:
    """Positions of a prompt with a response at its limit."""
    return math.ceil(work.assumed.prompt_tokens + work.limit)


def exam_rows(work: Workload, gpu: Gpu) -> int:
    """Responses that an examination decodes at once: as told, else as many as `evaluate.batch` finds room for beside
    the student."""
    if work.exam_batch:
        return work.exam_batch
    settings, shape = work.config.student, work.student
    taken = work.assumed.context + shape.parameters * weight_width(settings) + _cast_copy(shape, settings)
    positions = work.assumed.prompt_tokens + work.exam_limit
    room = EXAM_CACHE_SHARE * max(0.0, gpu.memory * work.assumed.usable - taken)
    return max(1, min(EXAM_ROWS_LIMIT, int(room // (positions * shape.kv_bytes(product_width(settings))))))


def activation_bytes(shape: Shape, settings: ModelSettings) -> float:
    """Bytes that a layer keeps of a position for the backward pass, without recomputation.

    Counted in transformers' Qwen3 layer with fused attention: its norms keep float32, its products their operands.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if product_width(settings) == 2:
        stream = 16 if settings.dtype == "bfloat16" else 26  # the residual stream is float32 under autocast
        return stream * shape.hidden + 10 * (queries + keys) + 8 * shape.intermediate
    wide = product_width(settings) / 4
    return wide * (24 * shape.hidden + 16 * (queries + keys + shape.intermediate))


def _resident(work: Workload) -> dict[str, float]:
    """What stays in memory from the first update to the last, without what is offloaded."""
    config, trained = work.config, _trained(work) / work.ranks
    found = {"student": work.student.parameters * weight_width(config.student) / work.ranks}
    if work.adapters:
        found["adapters"] = trained
    if "optimizer" not in config.offload:
        found["AdamW"] = 2 * trained
    if "teacher" not in config.offload:
        found |= _targets(work)
    if overlaps(config):
        found["weights that write ahead"] = trained
    if work.ranks > 1:
        found |= _target_head(work)
    return found | {"CUDA": work.assumed.context}


def _trained(work: Workload) -> float:
    """Bytes of what is trained, over all ranks: the weights, or the adapters."""
    if work.adapters:
        return work.adapters.parameters(work.student) * ADAPTER_WIDTH
    return work.student.parameters * weight_width(work.config.student)


def _targets(work: Workload) -> dict[str, float]:
    """The models that score the student. The base of adapters is itself the initial student, and may be the teacher."""
    found = {}
    for role, settings in work.config.local_teachers.items():
        if not (work.adapters and settings.path == "student"):
            found[role] = work.teachers[role].parameters * weight_width(settings) / work.ranks
    if work.held_to_initial and not work.adapters:
        found["initial student"] = work.student.parameters * weight_width(work.config.student) / work.ranks
    return found


def _scoring(work: Workload) -> dict[str, float]:
    """The largest model that comes to score, one layer of its forward, and the head's chunk."""
    targets = _targets(work)
    if not targets:
        return {}
    name = max(targets, key=lambda name: targets[name])
    known = {role: (work.teachers[role], settings) for role, settings in work.config.teacher_roles.items()}
    shape, settings = known.get(name, (work.student, work.config.student))
    whole = {name: targets[name]} if work.ranks == 1 else {}  # shards come a layer at a time
    return {
        **whole,
        "in the type of its products": _cast_copy(shape, settings),
        **_gathered(work, shape, settings),
        "activations": _positions(work) * activation_bytes(shape, settings),
        "head": 2 * CHUNK * shape.vocabulary * 4,
    }


def _gathered(work: Workload, shape: Shape, settings: ModelSettings) -> dict[str, float]:
    """What a rank gathers of the others' shares at a time: the embeddings and two layers."""
    if work.ranks == 1:
        return {}
    embeddings = shape.embedding * (1 if shape.tied else 2)
    return {"gathered layers": (embeddings + 2 * shape.matrices / shape.layers) * weight_width(settings)}


def _decoding_copies(work: Workload) -> dict[str, float]:
    """Copies of the models that write, or are sent to servers: cast to the type of their products, whole where the live
    weights are sharded, with the adapters merged where there are some."""
    config = work.config
    copy = _decoding_copy(work, work.student, config.student)
    if work.adapters:
        copy = max(copy, work.adapters.target_parameters(work.student) * product_width(config.student))
    found = {"student's copy for decoding": copy}
    if config.rollout.kl_budget:
        found["teacher's copy for decoding"] = _decoding_copy(work, work.teacher, work.teacher_settings)
        if "teacher" in config.offload and work.ranks == 1:
            found["teacher"] = _targets(work).get("teacher", 0.0)
    return found


def _decoding_copy(work: Workload, shape: Shape, settings: ModelSettings) -> float:
    return shape.parameters * product_width(settings) if work.ranks > 1 else _cast_copy(shape, settings)


def _cast_copy(shape: Shape, settings: ModelSettings) -> float:
    """Weights cast for the matrix products (autocast, decoding)."""
    cast = settings.compute is not None and settings.compute != settings.dtype
    return shape.parameters * NUMBER_BYTES[settings.compute] if cast and settings.compute else 0.0


def _decoding(work: Workload, rows: int, length: float) -> dict[str, float]:
    """The cache of `rows` responses of `length` tokens, and what it takes to draw a token of each. Servers have memory
    of their own."""
    config = work.config
    if config.rollout.engine.kind != "hf":
        return {}
    found = {"cache": _cache(work, work.student, config.student, rows, length)}
    if config.rollout.kl_budget:
        found["teacher's cache"] = _cache(work, work.teacher, work.teacher_settings, rows, length)
    # logits, the sorted logits with their places, and their running sum in float64
    return found | {"drawing": rows * work.student.vocabulary * (4 + 4 + 8 + 8)}


def _cache(work: Workload, shape: Shape, settings: ModelSettings, rows: int, length: float) -> float:
    """A growing cache keeps a quarter of its positions free, and at least `GROWTH`."""
    positions = work.assumed.prompt_tokens + length
    return rows * (positions + max(GROWTH, positions / 4)) * shape.kv_bytes(product_width(settings))


def _update(work: Workload) -> dict[str, float]:
    """Gradients, the cast weights, activations of the largest micro-batch, the head's chunk with its gradient."""
    settings, shape = work.config.student, work.student
    return {
        "gradients": _trained(work) / work.ranks,
        "student in the type of its products": _cast_copy(shape, settings),
        **_gathered(work, shape, settings),
        "activations": _activations(shape, settings, _positions(work)),
        "head": 2 * CHUNK * shape.vocabulary * 4 + shape.embedding * (4 + product_width(settings)),
        **(_target_head(work) if "teacher" in work.config.offload and work.ranks == 1 else {}),
    }


def _target_head(work: Workload) -> dict[str, float]:
    """The output embedding of a target, whole, where a divergence over the vocabulary reads it."""
    heads = {"initial": work.student.embedding * weight_width(work.config.student)}
    if work.teachers:
        heads["teacher"] = work.teacher.embedding * weight_width(work.teacher_settings)
    read = {n for t in work.config.all_terms.values() for n, needs in t.objective.needs.items() if needs.hidden}
    return {"target's output embedding": max(heads[name] for name in read)} if read else {}


def _positions(work: Workload) -> int:
    """Positions of the largest micro-batch."""
    longest = longest_sequence(work)
    return min(max(work.config.microbatch_tokens, longest), work.responses * longest)


def _activations(shape: Shape, settings: StudentSettings, positions: int) -> float:
    """With recomputation a layer keeps its input alone, and one layer at a time is whole."""
    a_layer = activation_bytes(shape, settings)
    if settings.gradient_checkpointing:
        return positions * (shape.layers * shape.hidden * weight_width(settings) + a_layer)
    return positions * shape.layers * a_layer
