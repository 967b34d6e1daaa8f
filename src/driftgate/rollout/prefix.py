"""Responses whose first tokens the teacher writes and whose rest the student writes."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..data.response import Response
from .engine import Engine, Request, Sampling


def generate_with_prefix(
    student: Engine,
    teacher: Engine | None,
    requests: Sequence[Request],
    sampling: Sampling,
    tokens: int,
    advance: Callable[[int], None] | None = None,
) -> list[list[Response]]:
    """The teacher writes the first `tokens` tokens of each response, the student the rest. The limit holds for both.

    The teacher draws without a budget, with the random key + ("prefix",). The student draws with the key itself. So the
    draws of one do not depend on how many the other made. Where the teacher stops, the response is finished and is all
    prefix. teacher: None only where it has nothing to write. Returns responses as `Engine.generate` does;
    `Response.prefix` counts the teacher's tokens.
    """
    if tokens <= 0:
        return student.generate(requests, sampling, advance)
    assert teacher is not None
    length = min(tokens, sampling.max_new_tokens)
    begun = _begin(teacher, requests, replace(sampling, max_new_tokens=length, budget=None))
    left = sampling.max_new_tokens - length
    pending = [
        _continued(request, key, start.ids)
        for request, starts in zip(requests, begun)
        for key, start in zip(request.keys, starts)
        if left and not start.finished
    ]
    ended = iter([sum(len(starts) for starts in begun) - len(pending)])

    def advanced(count: int) -> None:
        if advance is not None:
            advance(count + next(ended, 0))

    rest = iter(student.generate(pending, replace(sampling, max_new_tokens=left), advanced) if pending else [])
    return [[_joined(s, None if s.finished or not left else next(rest)[0]) for s in starts] for starts in begun]


def _begin(teacher: Engine, requests: Sequence[Request], sampling: Sampling) -> list[list[Response]]:
    """The teacher's prefixes, from its own prompts."""
    apart = [Request(r.for_teacher, tuple((*key, "prefix") for key in r.keys)) for r in requests]
    return teacher.generate(apart, sampling)


def _continued(request: Request, key: tuple[int | str, ...], ids: tuple[int, ...]) -> Request:
    """The student's request: prompt + prefix, for one response."""
    shown = None if request.teacher_prompt is None else request.teacher_prompt + ids
    return Request(request.prompt + ids, (key,), shown)


def _joined(start: Response, rest: Response | None) -> Response:
    """Both parts as one response; `rest` is None where the student wrote nothing."""
    if rest is None:
        return replace(start, prefix=len(start.ids))
    both = {"ids": start.ids + rest.ids, "logprobs": start.logprobs + rest.logprobs}
    return replace(rest, **both, prefix=len(start.ids))
