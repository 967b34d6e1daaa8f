"""Rollouts of settings, step by step."""

import json

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from driftgate.recipe import check_config
from driftgate.train.checkpoint import Position
from driftgate.train.rollouts import prompts_of_batch
from driftgate.train.source import source_of

EOS, QUIET = 1, Console(quiet=True)
NLL = {"objective": {"kind": "nll"}}
GREEDY = 1e-9
"""A nucleus of the one most probable token."""


def with_rollout(values, **rollout):
    return check_config(values | {"rollout": values["rollout"] | rollout})


def collect(config, made, out, step, controller=None):
    """The responses of a step, counted from 0, by whose they are; their metrics stay in `made.seen`."""
    made.config = config.model_copy(update={"steps": max(config.steps, step + 1)})
    batch = source_of(made).take(Position(step, controller=controller))
    made.seen = batch.metrics
    return batch.responses


def ids_of(responses, name="student"):
    return [ids.tolist() for ids in responses[name].responses]


def cut(ids, limit):
    return ids[:limit]


def metrics_of(out):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in line.items() if not key.startswith("seconds")} for line in lines]


# mixtures


def references_in(batch):
    """Which responses no engine drew: their log-probabilities are NaN."""
    undrawn = batch.engine_logp.isnan()
    return [bool(undrawn[batch.rows == i].all()) for i in range(len(batch.responses))]


def solution_ids(made, text):
    return [*made.tokenizer(text, add_special_tokens=False)["input_ids"], EOS]


def solutions_of_step(config, made, step):
    chosen = prompts_of_batch(made.prompts, config, step)
    return [prompt.problem.solution for prompt in chosen]


# what the teacher writes


def greedy(path, prompt, tokens):
    """The most probable continuation, by full forwards, up to the stop token."""
    model, ids = AutoModelForCausalLM.from_pretrained(path), list(prompt)
    for _ in range(tokens):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]
