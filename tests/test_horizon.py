"""How long rollouts may be: horizons and the length controller against its twin."""

import pytest

from driftgate.horizon import LengthController, growing, share


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 100), (9, 100), (10, 150), (19, 150), (20, 200), (60, 400), (61, 400), (1000, 400)]
)
def test_a_growing_horizon(step, expected):
    assert growing(step, start=100, increment=50, every=10, limit=400) == expected


def test_a_growing_horizon_that_starts_beyond_the_limit():
    assert growing(0, start=500, increment=50, every=10, limit=400) == 400


@pytest.mark.parametrize(
    ("rho", "limit", "expected"),
    [(0.29, 100, 29), (0.57, 100, 57), (1 / 3, 300, 100), (0.5, 7, 3), (1.0, 16384, 16384), (0.001, 100, 1), (0, 9, 1)],
)
def test_a_share_of_the_limit(rho, limit, expected):
    assert share(rho, limit) == expected


@pytest.mark.parametrize(
    ("before", "lengths", "after"),
    [
        ((500, 2), [400] + [10] * 9, (600, 0)),  # a tenth comes within 100 tokens: up, and the misses are forgiven
        ((500, 0), [400] + [10] * 10, (500, 1)),  # one in eleven is too few
        ((500, 0), [399] * 10, (500, 1)),
        ((500, 1), [10] * 10, (500, 2)),
        ((500, 2), [10] * 10, (400, 0)),  # the third miss in a row
        ((950, 0), [900] * 4, (1000, 0)),  # not beyond the limit
        ((1000, 2), [1000], (1000, 0)),
        ((240, 2), [1], (200, 0)),  # not below the floor
        ((250, 0), [199] * 9, (250, 1)),  # within 100 tokens of the cap, but below the floor
        ((250, 0), [200], (350, 0)),
        ((200, 2), [1], (200, 0)),
        ((500, 1), [], (500, 1)),
    ],
)
def test_the_length_controller_by_table(before, lengths, after):
    assert LengthController(*before).after(lengths, limit=1000, floor=200) == LengthController(*after)


def slow_cap(cap, least, rollouts, limit):
    """The cap after rollouts of unpruned lengths, as the public code of Prune-OPD moves it, in plain steps."""
    misses = 0
    for lengths in rollouts:
        hits = 0
        for length in lengths:
            if length >= max(least, cap - 100):
                hits += 1
        if hits >= 0.1 * len(lengths):
            cap, misses = min(limit, cap + 100), 0
        else:
            misses += 1
            if misses == 3:
                cap, misses = max(least, cap - 100), 0
    return cap


@pytest.mark.parametrize(("unpruned", "expected"), [(700, 1024), (1000, 1024), (1024, 1224)])
def test_the_cap_over_sixty_rollouts_is_the_public_codes(unpruned, expected):
    """At 1,000 unpruned tokens of 1,024 every response is near the cap and below the least one: it stays."""
    rollouts = [[unpruned] * 2 + [300] * 6] * 60
    controller = LengthController(1024)
    for lengths in rollouts:
        controller = controller.after(lengths, limit=7168, floor=1024)
    assert controller.cap == slow_cap(1024, 1024, rollouts, 7168) == expected


def test_the_length_controllers_options():
    move = {"limit": 64, "near": 4, "least_share": 0.5, "change": 8, "patience": 1, "floor": 8}
    controller = LengthController(32)
    assert controller.after([28, 1], **move) == LengthController(40)
    assert controller.after([28, 1, 1], **move) == LengthController(24)
    assert LengthController(10).after([1], **move) == LengthController(8)
