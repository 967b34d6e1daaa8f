"""A model as a folder that transformers loads."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from .policy import Policy


def save_model(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Weights, configuration and tokenizer. Raises OSError or SafetensorError where the disk refuses."""
    policy.model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
