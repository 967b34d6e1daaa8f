"""Memory of a run on one GPU, by component, in bytes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..config import ModelSettings, StudentSettings
from ..evaluate.batch import EXAM_CACHE_SHARE, EXAM_ROWS_LIMIT
from ..method.head import CHUNK
from ..rollout.cache import GROWTH
from .gpus import Gpu
from .precision import NUMBER_BYTES, product_width, weight_width
from .shapes import Shape
from .workload import Workload

PHASES = ("resident", "rollout", "update")
"""Parts of Memory."""


@dataclass(frozen=True)
class Memory:
    """Bytes by component: what stays in memory, and what each phase adds."""

    resident: Mapping[str, float]
    rollout: Mapping[str, float]
    """With every response at its limit."""
    rollout_mean: float
    """The same sum with every response at the mean length."""
    update: Mapping[str, float]
    a_response: float
    """Bytes that one more response adds to a rollout, at its limit."""

    @property
    def peak(self) -> float:
        """Most bytes at a time, whatever the responses' lengths."""
        return self._with(sum(self.rollout.values()))

    @property
    def peak_mean(self) -> float:
        """Most bytes at a time, with responses of the mean length."""
        return self._with(self.rollout_mean)

    def _with(self, rollout: float) -> float:
        return sum(self.resident.values()) + max(rollout, sum(self.update.values()))


def memory_of(work: Workload) -> Memory:
    """Memory of a run. Rollout and update alternate, so the larger of them counts in the peak."""
    copy = _cast_copy(work.student, work.config.student)
    rollout = {"student in the type of its products": copy, **_decoding(work, work.rows, work.limit)}
    return Memory(
        resident=_resident(work),
        rollout=rollout,
        rollout_mean=copy + sum(_decoding(work, work.rows, work.mean).values()),
        update=_update(work),
        a_response=sum(_decoding(work, 1, work.limit).values()),
    )


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
    """What stays in memory from the first update to the last."""
    weights = work.student.parameters * weight_width(work.config.student)
    teacher = work.teacher.parameters * weight_width(work.config.teacher)
    initial = {"initial student": weights} if work.held_to_initial else {}
    return {"student": weights, "AdamW": 2 * weights, "teacher": teacher, **initial, "CUDA": work.assumed.context}


def _cast_copy(shape: Shape, settings: ModelSettings) -> float:
    """Weights cast for the matrix products (autocast, decoding)."""
    cast = settings.compute is not None and settings.compute != settings.dtype
    return shape.parameters * NUMBER_BYTES[settings.compute] if cast and settings.compute else 0.0


def _decoding(work: Workload, rows: int, length: float) -> dict[str, float]:
    """The cache of `rows` responses of `length` tokens, and what it takes to draw a token of each."""
    config = work.config
    found = {"cache": _cache(work, work.student, config.student, rows, length)}
    if config.rollout.kl_budget:
        found["teacher's cache"] = _cache(work, work.teacher, config.teacher, rows, length)
    # logits, the sorted logits with their places, and their running sum in float64
    return found | {"drawing": rows * work.student.vocabulary * (4 + 4 + 8 + 8)}


def _cache(work: Workload, shape: Shape, settings: ModelSettings, rows: int, length: float) -> float:
    """A growing cache keeps a quarter of its positions free, and at least `GROWTH`."""
    positions = work.assumed.prompt_tokens + length
    return rows * (positions + max(GROWTH, positions / 4)) * shape.kv_bytes(product_width(settings))


def _update(work: Workload) -> dict[str, float]:
    """Gradients, the cast weights, activations of the largest micro-batch, the head's chunk with its gradient."""
    settings, shape = work.config.student, work.student
    longest = math.ceil(work.assumed.prompt_tokens + work.limit)
    positions = min(max(work.config.microbatch_tokens, longest), work.responses * longest)
    return {
        "gradients": shape.parameters * weight_width(settings),
        "student in the type of its products": _cast_copy(shape, settings),
        "activations": _activations(shape, settings, positions),
        "head": 2 * CHUNK * shape.vocabulary * 4 + shape.embedding * (4 + product_width(settings)),
    }


def _activations(shape: Shape, settings: StudentSettings, positions: int) -> float:
    """With recomputation a layer keeps its input alone, and one layer at a time is whole."""
    a_layer = activation_bytes(shape, settings)
    if settings.gradient_checkpointing:
        return positions * (shape.layers * shape.hidden * weight_width(settings) + a_layer)
    return positions * shape.layers * a_layer
