"""Training is what it was: the weights after three steps of shipped recipes, bit for bit.

`python tests/same_bits.py --record` writes the record anew; the commit that does so says why training changed.
"""

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("same_bits.py")
RECORD = json.loads(SCRIPT.with_suffix(".json").read_text())
TORCH = torch.__version__.partition("+")[0]
NAMES = list(RECORD["weights_sha256"])


@pytest.mark.skipif(RECORD["torch"] != TORCH, reason=f"the bits are those of torch {RECORD['torch']}")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the bits are those of an x86 processor")
@pytest.mark.parametrize("start", range(0, len(NAMES), 3))
def test_three_steps_give_the_recorded_weights(start):
    names = NAMES[start : start + 3]  # one process for several: loading torch and transformers takes seconds
    done = subprocess.run([sys.executable, str(SCRIPT), *names], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)["weights_sha256"]
    assert found == {name: RECORD["weights_sha256"][name] for name in names}
