"""`driftgate export`: the model of a run as a folder of its own, which transformers loads without driftgate."""

import shutil
from pathlib import Path

import torch

from ..config import TrainConfig
from ..errors import InputError
from ..models import load
from ..models.policy import Policy
from ..models.save import save_model
from . import checkpoint, folder


def export(run: Path, out: Path, adapter: bool = False) -> None:
    """Write the model of a run's newest checkpoint, with its tokenizer, to a new folder.

    Of a run with LoRA the base with the adapter merged, in the base's type; with `adapter` the adapter's folder as it
    is. Of any other run the model folder as it is. Raises InputError before anything is written.
    """
    model, config = _newest(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there already; choose a new folder")
    if config.student.quantise and not adapter:
        raise InputError(
            f"{run}: student.quantise = {config.student.quantise}: an adapter trained on a 4-bit base is not merged; "
            f"export it alone, with --adapter"
        )
    if adapter and config.student.lora is None:
        raise InputError(f"--adapter: {run} was trained without student.lora, so it has no adapter; leave it out")
    partial = out.with_name(out.name + checkpoint.PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    if config.student.lora is None or adapter:
        shutil.copytree(model, partial)
    else:
        _write_merged(config, model, partial)
    if out.is_dir():
        out.rmdir()
    partial.rename(out)


def _newest(run: Path) -> tuple[Path, TrainConfig]:
    """The newest model folder of a run, and its settings."""
    config = folder.config_of(run) if run.is_dir() else None
    if config is None:
        raise InputError(f"{run}: is no run folder (it has no config.yaml); give the --out of `driftgate train`")
    found = checkpoint.all_checkpoints(run / "checkpoints")
    if not found:
        raise InputError(f"{run}: the run has no checkpoint yet; let it reach one, or stop it with Ctrl-C")
    return found[-1] / "model", config


def _write_merged(config: TrainConfig, model: Path, out: Path) -> None:
    settings = config.student.model_copy(update={"path": str(model)})
    merged = load.load_model(settings, "student", torch.device("cpu"))
    save_model(Policy(merged), load.load_tokenizer(settings, "student"), out)
