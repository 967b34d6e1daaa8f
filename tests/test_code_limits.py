"""Kind `code`: time, memory, what is left behind, and systems on which answers cannot be held."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from code_case import PAIRS, limited, needs_namespaces

from driftgate.errors import InputError, RunError
from driftgate.verify import code_sandbox

LOOPS = {
    "busy": "while True: pass",
    "asleep": "import time\ntime.sleep(60)",
    "deaf": "import signal\nfor n in (14, 15, 24):\n    signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "in C": "import re\nre.match('(x+x+)+y', 'x' * 60)",
}


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("tests", ["assert f() == 1", PAIRS])
def test_an_answer_that_does_not_end_is_ended_and_counted(name, tests):
    verifier = limited(seconds=0.5)
    began = time.monotonic()
    assert not verifier.grade(LOOPS[name] + "\ndef f(): return 1", tests)
    assert (verifier.worker.overruns, verifier.worker.deaths) == (1, 0)
    assert time.monotonic() - began < 20


def test_memory_is_limited():
    verifier = limited()
    text = "def f(n):\n    return len(bytearray(n))"
    assert verifier.grade(text, "assert f(10**6) == 10**6")
    if sys.platform == "linux":
        assert not verifier.grade(text, "assert f(2 * 10**9) == 2 * 10**9")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("tests", ["assert f() == 1", PAIRS])
def test_nothing_is_left_running_or_lying_about(tests, tmp_path, monkeypatch):
    monkeypatch.setattr(code_sandbox.tempfile, "tempdir", str(tmp_path))
    started, groups = subprocess.Popen, []

    def recorded(*words, **settings):
        process = started(*words, **settings)
        groups.append(process.pid)
        return process

    monkeypatch.setattr(code_sandbox.subprocess, "Popen", recorded)
    assert not limited(seconds=0.5).grade("import time\nopen('mine', 'w').close()\ntime.sleep(60)", tests)
    assert len(groups) == (1 if tests == PAIRS else 2)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() or has_members(pid) for pid in groups))
    assert not list(tmp_path.iterdir())


def has_members(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@needs_namespaces
def test_namespaces_take_the_network_and_other_processes():
    code = """
import os, socket
assert os.getpid() == 1
with socket.socket() as s:
    s.settimeout(5)
    try:
        s.connect(("127.0.0.1", int(os.environ["PORT"])))
    except OSError:
        print("no network", end="")
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        words = [*code_sandbox.namespaces(), sys.executable, "-c", code]
        port = {"PORT": str(server.getsockname()[1])}
        assert subprocess.run(words, env=port, capture_output=True, text=True).stdout == "no network"


@needs_namespaces
def test_an_answer_ends_with_a_parent_that_is_killed(tmp_path):
    script = """
import sys
from driftgate.config.verify import verify_settings
from driftgate.verify.choose import verifier_of
code = "open('begun', 'w').close()\\nimport time\\ntime.sleep(600)"
verifier_of(verify_settings("code")).grade(code, "assert f() == 1")
"""
    parent = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"TMPDIR": str(tmp_path)})
    wait_for(lambda: list(tmp_path.glob("*/own/begun")))
    parent.kill()
    parent.wait()
    folder = str(next(tmp_path.iterdir())).encode()
    wait_for(lambda: not any(folder in line for line in command_lines()))


def command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            yield path.read_bytes()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_system_without_namespaces_is_told_once(monkeypatch, capfd):
    monkeypatch.setattr(code_sandbox.shutil, "which", lambda name: None)
    code_sandbox.namespaces.cache_clear()
    with limited() as verifier:
        assert verifier.grade_many([("f = abs", "assert f(-1) == 1"), ("f = str", "assert f(-1) == 1")]) == [
            True,
            False,
        ]
    said = capfd.readouterr().err
    code_sandbox.namespaces.cache_clear()
    assert said.count("no namespaces") == 1
    assert "audit hook alone" in said


def test_limits_that_leave_no_room_are_refused_by_a_trial():
    with pytest.raises(InputError, match="failed on a right answer; raise"):
        code_sandbox.CodeSandbox(10.0, 2**20).try_out()


def test_a_python_that_holds_nothing_is_refused_by_a_trial(monkeypatch):
    sandbox = code_sandbox.CodeSandbox(10.0, 2**30)
    monkeypatch.setattr(sandbox, "_verdict", lambda *_: "right")
    with pytest.raises(InputError, match="did not end an answer that opened a socket"):
        sandbox.try_out()
    monkeypatch.setattr(code_sandbox.os, "name", "nt")
    with pytest.raises(InputError, match="needs Linux or macOS"):
        sandbox.try_out()


@pytest.mark.parametrize("executable", ["/bin/true", "/no/python"])
def test_a_process_that_cannot_start_stops_a_run_and_grades_nothing(monkeypatch, executable):
    monkeypatch.setattr(code_sandbox, "namespaces", tuple)
    monkeypatch.setattr(code_sandbox.sys, "executable", executable)
    with pytest.raises(RunError, match=r"did not start|cannot be run"):
        limited().grade("f = abs", "assert f(1) == 1")


def test_answers_run_side_by_side_and_equal_ones_once():
    verifier = limited(workers=4)
    texts = [f"import time\ntime.sleep(1.5)\ndef f(): return {n}" for n in (1, 2, 1, 3, 1, 4)]
    began = time.monotonic()
    assert verifier.grade_many((text, "assert f() % 2") for text in texts) == [True, False, True, True, True, False]
    assert time.monotonic() - began < 5.5
    assert verifier.worker.asked == 4
