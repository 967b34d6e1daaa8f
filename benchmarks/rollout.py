"""Rollouts by driftgate's engine and by transformers' `generate`: useful tokens per CPU-second and peak memory.

    python benchmarks/rollout.py [--top-p 0.9] [--repeats N] [--quick]

There are two models. One has SmolLM2-135M's shape (random weights, bfloat16). Its 16 responses all run to 256 tokens,
or end at different times. The other is the embedded student, on the prompts of a shipped recipe and of an evaluation.
Both ways get the same prompts, weights and sampling settings, and take turns, each in a process of its own. Useful
tokens are those up to a response's stop token, that token included. A response of the random model ends at the same
length for both ways: where our engine drew a stop, `generate` stops too, by a criterion that costs less than looking
for stop ids. On the embedded student both find their own stops. `generate` gets an evaluation in the parts that suit it
best, 80 responses of 320 at once. Only our engine also returns log-probabilities.
Writes benchmarks/results/rollout.json.
"""

import functools
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import measure
import torch
from torch import Tensor
from training import prompts_of_batch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, StoppingCriteria

from driftgate import keyed
from driftgate.config import ModelSettings, PromptSettings
from driftgate.data.benchmarks import load_benchmark
from driftgate.data.problems import Problem, load_problems
from driftgate.data.prompts import encode_prompts
from driftgate.evaluate.batch import EXAM_ROWS_LIMIT as EXAM_ROWS
from driftgate.models import load
from driftgate.models.policy import Policy
from driftgate.recipe import load_recipe
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine

SEED = 0
RECIPE = "sandbox/lsm_block64"
EXAM = "lock22"
WARM_UP = 8
"""Tokens a response of each process's first rollout, which is not counted."""
ALLOCATOR = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
"""glibc keeps what is freed. Else a cache that is copied at every token, as `generate`'s is, costs up to three times as
much in page faults, or nothing, depending on sizes and history."""
SHARP, SPREAD = 4.0, 9.5
"""Factors on the random model's queries and keys, and on its logits. With them it writes varied text whose next token
has a nucleus of tens to hundreds of ids, as SmolLM2's has on its own answers; without them all 49,152 ids are alike."""
SHAPES: dict[str, dict[str, Any]] = {
    "135M": {
        "num_hidden_layers": 30,
        "hidden_size": 576,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49_152,
    },
    "small": {
        "num_hidden_layers": 4,
        "hidden_size": 192,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "intermediate_size": 512,
        "vocab_size": 4096,
    },
}


@dataclass(frozen=True)
class Case:
    """One workload."""

    source: str
    """Where model and prompts come from: a name in SHAPES, or "recipe" or "exam"."""
    repeats: int
    prompts: int
    samples: int
    limit: int
    top_p: float = 0.9
    stop_chance: float = 0.0
    """Chance, about, that the random model ends at a token."""
    batch: int | None = None
    """Responses that our engine decodes at once; None for all."""
    together: int | None = None
    """Prompts that `generate` is given at once; None for all."""


CASES = {
    "135M, equal lengths": Case("135M", 2, 16, 1, 256),
    "135M, unequal lengths": Case("135M", 2, 16, 1, 256, stop_chance=0.01),
    "embedded, recipe": Case("recipe", 5, 16, 2, 400),
    "embedded, evaluation": Case("exam", 2, 40, 8, 0, batch=EXAM_ROWS, together=10),
}
QUICK = {
    "small, equal lengths": Case("small", 1, 8, 1, 48),
    "small, unequal lengths": Case("small", 1, 8, 1, 48, stop_chance=0.05),
    "embedded, recipe": Case("recipe", 1, 4, 2, 64),
    "embedded, evaluation": Case("exam", 1, 8, 4, 64, batch=EXAM_ROWS, together=4),
}


@functools.cache
def model_of(source: str) -> PreTrainedModel:
    if source not in SHAPES:
        settings = ModelSettings(path="sandbox/student")
        return load.load_model(settings, "student", torch.device("cpu"))  # type: ignore[return-value]
    torch.manual_seed(SEED)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**SHAPES[source], tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)
    model = LlamaForCausalLM(config).eval()
    torch.set_default_dtype(torch.float32)
    model.model.norm.weight.data.mul_(SPREAD)
    for name, weight in model.named_parameters():
        weight.data.mul_(SHARP if name.endswith(("q_proj.weight", "k_proj.weight")) else 1)
    return model


def requests_of(case: Case, number: int) -> list[Request]:
    """The prompts of round `number`; every response has an address of its own."""
    prompts = random_prompts(case, number) if case.source in SHAPES else embedded_prompts(case, number)
    keys = [tuple((SEED, "rollout benchmark", number, i, n) for n in range(case.samples)) for i in range(len(prompts))]
    return [Request(prompt, own) for prompt, own in zip(prompts, keys)]


def random_prompts(case: Case, number: int) -> list[tuple[int, ...]]:
    """Of 60 to 100 tokens."""
    vocabulary, prompts = SHAPES[case.source]["vocab_size"], []
    for place in range(case.prompts):
        rng = keyed.generator(SEED, "prompt", number, place)
        prompts.append(tuple(rng.integers(1, vocabulary, rng.integers(60, 101)).tolist()))
    return prompts


def embedded_prompts(case: Case, number: int) -> list[tuple[int, ...]]:
    """Those that the recipe's step `number` shows, or those of an evaluation, which are the same in every round."""
    tokenizer = load.load_tokenizer(ModelSettings(path="sandbox/student"), "student")
    problems = exam_problems(case) if case.source == "exam" else step_problems(case, number)
    return [prompt.ids for prompt in encode_prompts(problems, tokenizer, PromptSettings(path="sandbox"), 1, None)]


def step_problems(case: Case, number: int) -> list[Problem]:
    config = load_recipe(RECIPE)
    return prompts_of_batch(recipe_problems(), config, number)[: case.prompts]  # type: ignore[arg-type, return-value]


@functools.cache
def recipe_problems() -> list[Problem]:
    return load_problems(load_recipe(RECIPE).prompts)


def exam_problems(case: Case) -> list[Problem]:
    return load_benchmark(EXAM, case.prompts)


def sampling_of(case: Case, requests: Sequence[Request]) -> Sampling:
    """The settings of the recipe or of the evaluation, which goes to the end of the context."""
    model = model_of(case.source)
    stops = random_stops(case) if case.source in SHAPES else (model.config.eos_token_id,)
    room = model.config.max_position_embeddings - max(len(request.prompt) for request in requests)
    return Sampling(case.limit or room, 1.0, case.top_p, stops)


def random_stops(case: Case) -> tuple[int, ...]:
    """Random ids, so many that one of them comes with about the case's chance."""
    vocabulary = SHAPES[case.source]["vocab_size"]
    order = keyed.generator(SEED, "stops").permutation(vocabulary)
    return tuple(order[: round(case.stop_chance * vocabulary)].tolist())


def by_driftgate(case: Case, requests: list[Request], sampling: Sampling, lengths: list[int] | None) -> list[int]:
    """The responses' lengths; it ends them by itself."""
    responses = HFEngine(Policy(model_of(case.source)), case.batch).generate(requests, sampling)
    return [len(response.ids) for group in responses for response in group]


class EndAt(StoppingCriteria):
    """Ends every response at a length of its own."""

    def __init__(self, lengths: list[int], width: int):
        self.ends = torch.tensor(lengths) + width

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:  # type: ignore[override]
        return input_ids.shape[1] >= self.ends


def by_generate(case: Case, requests: list[Request], sampling: Sampling, lengths: list[int] | None) -> list[int]:
    """The responses' lengths, `lengths` where they are given."""
    size = case.together or len(requests)
    parts = [requests[start : start + size] for start in range(0, len(requests), size)]
    return [length for part in parts for length in generated(case, part, sampling, lengths)]


@torch.no_grad()
def generated(case: Case, requests: list[Request], sampling: Sampling, lengths: list[int] | None) -> list[int]:
    width = max(len(request.prompt) for request in requests)
    ids = torch.tensor([[0] * (width - len(request.prompt)) + list(request.prompt) for request in requests])
    mask = torch.tensor([[0] * (width - len(r.prompt)) + [1] * len(r.prompt) for r in requests])
    ends = {"stopping_criteria": [EndAt(lengths, width)]} if lengths else {"eos_token_id": list(sampling.stop_ids)}
    written = model_of(case.source).generate(  # type: ignore[operator]
        ids,
        attention_mask=mask,
        do_sample=True,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        max_new_tokens=sampling.max_new_tokens,
        num_return_sequences=case.samples,
        pad_token_id=0,
        **(ends if lengths or sampling.stop_ids else {}),
    )
    return lengths or [until_stop(row, sampling.stop_ids) for row in written[:, width:].tolist()]


def until_stop(row: list[int], stop_ids: tuple[int, ...]) -> int:
    return next((place + 1 for place, token in enumerate(row) if token in stop_ids), len(row))


WAYS: dict[str, Callable[[Case, list[Request], Sampling, list[int] | None], list[int]]] = {
    "driftgate": by_driftgate,
    "generate": by_generate,
}


def prepare(way: str, case: Case) -> float:
    """Load the model and warm up; the resident memory, in MB, of the model and its libraries before that."""
    torch.set_num_threads(1)
    model_of(case.source)
    held = measure.memory_mb("VmRSS")
    rollout(way, replace(case, limit=WARM_UP), 0, None)
    return held


def rollout(way: str, case: Case, number: int, lengths: list[int] | None) -> tuple[float, list[int]]:
    """CPU-seconds and the responses' lengths of one rollout."""
    requests = requests_of(case, number)
    sampling = sampling_of(case, requests)
    began = time.process_time()
    written = WAYS[way](case, requests, sampling, lengths)
    return time.process_time() - began, written


@contextmanager
def callers(here: bool) -> Iterator[dict[str, Callable[..., Any]]]:
    """For every way a function that calls another one in the way's own process. here: in this process instead."""
    os.environ.update(ALLOCATOR)
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = {way: None if here else stack.enter_context(context.Pool(1)) for way in WAYS}
        yield {way: functools.partial(call, pool) for way, pool in pools.items()}


def call(pool: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    return pool.apply(function, arguments) if pool else function(*arguments)


def run_case(case: Case, quick: bool) -> measure.Figures:
    """Every way's rollouts in turn, and the most memory that its process held."""
    runs: dict[str, list[tuple[float, list[int]]]] = {way: [] for way in WAYS}
    with callers(here=quick) as calls:
        held = {way: calls[way](prepare, way, case) for way in WAYS}
        for number in range(1, case.repeats + 1):
            for way in WAYS:
                lengths = runs["driftgate"][-1][1] if way == "generate" and case.stop_chance else None
                runs[way].append(calls[way](rollout, way, case, number, lengths))
        peaks = {} if quick else {way: calls[way](measure.memory_mb, "VmHWM") for way in WAYS}
    figures = figures_of(runs)
    for way, peak in peaks.items():
        figures[way] |= {"peak_mb": peak, "added_mb": peak - held[way]}
    return figures


def figures_of(runs: dict[str, list[tuple[float, list[int]]]]) -> measure.Figures:
    speeds = {way: [sum(lengths) / seconds for seconds, lengths in own] for way, own in runs.items()}
    return {
        way: {
            "cpu_s": statistics.median(seconds for seconds, _ in own),
            "tokens_per_s": statistics.median(speeds[way]),
            **measure.ratio(speeds[way], speeds["generate"]),
            "mean_length": statistics.mean(length for _, lengths in own for length in lengths),
            "max_length": max(length for _, lengths in own for length in lengths),
        }
        for way, own in runs.items()
    }


COLUMNS = {
    "cpu_s": ".2f",
    "tokens_per_s": ".0f",
    "ratio": ".2f",
    "least": ".2f",
    "most": ".2f",
    "mean_length": ".0f",
    "max_length": ".0f",
    "peak_mb": ".0f",
    "added_mb": ".0f",
}


def main() -> None:
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--top-p", type=float, default=0.9)
    arguments = parser.parse_args()
    began, figures = time.time(), {}
    torch.set_num_threads(1)
    cases = {name: replace(case, top_p=arguments.top_p) for name, case in (QUICK if arguments.quick else CASES).items()}
    for name, case in cases.items():
        repeated = replace(case, repeats=arguments.repeats or case.repeats)
        figures[name] = run_case(repeated, arguments.quick)
        measure.table(figures[name], COLUMNS, name)
    settings = {"seed": SEED, "environment": ALLOCATOR, "cases": {name: asdict(case) for name, case in cases.items()}}
    measure.write("rollout", began, arguments.quick, ["transformers"], **settings, figures=figures)


if __name__ == "__main__":
    main()
