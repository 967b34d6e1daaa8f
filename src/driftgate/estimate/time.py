"""Time of a run on one GPU, in seconds.

Operations and bytes are counted from the models' sizes. They are divided by the GPU's rates and the assumed shares.
"""

import math
from dataclasses import dataclass, fields

from ..config import ModelSettings
from ..objectives import Objective
from .assumptions import Assumptions
from .gpus import Gpu
from .memory import exam_rows
from .precision import product_width
from .shapes import Shape
from .workload import Workload


@dataclass(frozen=True)
class Seconds:
    """Seconds of a whole run."""

    rollout: float
    behaviour: float
    """The student's own forward over its rollouts. Counted in full, though a first minibatch often needs none."""
    teacher: float
    update: float
    evaluation: float

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Responses:
    """Responses to be written."""

    count: int
    rows: int
    """Decoded at once."""
    mean: float
    """Mean tokens of one."""
    limit: int
    """Most tokens of one."""


def seconds_of(work: Workload, gpu: Gpu) -> Seconds:
    """Seconds of a run and of the examination of its model. All ranks work at the same time; one examines."""
    config, needs = work.config, work.needs
    student = work.student, config.student
    teacher = (work.teacher, work.teacher_settings) if work.teachers else student
    targets = {"teacher": teacher, "initial": student}
    written = Responses(work.share, work.rows, work.mean, work.limit)
    asked = Responses(work.exam_responses, exam_rows(work, gpu), work.exam_mean, work.exam_limit)
    decoders: list[tuple[Shape, ModelSettings]] = [student, teacher] if config.rollout.kl_budget else [student]
    rollout = sum(decoding_seconds(written, *decoder, work.assumed, gpu) for decoder in decoders)
    behaviour = _scoring(work, gpu, *student) if "behaviour" in needs else 0.0
    elsewhere = {"behaviour", *(["teacher"] if config.served_teachers and work.teacher_settings.served else [])}
    scored = sum(_scoring(work, gpu, *targets[name]) for name in needs if name not in elsewhere)
    exam = decoding_seconds(asked, *student, work.assumed, gpu)
    steps, batches = config.steps, work.batches
    return Seconds(batches * rollout, batches * behaviour, batches * scored, steps * _update(work, gpu), exam)


def decoding_seconds(
    responses: Responses, shape: Shape, settings: ModelSettings, assumed: Assumptions, gpu: Gpu
) -> float:
    """Seconds to write `responses`: the largest of reading, computing and launching kernels.

    The longest response of each batch is assumed to reach the limit. So many decoding steps read the weights.
    """
    width, mean, count = product_width(settings), responses.mean, responses.count
    steps = math.ceil(count / responses.rows) * responses.limit
    attended = count * (mean * assumed.prompt_tokens + mean**2 / 2)
    read = steps * shape.read_per_step * width + attended * shape.kv_bytes(width)
    reading = read / (gpu.bandwidth * assumed.bandwidth_share)
    computing = _forward_flops(shape, count, assumed.prompt_tokens, mean) / (
        peak_flops(gpu, settings) * assumed.scoring_share
    )
    return max(reading, computing, steps * shape.layers * assumed.launch)


def peak_flops(gpu: Gpu, settings: ModelSettings) -> float:
    """Operations a second in the type of the products. float64 is assumed to run at half the rate of float32."""
    return {2: gpu.bf16, 4: gpu.fp32, 8: gpu.fp32 / 2}[product_width(settings)]


def _forward_flops(shape: Shape, count: int, prompt: int, mean: float) -> float:
    """Operations of a forward over `count` sequences, with one product with the vocabulary for each response token."""
    length = prompt + mean
    return count * (length * shape.forward_flops(length) + mean * shape.head_flops)


def _scoring(work: Workload, gpu: Gpu, shape: Shape, settings: ModelSettings) -> float:
    """Seconds of a forward over a rank's share of a step's rollouts."""
    flops = _forward_flops(shape, work.share, work.assumed.prompt_tokens, work.mean)
    return flops / (peak_flops(gpu, settings) * work.assumed.scoring_share)


def _update(work: Workload, gpu: Gpu) -> float:
    """Seconds of all passes over a rank's share of a step's rollouts. A backward costs two forwards, recomputation one
    more."""
    config = work.config
    forwards = 4 if config.student.gradient_checkpointing else 3
    body = work.length * forwards * work.student.forward_flops(work.length)
    head = work.mean * _head_flops(work)
    diagnosed = 1 + (1 / config.diagnostics.every if config.diagnostics.every else 0)
    flops = config.passes * diagnosed * work.share * (body + head)
    return flops / (peak_flops(gpu, config.student) * work.assumed.training_share)


def _head_flops(work: Workload) -> float:
    """Operations with the vocabulary that an update's loss takes a token. All terms share one look at the head."""
    objectives = [term.objective for term in work.config.all_terms.values() if term.responses == "student"]
    return max(_objective_flops(work, objective) for objective in objectives)


def _objective_flops(work: Workload, objective: Objective) -> float:
    """An objective that does not read the vocabulary reads K rows of the head; where log p(y_t) is wanted, all of it
    is read once, without gradient. Others take logits, their recomputation and two products of the backward pass. A
    divergence over the vocabulary takes the target's logits twice as well."""
    head = work.student.head_flops
    whole = [name for name, needs in objective.needs.items() if needs.hidden]
    if whole:
        target = work.teacher if whole == ["teacher"] else work.student
        return 4 * head + 2 * target.head_flops
    return 4 * head if objective.reads_vocabulary else head * ("logp" in work.config.reads)
