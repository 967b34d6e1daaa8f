"""What driftgate costs on one GPU, part by part, at the size of Qwen3-1.7B learning from Qwen3-4B.

    python benchmarks/gpu.py [--sections head update ...] [--long] [--repeats 5] [--tiny]

Random weights made on the device; 8 responses of 1,024 tokens behind prompts of 64. The sections:

head        forward and backward of each objective's head, chunked, against full logits -> log_softmax -> gather
update      one optimiser update by the package's learner: float32 weights, products in bfloat16
scoring     the teacher's log-probabilities and top K of these tokens; the student's own before the first update
exactness   the head against float64, decoding against the trainer's own forward, updates made twice
decoding    64 responses of 256 tokens: the package's engine, transformers' `generate`, one step as a CUDA graph

Times are medians over --repeats after two warm-ups (decoding: at most 3, after one), by CUDA events; "least" and "most"
are their range. Memory is what the allocator handed out at most, in GB of 1e9 bytes, above the inputs and the model; in
`update` the model is counted too. The package has torch take deterministic operations on a GPU; "any order" are the
same ways without that. A way that fails leaves its error's text in its place, and the others are run all the same.

Operations, 2 to a multiply-add. N response tokens, S positions (prompts too) in sequences of T, H hidden size, V
vocabulary, P the body's parameters less its embedding, L layers, Q heads times head size:
    body forward 2 P S + 2 L Q T S (causal attention: half of the square); backward twice that
    a product of hidden states and head 2 N H V; a gather of K rows 2 N K H
"share" is of --peak-tflops. In `head` it counts the products that the way takes, recomputed ones too; in `update` those
that the model needs: forward and both gradients of the body, the head's three (LSM: one, for the gate), recomputed ones
not. In `decoding` it is the time that reading every weight and every key and value once takes, at --bandwidth-tbs, over
the time that a token took.

Memory of an update, all its parts at once, which is an upper bound: a weight 4 bytes, its gradient 4, AdamW's moments
8, its copy in bfloat16 2. The head's gradient 10 V H: the sum, its bfloat16, the float32 handed on. Activations of a
position and layer 26 H + 10 Q + 10 G + 8 F bytes (G: key-value heads times head size, F: intermediate size): as the
two norms, the casts before each product, attention and MLP keep them; recomputed, one layer's, and 4 H of every other.

--tiny runs everything small, on a CPU too (where memory and the capture of a graph are left out). Writes
benchmarks/results/gpu.json, or gpu_SECTIONS.json for some of the sections; --tiny under results/quick/.
"""

import argparse
import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import measure
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config, StaticCache

from driftgate import keyed
from driftgate.config import TrainConfig
from driftgate.data.experience import Experience
from driftgate.data.prompts import Problem, Prompt
from driftgate.data.response import Response
from driftgate.method import head, objectives
from driftgate.method.vocabulary import vocabulary_divergence
from driftgate.models.policy import Policy
from driftgate.recipe import load_recipe
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.rollout.sampling import sample
from driftgate.scorers.local import LocalTeacher, TargetNeeds, score_tokens
from driftgate.train.learner import Learner
from driftgate.train.portions import Portion, spans_of
from driftgate.train.setup import prepare_torch
from driftgate.train.weighing import Moment

K = 32
WARM_UPS = 2
STEPS_BEFORE_CAPTURE = 3
LOGIT_SPREAD = 4.5
"""About the standard deviation of a random model's logits where its choices are to be as sharp as a trained one's."""
NO_STOP = 1
"""The stop token's id lies so far beyond the vocabulary that nothing can end a response."""
RECIPES = {"LSM": "qwen3/lsm_block64", "sampled token": "qwen3/sampled_token_block64"}
HEAD_PRODUCTS = {"LSM": 1, "sampled token": 3}
"""Products of hidden states and vocabulary that an update needs."""
PREPARED = {"as the package sets torch": True, "any order": False}


@dataclass(frozen=True)
class Size:
    """What the sections are run at."""

    student: dict[str, Any]
    teacher: dict[str, Any]
    vocabulary: int = 151_936
    sequences: int = 8
    prompt: int = 64
    response: int = 1024
    chunks: tuple[int, ...] = (256, 512, 1024, 2048)
    budgets: tuple[int, ...] = (8192, 16_384)
    """Tokens of one forward at most, `microbatch_tokens`."""
    rows: int = 64
    """Responses decoded at once."""
    new: tuple[int, ...] = (256,)
    """Tokens of each."""
    compared: int = 512
    """Tokens on which the head is held against float64."""
    layers: int = 4
    """Of the student whose updates are compared bit for bit."""


SHARED = {"num_key_value_heads": 8, "head_dim": 128}
FULL = Size(
    SHARED | {"hidden_size": 2048, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 6144},
    SHARED | {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 9728},
)
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
TINY = Size(
    SMALL | {"hidden_size": 64, "intermediate_size": 128},
    SMALL | {"hidden_size": 96, "intermediate_size": 160},
    vocabulary=500,
    sequences=2,
    prompt=8,
    response=64,
    chunks=(16, 32, 64, 128),
    budgets=(72, 256),
    rows=4,
    new=(12,),
    compared=64,
    layers=2,
)


@dataclass(frozen=True)
class Bench:
    """What every section is given."""

    device: torch.device
    size: Size
    repeats: int
    peak_tflops: float
    bandwidth_tbs: float

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def share(self, operations: float, ms: float) -> float:
        """Of the peak, for so many operations in `ms` milliseconds."""
        return operations / (ms * 1e-3) / (self.peak_tflops * 1e12)

    def held(self) -> int:
        """Bytes that tensors hold on the GPU; what nothing refers to is let go before."""
        gc.collect()
        if not self.cuda:
            return 0
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self.device)

    def costs(self, way: Callable[[], object], before: int, warm_ups: int = WARM_UPS) -> dict[str, Any]:
        """`ms`, `least`, `most` and, on a GPU, `peak_gb` above `before`, which is in bytes."""
        for _ in range(warm_ups):
            way()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        times = [self._milliseconds(way) for _ in range(self.repeats)]
        found = {"ms": statistics.median(times), "least": min(times), "most": max(times)}
        if self.cuda:
            found["peak_gb"] = (torch.cuda.max_memory_allocated(self.device) - before) / 1e9
        return found

    def _milliseconds(self, way: Callable[[], object]) -> float:
        if not self.cuda:
            began = time.perf_counter()
            way()
            return (time.perf_counter() - began) * 1e3
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        way()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)


def main() -> None:
    arguments, began = parsed(), time.time()
    refuse_without_gpu(arguments)
    overrides = [f"device={arguments.device}", *(["threads=1"] if arguments.tiny else [])]
    device = prepare_torch(config_of("LSM", overrides))
    size = TINY if arguments.tiny else FULL
    if arguments.long:
        size = replace(size, new=(*size.new, 4 * size.new[-1]))
    bench = Bench(device, size, arguments.repeats, arguments.peak_tflops, arguments.bandwidth_tbs)
    name = "gpu" if set(arguments.sections) == set(SECTIONS) else "_".join(["gpu", *arguments.sections])
    settings = {"device": device_facts(bench), "k": K, "chunk": head.CHUNK, "seed": 0, "size": vars(size)}
    settings |= {"peak_tflops": bench.peak_tflops, "bandwidth_tbs": bench.bandwidth_tbs, "repeats": bench.repeats}
    print(settings["device"], flush=True)
    sections: dict[str, Any] = {}
    for section in arguments.sections:
        bench.held()
        attempt(sections, section, lambda made=SECTIONS[section]: made(bench))
        # after every section, so that a GPU that gives up takes no finished one along
        print(measure.write(name, began, arguments.tiny, ["transformers"], **settings, sections=sections), flush=True)
    failures = list(errors_in(sections))
    print(f"{len(failures)} failed" + "".join(f"\n  {failure}" for failure in failures))
    raise SystemExit(1 if failures else 0)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--repeats", type=int, default=5, help="counted runs of each way, after two that are not")
    parser.add_argument("--long", action="store_true", help="decode four times as many tokens too")
    parser.add_argument("--tiny", action="store_true", help="small sizes, results under results/quick/")
    parser.add_argument("--peak-tflops", type=float, default=790.0, help="of the device, bfloat16")
    parser.add_argument("--bandwidth-tbs", type=float, default=3.35, help="of the device's memory, TB/s")
    return parser.parse_args()


def refuse_without_gpu(arguments: argparse.Namespace) -> None:
    """On a CPU the full size would take days."""
    missing = arguments.device == "cpu" or not torch.cuda.is_available()
    if missing and (not arguments.tiny or arguments.device == "cuda"):
        raise SystemExit("this benchmark needs a GPU that torch can see; to try it out on a CPU: --tiny --device cpu")


def device_facts(bench: Bench) -> dict[str, Any]:
    if not bench.cuda:
        return {"name": "cpu"}
    facts = torch.cuda.get_device_properties(bench.device)
    return {
        "name": facts.name,
        "memory_gb": facts.total_memory / 1e9,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def attempt(figures: dict[str, Any], name: str, make: Callable[[], Any]) -> None:
    """figures[name] = make(); an error's text where it fails."""
    try:
        figures[name] = make()
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        figures[name] = {"error": f"{type(error).__name__}: {text}"}
        print(f"FAILED {name}: {figures[name]['error']}", flush=True)


def errors_in(figures: dict[str, Any], place: str = "") -> Iterator[str]:
    """Where something failed, at any depth."""
    for name, value in figures.items():
        if name == "error":
            yield f"{place}: {value}"
        elif isinstance(value, dict):
            yield from errors_in(value, f"{place}, {name}" if place else name)


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """As the package sets torch on a GPU, or not; what was set before comes back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(on, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def model_config(shape: dict[str, Any], vocabulary: int) -> Qwen3Config:
    return Qwen3Config(
        **shape,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        # at any width, layers outweigh the embedding that they are added to, and logits have a deviation near 1
        initializer_range=shape["hidden_size"] ** -0.5,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=None,
    )


def model_of(bench: Bench, shape: dict[str, Any], dtype: torch.dtype) -> Any:
    """Random weights, the same each time, made on the device."""
    torch.manual_seed(0)
    with bench.device:
        config = model_config(shape, bench.size.vocabulary)
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


@torch.no_grad()
def spread(model: Any) -> Any:
    """The same with logits as far apart as a trained model's, so that what it writes hangs on what it read."""
    model.base_model.norm.weight.mul_(LOGIT_SPREAD)
    return model


def config_of(objective: str, overrides: Iterable[str] = ()) -> TrainConfig:
    """The paper's recipe with its gate, nothing diagnosed."""
    return load_recipe(RECIPES[objective], ["diagnostics.every=0", *overrides])


def random_ids(bench: Bench, *shape: int) -> Tensor:
    """int64, the same each time, on the CPU."""
    return torch.randint(bench.size.vocabulary, shape, generator=torch.Generator().manual_seed(0))


def experience_of(bench: Bench) -> Experience:
    """A rollout batch of random tokens with random scores near those of random weights."""
    size, count = bench.size, bench.size.sequences * bench.size.response
    shown, written = random_ids(bench, size.sequences, size.prompt), random_ids(bench, size.sequences, size.response)
    prompts = [Prompt(Problem(str(n), ""), tuple(ids), tuple(ids)) for n, ids in enumerate(shown.tolist())]
    responses = [[Response(tuple(ids), (0.0,) * len(ids), False)] for ids in written.tolist()]
    generator = torch.Generator().manual_seed(1)
    uniform = -torch.tensor(float(size.vocabulary)).log()
    noise = torch.randn(count, 2, generator=generator) * 0.5
    theirs = torch.randn(count, K, generator=generator).log_softmax(-1).sort(-1, descending=True).values
    return Experience.of(prompts, responses).with_scores(
        behaviour_logp=uniform + noise[:, 0],
        teacher_logp=uniform + noise[:, 1],
        teacher_top_ids=random_ids(bench, count, K).int(),
        teacher_top_logp=theirs,
    )


def body_parameters(config: Qwen3Config) -> int:
    """Of the matrices in the layers; norms are too few to count."""
    heads, keys = attention_widths(config)
    layer = config.hidden_size * (2 * heads + 2 * keys + 3 * config.intermediate_size)
    return config.num_hidden_layers * layer


def attention_widths(config: Qwen3Config) -> tuple[int, int]:
    """Heads, and key-value heads, times head size."""
    return config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim


def body_operations(config: Qwen3Config, size: Size) -> float:
    """Of one forward of the batch; see the module's docstring."""
    length = size.prompt + size.response
    attention = 2 * config.num_hidden_layers * attention_widths(config)[0] * length
    return size.sequences * length * (2.0 * body_parameters(config) + attention)


def head_operations(config: Qwen3Config, size: Size, products: float, gathers: float = 0) -> float:
    tokens = size.sequences * size.response
    return 2.0 * tokens * config.hidden_size * (products * config.vocab_size + gathers * K)


# head


def full_sampled(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    return (hidden @ weight.T).float().log_softmax(-1).gather(1, ids[:, :1])[:, 0]


def chunked_sampled(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    return head.token_logprobs(hidden, weight, ids[:, 0], chunk=chunk)


def fused_sampled(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    ones = torch.ones(len(ids), device=ids.device)
    return head.weighted_loss(hidden, weight, ids[:, 0], ones, lambda part, logp: -logp, chunk=chunk)[0]


def torch_sampled(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    """torch's own chunked cross-entropy, from 2.13 on."""
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=chunk)
    how = {"reduction": "none", "options": options}
    return -torch.nn.functional.linear_cross_entropy(hidden, weight, ids[:, 0], **how)


def full_lsm(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    logits = (hidden @ weight.T).float()
    logits.detach().log_softmax(-1).gather(1, ids[:, :1])  # the gate's log-probability
    return objectives.topk_reverse_kl(logits.gather(1, ids), uniform_support(ids))


def chunked_lsm(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    losses = ungated_lsm(hidden, weight, ids, chunk)
    with torch.no_grad():
        head.token_logprobs(hidden, weight, ids[:, 0], chunk=chunk)
    return losses


def ungated_lsm(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    return objectives.topk_reverse_kl(head.support_logits(hidden, weight, ids, chunk=chunk), uniform_support(ids))


def uniform_support(ids: Tensor) -> Tensor:
    return torch.zeros(ids.shape, device=ids.device)


def full_divergence(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    log_p = (hidden @ weight.T).float().log_softmax(-1)
    log_q = (hidden.detach().flip(0) @ weight.detach().T).float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def chunked_divergence(hidden: Tensor, weight: Tensor, ids: Tensor, chunk: int) -> Tensor:
    theirs = hidden.detach().flip(0), weight.detach()
    return vocabulary_divergence(hidden, weight, *theirs, "reverse_kl", chunk=chunk)


@dataclass(frozen=True)
class Way:
    """One way through the head, what it is held against, and the products that its forward and backward take."""

    run: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    base: str
    products: int | None = None
    """None where they are not known."""
    gathers: int = 0
    chunked: bool = True


WAYS = {
    "sampled token, full logits": Way(full_sampled, "sampled token, full logits", 3, chunked=False),
    "sampled token": Way(chunked_sampled, "sampled token, full logits", 4),
    "sampled token, weights known before": Way(fused_sampled, "sampled token, full logits", 3),
    "sampled token, torch's own": Way(torch_sampled, "sampled token, full logits"),
    "LSM with gate, full logits": Way(full_lsm, "LSM with gate, full logits", 3, chunked=False),
    "LSM with gate": Way(chunked_lsm, "LSM with gate, full logits", 1, 3),
    "LSM without gate": Way(ungated_lsm, "LSM with gate, full logits", 0, 3),
    "KL over the vocabulary, full logits": Way(
        full_divergence, "KL over the vocabulary, full logits", 4, chunked=False
    ),
    "KL over the vocabulary": Way(chunked_divergence, "KL over the vocabulary, full logits", 6),
}


def head_section(bench: Bench) -> dict[str, Any]:
    return {mode: head_figures(bench, mode, on) for mode, on in PREPARED.items()}


def head_figures(bench: Bench, mode: str, on: bool) -> measure.Figures:
    """Every way at every size of chunk, as a table."""
    figures: measure.Figures = {}
    operands, before = head_operands(bench), bench.held()
    for name, way in WAYS.items():
        if "torch's" in name and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            continue
        for chunk in bench.size.chunks if way.chunked else (0,):
            with deterministic(on):
                row = f"{name}, {chunk}" if chunk else name
                attempt(figures, row, lambda way=way, chunk=chunk: head_row(bench, way, chunk, operands, before))
                operands[0].grad = operands[1].grad = None
                add_ratio(figures, row, way.base)
    columns = {"ms": ".2f", "least": ".2f", "most": ".2f", "ratio": ".2f", "share": ".2f", "peak_gb": ".2f"}
    tell(figures, columns | {"memory_ratio": ".3f"}, f"head, {len(operands[2])} tokens, {mode}")
    return figures


def head_operands(bench: Bench) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [N, H] and weight [V, H] in bfloat16, ids int64 [N, K]."""
    size, width = bench.size, bench.size.student["hidden_size"]
    torch.manual_seed(0)
    tokens = size.sequences * size.response
    hidden = torch.randn(tokens, width, device=bench.device).bfloat16().requires_grad_()
    weight = torch.randn(size.vocabulary, width, device=bench.device).div_(width**0.5).bfloat16().requires_grad_()
    return hidden, weight, random_ids(bench, tokens, K).to(bench.device)


def head_row(
    bench: Bench, way: Way, chunk: int, operands: tuple[Tensor, Tensor, Tensor], before: int
) -> dict[str, Any]:
    hidden, weight, ids = operands

    def learn() -> None:
        hidden.grad = weight.grad = None
        way.run(hidden, weight, ids, chunk).sum().backward()

    found = bench.costs(learn, before)
    if way.products is not None:
        config = model_config(bench.size.student, bench.size.vocabulary)
        found["share"] = bench.share(head_operations(config, bench.size, way.products, way.gathers), found["ms"])
    return found


def add_ratio(figures: measure.Figures, name: str, base: str) -> None:
    """Of time and memory to those of `base`, where both are there."""
    own, other = figures[name], figures.get(base, {})
    for key, ratio in {"ms": "ratio", "peak_gb": "memory_ratio"}.items():
        if key in own and other.get(key):
            own[ratio] = own[key] / other[key]


def tell(figures: measure.Figures, columns: dict[str, str], heading: str) -> None:
    print()
    measure.table(figures, columns, heading)


# update


@dataclass(frozen=True)
class UpdateCase:
    objective: str
    recompute: bool
    """Gradient checkpointing."""
    budget: int
    """Tokens of one forward at most."""
    prepared: bool = True

    def __str__(self) -> str:
        kept = "recomputed" if self.recompute else "activations kept"
        return f"{self.objective}, {kept}, {self.budget}" + ("" if self.prepared else ", any order")


def update_section(bench: Bench) -> measure.Figures:
    budgets, figures = bench.size.budgets, {}
    cases = [UpdateCase(*settings) for settings in product(RECIPES, (True, False), budgets)]
    cases += [UpdateCase(objective, True, budgets[-1], prepared=False) for objective in RECIPES]
    for case in cases:
        with deterministic(case.prepared):
            attempt(figures, str(case), lambda case=case: update_row(bench, case))
    columns = {"ms": ".1f", "least": ".1f", "most": ".1f", "tokens_per_s": ".0f", "share": ".3f", "forwards": "d"}
    tell(figures, columns | {"peak_gb": ".1f", "estimate_gb": ".1f"}, "update of the student")
    return figures


def update_row(bench: Bench, case: UpdateCase) -> dict[str, Any]:
    before, batch = bench.held(), experience_of(bench)
    learner = learner_of(bench, case, bench.size.student)
    model_shape, size = learner.policy.model.config, bench.size
    told: dict[str, float] = {}
    portions = portions_of(learner.config, batch)
    found = bench.costs(lambda: told.update(learner.update(portions, Moment(0, 0, 1))), before)
    forwards = [m.input_ids.numel() for m in batch.micro_batches(range(size.sequences), case.budget, bench.device)]
    gathers = 3 if case.objective == "LSM" else 0
    operations = 3 * body_operations(model_shape, size)  # type: ignore[arg-type]
    operations += head_operations(model_shape, size, HEAD_PRODUCTS[case.objective], gathers)  # type: ignore[arg-type]
    parts = memory_parts(model_shape, max(forwards), case.recompute)  # type: ignore[arg-type]
    found |= {"tokens_per_s": len(batch.ids) / (found["ms"] * 1e-3), "share": bench.share(operations, found["ms"])}
    found |= {"forwards": len(forwards), "estimate_gb": sum(parts.values()), "estimated_parts_gb": parts}
    return found | {"loss": told["loss"], "grad_norm": told["grad_norm"]}


def learner_of(bench: Bench, case: UpdateCase, shape: dict[str, Any]) -> Learner:
    """As a run makes it: float32 weights, products in bfloat16."""
    policy = Policy(model_of(bench, shape, torch.float32), compute="bfloat16")
    if case.recompute:
        policy.model.gradient_checkpointing_enable()  # type: ignore[operator]
    overrides = [f"microbatch_tokens={case.budget}", f"device={bench.device.type}"]
    return Learner(config_of(case.objective, overrides), policy, updates=1000)


def portions_of(config: TrainConfig, batch: Experience) -> dict[str, Portion]:
    """The whole batch; the gate is on blocks, so no token needs to be known as a line's end."""
    ends = torch.zeros(int(batch.ids.max()) + 1, dtype=torch.bool)
    everything = range(len(batch.responses))
    return {"student": Portion(batch, everything, *spans_of(config, "student", batch, ends))}


def memory_parts(config: Qwen3Config, positions: int, recompute: bool) -> dict[str, float]:
    """GB of an update by the module docstring's formula. positions: of its largest forward."""
    width, layers = config.hidden_size, config.num_hidden_layers
    embedding = config.vocab_size * width
    parameters = body_parameters(config) + embedding
    heads, keys = attention_widths(config)
    layer = 26 * width + 10 * heads + 10 * keys + 8 * config.intermediate_size
    activations = positions * (layer + (layers - 1) * 4 * width if recompute else layers * layer)
    parts = {"weights": 4 * parameters, "gradients": 4 * parameters, "moments": 8 * parameters}
    parts |= {"copies": 2 * parameters, "head": 10 * embedding, "activations": activations}
    return {name: size / 1e9 for name, size in parts.items()}


# scoring


def scoring_section(bench: Bench) -> measure.Figures:
    figures: measure.Figures = {}
    attempt(figures, "teacher, bfloat16, top K", lambda: teacher_row(bench))
    attempt(figures, "behaviour, float32 weights", lambda: behaviour_row(bench, torch.float32, "bfloat16"))
    attempt(figures, "behaviour, bfloat16 weights", lambda: behaviour_row(bench, torch.bfloat16, None))
    columns = {"ms": ".1f", "least": ".1f", "most": ".1f", "tokens_per_s": ".0f", "share": ".3f", "peak_gb": ".1f"}
    tell(figures, columns, "scoring, one forward")
    return figures


def teacher_row(bench: Bench) -> dict[str, Any]:
    model = model_of(bench, bench.size.teacher, torch.bfloat16)
    teacher = LocalTeacher(Policy(model), max(bench.size.budgets), temperature=1.0)
    batch, needs = experience_of(bench), TargetNeeds(top=K)
    return scored(bench, model.config, lambda: teacher.score(batch, needs))


def behaviour_row(bench: Bench, dtype: torch.dtype, compute: str | None) -> dict[str, Any]:
    policy, batch = Policy(model_of(bench, bench.size.student, dtype), compute), experience_of(bench)
    budget, everything = max(bench.size.budgets), range(bench.size.sequences)

    def score() -> None:
        micros = batch.micro_batches(everything, budget, bench.device)
        score_tokens(policy, micros, batch.ids[:, None], TargetNeeds(), 1.0)

    return scored(bench, policy.model.config, score)  # type: ignore[arg-type]


def scored(bench: Bench, config: Qwen3Config, way: Callable[[], object]) -> dict[str, Any]:
    with deterministic(True):
        found = bench.costs(way, bench.held())
    operations = body_operations(config, bench.size) + head_operations(config, bench.size, 1)
    tokens = bench.size.sequences * bench.size.response
    return found | {
        "share": bench.share(operations, found["ms"]),
        "tokens_per_s": tokens / (found["ms"] * 1e-3),
    }


# decoding


class StaticDecoder:
    """Decodes rows with prompts of one length by a step whose tensors never move, as a CUDA graph needs it.

    B rows, C positions that the cache has room for, V vocabulary.
    """

    def __init__(self, model: Any, rows: int, positions: int):
        self.model, self.head = model, model.get_output_embeddings().weight
        self.device = self.head.device
        room = -(-positions // 64) * 64
        self.cache = StaticCache(config=model.config, max_cache_len=room)
        self.places = torch.arange(room, device=self.device)
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=self.device)
        self.position = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.graph: Any = None

    def prefill(self, prompts: Tensor) -> Tensor:
        """Begin anew with int64 [B, P]; the logits [B, V] of the next tokens."""
        self.cache.reset()
        self.position.fill_(prompts.shape[1])
        return self._logits(prompts, self.places[None, : prompts.shape[1]], None)

    def step(self) -> Tensor:
        """The logits [B, V] after one more token a row, those in `tokens`."""
        mask = torch.zeros_like(self.places, dtype=self.head.dtype).masked_fill_(
            self.places > self.position, -torch.inf
        )
        logits = self._logits(self.tokens, self.position[None], mask.expand(len(self.tokens), 1, 1, -1))
        self.position += 1
        return logits

    def _logits(self, ids: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        """The cache counts its positions itself, on the device; a finished mask [B, 1, 1, C] is added as it is."""
        body = self.model.base_model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions.expand(len(ids), -1),
            past_key_values=self.cache,
            use_cache=True,
        )
        return (body.last_hidden_state[:, -1] @ self.head.T).float()

    @torch.no_grad()
    def capture(self, prompts: Tensor) -> None:
        """Record `step` as a CUDA graph. What the steps before leave in the cache is gone at the next prefill."""
        self.prefill(prompts)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(STEPS_BEFORE_CAPTURE):
                self.step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.captured = self.step()
        self.graph = graph

    def advance(self, tokens: Tensor) -> Tensor:
        """The logits after tokens int64 [B]: by the graph where there is one."""
        self.tokens.copy_(tokens[:, None])
        if self.graph is None:
            return self.step()
        self.graph.replay()
        return self.captured

    @torch.no_grad()
    def decode(self, prompts: Tensor, uniforms: Tensor) -> Tensor:
        """int64 [B, n] from uniforms float64 [B, n]."""
        return drawn(self.prefill(prompts), self.advance, uniforms)


def drawn(logits: Tensor, advance: Callable[[Tensor], Tensor], uniforms: Tensor) -> Tensor:
    """A token for every uniform number, int64 [B, n]. advance: from tokens [B] to the next logits [B, V]."""
    written = torch.empty(uniforms.shape, dtype=torch.int64, device=uniforms.device)
    for step in range(uniforms.shape[1]):
        tokens, _ = sample(logits, uniforms[:, step], 1.0)
        written[:, step] = tokens
        if step + 1 < uniforms.shape[1]:
            logits = advance(tokens)
    return written


@torch.no_grad()
def plain_decode(model: Any, prompts: Tensor, uniforms: Tensor) -> Tensor:
    """The twin of StaticDecoder: a cache that grows, positions and masks as transformers makes them."""
    cache = DynamicCache(config=model.config)

    def advance(ids: Tensor) -> Tensor:
        return model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()

    return drawn(advance(prompts), lambda tokens: advance(tokens[:, None]), uniforms)


def requests_of(bench: Bench, rows: int) -> list[Request]:
    """A response each to prompts of one length."""
    prompts = random_ids(bench, rows, bench.size.prompt).tolist()
    return [Request(tuple(prompt), (("gpu benchmark", row),)) for row, prompt in enumerate(prompts)]


def uniforms_of(requests: list[Request], new: int) -> Tensor:
    """The numbers that the package's engine draws with, float64 [B, n]."""
    return torch.stack([torch.from_numpy(keyed.generator(*r.keys[0]).random(new)) for r in requests])


def engine_decode(policy: Policy, requests: list[Request], new: int) -> list[list[Response]]:
    return HFEngine(policy).generate(requests, Sampling(new, 1.0, 1.0, (policy.head.shape[0] + NO_STOP,)))


def decoding_section(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with deterministic(False):
        attempt(found, "agreement in float32", lambda: agreement(bench))
    print(f"\nagreement in float32: {found['agreement in float32']}", flush=True)
    model = model_of(bench, bench.size.student, torch.bfloat16)
    for new in bench.size.new:
        figures: measure.Figures = {}
        ways = {"driftgate": by_driftgate, "transformers generate": by_generate, "step with fixed shapes": by_static}
        for name, way in ways.items():
            with deterministic(name == "driftgate"), torch.no_grad():
                attempt(figures, name, lambda way=way, new=new: way(bench, model, new))
        if bench.cuda:
            with deterministic(False), torch.no_grad():
                attempt(figures, "the same as a CUDA graph", lambda new=new: by_static(bench, model, new, capture=True))
        columns = {"ms": ".0f", "least": ".0f", "most": ".0f", "tokens_per_s": ".0f", "ms_a_token": ".3f"}
        columns |= {"floor_ms": ".3f", "share": ".3f", "peak_gb": ".2f", "capture_ms": ".0f", "same": ".3f"}
        tell(figures, columns, f"{bench.size.rows} x {new} tokens")
        found[f"{new} tokens"] = figures
    return found


@torch.no_grad()
def agreement(bench: Bench) -> dict[str, Any]:
    """Of ways that draw with the same numbers, the share of tokens that are those of the step with fixed shapes; on a
    small model in float32, where all are to be 1."""
    small = replace(bench, size=TINY)
    model, new = spread(model_of(small, TINY.student, torch.float32)), TINY.new[0]
    requests = requests_of(small, TINY.rows)
    prompts = torch.tensor([r.prompt for r in requests], device=bench.device)
    uniforms = uniforms_of(requests, new).to(bench.device)
    decoder = StaticDecoder(model, TINY.rows, TINY.prompt + new)
    static = decoder.decode(prompts, uniforms)
    engine = engine_decode(Policy(model), requests, new)
    written = torch.tensor([answers[0].ids for answers in engine], device=bench.device)
    others = {"growing cache": plain_decode(model, prompts, uniforms), "driftgate": written}
    others["fixed shapes, once more"] = decoder.decode(prompts, uniforms)
    found: dict[str, Any] = {name: same(other, static) for name, other in others.items()}
    if bench.cuda:
        attempt(found, "CUDA graph", lambda: same(captured(decoder, prompts).decode(prompts, uniforms), static))
    if any(isinstance(share, float) and share != 1 for share in found.values()):
        found["error"] = "the same uniform numbers gave other tokens"
    return found


def same(one: Tensor, other: Tensor) -> float:
    """Share of equal entries."""
    return (one == other).double().mean().item()


def captured(decoder: StaticDecoder, prompts: Tensor) -> StaticDecoder:
    decoder.capture(prompts)
    return decoder


def decoded(bench: Bench, model: Any, new: int, before: int, way: Callable[[], object]) -> dict[str, Any]:
    """Costs of decoding, and what the memory's bandwidth allows at best. before: bytes held."""
    found = replace(bench, repeats=min(bench.repeats, 3)).costs(way, before, warm_ups=1)
    each, config = found["ms"] / new, model.config
    weights = 2 * (body_parameters(config) + config.vocab_size * config.hidden_size)
    seen = bench.size.prompt + (new + 1) / 2
    cached = 4 * bench.size.rows * seen * config.num_hidden_layers * attention_widths(config)[1]
    floor = (weights + cached) / (bench.bandwidth_tbs * 1e12) * 1e3
    speed = bench.size.rows * new / (found["ms"] * 1e-3)
    return found | {"tokens_per_s": speed, "ms_a_token": each, "floor_ms": floor, "share": floor / each}


def by_driftgate(bench: Bench, model: Any, new: int) -> dict[str, Any]:
    policy, requests = Policy(model), requests_of(bench, bench.size.rows)
    return decoded(bench, model, new, bench.held(), lambda: engine_decode(policy, requests, new))


def by_generate(bench: Bench, model: Any, new: int) -> dict[str, Any]:
    prompts = random_ids(bench, bench.size.rows, bench.size.prompt).to(bench.device)
    how = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": new}
    mask, width = torch.ones_like(prompts), bench.size.prompt + new

    def generate() -> None:
        written = model.generate(prompts, attention_mask=mask, use_cache=True, **how)
        assert written.shape == (len(prompts), width), f"generate ended early, at {written.shape[1]} positions"

    return decoded(bench, model, new, bench.held(), generate)


def by_static(bench: Bench, model: Any, new: int, capture: bool = False) -> dict[str, Any]:
    """The step with fixed shapes, its sampling outside. Captured: `same`, the share of tokens that are the uncaptured
    step's, and `capture_ms`, which is not in `ms`."""
    before, requests = bench.held(), requests_of(bench, bench.size.rows)
    prompts = torch.tensor([r.prompt for r in requests], device=bench.device)
    uniforms = uniforms_of(requests, new).to(bench.device)
    decoder = StaticDecoder(model, bench.size.rows, bench.size.prompt + new)
    if not capture:
        return decoded(bench, model, new, before, lambda: decoder.decode(prompts, uniforms))
    plain = decoder.decode(prompts, uniforms)
    began = time.perf_counter()
    decoder.capture(prompts)
    spent = time.perf_counter() - began
    alike = same(decoder.decode(prompts, uniforms), plain)
    found = decoded(bench, model, new, before, lambda: decoder.decode(prompts, uniforms))
    return found | {"capture_ms": spent * 1e3, "same": alike}


# exactness


def exactness_section(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with deterministic(True):
        attempt(found, "head", lambda: head_errors(bench))
        for name, dtype, compute in (
            ("bfloat16 weights", torch.bfloat16, None),
            ("float32 weights, bfloat16 products", torch.float32, "bfloat16"),
            ("float32", torch.float32, None),
        ):
            row = f"decoding against the trainer's forward, {name}"
            attempt(found, row, lambda dtype=dtype, compute=compute: mismatch(bench, dtype, compute))
    for objective, on in product(RECIPES, (True, False)):
        row = f"same bits again, {objective}" + ("" if on else ", any order")
        attempt(found, row, lambda objective=objective, on=on: repeated(bench, objective, on))
    print()
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{key} {shown(value)}" for key, value in figures.items()))
    return found


def shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def head_errors(bench: Bench) -> dict[str, float]:
    """Of bfloat16 operands' log-probabilities, in nats, and of the gradients, relative, against float64 of the same."""
    hidden, weight, ids = head_operands(bench)
    hidden, ids = hidden.detach()[: bench.size.compared].requires_grad_(), ids[: bench.size.compared, 0]
    ours = head.token_logprobs(hidden, weight, ids)
    ours.sum().backward()
    wide = [part.detach().double().requires_grad_() for part in (hidden, weight)]
    exact = (wide[0] @ wide[1].T).log_softmax(-1).gather(1, ids[:, None])[:, 0]
    exact.sum().backward()
    rounded = (hidden.detach() @ weight.detach().T).float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    errors = {"max_error": (ours.double() - exact).abs().max(), "mean_error": (ours.double() - exact).abs().mean()}
    errors["max_error_of_bfloat16_logits"] = (rounded.double() - exact).abs().max()
    for name, part, reference in zip(("hidden", "weight"), (hidden, weight), wide):
        assert part.grad is not None
        assert reference.grad is not None
        errors[f"gradient_error_{name}"] = (part.grad.double() - reference.grad).norm() / reference.grad.norm()
    return {name: value.item() for name, value in errors.items()}


@torch.no_grad()
def mismatch(bench: Bench, dtype: torch.dtype, compute: str | None) -> dict[str, float]:
    """Between the engine's log-probabilities of what it drew and the trainer's own forward, in nats, same weights."""
    policy = Policy(spread(model_of(bench, bench.size.student, dtype)), compute)
    requests = requests_of(bench, max(bench.size.rows // 4, 1))
    responses = engine_decode(policy, requests, bench.size.new[0])
    prompts = [Prompt(Problem(str(n), ""), r.prompt, r.prompt) for n, r in enumerate(requests)]
    batch = Experience.of(prompts, responses)
    micros = batch.micro_batches(range(len(requests)), max(bench.size.budgets), bench.device)
    own = score_tokens(policy, micros, batch.ids[:, None], TargetNeeds(), 1.0)["logp"][:, 0]
    shift = own.double() - batch.engine_logp.double()
    blocks = shift.split(min(64, bench.size.new[0]))
    return {
        "mean": shift.abs().mean().item(),
        "max": shift.abs().max().item(),
        "mean_of_block": statistics.mean(abs(block.mean().item()) for block in blocks),
    }


def repeated(bench: Bench, objective: str, on: bool) -> dict[str, Any]:
    """Whether two updates from the same state end in the same bits when they are made again; and of what torch says
    that it cannot promise that. Gradients tell more: AdamW's first steps hardly depend on their size."""
    with deterministic(on), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        one, other = (updated(bench, objective) for _ in range(2))
    said = {str(warning.message).split(". ")[0] for warning in told if "deterministic" in str(warning.message)}
    found: dict[str, Any] = {name: all(map(torch.equal, one[name], other[name])) for name in one}
    if on and not all(found.values()):
        found["error"] = "identical updates differ although torch is set to be deterministic"
    return found | {"not_deterministic": sorted(said)}


def updated(bench: Bench, objective: str) -> dict[str, list[Tensor]]:
    """Weights and last gradients of a student of few layers after two updates, on the CPU."""
    shape = bench.size.student | {"num_hidden_layers": bench.size.layers}
    learner = learner_of(bench, UpdateCase(objective, True, bench.size.budgets[0]), shape)
    portions = portions_of(learner.config, experience_of(bench))
    for number in (1, 2):
        learner.update(portions, Moment(0, 0, number))
    gradients = [parameter.grad.cpu() for parameter in learner.parameters if parameter.grad is not None]
    return {"weights": [parameter.detach().cpu() for parameter in learner.parameters], "gradients": gradients}


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "head": head_section,
    "update": update_section,
    "scoring": scoring_section,
    "exactness": exactness_section,
    "decoding": decoding_section,
}


if __name__ == "__main__":
    main()
