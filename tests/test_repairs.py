"""Every shipped repair, control and variant of ours: an update against its slow twin on both models' full logits."""

import copy
import json
from dataclasses import dataclass
from functools import cache, partial

import control_twins
import pytest
import repair_twins as twin
import reward_twins
import torch
import twin_batch
from transformers import AutoModelForCausalLM

from driftgate.recipe import load_recipe, shipped_recipes
from driftgate.train.build import build_run
from driftgate.train.checks import reads_newlines
from driftgate.train.portions import Batch, sequences_of
from driftgate.train.portions import schedule as schedule_of
from driftgate.train.weighing import Moment

TINY = [
    "prompts.per_step=4",
    "rollout.samples=3",
    "rollout.max_new_tokens=40",
    "rollout.allow_truncated=true",
    "rollout.temperature=0.9",
    "optimizer.lr=0.003",
    "optimizer.warmup=0",
    "optimizer.clip_norm=1e9",
    "microbatch_tokens=60",
    "student.dtype=float64",
    "teacher.dtype=float64",
    "diagnostics.every=0",
    "threads=1",
    "device=cpu",
]
SOLUTIONS = ["3+4=7", "12-7=5\n5+1=6\n", "25-2=23\n\\boxed{7}", "40+2", "9\n", "1+1=2\n2"]
RIGHT = [False] * 3 + [True] * 3 + [True, False, False] + [True, True, False]  # of 4 prompts: none, all, some, some


@dataclass
class Case:
    twin: object
    """From the batch of each writer to losses and weights by term."""
    overrides: str = ""
    weights: str = ""
    """What the weights must show: `vary`, `mask` (some 0, some not) or `mixed` (both)."""
    coefs: tuple = ()
    age: int = 1
    """Updates of the whole batch before the one that is compared."""


LSM8, GATE = twin_batch.lsm_loss(8), "gate.size=8 gate.tau=3"
CASES = {
    "repairs/gkd": Case(partial(twin.gkd, loss=twin_batch.jsd)),
    "repairs/gkd_forward_kl": Case(partial(twin.gkd, loss=twin_batch.forward_kl)),
    "repairs/gkd_reverse_kl": Case(partial(twin.gkd, loss=twin_batch.reverse_kl)),
    "repairs/lsm": Case(partial(twin.lsm, k=6), "objective.k=6"),
    "repairs/rethinking_opd": Case(partial(twin.rethinking, k=6), "objective.k=6"),
    "repairs/rethinking_opd_code": Case(partial(twin.rethinking_code, k=6), "objective.k=6"),
    "repairs/stable_opd": Case(twin.stable_opd, coefs=(("gold", 0.1), ("anchor", 0.01))),
    "repairs/eopd": Case(
        partial(twin.eopd, above=2.4, k=6),
        "terms.unsure.weights.entropy.signal.above=2.4 terms.unsure.objective.k=6",
        "mask",
    ),
    "repairs/popd": Case(twin.plain, "rollout.horizon.start=10"),
    "repairs/topd": Case(twin.plain),
    "repairs/prune_opd": Case(
        partial(twin.prune_opd, least=0.3, step=0.1, k=16),
        "weights.pruned.signal.below=0.3 weights.pruned.map.scale=-0.1 "
        "rollout.horizon.start=30 rollout.horizon.near=10",
        "vary",
    ),
    "repairs/tip": Case(twin.tip, weights="mask"),
    "repairs/scope": Case(partial(twin.scope, wrong_loss=LSM8), weights="mixed"),
    "repairs/scope_sampled": Case(
        partial(twin.scope, wrong_loss=lambda a, t: twin_batch.policy_gradient(a, t, "recomputed", None, None)),
        weights="mixed",
    ),
    "repairs/sg_opd": Case(twin.sg_opd, weights="vary"),
    "repairs/sg_opd_phased": Case(twin.sg_opd_phased, weights="vary", coefs=(("teacher_samples", 0.1),)),
    "repairs/tropd": Case(partial(twin.tropd, k=12), "terms.outliers.objective.k=12", "mask"),
    "repairs/tropd_prefix": Case(
        partial(twin.tropd, k=12), "terms.outliers.objective.k=12 rollout.teacher_prefix=8", "mask"
    ),
    "repairs/fire_opd": Case(twin.fire_opd, weights="mixed"),
    "repairs/f_opd": Case(twin.f_opd, weights="vary", age=2),
    "repairs/async_opd": Case(twin.async_opd),
    "repairs/iw_opd": Case(twin.iw_opd, weights="vary"),
    "repairs/pw_opsd": Case(twin.pw_opsd, "teacher.context='{problem}{solution}'", "vary"),
    "repairs/trb": Case(partial(twin.rethinking, k=6), "objective.k=6"),
    "repairs/prefix_teach": Case(twin.prefix_teach, weights="mask"),
    "repairs/opsm": Case(
        partial(twin.opsm, loss=twin_batch.policy_gradient, delta=0.05), "weights.fresh.map.above=0.05", "mask"
    ),
    "repairs/truncated_is": Case(twin.truncated_is, weights="vary"),
    "repairs/grpo": Case(reward_twins.grpo),
    "repairs/dr_grpo": Case(partial(reward_twins.grpo, divided=False)),
    "repairs/power_opd": Case(reward_twins.power_opd),
    "repairs/top_d": Case(reward_twins.top_d),
    "repairs/clipped_reward": Case(
        partial(reward_twins.clipped_reward, bound=0.5), "objective.shape.low=-0.5 objective.shape.high=0.5"
    ),
    "repairs/sign_log_reward": Case(reward_twins.sign_log_reward),
    "repairs/gamma_opd": Case(reward_twins.gamma_opd),
    "repairs/semi_opd": Case(reward_twins.semi_opd),
    "ours/opd_reward": Case(reward_twins.opd_reward),
    "controls/constant": Case(partial(control_twins.gated, control="constant"), GATE),
    "controls/inverse": Case(
        partial(control_twins.gated, control="inverse", tau=30.0), "gate.size=8 gate.tau=30", "vary"
    ),
    "controls/resample": Case(partial(control_twins.gated, control="resample"), GATE, "vary"),
    "controls/shuffle_within": Case(partial(control_twins.gated, control="shuffle_within"), GATE, "vary"),
    "controls/shuffle_across": Case(partial(control_twins.gated, control="shuffle_across"), GATE, "vary"),
    "controls/shuffle_boundaries": Case(partial(control_twins.gated, spans=control_twins.random_spans), GATE, "vary"),
    "controls/token": Case(partial(control_twins.gated, spans=control_twins.token_spans), GATE, "vary"),
    "controls/sequence": Case(partial(control_twins.gated, spans=control_twins.sequence_spans), GATE, "vary"),
    "controls/age_only": Case(control_twins.age_only, age=3),
    "controls/opsm": Case(partial(twin.opsm, loss=LSM8), weights="mask"),
    "controls/truncated_is": Case(control_twins.lsm_truncated_is, weights="vary"),
    "controls/opsa": Case(reward_twins.opsa, weights="mask"),
    "controls/opsa_constant": Case(partial(reward_twins.opsa, constant=-0.5), weights="mask"),
    "controls/dial_random": Case(partial(reward_twins.dial, at_random=True), weights="mask"),
    "repairs/dial_opd": Case(reward_twins.dial, weights="mask"),
    "repairs/ier_opd": Case(partial(reward_twins.ier, share=0.1, k=8), "weights.clear.map.share=0.1", "mask"),
    "repairs/res_opd": Case(partial(reward_twins.res_opd, k=6), "objective.k=6"),
    "ours/recomputed_block64": Case(
        partial(control_twins.gated, loss=lambda a, t: twin_batch.policy_gradient(a, t, "recomputed")), GATE, "vary"
    ),
    "ours/lsm_block64_8_passes": Case(control_twins.gated, GATE, "vary", age=7),
    "ours/target_ess": Case(partial(control_twins.gated, target=0.9), GATE, "vary"),
    "ours/changepoint": Case(
        partial(control_twins.gated, spans=control_twins.changepoint_spans),
        "gate.min_tokens=4 gate.penalty=0.5 gate.tau=3",
        "vary",
    ),
    "ours/changepoint_target_ess": Case(
        partial(control_twins.gated, spans=control_twins.changepoint_spans, target=0.9),
        "gate.min_tokens=4 gate.penalty=0.5",
        "vary",
    ),
}
SPLIT = [
    "repairs/gkd",
    "repairs/stable_opd",
    "repairs/eopd",
    "repairs/prune_opd",
    "repairs/tip",
    "repairs/scope",
    "repairs/sg_opd_phased",
    "repairs/tropd",
    "repairs/fire_opd",
    "repairs/f_opd",
    "repairs/iw_opd",
    "repairs/prefix_teach",
    "repairs/opsm",
    "repairs/grpo",
    "repairs/gamma_opd",
    "repairs/dial_opd",
    "repairs/res_opd",
    "controls/opsa",
    "ours/opd_reward",
    "controls/inverse",
    "controls/shuffle_within",
    "controls/shuffle_across",
    "controls/resample",
    "controls/truncated_is",
    "ours/changepoint_target_ess",
]
"""One recipe for each mechanism."""


NUMBERS = {
    "repairs/gkd": {"rollout.on_policy": 0.5, "objective.beta": 0.5},
    "repairs/lsm": {"objective.kind": "lsm", "objective.k": 32, "rollout.top_p": 0.9},
    "repairs/rethinking_opd": {"objective.k": 16},
    "repairs/rethinking_opd_code": {"objective.k": 16},
    "repairs/stable_opd": {"terms.gold.coef": 0.1, "terms.anchor.coef": 0.01},
    "repairs/eopd": {
        "terms.unsure.weights.entropy.signal.above": 0.8,
        "terms.unsure.objective.k": 16,
        "terms.unsure.coef": 1.0,
    },
    "repairs/prune_opd": {
        "weights.pruned.signal.below": 0.7,
        "weights.pruned.map.scale": -0.01,
        "diagnostics.k": 16,
        "rollout.horizon.near": 100,
        "rollout.horizon.least_share": 0.1,
        "rollout.horizon.change": 100,
        "rollout.horizon.patience": 3,
    },
    "repairs/truncated_is": {"weights.importance.map.high": 2.0},
    "repairs/grpo": {"objective.reward.scale": "std", "objective.teacher_coef": 0.0, "teacher": None},
    "repairs/clipped_reward": {"objective.shape.low": -5.0, "objective.shape.high": 5.0},
    "repairs/ier_opd": {"weights.clear.map.share": 0.01},
    "repairs/res_opd": {"objective.mass": "residual", "rollout.top_p": 1.0},
    "repairs/semi_opd": {"rollout.reuse": "run", "objective.ratio": "current"},
    "ours/lsm_block64_8_passes": {"passes": 8, "gate.size": 64, "gate.tau": 1.0},
} | {f"controls/{name}": {"gate.size": 64, "gate.tau": 1.0} for name in ("constant", "resample", "inverse", "token")}
"""What the works say and the cases below scale to the tiny pair."""


@cache
def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)


@pytest.fixture(scope="module")
def prompts(prompt_file, tmp_path_factory):
    rows = [json.loads(line) for line in prompt_file.read_text().splitlines()]
    path = tmp_path_factory.mktemp("solved") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row | {"solution": text}) + "\n" for row, text in zip(rows, SOLUTIONS)))
    return path


def begin(config, out):
    """The run and its responses, of a student that is no longer the initial one, with verdicts of every kind."""
    made = build_run(config, out)
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
    if reads_newlines(config):  # lines are rare among random tokens: let a sixth of them end one
        made.newline_ids[::6] = True
    responses = made.source.take(made.position).responses
    if "correct" in config.reads:
        batch = responses["student"]
        groups = torch.arange(len(RIGHT)) // config.rollout.samples
        responses["student"] = batch.with_groups(groups, torch.tensor(RIGHT).float())
    return made, responses


def seen(config, made, before, batch, chosen, moment):
    """A writer's optimiser batch as the twins need it: every model's full log-probabilities, sequence by sequence."""
    kept = [i for i in sorted(chosen) if batch.keep[i].any()]
    models = {
        "p": made.policy.model,
        "o": before,
        "q": loaded((config.teacher or config.student).path),
        "first": loaded(config.student.path),
    }

    def log_probs(who, i):
        prompt = (batch.teacher_prompts if who == "q" else batch.prompts)[i]
        with torch.set_grad_enabled(who == "p"):
            logits = models[who](input_ids=torch.cat([prompt, batch.responses[i]])[None]).logits[
                0, len(prompt) - 1 : -1
            ]
            return (logits / config.rollout.temperature).log_softmax(-1)[batch.keep[i]]

    def draws(purpose, name):
        return [moment.uniforms(purpose, name, torch.full((int(batch.keep[i].sum()),), i)).tolist() for i in kept]

    @cache
    def answer(i):
        return twin_batch.Answer(
            i // config.rollout.samples,
            batch.responses[i][batch.keep[i]].tolist(),
            correct=RIGHT[i],
            **{who: log_probs(who, i) for who in models},
        )

    def rollout():
        return [answer(i) for i in range(len(batch.responses)) if batch.keep[i].any()]

    newlines = set(made.newline_ids.nonzero().flatten().tolist())
    return twin_batch.Batch([answer(i) for i in kept], moment.age, newlines, draws, rollout)


def check_weights(weights, wanted):
    for group in weights.values():
        values = [w for part in group for w in part]
        if wanted in ("vary", "mixed"):
            kept = [w for w in values if w > 0]
            assert max(kept) > 1.05 * min(kept)
        if wanted in ("mask", "mixed"):
            assert 0.02 < sum(w == 0 for w in values) / len(values) < 0.98
    assert weights or not wanted


def compare(name, case, pair, prompts, out, minibatch):
    paths = [f"student.path={pair[0]}", f"teacher.path={pair[1]}", f"prompts.path={prompts}"]
    shown = [] if "teacher.context" in case.overrides else ["teacher.context=2{problem}"]
    settings = [*TINY, *paths, *shown, f"minibatch={minibatch}", *case.overrides.split()]
    taught = load_recipe(name).teacher is not None
    config = load_recipe(name, [s for s in settings if taught or not s.startswith("teacher.")])
    made, responses = begin(config, out)
    before = copy.deepcopy(made.policy.model)
    schedule = list(schedule_of(config, 0))
    for number in range(case.age):
        update(config, made, responses, schedule, number)
    chosen, moment = chosen_of(config, responses, schedule, case.age), Moment(config.seed, 0, case.age)
    batches = {n: seen(config, made, before, batch, chosen[n], moment) for n, batch in responses.items()}
    losses, weights = case.twin(batches)
    total = losses["main"] + sum(coef * losses[term] for term, coef in case.coefs or weights_of_one(losses))
    parameters = list(made.policy.model.parameters())
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    metrics = update(config, made, responses, schedule, case.age)
    for term, loss in losses.items():
        found = metrics["loss" if term == "main" else f"{term}.loss"]
        assert found == pytest.approx(loss.item(), rel=1e-7), term
    for parameter, wanted in zip(parameters, expected):
        assert (parameter.grad - wanted).norm() < 1e-6 * wanted.norm()
    return weights


def weights_of_one(losses):
    return [(term, 1.0) for term in losses if term != "main"]


def chosen_of(config, responses, schedule, number):
    return {n: sequences_of(config, n, batch, schedule[number % len(schedule)]) for n, batch in responses.items()}


def update(config, made, responses, schedule, number):
    portions = Batch(config, responses, made.newline_ids).portion(schedule[number % len(schedule)])
    updated = made.learner.update(portions, Moment(config.seed, 0, number))
    if updated.old_logp is not None:
        responses["student"] = responses["student"].with_behaviour(updated.old_logp)
    return updated.metrics


@pytest.mark.parametrize("name", CASES)
def test_an_update_is_the_works_own(name, pair, prompts, tmp_path):
    weights = compare(name, CASES[name], pair, prompts, tmp_path, "null")
    check_weights(weights, CASES[name].weights)


@pytest.mark.parametrize("name", SPLIT)
def test_an_update_on_a_part_of_the_rollout_is_the_works_own(name, pair, prompts, tmp_path):
    compare(name, CASES[name], pair, prompts, tmp_path, 5)


def test_no_shipped_repair_is_without_a_twin():
    rooms = ("repairs/", "controls/", "ours/")
    assert {name for name in shipped_recipes() if name.startswith(rooms)} == set(CASES)


@pytest.mark.parametrize("name", NUMBERS)
def test_the_shipped_recipe_has_the_works_numbers(name):
    settings = load_recipe(name).model_dump()
    for place, wanted in NUMBERS[name].items():
        found = settings
        for part in place.split("."):
            found = found[part]
        assert found == wanted, place
