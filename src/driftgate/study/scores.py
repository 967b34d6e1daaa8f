"""What the models of an arm answered, one model a training seed, and its value on each problem."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..evaluate.passk import pass_at_k
from ..settings import differing, flat


@dataclass(frozen=True)
class ScoreTable:
    """The graded answers of one arm. Every seed has the same problems and, in a benchmark, as many samples of each."""

    name: str
    """What messages call it: its folders."""
    problems: Mapping[str, tuple[str, ...]]
    """benchmark -> ids, in the order of `correct`."""
    correct: Mapping[str, np.ndarray]
    """benchmark -> bool [seeds, problems, samples]."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """How the answers were sampled and what the benchmarks held, where the folder says so."""

    @property
    def seeds(self) -> int:
        return len(next(iter(self.correct.values())))


def read_scores(folders: Sequence[Path]) -> ScoreTable:
    """One arm from its evaluation folders (or run folders with `eval/` in them), one a training seed.

    Raises InputError, naming the folder, for a file that is missing, broken or unfinished, for a folder given
    twice, and where folders differ in benchmarks, problems or samples.
    """
    if not folders:
        raise InputError("no evaluation folder given: give one for each training seed")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"{', '.join(map(str, folders))}: a folder is given twice; give one for each training seed")
    parts = [_read_folder(folder) for folder in folders]
    for part in parts[1:]:
        require_same_problems(part, parts[0])
    correct = {name: np.concatenate([part.correct[name] for part in parts]) for name in parts[0].problems}
    return ScoreTable(", ".join(map(str, folders)), parts[0].problems, correct, parts[0].asked)


def require_same_problems(scores: ScoreTable, other: ScoreTable) -> None:
    """Raises InputError where the two were not asked the same problems equally often and in the same way."""
    for name in differing(scores.asked, other.asked) if scores.asked and other.asked else []:
        raise InputError(
            f"{scores.name}: {name} = {scores.asked.get(name)}, but {other.asked.get(name)} in {other.name}; "
            "evaluate both in the same way"
        )
    if set(scores.problems) != set(other.problems):
        names = sorted(set(scores.problems) ^ set(other.problems))
        raise InputError(f"{scores.name}: benchmarks differ from {other.name} ({', '.join(names)}); {_SAME}")
    for name in scores.problems:
        odd = set(scores.problems[name]) ^ set(other.problems[name])
        if odd:
            raise InputError(
                f"{scores.name}: {len(odd)} problems of {name} are not in both it and {other.name} "
                f"(one is {min(odd)}); {_SAME}"
            )
        if scores.problems[name] != other.problems[name]:  # rows are paired by place
            raise InputError(f"{scores.name}: problems of {name} in another order than in {other.name}; sort both")
        samples, others = scores.correct[name].shape[2], other.correct[name].shape[2]
        if samples != others:
            raise InputError(f"{scores.name}: {samples} samples a problem of {name}, {others} in {other.name}; {_SAME}")


_SAMPLED = ("temperature", "top_p", "max_new_tokens")
"""Settings without which two evaluations are no comparison."""
_SAME = "evaluate both on the same benchmarks, with the same --limit and --samples"


def values_of(scores: ScoreTable, measure: str) -> dict[str, np.ndarray]:
    """benchmark -> float64 [seeds, problems]: the unbiased value of pass@k from one seed's samples of one problem.

    `measure` is "pass@k", or "avg@n" for the mean over all n samples, which is pass@1. Raises InputError for
    another measure and for more samples than there are.
    """
    values = {}
    for name, correct in scores.correct.items():
        samples = correct.shape[2]
        k = samples_needed(measure, samples, f"{scores.name}, {name}")
        table = np.array([pass_at_k(c, samples, k) for c in range(samples + 1)])
        values[name] = table[correct.sum(axis=2)]
    return values


def samples_needed(measure: str, samples: int, where: str) -> int:
    """The k of the pass@k that `measure` stands for."""
    kind, _, number = measure.partition("@")
    if kind == "avg" and number in ("n", str(samples)):
        return 1
    if kind != "pass" or not number.isdecimal() or int(number) < 1:
        raise InputError(f"--measure {measure}: give pass@k, such as pass@1, or avg@n; {where} has n={samples}")
    if int(number) > samples:
        raise InputError(f"--measure {measure}: {where} has {samples} samples a problem; give k of at most {samples}")
    return int(number)


def _read_folder(folder: Path) -> ScoreTable:
    path = next((p for p in (folder / "samples.jsonl", folder / "eval" / "samples.jsonl") if p.is_file()), None)
    if path is None:
        raise InputError(f"{folder}: has no samples.jsonl, nor eval/samples.jsonl; write one with `driftgate eval`")
    answers = _read_answers(path)
    problems = {name: tuple(sorted(part)) for name, part in answers.items()}
    correct = {name: _as_array(part, problems[name], f"{path}, {name}") for name, part in answers.items()}
    return ScoreTable(str(folder), problems, correct, _read_asked(path.parent))


def _read_asked(folder: Path) -> dict[str, Any]:
    """Of eval.json, by dotted name; empty where there is none. Raises InputError where the evaluation has not ended."""
    path = folder / "eval.json"
    if not path.is_file():
        return {}
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder}: the evaluation has not ended; give `driftgate eval` the same command to go on")
    asked = json.loads(path.read_text())
    return flat({"benchmarks": asked["benchmarks"], **{name: asked["settings"].get(name) for name in _SAMPLED}})


def _read_answers(path: Path) -> dict[str, dict[str, dict[int, bool]]]:
    """benchmark -> problem -> sample -> whether it is right."""
    answers: dict[str, dict[str, dict[int, bool]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            benchmark, problem, sample, correct = (row[key] for key in ("benchmark", "problem", "sample", "correct"))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: not a graded sample; evaluate again") from None
        part = answers.setdefault(benchmark, {}).setdefault(str(problem), {})
        if not isinstance(correct, bool) or sample in part:
            raise InputError(f"{path}, line {number}: not graded, or a sample that was there before; evaluate again")
        part[sample] = correct
    if not answers:
        raise InputError(f"{path}: is empty; evaluate again")
    return answers


def _as_array(part: dict[str, dict[int, bool]], problems: tuple[str, ...], where: str) -> np.ndarray:
    """bool [1, problems, samples]. Raises InputError where a problem has fewer samples than another."""
    samples = max(len(answers) for answers in part.values())
    for problem in problems:
        if set(part[problem]) != set(range(samples)):
            raise InputError(
                f"{where}: problem {problem} has {len(part[problem])} of {samples} samples; evaluate again"
            )
    if len(problems) < 2:
        raise InputError(f"{where}: one problem alone has no spread to judge by; evaluate at least 2")
    return np.array([[[part[problem][n] for n in range(samples)] for problem in problems]])
