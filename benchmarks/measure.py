"""What the benchmarks share: ways of doing one thing, side by side in one run, compared by ratios with their spread.

CPU-seconds are of this process with all its threads; benchmarks run on one thread. Memory is the most resident memory
of a fresh process, above that of a process that only makes the inputs.
"""

import argparse
import ctypes
import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"

Figures = dict[str, dict[str, Any]]
"""By the name of a way: `cpu_s`, `ratio`, `least`, `most`, `peak_mb`, `memory_ratio` and what else was measured."""


def parser(doc: str) -> argparse.ArgumentParser:
    """With --repeats and --quick. A quick run shows that everything works, and leaves the committed figures alone."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=None, help="rounds, after one to warm up")
    made.add_argument("--quick", action="store_true", help="small sizes, results under results/quick/")
    return made


def rounds(ways: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """CPU-seconds of every way in each of `repeats` rounds, the ways in turn. One round before is not counted."""
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(repeats + 1):
        for name, way in ways.items():
            began = time.process_time()
            way()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


def against(seconds: Mapping[str, Sequence[float]], bases: Mapping[str, str]) -> Figures:
    """Each way's median seconds, and the median and range over rounds of its ratio to the way that `bases` names."""
    return {name: {"cpu_s": statistics.median(own)} | ratio(own, seconds[bases[name]]) for name, own in seconds.items()}


def ratio(own: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Median and range of own / base, round by round."""
    ratios = sorted(one / two for one, two in zip(own, base))
    return {"ratio": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}


def peak_mb(function: Callable[..., Any], *arguments: Any) -> float:
    """The most resident memory, in MB, of a fresh process that runs function(*arguments) on one thread.

    The function must be at the top of its module, so that the process can import it.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of, (function, *arguments))


def _peak_of(function: Callable[..., Any], *arguments: Any) -> float:
    torch.set_num_threads(1)
    function(*arguments)
    return memory_mb("VmHWM")


def memory_mb(field: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most that it held. Not ru_maxrss: a child inherits that from the
    process that started it."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024


def forget_peak() -> None:
    """Let VmHWM begin anew, with what is freed given back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def written_mb() -> float:
    """What this process has written so far to files and sockets, in MB of 1e6 bytes."""
    return int(Path("/proc/self/io").read_text().split("wchar:")[1].split()[0]) / 1e6


def table(figures: Figures, columns: Mapping[str, str], heading: str) -> None:
    """Print one line a way. columns: format of each figure shown, such as {"cpu_s": ".2f"}."""
    wide = max(len(heading), *map(len, figures)) + 2
    print(heading.ljust(wide) + "".join(name.rjust(14) for name in columns))
    for name, figure in figures.items():
        cells = (format(figure[key], how) if key in figure else "" for key, how in columns.items())
        print(name.ljust(wide) + "".join(cell.rjust(14) for cell in cells))


def write(name: str, began: float, quick: bool, packages: Sequence[str] = (), **content: Any) -> Path:
    """results/NAME.json, or results/quick/NAME.json: command, versions, threads and duration, then the content.

    began: time.time() at the start; packages: whose versions are noted, beside torch.
    """
    result = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {package: version(package) for package in packages},
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread",
        "seconds": round(time.time() - began),
    }
    folder = RESULTS / "quick" if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{name}.json"
    out.write_text(json.dumps(result | content, indent=2) + "\n")
    return out
