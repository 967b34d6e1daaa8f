"""What settings change in an update, and what they leave alone: precision, schedules, checkpointing, diagnostics."""

import copy
import json

import pytest
import torch
from conftest import collected, learn, make_model
from slow_update import update

from driftgate.config import TermSettings
from driftgate.errors import RunError
from driftgate.recipe import check_config
from driftgate.train.build import build_run
from driftgate.train.sums import Sums
from driftgate.train.weighing import Moment, Weighed


def test_the_logged_learning_rate_is_the_one_used(settings, tmp_path):
    config = check_config(settings | {"optimizer": {"lr": 1.0, "warmup": 3}})
    made, responses = collected(config, tmp_path)
    assert update(config, made, responses, [0, 1])["lr"] == pytest.approx(0.25)
    assert update(config, made, responses, [0, 1], number=1)["lr"] == pytest.approx(0.5)


def test_the_spread_of_gates_near_one_is_not_lost_to_rounding(config):
    gate = 1 - 3e-5 * torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    sums = Sums()
    sums.add({"loss": torch.tensor(0.0), "ungated": torch.tensor(0.0)}, Weighed(gate, gate, torch.tensor(0.0)))
    metrics = sums.metrics(config.all_terms["main"].unweighted, "the main term")
    assert metrics["gate_std"] == pytest.approx(gate.double().std(correction=0).item(), rel=1e-6)


def test_gates_that_vanish_in_one_sequence_are_an_error(settings, tmp_path):
    config = check_config(settings | {"gate": {"spans": "block", "size": 8, "tau": 1e9, "scope": "sequence"}})
    made, responses = collected(config, tmp_path)
    update(config, made, responses, [0, 1, 2])
    with pytest.raises(RunError, match="lower it"):
        update(config, made, responses, [0, 1, 2], number=1)


def test_a_teacher_whose_head_is_padded_wider_scores_shared_ids_only(settings, tmp_path):
    wide = make_model(tmp_path / "wide", 2, hidden=48, vocab_size=64)
    config = check_config(settings | {"teacher": {"path": wide}, "objective": {"kind": "lsm", "k": 40}})
    made, responses = collected(config, tmp_path / "run")
    assert len(made.policy.head.weight) == 48
    assert responses["student"].scores.teacher.top_ids.max() < 48


def test_eos_is_learned_whatever_the_pad_token_is(settings, tmp_path):
    config = check_config(settings | {"rollout": {"samples": 8, "max_new_tokens": 60}})
    made, responses = collected(config, tmp_path)
    batch = responses["student"]
    assert batch.finished.any()
    assert batch.ids.eq(1).sum() == batch.finished.sum()
    made.policy.model.config.pad_token_id = made.tokenizer.pad_token_id = 1  # pad == EOS
    micros = list(batch.micro_batches(range(32), 10**6, made.policy.device))
    assert torch.cat([micro.tokens for micro in micros]).unique().numel() == len(batch.ids)


def test_gradient_checkpointing_changes_nothing(settings, tmp_path):
    weights = []
    for on in (False, True):
        values = copy.deepcopy(settings)
        values["student"]["gradient_checkpointing"] = on
        config = check_config(values)
        made, responses = collected(config, tmp_path / str(on))
        update(config, made, responses, list(range(12)))
        weights.append([p.detach().clone() for p in made.policy.parameters()])
    for one, other in zip(*weights):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_bfloat16_products_train_float32_weights(settings, tmp_path):
    values = copy.deepcopy(settings)
    values["student"]["compute"] = "bfloat16"
    config = check_config(values)
    made, responses = collected(config, tmp_path)
    metrics = update(config, made, responses, list(range(12)))
    assert {p.dtype for p in made.policy.parameters()} == {torch.float32}
    assert metrics["gate_min"] == 1.0
    assert metrics["grad_norm"] > 0


@pytest.mark.parametrize(("name", "expected"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_the_learning_rate_warms_up_and_follows_its_schedule(settings, tmp_path, name, expected):
    optimizer = {"lr": 1.0, "warmup": 4, "schedule": name}
    learner = build_run(check_config(settings | {"optimizer": optimizer}), tmp_path).learner
    factors = [learner._lr_factor(update, 24) for update in range(24)]
    assert factors[:4] == [0.2, 0.4, 0.6, 0.8]
    assert factors[14] == pytest.approx(expected)
    assert factors[23] == pytest.approx(1.0 if name == "constant" else factors[23])
    assert min(factors) >= 0


def test_the_tokens_of_a_micro_batch_stand_in_sequence_order(settings, tmp_path):
    config = check_config(settings)
    made, responses = collected(config, tmp_path)
    batch = responses["student"]
    assert len({len(p) + len(r) for p, r in zip(batch.prompts, batch.responses)}) > 1
    for micro in batch.micro_batches(range(12), 10**6, made.policy.device):
        assert (micro.tokens.diff() > 0).all()  # what weights over a prefix or a change point rely on


def test_terms_on_responses_of_other_lengths_are_weighed_side_by_side(settings, prompt_file, tmp_path):
    rows = [json.loads(line) | {"solution": "1+" * 19} for line in prompt_file.read_text().splitlines()]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    term = {"responses": "reference", "objective": {"kind": "nll"}, "weights": {"w": {"signal": "teacher_entropy"}}}
    prompts = {"path": str(tmp_path / "p.jsonl"), "per_step": 4}
    changes = {"terms": {"sft": term}, "rollout": {"samples": 1, "max_new_tokens": 40}, "minibatch": None}
    config = check_config(settings | changes | {"prompts": prompts})
    made, responses = collected(config, tmp_path / "run")
    assert len(responses["reference"].ids) > len(responses["student"].ids)
    for number in range(2):
        metrics = update(config, made, responses, list(range(4)), number)
        assert metrics["sft.tokens"] == len(responses["reference"].ids)


def test_a_live_weight_needs_no_score_of_the_behaviour(settings, tmp_path):
    weight = {"signal": "teacher_ratio", "map": {"kind": "keep_top", "share": 0.5}}
    config = check_config(settings | {"gate": {"spans": "none"}, "log_drift": False, "weights": {"w": weight}})
    made, responses = collected(config, tmp_path)
    assert responses["student"].scores.behaviour.logp is None
    assert update(config, made, responses, list(range(12)))["gate_mean"] == pytest.approx(0.5, abs=0.01)


def test_a_negative_weight_is_an_error(settings, tmp_path):
    config = check_config(settings | {"weights": {"by_gap": {"signal": "gap"}}})
    made, responses = collected(config, tmp_path)
    with pytest.raises(RunError, match=r"the main term.*affine clips at 0"):
        learn(config, made, responses, [0, 1, 2], Moment(0, 0))


def test_gates_that_are_nearly_closed_still_count_as_gated():
    gate = torch.tensor([1e-12, 3e-12, 2e-9, 1e-9])
    sums = Sums()
    sums.add({"loss": torch.tensor(0.0), "ungated": torch.tensor(0.0)}, Weighed(gate, gate, torch.tensor(0.0)))
    metrics = sums.metrics(TermSettings(objective={"kind": "nll"}), "the main term")
    assert metrics["gated"] == 1.0
    assert metrics["gate_std"] == pytest.approx(gate.double().std(correction=0).item(), rel=1e-6)


def test_diagnostics_change_no_weight(settings, tmp_path):
    weights = []
    for every in (0, 1):
        config = check_config(settings | {"diagnostics": {"every": every}})
        made, responses = collected(config, tmp_path / str(every))
        for number in (0, 1):
            metrics = learn(config, made, responses, list(range(12)), Moment(3, 0, number), diagnose=every == 1)
        weights.append([p.detach().clone() for p in made.policy.parameters()])
    assert 0 < metrics["grad_norm_ratio"] != 1
    assert all(torch.equal(one, other) for one, other in zip(*weights))


def test_the_padding_share_is_that_of_the_micro_batches(settings, tmp_path):
    shares = []
    for tokens in (1, 100_000):
        config = check_config(settings | {"microbatch_tokens": tokens})
        made, responses = collected(config, tmp_path / str(tokens))
        batch = responses["student"]
        lengths = [len(p) + len(r) for p, r in zip(batch.prompts, batch.responses)]
        metrics = learn(config, made, responses, list(range(12)), Moment(0, 0))
        shares.append(metrics["padding"])
    assert shares == [0.0, pytest.approx(1 - sum(lengths) / (12 * max(lengths)))]
    assert shares[1] > 0
