"""Decoding on a GPU: the package's engine, transformers' `generate`, and one step as a CUDA graph.

    python benchmarks/gpu_decoding.py [--long] [--repeats 3] [--quick --device cpu]

64 responses of 256 tokens (--long: of 1,024 too) by a model of Qwen3-1.7B's sizes, random weights in bfloat16. There is
one warm-up, and at most 3 repeats. "floor_ms" is the least time of a token: every weight and every key and value is
read once, at the memory's bandwidth. "share" is that floor over the time that a token took. On a CPU the graph is left
out. Writes benchmarks/results/gpu_decoding.json.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from gpu_bench import Bench, Figures, attempt, deterministic, print_table, run_program
from gpu_sizes import QUICK, model_of, random_ids, spread
from static_decoder import StaticDecoder, plain_decode
from torch import Tensor
from training import requests_of

from driftgate import keyed
from driftgate.data.response import Response
from driftgate.models.policy import Policy
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine

BEYOND_VOCABULARY = 1
"""The stop token's id lies beyond the vocabulary, so that nothing can end a response."""
COLUMNS = {"ms": ".0f", "least": ".0f", "most": ".0f", "tokens_per_s": ".0f", "ms_a_token": ".3f"}
COLUMNS |= {"floor_ms": ".3f", "share": ".3f", "peak_gb": ".2f", "capture_ms": ".0f", "same": ".3f"}


def measure_decoding(bench: Bench, figures: Figures) -> None:
    with deterministic(False):
        attempt(figures, "agreement in float32", lambda: agreement(bench))
    print(f"\nagreement in float32: {figures['agreement in float32']}", flush=True)
    model = model_of(bench.size.student, torch.bfloat16, bench.device)
    ways = {"driftgate": by_driftgate, "transformers generate": by_generate, "step with fixed shapes": by_static}
    if bench.cuda:
        ways["the same as a CUDA graph"] = by_graph
    for new in bench.size.new:
        rows = figures[f"{new} tokens"] = {}
        for name, way in ways.items():
            with deterministic(name == "driftgate"), torch.no_grad():
                attempt(rows, name, lambda way=way, new=new: way(bench, model, new))
        print_table(rows, COLUMNS, f"{bench.size.rows} x {new} tokens")


def given(bench: Bench, new: int) -> tuple[list[Request], Tensor, Tensor]:
    """Requests, their prompts int64 [B, P], and the numbers that the package's engine draws with, float64 [B, n]."""
    prompts = random_ids(bench.size.vocabulary, bench.size.rows, bench.size.prompt)
    requests = requests_of(prompts, "gpu benchmark")
    uniforms = torch.stack([torch.from_numpy(keyed.generator(*r.keys[0]).random(new)) for r in requests])
    return requests, prompts.to(bench.device), uniforms.to(bench.device)


def engine_decode(policy: Policy, requests: list[Request], new: int) -> list[list[Response]]:
    stop_id = policy.vocabulary_size + BEYOND_VOCABULARY
    return HFEngine(policy).generate(requests, Sampling(new, 1.0, 1.0, (stop_id,)))


@torch.no_grad()
def agreement(bench: Bench) -> Figures:
    """Ways that draw with the same numbers: the share of their tokens that the step with fixed shapes draws too. On a
    small model in float32 all should be 1."""
    small, new = replace(bench, size=QUICK), QUICK.new[0]
    model = spread(model_of(QUICK.student, torch.float32, bench.device))
    requests, prompts, uniforms = given(small, new)
    decoder = StaticDecoder(model, QUICK.rows, QUICK.prompt + new)
    static = decoder.decode(prompts, uniforms)
    engine = engine_decode(Policy(model), requests, new)
    written = torch.tensor([answers[0].ids for answers in engine], device=bench.device)
    others = {"growing cache": plain_decode(model, prompts, uniforms), "driftgate": written}
    others["fixed shapes, once more"] = decoder.decode(prompts, uniforms)
    found: Figures = {name: same(other, static) for name, other in others.items()}
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


def decoded(bench: Bench, new: int, before: int, way: Callable[[], object]) -> Figures:
    """Costs of decoding, and what the memory's bandwidth allows at best. before: bytes held."""
    found, size, shape = bench.costs(way, before, warm_ups=1, most_repeats=3), bench.size, bench.size.student
    each = found["ms"] / new
    seen = size.prompt + (new + 1) / 2
    read = 2 * shape.read_per_step + size.rows * seen * shape.kv_bytes(2)
    floor = read / bench.bandwidth * 1e3
    speed = size.rows * new / (found["ms"] * 1e-3)
    return found | {"tokens_per_s": speed, "ms_a_token": each, "floor_ms": floor, "share": floor / each}


def by_driftgate(bench: Bench, model: Any, new: int) -> Figures:
    policy, (requests, *_) = Policy(model), given(bench, new)
    return decoded(bench, new, bench.held(), lambda: engine_decode(policy, requests, new))


def by_generate(bench: Bench, model: Any, new: int) -> Figures:
    _, prompts, _ = given(bench, new)
    how = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": new}
    mask, width = torch.ones_like(prompts), bench.size.prompt + new

    def generate() -> None:
        written = model.generate(prompts, attention_mask=mask, use_cache=True, **how)
        assert written.shape == (len(prompts), width), f"generate ended early, at {written.shape[1]} positions"

    return decoded(bench, new, bench.held(), generate)


def by_static(bench: Bench, model: Any, new: int) -> Figures:
    """The step with fixed shapes, its sampling outside."""
    before, (_, prompts, uniforms) = bench.held(), given(bench, new)
    decoder = StaticDecoder(model, bench.size.rows, bench.size.prompt + new)
    return decoded(bench, new, before, lambda: decoder.decode(prompts, uniforms))


def by_graph(bench: Bench, model: Any, new: int) -> Figures:
    """The same step captured. `same`: the share of tokens that the uncaptured step draws too. `capture_ms` is not in
    `ms`."""
    before, (_, prompts, uniforms) = bench.held(), given(bench, new)
    decoder = StaticDecoder(model, bench.size.rows, bench.size.prompt + new)
    plain = decoder.decode(prompts, uniforms)
    torch.cuda.synchronize(bench.device)
    began = time.perf_counter()
    decoder.capture(prompts)
    torch.cuda.synchronize(bench.device)
    spent = time.perf_counter() - began
    alike = same(decoder.decode(prompts, uniforms), plain)
    found = decoded(bench, new, before, lambda: decoder.decode(prompts, uniforms))
    return found | {"capture_ms": spent * 1e3, "same": alike}


if __name__ == "__main__":
    run_program("decoding", __doc__ or "", measure_decoding)
