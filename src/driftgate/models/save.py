"""A model, or its adapter, as a folder that transformers loads."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .policy import Policy


def save_model(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, configuration and tokenizer; of a model with adapters the adapter alone, which names its base. Raises
    OSError or SafetensorError where the disk refuses."""
    if policy.adapters is not None:
        policy.adapters.save(folder)
    else:
        policy.model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
