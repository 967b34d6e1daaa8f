"""Load models and tokenizers, and check that driftgate can train them. Every failure names the setting and the mend."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from ..config import ModelSettings
from ..errors import InputError
from . import lora
from .quantise import loading_of
from .sources import adapter_base, resolve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def load_tokenizer(settings: ModelSettings, role: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside the model. Raises InputError where there is none."""
    path = resolve(settings.path, role)
    base = adapter_base(path)
    if base is not None and not (Path(path) / "tokenizer_config.json").is_file():
        return load_tokenizer(settings.model_copy(update={"path": base}), role)
    try:
        # cleaning up spaces would change what the model wrote
        return AutoTokenizer.from_pretrained(path, clean_up_tokenization_spaces=False)
    except (OSError, ValueError, ImportError) as error:
        raise InputError(_missing(role, settings.path, "tokenizer", error)) from None


def load_model(settings: ModelSettings, role: str, device: torch.device) -> nn.Module:
    """A causal LM on `device`, in evaluation mode; of an adapter's folder its base with the adapter merged. `role` is
    "student", "teacher" or "model".

    Raises InputError where there is none, and for 4 bits without a GPU.
    """
    path = resolve(settings.path, role)
    if (base := adapter_base(path)) is not None:
        plain = load_model(settings.model_copy(update={"path": base}), role, device)
        return lora.with_saved(plain, path, merge=settings.quantise is None)
    dtype = DTYPES[settings.dtype]
    model: Any
    quantised = loading_of(settings, role, dtype, device)
    try:
        config = AutoConfig.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **_kernels(config, dtype), **quantised)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(_missing(role, settings.path, "causal language model", error)) from None
    _mend_generation_config(model)
    mend_body(model)
    return model if quantised else model.to(device)


def declared_vocabulary(settings: ModelSettings, role: str) -> int | None:
    """Ids of a model that is not loaded, by its configuration; None where there is none."""
    try:
        config = AutoConfig.from_pretrained(resolve(settings.path, role))
    except (OSError, ValueError):
        return None
    return getattr(config.get_text_config(), "vocab_size", None)


def declared_generation(settings: ModelSettings, role: str) -> Any:
    """What `stop_ids` asks of a model that is not loaded: an object with its `generation_config`, or None for it."""
    try:
        return SimpleNamespace(generation_config=GenerationConfig.from_pretrained(resolve(settings.path, role)))
    except (OSError, ValueError):
        return SimpleNamespace(generation_config=None)


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one. Raises InputError for `cuda` without one."""
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise InputError("device = cuda: torch sees no GPU here; set device=auto or device=cpu")
    return torch.device("cuda" if has_gpu and name != "cpu" else "cpu")


def stop_ids(model: Any, tokenizer: PreTrainedTokenizerBase, role: str) -> tuple[int, ...]:
    """Every id at which this model ends an answer; empty where neither its tokenizer nor its configuration names one.

    Raises InputError where the two name different ones.
    """
    listed: Any = model.generation_config.eos_token_id if model.generation_config else None
    ids: set[int] = {listed} if isinstance(listed, int) else set(listed or ())
    own = tokenizer.eos_token_id
    if ids and isinstance(own, int) and own not in ids:
        raise InputError(
            f"{role}.path: EOS clash: the tokenizer ends an answer with {tokenizer.eos_token!r} ({own}), the "
            f"generation config with {sorted(ids)}; {_as_one({own, *ids}, role)}, or mend generation_config.json"
        )
    return tuple(sorted(ids | ({own} if isinstance(own, int) else set())))


def choose_stop_ids(
    student: tuple[nn.Module, PreTrainedTokenizerBase],
    teachers: Mapping[str, tuple[Any, PreTrainedTokenizerBase]],
    chosen: tuple[int, ...] | None,
) -> tuple[int, ...]:
    """The ids that end a response: `chosen`, or the student's own. teachers: by their names in the settings. Raises
    InputError where they cannot be learned."""
    if chosen:
        return chosen
    ours, every = stop_ids(*student, "student"), {role: stop_ids(*each, role) for role, each in teachers.items()}
    if not ours:
        raise InputError(
            "student.path: neither its tokenizer nor its generation config has an EOS token, so no answer could end; "
            "set rollout.stop_ids=[ID]"
        )
    for role, theirs in every.items():
        if not set(ours) & set(theirs):
            raise InputError(
                f"{role}.path: EOS clash: it ends an answer with {list(theirs)}, the student with {list(ours)}, so the "
                f"teacher would unteach stopping; {_as_one({*theirs, *ours}, role)}, or rollout.stop_ids=[ID] to the "
                f"id that both should use"
            )
    return ours


def _as_one(ids: set[int], role: str) -> str:
    """How to say that all of these ids end an answer. An evaluation draws them, and knows no groups."""
    if role == "model":
        return f"name all of {sorted(ids)} as eos_token_id"
    listed = ",".join(map(str, sorted(ids)))
    return f"set rollout.stop_ids=[{listed}] rollout.stop_group=true, so that these count as one end"


def context_length(model: Any) -> int | None:
    """Positions that the model was made for, where its configuration says."""
    return getattr(model.config, "max_position_embeddings", None)


def _kernels(config: Any, dtype: torch.dtype) -> dict[str, str]:
    """How attention and experts are computed: by torch's fused attention where that is exact, else step by step.

    A cap on attention scores is part of no fused kernel: transformers' sdpa would leave it out without a word. torch's
    product of many experts at once (grouped_mm) has no type wider than float32.
    """
    text = config.get_text_config()
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    capped = getattr(text, "attn_logit_softcapping", None) is not None
    fused = getattr(architecture, "_supports_sdpa", True) and not capped
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}
    return {"attn_implementation": "sdpa" if fused else "eager", **experts}


def _mend_generation_config(model: Any) -> None:
    """Some published models name a sampling temperature beside do_sample=false, with which nothing can be saved."""
    settings = model.generation_config
    if settings is not None and not settings.do_sample:
        settings.temperature = settings.top_p = settings.top_k = None


def mend_body(model: Any) -> None:
    """Llama 4 names its body as a part of the model with images, which it does not have."""
    if model.base_model is model and hasattr(model, "model"):
        model.base_model_prefix = "model"


def _missing(role: str, path: str, what: str, error: Exception) -> str:
    where = "the folder has no usable one" if Path(path).is_dir() else "no such folder, nor a hub model within reach"
    return f"{role}.path = {path!r}: no {what} ({where}); give a folder or hub name. {str(error).splitlines()[0]}"
