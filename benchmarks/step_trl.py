"""Steps of TRL's DistillationTrainer, which needs the extra `bench`."""

import json
from importlib.util import find_spec
from typing import Any

import torch
from step_ways import LEARNING_RATE, Setting
from step_workers import WorkerEnd
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback


def has_trl() -> bool:
    return find_spec("trl") is not None


def serve_trl(end: WorkerEnd, name: str, setting: Setting) -> None:
    """Steps of TRL's trainer, which waits for an order at the end of each."""
    torch.set_num_threads(1)
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import DistillationConfig, DistillationTrainer  # pyright: ignore[reportMissingImports]

    rows = (setting.folder / "prompts.jsonl").read_text().splitlines()
    trainer = DistillationTrainer(
        model=str(setting.folder / "student"),
        teacher_model=str(setting.folder / "teacher"),
        args=DistillationConfig(**trl_settings(setting)),
        train_dataset=Dataset.from_list([{"prompt": json.loads(row)["problem"]} for row in rows]),
        callbacks=[StepByOrder(end)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.model.generate = end.as_part("rollout", trainer.model.generate)
    trainer.train()
    end.send_memory("peak_mb", "VmHWM")


def trl_settings(setting: Setting) -> dict[str, Any]:
    """TRL's defaults, but float32, no recomputed activations, nothing logged or saved, and what all ways share."""
    return {
        "output_dir": str(setting.folder / "trl"),
        "per_device_train_batch_size": setting.prompts,
        "gradient_accumulation_steps": 1,
        "max_completion_length": setting.tokens,
        "max_steps": 1000,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class StepByOrder(TrainerCallback):
    """A step is all that runs from an order to the end of the optimiser step, generation included."""

    def __init__(self, end: WorkerEnd):
        self.end = end

    def on_train_begin(self, args, state, control, **rest) -> None:
        self.end.send_memory("baseline_mb", "VmRSS")
        self.end.begin()

    def on_step_end(self, args, state, control, **rest) -> None:
        self.end.end()
        control.should_training_stop = self.end.begin() is None
