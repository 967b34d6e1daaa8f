"""Models with random weights, and prompts of made-up words, in files that a run can load."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


def qwen3(vocabulary: int, layers: int, hidden: int, kv_heads: int, seed: int) -> Qwen3ForCausalLM:
    """Qwen3 with tied embeddings and heads of size 64 (one smaller head if `hidden` is below 64)."""
    heads = max(hidden // 64, 1)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config)


def save_models(folder: Path, roles: dict[str, PreTrainedModel], vocabulary: int) -> None:
    """Each role's model with its tokenizer, in folder / role."""
    tokenizer = make_tokenizer(vocabulary)
    for role, model in roles.items():
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word for each id of the head. The EOS token lies one beyond the head, so no model here can draw it."""
    words = {"<pad>": 0} | {f"w{i}": i for i in range(1, vocabulary)} | {"<eos>": vocabulary}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left")


def write_prompts(path: Path, lengths: Sequence[int], vocabulary: int) -> None:
    """Prompts of so many words each, one a line, all different."""
    texts = (
        " ".join(f"w{1 + (97 * number + place) % (vocabulary - 1)}" for place in range(length))
        for number, length in enumerate(lengths)
    )
    path.write_text("".join(json.dumps({"problem": text}) + "\n" for text in texts))


def overrides_of(
    folder: Path, vocabulary: int, per_step: int, samples: int, new_tokens: int, model: dict[str, object] | None = None
) -> list[str]:
    """Overrides of a recipe for a run on the student, the teacher and the prompts.jsonl of `folder`. Responses end at
    their limit alone. model: settings of both models beside their path."""
    rollout = {"samples": samples, "max_new_tokens": new_tokens, "top_p": 1.0, "allow_truncated": True}
    settings = {
        "student": {"path": str(folder / "student"), **(model or {})},
        "teacher": {"path": str(folder / "teacher"), **(model or {})},
        "prompts": {"path": str(folder / "prompts.jsonl"), "per_step": per_step},
        "rollout": rollout | {"stop_ids": [vocabulary]},
        "diagnostics": {"every": 0},
        "threads": 1,
    }
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]
