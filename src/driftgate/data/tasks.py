"""Locks: long chains of moves with one integer answer, where a single mistake makes the answer wrong.

A problem is the start of a lock with two wheels (numbered 0 to 9) and a labelled list of moves:

    47 a+38 b*37 c-21 ?

Each wheel moves by itself, so nothing is carried: `+38` turns the first wheel on by 3 and the second by 8,
`-21` turns them back by 2 and by 1, `*37` multiplies the first by 3 and the second by 7 (only the last digit
counts). The worked solution writes one move per line with its result, and boxes the final numbers:

    47a+38=75
    75b*37=15
    15c-21=94
    \\boxed{94}

Every move is one-to-one (the multipliers share no factor with 10), so a wrong wheel stays wrong to the
end, unless a second mistake happens to undo it. The four benchmarks need the same skills on lists of
increasing length. A checksum of its text decides whether a problem is held out or used for training. So
the two sets never overlap, however many problems are drawn.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

WHEELS = 2
LABELS = "abcdefghijklmnopqrstuvwxyz"
MULTIPLIERS = "379"  # coprime with 10: no mistake is lost
LEVELS = {"lock16": 16, "lock19": 19, "lock22": 22, "lock25": 25}  # name -> moves
BENCHMARKS: tuple[str, ...] = tuple(LEVELS)
HELD_OUT_ONE_IN = 8  # one problem in this many belongs to the benchmarks

_TURNS = {
    "+": lambda wheel, amount: (wheel + amount) % 10,
    "-": lambda wheel, amount: (wheel - amount) % 10,
    "*": lambda wheel, amount: (wheel * amount) % 10,
}

Move = tuple[str, str, str]  # label, sign, amount for each wheel: ("a", "+", "38")


@dataclass(frozen=True)
class LockProblem:
    """One problem, its integer answer, and the solution that a good model writes."""

    id: str
    problem: str
    answer: str
    solution: str
    source: str


def benchmark(name: str, count: int = 200) -> list[LockProblem]:
    """The first `count` held-out problems of one benchmark, always the same."""
    drawn = _drawn(random.Random(f"driftgate {name}"), LEVELS[name])
    kept = (lock for lock in drawn if is_held_out(_question(*lock)))
    return [_problem(f"{name}-{i:04d}", name, *next(kept)) for i in range(count)]


def training_problems(count: int, seed: int = 0) -> list[LockProblem]:
    """`count` training problems, the four lengths in turn."""
    return [problem for problem, _ in zip(endless_problems(seed), range(count), strict=False)]


def endless_problems(seed: int = 0, lengths: tuple[int, ...] = tuple(LEVELS.values())) -> Iterator[LockProblem]:
    """Training problems without end, the given lengths (in moves) in turn."""
    rng = random.Random(f"driftgate training {seed}")
    streams = [_drawn(rng, length) for length in lengths]
    index = 0
    while True:
        length = lengths[index % len(lengths)]
        start, moves = next(streams[index % len(lengths)])
        if is_held_out(_question(start, moves)):
            continue
        yield _problem(f"train-{seed}-{index:06d}", f"lock{length}", start, moves)
        index += 1


def is_held_out(question: str) -> bool:
    """Whether a problem with this text belongs to the benchmarks, and so never to training."""
    return zlib.crc32(question.encode()) % HELD_OUT_ONE_IN == 0


def _drawn(rng: random.Random, length: int) -> Iterator[tuple[str, list[Move]]]:
    """(setting, moves) without end, the moves labelled in alphabetical order.

    The benchmarks' locks begin with "a". Shorter ones, used in pretraining only, begin with any letter, so that the
    model knows every letter before the long locks come.
    """
    while True:
        first = 0 if length in LEVELS.values() else rng.randrange(len(LABELS) - length + 1)
        yield _digits(rng, "0123456789"), [_move(rng, label) for label in LABELS[first : first + length]]


def _move(rng: random.Random, label: str) -> Move:
    sign = rng.choice("++--*")
    return label, sign, _digits(rng, MULTIPLIERS if sign == "*" else "0123456789")


def _digits(rng: random.Random, choices: str) -> str:
    return "".join(rng.choice(choices) for _ in range(WHEELS))


def _turned(setting: str, sign: str, amounts: str) -> str:
    """The wheels after one move."""
    turn = _TURNS[sign]
    return "".join(str(turn(int(wheel), int(amount))) for wheel, amount in zip(setting, amounts, strict=True))


def _question(start: str, moves: list[Move]) -> str:
    """The text of the problem. The solution begins after the "?"."""
    return f"{start} {' '.join(map(''.join, moves))} ?"


def _problem(identity: str, source: str, start: str, moves: list[Move]) -> LockProblem:
    setting, lines = start, []
    for label, sign, amounts in moves:
        after = _turned(setting, sign, amounts)
        lines.append(f"{setting}{label}{sign}{amounts}={after}\n")
        setting = after
    answer = str(int(setting))
    return LockProblem(identity, _question(start, moves), answer, f"{''.join(lines)}\\boxed{{{answer}}}", source)
