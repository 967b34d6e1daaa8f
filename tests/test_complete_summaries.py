"""The 90 % interval that old summaries lacked is the one that the shipped functions give."""

import importlib.util
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from driftgate.study.compare import compare_arms
from driftgate.study.scores import ScoreTable

PATH = Path(__file__).parents[1] / "experiments" / "complete_summaries.py"
SPEC = importlib.util.spec_from_file_location("complete_summaries", PATH)
assert SPEC is not None
assert SPEC.loader is not None
complete_summaries = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(complete_summaries)


def drawn(key, seeds, shift):
    """Two arms on benchmarks of 50 problems, whose seeds differ by `shift` at most."""
    rng = np.random.default_rng(key)
    ids = {name: tuple(map(str, range(50))) for name in ("a", "b", "c", "d")}
    chances = {name: rng.random((1, 50, 1)) for name in ids}
    moved = {arm: shift * rng.random((seeds, 1, 1)) for arm in ("none", "gate")}
    return {arm: ScoreTable(arm, ids, {b: rng.random((seeds, 50, 8)) < c + m for b, c in chances.items()})
            for arm, m in moved.items()}  # fmt: skip


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("seeds", [3, 5])
def test_the_90_percent_interval_follows_from_what_was_written(seeds, shift):
    for key in range(5):
        known = compare_arms(drawn(key, seeds, shift), "none")
        written = [asdict(replace(c, low_90=None, high_90=None)) for c in known]
        rounded = [{k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()} for row in written]
        for found, c in zip(complete_summaries.completed(rounded, [50] * 4), known):
            assert (found.low_90, found.high_90) == pytest.approx((c.low_90, c.high_90), abs=0.00005)
            assert found.p_equivalence_holm == pytest.approx(c.p_equivalence_holm, rel=1e-4)


def test_a_p_that_does_not_go_with_the_interval_is_refused():
    c = compare_arms(drawn(0, 5, 0.05), "none", ["pass@1"])[0]
    assert c.p_equivalence is not None
    wrong = asdict(replace(c, p_equivalence=0.001 if c.p_equivalence > 0.05 else 0.9))
    with pytest.raises(ValueError, match="does not go with p"):
        complete_summaries.completed([wrong], [50] * 4)
