"""How long the responses of a step may be, by the settings; and runs that stop there and go on."""

import json
import os
import signal

import pytest
from conftest import collected
from rollout_case import EOS, NLL, QUIET, collect, cut, ids_of, metrics_of, with_rollout

from driftgate.horizon import LengthController
from driftgate.recipe import check_config
from driftgate.stop import Stopped
from driftgate.train import loop
from driftgate.train.command import run
from driftgate.train.rollouts import counted_lengths

# limits


@pytest.mark.parametrize(
    ("horizon", "limits"),
    [
        ({"kind": "growing", "start": 6, "increment": 7, "every": 2}, [6, 6, 13, 13, 20, 20, 25, 25]),
        ({"kind": "share", "rho": 0.5}, [12] * 3),
        ({"kind": "share", "rho": 0.29}, [7]),
        (None, [25, 25]),
    ],
)
def test_only_the_first_tokens_are_sampled_up_to_the_limit_of_the_step(values, tmp_path, horizon, limits):
    config = with_rollout(values, max_new_tokens=25, horizon=horizon)
    made, _ = collected(config, tmp_path / "run")
    whole_config = with_rollout(values, max_new_tokens=25)
    for step, limit in enumerate(limits):
        found = collect(config, made, tmp_path / "run", step)
        assert made.seen.get("limit", 25) == limit
        whole = collect(whole_config, made, tmp_path / "run", step)
        assert ids_of(found) == [cut(ids, limit) for ids in ids_of(whole)]
        assert found["student"].finished.tolist() == [EOS in cut(ids, limit) for ids in ids_of(whole)]
    assert max(map(len, ids_of(found))) == limits[-1]


CONTROLLER = {"kind": "controller", "start": 12, "near": 3, "least_share": 0.85, "change": 4, "patience": 2}


def test_the_length_controller_follows_the_rollouts(values, tmp_path):
    config = with_rollout(values | {"steps": 12}, horizon=CONTROLLER)
    run(config, tmp_path / "run", QUIET)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    limits = [line["limit"] for line in lines if line["kind"] == "rollout"]
    cap, misses, moves = 12, 0, []
    for step, limit in enumerate(limits):
        assert limit == cap
        rows = (tmp_path / "run" / "rollouts" / f"step-{step + 1:06d}.jsonl").read_text().splitlines()
        lengths = [len(json.loads(row)["ids"]) for row in rows]
        if sum(length >= max(12, cap - 3) for length in lengths) >= 0.85 * len(lengths):
            moves.append("up")
            cap, misses = min(cap + 4, 40), 0
            continue
        misses += 1
        moves.append("miss")
        if misses == 2:
            moves.append("down")
            cap, misses = max(cap - 4, 12), 0
    assert {"up", "miss", "down"} <= set(moves)


def test_the_controller_counts_unpruned_tokens(values, tmp_path):
    """Against a loop over the tokens: those behind ten on which the two top 6 overlap by too little are pruned."""
    low = {"signal": "overlap", "below": 0.3}
    pruned = {"signal": low, "partition": "prefix", "reduce": "sum", "normalise": "none"}
    pruned["map"] = {"kind": "affine", "offset": 1.0, "scale": -0.1, "low": 0.0, "high": 1.0, "shift": 0.5}
    horizon = CONTROLLER | {"start": 30, "near": 15, "unpruned_by": "pruned"}
    rollout = values["rollout"] | {"horizon": horizon}
    changes = {"weights": {"pruned": pruned}, "rollout": rollout, "diagnostics": {"k": 6}}
    config = check_config(values | changes)
    made, _ = collected(config, tmp_path / "run")
    batch = made.source.batch
    ours, theirs = batch.student.scores.behaviour.top_ids[:, :6], batch.student.scores.teacher.top_ids[:, :6]
    expected, start = [], 0
    for response in batch.student.responses:
        misses = kept = 0
        for one, other in zip(ours[start : start + len(response)].tolist(), theirs[start:].tolist()):
            misses += len(set(one) & set(other)) / 6 < 0.3
            kept += misses < 10
        expected.append(kept)
        start += len(response)
    assert counted_lengths(config, batch) == expected
    assert any(0 < kept < length for kept, length in zip(expected, batch.student.lengths))
    assert (
        counted_lengths(check_config(values | changes | {"rollout": values["rollout"]}), batch) == batch.student.lengths
    )


def test_the_controller_of_a_checkpoint_sets_the_next_limit(values, tmp_path):
    config = with_rollout(values, horizon=CONTROLLER)
    made, _ = collected(config, tmp_path / "run")
    assert made.source.batch.metrics["limit"] == 12
    responses = collect(config, made, tmp_path / "run", 1, LengthController(20, misses=1))
    assert made.seen["limit"] == max(map(len, ids_of(responses))) == 20
    collect(config, made, tmp_path / "run", 1, LengthController(64))
    assert made.seen["limit"] == 40  # max_new_tokens stays the bound


# stopping and going on

STATEFUL = {
    "controller": {"rollout": {"horizon": CONTROLLER}},
    "growing": {"rollout": {"horizon": {"kind": "growing", "start": 6, "increment": 7, "every": 2}}},
    "mixture": {"rollout": {"on_policy": 0.5}},
    "prefix": {"rollout": {"teacher_prefix": 8, "teacher_prefix_steps": 3}},
    "budget": {"rollout": {"kl_budget": 0.3, "kl_budget_steps": 3}},
    "other responses": {
        "terms": {
            "gold": {
                "objective": {"kind": "nll"},
                "responses": "reference",
                "coef": {"start": 1, "end": 0, "steps": 3},
            },
            "taught": NLL | {"responses": "teacher"},
        }
    },
    "initial": {
        "terms": {"anchor": {"objective": {"kind": "divergence", "target": "initial"}}},
    },
    "bernoulli": {
        "objective": {"kind": "sampled_token"},
        "weights": {"trust": {"signal": "teacher_ratio", "map": "bernoulli", "normalise": "none"}},
    },
}


@pytest.mark.parametrize("name", STATEFUL)
def test_an_interrupted_run_has_the_metrics_of_one_that_was_not(values, tmp_path, monkeypatch, name):
    changes = dict(STATEFUL[name])
    rollout = values["rollout"] | changes.pop("rollout", {})
    config = check_config(values | {"steps": 4, "minibatch": 7} | changes | {"rollout": rollout})
    run(config, tmp_path / "whole", QUIET)
    original, updates = loop.timed_update, []

    def stopping(*args):
        done = original(*args)
        updates.append(done)
        if len(updates) in (3, 4, 9):  # 4 updates a step: in the middle of the first, at its end, in the third
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(loop, "timed_update", stopping)
    for _ in range(3):
        with pytest.raises(Stopped):
            run(config, tmp_path / "interrupted", QUIET)
    run(config, tmp_path / "interrupted", QUIET)
    assert metrics_of(tmp_path / "interrupted") == metrics_of(tmp_path / "whole")
