"""The child process, with a Python script in vLLM's place: its command line, its environment, its health and its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from truing import ConfigError, SetupError
from truing_vllm import ServeSettings
from truing_vllm.address import FILE, Entry, read_entries, written_down
from truing_vllm.program import PACKAGE, Program, Running, make_socket_folder

STAND_IN = """
import http.server, json, os, subprocess, sys, time
import importlib.metadata
from {package}.guard import Guard
Guard(None)
words = sys.argv[1:]
port = int(words[words.index("--port") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
seen = {{"arguments": words, "environment": dict(os.environ), "child": child.pid, "umask": os.umask(0),
        "plugins": [point.value for point in importlib.metadata.entry_points(group="vllm.general_plugins")]}}
open(os.environ["SEEN"], "w").write(json.dumps(seen))
print("a line of the log", flush=True)
if os.environ.get("DIES"):
    sys.exit("it cannot be")
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *args):
        pass
while os.environ.get("NEVER"):
    time.sleep(1)
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "vllm"
    path.write_text(f"#!{sys.executable}\n{STAND_IN.format(package=PACKAGE)}")
    path.chmod(0o755)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    return path


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program_of(stand_in: Path, **serve) -> Program:
    settings = ServeSettings(executable=str(stand_in), port=free_port(), **serve)
    return Program(settings=settings, model="a/model", weights_dir=stand_in.parent / "weights", lora_rank=8)


def start(program: Program, folder: Path) -> Running:
    return Running.start(program, folder / "inside", folder, "vllm.log")


def test_the_stock_program_gets_our_part_and_the_token_but_not_on_its_command_line(stand_in, tmp_path):
    running = start(program_of(stand_in, token="chosen-token", args=("--seed", "3")), tmp_path)
    try:
        running.wait_until_healthy(30)
        seen = json.loads((tmp_path / "seen.json").read_text())
    finally:
        running.stop()
    line = " ".join(seen["arguments"])
    assert line.startswith("serve a/model --host 127.0.0.1 --port ") and line.endswith("--enable-lora --seed 3")
    for words in (
        "--logprobs-mode processed_logprobs",
        "--enable-scale-out",
        '--weight-transfer-config {"backend":"safetensors"}',
        f"--middleware {PACKAGE}.guard.Guard",
        "--generation-config vllm",
        "--max-lora-rank 8 --max-loras 4",
    ):
        assert words in line
    environment = seen["environment"]
    assert "chosen-token" not in line and environment["TRUING_GUARD_TOKEN"] == "chosen-token"
    expected = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    }
    assert {name: environment[name] for name in expected} == expected
    assert environment["TRUING_WEIGHTS_DIR"] == str(tmp_path / "weights")
    assert f"{PACKAGE}.engine:register" in seen["plugins"] and seen["umask"] == 0o077
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o700


def test_a_run_has_a_random_token_that_its_next_server_has_too(stand_in, tmp_path, monkeypatch):
    program = program_of(stand_in)
    token = program.token(tmp_path / "one")
    assert token == program.token(tmp_path / "one") != program.token(tmp_path / "other") and len(token) > 40
    assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("TRUING_VLLM_TOKEN", "chosen")
    assert program.token(tmp_path / "one") == "chosen"


def test_stopping_ends_the_whole_group(stand_in, tmp_path):
    running = start(program_of(stand_in), tmp_path)
    running.wait_until_healthy(30)
    child = psutil.Process(json.loads((tmp_path / "seen.json").read_text())["child"])
    running.stop()
    running.stop()
    assert running.process.poll() is not None
    deadline = time.monotonic() + 10  # it was killed, and a busy machine may take a moment to see to it
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_dies_shows_the_end_of_its_log(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("DIES", "1")
    running = start(program_of(stand_in), tmp_path)
    with pytest.raises(
        SetupError, match=r"vllm serve ended with code 1; its log, .*vllm.log, ends:\na line of the log\nit cannot be"
    ):
        running.wait_until_healthy(30)
    running.stop()


def test_a_server_that_is_never_healthy_is_given_up(stand_in, tmp_path, monkeypatch):
    monkeypatch.setenv("NEVER", "1")
    running = start(program_of(stand_in), tmp_path)
    with pytest.raises(SetupError, match=r"was not healthy within 2 s \(rollout.serve.start_timeout\)"):
        running.wait_until_healthy(2)
    running.stop()


def test_a_program_that_is_not_there_is_said():
    with pytest.raises(
        SetupError, match="rollout.serve.executable: no program '/nowhere/vllm'; install vLLM in an environment of its own"
    ):
        Program(settings=ServeSettings(executable="/nowhere/vllm"), model="m", weights_dir=Path("w")).command()


def test_a_socket_lies_in_a_folder_of_ones_own(tmp_path):
    make_socket_folder(tmp_path / "new" / "v.sock")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="others may look into .*open; put the socket into a folder of its own, with mode 0700"):
        make_socket_folder(tmp_path / "open" / "v.sock")


def test_a_server_is_written_down_while_it_is_there(tmp_path):
    run = tmp_path / "run"
    entries = [Entry(url=f"http://127.0.0.1:{port}", token="t", pid=os.getpid()) for port in (1, 2)]
    with written_down(run, entries[0]) as file, written_down(run, entries[1]):
        assert read_entries(run) == entries and file.stat().st_mode & 0o777 == 0o600
        served = "http://127.0.0.1:1 is served for .* already; choose another rollout.serve.port or uds"
        with pytest.raises(ConfigError, match=served), written_down(run, entries[0]):
            pass
    assert read_entries(run) == []


def test_a_starter_that_was_killed_leaves_no_server(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with written_down(tmp_path, Entry(url="http://127.0.0.1:1", token="t", pid=gone.pid)):
        assert read_entries(tmp_path) == []
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ConfigError, match="cannot be read .*; remove it, and start `truing vllm-serve` again"):
        read_entries(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_serves_until_it_is_asked_to_stop(stand_in, tmp_path, number):
    """Or is killed, after which the server ends by itself."""
    config = tmp_path / "run.yaml"
    config.write_text(
        f"method: grpo\nmodel: {{name: {tmp_path}}}\ndata: {{path: d.jsonl, format: text}}\nrewards: [default]\n"
        f"rollout: {{name: vllm, serve: {{executable: {stand_in}, port: {free_port()}}}}}\noutput: {{dir: {tmp_path / 'run'}}}\n"
    )
    log = (tmp_path / "said").open("w")
    serving = subprocess.Popen([sys.executable, "-m", "truing", "vllm-serve", str(config)], stdout=log, stderr=log)
    until = time.monotonic() + 60
    while not read_entries(tmp_path / "run") and time.monotonic() < until:
        time.sleep(0.1)
    (entry,) = read_entries(tmp_path / "run")
    child = psutil.Process(json.loads((tmp_path / "seen.json").read_text())["child"])
    serving.send_signal(number)
    assert serving.wait(30) == (-9 if number == signal.SIGKILL else 0), (tmp_path / "said").read_text()
    assert entry.token not in (tmp_path / "said").read_text()
    assert read_entries(tmp_path / "run") == []
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
