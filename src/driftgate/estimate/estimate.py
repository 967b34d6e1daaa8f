"""What a run would take on one GPU: tokens, memory and time, before anything is started.

Arithmetic from the models' sizes and the makers' data sheets, with every assumption named; nothing of it is measured.
Bytes are counted in GB of 1e9, times in seconds of one GPU.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from rich.console import Group
from rich.table import Table

from ..config import ModelSettings, TrainConfig
from ..errors import InputError
from ..evaluate.batch import MOST, SHARE
from ..evaluate.evaluate import LONGEST
from ..method.head import CHUNK
from ..objectives import Objective
from ..objectives.divergence import DivergenceObjective
from ..objectives.lsm import LsmObjective
from ..rollout.cache import GROWTH
from ..train.scoring import needs_of
from .shapes import Shape, shape_of

GB = 1e9
PHASES = ("resident", "rollout", "update")
"""Parts of Memory."""
WIDTHS = {"float32": 4, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU, dense rates."""

    name: str
    bf16: float
    """bfloat16 operations a second, sums in float32."""
    fp32: float
    bandwidth: float
    """Bytes a second."""
    memory: float
    """Bytes."""


GPUS = (
    Gpu("H200", 989e12, 67e12, 4.8e12, 141 * GB),
    Gpu("H100", 989e12, 67e12, 3.35e12, 80 * GB),
    Gpu("A100", 312e12, 19.5e12, 2.039e12, 80 * GB),
    Gpu("RTX 4090", 165.2e12, 82.6e12, 1.008e12, 24 * GB),
)
"""NVIDIA's data sheets: H200, H100 and A100 80GB as SXM, the Ada whitepaper for the RTX 4090; without sparsity."""


def _assumed(meaning: str, value: Any = MISSING) -> Any:
    """A field that is printed by its meaning."""
    return field(default=value, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Assumptions:
    """What the estimate takes for granted; each is printed with it."""

    mean_length: float = _assumed("mean length of a response, as a fraction of max_new_tokens")
    prompt_tokens: int = _assumed("tokens of a prompt", 256)
    training_share: float = _assumed("share of the peak operations that forward and backward reach", 0.4)
    scoring_share: float = _assumed("share of the peak operations that forwards alone reach", 0.5)
    bandwidth_share: float = _assumed("share of the peak bandwidth at which decoding reads weights and cache", 0.6)
    launch: float = _assumed("seconds to launch a layer's kernels at a decoding step, however little they do", 0.25e-3)
    usable: float = _assumed("share of the memory that is usable; the rest goes to fragments", 0.92)
    context: float = _assumed("bytes of the CUDA context and its libraries", 1.5 * GB)


@dataclass(frozen=True)
class Tokens:
    """Response tokens of a whole run, prompts not counted."""

    rollout: float
    trained: float
    """Rollout tokens times passes."""
    teacher: float
    """Scored by the teacher."""
    evaluation: float


@dataclass(frozen=True)
class Memory:
    """Bytes by component: what stays, and what each phase adds."""

    resident: Mapping[str, float]
    rollout: Mapping[str, float]
    """With every response at its limit."""
    rollout_mean: float
    """The same sum with every response at the mean length."""
    update: Mapping[str, float]
    a_response: float
    """Bytes of a rollout phase that one response more adds, at its limit."""

    @property
    def peak(self) -> float:
        """Most bytes at a time, whatever the responses' lengths."""
        return self._with(sum(self.rollout.values()))

    @property
    def peak_mean(self) -> float:
        """The same with responses of the mean length."""
        return self._with(self.rollout_mean)

    def _with(self, rollout: float) -> float:
        return sum(self.resident.values()) + max(rollout, sum(self.update.values()))


@dataclass(frozen=True)
class Seconds:
    """Of a whole run on one GPU."""

    rollout: float
    behaviour: float
    """The student's own forward over its rollouts; counted in full, though a first minibatch often does without."""
    teacher: float
    update: float
    evaluation: float

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))


@dataclass(frozen=True)
class Estimate:
    """One run and its examination."""

    student: Shape
    teacher: Shape
    tokens: Tokens
    memory: Memory
    seconds: Mapping[str, Seconds]
    """By kind of GPU."""
    assumptions: Assumptions
    rows: int
    """Responses decoded at once."""
    samples: int
    """Responses of a prompt."""
    notes: tuple[str, ...] = field(default=())
    """What of this configuration is not counted."""

    def fits(self, gpu: Gpu) -> str:
        """Of the run: "yes", "at the mean length" (not if all responses reach their limit), or "no"."""
        usable = gpu.memory * self.assumptions.usable
        if self.memory.peak <= usable:
            return "yes"
        return "at the mean length" if self.memory.peak_mean <= usable else "no"

    def fitting_batch(self, gpu: Gpu) -> int:
        """The largest `rollout.batch` with which the run fits, whatever the responses' lengths; 0 for none."""
        memory = self.memory
        free = gpu.memory * self.assumptions.usable - sum(memory.resident.values())
        if free < sum(memory.update.values()):
            return 0
        fixed = sum(memory.rollout.values()) - memory.a_response * self.rows
        rows = max(0, math.floor((free - fixed) / memory.a_response))
        return rows // self.samples * self.samples  # a prompt's responses are decoded together


@dataclass(frozen=True)
class _Sizes:
    """The numbers that all parts of the estimate need."""

    config: TrainConfig
    student: Shape
    teacher: Shape
    exam_responses: int
    exam_limit: int
    exam_batch: int | None
    assumed: Assumptions

    @property
    def responses(self) -> int:
        """Of a step."""
        return self.config.prompts.per_step * self.config.rollout.samples

    @property
    def limit(self) -> int:
        return self.config.rollout.max_new_tokens

    @property
    def mean(self) -> float:
        """Tokens of a response."""
        return self.assumed.mean_length * self.limit

    @property
    def exam_mean(self) -> float:
        return self.assumed.mean_length * self.exam_limit

    @property
    def rows(self) -> int:
        """Responses decoded at once."""
        return min(self.responses, max(self.config.rollout.batch or self.responses, self.config.rollout.samples))

    def exam_rows(self, gpu: Gpu) -> int:
        """Of an examination, which takes as many as `evaluate.batch` finds room for beside the student, if not told."""
        if self.exam_batch:
            return self.exam_batch
        settings, shape = self.config.student, self.student
        taken = self.assumed.context + shape.parameters * WIDTHS[settings.dtype] + _copy(shape, settings)
        positions = self.assumed.prompt_tokens + self.exam_limit
        room = SHARE * max(0.0, gpu.memory * self.assumed.usable - taken)
        return max(1, min(MOST, int(room // (positions * shape.kv_bytes(_width(settings))))))


def estimate(
    config: TrainConfig,
    exam_problems: int,
    exam_samples: int,
    exam_max_new_tokens: int | None,
    mean_length: float,
    assumed: Assumptions | None = None,
    exam_batch: int | None = None,
) -> Estimate:
    """What one run and the examination of its model take. `mean_length`: a response's expected length as a fraction
    of max_new_tokens, from above 0 to 1. exam_max_new_tokens: null for what an examination takes by itself, LONGEST or
    what the student's context has room for. `assumed`: other assumptions; its own mean_length then does not count.
    exam_batch: answers that an examination decodes at once, null for as many as fit.

    Raises InputError for a length out of range, and for a model whose sizes are not known.
    """
    if not 0 < mean_length <= 1:
        raise InputError(f"mean_length = {mean_length}: give a fraction of max_new_tokens, above 0 and at most 1")
    values = {} if assumed is None else {f.name: getattr(assumed, f.name) for f in fields(assumed)}
    assumptions = Assumptions(**{**values, "mean_length": mean_length})
    shapes = shape_of(config.student.path, "student"), shape_of(config.teacher.path, "teacher")
    room = (shapes[0].context or 2 * LONGEST) - assumptions.prompt_tokens
    exam_limit = exam_max_new_tokens or min(LONGEST, max(1, room))
    sizes = _Sizes(config, *shapes, exam_problems * exam_samples, exam_limit, exam_batch, assumptions)
    seconds = {gpu.name: _seconds(sizes, gpu) for gpu in GPUS}
    rows, samples = sizes.rows, config.rollout.samples
    return Estimate(*shapes, _tokens(sizes), _memory(sizes), seconds, assumptions, rows, samples, _notes(config))


def _tokens(sizes: _Sizes) -> Tokens:
    rollout = sizes.config.steps * sizes.responses * sizes.mean
    scored = "teacher" in needs_of(sizes.config, "student", 0)
    evaluation = sizes.exam_responses * sizes.exam_mean
    return Tokens(rollout, rollout * sizes.config.passes, rollout if scored else 0.0, evaluation)


# --- memory


def _memory(sizes: _Sizes) -> Memory:
    config, student = sizes.config, sizes.student
    weights = student.parameters * WIDTHS[config.student.dtype]
    copy = _copy(student, config.student)
    rollout = {"student in the type of its products": copy, **_decoding(sizes, sizes.rows, sizes.limit)}
    mean = copy + sum(_decoding(sizes, sizes.rows, sizes.mean).values())
    return Memory(
        resident=_resident(sizes, weights),
        rollout=rollout,
        rollout_mean=mean,
        update={"gradients": weights, "student in the type of its products": copy, **_update_memory(sizes)},
        a_response=sum(_decoding(sizes, 1, sizes.limit).values()),
    )


def _resident(sizes: _Sizes, weights: float) -> dict[str, float]:
    """What stays in memory from the first update to the last."""
    teacher = sizes.teacher.parameters * WIDTHS[sizes.config.teacher.dtype]
    initial = {"initial student": weights} if _held_to_initial(sizes.config) else {}
    student = {"student": weights, "AdamW": 2 * weights}
    return {**student, "teacher": teacher, **initial, "CUDA": sizes.assumed.context}


def _copy(shape: Shape, settings: ModelSettings) -> float:
    """Of weights that are cast for the matrix products (autocast, decoding)."""
    cast = settings.compute is not None and settings.compute != settings.dtype
    return shape.parameters * WIDTHS[settings.compute] if cast and settings.compute else 0.0


def _decoding(sizes: _Sizes, rows: int, length: float) -> dict[str, float]:
    """Cache of `rows` responses of `length` tokens, and what drawing a token takes of all of them."""
    config = sizes.config
    found = {"cache": _cache(sizes.student, config.student, sizes, rows, length)}
    if config.rollout.kl_budget:
        found["teacher's cache"] = _cache(sizes.teacher, config.teacher, sizes, rows, length)
    # logits, sorted and with their places, and their running sum in float64
    return found | {"drawing": rows * sizes.student.vocabulary * (4 + 4 + 8 + 8)}


def _cache(shape: Shape, settings: ModelSettings, sizes: _Sizes, rows: int, length: float) -> float:
    """With the room that a growing cache keeps free: a quarter, `GROWTH` positions at least."""
    positions = sizes.assumed.prompt_tokens + length
    return rows * (positions + max(GROWTH, positions / 4)) * shape.kv_bytes(_width(settings))


def _update_memory(sizes: _Sizes) -> dict[str, float]:
    """Activations of the largest micro-batch and the head's chunk with its gradient."""
    config, student = sizes.config, sizes.student
    longest = math.ceil(sizes.assumed.prompt_tokens + sizes.limit)
    tokens = min(max(config.microbatch_tokens, longest), sizes.responses * longest)
    of_layer = activation_bytes(student, config.student)
    kept = student.hidden * (2 if config.student.dtype == "bfloat16" else WIDTHS[config.student.dtype])
    if config.student.gradient_checkpointing:
        activations = tokens * (student.layers * kept + of_layer)
    else:
        activations = tokens * student.layers * of_layer
    chunk = 2 * CHUNK * student.vocabulary * 4
    return {"activations": activations, "head": chunk + student.embedding * (4 + _width(config.student))}


def activation_bytes(shape: Shape, settings: ModelSettings) -> float:
    """Bytes that a layer keeps of a position for the backward pass, without recomputation.

    Counted in transformers' Qwen3 layer with fused attention: its norms keep float32, its products their operands.
    """
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if _width(settings) == 2:
        stream = 16 if settings.dtype == "bfloat16" else 26  # the residual stream is float32 under autocast
        return stream * shape.hidden + 10 * (queries + keys) + 8 * shape.intermediate
    wide = _width(settings) / 4
    return wide * (24 * shape.hidden + 16 * (queries + keys + shape.intermediate))


def _width(settings: ModelSettings) -> int:
    """Bytes of a number in the matrix products."""
    return WIDTHS[settings.compute or settings.dtype]


# --- time


def _seconds(sizes: _Sizes, gpu: Gpu) -> Seconds:
    config, assumed = sizes.config, sizes.assumed
    needs = needs_of(config, "student", 0)
    targets = {"teacher": (sizes.teacher, config.teacher), "initial": (sizes.student, config.student)}
    behaviour = _scoring(sizes, gpu, sizes.student, config.student) if "behaviour" in needs else 0.0
    scored = sum(_scoring(sizes, gpu, *targets[name]) for name in needs if name != "behaviour")
    decoders: list[tuple[Shape, ModelSettings]] = [(sizes.student, config.student)]
    if config.rollout.kl_budget:
        decoders.append((sizes.teacher, config.teacher))
    rollout = sum(
        _decode(sizes.responses, sizes.rows, sizes.mean, sizes.limit, *decoder, assumed, gpu) for decoder in decoders
    )
    rows, mean, limit = sizes.exam_rows(gpu), sizes.exam_mean, sizes.exam_limit
    exam = _decode(sizes.exam_responses, rows, mean, limit, *decoders[0], assumed, gpu)
    update = _update(sizes, gpu)
    steps = config.steps
    return Seconds(steps * rollout, steps * behaviour, steps * scored, steps * update, exam)


def _decode(
    responses: int,
    rows: int,
    mean: float,
    limit: int,
    shape: Shape,
    settings: ModelSettings,
    assumed: Assumptions,
    gpu: Gpu,
) -> float:
    """Seconds in which `responses` are written, `rows` at a time: the largest of reading, computing and launching.

    The longest response of each batch is taken to reach `limit`: so many decoding steps read the weights.
    """
    width = _width(settings)
    steps = math.ceil(responses / rows) * limit
    looked_at = responses * (mean * assumed.prompt_tokens + mean**2 / 2)
    read = steps * shape.read_per_step * width + looked_at * shape.kv_bytes(width)
    length = assumed.prompt_tokens + mean
    flops = responses * (length * shape.forward_flops(length) + mean * shape.head_flops)
    reading = read / (gpu.bandwidth * assumed.bandwidth_share)
    return max(reading, flops / (_peak(gpu, settings) * assumed.scoring_share), steps * shape.layers * assumed.launch)


def _scoring(sizes: _Sizes, gpu: Gpu, shape: Shape, settings: ModelSettings) -> float:
    """Seconds of a forward over a step's rollouts, with one product with the vocabulary."""
    length = sizes.assumed.prompt_tokens + sizes.mean
    flops = sizes.responses * (length * shape.forward_flops(length) + sizes.mean * shape.head_flops)
    return flops / (_peak(gpu, settings) * sizes.assumed.scoring_share)


def _update(sizes: _Sizes, gpu: Gpu) -> float:
    """Seconds of all passes over a step's rollouts; a backward costs two forwards, recomputation one more."""
    config, student = sizes.config, sizes.student
    length = sizes.assumed.prompt_tokens + sizes.mean
    forwards = 4 if config.student.gradient_checkpointing else 3
    body = length * forwards * student.forward_flops(length)
    head = sizes.mean * _head_flops(sizes)
    diagnosed = 1 + (1 / config.diagnostics.every if config.diagnostics.every else 0)
    flops = config.passes * diagnosed * sizes.responses * (body + head)
    return flops / (_peak(gpu, config.student) * sizes.assumed.training_share)


def _head_flops(sizes: _Sizes) -> float:
    """Operations with the vocabulary that an update's loss takes a token: all terms share one look at the head."""
    objectives = [term.objective for term in sizes.config.all_terms.values() if term.responses == "student"]
    return max(_objective_flops(sizes, objective) for objective in objectives)


def _objective_flops(sizes: _Sizes, objective: Objective) -> float:
    """LSM reads K rows of the head, and all of it once, without gradient, where log p(y_t) is wanted. Others take
    logits, their recomputation and two products of the backward; a divergence over the vocabulary the target's too."""
    head = sizes.student.head_flops
    if isinstance(objective, LsmObjective):
        return head * ("logp" in sizes.config.reads)
    if isinstance(objective, DivergenceObjective) and objective.support == "vocabulary":
        target = sizes.teacher if objective.target == "teacher" else sizes.student
        return 4 * head + 2 * target.head_flops
    return 4 * head


def _peak(gpu: Gpu, settings: ModelSettings) -> float:
    """Operations a second in the type that products run in; float64 is taken for half of float32."""
    return {2: gpu.bf16, 4: gpu.fp32, 8: gpu.fp32 / 2}[_width(settings)]


def _held_to_initial(config: TrainConfig) -> bool:
    objectives = [term.objective for term in config.all_terms.values()]
    return any(isinstance(o, DivergenceObjective) and o.target == "initial" for o in objectives)


def _notes(config: TrainConfig) -> tuple[str, ...]:
    """What of a configuration is not counted."""
    others = [name for name, term in config.all_terms.items() if term.responses != "student"]
    notes = [f"terms.{name} learns from {config.all_terms[name].responses} responses" for name in others]
    if config.rollout.horizon is not None:
        notes.append("rollout.horizon keeps responses shorter than max_new_tokens for a while")
    if config.rollout.on_policy < 1:
        notes.append("rollout.on_policy below 1 saves some rollouts")
    if config.rollout.teacher_prefix:
        notes.append("rollout.teacher_prefix has the teacher write, too")
    return tuple(notes)


# --- what is printed


def estimate_table(estimates: Mapping[str, Estimate], seeds: int = 1) -> Group:
    """Tables for the terminal: runs and tokens, memory by component, time and fit by kind of GPU, then what was
    assumed. estimates: of one run of each arm; seeds: runs of each."""
    parts: list[Any] = [_token_table(estimates, seeds), _memory_table(estimates), _time_table(estimates, seeds)]
    return Group(*parts, *_assumption_lines(estimates))


def _token_table(estimates: Mapping[str, Estimate], seeds: int) -> Table:
    table = Table("arm", "student", "teacher", "runs", "rollout", "trained", "teacher's", "evaluation")
    table.title = "Response tokens of all runs, in millions"
    for name, found in estimates.items():
        shown = [f"{seeds * getattr(found.tokens, part.name) / 1e6:,.2f}" for part in fields(Tokens)]
        sizes = [f"{shape.parameters / 1e9:.3g} B" for shape in (found.student, found.teacher)]
        table.add_row(name, *sizes, str(seeds), *shown)
    totals = [sum(getattr(e.tokens, part.name) for e in estimates.values()) for part in fields(Tokens)]
    table.add_section()
    table.add_row("all", "", "", str(seeds * len(estimates)), *(f"{seeds * total / 1e6:,.2f}" for total in totals))
    return table


def _memory_table(estimates: Mapping[str, Estimate]) -> Table:
    """A column for arms that need the same, as components are many."""
    columns = _alike(estimates, lambda e: _memory_cells(e.memory))
    table = Table("phase", "component", *columns, title="Memory on one GPU, GB")
    memories = [e.memory for e in columns.values()]
    for phase in PHASES:
        components = dict.fromkeys(name for memory in memories for name in getattr(memory, phase))
        for place, component in enumerate(components):
            cells = [_gb(getattr(memory, phase).get(component, 0.0)) for memory in memories]
            table.add_row("" if place else phase, component, *cells, end_section=place == len(components) - 1)
    table.add_section()
    table.add_row("peak", "all responses at their limit", *(_gb(memory.peak) for memory in memories))
    table.add_row("", "at the mean length", *(_gb(memory.peak_mean) for memory in memories))
    return table


def _memory_cells(memory: Memory) -> list[Any]:
    """All that the table shows of it."""
    parts = [sorted((name, _gb(bytes_)) for name, bytes_ in getattr(memory, phase).items()) for phase in PHASES]
    return [parts, _gb(memory.peak), _gb(memory.peak_mean)]


def _alike(estimates: Mapping[str, Estimate], shown: Callable[[Estimate], Any]) -> dict[str, Estimate]:
    """One estimate of all arms of which the same is shown, under their names."""
    groups: dict[str, list[str]] = {}
    for name, found in estimates.items():
        groups.setdefault(repr(shown(found)), []).append(name)
    if len(groups) == 1:
        return {"each arm": next(iter(estimates.values()))}
    return {", ".join(names): estimates[names[0]] for names in groups.values()}


def _time_table(estimates: Mapping[str, Estimate], seeds: int) -> Table:
    table = Table("arm", *(f"{gpu.name}, {gpu.memory / GB:.0f} GB" for gpu in GPUS))
    table.title = "Hours of one run with its examination (rollout, scoring, update, examination)"
    for name, found in _alike(estimates, lambda e: [_time_cell(e, gpu) for gpu in GPUS]).items():
        table.add_row(name, *(_time_cell(found, gpu) for gpu in GPUS))
    totals = [sum(seeds * e.seconds[gpu.name].total for e in estimates.values()) for gpu in GPUS]
    table.add_section()
    table.add_row(f"all {seeds * len(estimates)} runs", *(f"{total / 3600:,.2f}" for total in totals))
    return table


def _time_cell(found: Estimate, gpu: Gpu) -> str:
    s = found.seconds[gpu.name]
    parts = (s.rollout, s.behaviour + s.teacher, s.update, s.evaluation)
    return f"{s.total / 3600:,.2f} ({', '.join(f'{part / 3600:,.2f}' for part in parts)}){_fit_text(found, gpu)}"


def _fit_text(found: Estimate, gpu: Gpu) -> str:
    fit, batch = found.fits(gpu), found.fitting_batch(gpu)
    if fit == "yes":
        return ""
    advice = f"; safe with rollout.batch={batch}" if batch else ""
    return f"\n{'does not fit' if fit == 'no' else 'fits at the mean length only'}{advice}"


def _assumption_lines(estimates: Mapping[str, Estimate]) -> list[str]:
    first = next(iter(estimates.values()))
    lines = ["Arithmetic, not measurement; one GPU; times are not estimated for a CPU. Assumed:"]
    lines += [f"- {f.metadata['meaning']}: {getattr(first.assumptions, f.name):g}" for f in fields(Assumptions)]
    lines.append(
        "- the longest response of each batch reaches its limit; padding, checkpoints and grading cost nothing"
    )
    lines.append(f"- an examination decodes exam.batch responses at once, else what fits, at most {MOST}")
    shapes = {f"- {role}: {shape.source}" for e in estimates.values() for role, shape in _roles(e)}
    notes = [f"- not counted, {name}: {note}" for name, e in estimates.items() for note in e.notes]
    return [*lines, *sorted(shapes), *notes]


def _roles(found: Estimate) -> tuple[tuple[str, Shape], ...]:
    return ("student's sizes", found.student), ("teacher's sizes", found.teacher)


def _gb(count: float) -> str:
    return f"{count / GB:,.2f}"
