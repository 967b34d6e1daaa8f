"""Small random models whose heads have a bias, a scale or a cap, with the embedded tokenizer."""

import torch
import transformers
from torch import nn

from driftgate.sandbox.tokenizer import build_tokenizer

SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
FULL = {"layer_types": ["full_attention"] * 2, "attn_logit_softcapping": None}
HEADS = {
    "bias": ("Phi", {}),
    "scale": ("Granite", {"num_key_value_heads": 1, "logits_scaling": 0.5}),
    "cap": ("Gemma2", FULL | {"num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 5.0}),
}


def make_headed(folder, kind, seed, hidden=32):
    """Saved to `folder`, whose name it returns."""
    tokenizer = build_tokenizer()
    name, settings = HEADS[kind]
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    sizes = {"vocab_size": len(tokenizer), "hidden_size": hidden, "initializer_range": 0.3}
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{name}Config")(**SHAPE | settings, **ids, **sizes)
    )
    if kind == "bias":
        nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
