"""A loss that makes no sense is refused before anything is loaded."""

import json

import pytest
from bad_input import problem, reference_term, write_prompts

ON_TOP_K = {"kind": "divergence", "support": "teacher"}
ONE_UPDATE = {"passes": 1, "minibatch": None}
UNKNOWN = "no such signal; did you mean drift?"
ONE_SIDE = "give either above or below"


@pytest.mark.parametrize(
    ("changes", "setting", "mend"),
    [
        ({"objective": ON_TOP_K | {"mass": "raw"}}, "objective: reverse_kl on raw mass", "set mass=renormalised or"),
        (
            {"terms": {"x": {"objective": ON_TOP_K | {"mass": "raw"}}}},
            "terms.x.objective: reverse_kl on raw mass",
            "or allow_raw_reverse_kl=true",
        ),
        (
            {"objective": ON_TOP_K | {"mass": "raw", "divergence": "jsd"}},
            "objective: jsd on raw mass",
            "set mass=tail or renormalised",
        ),
        ({"objective": ON_TOP_K | {"k": 1}}, "objective: k = 1 with mass = renormalised", "set k=2 or more"),
        ({"weights": {"w": {"signal": "drifft"}}}, "weights.w.signal = 'drifft'", UNKNOWN),
        ({"weights": {"w": {"signal": {"signal": "drifft", "above": 1}}}}, "weights.w.signal.signal", UNKNOWN),
        (
            {"weights": {"w": {"signal": "gap", "where": {"signal": "drifft", "above": 1}}}},
            "weights.w.where.signal = 'drifft'",
            UNKNOWN,
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": {"kind": "threshold", "above": 1, "below": 2}}}},
            "weights.w.map",
            ONE_SIDE,
        ),
        ({"weights": {"w": {"signal": "gap", "map": "threshold"}}}, "weights.w.map", ONE_SIDE),
        ({"weights": {"w": {"signal": {"signal": "gap", "above": 1, "below": 2}}}}, "weights.w.signal", ONE_SIDE),
        ({"weights": {"w": {"signal": "gap", "where": {"signal": "gap"}}}}, "weights.w.where", ONE_SIDE),
        (
            {"weights": {"w": {"signal": "gap", "reduce": "share"}}},
            "weights.w: reduce = share with partition token",
            "share goes with prefix alone",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "prefix", "reduce": "max"}}},
            "weights.w: reduce = max with partition prefix",
            "reduced by sum, mean or share",
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": {"kind": "sigmoid", "width": 0}}}},
            "weights.w.map.width = 0",
            "give a width above 0, or below 0",
        ),
        ({"weights": {"w": {"signal": "age"}}}, "weights.w: signal = age", "set normalise=none"),
        (
            {"weights": {"w": {"signal": {"signal": "age", "above": 1}, "normalise": "sequence"}}},
            "weights.w: signal = age",
            "set normalise=none",
        ),
        (
            ONE_UPDATE,
            "gate.spans = block with passes = 1",
            "set passes=2, a smaller minibatch, rollout.lag=1, or gate.spans=none",
        ),
        (
            ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": {"signal": "drift"}}},
            "weights.w with passes = 1",
            "set passes=2 or a smaller minibatch, or take the weight out",
        ),
        (
            ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": {"signal": "gap", "partition": "changepoint"}}},
            "weights.w with passes = 1",
            "set passes=2 or a smaller minibatch",
        ),
        (
            ONE_UPDATE
            | {
                "gate": {"spans": "none"},
                "terms": {"x": {"objective": {"kind": "nll"}, "weights": {"w": {"signal": "ratio"}}}},
            },
            "terms.x.weights.w with passes = 1",
            "set passes=2 or a smaller minibatch",
        ),
        (
            {"terms": reference_term(objective={"kind": "sampled_token"})},
            "terms.sft: objective.kind = sampled_token on responses = reference",
            "use divergence or nll",
        ),
        (
            {"terms": reference_term(objective={"kind": "candidates"})},
            "terms.sft: objective.kind = candidates on responses = reference",
            "use divergence or nll",
        ),
        (
            {"terms": reference_term(weights={"w": {"signal": "drift"}})},
            "terms.sft: weights.w on responses = reference",
            "take the factor out or set responses=student",
        ),
        (
            {"terms": reference_term(weights={"w": {"signal": "correct"}}, responses="teacher")},
            "terms.sft: weights.w on responses = teacher",
            "take the factor out or set responses=student",
        ),
        ({"terms": {"main": {"objective": {"kind": "nll"}}}}, "terms.main", "give the other term another name"),
        ({"weights": {"gate": {"signal": "gap"}}}, "weights.gate", "give the other another name"),
        (
            {"rollout": {"max_new_tokens": 40, "teacher_prefix": 40}},
            "rollout.teacher_prefix = 40 leaves the student nothing of a response of 40 tokens",
            "lower it",
        ),
        (
            {"rollout": {"max_new_tokens": 40, "teacher_prefix": 4, "kl_budget": 0.1}},
            "rollout.teacher_prefix and rollout.kl_budget",
            "set one to 0",
        ),
        (
            {"weights": {"w": {"signal": "gap", "control": "shuffle_boundaries"}}},
            "weights.w: control = shuffle_boundaries with partition = token",
            "use block, newline or changepoint",
        ),
        (
            {"gate": {"spans": "none", "target_ess": 0.9}},
            "gate: target_ess is set but spans = none",
            "gate.spans=block64",
        ),
        (
            {"gate": {"spans": "none", "control": "inverse"}},
            "gate: control is set but spans = none",
            "gate.spans=block64",
        ),
        ({"gate": {"spans": "sequence", "scope": "sequence"}}, "gate: spans = sequence with scope", "scope=minibatch"),
        (
            {"gate": {"spans": "sequence", "control": "shuffle_within"}},
            "gate: control = shuffle_within with spans = sequence",
            "use shuffle_across",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "sequence", "control": "shuffle_within"}}},
            "weights.w: control = shuffle_within with partition = sequence",
            "use shuffle_across",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "sequence", "normalise": "sequence"}}},
            "weights.w: partition = sequence with normalise = sequence",
            "set normalise=minibatch, or none",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "sequence", "map": "before_drop"}}},
            "weights.w: map = before_drop on partition sequence",
            "use newline or block",
        ),
        (
            {"weights": {"w": {"signal": "gap", "partition": "newline", "reduce": "max", "map": "before_drop"}}},
            "weights.w: map = before_drop looks at the spans' means",
            "set reduce=mean",
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": "keep_top", "where": {"signal": "gap", "above": 0}}}},
            "weights.w: map = keep_top holds its share over all tokens",
            "take `where` out",
        ),
        (
            ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": {"signal": "age", "normalise": "none"}}},
            "weights.w with passes = 1",
            "set passes=2 or a smaller minibatch",
        ),
        (
            {"objective": {"kind": "sampled_token"}, "rollout": {"on_policy": 0.5}},
            "rollout.on_policy = 0.5 with objective.kind = sampled_token",
            "set on_policy=1",
        ),
        (
            {"objective": {"kind": "sampled_token", "teacher_coef": 0}},
            "objective: teacher_coef = 0 without reward",
            "set objective.reward={coef: 1}",
        ),
        (
            {"objective": {"kind": "sampled_token", "teacher_coef": 0, "shape": "sign_log", "reward": {}}},
            "objective: shape = sign_log with teacher_coef = 0",
            "take one of the two out",
        ),
        (
            {"objective": {"kind": "sampled_token", "advantage": "recomputed", "shape": "return_to_go"}},
            "objective: advantage = recomputed with shape = return_to_go",
            "set advantage=frozen",
        ),
        (
            {"objective": {"kind": "sampled_token", "shape": {"kind": "clip", "low": 2, "high": 1}}},
            "objective.shape: low = 2 is not below high = 1",
            "lower low",
        ),
        (
            {"objective": {"kind": "sampled_token", "shape": {"kind": "mixture", "alpha": 1}}},
            "objective.shape.alpha = 1",
            "less than 1",
        ),
        (
            {"objective": {"kind": "sampled_token", "reward": {}}, "rollout": {"samples": 1, "max_new_tokens": 40}},
            "objective.reward with rollout.samples = 1",
            "set rollout.samples=8",
        ),
        (
            {"objective": {"kind": "divergence", "divergence": "jsd", "support": "teacher", "mass": "residual"}},
            "objective: mass = residual with divergence = jsd",
            "set divergence=reverse_kl",
        ),
        ({"teacher": None}, "teacher: missing; objective.kind = lsm reads it", "set teacher.path=..."),
        (
            {
                "teacher": None,
                "objective": {"kind": "sampled_token", "shape": "constant"},
                "weights": {"w": {"signal": "gap", "map": "exp"}},
            },
            "teacher: missing; weights.w reads it",
            "set teacher.path=...",
        ),
        (
            {"rollout": {"max_new_tokens": 40, "horizon": {"kind": "growing", "start": 50}}},
            "rollout: horizon.start = 50 is above max_new_tokens = 40",
            "lower start",
        ),
        (
            {"rollout": {"max_new_tokens": 40, "horizon": {"kind": "controller", "start": 30, "unpruned_by": "w"}}},
            "rollout.horizon.unpruned_by = w: there is no weights.w",
            "name one of `weights`",
        ),
        (
            {
                "weights": {"w": {"signal": "ratio", "map": "affine"}},
                "rollout": {"max_new_tokens": 40, "horizon": {"kind": "controller", "start": 30, "unpruned_by": "w"}},
            },
            "rollout.horizon.unpruned_by = w: needs a weight with map.kind=affine",
            "choose another weight",
        ),
        (
            {"weights": {"w": {"signal": "gap", "map": {"tau": 3}}}},
            "weights.w.map.kind: missing",
            "set weights.w.map.kind",
        ),
        ({"weights": {"map": {"signal": "gap", "tau": 3}}}, "weights.map.tau: unknown setting", "did you mean"),
        ({"terms": {"coef": {"objective": "nll", "coef": -1}}}, "terms.coef.coef = -1", "greater than or equal to 0"),
        (
            {"gate": {"spans": "token", "control": "shuffle_boundaries"}},
            "gate: control = shuffle_boundaries with spans = token",
            "use block, newline or changepoint",
        ),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused_before_anything_is_loaded(
    command, tmp_path, monkeypatch, changes, setting, mend
):
    monkeypatch.setattr("driftgate.train.command.run", None)
    code, said = command(**changes)
    assert code == 2
    assert setting in said
    assert mend in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_weight_that_needs_no_reuse_is_not_refused_for_want_of_it(command):
    weight = {"signal": "gap", "map": "exp", "where": {"signal": "current_gap", "below": 0}}
    changes = ONE_UPDATE | {"gate": {"spans": "none"}, "weights": {"w": weight}}
    assert command("steps=1", **changes) == (0, "")


NEEDS_VERDICTS = {"weights": {"w": {"signal": "correct", "normalise": "none"}}}
NEEDS_SOLUTIONS = {"terms": reference_term()}
SAMPLED = {"samples": 3, "max_new_tokens": 40}


@pytest.mark.parametrize(
    ("changes", "field", "why"),
    [
        (NEEDS_VERDICTS, "answer", "a weight or objective.reward reads the verifier's verdict"),
        (NEEDS_SOLUTIONS, "solution", "reference solutions are learned from"),
        ({"rollout": SAMPLED | {"on_policy": 0.5}}, "solution", "rollout.on_policy"),
    ],
    ids=["verifier", "reference", "on_policy"],
)
def test_problems_that_lack_what_the_loss_reads(command, tmp_path, changes, field, why):
    whole = problem(id="a", answer="7", solution="7")
    without = json.dumps({key: value for key, value in json.loads(whole).items() if key != field} | {"id": "b"})
    code, said = command("steps=1", prompts=write_prompts(tmp_path / "p.jsonl", whole, without), **changes)
    assert code == 2
    assert "prompts.path = " in said
    assert why in said
    assert f"problem 'b' has no {field} (1 of 2 lack it)" in said
    assert "add it, name its column with prompts.columns, or remove that setting" in said
    assert not (tmp_path / "run").exists()
    prompts = write_prompts(tmp_path / "p.jsonl", whole)
    assert command("steps=1", "rollout.allow_truncated=true", prompts=prompts, **changes) == (0, "")
