"""Steps of driftgate by its own loop, and the same steps with full logits written plainly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import random_models
import torch
from clock import clocked_places
from step_workers import WorkerEnd
from torch import Tensor
from training import PHASES, Run, micro_batches

import driftgate
from driftgate.config import TrainConfig
from driftgate.data.experience import Experience
from driftgate.data.packing import MicroBatch
from driftgate.models.policy import Policy
from driftgate.recipe import load_recipe

MODELS = {"student": (4, 256), "teacher": (6, 384)}
"""Layers and hidden size."""
K = 32
LEARNING_RATE = 1e-6
VOCABULARY_KL = "objective={kind: divergence, support: vocabulary, divergence: reverse_kl}"
RECIPES = {
    "driftgate, LSM": ("qwen3/lsm_block64", []),
    "driftgate, sampled token": ("qwen3/sampled_token_block64", []),
    "driftgate, LSM, no gate": ("qwen3/lsm_none", ["log_drift=false"]),
    "driftgate, TRL's objective": ("qwen3/lsm_none", [VOCABULARY_KL, "log_drift=false"]),
    "full logits, LSM": ("qwen3/lsm_block64", []),
    "full logits, sampled token": ("qwen3/sampled_token_block64", []),
}


@dataclass(frozen=True)
class Setting:
    """What every way is given."""

    folder: Path
    vocabulary: int
    prompts: int = 8
    tokens: int = 128


def make_inputs(setting: Setting) -> None:
    """Both models with their tokenizer, and 64 prompts of 16 to 31 tokens, in the setting's folder."""
    size = setting.vocabulary
    roles = {role: random_models.qwen3(size, *sizes, kv_heads=2, seed=0) for role, sizes in MODELS.items()}
    random_models.save_models(setting.folder, roles, size)  # type: ignore[arg-type]
    random_models.write_prompts(setting.folder / "prompts.jsonl", [16 + n % 16 for n in range(64)], size)


def config_of(name: str, setting: Setting) -> TrainConfig:
    """The recipe of a way, in float32 on a CPU."""
    recipe, own = RECIPES[name]
    shared = random_models.overrides_of(setting.folder, setting.vocabulary, setting.prompts, 1, setting.tokens)
    optimizer = f"optimizer={{lr: {LEARNING_RATE:f}}}"
    return load_recipe(recipe, [*shared, optimizer, "device=cpu", "steps=1000", *own])


def serve_ours(end: WorkerEnd, name: str, setting: Setting) -> None:
    """Steps of driftgate, or of the full logits, until there are no more orders."""
    torch.set_num_threads(1)
    way = (FullLogits if name.startswith("full logits") else Driftgate)(end, name, setting)
    end.send_memory("baseline_mb", "VmRSS")
    while (passes := end.begin()) is not None:
        end.end(loss=way.step(passes))
    end.send_memory("peak_mb", "VmHWM")


class Driftgate:
    """A run of driftgate by its own loop, everything that it logs included."""

    def __init__(self, end: WorkerEnd, name: str, setting: Setting):
        self.end, self.run = end, Run(config_of(name, setting), setting.folder / name)

    def step(self, passes: int) -> float:
        """Returns the loss of the last update."""
        with clocked_places(PHASES) as seconds:
            self.run.step(passes)  # not through the recipe's checks, which refuse a gate in a single pass
        self.end.parts.update(seconds)
        return self.run.last_loss()


class FullLogits:
    """The same step written plainly: logits of all tokens at once, their log-softmax, and gather."""

    behaviour: Tensor | None

    def __init__(self, end: WorkerEnd, name: str, setting: Setting):
        self.end, self.number, self.is_lsm = end, 0, "LSM" in name
        self.run = Run(config_of(name, setting), setting.folder / name)
        settings, self.parameters = self.run.config.optimizer, list(self.run.student.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters, settings.lr, settings.betas, settings.eps, settings.weight_decay, fused=True
        )

    def step(self, passes: int) -> float:
        """Returns the loss of the last update."""
        with self.end.part("rollout"):
            batch, micro = self.rolled_out()
        with self.end.part("teacher"), torch.no_grad():
            ids, teacher_logp = self.compared(logprobs(self.run.teacher, micro), batch.ids[:, None])
        self.behaviour, loss = None, torch.zeros(())
        for _ in range(passes):
            with self.end.part("update"):
                loss = self.update(micro, batch, ids, teacher_logp)
        return loss.item()

    def rolled_out(self) -> tuple[Experience, MicroBatch]:
        """The responses of the next step, by driftgate's engine, and the one forward that covers them."""
        batch, self.number = self.run.rollout(self.number), self.number + 1
        [micro] = micro_batches(batch, self.run.config.microbatch_tokens, self.run.student.device)
        return batch, micro

    def compared(self, teacher_logp: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, K] that the loss compares, and the teacher's log-probabilities of them."""
        if self.is_lsm:
            top = teacher_logp.topk(K, dim=-1)
            return top.indices, top.values
        return ids, teacher_logp.gather(1, ids)

    def update(self, micro: MicroBatch, batch: Experience, ids: Tensor, teacher_logp: Tensor) -> Tensor:
        """One optimiser step. Before the first one the student is the one that wrote the responses, so its
        log-probabilities are the behaviour's."""
        scores = logprobs(self.run.student, micro)
        logp = scores.gather(1, batch.ids[:, None])[:, 0]
        behaviour = self.behaviour = logp.detach() if self.behaviour is None else self.behaviour
        if self.is_lsm:
            losses = driftgate.topk_reverse_kl(scores.gather(1, ids), teacher_logp)
        else:
            losses = driftgate.sampled_token_loss(logp, behaviour, teacher_logp[:, 0])
        gate = driftgate.drift_gate(logp, behaviour, driftgate.fixed_spans(batch.rows))
        loss = (driftgate.unit_mean(gate) * losses).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.run.config.optimizer.clip_norm)
        self.optimizer.step()
        return loss.detach()


def logprobs(policy: Policy, micro: MicroBatch) -> Tensor:
    """Of the whole vocabulary at each response token, [N, V]."""
    model: Any = policy.model
    hidden = model.base_model(input_ids=micro.input_ids, use_cache=False).last_hidden_state
    return model.lm_head(hidden.flatten(0, 1)[micro.predicts]).log_softmax(-1)
