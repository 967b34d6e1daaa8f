"""Locks: long chains with one integer answer, where a single slip spoils the end.

A problem is the setting of a lock with two wheels (numbered 0 to 9) and a labelled list of moves:

    47 a+38 b*37 c-21 ?

Each wheel moves by itself, so nothing is carried: `+38` turns the first wheel 3 on and the second 8 on,
`-21` turns them back by 2 and by 1, `*37` takes the first to three times its number and the second to
seven times (last digits count). The worked solution copies one move a line, makes it, and boxes where
the wheels end:

    47a+38=75
    75b*37=15
    15c-21=94
    \\boxed{94}

Every move is one-to-one (the multipliers share no factor with 10), so a wrong wheel stays wrong to the
end unless a second slip happens to undo it. The four benchmarks ask for the same skills over ever longer
lists. A problem is held out or open to training by a checksum of its text, so the two can never meet,
however many are drawn.
"""

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

WHEELS = 2
LABELS = "abcdefghijklmnopqrstuvwxyz"
MULTIPLIERS = "379"  # coprime with 10: no slip is forgotten
LEVELS = {"lock16": 16, "lock19": 19, "lock22": 22, "lock25": 25}  # name -> moves
BENCHMARKS: tuple[str, ...] = tuple(LEVELS)
HELD_OUT_SHARE = 8  # one problem text in this many belongs to the benchmarks

_TURNS = {
    "+": lambda wheel, amount: (wheel + amount) % 10,
    "-": lambda wheel, amount: (wheel - amount) % 10,
    "*": lambda wheel, amount: (wheel * amount) % 10,
}

Move = tuple[str, str, str]  # label, sign, amount for each wheel: ("a", "+", "38")


@dataclass(frozen=True)
class LockProblem:
    """One question, its integer answer, and the solution a good model writes."""

    id: str
    problem: str
    answer: str
    solution: str
    source: str


def benchmark(name: str, count: int = 200) -> list[LockProblem]:
    """The first `count` held-out problems of one benchmark: always the same ones."""
    drawn = _drawn(random.Random(f"driftgate {name}"), LEVELS[name])
    kept = (lock for lock in drawn if is_held_out(_question(*lock)))
    return [_problem(f"{name}-{i:04d}", name, *next(kept)) for i in range(count)]


def training_problems(count: int, seed: int = 0) -> list[LockProblem]:
    """`count` problems open to training, the four lengths in turn."""
    return [problem for problem, _ in zip(training_stream(seed), range(count), strict=False)]


def training_stream(seed: int = 0, lengths: tuple[int, ...] = tuple(LEVELS.values())) -> Iterator[LockProblem]:
    """Endless problems open to training, the given lengths (in moves) in turn."""
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
    """Whether this text belongs to the benchmarks (and so never to training)."""
    return zlib.crc32(question.encode()) % HELD_OUT_SHARE == 0


def _drawn(rng: random.Random, length: int) -> Iterator[tuple[str, list[Move]]]:
    """Endless (setting, moves), labelled in alphabetical order.

    The benchmarks' locks begin with "a". Shorter ones, which only pretraining meets, begin anywhere: so every letter
    is known before the long ones come.
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
    """Where the wheels stand after one move."""
    turn = _TURNS[sign]
    return "".join(str(turn(int(wheel), int(amount))) for wheel, amount in zip(setting, amounts, strict=True))


def _question(start: str, moves: list[Move]) -> str:
    """The text of the problem; the closing "?" is where the solution begins."""
    return f"{start} {' '.join(map(''.join, moves))} ?"


def _problem(identity: str, source: str, start: str, moves: list[Move]) -> LockProblem:
    setting, lines = start, []
    for label, sign, amounts in moves:
        after = _turned(setting, sign, amounts)
        lines.append(f"{setting}{label}{sign}{amounts}={after}\n")
        setting = after
    answer = str(int(setting))
    return LockProblem(identity, _question(start, moves), answer, f"{''.join(lines)}\\boxed{{{answer}}}", source)
