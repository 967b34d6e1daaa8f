"""Servers of language models: HTTP with limits, work shared by several servers, and vLLM's calls."""
