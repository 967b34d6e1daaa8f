"""`driftgate eval`: n samples per problem of each benchmark, graded, as pass@k with 95 % intervals.

A problem's samples are keyed by (seed, benchmark, problem, sample), so two models answer the same questions with the
same random numbers.
"""

import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from ..config import ModelSettings, PromptSettings
from ..data.benchmarks import load_benchmark
from ..data.prompts import Problem, Prompt, encode_prompts
from ..errors import InputError
from ..models import load
from ..models.policy import Policy, check_head
from ..rollout.engine import Request, Sampling
from ..rollout.hf import HFEngine
from .grading import grader_for
from .passk import summarise

LONGEST = 16_384


@dataclass(frozen=True)
class EvalSettings:
    """How a model is examined; the defaults are those of arXiv 2606.24084."""

    benchmarks: tuple[str, ...]
    samples: int = 8
    temperature: float = 1.0
    top_p: float = 0.9
    max_new_tokens: int | None = None
    """None: 16,384, or what the context leaves."""
    limit: int | None = None
    """Only the first so many problems of each benchmark."""
    seed: int = 0
    batch: int = 256
    """Responses decoded at once."""
    template: str | None = None
    """None: the problem alone, or what a run folder was trained with."""
    chat: bool | None = None
    system: str | None = None
    stop_ids: tuple[int, ...] | None = None
    """None: the model's own."""


@dataclass(frozen=True)
class Examinee:
    """A loaded model with what sampling from it needs."""

    policy: Policy
    tokenizer: Any

    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which this model ends an answer. Raises InputError where it names none, or contradicts itself."""
        pair = (self.policy.model, self.tokenizer)
        return load.choose_stop_ids(pair, pair, None)


def load_examinee(path: str, device: str = "auto", dtype: str = "float32", compute: str | None = None) -> Examinee:
    """Raises InputError for a model that is missing or cannot be used."""
    if dtype not in load.DTYPES or device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--dtype {dtype}, --device {device}: give {', '.join(load.DTYPES)}; auto, cpu or cuda")
    settings = ModelSettings.model_validate({"path": path, "dtype": dtype, "compute": compute})
    tokenizer = load.load_tokenizer(settings, "model")
    model = load.load_model(settings, "model", load.pick_device(device))
    policy = Policy(model, compute)
    check_head(policy, "model", path)
    return Examinee(policy, tokenizer)


def evaluate(
    examinee: Examinee,
    settings: EvalSettings,
    out: Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Sample, grade, summarise. With `out`, writes samples.jsonl and result.json there. Returns the summary.

    {"pass": {benchmark or "mean": {"pass@1": {"mean", "low", "high"}, ...}}, "tokens_mean": ..., "truncated": ...}
    """
    problems = {name: load_benchmark(name, settings.limit) for name in settings.benchmarks}
    prompts = {name: _encode(examinee, part, settings) for name, part in problems.items()}
    rows: list[dict[str, Any]] = []
    with _samples_file(out) as file:
        for name in problems:
            part = list(_sample(examinee, name, prompts[name], settings, advance))
            _grade(part)
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part))
            file.flush()  # what is sampled stays, whatever happens next
            rows += part
    ks = sorted({1, settings.samples} | ({8} if settings.samples >= 8 else set()))
    result = {
        "settings": asdict(settings),
        "problems": {name: len(part) for name, part in problems.items()},
        "pass": summarise({name: _counts(rows, name) for name in problems}, ks=ks),
        "tokens_mean": sum(row["tokens"] for row in rows) / len(rows),
        "truncated": sum(not row["finished"] for row in rows) / len(rows),
    }
    if out is not None:
        (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def _samples_file(out: Path | None) -> IO[str]:
    """samples.jsonl, opened before anything is sampled. Raises InputError for a folder that cannot be written."""
    if out is None:
        return io.StringIO()
    try:
        out.mkdir(parents=True, exist_ok=True)
        return (out / "samples.jsonl").open("w", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: cannot be written to ({error.strerror}); choose another folder") from None


def responses_of(settings: EvalSettings) -> int:
    """How many responses an evaluation samples, for a progress bar."""
    return settings.samples * sum(len(load_benchmark(name, settings.limit)) for name in settings.benchmarks)


def _encode(examinee: Examinee, problems: Sequence[Problem], settings: EvalSettings) -> list[Prompt]:
    shown = PromptSettings(
        path="",
        template=settings.template or "{problem}",
        chat=bool(settings.chat),
        system=settings.system,
        max_tokens=10**9,
    )
    context = load.context_length(examinee.policy.model)
    return encode_prompts(problems, examinee.tokenizer, shown, settings.max_new_tokens or 1, context)


def _sample(
    examinee: Examinee,
    name: str,
    prompts: Sequence[Prompt],
    settings: EvalSettings,
    advance: Callable[[int], None] | None,
) -> Iterator[dict[str, Any]]:
    """A row per response, in the order of problems and samples."""
    context = load.context_length(examinee.policy.model) or 2 * LONGEST
    stop_ids = settings.stop_ids or examinee.stop_ids()
    room = context - max(len(p.ids) for p in prompts)
    sampling = Sampling(settings.max_new_tokens or min(LONGEST, room), settings.temperature, settings.top_p, stop_ids)
    requests = [
        Request(
            p.ids, tuple((settings.seed, "eval", Path(name).stem, p.problem.id, n) for n in range(settings.samples))
        )
        for p in prompts
    ]
    engine = HFEngine(examinee.policy, settings.batch)
    for prompt, responses in zip(prompts, engine.generate(requests, sampling, advance)):
        for sample, response in enumerate(responses):
            text = examinee.tokenizer.decode(response.ids, skip_special_tokens=True)
            row = {
                "benchmark": name,
                "problem": prompt.problem.id,
                "sample": sample,
                "gold": prompt.problem.answer,
            }
            yield row | {"finished": response.finished, "tokens": len(response.ids), "text": text}


def _grade(rows: list[dict[str, Any]]) -> None:
    """Adds `correct` to the rows of one benchmark."""
    with grader_for([row["gold"] for row in rows]) as grader:
        verdicts = grader.grade_many((row["text"], row["gold"]) for row in rows)
    for row, verdict in zip(rows, verdicts):
        row["correct"] = verdict


def _counts(rows: list[dict[str, Any]], name: str) -> list[tuple[int, int]]:
    """(correct, samples) of each problem of a benchmark."""
    counts: dict[str, tuple[int, int]] = {}
    for row in rows:
        if row["benchmark"] == name:
            right, total = counts.get(row["problem"], (0, 0))
            counts[row["problem"]] = (right + row["correct"], total + 1)
    return list(counts.values())


def check_settings(settings: EvalSettings) -> None:
    """Raises InputError before the model is loaded."""
    for name in ("samples", "batch", "limit", "max_new_tokens"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value}: give at least 1")
    if not 0 < settings.temperature < math.inf:
        raise InputError(f"--temperature {settings.temperature}: give a number above 0; near 0 is greedy")
    if not 0 < settings.top_p <= 1:
        raise InputError(f"--top-p {settings.top_p}: give a number above 0 and at most 1")
    if not settings.benchmarks:
        raise InputError("--benchmark: name at least one benchmark or .jsonl file")
    if len(set(settings.benchmarks)) < len(settings.benchmarks):
        raise InputError(f"--benchmark: {', '.join(settings.benchmarks)} names one twice")
    for name in settings.benchmarks:
        load_benchmark(name, settings.limit)
