"""SmolLM2-135M-Instruct on GSM8K: the divergence to its privileged teacher on held-out problems, before and after.

    driftgate train smol_gsm8k --out runs/smol_gsm8k
    python experiments/smol_gsm8k.py --run runs/smol_gsm8k --held-out gsm8k/test.jsonl --problems 48

Both students answer the same problems with the same random numbers, one answer each; KL(student || teacher) over the
whole vocabulary, mean over an answer's tokens; paired difference with a t interval over problems. Writes
results/smol_gsm8k.json.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from scipy import stats

from driftgate.config import ModelSettings
from driftgate.data.prompts import Prompt, encode_prompts, jsonl_rows, parse_problems
from driftgate.evaluate.divergence import divergence_by_prompt
from driftgate.models import load
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine


def policy_of(settings: ModelSettings) -> tuple[Policy, Any]:
    model = load.load_model(settings, "model", torch.device("cpu"))
    return Policy(model, settings.compute), load.load_tokenizer(settings, "model")


def interval(values: list[float]) -> dict[str, float]:
    """Mean with a 95 % t interval over problems."""
    ends = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return {"mean": float(np.mean(values)), "low": float(ends.low), "high": float(ends.high)}


def examine(student: Policy, teacher: Policy, tokenizer: Any, prompts: list[Prompt], config: Any) -> dict[str, Any]:
    """Answers of one student and their divergence."""
    how = config.rollout
    stops = load.stop_ids(student.model, tokenizer, "student")
    sampling = Sampling(how.max_new_tokens, how.temperature, how.top_p, stops)
    requests = [Request(p.ids, ((0, "held-out", p.problem.id, 0),)) for p in prompts]
    responses = HFEngine(student, batch=16).generate(requests, sampling)
    divergence = divergence_by_prompt(student, teacher, prompts, responses, how.temperature, config.microbatch_tokens)
    answers = [group[0] for group in responses]
    return {
        "divergence": divergence,
        "tokens_mean": float(np.mean([len(answer.ids) for answer in answers])),
        "truncated": float(np.mean([not answer.finished for answer in answers])),
        "texts": [tokenizer.decode(list(answer.ids), skip_special_tokens=True) for answer in answers],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    began = time.time()
    config = check_config(yaml.safe_load((arguments.run / "config.yaml").read_text()))
    problems = parse_problems(jsonl_rows(arguments.held_out, "--held-out"))[: arguments.problems]
    teacher, tokenizer = policy_of(config.teacher)
    prompts = encode_prompts(
        problems, tokenizer, config.prompts, config.rollout.max_new_tokens, None, config.teacher.context
    )
    students = {"before": config.student.path, "after": str(arguments.run)}
    results = {}
    for name, path in students.items():
        student, _ = policy_of(config.student.model_copy(update={"path": path}))
        results[name] = examine(student, teacher, tokenizer, prompts, config)
        print(name, interval(results[name]["divergence"]), f"{time.time() - began:.0f} s", flush=True)
    change = np.subtract(results["after"]["divergence"], results["before"]["divergence"]).tolist()
    updates = [json.loads(line) for line in (arguments.run / "metrics.jsonl").read_text().splitlines()]
    report = {
        "command": " ".join(["python", "experiments/smol_gsm8k.py", *sys.argv[1:]]),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "seconds": round(time.time() - began),
        "recipe": config.model_dump(mode="json"),
        "problems": len(prompts),
        "unit": "nats a token, KL(student || privileged teacher), whole vocabulary, temperature 1",
        "before": interval(results["before"]["divergence"]),
        "after": interval(results["after"]["divergence"]),
        "change": interval(change),
        "tokens_mean": {name: result["tokens_mean"] for name, result in results.items()},
        "truncated": {name: result["truncated"] for name, result in results.items()},
        "training_loss": [round(line["loss"], 5) for line in updates if line["kind"] == "update"],
        "training_seconds": round(sum(v for line in updates for k, v in line.items() if k.startswith("seconds"))),
        "divergence_by_problem": {name: result["divergence"] for name, result in results.items()},
        "examples": [
            {
                "id": prompts[i].problem.id,
                "problem": prompts[i].problem.problem,
                "answer": prompts[i].problem.answer,
                **{name: result["texts"][i] for name, result in results.items()},
            }
            for i in range(3)
        ],
    }
    out = Path("results") / "smol_gsm8k.json"
    out.write_text(json.dumps(report, indent=2) + "\n")
    print("change", report["change"])


if __name__ == "__main__":
    main()
