"""SmolLM2-135M-Instruct on GSM8K: the divergence to its privileged teacher on held-out problems, before and after.

    driftgate train smol_gsm8k --out runs/smol_gsm8k
    python experiments/smol_gsm8k.py --run runs/smol_gsm8k --held-out gsm8k/test.jsonl

Both students answer the same problems with the same random numbers, one answer each. KL(student || teacher) over the
whole vocabulary, mean over an answer's tokens: of each on its own answers, and of both on the answers of the first,
where they differ in the weights alone. Also whether the answers are right, by the run's verifier. Paired differences
with t intervals over problems. Writes --out.
"""

import argparse
import json
import multiprocessing
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

from driftgate.config import ModelSettings, TrainConfig
from driftgate.data.problems import Problem, parse_problems
from driftgate.data.prompts import Prompt
from driftgate.data.response import Response
from driftgate.data.rows import read_rows
from driftgate.evaluate.divergence import divergence_by_prompt
from driftgate.files import json_rows
from driftgate.models import load
from driftgate.models.policy import Policy
from driftgate.recipe import check_config
from driftgate.rollout.engine import Request, Sampling
from driftgate.rollout.hf import HFEngine
from driftgate.train.routing import encoded as encode_all
from driftgate.train.routing import views_of
from driftgate.verify.choose import verifier_of


def policy_of(settings: ModelSettings) -> tuple[Policy, Any]:
    model = load.load_model(settings, "model", torch.device("cpu"))
    return Policy(model, settings.compute), load.load_tokenizer(settings, "model")


def interval(values: list[float]) -> dict[str, float]:
    """Mean with a 95 % t interval over problems."""
    ends = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    return {"mean": float(np.mean(values)), "low": float(ends.low), "high": float(ends.high)}


def answers_of(path: str, config: TrainConfig, problems: list[Problem], threads: int) -> list[Response]:
    """One answer to each problem by the student at `path`; runs in a process of its own."""
    torch.set_num_threads(threads)
    student, tokenizer = policy_of(config.student.model_copy(update={"path": path}))
    how, stops = config.rollout, load.stop_ids(student.model, tokenizer, "student")
    sampling = Sampling(how.max_new_tokens, how.temperature, how.top_p, stops)
    prompts = encoded(config, problems, tokenizer)
    requests = [Request(p.ids, ((0, "held-out", p.problem.id, 0),)) for p in prompts]
    return [group[0] for group in HFEngine(student, batch=16).generate(requests, sampling)]


def divergence_on(
    path: str, config: TrainConfig, problems: list[Problem], answers: list[Response], threads: int
) -> list[float]:
    """KL(student at `path` || privileged teacher) on given answers, a mean per answer; in a process of its own."""
    torch.set_num_threads(threads)
    teacher, tokenizer = policy_of(config.teacher)
    student, _ = policy_of(config.student.model_copy(update={"path": path}))
    prompts, temperature = encoded(config, problems, tokenizer), config.rollout.temperature
    groups = [[answer] for answer in answers]
    return divergence_by_prompt(student, teacher, prompts, groups, temperature, config.microbatch_tokens)


def encoded(config: TrainConfig, problems: list[Problem], tokenizer: Any) -> list[Prompt]:
    views = views_of(config, tokenizer, {"teacher": tokenizer})
    return encode_all(problems, config, views, None, {"teacher": None})


def right(config: TrainConfig, problems: list[Problem], answers: list[Response]) -> list[bool]:
    """By the verifier of the run's settings."""
    tokenizer: Any = load.load_tokenizer(config.student, "student")
    texts = [tokenizer.decode(list(answer.ids), skip_special_tokens=True) for answer in answers]
    with verifier_of(config.prompts.verify) as verifier:
        return verifier.grade_many((text, problem.answer) for text, problem in zip(texts, problems))


def share(changes: list[float]) -> float:
    return float(np.mean(np.array(changes) < 0))


def token_mean(divergence: list[float], answers: list[Response]) -> float:
    """Mean over all tokens, as the training loss is."""
    return float(np.average(divergence, weights=[len(answer.ids) for answer in answers]))


SCORED = {"before": ("before", "before"), "after": ("after", "after"), "after on before's": ("after", "before")}
"""Which student is scored on whose answers."""


def arguments_of_command() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--skip", type=int, default=0, help="leave out so many problems first")
    parser.add_argument("--problems", type=int, default=160)
    parser.add_argument("--out", type=Path, default=Path("results/smol_gsm8k.json"))
    parser.add_argument("--threads", type=int, default=1, help="of each of the two processes")
    return parser.parse_args()


def measured(
    config: TrainConfig, students: dict[str, str], problems: list[Problem], threads: int
) -> tuple[dict[str, list[Response]], dict[str, list[float]]]:
    """Each student's answers, and the divergences of SCORED."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        asked = [(path, config, problems, threads) for path in students.values()]
        answers = dict(zip(students, pool.starmap(answers_of, asked)))
        print("answers are written", flush=True)
        asked = [(students[who], config, problems, answers[whose], threads) for who, whose in SCORED.values()]
        return answers, dict(zip(SCORED, pool.starmap(divergence_on, asked, chunksize=1)))


def change(divergence: dict[str, list[float]], name: str) -> dict[str, Any]:
    """From "before", problem by problem."""
    changes = np.subtract(divergence[name], divergence["before"]).tolist()
    return interval(changes) | {"median": float(np.median(changes)), "share_fallen": share(changes)}


def divergences(divergence: dict[str, list[float]], answers: dict[str, list[Response]]) -> dict[str, Any]:
    return {
        "before": interval(divergence["before"]),
        "after": interval(divergence["after"]),
        "change on own answers": change(divergence, "after"),
        "change on the answers of before": change(divergence, "after on before's"),
        "token_mean": {name: token_mean(divergence[name], answers[whose]) for name, (_, whose) in SCORED.items()},
        "tokens_mean": {name: float(np.mean([len(a.ids) for a in part])) for name, part in answers.items()},
        "truncated": {name: float(np.mean([not a.finished for a in part])) for name, part in answers.items()},
    }


def verdicts(config: TrainConfig, problems: list[Problem], answers: dict[str, list[Response]]) -> dict[str, Any]:
    """Share of right answers with 95 % t intervals over problems, and the paired change."""
    by_problem = {name: right(config, problems, part) for name, part in answers.items()}
    changes = [float(after) - before for after, before in zip(by_problem["after"], by_problem["before"])]
    shares = {name: interval([float(verdict) for verdict in part]) for name, part in by_problem.items()}
    return {"right": shares | {"change": interval(changes)}, "right_by_problem": by_problem}


def training(run: Path) -> dict[str, Any]:
    """Of the run: the loss of each update, and the seconds of all phases."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "training_loss": [round(line["loss"], 5) for line in lines if line["kind"] == "update"],
        "training_seconds": round(sum(v for line in lines for k, v in line.items() if k.startswith("seconds"))),
    }


def examples(config: TrainConfig, problems: list[Problem], answers: dict[str, list[Response]]) -> list[dict[str, Any]]:
    tokenizer: Any = load.load_tokenizer(config.student, "student")
    return [
        {"id": problem.id, "problem": problem.problem, "answer": problem.answer}
        | {name: tokenizer.decode(list(part[i].ids), skip_special_tokens=True) for name, part in answers.items()}
        for i, problem in enumerate(problems[:3])
    ]


def main() -> None:
    arguments, began = arguments_of_command(), time.time()
    config = check_config(yaml.safe_load((arguments.run / "config.yaml").read_text()))
    problems = parse_problems(read_rows(str(arguments.held_out), "--held-out"))
    problems = problems[arguments.skip : arguments.skip + arguments.problems]
    students = {"before": config.student.path, "after": str(arguments.run)}
    answers, divergence = measured(config, students, problems, arguments.threads)
    packages = {"torch": torch.__version__, "transformers": transformers.__version__}
    report = {
        "command": " ".join(["python", "experiments/smol_gsm8k.py", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **packages},
        "seconds": round(time.time() - began),
        "recipe": config.model_dump(mode="json"),
        "problems": len(problems),
        "unit": "nats a token, KL(student || privileged teacher), whole vocabulary, temperature 1",
        **divergences(divergence, answers),
        **verdicts(config, problems, answers),
        **training(arguments.run),
        "divergence_by_problem": divergence,
        "tokens_by_problem": {name: [len(a.ids) for a in part] for name, part in answers.items()},
        "examples": examples(config, problems, answers),
    }
    arguments.out.write_text(json_rows(report) + "\n")
    for name in ("before", "after", "change on own answers", "change on the answers of before", "token_mean", "right"):
        print(name, report[name])


if __name__ == "__main__":
    main()
