"""Which model this is: one hash of everything that decides what it says."""

import hashlib
import json
from typing import Any

import torch

from .policy import Policy

_UNRELATED = ("_name_or_path", "transformers_version", "architectures")
"""Of a model's configuration: where it was found and what wrote it."""


def fingerprint(policy: Policy, tokenizer: Any) -> str:
    """SHA-256, in hex, of the weights as they are held (names, types, shapes, values), the model's configuration, the
    type that products run in, and the tokenizer with its chat template. Reads every weight once: about a second a
    gigabyte."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.weights().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    config: Any = policy.model.config
    related = {key: value for key, value in config.to_dict().items() if key not in _UNRELATED}
    digest.update(json.dumps([related, policy.compute], sort_keys=True, default=str).encode())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    digest.update(f"{rules}\n{getattr(tokenizer, 'chat_template', None)}".encode())
    return digest.hexdigest()
