"""What the GPU programs share: options, times and memory on a device, errors that do not end a program, results.

Times are medians over --repeats after two warm-ups, by CUDA events; "least" and "most" are their range. Memory is the
most that the allocator handed out, in GB of 1e9 bytes, above what was held before. On a CPU memory is left out.
"""

import argparse
import gc
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import measure
import torch
from gpu_sizes import FULL, QUICK, GpuSize, config_of
from training import prepare_torch
from transformers.utils import logging

from driftgate.estimate.gpus import GPUS, Gpu

Figures = dict[str, Any]
"""Of each way or part of a program by its name: its figures, or {"error": text}."""
PREPARED = {"as the package sets torch": True, "any order": False}
"""The package has torch take deterministic operations on a GPU. "any order" is without that."""


@dataclass(frozen=True)
class Bench:
    """A device, and how to measure on it."""

    device: torch.device
    size: GpuSize
    repeats: int
    peak_flops: float
    """bfloat16 operations a second."""
    bandwidth: float
    """Bytes a second."""

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def share(self, operations: float, ms: float) -> float:
        """Share of the peak, for so many operations in `ms` milliseconds."""
        return operations / (ms * 1e-3) / self.peak_flops

    def held(self) -> int:
        """Bytes that tensors hold on the GPU. What nothing refers to is freed before."""
        gc.collect()
        if not self.cuda:
            return 0
        torch.cuda.empty_cache()
        return torch.cuda.memory_allocated(self.device)

    def costs(self, way: Callable[[], object], before: int, warm_ups: int = 2, most_repeats: int = 1000) -> Figures:
        """`ms`, `least`, `most` and, on a GPU, `peak_gb` above `before`, which is in bytes."""
        for _ in range(warm_ups):
            way()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        times = [self._milliseconds(way) for _ in range(min(self.repeats, most_repeats))]
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


def parser(doc: str) -> argparse.ArgumentParser:
    made = measure.parser(doc)
    made.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    made.add_argument("--long", action="store_true", help="decode four times as many tokens too")
    made.add_argument("--peak-tflops", type=float, help="of the device, bfloat16; by default its data sheet's")
    made.add_argument("--bandwidth-tbs", type=float, help="of the device's memory, TB/s; by default its data sheet's")
    return made


def parsed(doc: str) -> argparse.Namespace:
    """The options. Ends the program where there is no GPU for the full size, which would take days on a CPU."""
    arguments = parser(doc).parse_args()
    missing = arguments.device == "cpu" or not torch.cuda.is_available()
    if missing and (not arguments.quick or arguments.device == "cuda"):
        raise SystemExit("this benchmark needs a GPU that torch can see; to try it on a CPU: --quick --device cpu")
    return arguments


def run_program(name: str, doc: str, measure_all: Callable[[Bench, Figures], None]) -> None:
    """Make the figures of a program and write results/gpu_NAME.json. Ends with status 1 if something failed.

    measure_all: fills in the figures it is given, so that those made before a failure are kept.
    """
    arguments, began = parsed(doc), time.time()
    logging.set_verbosity_error()
    threads = ["threads=1"] if arguments.quick else []
    device = prepare_torch(config_of("LSM", [f"device={arguments.device}", *threads]))
    facts = device_facts(device)
    bench = bench_of(arguments, device, facts)
    print(facts, flush=True)
    figures: Figures = {}
    whole: Figures = {}
    attempt(whole, name, lambda: measure_all(bench, figures))
    figures |= whole[name] or {}
    settings = {"device": facts, "seed": 0, "size": bench.size.described(), "repeats": bench.repeats}
    settings |= {"peak_tflops": bench.peak_flops / 1e12, "bandwidth_tbs": bench.bandwidth / 1e12}
    out = measure.write(f"gpu_{name}", began, arguments.quick, ["transformers"], **settings, figures=figures)
    failures = list(errors_in(figures, name))
    print(f"{out}\n{len(failures)} failed" + "".join(f"\n  {failure}" for failure in failures), flush=True)
    raise SystemExit(1 if failures else 0)


def bench_of(arguments: argparse.Namespace, device: torch.device, facts: Figures) -> Bench:
    """Rates are those of the options, else of the data sheet."""
    sheet = data_sheet(facts["name"])
    peak, bandwidth = arguments.peak_tflops, arguments.bandwidth_tbs
    if device.type == "cuda" and sheet is None and (peak is None or bandwidth is None):
        print(f"no data sheet of {facts['name']} is known, so shares are of an H100's rates; see --peak-tflops")
    rates = sheet or next(gpu for gpu in GPUS if gpu.name == "H100")
    return Bench(
        device,
        (QUICK if arguments.quick else FULL).with_long(arguments.long),
        arguments.repeats or 5,
        rates.bf16 if peak is None else peak * 1e12,
        rates.bandwidth if bandwidth is None else bandwidth * 1e12,
    )


def data_sheet(device_name: str) -> Gpu | None:
    """The known GPU that a device's name contains, such as "NVIDIA H100 80GB HBM3"."""
    return next((gpu for gpu in GPUS if re.search(rf"\b{gpu.name}\b", device_name)), None)


def device_facts(device: torch.device) -> Figures:
    if device.type != "cuda":
        return {"name": "cpu"}
    facts = torch.cuda.get_device_properties(device)
    return {
        "name": facts.name,
        "memory_gb": facts.total_memory / 1e9,
        "capability": f"{facts.major}.{facts.minor}",
        "multiprocessors": facts.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def attempt(figures: Figures, name: str, make: Callable[[], Any]) -> None:
    """figures[name] = make(). If it fails, the error's text is kept and printed, and the program goes on."""
    try:
        figures[name] = make()
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        figures[name] = {"error": f"{type(error).__name__}: {text}"}
        print(f"FAILED {name}: {figures[name]['error']}", flush=True)


def errors_in(figures: Figures, place: str) -> Iterator[str]:
    """Place and text of every error, at any depth."""
    for name, value in figures.items():
        if name == "error":
            yield f"{place}: {value}"
        elif isinstance(value, dict):
            yield from errors_in(value, f"{place}, {name}")


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Deterministic operations as the package sets torch on a GPU, or none. The setting before comes back."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    # without `on` the second is False too: the learner takes it for a sign of the package's setting
    torch.use_deterministic_algorithms(on, warn_only=on)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*deterministic")
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def print_table(figures: Figures, columns: dict[str, str], heading: str) -> None:
    print()
    measure.table(figures, columns, heading)
    print(flush=True)
