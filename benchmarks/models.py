"""A decoding step of each architecture beside the fast loop on a Llama of the same width, by CPU time.

    python benchmarks/models.py [--repeats N] [--quick]

The models are those of `architectures.py`, 8 times as wide: 2 layers x 256, random weights, float32. Each writes 4
responses of 48 tokens to each of 4 prompts of 24 to 30 tokens; no response ends earlier. The prompts' own cost is
measured apart and taken off. Llama writes the same in each round. The parameters differ where an architecture has
experts or other layers, so a ratio is of the whole model, not of its loop alone.
Writes benchmarks/results/models.json.
"""

import time
import warnings
from dataclasses import dataclass
from typing import Any

import measure
import torch
import transformers
from architectures import CONFIGS, model_of

from driftgate.models.policy import Policy
from driftgate.rollout.cached_reader import CachedReader
from driftgate.rollout.decode_step import can_decode
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.rollout.readers import kind_of_reader
from driftgate.rollout.whole_reader import WholeReader

BASE = "Llama"
FEW = (BASE, "Mistral, windows", "Qwen3.5", "RWKV", "Phi")
"""Of a quick run."""


@dataclass(frozen=True)
class Size:
    wider: int
    repeats: int
    prompts: tuple[int, ...]
    """Their lengths."""
    samples: int
    new_tokens: int


FULL, QUICK = Size(8, 3, (24, 26, 28, 30), 4, 48), Size(1, 1, (3, 4), 2, 4)


def rollout(model: Any, size: Size, tokens: int) -> float:
    """CPU-seconds of responses of so many tokens each."""
    keys = [tuple((0, place, n) for n in range(size.samples)) for place in range(len(size.prompts))]
    requests = [Request(tuple(range(3, 3 + n)), own) for n, own in zip(size.prompts, keys)]
    engine = HFEngine(Policy(model))
    engine.kinds[0] = kind_of_reader(model)
    began = time.process_time()
    engine.generate(requests, Sampling(tokens, 1.0, 1.0, ()))
    return time.process_time() - began


def step(model: Any, size: Size) -> float:
    """CPU-seconds of one decoding step of all responses, without the prompts."""
    return (rollout(model, size, size.new_tokens) - rollout(model, size, 1)) / (size.new_tokens - 1)


def way_of(model: Any) -> str:
    """How its rollouts are decoded."""
    if can_decode(model):
        return "fast loop"
    kinds = {CachedReader: "cache of transformers", WholeReader: "whole sequence"}
    return kinds.get(kind_of_reader(model), "our cache")


def figures_of(name: str, llama: Any, size: Size) -> dict[str, Any]:
    model = model_of(name, 0.05, wider=size.wider, max_position_embeddings=256)
    seconds: dict[str, list[float]] = {name: [], "base": []}
    for number in range(size.repeats + 1):
        for way, each in ((name, model), ("base", llama)):
            taken = step(each, size)
            if number:
                seconds[way].append(taken)
    return {
        "class": type(model).__name__,
        "way": way_of(model),
        "attention": model.config._attn_implementation,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **measure.against(seconds, {name: "base", "base": "base"})[name],
    }


def main() -> None:
    arguments = measure.parser(__doc__ or "").parse_args()
    began, figures, size = time.time(), {}, QUICK if arguments.quick else FULL
    size = Size(size.wider, arguments.repeats or size.repeats, size.prompts, size.samples, size.new_tokens)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    llama = model_of(BASE, 0.05, wider=size.wider, max_position_embeddings=256)
    for name in FEW if arguments.quick else CONFIGS:
        figures[name] = figures_of(name, llama, size)
        measure.table({name: figures[name]}, {"cpu_s": ".4f", "ratio": ".2f"}, figures[name]["way"])
    measure.write("models", began, arguments.quick, ["transformers"], figures=figures)


if __name__ == "__main__":
    main()
