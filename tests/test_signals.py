"""Every signal against a loop twin, and that it reads, and depends on, no more than it says."""

import math
from collections.abc import Mapping
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import rows_of

from driftgate.method.signals import READABLE, SIGNALS, Streams
from driftgate.objectives.reward import RewardSettings

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)
SEEDS = st.integers(0, 10**6)
QUICK = settings(max_examples=30, deadline=None)
V, K = 12, 4
LARGEST = 700.0
SHIPPED = [name for name, signal in SIGNALS.items() if signal.compute.__module__ == "driftgate.method.signals"]
getcontext().prec = 60


def streams_of(lengths, seed, extreme=0.1, **values):
    """Streams of sequences with scores of real distributions; some tokens all but impossible to one of the models."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rows, count, batch = rows_of(lengths), sum(lengths), len(lengths)
    current, student, teacher = (normal(count, V).mul(2).log_softmax(1) for _ in range(3))
    student_top, teacher_top = student.topk(K), teacher.topk(K)
    logps = [side[:, :1].squeeze(1) for side in (current, student, teacher)]
    rare = torch.rand(3, count, generator=generator) < extreme
    logps = [torch.where(out, -1e4, side) for out, side in zip(rare, logps)]
    known = {
        "logp": logps[0],
        "behaviour_logp": logps[1],
        "teacher_logp": logps[2],
        "behaviour_entropy": -(student.exp() * student).sum(1),
        "teacher_entropy": -(teacher.exp() * teacher).sum(1),
        "student_top_ids": student_top.indices.int(),
        "student_top_logp": student_top.values,
        "teacher_top_ids": teacher_top.indices,
        "teacher_top_logp": teacher_top.values,
        "teacher_at_student": teacher.gather(1, student_top.indices),
        "correct": torch.randint(2, (batch,), generator=generator).double()[rows],
        "group": torch.randint(3, (batch,), generator=generator).sort().values[rows],
    }
    place = torch.cat([torch.arange(length) for length in lengths]) if lengths else rows
    return Streams(rows * 3 + 5, rows, place, seed % 7, known | values)


def alone(streams, row):
    """What is known of one sequence."""
    here = streams.rows == row
    values = {name: value[here] for name, value in streams.values.items()}
    return Streams(streams.sequences[here], torch.zeros_like(streams.rows[here]), streams.place[here], 0, values)


class Recording(Mapping):
    """A mapping that knows what was asked of it."""

    def __init__(self, values):
        self.values_, self.asked = values, set()

    def __getitem__(self, name):
        self.asked.add(name)
        return self.values_[name]

    def __iter__(self):
        raise AssertionError("a signal asks for streams by name")

    def __len__(self):
        raise AssertionError("a signal asks for streams by name")


def power(x):
    return math.exp(x) if x < LARGEST else math.inf


def slow_drift_kl(t):
    """r log r - r + 1 in 60 digits."""
    d = Decimal(t["logp"]) - Decimal(t["behaviour_logp"])
    return float(d.exp() * d - d.exp() + 1) if d < LARGEST else math.inf


def slow_divergence(t):
    """KL(o || q) of the student's K tokens and one class for the rest."""
    p, q = ([math.exp(x) for x in t[name]] for name in ("student_top_logp", "teacher_at_student"))
    p, q = [*p, 1 - math.fsum(p)], [*q, 1 - math.fsum(q)]
    return math.fsum(a * math.log(a / b) for a, b in zip(p, q))


def slow_soft_or(tokens):
    scaled = []
    for part in ([t["behaviour_entropy"] for t in tokens], [slow_divergence(t) for t in tokens]):
        low, high = min(part), max(part)
        scaled.append([(x - low) / (high - low) if high > low else 0.0 for x in part])
    return [a + b - a * b for a, b in zip(*scaled)]


def slow_sure_teacher(tokens):
    teacher, student = max(t["teacher_entropy"] for t in tokens), max(t["behaviour_entropy"] for t in tokens)
    return [(1 + 1 - t["teacher_entropy"] / teacher) * (1 + t["behaviour_entropy"] / student) for t in tokens]


def slow_by_perplexity(tokens, name, correct, sign):
    """Each chosen answer's perplexity to the power `sign`, over the mean of its prompt's chosen answers."""
    answers = {}
    for t in tokens:
        answers.setdefault(t["row"], []).append(t)
    power_of = {row: math.exp(-sign * math.fsum(t[name] for t in part) / len(part)) for row, part in answers.items()}
    found = []
    for t in tokens:
        rivals = [
            power_of[row]
            for row, part in answers.items()
            if part[0]["group"] == t["group"] and part[0]["correct"] == correct
        ]
        chosen = t["correct"] == correct
        found.append(power_of[t["row"]] * len(rivals) / math.fsum(rivals) if chosen else 0.0)
    return found


def lengths_of(tokens):
    rows = [t["row"] for t in tokens]
    return [rows.count(row) for row in rows]


def each(function):
    return lambda tokens: [function(t) for t in tokens]


def slow_log_mean_gap(t):
    """The square root of (q - o) / (log q - log o), times |log q - log o|, in 60 digits."""
    q, o = Decimal(t["teacher_logp"]), Decimal(t["behaviour_logp"])
    return float(((q.exp() - o.exp()) / (q - o)).sqrt() * abs(q - o)) if q != o else 0.0


def slow_signal_to_noise(t):
    """Of a categorical distribution's sampled gradient (rho - b)(1[v] - o) in the metric diag(1 / o): its squared mean
    over its variance, summed entry by entry."""
    log_o, log_q = list(t["student_top_logp"]), list(t["teacher_at_student"])
    if t["behaviour_logp"] < min(log_o):
        log_o, log_q = [*log_o, t["behaviour_logp"]], [*log_q, t["teacher_logp"]]
    rho = [a - b for a, b in zip(log_o, log_q)]
    o = [power(a) / math.fsum(map(power, log_o)) for a in log_o]
    length = [1 / x - 1 if x else 0.0 for x in o]
    pull = [1 - x for x in o]
    b = math.fsum(c * r for c, r in zip(pull, rho)) / math.fsum(pull)
    mean = math.fsum(x * r for x, r in zip(o, rho))
    signal = math.fsum(x * (r - mean) ** 2 for x, r in zip(o, rho))
    whole = math.fsum((x * n if x else 1.0) * (r - b) ** 2 for x, n, r in zip(o, length, rho))
    return signal / max(whole - signal, 2**-52)


TWINS = {
    "drift": each(lambda t: t["logp"] - t["behaviour_logp"]),
    "staleness": each(lambda t: t["behaviour_logp"] - t["logp"]),
    "ratio": each(lambda t: power(t["logp"] - t["behaviour_logp"])),
    "drift_kl": each(slow_drift_kl),
    "gap": each(lambda t: t["teacher_logp"] - t["behaviour_logp"]),
    "current_gap": each(lambda t: t["teacher_logp"] - t["logp"]),
    "gap_size": each(lambda t: abs(t["teacher_logp"] - t["behaviour_logp"])),
    "teacher_ratio": each(lambda t: power(t["teacher_logp"] - t["logp"])),
    "surprisal": each(lambda t: -t["behaviour_logp"]),
    "log_mean_gap": each(slow_log_mean_gap),
    "teacher_logp": each(lambda t: t["teacher_logp"]),
    "student_entropy": each(lambda t: t["behaviour_entropy"]),
    "teacher_entropy": each(lambda t: t["teacher_entropy"]),
    "teacher_margin": each(lambda t: t["teacher_top_logp"][0] - t["teacher_top_logp"][1]),
    "overlap": each(lambda t: sum(v in t["student_top_ids"] for v in t["teacher_top_ids"]) / K),
    "divergence": each(slow_divergence),
    "signal_to_noise": each(slow_signal_to_noise),
    "position": each(lambda t: t["place"]),
    "relative_position": lambda tokens: [(t["place"] + 0.5) / length for t, length in zip(tokens, lengths_of(tokens))],
    "age": each(lambda t: t["age"]),
    "freshness": each(lambda t: 1 / (1 + t["age"])),
    "one": each(lambda t: 1.0),
    "correct": each(lambda t: t["correct"]),
    "agreement": each(lambda t: float((t["correct"] == 1) == (t["teacher_logp"] > t["logp"]))),
    "soft_or": slow_soft_or,
    "sure_teacher_unsure_student": slow_sure_teacher,
    "wrong_by_teacher": lambda tokens: slow_by_perplexity(tokens, "teacher_logp", 0, -1),
    "right_by_student": lambda tokens: slow_by_perplexity(tokens, "behaviour_logp", 1, 1),
}


def tokens_of(streams):
    """The streams token by token."""
    lists = {name: value.tolist() for name, value in streams.values.items()}
    lists |= {"row": streams.rows.tolist(), "place": streams.place.tolist()}
    return [{name: part[i] for name, part in lists.items()} | {"age": streams.age} for i in range(len(streams.rows))]


def compute(name, streams):
    return SIGNALS[name].compute(streams)


def test_every_signal_has_a_twin_and_a_meaning():
    assert list(TWINS) == SHIPPED
    assert all(SIGNALS[name].meaning for name in SHIPPED)


def test_every_stream_is_read_by_some_signal_or_by_the_reward():
    read = {stream for name in SHIPPED for stream in SIGNALS[name].reads}
    assert read | RewardSettings(scale="std").reads_batch == READABLE.keys()


@pytest.mark.parametrize("name", TWINS)
@settings(max_examples=12, deadline=None)
@given(LENGTHS, SEEDS)
def test_signals_equal_their_twins(name, lengths, seed):
    # A perplexity of e^10000 is no number to the twin.
    streams = streams_of(lengths, seed, extreme=0.0 if SIGNALS[name].whole else 0.2)
    ours, theirs = compute(name, streams), TWINS[name](tokens_of(streams))
    assert ours.shape == streams.rows.shape
    torch.testing.assert_close(ours.double(), torch.tensor(theirs, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    if ours.dtype == torch.float64:
        torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", SHIPPED)
def test_signals_widen_what_is_scored_in_low_precision(name):
    streams = streams_of([5, 1, 9, 4], 3, extreme=0.0)
    low = {n: v.bfloat16() if v.is_floating_point() else v for n, v in streams.values.items()}
    wide = {n: v.float() if v.is_floating_point() else v for n, v in low.items()}
    ours, theirs = (
        compute(name, Streams(streams.sequences, streams.rows, streams.place, 2, values)) for values in (low, wide)
    )
    assert ours.dtype == torch.float32
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_signal_touches_exactly_the_streams_that_it_declares(name):
    streams = streams_of([5, 1, 9, 4], 1)
    values = Recording(streams.values)
    compute(name, Streams(streams.sequences, streams.rows, streams.place, 2, values))
    assert values.asked == set(SIGNALS[name].reads)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_signal_is_live_if_it_moves_with_the_current_student(name):
    streams = streams_of([5, 1, 9, 4], 1, extreme=0.0)
    moved = streams_of([5, 1, 9, 4], 1, extreme=0.0, logp=streams["logp"] - 3)
    assert torch.equal(compute(name, streams), compute(name, moved)) != ("logp" in SIGNALS[name].reads)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_signal_looks_at_other_sequences_only_if_it_says_so(name):
    streams = streams_of([5, 1, 9, 4, 1, 7, 2, 6], 4 * 7, extreme=0.0)
    whole = compute(name, streams)
    parts = torch.cat([compute(name, alone(streams, row)) for row in range(8)])
    assert torch.allclose(whole, parts, rtol=1e-12, atol=0) != SIGNALS[name].whole


@pytest.mark.parametrize("name", SHIPPED)
def test_of_no_token_there_is_no_signal(name):
    empty = streams_of([], 0)
    assert compute(name, empty).shape == (0,)
    assert compute(name, empty).is_floating_point()


@pytest.mark.parametrize("name", SHIPPED)
def test_impossible_tokens_give_no_nan(name):
    streams = streams_of([40, 1, 30], 5, extreme=0.4)
    low = {n: v.float() if v.is_floating_point() else v for n, v in streams.values.items()}
    for values in (streams.values, low):
        assert not compute(name, Streams(streams.sequences, streams.rows, streams.place, 2, values)).isnan().any()


@QUICK
@given(st.floats(-12, 1), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_the_drift_kl_is_right_for_small_drifts_and_never_negative(power_of_ten, down, dtype):
    base = torch.tensor([-1.0, -0.01, -30.0, -1e-6], dtype=dtype)
    logp = base + torch.tensor(10**power_of_ten, dtype=dtype) * (-1 if down else 1)
    streams = streams_of([4], 0, logp=logp, behaviour_logp=base)
    ours, theirs = compute("drift_kl", streams), [slow_drift_kl(t) for t in tokens_of(streams)]
    assert (ours >= 0).all()
    limit = torch.tensor(theirs, dtype=torch.float64).to(dtype)
    torch.testing.assert_close(ours, limit, rtol=2e-6 if dtype == torch.float32 else 1e-9, atol=1e-20)


def test_answers_without_a_rival_weigh_1_and_those_of_the_other_verdict_0():
    correct = torch.tensor([1.0, 0.0, 0.0])[rows_of([2, 3, 1])]
    streams = streams_of([2, 3, 1], 1, 0.0, correct=correct, group=torch.tensor([0, 0, 1])[rows_of([2, 3, 1])])
    assert compute("right_by_student", streams).tolist() == [1, 1, 0, 0, 0, 0]
    assert compute("wrong_by_teacher", streams).tolist() == [0, 0, 1, 1, 1, 1]


def test_the_softer_answer_of_a_prompt_weighs_more():
    rows = rows_of([2, 2])
    logp = torch.tensor([-1.0, -2.0, -3.0, -2.0])
    known = {"teacher_logp": logp, "behaviour_logp": logp, "group": rows * 0}
    wrong = compute("wrong_by_teacher", streams_of([2, 2], 0, 0.0, correct=rows * 0.0, **known))
    torch.testing.assert_close(wrong, 2 * torch.tensor([-1.5, -2.5]).softmax(0)[rows])
    right = compute("right_by_student", streams_of([2, 2], 0, 0.0, correct=rows * 0.0 + 1, **known))
    torch.testing.assert_close(right, 2 * torch.tensor([1.5, 2.5]).softmax(0)[rows])


def test_where_all_are_equal_a_scale_is_0():
    streams = streams_of([3], 0, 0.0, behaviour_entropy=torch.zeros(3), teacher_entropy=torch.zeros(3))
    assert compute("sure_teacher_unsure_student", streams).tolist() == [2, 2, 2]
    one = alone(streams_of([1, 4], 0, 0.0), 0)
    assert compute("soft_or", one).tolist() == [0]
