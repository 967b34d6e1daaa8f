"""Loading Hugging Face causal language models, and running their body, head and loss as one module."""

from transformers.utils import logging

logging.disable_progress_bar()
