"""Prompts, and the padding that a model call needs."""
