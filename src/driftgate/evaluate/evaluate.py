"""`driftgate eval`: n samples per problem of each benchmark, graded, as pass@k with 95 % intervals.

A problem's samples are keyed by (seed, benchmark, problem, sample), so two models answer the same questions with the
same random numbers, and an evaluation that was interrupted goes on as if it had not been.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import ModelSettings, PromptSettings
from ..config.exam import ExamSettings
from ..config.verify import MathSettings
from ..data.benchmarks import benchmark_name, content_sha256, load_benchmark
from ..data.problems import Problem
from ..data.prompts import Prompt, encode_prompts
from ..data.response import Response
from ..data.templates import student_view
from ..errors import InputError
from ..models import load
from ..models.causal import check_causal
from ..models.head import check_head
from ..models.identity import fingerprint
from ..models.policy import Policy
from ..rollout.engine import Request, Sampling
from ..verify.choose import check_answers, verifier_of
from ..verify.verifier import Verifier
from .folder import Folder, Row
from .measures import measures
from .writer import Writer

LONGEST = 16_384
Part = list[tuple[Prompt, Sequence[int]]]
"""Prompts with the numbers of the samples wanted of each."""


@dataclass(frozen=True)
class Examinee:
    """A loaded model with what sampling from it needs."""

    policy: Policy
    tokenizer: Any
    path: str = ""
    """Where it was loaded from."""

    def stop_ids(self) -> tuple[int, ...]:
        """The ids at which this model ends an answer. Raises InputError where it names none, or contradicts itself."""
        pair = (self.policy.model, self.tokenizer)
        return load.choose_stop_ids(pair, {"model": pair}, None)


def load_examinee(
    path: str, device: str = "auto", dtype: str = "float32", compute: str | None = None, quantise: str | None = None
) -> Examinee:
    """Raises InputError for a model that is missing or cannot be used."""
    if dtype not in load.DTYPES or device not in ("auto", "cpu", "cuda"):
        raise InputError(f"--dtype {dtype}, --device {device}: give {', '.join(load.DTYPES)}; auto, cpu or cuda")
    if compute not in (None, "bfloat16"):
        raise InputError(f"--compute {compute}: give bfloat16, or nothing for the weights' own type")
    settings = ModelSettings.model_validate({"path": path, "dtype": dtype, "compute": compute, "quantise": quantise})
    tokenizer = load.load_tokenizer(settings, "model")
    model = load.load_model(settings, "model", load.pick_device(device))
    policy = Policy(model, compute)
    check_causal(policy, "model", path)
    check_head(policy, "model", path)
    return Examinee(policy, tokenizer, path)


def evaluate(
    examinee: Examinee,
    settings: ExamSettings,
    out: Path | None = None,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Sample, grade, summarise. With `out`, goes on from what that folder holds, and leaves all there. Returns the
    summary, as JSON holds it; see `measures` for "pass".

    {"settings", "benchmarks": {name: {"problems", "sha256"}}, "problems": {name: number examined},
    "pass": {benchmark or "mean": {"pass@1": {"mean", "low", "high"}, ...}}, "tokens_mean", "truncated"}
    Raises InputError as `check_settings` does, for prompts without room, and as `Folder` does.
    """
    content = {benchmark_name(name): load_benchmark(name) for name in settings.benchmarks}
    problems = {name: whole[: settings.limit] for name, whole in content.items()}
    prompts = {name: _encode(examinee, part, settings) for name, part in problems.items()}
    pins = {name: {"problems": len(whole), "sha256": content_sha256(whole)} for name, whole in content.items()}
    folder = Folder(out, {} if out is None else _asked(examinee, settings, pins))
    wanted = [(name, p.id, n) for name, part in problems.items() for p in part for n in range(settings.samples)]
    advance = advance or (lambda n: None)
    advance(len(folder.rows))
    if (done := folder.result()) is not None and folder.rows.keys() >= set(wanted):
        return done
    with Writer(examinee.policy, examinee.path, settings, out) as writer:
        for name in problems:
            _complete(folder, examinee, name, prompts[name], settings, writer, advance)
    rows = [folder.rows[key] for key in wanted]
    summary = {
        "settings": settings.described(),
        "benchmarks": pins,
        "problems": {name: len(part) for name, part in problems.items()},
        "pass": measures(rows, _verifier(settings).votes),
        "tokens_mean": sum(row["tokens"] for row in rows) / len(rows),
        "truncated": sum(not row["finished"] for row in rows) / len(rows),
    }
    result = json.loads(json.dumps(summary))  # the same whether it is made now or read from its file
    folder.finish(wanted, result)
    return result


def _asked(examinee: Examinee, settings: ExamSettings, pins: dict[str, Any]) -> dict[str, Any]:
    """Everything that the samples depend on; not the batch, which decides how long they take."""
    chosen = {name: value for name, value in settings.described().items() if name not in ("benchmarks", "batch")}
    if settings.chat_template is not None:
        chosen["chat_template"] = hashlib.sha256(Path(settings.chat_template).expanduser().read_bytes()).hexdigest()
    return {
        "settings": chosen | {"stop_ids": settings.stop_ids or examinee.stop_ids()},
        "benchmarks": pins,
        "model": fingerprint(examinee.policy, examinee.tokenizer),
    }


def responses_of(settings: ExamSettings) -> int:
    """How many responses an evaluation samples, for a progress bar."""
    return settings.samples * sum(len(load_benchmark(name, settings.limit)) for name in settings.benchmarks)


def _encode(examinee: Examinee, problems: Sequence[Problem], settings: ExamSettings) -> list[Prompt]:
    shown = PromptSettings(
        path="",
        template=settings.template or "{problem}",
        chat=bool(settings.chat),
        system=settings.system,
        chat_template=settings.chat_template,
        template_args=settings.template_args or {},
        max_tokens=10**9,
    )
    context = load.context_length(examinee.policy.model)
    return encode_prompts(
        problems, student_view(examinee.tokenizer, shown), shown, settings.max_new_tokens or 1, context
    )


def _complete(
    folder: Folder,
    examinee: Examinee,
    name: str,
    prompts: Sequence[Prompt],
    settings: ExamSettings,
    writer: Writer,
    advance: Callable[[int], None],
) -> None:
    """Sample and grade what the folder lacks of one benchmark, in parts of one decoding batch each."""
    longest = max(len(p.ids) for p in prompts)
    room = (load.context_length(examinee.policy.model) or 2 * LONGEST) - longest
    new = settings.max_new_tokens or min(LONGEST, room)
    stop_ids = settings.stop_ids or examinee.stop_ids()
    sampling = Sampling(new, settings.temperature, settings.top_p, stop_ids)
    batch = writer.batch(longest + new)
    parts = [left for part in plan(prompts, settings.samples, batch) if (left := _lacking(folder, name, part))]
    if not parts:
        return
    engine = writer.engine(longest, new, batch)
    with _verifier(settings) as verifier:
        for part in parts:
            requests = [Request(p.ids, tuple(_address(settings, name, p, n) for n in left)) for p, left in part]
            rows = _rows(examinee, name, part, engine.generate(requests, sampling, advance))
            folder.add(_graded(list(rows), verifier))


def _lacking(folder: Folder, name: str, part: Part) -> Part:
    """Of a part, what the folder has no row of."""
    left = [(p, [n for n in samples if (name, p.problem.id, n) not in folder.rows]) for p, samples in part]
    return [(prompt, samples) for prompt, samples in left if samples]


def plan(prompts: Sequence[Prompt], samples: int, batch: int) -> list[Part]:
    """Parts of at most `batch` responses, prompts of like length together.

    Depends on nothing that was sampled before, so an evaluation that goes on decodes the same parts.
    """
    parts: list[Part] = []
    size = 0
    for prompt in sorted(prompts, key=lambda p: len(p.ids)):
        for first in range(0, samples, batch):
            piece = range(first, min(first + batch, samples))
            if not parts or size + len(piece) > batch:
                parts.append([])
                size = 0
            parts[-1].append((prompt, piece))
            size += len(piece)
    return parts


def _address(settings: ExamSettings, name: str, prompt: Prompt, sample: int) -> tuple[int | str, ...]:
    return settings.seed, "eval", Path(name).stem, prompt.problem.id, sample


def _rows(
    examinee: Examinee,
    name: str,
    part: Part,
    responses: Sequence[Sequence[Response]],
) -> Iterator[Row]:
    """A row per response, yet to be graded."""
    for (prompt, samples), answers in zip(part, responses):
        for sample, response in zip(samples, answers):
            text = examinee.tokenizer.decode(response.ids, skip_special_tokens=True)
            yield {
                "benchmark": name,
                "problem": prompt.problem.id,
                "sample": sample,
                "gold": prompt.problem.answer,
                "finished": response.finished,
                "tokens": len(response.ids),
                "text": text,
            }


def _graded(rows: Sequence[Row], verifier: Verifier) -> list[Row]:
    """The rows of one benchmark with `answer` and `correct`."""
    verdicts = verifier.grade_many((row["text"], row["gold"]) for row in rows)
    answers = [verifier.answer_of(row["text"]) for row in rows]
    return [row | {"answer": answer, "correct": verdict} for row, answer, verdict in zip(rows, answers, verdicts)]


def check_settings(settings: ExamSettings, say: Callable[[str], None] = lambda line: None) -> None:
    """Raises InputError before the model is loaded; published benchmarks are fetched for it. say: gets a line about
    each file of the user's own."""
    for name in ("chat_template", "template_args", "system"):
        if getattr(settings, name) and not settings.chat:
            raise InputError(f"--{name.replace('_', '-')}: belongs to a chat template; add --chat, or take it out")
    if len({benchmark_name(name) for name in settings.benchmarks}) < len(settings.benchmarks):
        raise InputError(f"--benchmark: {', '.join(settings.benchmarks)} names one twice")
    for name in settings.benchmarks:
        problems = load_benchmark(name, settings.limit, say)
        check_answers(settings.verify or MathSettings(), {p.id: p.answer for p in problems}, f"--benchmark {name}")


def _verifier(settings: ExamSettings) -> Verifier:
    return verifier_of(settings.verify or MathSettings())
