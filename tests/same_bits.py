"""Trains some shipped recipes for three steps and prints the SHA-256 of the weights they end with, as JSON.

    python tests/same_bits.py RECIPE ...        print
    python tests/same_bits.py --record          train all and write same_bits.json

The kernels are held to AVX2 and one thread, so that x86 processors of several makes give the same bits.
"""

import os

os.environ |= {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE"}
os.environ |= {"OMP_NUM_THREADS": "1"}

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file

from driftgate.recipe import load_recipe
from driftgate.train.command import run
from driftgate.train.folder import final_model

RECORD = Path(__file__).with_name("same_bits.json")
RECIPES = {
    "sandbox": [f"{base}_{gate}" for base in ("lsm", "sampled_token") for gate in ("none", "block64", "newline")],
    "repairs": ["gkd", "rethinking_opd_code", "stable_opd", "tropd", "scope_sampled"],
    "controls": ["shuffle_across", "opsm"],
    "ours": ["changepoint", "target_ess"],
}
NAMES = [f"{room}/{name}" for room, names in RECIPES.items() for name in names]


def weights_sha256(name: str, out: Path) -> str:
    """Of the weights after three steps, with the names of the parameters."""
    run(load_recipe(name, ["steps=3", "threads=1", "device=cpu"]), out, Console(quiet=True))
    digest = hashlib.sha256()
    for key, value in sorted(load_file(final_model(out) / "model.safetensors").items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode() + value.numpy().tobytes())
    return digest.hexdigest()


def main(arguments: list[str]) -> None:
    record = arguments == ["--record"]
    keep = os.environ.get("SAME_BITS_KEEP")  # a folder for the runs, to compare their metrics too
    with tempfile.TemporaryDirectory() as folder:
        found = {name: weights_sha256(name, Path(keep or folder) / name) for name in (NAMES if record else arguments)}
    text = json.dumps({"torch": torch.__version__.partition("+")[0], "weights_sha256": found}, indent=2)
    if record:
        RECORD.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
