"""One update against the equations on full logits, and what it must not depend on."""

import copy
import dataclasses
import json

import pytest
import torch
from conftest import collected, learn, make_model
from rich.console import Console
from safetensors.torch import load_file
from twins import (
    slow_fixed_spans,
    slow_gate,
    slow_newline_spans,
    slow_sampled_token_loss,
    slow_topk_reverse_kl,
)

from driftgate.config import TermSettings
from driftgate.errors import RunError
from driftgate.method.scores import Scored
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.train import scoring
from driftgate.train.build import build_run
from driftgate.train.command import run
from driftgate.train.determinism import repeatable_backward
from driftgate.train.folder import final_model
from driftgate.train.portions import schedule
from driftgate.train.sums import Sums
from driftgate.train.terms import Terms
from driftgate.train.weighing import Moment, Weighed

LSM, SAMPLED = {"kind": "lsm", "k": 6}, {"kind": "sampled_token"}
GATES = [
    {"spans": "none"},
    {"spans": "block", "size": 8, "tau": 3.0},
    {"spans": "newline", "tau": 3.0, "min_tokens": 2, "max_tokens": 9, "size": 8},
    {"spans": "block", "size": 8, "tau": 3.0, "scope": "sequence"},
    {"spans": "block8", "tau": 3.0, "statistic": "rms"},
]


def double(settings, **changes):
    """The settings in float64, without clipping of the gradient."""
    values = copy.deepcopy(settings) | changes
    values["student"]["dtype"] = values["teacher"]["dtype"] = "float64"
    values["optimizer"] = {"lr": 0.003, "clip_norm": 1e9}
    return check_config(values)


def update(config, parts, streams, sequences, number=0):
    """The update of that number, counted from 0, of the first step: its metrics."""
    return learn(config, parts, streams, sequences, Moment(config.seed, 0, number))


def slow_gradient(config, parts, batch, sequences):
    """Gradient of L = sum of m_t g_t l_t / M, from full logits, one sequence at a time, gates normalised by hand."""
    model, temperature = parts.policy.model, config.rollout.temperature
    logp, student, rows, losses = [], [], [], []
    for row in sequences:
        prompt, response = batch.prompts[row], batch.responses[row]
        logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1] / temperature
        logp.append(logits.log_softmax(-1).gather(1, response[:, None])[:, 0])
        student.append(logits)
        rows += [row] * len(response)
    logp, student, rows = torch.cat(logp), torch.cat(student), torch.tensor(rows)
    chosen = torch.cat([(batch.rows == row).nonzero().flatten() for row in sequences])
    if config.objective.kind == "lsm":
        support = student.gather(1, batch.scores.teacher.top_ids[chosen].long())
        losses = slow_topk_reverse_kl(support, batch.scores.teacher.top_logp[chosen])
    else:
        streams = batch.scores.behaviour.logp[chosen], batch.scores.teacher.logp[chosen]
        losses = slow_sampled_token_loss(logp, *streams, "frozen", 0.2, 3.0)
    gate = torch.ones(len(rows), dtype=torch.float64)
    if config.gate.spans != "none":
        order = torch.tensor([sequences.index(int(row)) for row in rows])
        spans = slow_spans(config, parts, order, batch.ids[chosen])
        behaviour = batch.scores.behaviour.logp[chosen]
        gate = slow_gate(logp.detach(), behaviour, spans, config.gate.tau, config.gate.statistic)
    if config.gate.scope == "sequence":
        for row in sequences:
            gate[rows == row] /= gate[rows == row].mean()
    gate = gate / gate.mean()
    loss = (gate * losses).sum() / len(rows)
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def slow_spans(config, parts, rows, ids):
    gate = config.gate
    if gate.spans == "block":
        return torch.tensor(slow_fixed_spans(rows, gate.size))
    ends = torch.tensor(["\n" in parts.tokenizer.decode([i]) for i in ids.tolist()])
    return torch.tensor(slow_newline_spans(rows, ends, gate.min_tokens, gate.max_tokens, gate.size))


@pytest.mark.parametrize("objective", [LSM, SAMPLED], ids=["lsm", "sampled_token"])
@pytest.mark.parametrize("gate", GATES, ids=["none", "block", "newline", "sequence-scope", "rms"])
def test_an_update_has_the_gradient_of_the_equations(settings, tmp_path, objective, gate):
    config = double(settings, objective=objective, gate=gate, microbatch_tokens=60)
    parts, streams = collected(config, tmp_path)
    minibatches = list(schedule(config, 0))
    update(config, parts, streams, minibatches[0].sequences)  # so that the student has drifted
    sequences = minibatches[1].sequences
    loss, expected = slow_gradient(config, parts, streams["student"], sequences)
    metrics = update(config, parts, streams, sequences, number=1)
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-9)
    if gate["spans"] != "none":
        assert metrics["gate_min"] < 0.99
    for parameter, wanted in zip(parts.policy.model.parameters(), expected):
        # the modules' norms run in float32 even in a float64 model, so layouts differ in the 7th digit
        assert (parameter.grad - wanted).norm() < 1e-6 * wanted.norm()


@pytest.mark.parametrize("objective", [LSM, SAMPLED], ids=["lsm", "sampled_token"])
@pytest.mark.parametrize("scope", ["minibatch", "sequence"])
def test_the_split_into_micro_batches_changes_nothing(settings, tmp_path, objective, scope):
    gate = {"spans": "block", "size": 8, "tau": 3.0, "scope": scope}
    results = []
    for tokens in (1, 90, 100_000):
        config = double(settings, objective=objective, gate=gate, microbatch_tokens=tokens)
        parts, streams = collected(config, tmp_path / str(tokens))
        metrics = [update(config, parts, streams, each.sequences, each.number) for each in schedule(config, 0)]
        for each in metrics:
            each.pop("padding")  # tells of the split itself
        results.append((metrics, [p.detach().clone() for p in parts.policy.parameters()]))
    for metrics, weights in results[1:]:
        for one, other in zip(metrics, results[0][0]):
            assert one == pytest.approx(other, rel=1e-9, abs=1e-12)
        for one, other in zip(weights, results[0][1]):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_first_update_after_a_rollout_is_ungated_to_the_bit(settings, tmp_path):
    config = check_config(settings)  # in float32: equal bits, not equal digits
    parts, streams = collected(config, tmp_path)
    metrics = update(config, parts, streams, next(schedule(config, 0)).sequences)
    assert (metrics["gate_mean"], metrics["gate_min"], metrics["gate_std"]) == (1.0, 1.0, 0.0)
    assert metrics["drift_abs"] == 0.0
    assert metrics["loss"] == metrics["loss_ungated"]


def test_with_one_pass_and_one_minibatch_the_gate_is_a_no_op(settings, tmp_path):
    weights = []
    for spans in ("none", "block"):
        # a gate with passes=1 and one minibatch is refused; the first pass of two is the same one update
        values = settings | {"passes": 2, "minibatch": None, "gate": {"spans": spans, "tau": 50.0}}
        config = check_config(values)
        parts, streams = collected(config, tmp_path / spans)
        update(config, parts, streams, list(range(12)))
        weights.append([p.detach().clone() for p in parts.policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights))


def test_an_ungated_lsm_run_that_logs_no_drift_scores_no_behaviour(settings, tmp_path):
    config = check_config(settings | {"gate": {"spans": "none"}, "log_drift": False})
    parts, streams = collected(config, tmp_path)
    assert streams["student"].scores.behaviour.logp is None
    metrics = update(config, parts, streams, [0, 1, 2])
    assert "drift_abs" not in metrics
    assert metrics["gate_mean"] == 1.0


def test_backward_alone_refuses_what_does_not_repeat_itself():
    """Flash attention's backward looks at it; on a CPU nothing is asked for and nothing changes."""
    with repeatable_backward():
        assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with repeatable_backward():
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_dropped_tokens_leave_the_loss_and_its_denominator(settings, tmp_path):
    eos, newline = 1, 4
    config = check_config(settings | {"drop_tokens": [eos, newline]})
    batch = collected(config, tmp_path)[1]["student"]
    assert not torch.isin(batch.ids, torch.tensor([eos, newline])).any()
    kept = sum(int((~torch.isin(r, torch.tensor([eos, newline]))).sum()) for r in batch.responses)
    assert len(batch.ids) == kept < sum(len(r) for r in batch.responses)


def first_length(config, batch):
    return len(batch.tokens_of(next(schedule(config, 0)).sequences))


@pytest.mark.parametrize("objective", [LSM, SAMPLED])
@pytest.mark.parametrize("minibatch", [5, None])
def test_the_first_update_finds_its_own_old_log_probabilities(settings, tmp_path, monkeypatch, objective, minibatch):
    """A run whose first update had no forward before it ends at the weights of one that had, bit for bit."""
    changes = {"objective": objective, "minibatch": minibatch, "diagnostics": {"every": 2}}
    config = check_config(settings | changes | {"rollout": settings["rollout"] | {"allow_truncated": True}})
    weights, forwards = [], []
    for found in (True, False):
        with monkeypatch.context() as patch:
            if not found:
                patch.setattr(scoring, "_found_by_first_update", lambda config, needs, step: False)
            calls = counted(patch, Policy, "forward")
            run(config, tmp_path / str(found), Console(quiet=True))
            forwards.append(len(calls))
        weights.append(load_file(final_model(tmp_path / str(found)) / "model.safetensors"))
    assert forwards[0] < forwards[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


BY_ENTROPY = {"signal": "teacher_entropy", "map": {"kind": "keep_top", "share": 0.5}}
KNOWN = {
    "no weights": {"gate": {"spans": "none"}},
    "weights by scores": {"gate": {"spans": "none"}, "weights": {"w": BY_ENTROPY}},
    "weights found ahead": {"gate": {"spans": "block", "size": 8, "tau": 30.0, "target_ess": 0.8}},
    "drift gates, in the first update": {"gate": {"spans": "block", "size": 8, "tau": 30.0}},
}


@pytest.mark.parametrize("case", KNOWN)
def test_a_gradient_made_in_the_forward_is_that_of_the_two_passes(settings, tmp_path, monkeypatch, case):
    """For the sampled token with weights that are known before its log-probabilities."""
    config = double(settings, objective=SAMPLED, **KNOWN[case])
    weights, metrics = [], []
    for fused in (True, False):
        with monkeypatch.context() as patch:
            known = counted(patch, Terms, "_fused_loss")
            if not fused:
                patch.setattr(Terms, "_is_known", lambda self, work, name: False)
            parts, streams = collected(config, tmp_path / str(fused))
            metrics.append([update(config, parts, streams, list(range(12)), number) for number in range(2)][-1])
            weights.append([p.detach().clone() for p in parts.policy.parameters()])
            assert bool(known) == fused
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-9)
    for one, other in zip(*weights):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def counted(patch, owner, name):
    """A list that grows with every call of a method."""
    calls, original = [], getattr(owner, name)

    def method(self, *arguments):
        calls.append(arguments)
        return original(self, *arguments)

    patch.setattr(owner, name, method)
    return calls


def test_behaviour_is_scored_beforehand_where_weights_look_at_all_of_the_batch(settings, tmp_path):
    """Or where more than log-probabilities is wanted of the student."""
    across = {"signal": "drift", "partition": {"kind": "token"}, "map": {"kind": "exp"}, "control": "shuffle_across"}
    whole = [{"weights": {"w": across}}, {"objective": {"kind": "candidates", "k": 4}}]
    for number, changes in enumerate(whole):
        config = check_config(settings | {"minibatch": None} | changes)
        batch = collected(config, tmp_path / str(number))[1]["student"]
        assert not batch.unscored
        assert (batch.scores.behaviour.logp < 0).all()


@pytest.mark.parametrize("minibatch", [1, None])
def test_a_response_whose_every_token_is_dropped_is_passed_over(settings, tmp_path, minibatch):
    changes = {"objective": LSM, "drop_tokens": [1], "microbatch_tokens": 1, "minibatch": minibatch}
    config = check_config(settings | changes)
    parts, streams = collected(config, tmp_path)
    batch = streams["student"]
    batch.keep[3] = torch.zeros_like(batch.keep[3])
    batch = dataclasses.replace(batch, scores=Scored())
    batch = scoring.behaviour_scores(config, parts.scorers["behaviour"], "student", batch, 0)
    # the first minibatch, which is everything or one response, is left to its own update
    assert len(batch.tokens_of(batch.unscored)) == (
        len(batch.ids) if minibatch is None else first_length(config, batch)
    )
    streams = {"student": scoring.target_scores(config, parts.scorers, "student", batch, 0)}
    before = [p.detach().clone() for p in parts.policy.parameters()]
    metrics = update(config, parts, streams, [3])
    assert metrics["tokens"] == 0
    assert all(torch.equal(one, other) for one, other in zip(before, parts.policy.parameters()))
    assert update(config, parts, streams, [2, 3, 4])["tokens"] > 0


def test_the_logged_learning_rate_is_the_one_used(settings, tmp_path):
    config = check_config(settings | {"optimizer": {"lr": 1.0, "warmup": 3}})
    parts, streams = collected(config, tmp_path)
    assert update(config, parts, streams, [0, 1])["lr"] == pytest.approx(0.25)
    assert update(config, parts, streams, [0, 1], number=1)["lr"] == pytest.approx(0.5)


def test_the_spread_of_gates_near_one_is_not_lost_to_rounding(config):
    gate = 1 - 3e-5 * torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    sums = Sums()
    sums.add({"loss": torch.tensor(0.0), "ungated": torch.tensor(0.0)}, Weighed(gate, gate, torch.tensor(0.0)))
    metrics = sums.metrics(config.all_terms["main"].unweighted, "the main term")
    assert metrics["gate_std"] == pytest.approx(gate.double().std(correction=0).item(), rel=1e-6)


def test_gates_that_vanish_in_one_sequence_are_told(settings, tmp_path):
    config = check_config(settings | {"gate": {"spans": "block", "size": 8, "tau": 1e9, "scope": "sequence"}})
    parts, streams = collected(config, tmp_path)
    update(config, parts, streams, [0, 1, 2])
    with pytest.raises(RunError, match="lower it"):
        update(config, parts, streams, [0, 1, 2], number=1)


def test_a_teacher_whose_head_is_padded_wider_scores_shared_ids_only(settings, tmp_path):
    wide = make_model(tmp_path / "wide", 2, hidden=48, vocab_size=64)
    config = check_config(settings | {"teacher": {"path": wide}, "objective": {"kind": "lsm", "k": 40}})
    parts, streams = collected(config, tmp_path / "run")
    assert parts.policy.head.shape[0] == 48
    assert streams["student"].scores.teacher.top_ids.max() < 48


def test_eos_is_learned_whatever_the_pad_token_is(settings, tmp_path):
    config = check_config(settings | {"rollout": {"samples": 8, "max_new_tokens": 60}})
    parts, streams = collected(config, tmp_path)
    batch = streams["student"]
    assert batch.finished.any()
    assert batch.ids.eq(1).sum() == batch.finished.sum()
    parts.policy.model.config.pad_token_id = parts.tokenizer.pad_token_id = 1  # pad == EOS
    micros = list(batch.micro_batches(range(32), 10**6, parts.policy.device))
    assert torch.cat([micro.tokens for micro in micros]).unique().numel() == len(batch.ids)


def test_gradient_checkpointing_changes_nothing(settings, tmp_path):
    weights = []
    for on in (False, True):
        values = copy.deepcopy(settings)
        values["student"]["gradient_checkpointing"] = on
        config = check_config(values)
        parts, streams = collected(config, tmp_path / str(on))
        update(config, parts, streams, list(range(12)))
        weights.append([p.detach().clone() for p in parts.policy.parameters()])
    for one, other in zip(*weights):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_bfloat16_products_train_float32_weights(settings, tmp_path):
    values = copy.deepcopy(settings)
    values["student"]["compute"] = "bfloat16"
    config = check_config(values)
    parts, streams = collected(config, tmp_path)
    metrics = update(config, parts, streams, list(range(12)))
    assert {p.dtype for p in parts.policy.parameters()} == {torch.float32}
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
    parts, streams = collected(config, tmp_path)
    batch = streams["student"]
    assert len({len(p) + len(r) for p, r in zip(batch.prompts, batch.responses)}) > 1
    for micro in batch.micro_batches(range(12), 10**6, parts.policy.device):
        assert (micro.tokens.diff() > 0).all()  # what weights over a prefix or a change point rely on


def test_terms_on_streams_of_other_lengths_are_weighed_side_by_side(settings, prompt_file, tmp_path):
    rows = [json.loads(line) | {"solution": "1+" * 19} for line in prompt_file.read_text().splitlines()]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    term = {"responses": "reference", "objective": {"kind": "nll"}, "weights": {"w": {"signal": "teacher_entropy"}}}
    prompts = {"path": str(tmp_path / "p.jsonl"), "per_step": 4}
    changes = {"terms": {"sft": term}, "rollout": {"samples": 1, "max_new_tokens": 40}, "minibatch": None}
    config = check_config(settings | changes | {"prompts": prompts})
    parts, streams = collected(config, tmp_path / "run")
    assert len(streams["reference"].ids) > len(streams["student"].ids)
    for number in range(2):
        metrics = update(config, parts, streams, list(range(4)), number)
        assert metrics["sft.tokens"] == len(streams["reference"].ids)


def test_a_live_weight_needs_no_score_of_the_behaviour(settings, tmp_path):
    weight = {"signal": "teacher_ratio", "map": {"kind": "keep_top", "share": 0.5}}
    config = check_config(settings | {"gate": {"spans": "none"}, "log_drift": False, "weights": {"w": weight}})
    parts, streams = collected(config, tmp_path)
    assert streams["student"].scores.behaviour.logp is None
    assert update(config, parts, streams, list(range(12)))["gate_mean"] == pytest.approx(0.5, abs=0.01)


def test_a_negative_weight_is_told(settings, tmp_path):
    config = check_config(settings | {"weights": {"by_gap": {"signal": "gap"}}})
    parts, streams = collected(config, tmp_path)
    with pytest.raises(RunError, match=r"the main term.*affine clips at 0"):
        learn(config, parts, streams, [0, 1, 2], Moment(0, 0))


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
        parts, streams = collected(config, tmp_path / str(every))
        for number in (0, 1):
            metrics = learn(config, parts, streams, list(range(12)), Moment(3, 0, number), diagnose=every == 1)
        weights.append([p.detach().clone() for p in parts.policy.parameters()])
    assert 0 < metrics["grad_norm_ratio"] != 1
    assert all(torch.equal(one, other) for one, other in zip(*weights))


def test_the_padding_share_is_that_of_the_micro_batches(settings, tmp_path):
    shares = []
    for tokens in (1, 100_000):
        config = check_config(settings | {"microbatch_tokens": tokens})
        parts, streams = collected(config, tmp_path / str(tokens))
        batch = streams["student"]
        lengths = [len(p) + len(r) for p, r in zip(batch.prompts, batch.responses)]
        metrics = learn(config, parts, streams, list(range(12)), Moment(0, 0))
        shares.append(metrics["padding"])
    assert shares == [0.0, pytest.approx(1 - sum(lengths) / (12 * max(lengths)))]
    assert shares[1] > 0
