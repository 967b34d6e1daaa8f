"""Every shipped recipe trains: two steps of the random pair, a finite loss for every term."""

import json
import math

import pytest
from rich.console import Console

from driftgate.recipe import load_recipe, shipped_recipes
from driftgate.train.command import run

ROOMS = ("repairs/", "controls/", "ours/")
OURS = [name for name in shipped_recipes() if not name.startswith("qwen3/") and name != "smol_gsm8k"]
TINY = [
    "steps=2",
    "passes=2",
    "prompts.per_step=2",
    "rollout.samples=2",
    "rollout.max_new_tokens=12",
    "rollout.allow_truncated=true",
    "diagnostics.every=2",
    "threads=1",
    "device=cpu",
]
SHORTER = {
    "repairs/tropd_prefix": ["rollout.teacher_prefix=4"],
    "repairs/popd": ["rollout.horizon.start=6"],
    "repairs/prune_opd": ["rollout.horizon.start=6", "rollout.horizon.near=2"],
}
"""The recipes' own prefixes and limits are longer than the tiny responses."""
WORKS = {
    "GKD": ("2306.13649", ["gkd", "gkd_forward_kl", "gkd_reverse_kl"]),
    "LSM": ("2603.25562", ["lsm"]),
    "Rethinking": ("2604.13016", ["rethinking_opd", "rethinking_opd_code"]),
    "StableOPD": ("2604.08527", ["stable_opd"]),
    "EOPD": ("2603.07079", ["eopd"]),
    "POPD": ("2605.31490", ["popd"]),
    "TOPD": ("2605.31490", ["topd"]),
    "Prune-OPD": ("2605.07804", ["prune_opd"]),
    "TIP": ("2604.14084", ["tip"]),
    "SCOPE": ("2604.10688", ["scope", "scope_sampled"]),
    "SG-OPD": ("2606.09304", ["sg_opd", "sg_opd_phased"]),
    "TrOPD": ("2606.01249", ["tropd", "tropd_prefix"]),
    "FiRe-OPD": ("2606.02684", ["fire_opd"]),
    "f-OPD": ("2605.17862", ["f_opd"]),
    "AsyncOPD": ("2606.24143", ["async_opd"]),
    "IW-OPD": ("2606.22600", ["iw_opd"]),
    "PW-OPSD": ("2605.21606", ["pw_opsd"]),
    "TRB": ("2605.31159", ["trb"]),
    "Prefix Teach": ("2605.13643", ["prefix_teach"]),
    "OPSM": ("DeepSeek-V3.2", ["opsm"]),
    "GRPO": ("2402.03300", ["grpo"]),
    "Dr. GRPO": ("2503.20783", ["dr_grpo"]),
    "PowerOPD": ("2606.17199", ["power_opd"]),
    "TOP-D": ("2607.04751", ["top_d"]),
    "Demystifying OPD": ("2607.13399", ["clipped_reward", "sign_log_reward"]),
    "gammaOPD": ("2609.16937", ["gamma_opd"]),
    "Semi-OPD": ("2610.11291", ["semi_opd"]),
    "DIAL-OPD": ("2610.11659", ["dial_opd"]),
    "IER-OPD": ("2609.24432", ["ier_opd"]),
    "ResOPD": ("2610.04882", ["res_opd"]),
    "truncated importance weights": ("importance sampling", ["truncated_is"]),
}
"""What each recipe of `repairs/` follows."""
EVIDENCE = {"P", "C", "N"}


@pytest.fixture(scope="module")
def paths(pair, tmp_path_factory):
    """Overrides that put the random pair and a few solved problems in place of the embedded ones."""
    file = tmp_path_factory.mktemp("solved") / "prompts.jsonl"
    problems = [("3+4=", "7", "3+4=7\n\\boxed{7}"), ("12-7=", "5", "5"), ("5*5=", "25", "25\n"), ("9=", "9", "9")]
    rows = [{"problem": p, "answer": a, "solution": s} for p, a, s in problems]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    student, teacher = pair
    return [f"student.path={student}", f"teacher.path={teacher}", f"prompts.path={file}"]


@pytest.mark.parametrize("name", OURS)
def test_a_recipe_takes_two_steps(name, paths, tmp_path):
    config = load_recipe(name, [*TINY, *paths, *SHORTER.get(name, [])])
    run(config, tmp_path, Console(quiet=True))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "rollout"] == [1, 2]
    updates = [line for line in lines if line["kind"] == "update"]
    assert len(updates) == 4
    for line in updates:
        for term in config.all_terms:
            before = "" if term == "main" else f"{term}."
            assert line[f"{before}tokens"] > 0
            assert math.isfinite(line[f"{before}loss"])
        assert math.isfinite(line["grad_norm"])
    assert "overlap" in updates[-1]  # the metrics of diagnostics.every


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith(ROOMS)])
def test_a_recipe_takes_the_models_and_sizes_of_another_family(name):
    ours, theirs = load_recipe(name), load_recipe(name, family="qwen3")
    base = load_recipe("qwen3/lsm_none")
    teacher = None if ours.teacher is None else base.teacher  # a recipe without a teacher stays without one
    assert (theirs.student, theirs.teacher, theirs.prompts) == (base.student, teacher, base.prompts)
    assert (theirs.steps, theirs.rollout.max_new_tokens) == (200, 16384)
    assert set(theirs.all_terms) == set(ours.all_terms)
    for term, settings in ours.all_terms.items():
        assert theirs.all_terms[term].weights == settings.weights
        assert theirs.all_terms[term].objective.kind == settings.objective.kind


@pytest.mark.parametrize("work", WORKS)
def test_every_work_has_a_recipe_that_names_it(work):
    source, names = WORKS[work]
    for name in names:
        about = shipped_recipes()[f"repairs/{name}"]
        assert source.lower() in about.source.lower()
        assert about.evidence
        assert set(about.evidence.split()) <= EVIDENCE


def test_every_recipe_has_a_source_and_evidence():
    recipes = shipped_recipes()
    assert len(recipes) >= 30
    for about in recipes.values():
        assert about.what
        assert about.source
        assert about.evidence == "ours" or set(about.evidence.split()) <= EVIDENCE
    listed = {f"repairs/{name}" for _, names in WORKS.values() for name in names}
    assert listed == {name for name in recipes if name.startswith("repairs/")}
