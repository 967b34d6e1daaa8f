"""One update against the equations on full logits, in float64."""

import copy

import torch
from conftest import learn
from twins import (
    slow_fixed_spans,
    slow_gate,
    slow_newline_spans,
    slow_sampled_token_loss,
    slow_topk_reverse_kl,
)

from driftgate.recipe import check_config
from driftgate.train.weighing import Moment

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


def update(config, made, responses, sequences, number=0):
    """The update of that number, counted from 0, of the first step: its metrics."""
    return learn(config, made, responses, sequences, Moment(config.seed, 0, number))


def slow_gradient(config, made, batch, sequences):
    """Gradient of L = sum of m_t g_t l_t / M, from full logits, one sequence at a time, gates normalised by hand."""
    model, temperature = made.policy.model, config.rollout.temperature
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
        scores = batch.scores.behaviour.logp[chosen], batch.scores.teacher.logp[chosen]
        losses = slow_sampled_token_loss(logp, *scores, "frozen", 0.2, 3.0)
    gate = torch.ones(len(rows), dtype=torch.float64)
    if config.gate.spans != "none":
        order = torch.tensor([sequences.index(int(row)) for row in rows])
        spans = slow_spans(config, made, order, batch.ids[chosen])
        behaviour = batch.scores.behaviour.logp[chosen]
        gate = slow_gate(logp.detach(), behaviour, spans, config.gate.tau, config.gate.statistic)
    if config.gate.scope == "sequence":
        for row in sequences:
            gate[rows == row] /= gate[rows == row].mean()
    gate = gate / gate.mean()
    loss = (gate * losses).sum() / len(rows)
    return loss.detach(), torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)


def slow_spans(config, made, rows, ids):
    gate = config.gate
    if gate.spans == "block":
        return torch.tensor(slow_fixed_spans(rows, gate.size))
    ends = torch.tensor(["\n" in made.tokenizer.decode([i]) for i in ids.tolist()])
    return torch.tensor(slow_newline_spans(rows, ends, gate.min_tokens, gate.max_tokens, gate.size))
