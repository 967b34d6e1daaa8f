"""The problems of a run: loaded and checked; what is held out or left out; what is said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..config import TrainConfig
from ..data.held_out import files_of, is_held_out
from ..data.problems import Problem, load_problems
from ..data.prompts import Prompt
from ..errors import InputError
from ..verify.choose import check_answers
from .checks import check_problems
from .routing import check_routes, encoded


@dataclass(frozen=True)
class RunProblems:
    """The problems as they were read, whatever their length."""

    training: list[Problem]
    held_out: list[Problem]
    said: list[str]
    """A line about each source, for the terminal."""


def problems_of(config: TrainConfig) -> RunProblems:
    """The problems that the settings name. Raises InputError for one that lacks what the settings need of it."""
    said: list[str] = []
    problems = load_problems(config.prompts, bool(config.teachers), said.append)
    check_problems(problems, config)
    check_routes(problems, config)
    for name in config.prompts.sources:
        answers = {problem.id: problem.answer for problem in problems if (problem.source or "") == name}
        check_answers(config.prompts.verify_of(name), answers, config.prompts.place)
    share = config.prompts.held_out
    held_out = [problem for problem in problems if is_held_out(problem, share)]
    _check_held_out(share, held_out, len(problems))
    return RunProblems([problem for problem in problems if not is_held_out(problem, share)], held_out, said)


def _check_held_out(share: float, held_out: Sequence[Problem], count: int) -> None:
    if share and not files_of(held_out):
        found = f"{len(held_out)} of {count} problems are held out"
        raise InputError(
            f"prompts.held_out = {share}: {found}, none with an answer to examine by; raise it, add answers, or set it "
            f"to 0"
        )


@dataclass(frozen=True)
class RunPrompts:
    """What a run is made of, its problems as token ids."""

    training: list[Prompt]
    held_out: list[Problem]
    """Those that fit, never trained on."""
    said: list[str]
    """What the terminal is told of all problems, line by line."""


def prompts_of(problems: RunProblems, config: TrainConfig, *shown: Any) -> RunPrompts:
    """The problems that fit. shown: what `encoded` takes behind the settings. Raises InputError as it does, and where
    too little is left."""
    training, held_out = (encoded(part, config, *shown) for part in (problems.training, problems.held_out))
    _check_left(config, problems, training)
    said = [*problems.said, *_summary(problems, training, held_out)]
    return RunPrompts(training, [prompt.problem for prompt in held_out], said)


def _check_left(config: TrainConfig, problems: RunProblems, prompts: Sequence[Prompt]) -> None:
    """Every source and every teacher still has a prompt. prompts: that are trained on. Raises InputError."""
    names = {f"{config.prompts.setting_of(name)}.path": name or None for name in config.prompts.sources}
    sources, teachers = ({getattr(prompt.problem, name) for prompt in prompts} for name in ("source", "teacher"))
    lacking = [setting for setting, name in names.items() if name not in sources]
    lacking += [f"teachers.{name}" for name in sorted(config.teachers) if name not in teachers]
    if lacking:
        raise InputError(
            f"{lacking[0]}: none of its problems is left to train on; of all, {len(problems.held_out)} are held out, "
            f"{len(problems.training) - len(prompts)} are too long; lower prompts.held_out, or raise prompts.max_tokens"
        )


def _summary(problems: RunProblems, prompts: Sequence[Prompt], held_out: Sequence[Prompt]) -> list[str]:
    """A line about what is left out or held out; none where everything is trained on. held_out: those that fit."""
    left_out = len(problems.training) + len(problems.held_out) - len(prompts) - len(held_out)
    files = files_of([prompt.problem for prompt in held_out])
    parts = [f"{left_out:,} too long, left out"] if left_out else []
    parts += [f"{len(part):,} held out in {name}" for name, part in files.items()]
    if lacking := len(held_out) - sum(map(len, files.values())):
        parts.append(f"{lacking:,} held out without an answer")
    return [f"prompts: {len(prompts):,} to train on; {'; '.join(parts)}"] if parts else []
