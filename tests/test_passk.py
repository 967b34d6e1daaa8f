"""pass@k against its definition, and the interval against exact and simulated coverage."""

import json
from collections import Counter
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from driftgate.errors import InputError
from driftgate.evaluate.majority import majority_at
from driftgate.evaluate.measures import majority_sizes, measures, shown
from driftgate.evaluate.passk import bootstrap_interval, estimates, pass_at_k, summarise


def slow_pass_at_k(correct, samples, k):
    """By definition: the share of all k-subsets of the samples that hold a correct one."""
    drawn = list(combinations([True] * correct + [False] * (samples - correct), k))
    return sum(any(subset) for subset in drawn) / len(drawn)


@pytest.mark.parametrize("samples", range(1, 9))
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_sample(samples):
    for correct in range(samples + 1):
        for k in range(1, samples + 1):
            assert pass_at_k(correct, samples, k) == slow_pass_at_k(correct, samples, k)


def test_pass_at_1_is_the_share_of_correct_samples():
    assert all(pass_at_k(c, 37, 1) == c / 37 for c in range(38))


def test_pass_at_k_keeps_its_digits_for_many_samples():
    assert pass_at_k(1, 10**7, 1) == 1e-7
    assert pass_at_k(1, 10_000, 5_000) == 0.5
    assert 1 - 1e-12 < pass_at_k(9_000, 10_000, 100) <= 1


def test_pass_at_k_is_unbiased():
    p, samples, k = 0.3, 10, 4
    expected = sum(
        comb(samples, c) * p**c * (1 - p) ** (samples - c) * pass_at_k(c, samples, k) for c in range(samples + 1)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize("bad", [(-1, 8, 1), (9, 8, 1), (0, 8, 0), (0, 8, 9), (0, 0, 1)])
def test_impossible_counts_are_refused(bad):
    with pytest.raises(InputError):
        pass_at_k(*bad)


def shares(correct, problems):
    return [1.0] * correct + [0.0] * (problems - correct)


def test_one_benchmark_of_zeros_and_ones_gets_the_interval_of_jeffreys():
    # quantiles 0.025 and 0.975 of Beta(6.5, 24.5)
    low, high = bootstrap_interval({"aime": shares(6, 30)}, draws=100_000)
    assert (low, high) == pytest.approx((0.08807, 0.36661), abs=0.002)


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_equal_values_do_not_give_zero_width(value):
    low, high = bootstrap_interval({"aime": [value] * 30})
    assert 0 <= low <= value <= high <= 1
    assert 0.03 < high - low < 0.12


def test_the_interval_covers_as_often_as_it_says_on_thirty_problems():
    # exact: every count of correct problems, weighted with its binomial chance
    intervals = [bootstrap_interval({"aime": shares(c, 30)}, draws=4_000) for c in range(31)]
    covered = []
    for p in np.linspace(0.01, 0.99, 99):
        chances = [comb(30, c) * p**c * (1 - p) ** (30 - c) for c in range(31)]
        covered.append(
            sum(chance for chance, (low, high) in zip(chances, intervals) if low <= p <= high),
        )
    assert 0.94 < np.mean(covered) < 0.97
    assert min(covered) > 0.87


def test_the_interval_of_the_mean_of_benchmarks_covers_as_often_as_it_says():
    # 8 samples a problem, problems of uneven difficulty, benchmarks of uneven size
    rng = np.random.default_rng(0)
    easy = {"math500": (0.8, 100), "aime24": (0.1, 30), "aime25": (0.2, 30), "amc23": (0.6, 40)}
    truth = np.mean([p for p, _ in easy.values()])
    hits = []
    for trial in range(300):
        values = {b: rng.binomial(8, rng.beta(p, 1 - p, n)) / 8 for b, (p, n) in easy.items()}
        low, high = bootstrap_interval(values, draws=400, seed=trial)
        hits.append(low <= truth <= high)
    assert 0.91 < np.mean(hits) < 0.985


def test_the_mean_of_benchmarks_weighs_them_equally():
    low, high = bootstrap_interval({"large": shares(400, 400), "small": shares(0, 400)})
    assert low < 0.5 < high
    assert high - low < 0.02


def test_differences_have_bounds_of_their_own():
    low, high = bootstrap_interval({"aime": [0.0] * 27 + [1.0, 1.0, -1.0]}, bounds=(-1.0, 1.0))
    assert low < 1 / 30 < high
    assert low < 0


def test_the_order_of_problems_and_benchmarks_does_not_matter():
    one = {"a": shares(3, 9), "b": shares(5, 7)}
    other = {"b": shares(5, 7)[::-1], "a": shares(3, 9)[::-1]}
    assert bootstrap_interval(one) == bootstrap_interval(other)


def test_the_seed_decides():
    values = {"a": shares(3, 9)}
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_memory_is_bounded_by_blocks_that_change_nothing(monkeypatch):
    values = {"a": list(np.random.default_rng(0).random(50))}
    whole = bootstrap_interval(values, draws=500)
    monkeypatch.setattr("driftgate.evaluate.passk._CELLS_AT_ONCE", 1_000)
    assert bootstrap_interval(values, draws=500) == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize(
    "bad",
    [
        {"values_by_benchmark": {}},
        {"values_by_benchmark": {"a": []}},
        {"values_by_benchmark": {"a": [1.5]}},
        {"values_by_benchmark": {"a": [float("nan")]}},
        {"values_by_benchmark": {"a": [0.5]}, "draws": 0},
        {"values_by_benchmark": {"a": [0.5]}, "level": 1.0},
        {"values_by_benchmark": {"a": [0.5]}, "bounds": (1.0, 0.0)},
    ],
)
def test_input_without_an_interval_is_refused(bad):
    with pytest.raises(InputError):
        bootstrap_interval(**bad)


def test_a_summary_holds_each_benchmark_and_their_mean_as_json():
    summary = summarise({"a": [(4, 8), (0, 8)], "b": [(8, 8)]}, ks=(1, 8))
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary) == {"a", "b", "mean"}
    assert summary["a"]["pass@1"]["mean"] == 0.25
    assert summary["a"]["pass@8"]["mean"] == 0.5
    assert summary["mean"]["pass@8"]["mean"] == 0.75
    for group in summary.values():
        assert all(e["low"] <= e["mean"] <= e["high"] for e in group.values())


def test_a_summary_needs_k_samples_and_free_names():
    with pytest.raises(InputError):
        summarise({"a": [(1, 4)]}, ks=(8,))
    with pytest.raises(InputError):
        summarise({"mean": [(1, 8)]})
    with pytest.raises(InputError):
        summarise({})


def slow_majority(samples, k):
    """By definition: over all k-subsets of (answer, correct), the right answer's chance in a lot among the leaders."""
    won = []
    for subset in combinations(samples, k):
        votes = Counter("right" if correct else answer for answer, correct in subset if answer is not None)
        leaders = [answer for answer, count in votes.items() if count == max(votes.values())]
        won.append(leaders.count("right") / len(leaders) if leaders else 0.0)
    return sum(won) / len(won)


def sampled(right, wrong, silent):
    """(answer, correct) of so many right samples, so many of each wrong answer, and so many without one."""
    others = [(f"w{i}", False) for i, count in enumerate(wrong) for _ in range(count)]
    return [("r", True)] * right + others + [(None, False)] * silent


@pytest.mark.parametrize("wrong", [(), (1,), (3,), (1, 1), (2, 1), (2, 2), (3, 3), (1, 1, 1, 1), (2, 2, 2)])
def test_majority_is_that_of_all_subsets(wrong):
    for right, silent in product(range(4), range(3)):
        samples = sampled(right, wrong, silent)
        expected = [slow_majority(samples, k) for k in range(1, len(samples) + 1)]
        assert majority_at(right, wrong, silent) == pytest.approx(expected, abs=1e-12)


def test_majority_of_many_samples_keeps_its_digits():
    assert majority_at(64, (64,), 0)[-1] == 0.5
    assert majority_at(100, (), 0) == (1.0,) * 100
    values = majority_at(90, (40, 30, 30), 10)
    assert values[0] == 90 / 200
    assert list(values) == sorted(values)


def test_majority_is_taken_of_powers_of_two_and_all_samples():
    assert [majority_sizes(n) for n in (1, 2, 3, 8, 12)] == [[1], [2], [2, 3], [2, 4, 8], [2, 4, 8, 12]]


def rows_of(benchmark, problems):
    return [
        {"benchmark": benchmark, "problem": str(place), "answer": answer, "correct": correct}
        for place, samples in enumerate(problems)
        for answer, correct in samples
    ]


def test_measures_are_those_of_the_problems():
    a = [sampled(3, (1,), 0), sampled(1, (2, 1), 0)]
    b = [[("1/2", True), ("0.5", True), ("2", False), ("2", False)], sampled(0, (), 4)]
    found = measures(rows_of("a", a) + rows_of("b", b))
    assert found.keys() == {"a", "b", "mean"}
    assert list(found["a"]) == ["pass@1", "pass@2", "pass@3", "pass@4", "avg@4", "maj@2", "maj@4"]
    for name, part in (("a", a), ("b", b)):
        rights = [sum(correct for _, correct in samples) for samples in part]
        for k in range(1, 5):
            assert found[name][f"pass@{k}"]["mean"] == pytest.approx(np.mean([slow_pass_at_k(c, 4, k) for c in rights]))
        for k in (2, 4):
            assert found[name][f"maj@{k}"]["mean"] == pytest.approx(np.mean([slow_majority(s, k) for s in part]))
        assert found[name]["avg@4"] == found[name]["pass@1"]
    for measure, value in found["mean"].items():
        assert value["mean"] == pytest.approx((found["a"][measure]["mean"] + found["b"][measure]["mean"]) / 2)
        assert value["low"] <= value["mean"] <= value["high"]
    assert found["b"]["maj@4"]["mean"] == 0.25  # two spellings of the right answer against two votes for 2


def test_a_table_shows_the_ends_of_each_measure():
    assert shown({f"pass@{k}": 0 for k in range(1, 17)} | {"avg@16": 0, "maj@2": 0, "maj@16": 0}) == [
        "pass@1",
        "pass@16",
        "maj@16",
    ]
    assert shown({"pass@1": 0, "avg@1": 0, "maj@1": 0}) == ["pass@1", "maj@1"]
    assert shown({"pass@1": 0, "pass@8": 0}) == ["pass@1", "pass@8"]


def test_any_measure_gets_the_interval_of_its_values():
    values = {"a": shares(3, 9), "b": shares(5, 7)}
    found = estimates({"some": values})
    assert (found["mean"]["some"]["low"], found["mean"]["some"]["high"]) == bootstrap_interval(values)
    assert (found["a"]["some"]["low"], found["a"]["some"]["high"]) == bootstrap_interval({"a": values["a"]})
