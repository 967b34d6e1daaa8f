"""CPU-seconds of parts of a program: of a block of code, of a function's calls, of functions found by their place."""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

Place = tuple[Any, str]
"""A module or a class, and the name of its function."""


@contextmanager
def clocked(seconds: list[float]) -> Iterator[None]:
    """Append the CPU-seconds of the block, also if it fails."""
    began = time.process_time()
    try:
        yield
    finally:
        seconds.append(time.process_time() - began)


def clocked_function(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The function. Each call appends its CPU-seconds."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        with clocked(seconds):
            return function(*arguments, **named)

    return call


@contextmanager
def wrapped(
    places: Mapping[str, Place], wrap: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """Within the block every place holds wrap(label, its function). places: by label."""
    before = {label: getattr(*place) for label, place in places.items()}
    try:
        for label, (owner, name) in places.items():
            setattr(owner, name, wrap(label, before[label]))
        yield
    finally:
        for label, (owner, name) in places.items():
            setattr(owner, name, before[label])


@contextmanager
def clocked_places(places: Mapping[str, Place]) -> Iterator[dict[str, list[float]]]:
    """CPU-seconds of every call within the block, by label."""
    seconds: dict[str, list[float]] = {label: [] for label in places}
    with wrapped(places, lambda label, function: clocked_function(function, seconds[label])):
        yield seconds
