"""Every shipped recipe parses, and says what the issue of the paper's settings asks of it."""

import pytest

from driftgate.errors import InputError
from driftgate.recipe import check_config, load_recipe, setting_names, shipped_recipes

BASES, GATES = ("sampled_token", "lsm"), {"none": "none", "block64": "block", "newline": "newline"}
SIX = [f"{base}_{gate}" for base in BASES for gate in GATES]


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_parses_and_says_what_it_is(name):
    assert load_recipe(name)
    assert len(shipped_recipes()[name].what) > 20


@pytest.mark.parametrize("family", ["qwen3", "sandbox"])
@pytest.mark.parametrize("variant", SIX)
def test_the_six_variants_differ_in_objective_and_gate_alone(family, variant):
    config = load_recipe(f"{family}/{variant}")
    base, gate = variant.rsplit("_", 1)
    assert config.objective.kind == base
    assert config.gate.spans == GATES[gate]
    assert (config.gate.size, config.gate.tau, config.gate.scope) == (64, 1.0, "minibatch")
    other = load_recipe(f"{family}/lsm_none")
    assert config.model_dump(exclude={"objective", "gate"}) == other.model_dump(exclude={"objective", "gate"})


def test_the_qwen3_recipes_have_the_papers_settings():
    config = load_recipe("qwen3/lsm_block64")
    assert (config.steps, config.passes, config.prompts.per_step, config.rollout.samples) == (200, 2, 4, 8)
    assert (config.prompts.max_tokens, config.rollout.max_new_tokens) == (2048, 16384)
    assert (config.rollout.temperature, config.rollout.top_p) == (1.0, 0.9)
    assert (config.optimizer.lr, config.objective.k) == (2e-6, 32)
    assert load_recipe("qwen3/sampled_token_none").objective.clip == 0.2


def test_the_defaults_are_the_papers():
    paper = load_recipe("qwen3/lsm_none")
    least = {"student": {"path": "s"}, "teacher": {"path": "t"}, "prompts": {"path": "p"}, "objective": {"kind": "lsm"}}
    config = check_config(least)
    for group in ("steps", "passes", "rollout", "objective", "gate", "optimizer"):
        assert getattr(config, group) == getattr(paper, group)


def test_overrides_are_read_as_yaml_in_order():
    config = load_recipe("sandbox/lsm_none", ["gate.spans=block32", "gate.tau=1e1", "gate.tau=3", "steps=7"])
    assert (config.gate.spans, config.gate.size, config.gate.tau, config.steps) == ("block", 32, 3.0, 7)
    assert load_recipe("sandbox/lsm_none", ["optimizer.lr=2e-6"]).optimizer.lr == 2e-6


def test_another_kind_of_objective_drops_the_settings_of_the_first():
    config = load_recipe("sandbox/lsm_none", ["objective.kind=sampled_token", "objective.clip=0.3"])
    assert config.objective.clip == 0.3


def test_a_recipe_of_ones_own_extends_a_shipped_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: qwen3/lsm_block64\nstudent: {path: mine}\nsteps: 5\n")
    config = load_recipe(str(path))
    assert (config.student.path, config.student.compute, config.steps, config.gate.spans) == (
        "mine",
        "bfloat16",
        5,
        "block",
    )


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just text"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml"):
        load_recipe(str(path))


def test_every_setting_is_documented():
    from pathlib import Path

    page = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    assert all(f"`{name}`" in page for name in setting_names())


@pytest.mark.parametrize(
    ("name", "family", "said"),
    [
        ("smol_gsm8k", "qwen3", "--family qwen3: smol_gsm8k does not extend"),
        ("repairs/tip", "nobody", "--family nobody: there is no nobody/lsm_none; families are qwen3, sandbox"),
    ],
)
def test_a_family_that_changes_nothing_or_is_unknown_is_refused(name, family, said):
    with pytest.raises(InputError, match=said):
        load_recipe(name, family=family)
