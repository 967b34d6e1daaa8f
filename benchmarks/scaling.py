"""How cost and memory grow with each size, one varied at a time, and what the gate is of a whole step.

    python benchmarks/scaling.py [--repeats 3] [--quick]

Of the head, forward and backward: tokens, vocabulary and support. Of the gate's arithmetic: tokens and block size. Of
a step of training (rollout, scoring, updates): passes, on the embedded pair; and there and on a wider model what the
gate costs, told apart into its arithmetic and the log-probabilities that only it reads. Growth is told as the slope of
a line through the logarithms, with its standard error and the range of the slopes of the single rounds.
Writes benchmarks/results/scaling.json and scaling.png.
"""

import functools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import measure
import torch
from torch import Tensor

from driftgate.method import head
from driftgate.method.gates import drift_gate, unit_mean
from driftgate.method.objectives import sampled_token_loss, topk_reverse_kl
from driftgate.method.spans import fixed_spans, sequence_spans
from driftgate.verify.grading import Grader

if __name__ != "__mp_main__":  # a process that measures the head's memory needs none of these, and seconds to load them
    import scaling_plots
    from rich.console import Console
    from scipy.stats import linregress
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from driftgate.data.prompts import Problem, Prompt
    from driftgate.data.tasks import training_problems
    from driftgate.models.policy import Policy
    from driftgate.recipe import load_recipe
    from driftgate.rollout.hf import HFEngine
    from driftgate.scorers.local import LocalTeacher
    from driftgate.stop import StopSignal
    from driftgate.train import loop, portions, setup, sums
    from driftgate.train.checkpoint import Position
    from driftgate.train.learner import Learner
    from driftgate.train.rollouts import Engines
    from driftgate.train.tracking import Display, Metrics

LEAST_MB = 1.0
"""Memory below this is not told apart from the allocator's noise, and counts as this much."""
CALLS = 20
"""Calls of the gate's arithmetic timed as one: a single one takes less than a millisecond."""


SHARPNESS = 20.0
"""Of the logits of random weights."""


class Shape(NamedTuple):
    """Of the head's inputs."""

    tokens: int
    vocabulary: int
    support: int


BASE = Shape(1024, 32_768, 32)


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    base: Shape = BASE
    hidden: int = 64
    tokens: tuple[int, ...] = (1024, 2048, 4096, 8192, 16_384)
    tokens_full: int = 8192
    """The most tokens for which full logits are made: they take minutes beyond, and 7 GB."""
    tokens_rounds: int = 2
    vocabulary: tuple[int, ...] = (8192, 16_384, 32_768, 65_536, 151_936)
    support: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    blocks: tuple[int | None, ...] = (1, 16, 64, 256, None)
    """None for the whole sequence."""
    memory: tuple[str, ...] = ("tokens", "vocabulary", "support")
    """Sizes whose memory is measured too."""
    memory_ways: tuple[str, ...] = ("full logits", "ours")
    """Ends of the names of those ways."""
    noise: int = 3
    """Times that memory at the base is measured."""
    at_once: int = 1
    """Processes that measure memory at the same time."""
    response: int = 2048
    """Tokens of a response."""
    passes: tuple[int, ...] = (1, 2, 4, 8)
    problems: int = 256
    """Of the embedded pair; more than the steps show."""
    recipe: tuple[str, ...] = ()
    """Changes to the embedded pair's recipe."""
    layers: int = 4
    width: int = 256
    wide_vocabulary: int = 151_936
    wide_prompt: int = 32
    wide_response: int = 128
    wide_responses: int = 8


QUICK = Sizes(
    base=Shape(128, 512, 4),
    hidden=16,
    tokens=(128, 256),
    vocabulary=(256, 512),
    support=(4, 8),
    blocks=(1, None),
    memory=("tokens",),
    memory_ways=("gated LSM, ours",),
    noise=0,
    at_once=2,
    response=64,
    passes=(1, 2),
    problems=8,
    recipe=("prompts.per_step=2", "rollout.max_new_tokens=16", "rollout.allow_truncated=true"),
    layers=1,
    width=32,
    wide_vocabulary=512,
    wide_prompt=8,
    wide_response=16,
    wide_responses=2,
)


@dataclass
class Inputs:
    """Of the head and the loss."""

    hidden: Tensor
    weight: Tensor
    ids: Tensor
    """int64 [N, K]: the teacher's support, whose first column stands in for the sampled tokens too."""
    rows: Tensor
    behaviour: Tensor
    """[N]: log o(y_t)."""

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def inputs(shape: Shape, hidden: int, response: int) -> Inputs:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(shape.tokens, hidden, generator=generator).requires_grad_()
    weight = torch.randn(shape.vocabulary, hidden, generator=generator).div_(hidden**0.5).requires_grad_()
    ids = torch.randint(shape.vocabulary, (shape.tokens, shape.support), generator=generator)
    behaviour = -math.log(shape.vocabulary) + 0.1 * torch.randn(shape.tokens, generator=generator)
    return Inputs(states, weight, ids, torch.arange(shape.tokens) // response, behaviour)


def nothing(given: Inputs) -> Tensor:
    """What every way needs before it begins: the inputs and their gradients."""
    return given.hidden.sum() + given.weight.sum() * 0


def full_sampled(given: Inputs) -> Tensor:
    logp = (given.hidden @ given.weight.T).log_softmax(-1).gather(1, given.ids[:, :1])[:, 0]
    return (gates(logp, given) * sampled_token_loss(logp, given.behaviour, given.behaviour)).mean()


def our_sampled(given: Inputs) -> Tensor:
    logp = head.token_logprobs(given.hidden, given.weight, given.ids[:, 0])
    return (gates(logp, given) * sampled_token_loss(logp, given.behaviour, given.behaviour)).mean()


def full_lsm(given: Inputs) -> Tensor:
    logits = given.hidden @ given.weight.T
    logp = logits.detach().log_softmax(-1).gather(1, given.ids[:, :1])[:, 0]
    return (gates(logp, given) * topk_reverse_kl(logits.gather(1, given.ids), torch.zeros(given.ids.shape))).mean()


def our_lsm(given: Inputs) -> Tensor:
    losses = our_lsm_losses(given)
    with torch.no_grad():
        logp = head.token_logprobs(given.hidden, given.weight, given.ids[:, 0])
    return (gates(logp, given) * losses).mean()


def our_lsm_ungated(given: Inputs) -> Tensor:
    return our_lsm_losses(given).mean()


def our_lsm_losses(given: Inputs) -> Tensor:
    return topk_reverse_kl(head.support_logits(given.hidden, given.weight, given.ids), torch.zeros(given.ids.shape))


def our_scoring(given: Inputs) -> Tensor:
    """The teacher's part of it: its K most probable tokens, no backward."""
    found = head.summary(given.hidden, given.weight, given.ids[:, :1], top=given.ids.shape[1])
    return found.logp.sum()


def gates(logp: Tensor, given: Inputs, size: int | None = 64) -> Tensor:
    """All of the gate's arithmetic: spans, drift, gates, mean 1. size: None for whole sequences."""
    spans = sequence_spans(given.rows) if size is None else fixed_spans(given.rows, size)
    return unit_mean(drift_gate(logp, given.behaviour, spans))


NOTHING, GATE = "nothing", "gate's arithmetic"
WAYS: dict[str, Callable[[Inputs], Tensor]] = {
    NOTHING: nothing,
    "gated sampled token, full logits": full_sampled,
    "gated sampled token, ours": our_sampled,
    "gated LSM, full logits": full_lsm,
    "gated LSM, ours": our_lsm,
    "ungated LSM, ours": our_lsm_ungated,
    "teacher's top K, ours": our_scoring,
}
FOUR = tuple(WAYS)[1:5]
MEASURED = {"tokens": FOUR, "vocabulary": FOUR, "support": tuple(WAYS)[4:]}
"""Ways that are measured at each value of a size."""


def way(name: str, given: Inputs) -> None:
    """Forward and, where there is one, backward."""
    given.clear()
    loss = WAYS[name](given)
    if loss.requires_grad:
        loss.backward()


def held(name: str, shape: Shape, hidden: int, response: int) -> None:
    """To be run in a process of its own."""
    way(name, inputs(shape, hidden, response))


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    torch.set_num_threads(1)
    sizes, repeats = (QUICK if arguments.quick else Sizes()), arguments.repeats or (1 if arguments.quick else 3)
    began = time.time()
    found: dict[str, Any] = {}
    for name in MEASURED:
        found[name] = sweep(name, sizes, min(repeats, sizes.tokens_rounds) if name == "tokens" else repeats)
        show(found[name])
    found["gate"] = gate_sweeps(sizes, 5 * repeats, found["tokens"]["cpu_s"]["gated LSM, ours"])
    show(found["gate"])
    if sizes.noise:
        found["memory_noise_mb"] = {name: noise(name, sizes) for name in FOUR}
    found |= steps(sizes, repeats)
    found = rounded(found)
    path = measure.write("scaling", began, arguments.quick, ("transformers",), sizes=asdict(sizes), **found)
    scaling_plots.draw(found, path.with_suffix(".png"))


# Growth of one line


def line(sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Median and range at each size, and the slope of log figure on log size: of the medians, with the standard error
    of the fit, and the range of the slopes of single rounds. seconds: of each size, a figure a round."""
    fit = slope(sizes, [statistics.median(each) for each in seconds])
    single = [slope(sizes, each)["slope"] for each in zip(*seconds)]
    return {
        "sizes": list(sizes),
        "median": [statistics.median(each) for each in seconds],
        "least": [min(each) for each in seconds],
        "most": [max(each) for each in seconds],
        **fit,
        "slope_least": min(single),
        "slope_most": max(single),
    }


def slope(sizes: Sequence[int], figures: Sequence[float]) -> dict[str, float]:
    """And a straight line through the figures themselves: what it costs at size 0, and what each unit adds."""
    fit = linregress([math.log(size) for size in sizes], [math.log(figure) for figure in figures])
    straight = linregress(sizes, figures)
    found = {"slope": fit.slope, "standard_error": fit.stderr, "at_zero": straight.intercept, "each": straight.slope}
    return {name: float(value) for name, value in found.items()}


def rounded(value: Any) -> Any:
    """Figures to five digits, which is more than they are good for."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def show(found: Mapping[str, Any]) -> None:
    for what, lines in found.items():
        if isinstance(lines, Mapping) and all(isinstance(each, Mapping) for each in lines.values()):
            columns = {"slope": "+.3f", "standard_error": ".3f", "slope_least": "+.3f", "slope_most": "+.3f"}
            measure.table(dict(lines), columns, f"{what}:")


# The head


def sweep(name: str, sizes: Sizes, repeats: int) -> dict[str, Any]:
    """CPU-seconds and memory above the inputs of the head's ways, along one size."""
    shapes = {value: sizes.base._replace(**{name: value}) for value in getattr(sizes, name)}
    seconds = timed(MEASURED[name], shapes, sizes, repeats)
    found: dict[str, Any] = {"base": sizes.base._asdict() | {"hidden": sizes.hidden}}
    found["cpu_s"] = {each: line(list(values), list(values.values())) for each, values in seconds.items()}
    if name in sizes.memory:
        chosen = [each for each in MEASURED[name] if each.endswith(sizes.memory_ways)]
        found["memory_mb"] = {each: memory_line(each, shapes, sizes) for each in chosen}
    return found


def timed(
    names: Sequence[str], shapes: Mapping[int, Shape], sizes: Sizes, repeats: int
) -> dict[str, dict[int, list[float]]]:
    """CPU-seconds of each round, by way and value of the size."""
    found: dict[str, dict[int, list[float]]] = {name: {} for name in names}
    for value, shape in shapes.items():
        given = inputs(shape, sizes.hidden, sizes.response)
        chosen = [name for name in names if fits(name, shape, sizes)]
        for name, seconds in measure.rounds({n: functools.partial(way, n, given) for n in chosen}, repeats).items():
            found[name][value] = seconds
    return found


def fits(name: str, shape: Shape, sizes: Sizes) -> bool:
    return "full" not in name or shape.tokens <= sizes.tokens_full


def memory_line(name: str, shapes: Mapping[int, Shape], sizes: Sizes) -> dict[str, Any]:
    """Megabytes above the inputs and their gradients, one process each."""
    chosen = {value: shape for value, shape in shapes.items() if fits(name, shape, sizes)}
    with ThreadPoolExecutor(sizes.at_once) as pool:
        figures = pool.map(lambda shape: [above(name, shape, sizes)], chosen.values())
    return line(list(chosen), list(figures))


def above(name: str, shape: Shape, sizes: Sizes) -> float:
    """The most memory that a way holds beyond what a process holds that makes inputs and gradients alone."""
    return max(peak(name, shape, sizes) - peak(NOTHING, shape, sizes), LEAST_MB)


@functools.cache
def peak(name: str, shape: Shape, sizes: Sizes) -> float:
    # freed memory goes back to the system at once, so that the peak is what is held and not how the heap is cut up
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1000000")
    return measure.peak_mb(held, name, shape, sizes.hidden, sizes.response)


def noise(name: str, sizes: Sizes) -> list[float]:
    """The peak of one way at the base, in so many processes."""
    return [peak.__wrapped__(name, sizes.base, sizes) for _ in range(sizes.noise)]


# The gate's arithmetic by itself


def gate_sweeps(sizes: Sizes, repeats: int, update: Mapping[str, Any]) -> dict[str, Any]:
    """Along tokens, at blocks of 64, and along block sizes, at the most tokens, in seconds a call.

    update: CPU-seconds of the head of an LSM update along the same tokens, of which the gate is a share.
    """
    most = sizes.tokens[-1]
    by_tokens = {count: gate_seconds(count, 64, sizes, repeats) for count in sizes.tokens}
    by_block = {size or sizes.response: gate_seconds(most, size, sizes, repeats) for size in sizes.blocks}
    lines = {
        "tokens": line(list(by_tokens), list(by_tokens.values())),
        "block": line(list(by_block), list(by_block.values())),
    }
    whole = update["median"][update["sizes"].index(most)]
    return {
        "tokens": most,
        "cpu_s": lines,
        "share_of_head": [seconds / whole for seconds in lines["block"]["median"]],
    }


def gate_seconds(tokens: int, size: int | None, sizes: Sizes, repeats: int) -> list[float]:
    given = inputs(Shape(tokens, 2, 2), 1, sizes.response)
    logp = given.behaviour + 0.01 * given.hidden.detach()[:, 0]

    def calls() -> None:
        for _ in range(CALLS):
            gates(logp, given, size)

    return [seconds / CALLS for seconds in measure.rounds({GATE: calls}, repeats)[GATE]]


# Whole steps


@dataclass
class Run:
    """A run of a recipe, step by step."""

    config: Any
    parts: Any
    out: Path

    def __post_init__(self) -> None:
        self.state = loop.State(Position(), {})
        self.display = Display(Console(quiet=True), self.config.steps, 0)
        self.metrics = Metrics(self.out / "metrics.jsonl", self.state.position)
        self.start = {name: value.clone() for name, value in self.parts.policy.state_dict().items()}
        self.rest = self.metrics, self.out, self.display, StopSignal()

    def step(self) -> None:
        loop.one_step(self.config, self.parts, self.state, *self.rest)

    def again(self, *changes: str) -> "Run":
        """From the first step, with the same models as they were then, under a changed recipe."""
        config = config_of(*changes)
        self.parts.policy.load_state_dict(self.start)
        learner = Learner(config, self.parts.policy, config.steps * config.passes)
        return Run(config, replace(self.parts, learner=learner), self.out)

    def collect(self) -> Any:
        return loop.collect(self.config, self.parts, self.state.position, *self.rest)


def config_of(*changes: str) -> Any:
    return load_recipe("sandbox/lsm_block64", ["threads=1", "diagnostics.every=0", "optimizer.warmup=0", *changes])


def embedded(out: Path, changes: Sequence[str]) -> Run:
    """The embedded pair."""
    config = config_of(*changes)
    return Run(config, setup.set_up(config, out), out)


def problem_file(out: Path, count: int) -> Path:
    """A few of the embedded problems: to make and encode all of them takes seconds."""
    keys = ("id", "problem", "answer", "solution")
    rows = ({key: getattr(problem, key) for key in keys} for problem in training_problems(count))
    path = out / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def wide(out: Path, sizes: Sizes, changes: Sequence[str]) -> Run:
    """A student and a teacher of random weights with a real vocabulary."""
    config = config_of(*changes)
    student, teacher = (random_policy(seed, sizes) for seed in (0, 1))
    parts = setup.Parts(
        policy=student,
        tokenizer=Unspoken(),  # type: ignore[arg-type]
        targets={"teacher": LocalTeacher(teacher, config.microbatch_tokens, config.rollout.temperature)},
        engines=Engines(HFEngine(student), HFEngine(teacher), (sizes.wide_vocabulary - 1,), lambda text: ()),
        learner=Learner(config, student, config.steps * config.passes),
        prompts=[random_prompt(number, sizes) for number in range(sizes.wide_responses)],
        newline_ids=torch.zeros(0, dtype=torch.bool),
        grader=Grader(),
        position=Position(),
        pending={},
    )
    return Run(config, parts, out)


def random_policy(seed: int, sizes: Sizes) -> Any:
    torch.manual_seed(seed)
    heads = max(sizes.width // 64, 1)
    config = Qwen3Config(
        vocab_size=sizes.wide_vocabulary,
        hidden_size=sizes.width,
        intermediate_size=3 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=sizes.width // heads,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    # as sure of the next token as a trained model; else sampling would sort the whole vocabulary for a nucleus
    torch.nn.init.constant_(model.model.norm.weight, SHARPNESS)
    return Policy(model)


def random_prompt(number: int, sizes: Sizes) -> Any:
    generator = torch.Generator().manual_seed(number)
    ids = tuple(torch.randint(sizes.wide_vocabulary - 1, (sizes.wide_prompt,), generator=generator).tolist())
    return Prompt(Problem(str(number), ""), ids, ids)


class Unspoken:
    """In the place of a tokenizer, for ids that mean nothing."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return " ".join(map(str, ids))


@contextmanager
def clocked(places: Mapping[str, tuple[Any, str]]) -> Iterator[dict[str, list[float]]]:
    """CPU-seconds of every call, by label. places: label -> owner and name of the function."""
    seconds: dict[str, list[float]] = {label: [] for label in places}
    before = {label: getattr(*place) for label, place in places.items()}
    for label, (owner, name) in places.items():
        setattr(owner, name, clock(before[label], seconds[label]))
    try:
        yield seconds
    finally:
        for label, (owner, name) in places.items():
            setattr(owner, name, before[label])


def clock(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            seconds.append(time.process_time() - began)

    return timed


def places() -> dict[str, tuple[Any, str]]:
    """The parts of a step. Spans, weights and sums are all of the gate's arithmetic, and a little more: the loss of a
    run without a gate goes through the last two as well, with weights of 1."""
    return {
        "step": (loop, "one_step"),
        "rollout": (loop, "sample_responses"),
        "behaviour": (loop, "behaviour_scores"),
        "teacher": (loop, "target_scores"),
        "update": (loop, "timed_update"),
        "spans": (portions, "fixed_partitions"),
        "weights": (Learner, "_weigh"),
        "sums": (sums, "weight_sums"),
        # of LSM the one call in an update, without gradient
        "logp": (head, "token_logprobs"),
        "drift_metric": (Learner, "_student_sums"),
    }


def steps(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """The passes, the block sizes within an update, and the gate's share of a step, on both models."""
    with tempfile.TemporaryDirectory() as folder:
        found = embedded_steps(Path(folder), sizes, repeats)
        found["gate_shares"]["wide model"] = wide_shares(Path(folder), sizes, repeats)
    for name, each in found["gate_shares"].items():
        columns = {"of_step": ".3%", "of_step_least": ".3%", "of_step_most": ".3%", "of_update": ".3%"}
        measure.table(each["shares"], columns, name)
    return found


def embedded_steps(out: Path, sizes: Sizes, repeats: int) -> dict[str, Any]:
    changes = [*sizes.recipe, f"prompts.path={problem_file(out, sizes.problems)}"]
    run = embedded(out, [*changes, f"passes={sizes.passes[-1]}"])
    records = step_records(run, repeats)
    found: dict[str, Any] = {"passes": passes_lines(records, sizes)}
    show(found["passes"])
    found["blocks_in_update"] = blocks_in_update(run, sizes, changes, repeats)
    bare = ungated(run.again(*changes, f"passes={sizes.passes[1]}", *UNGATED), repeats)
    return found | {"gate_shares": {"embedded pair": told(records, sizes) | bare}}


def step_records(run: Run, repeats: int) -> list[dict[str, list[float]]]:
    """CPU-seconds of the parts of each step, after one to warm up."""
    records = []
    for _ in range(repeats + 1):
        with clocked(places()) as seconds:
            run.step()
        records.append(seconds)
    return records[1:]


def passes_lines(records: Sequence[Mapping[str, list[float]]], sizes: Sizes) -> dict[str, Any]:
    """CPU-seconds of a step and of its optimiser updates along the passes: those of a run of most passes, less the last
    ones, which come after all else."""
    costs = {count: [cost(record, count) for record in records] for count in sizes.passes}
    a_pass = {count: [each / count for each in costs[count]] for count in sizes.passes}
    return {
        "cpu_s": {
            "a rollout batch": line(list(costs), list(costs.values())),
            "an optimiser update": line(list(a_pass), list(a_pass.values())),
        }
    }


def cost(record: Mapping[str, list[float]], passes: int) -> float:
    """CPU-seconds of a step with so many passes."""
    return record["step"][0] - sum(record["update"][passes:])


ONCE = ("rollout", "behaviour", "teacher")
"""Parts that a step has but once, whatever its passes."""


def told(records: Sequence[Mapping[str, list[float]]], sizes: Sizes) -> dict[str, Any]:
    """Median CPU-seconds of a step's parts and of an update, and the gate's shares at two passes and at the most."""
    parts = {label: statistics.median(sum(r[label]) for r in records) for label in ONCE}
    parts["update"] = statistics.median(an_update(r, "update") for r in records)
    few, many = sizes.passes[1], len(records[0]["update"])
    shares = {
        "arithmetic": share(records, few, many, arithmetic),
        "log-probability passes": share(records, few, many, logprobs),
        "of which behaviour pass": share(records, few, many, lambda r: (sum(r["behaviour"]), 0.0)),
        "of which pass in the update": share(records, few, many, lambda r: (0.0, an_update(r, "logp"))),
        "drift metric": share(records, few, many, lambda r: (0.0, an_update(r, "drift_metric"))),
    }
    return {"cpu_s": parts, "passes": few, "updates_measured": many * len(records), "shares": shares}


def arithmetic(record: Mapping[str, list[float]]) -> tuple[float, float]:
    """Seconds of the gate's arithmetic once a step, and in each update."""
    return sum(record["spans"]), an_update(record, "weights") + an_update(record, "sums")


def logprobs(record: Mapping[str, list[float]]) -> tuple[float, float]:
    """Seconds of the log-probabilities that only the gate reads, once a step and in each update."""
    return sum(record["behaviour"]), an_update(record, "logp")


def an_update(record: Mapping[str, list[float]], label: str) -> float:
    return sum(record[label]) / len(record["update"])


Parts = Callable[[Mapping[str, list[float]]], tuple[float, float]]


def share(records: Sequence[Mapping[str, list[float]]], few: int, many: int, part: Parts) -> dict[str, float]:
    """Of a step of `few` passes and of one of `many`, and of an update; median and range over steps."""
    split = [part(record) for record in records]
    few_shares = [(once + few * each) / cost(r, few) for r, (once, each) in zip(records, split)]
    many_shares = [(once + many * each) / cost(r, many) for r, (once, each) in zip(records, split)]
    update_shares = [each / an_update(r, "update") for r, (_, each) in zip(records, split)]
    return {
        "cpu_s_once": statistics.median(once for once, _ in split),
        "cpu_s_update": statistics.median(each for _, each in split),
        "of_step": statistics.median(few_shares),
        "of_step_least": min(few_shares),
        "of_step_most": max(few_shares),
        f"of_step_{many}_passes": statistics.median(many_shares),
        "of_update": statistics.median(update_shares),
        "of_update_least": min(update_shares),
        "of_update_most": max(update_shares),
    }


UNGATED = ("gate.spans=none", "log_drift=false")
"""Without a gate, and without the drift metric, which would need the gate's log-probabilities too."""


def wide_shares(out: Path, sizes: Sizes, repeats: int) -> dict[str, Any]:
    changes = [
        f"prompts.per_step={sizes.wide_responses}",
        "rollout.samples=1",
        f"rollout.max_new_tokens={sizes.wide_response}",
        "rollout.allow_truncated=true",
        f"objective.k={min(32, sizes.wide_vocabulary)}",
        f"passes={sizes.passes[1]}",
        "optimizer.lr=1e-5",
    ]
    run = wide(out, sizes, changes)
    found = told(step_records(run, repeats), sizes)
    return found | ungated(run.again(*changes, *UNGATED), repeats)


def ungated(run: Run, repeats: int) -> dict[str, Any]:
    """CPU-seconds of an update of a run without a gate, and of what the same functions do there."""
    records = step_records(run, repeats)
    medians = {
        "update": statistics.median(an_update(r, "update") for r in records),
        "arithmetic": statistics.median(arithmetic(r)[1] for r in records),
    }
    return {"ungated_cpu_s": medians}


def blocks_in_update(run: Run, sizes: Sizes, changes: Sequence[str], repeats: int) -> dict[str, Any]:
    """The gate's arithmetic within updates of the embedded pair, for each block size, as a share of the update."""
    streams = run.collect()
    found = {}
    for size in sizes.blocks:
        gate = "gate.spans=sequence" if size is None else f"gate.size={size}"
        shares = block_shares(config_of(*changes, gate), run.parts, streams, repeats)
        found[str(size or "whole")] = {
            "of_update": statistics.median(shares),
            "least": min(shares),
            "most": max(shares),
        }
    return found


def block_shares(config: Any, parts: Any, streams: Any, repeats: int) -> list[float]:
    """Of each update after the first."""
    learner, shares = Learner(config, parts.policy, repeats + 1), []
    for number in range(repeats + 1):
        with clocked(places()) as seconds:
            spans = portions.spans_of(config, "student", streams["student"], parts.newline_ids)
            whole = range(len(streams["student"].responses))
            given = {"student": portions.Portion(streams["student"], whole, *spans)}
            loop.timed_update(learner, given, loop.Moment(config.seed, 0, number), False, {}, Path())
        shares.append(sum(map(sum, (seconds[x] for x in ("spans", "weights", "sums")))) / seconds["update"][0])
    return shares[1:]


if __name__ == "__main__":
    main()
