"""The worker of math-verify under answers that mean harm, deaths and interrupts; and when it is started at all."""

import os
import signal
import sys
from pathlib import Path

import pytest

from driftgate.data.tasks import training_problems
from driftgate.errors import InputError, RunError
from driftgate.verify.grading import Grader


def box(content):
    return rf"so the answer is $\boxed{{{content}}}$."


@pytest.fixture(scope="module")
def grader():
    with Grader() as shared:
        yield shared


def test_integers_texts_without_a_box_and_units_start_no_worker():
    """The embedded tasks box plain integers: their runs never pay for the worker."""
    with Grader() as grader:
        for problem, other in zip(training_problems(40), training_problems(40, seed=1)):
            assert grader.grade(problem.solution, problem.answer)
            assert grader.grade(problem.solution, other.answer) == (problem.answer == other.answer)
        assert not grader.grade("the answer is 7", r"\frac{1}{2}")
        assert not grader.grade(box("7,8"), "7")
        assert grader.grade(box(r"\frac12"), r" \frac12 ")
        assert grader.grade(box(r"\$27.00\text{ a day}"), "27")
        assert not grader.grade(box(r"28\text{ miles}"), "27")
        assert (grader.math.popen, grader.math.asked) == (None, 0)
        assert grader.grade(box(r"\frac{54}{2}"), "27")
        assert grader.math.asked == 1
    assert grader.math.popen is None


def test_hostile_answers_are_wrong_and_stop_nothing():
    hostile = [
        "99999999!!!!",
        "10^{10^{10}}",
        "9^{9^{9^9}}",
        "{" * 900 + "1" + "}" * 900,
        "(" * 900 + "1" + ")" * 900,
        r"\frac{" * 150 + "1" + "}{2}" * 150,
        "9" * 1_999,
        "9" * 10**6,
        "\x00\ud800\n",
        "\n" + '["1", "1"]' + "\n",
        "}{" * 500,
    ]
    with Grader(limit_s=1.0) as grader:
        for content in hostile:
            assert not grader.grade(box(content), r"\frac{3}{7}")
        assert grader.grade(box(r"\frac{6}{14}"), r"\frac{3}{7}")
    assert grader.math.overruns >= 2
    assert grader.math.respawns == grader.math.overruns + grader.math.deaths


def test_a_worker_that_overruns_is_replaced_outside_the_limit():
    with Grader(limit_s=0.3) as grader:
        first = grader.math.living().pid
        assert not grader.grade(box("9^{9^{9^9}}"), "1")
        assert (grader.math.overruns, grader.math.respawns, grader.math.popen) == (1, 0, None)
        assert grader.grade(box("x + 1"), "1 + x")
        assert grader.math.living().pid != first
        assert (grader.math.overruns, grader.math.deaths, grader.math.respawns) == (1, 0, 1)


def test_a_worker_that_died_between_answers_costs_no_answer():
    with Grader() as grader:
        worker = grader.math.living()
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        assert grader.grade(box("x + 1"), "1 + x")
        assert (grader.math.deaths, grader.math.respawns) == (0, 1)


def test_a_worker_that_dies_on_an_answer_makes_it_wrong(grader, monkeypatch):
    worker = grader.math.living()
    deaths = grader.math.deaths
    monkeypatch.setattr(worker, "poll", lambda: None)  # it looks alive until it is asked
    os.kill(worker.pid, signal.SIGKILL)
    assert not grader.grade(box("x + 1"), "1 + x")
    assert grader.math.deaths == deaths + 1
    assert grader.grade(box("x + 1"), "1 + x")


def test_an_interrupt_leaves_no_late_reply_behind(grader, monkeypatch):
    worker = grader.math.living()

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(worker.stdin, "flush", interrupt)
    with pytest.raises(KeyboardInterrupt):
        grader.grade(box("x + 1"), "1 + x")
    assert not grader.grade(box("x + 2"), "1 + x")


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits are read from /proc")
def test_the_worker_is_limited_in_memory():
    with Grader(memory_bytes=2**29) as grader:
        limits = Path(f"/proc/{grader.math.living().pid}/limits").read_text()
    assert [line.split()[3:5] for line in limits.splitlines() if "address space" in line] == [[str(2**29), str(2**29)]]


@pytest.mark.skipif(sys.platform != "linux", reason="address-space limits hold on Linux")
def test_a_worker_without_room_to_start_is_an_error_that_says_so(capfd):
    with pytest.raises(RunError, match="memory_bytes"):
        Grader(memory_bytes=2**20).math.living()
    capfd.readouterr()


def test_the_worker_ends_with_its_grader():
    with Grader() as grader:
        worker = grader.math.living()
    assert worker.returncode is not None
    grader.math.close()


@pytest.mark.parametrize("limits", [{"limit_s": 0}, {"memory_bytes": 0}])
def test_limits_that_leave_nothing_are_refused(limits):
    with pytest.raises(InputError):
        Grader(**limits)
