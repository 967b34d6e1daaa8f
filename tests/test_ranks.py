"""Several ranks compute what one process computes: weights, metrics, scores, responses."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_model
from fake_vllm import FakeVLLM
from head_case import make_headed
from ranks_case import trained

from driftgate.launch import launch
from driftgate.world import Alone

SCRIPT = Path(__file__).with_name("ranks_case.py")
# where a gradient is 0 but for rounding, AdamW makes a step of lr out of the rounding unless eps is above it
DOUBLE = {
    "student": {"dtype": "float64"},
    "teacher": {"dtype": "float64"},
    "optimizer": {"lr": 0.01, "eps": 1e-6},
}
SAMPLED = {"objective": {"kind": "sampled_token"}}
VOCABULARY = {"objective": {"kind": "divergence", "divergence": "reverse_kl", "support": "vocabulary"}}
BLOCK = {"spans": "block", "size": 8, "tau": 5.0}
NONE = {"gate": {"spans": "none"}}
SLOW = {"optimizer": {"lr": 0.001}}
CASES = {
    "lsm": {},
    "sampled_token": SAMPLED,
    "vocabulary": VOCABULARY,
    "jsd_of_a_mixture": {"objective": {"kind": "divergence", "divergence": "jsd", "support": "union", "k": 4}},
    "several_terms": {
        **SAMPLED,
        "terms": {
            "gold": {"objective": {"kind": "nll"}, "responses": "reference", "coef": 0.1},
            "anchor": {
                "objective": {**VOCABULARY["objective"], "target": "initial"},
                "coef": 0.01,
                "weights": {"sure": {"signal": "teacher_entropy", "map": {"kind": "exp"}}},
            },
            "theirs": {"objective": {"kind": "lsm", "k": 4}, "responses": "teacher", "coef": 0.5},
        },
    },
    "target_ess": {"gate": {"spans": "block", "size": 8, "target_ess": 0.9}},
    "shuffle": {"gate": {**BLOCK, "control": "shuffle_across"}},
    "keep_top": {
        **VOCABULARY,
        **NONE,
        "denominator": "kept",
        "weights": {"important": {"signal": "soft_or", "map": {"kind": "keep_top", "share": 0.5}, "normalise": "none"}},
    },
    "changepoint": {"gate": {"spans": "changepoint", "min_tokens": 4, "penalty": 0.1, "tau": 5.0}},
    "diagnosed": {"diagnostics": {"every": 1}},
    "checkpointing": {"student": {"gradient_checkpointing": True}},
    "teacher_prefix": {"rollout": {"teacher_prefix": 6}},
    "kl_budget": {"rollout": {"kl_budget": 0.05}},
    "on_policy": {**VOCABULARY, "rollout": {"on_policy": 0.5}},
    "offloaded": {**VOCABULARY, "offload": ["teacher", "optimizer"]},
    "rewards": {"objective": {"kind": "sampled_token", "shape": "return_to_go", "reward": {"coef": 1.0}}},
    "residual": {"objective": {"kind": "divergence", "support": "teacher", "k": 4, "mass": "residual"}},
}


def merged(base, *changes):
    """Nested settings, the later over the earlier; `objective` and `gate` whole."""
    made = copy.deepcopy(base)
    for change in changes:
        for name, value in change.items():
            inside = name in ("student", "teacher", "rollout", "prompts")
            made[name] = made.get(name, {}) | value if inside else value
    return made


def cases_of(settings, tied):
    """Name -> settings. "double": float64, in the same forwards of one sequence each; "cut": work cut by tokens."""
    alone = {"microbatch_tokens": 1, "minibatch": 7}  # so that some rank has nothing to do in some forward
    cases = {f"double {name}": merged(settings, DOUBLE, alone, case) for name, case in CASES.items()}
    for name in ("lsm", "sampled_token", "vocabulary"):
        cases[f"double tied {name}"] = merged(settings, DOUBLE, alone, CASES[name], {"student": {"path": tied}})
        cases[f"single {name}"] = merged(settings, alone, CASES[name], SLOW)
    cases["single autocast"] = merged(settings, alone, {"student": {"compute": "bfloat16"}}, SLOW)
    cases["cut double lsm"] = merged(settings, DOUBLE, {"minibatch": 6})
    cases["cut double sampled_token"] = merged(settings, DOUBLE, SAMPLED, {"minibatch": 6, "microbatch_tokens": 120})
    return cases


FEW = ("double sampled_token", "double several_terms", "double keep_top", "single lsm", "cut double lsm")


@pytest.fixture
def server(pair):
    with FakeVLLM(pair[1]) as fake:
        yield fake.url


@pytest.fixture
def cases(values, pair, server, tmp_path):
    settings = values | {"steps": 1, "gate": BLOCK, "device": "cpu"}
    settings["rollout"] = settings["rollout"] | {"max_new_tokens": 24}
    cases = cases_of(settings, make_model(tmp_path / "tied", 5, tied=True))
    heads = {"student": {"path": make_headed(tmp_path / "biased", "bias", 6)}}
    heads["teacher"] = {"path": make_headed(tmp_path / "capped", "cap", 7, hidden=48)}
    kept = merged(cases["double sampled_token"], {"teacher": {"cache": str(tmp_path / "scores")}})
    return cases | {
        "double several_teachers": with_teachers(cases["double sampled_token"], tmp_path),
        "double heads": merged(cases["double vocabulary"], heads),
        "double cached": kept,
        "double read": kept,  # what the case before has written
        "double served": merged(cases["double jsd_of_a_mixture"], {"teacher": {"kind": "server", "urls": [server]}}),
    }


def with_teachers(settings, folder):
    """The same by two teachers: every other problem has the student as its teacher."""
    rows = [json.loads(line) for line in Path(settings["prompts"]["path"]).read_text().splitlines()]
    routed = [row | {"teacher": ("ours", "theirs")[number % 2]} for number, row in enumerate(rows)]
    (folder / "routed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in routed))
    teachers = {"ours": settings["teacher"] | {"path": "student"}, "theirs": settings["teacher"]}
    prompts = settings["prompts"] | {"path": str(folder / "routed.jsonl")}
    return settings | {"teacher": None, "teachers": teachers, "prompts": prompts}


def outcome(cases, size, folder):
    """Case -> what came out, by so many ranks."""
    if size == 1:
        return {name: trained(settings, folder / "alone" / name, Alone()) for name, settings in cases.items()}
    (folder / "cases.json").write_text(json.dumps(cases))
    out = folder / f"{size}.pt"
    assert launch(size, [sys.executable, str(SCRIPT), str(folder / "cases.json"), str(out)]) == 0
    return torch.load(out, weights_only=False)


def differences(name, one, other):
    """What two outcomes of a case do not share."""
    double, narrow = "double" in name, "autocast" in name
    weights = max(float((one["weights"][name] - other["weights"][name]).abs().max()) for name in one["weights"])
    # the modules' norms run in float32 even in a float64 model, so another cut costs a digit or two
    # so do a biased and a capped head, of two models: 1.1e-13 was seen
    # a weight near the border between two bfloat16 numbers may be rounded to the one or the other
    if weights > (1e-12 if "cut" in name or "heads" in name else 1e-14 if double else 5e-5 if narrow else 5e-7):
        yield f"weights by {weights:.1e}"
    if not (one["saved"] and other["saved"]):
        yield "the checkpoint holds other weights"
    if one["responses"] != other["responses"] or one["rollout"] != other["rollout"]:
        yield "responses"
    for update, (a, b) in enumerate(zip(one["metrics"], other["metrics"])):
        if a != pytest.approx(b, rel=1e-12 if double else 1e-3 if narrow else 3e-5, abs=1e-14 if double else 1e-6):
            yield f"metrics of update {update}: {a} and {b}"
    for a, b in zip(one["scores"], other["scores"]):
        for name in a:
            if not torch.allclose(a[name].double(), b[name].double(), rtol=0, atol=1e-13 if double else 1e-5):
                yield f"scores: {name}"


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_compute_what_one_process_computes(cases, tmp_path, size):
    if size == 3:
        cases = {name: cases[name] for name in FEW}
    alone, together = outcome(cases, 1, tmp_path), outcome(cases, size, tmp_path)
    wrong = {name: list(differences(name, alone[name], together[name])) for name in cases}
    assert not {name: found for name, found in wrong.items() if found}
    for name in cases:
        assert len(alone[name]["metrics"]) == 4
        assert alone[name]["metrics"][3]["gate_min"] < 0.9, name
    if size == 2:  # which divides the dimensions of these models
        whole = sum(value.numel() for value in alone["single lsm"]["weights"].values())
        assert [share["single lsm"] for share in together["shares"]] == [whole // 2, whole // 2]
