"""Tests of code: what passes, and what the code may not do."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from truing import SetupError
from truing.testing import check_reward
from truing_rewards import PythonTests, isolated
from truing_rewards.python_tests import code_of

LIMITS = {"seconds": 2, "memory_mb": 512, "file_mb": 1, "allow_unisolated": False}


def can_isolate():
    """Whether others can on this machine: if they do and we do not, that is a failure."""
    asked = ["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "true"]
    return shutil.which("unshare") is not None and subprocess.run(asked, capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not can_isolate(), reason="needs Linux with user namespaces")


def passes(code, *tests, **limits):
    return isolated.passing(code, tests or ["pass"], LIMITS | limits)


def test_tests_see_the_code_and_each_stands_for_itself():
    code = "count = 0\ndef add(a, b):\n    global count\n    count += 1\n    return a + b\ndef twice(a):\n    return add(a, a)"
    tests = [
        "assert add(1, 2) == 3",
        "assert add(1, 2) == 4",
        "raise SystemExit",
        "assert twice(2) == 4",
        "count = 5",
        "assert count == 0",
    ]
    assert passes(code, *tests) == {0, 3, 4, 5}


def test_what_passed_before_the_time_was_over_counts():
    begun = time.monotonic()
    assert passes("", "pass", "while True: pass", "pass", seconds=1) == {0}
    assert time.monotonic() - begun < 10


FORBIDDEN = {
    "network": "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
    "processes": "import subprocess; subprocess.run(['true'])",
    "forks": "import os; os.fork()",
    "threads": "import threading; threading.Thread(target=print).start()",
    "another session": "import os; os.setsid()",
    "another group": "import os; os.setpgid(0, 0)",
    "files elsewhere": "open('/tmp/made-by-a-model', 'w')",
    "files of the run": "import os; os.remove(FILE)",
    "a long file": "open('long', 'wb').write(b'x' * (3 * 2**20))",
    "many files": "for i in range(9): open(str(i), 'wb').write(b'x' * 1000000)",
    "memory": "bytearray(2**30)",
    "ends early": "import os; os._exit(0)",
    "exits": "import sys; sys.exit(0)",
    "crashes": "import ctypes; ctypes.string_at(0)",
    "sleeps": "import time; time.sleep(100)",
    "mounts": "import ctypes; assert ctypes.CDLL(None).mount(b'none', b'/', None, 32 | 4096, None) == 0",
    "a syntax error": "def",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_code_may_not_do(what, tmp_path):
    file = tmp_path / "kept"
    file.touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = FORBIDDEN[what].replace("PORT", str(server.getsockname()[1])).replace("FILE", repr(str(file)))
        assert passes(code, seconds=1) == set()
    assert file.exists() and not Path("/tmp/made-by-a-model").exists()


def test_without_isolation_the_same_network_can_be_reached_and_processes_still_not():
    """So the tests above refuse what would work elsewhere."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = FORBIDDEN["network"].replace("PORT", str(server.getsockname()[1]))
        assert passes(code, allow_unisolated=True) == {0}
    assert passes(FORBIDDEN["processes"], allow_unisolated=True) == set()
    assert passes(FORBIDDEN["another session"], allow_unisolated=True) == set()


def test_what_code_sees(monkeypatch):
    monkeypatch.setenv("A_SECRET", "word")
    tests = [
        "import os; assert not os.listdir('/proc')",
        "import os; assert 'A_SECRET' not in os.environ",
        "import os; assert os.getpid() == 1 and os.getuid() != 0",
        "import os; assert set(os.listdir('.')) == {'solution.py', 'test.py'}",
        "open('mine', 'w').write('x'); assert open('mine').read() == 'x'",
        "import sys; assert sys.stdin.read() == ''",
        "import tempfile; tempfile.TemporaryFile().close()",
        "import math, json, collections, asyncio",
    ]
    assert passes("", *tests) == set(range(len(tests)))


def test_what_code_prints_is_no_result():
    assert passes("print('0\\n' * 10**6); import os; os.write(1, b'x 0')", "raise ValueError") == set()


def test_a_machine_that_cannot_isolate_is_refused(monkeypatch, tmp_path):
    (tmp_path / "sandbox.py").write_text("import sys; print('no namespaces', end=''); sys.exit(97)")
    monkeypatch.setattr(isolated.sandbox, "__file__", str(tmp_path / "sandbox.py"))
    with pytest.raises(SetupError, match=r"cannot isolate model-written code \(no namespaces\).*allow_unisolated: true"):
        PythonTests().prepare()


def test_what_is_missing_is_noticed(monkeypatch):
    """A kernel that refuses a namespace ends the program with that exit code, before any code is run."""
    script = (
        "import sys, runpy, truing_rewards.sandbox as sandbox\n"
        "sandbox._LIBC = type('C', (), {'prctl': lambda *a: 0, 'unshare': lambda *a: -1})()\n"
        'sys.argv = [\'\', \'{"allow_unisolated": false, "folder": "/tmp", "file_mb": 1}\', \'/nowhere\']\n'
        "sandbox.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == isolated.sandbox.UNISOLATED


def test_limits_that_no_program_keeps(monkeypatch):
    with pytest.raises(SetupError, match=r"an empty program does not end within seconds \(5\) and memory_mb \(1\); raise"):
        PythonTests(memory_mb=1).prepare()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```\nx = 1\n```\nbetter:\n```py\nx = 2\n```", "x = 2\n"),
        ("<think>```\nx = 1\n```</think>x = 3", "x = 3"),
        ("```python\nx = 1", "```python\nx = 1"),
    ],
)
def test_code_of(text, code):
    assert code_of(text) == code


def test_scores(completion):
    tests = ["assert f(1) == 2", "assert f(2) == 3"]
    good, half, bad = "```python\ndef f(x):\n    return x + 1\n```", "def f(x): return 2", "def f(x): return 0"
    rows = [completion(text, tests=tests) for text in (good, half, bad)]
    rows += [completion(good, tests=None), completion(good, tests=tests[0])]
    assert PythonTests()(rows) == [1.0, 0.0, 0.0, None, 1.0]
    assert PythonTests(partial=True)(rows[:3]) == [1.0, 0.5, 0.0]


def test_the_contract(completion):
    rows = [completion(text, tests=["assert f() == 1"]) for text in ("def f(): return 1", "", "é")]
    PythonTests().prepare()
    check_reward(PythonTests, rows)
