"""Kind `code`: answers that mean harm, by the audit hook alone and with namespaces."""

from pathlib import Path

import pytest
from code_case import limited

from driftgate.verify import code_sandbox


@pytest.fixture(scope="module")
def verifier():
    with limited() as made:
        yield made


@pytest.fixture
def hooked(verifier, monkeypatch):
    """With Python's audit hook alone, as where users get no namespaces."""
    monkeypatch.setattr(code_sandbox, "namespaces", tuple)
    return verifier


GREEDY = "import sys\ndef f(x):\n    {}"
ATTACKED = """
assert f(1) == 7.5
assert abs(f(2) - 7.5) < 1e-6 and len([f(3)]) == 1
assert math.isclose(f(4), 7.5)
assert sorted([f(5), 1]) == [1, 7.5]
"""
ATTACKS = {
    "is right": "def f(x): return 7.5",
    "prints the verdict": "print('1')\nimport sys, os\nsys.stdout.write('r1')\nfor n in range(9):\n"
    "    try: os.write(n, b'1')\n    except OSError: pass\ndef f(x): return 0",
    "exits with success": "raise SystemExit(0)",
    "exits in the call": GREEDY.format("sys.exit(0)"),
    "exits hard": "import os\nos._exit(0)",
    "exits hard in the call": "import os\ndef f(x): os._exit(0)",
    "equals everything": "class A:\n    __eq__ = lambda *_: True\n    __ne__ = lambda *_: False\ndef f(x): return A()",
    "an int that equals everything": "class A(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\n"
    "def f(x): return A(0)",
    "overrides built-in functions": "import builtins\nfor name in ('abs', 'all', 'len', 'sorted', 'isinstance'):\n"
    "    setattr(builtins, name, lambda *_: True)\n    globals()[name] = lambda *_: True\ndef f(x): return 0",
    "overrides a module": "import math, sys\nmath.isclose = lambda *_, **__: True\n"
    "class math: isclose = lambda *_, **__: True\ndef f(x): return 0",
    "overrides AssertionError": "import builtins\nbuiltins.AssertionError = None\ndef f(x): return 0",
    "traces the caller": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        frame.f_globals['tests'] = frame.f_globals['passed'] = lambda *_: b'1'\n"
    "        frame = frame.f_back\n    return 0",
    "looks for the expected value": "import gc\ndef f(x):\n    return [o for o in gc.get_objects() if o == 7.5][0]",
    "speaks for the other process": "import os, json\nfor n in range(3, 20):\n"
    "    try: os.write(n, (json.dumps(['return', ['f', '0x0p0'], []]) + chr(10)).encode() * 50)\n"
    "    except OSError: pass\ndef f(x): return 0",
    "asks the other process": "import sys\ndef f(x):\n"
    "    frame = sys._getframe()\n    while 'peer' not in frame.f_locals: frame = frame.f_back\n"
    "    peer = frame.f_locals['peer']\n    peer.send('ask', 'call', [['mine', 0]], {})\n"
    "    peer.send('ask', 'getattr', [['yours', 0], '__globals__'], {})\n    return 0",
    "floods the pipe": "def f(x): return 'x' * 10**9",
    "nests without end": "def f(x):\n    for _ in range(10**5): x = [x]\n    return x",
    "a circle": "def f(x):\n    x = []\n    x.append(x)\n    return x",
    "reads the tests": "import os, glob\ndef f(x):\n    return open('../tests.py').read()",
    "reads the parent": "import os\ndef f(x):\n    return open(f'/proc/{os.getppid()}/environ').read()",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_answer_cannot_fake_a_pass(verifier, name):
    assert verifier.grade(ATTACKS[name], ATTACKED) is (name == "is right")


@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) == 7.5",
        "assert f(1) < 8",
        "assert abs(f(1) - 7.5) < 1",
        "assert 7.5 in f(1)",
        "assert f(1)",
        "assert not f(1)",
        "assert isinstance(f(1), float)",
        "assert 7.5 == f(1)",
        "assert f(1) in [7.5]",
        "assert round(f(1), 1) == 7.5",
        "assert {7.5: 1}[f(1)]",
    ],
)
def test_an_object_of_the_answers_decides_nothing(verifier, test):
    """All of these would pass where the answer's object is asked."""
    names = "eq lt le gt ge contains bool sub rsub abs add round float int index"
    code = f"class A:\n    pass\nfor name in '{names}'.split():\n    setattr(A, f'__{{name}}__', lambda *_: True)\n"
    code += "A.__hash__ = lambda self: hash(7.5)\nA.__class__ = property(lambda self: float)\ndef f(x): return A()"
    assert not verifier.grade(code, test)


FORBIDDEN = {
    "connects": "import socket\nsocket.create_connection(('127.0.0.1', 9))",
    "resolves a name": "import socket\nsocket.getaddrinfo('localhost', 80)",
    "starts a program": "import subprocess\nsubprocess.run(['true'])",
    "starts a program by the shell": "import os\nos.system('true')",
    "starts a program without an audit event": "import _posixsubprocess",
    "forks": "import os\nos.fork()",
    "starts a thread": "import threading\nthreading.Thread(target=print).start()",
    "kills": "import os, signal\nos.kill(os.getppid(), 0)",
    "reads a file": "open('/etc/hostname')",
    "reads a file of bytes": "open(b'/etc/hostname')",
    "reads a file by a text of its own": "class P(str): pass\nopen(P('/etc/hostname'))",
    "climbs": "open('../answer.py')",
    "writes outside": "open('/tmp/driftgate-was-here', 'w')",
    "writes into Python": "import os\nos.open(os.path.dirname(os.__file__) + '/x.py', os.O_CREAT | os.O_WRONLY)",
    "lists": "import os\nos.listdir('/')",
    "moves out": "import os\nos.chdir('/')",
    "links": "import os\nos.symlink('/etc', 'etc')",
    "removes": "import os\nos.remove('/tmp/none')",
    "calls C": "import ctypes",
    "loads C of its own": "import importlib.machinery as m, importlib.util as u\nopen('x.so', 'wb').close()\n"
    "import os\nl = m.ExtensionFileLoader('x', os.getcwd() + '/x.so')\n"
    "u.module_from_spec(u.spec_from_file_location('x', loader=l))",
    "raises its limits": "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))",
    "looks at all objects": "import gc\ngc.get_objects()",
    "hooks": "import sys\nsys.addaudithook(print)",
    "makes code": "f.__code__.replace(co_code=b'')",
    "catches the refusal": "try:\n    open('/etc/hostname')\nexcept BaseException:\n    pass",
    "changes what the hook could use": "import builtins, os, posixpath\nos._exit = print\nbuiltins.type = str\n"
    "posixpath.normpath = lambda p: p\nopen('/etc/hostname')",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_is_refused_ends_the_answer_by_the_hook_alone(hooked, name):
    code = "def f():\n    return 1\n" + FORBIDDEN[name]
    deaths = hooked.worker.deaths
    assert not hooked.grade(code, "assert f() == 1")
    assert hooked.worker.deaths == deaths + 1
    assert not Path("/tmp/driftgate-was-here").exists()


def test_the_pieces_of_the_library_that_answers_use(hooked):
    """Imports, a file of its own, and everything that a program may do without reaching out."""
    modules = (
        "abc array base64 bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal enum \
        fractions functools hashlib heapq io itertools json math numbers operator os pathlib pickle queue random re \
        statistics string struct sys tempfile textwrap time types typing unicodedata uuid zlib"
    )
    code = "".join(f"import {name}\n" for name in modules.split())
    code += """
@dataclasses.dataclass(order=True)
class Point:
    x: "int"
    y: int = 0
class Colour(enum.Enum):
    RED = 1
Pair = collections.namedtuple("Pair", "a b")
def f():
    with open("notes.txt", "w") as file:
        file.write("kept")
    time.sleep(0.001)
    print("noise"), sys.setrecursionlimit(5000), os.environ.setdefault("A", "b")
    assert pickle.loads(pickle.dumps(Point(1))) == copy.deepcopy(Point(1)) < Point(2)
    assert statistics.mean([1, 2]) == 1.5 and decimal.Decimal("1.5") == fractions.Fraction(3, 2)
    assert os.listdir(".") == ["notes.txt"] and random.Random(0).random() < 1 and eval("1 + 1") == 2
    return pathlib.Path("notes.txt").read_text() + Colour.RED.name + str(Pair(1, 2).b)
"""
    assert hooked.grade(code, "assert f() == 'keptRED2'")
