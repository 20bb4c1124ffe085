"""The child process, with a Python script in vLLM's place: its command line, its environment, its health and its end."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import attrs
import psutil
import pytest
from peft import LoraConfig, get_peft_model

from truing import ConfigError, RolloutError, RolloutRequest, Sampling, SetupError, TruingError
from truing.config import load_config
from truing.registry import Registry
from truing.testing import fake_context
from truing_vllm import ServeSettings, VllmRollout
from truing_vllm.address import FILE, Address, Entry, read_entries, written_down
from truing_vllm.opening import Spawned, open_live
from truing_vllm.program import PACKAGE, Program, Running
from truing_vllm.serving import program_of as program_of_config
from truing_vllm.serving import serve
from truing_vllm.trainer import weights_folder

STAND_IN = """
import http.server, json, os, subprocess, sys, time
import importlib.metadata
from {package}.guard import Guard
Guard(None)
words = sys.argv[1:]
port = int(words[words.index("--port") + 1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
seen = {{"arguments": words, "environment": dict(os.environ), "child": child.pid, "pid": os.getpid(), "umask": os.umask(0),
        "plugins": [point.value for point in importlib.metadata.entry_points(group="vllm.general_plugins")]}}
open(os.environ["SEEN"], "w").write(json.dumps(seen))
print("a line of the log", flush=True)
if os.environ.get("DIES"):
    sys.exit("it cannot be")
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("x-truing-boot", os.environ["TRUING_GUARD_BOOT"])
        self.end_headers()
    def log_message(self, *args):
        pass
while os.environ.get("NEVER"):
    time.sleep(1)
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""

START_SECONDS = 200
"""In which the program, which imports torch, starts on a machine that is busy."""


@pytest.fixture
def stand_in(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "vllm"
    path.write_text(f"#!{sys.executable}\n{STAND_IN.format(package=PACKAGE)}")
    path.chmod(0o755)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program_of(stand_in: Path, **serve) -> Program:
    settings = ServeSettings(executable=str(stand_in), port=free_port(), **serve)
    return Program(settings=settings, model="a/model", weights_dir=stand_in.parent / "weights", lora_rank=8)


@contextmanager
def answering(address: tuple[str, int], headers: Mapping[str, str]) -> Iterator[None]:
    """Another program, which is healthy."""

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(address, Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


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
        "--max-lora-rank 8 --max-loras 4 --max-cpu-loras 8",
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


def test_a_token_is_in_its_file_at_once(stand_in, tmp_path, monkeypatch):
    """For a second server of the run may read it while the first writes it; one that has none is not taken."""
    link, seen = os.link, []

    def linked(draft: str, path: Path) -> None:
        seen.append((Path(draft).read_text(), path.exists()))
        link(draft, path)

    monkeypatch.setattr(os, "link", linked)
    program = program_of(stand_in)
    token = program.token(tmp_path / "kept")
    assert seen == [(token, False)] and [path.name for path in tmp_path.glob("kept*")] == ["kept"]
    (tmp_path / "kept").write_text("")
    with pytest.raises(ConfigError, match="/kept, which has the token of the run's servers, is empty; remove it"):
        program.token(tmp_path / "kept")
    with pytest.raises(
        ConfigError, match="/none/kept, for the token of the run's servers, cannot be written: .*; set rollout.token"
    ):
        program.token(tmp_path / "none" / "kept")


def test_every_start_has_a_name_of_its_own(stand_in, tmp_path):
    program = program_of(stand_in)
    boots = {program.environment(tmp_path, "t")["TRUING_GUARD_BOOT"] for _ in range(2)}
    assert len(boots) == 2


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


@pytest.mark.parametrize("headers, who", [({}, "another program"), ({"x-truing-boot": "b"}, "another server of vllm-serve")])
def test_what_answers_at_the_address_and_was_not_started_is_not_taken_for_the_server(stand_in, tmp_path, headers, who, monkeypatch):
    """The one that was started lives still, as one does that cannot listen there and has not come so far."""
    monkeypatch.setenv("NEVER", "1")
    program = program_of(stand_in)
    with answering(("127.0.0.1", program.settings.port), headers):
        running = start(program, tmp_path)
        try:
            with pytest.raises(
                SetupError,
                match=f"something else answers at http://127.0.0.1:{program.settings.port}, .* {who} has that address. "
                "Choose another rollout.serve.port or uds, or stop that one; its log",
            ):
                running.wait_until_healthy(60)
        finally:
            running.stop()


def test_a_folder_for_weights_that_cannot_be_made_is_said(stand_in, tmp_path):
    (tmp_path / "weights").write_text("")
    with pytest.raises(ConfigError, match="rollout.weights_dir: .*/weights cannot be made, .*; choose another folder"):
        start(program_of(stand_in), tmp_path)


def test_a_second_server_on_a_socket_is_refused_and_leaves_the_first_as_it_is(stand_in, tmp_path, monkeypatch):
    program = program_of(stand_in)
    program = attrs.evolve(program, settings=attrs.evolve(program.settings, uds=tmp_path / "own" / "v.sock"))
    monkeypatch.setenv("NEVER", "1")
    first = start(program, tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "own" / "v.sock"))
        (tmp_path / "vllm.log").write_text("of the first")
        with pytest.raises(ConfigError, match="a server has the socket .* already"):
            Running.start(program, tmp_path / "second", tmp_path, "vllm.log")
        assert (tmp_path / "own" / "v.sock").is_socket() and "of the first" in first.log_end()
    first.stop()
    assert not (tmp_path / "own" / "v.sock").exists()


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


def write_config(stand_in: Path, folder: Path, more: str = "") -> Path:
    config = folder / "run.yaml"
    config.write_text(
        f"method: grpo\nmodel: {{name: {folder}}}\ndata: {{path: d.jsonl, format: text}}\nrewards: [default]\n"
        f"output: {{dir: {folder / 'run'}}}\n"
        f"rollout: {{name: vllm, {more}serve: {{executable: {stand_in}, port: {free_port()}}}}}\n"
    )
    return config


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_serves_until_it_is_asked_to_stop(stand_in, tmp_path, number):
    """Or is killed, after which the server ends by itself."""
    command = [sys.executable, "-m", "truing", "vllm-serve", str(write_config(stand_in, tmp_path))]
    with (tmp_path / "said").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as serving:
        try:
            until = time.monotonic() + START_SECONDS
            while not read_entries(tmp_path / "run") and time.monotonic() < until:
                time.sleep(0.1)
            (entry,) = read_entries(tmp_path / "run")
            child = psutil.Process(json.loads((tmp_path / "seen.json").read_text())["child"])
            serving.send_signal(number)
            assert serving.wait(60) == (-9 if number == signal.SIGKILL else 0), (tmp_path / "said").read_text()
        finally:
            serving.kill()
    assert entry.token not in (tmp_path / "said").read_text()
    assert read_entries(tmp_path / "run") == []
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_server_starts_ends_it_at_once(stand_in, tmp_path, monkeypatch, number):
    monkeypatch.setenv("NEVER", "1")

    def send() -> None:
        while not list((tmp_path / "run").glob("*.log")) or "a line" not in next((tmp_path / "run").glob("*.log")).read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    with pytest.raises(TruingError, match=f"stopped by {number.name} before the server was healthy") as caught:
        serve(write_config(stand_in, tmp_path), ("rollout.serve.start_timeout=120",))
    assert caught.value.exit_code == 128 + number
    assert not psutil.pid_exists(json.loads((tmp_path / "seen.json").read_text())["pid"])


def test_a_server_that_is_served_already_is_refused_before_anything_is_started(stand_in, tmp_path):
    path = write_config(stand_in, tmp_path)
    url = load_config(path, registry=Registry.load()).rollout.backend.served.url
    with (
        written_down(tmp_path / "run", Entry(url=url, token="t", pid=os.getpid())),
        pytest.raises(ConfigError, match=f"{url} is served for .* already; choose another rollout.serve.port or uds"),
    ):
        serve(path, ())
    assert not (tmp_path / "seen.json").exists() and not list((tmp_path / "run").glob("*.log"))


def test_both_sides_have_one_token_and_one_folder_for_weights_of_their_own(stand_in, tmp_path):
    """Though they have other `output.dir`s, as a server on another machine may."""
    path = write_config(stand_in, tmp_path, f"token: a-token, weights_dir: {tmp_path}, ")
    config = load_config(path, registry=Registry.load())
    program = program_of_config(config)
    assert program.token(tmp_path / "kept") == "a-token" and not (tmp_path / "kept").exists()
    assert program.weights_dir == weights_folder(config.rollout.backend, tmp_path / "other") == tmp_path / "vllm-weights"


def spawning(stand_in: Path, **settings) -> VllmRollout:
    return VllmRollout(mode="spawn", serve=ServeSettings(executable=str(stand_in), port=free_port()), **settings)


@pytest.mark.parametrize("logged, ends", [(True, "a line of"), (False, r"\(it cannot be read: ")])
def test_a_server_of_the_runs_own_that_dies_is_not_waited_for(stand_in, tmp_path, logged, ends):
    """Nobody starts it again; what ends with it is what is asked now, later, and what is pushed."""
    live = open_live(spawning(stand_in, timeout=600.0), fake_context(tmp_path))
    try:
        if not logged:
            (tmp_path / "vllm-server.log").unlink()
        os.kill(json.loads((tmp_path / "seen.json").read_text())["pid"], signal.SIGKILL)
        request = RolloutRequest(id="a", prompt_ids=(5,), seeds=(1,), sampling=Sampling(max_completion_length=4))
        for _ in range(2):
            with pytest.raises(RolloutError, match=rf"vllm serve ended with code -9; its log, .*vllm-server.log, ends:\n{ends}"):
                live.submit(request).result(60)
    finally:
        live.close()


def test_a_server_of_the_runs_own_has_room_for_every_rank_of_the_adapter(stand_in, tmp_path):
    context, config = fake_context(tmp_path), LoraConfig(r=4, target_modules="all-linear", rank_pattern={"q_proj": 12})
    models = {"policy": get_peft_model(context.models["policy"], config)}
    open_live(spawning(stand_in), attrs.evolve(context, models=models)).close()
    assert "--max-lora-rank 16 " in " ".join(json.loads((tmp_path / "seen.json").read_text())["arguments"])


def test_a_run_of_several_processes_hears_of_it_in_all_of_them(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    spawned = Spawned(Address(url="http://a:1"), process.pid, tmp_path / "log")
    assert spawned.gone() is None
    process.communicate()
    assert spawned.gone() == f"vllm serve, which the run started, ended; its log is {tmp_path / 'log'}"


@pytest.mark.parametrize("rank", [0, 1])
def test_whatever_fails_in_the_first_process_is_told_to_the_others(stand_in, tmp_path, monkeypatch, rank):
    told = [(None, (TruingError, "OSError: no more processes"))]

    def gathered(own: list) -> list:
        assert own[0] == (told[0] if rank == 0 else (None, None))
        return [told[0], (None, None)]

    def fails(*args: object) -> None:
        raise OSError("no more processes")

    monkeypatch.setattr("truing.train.ranks.gather_object", gathered)
    monkeypatch.setattr(Running, "start", fails)
    context = attrs.evolve(fake_context(tmp_path), rank=rank, num_ranks=2)
    with pytest.raises(TruingError, match="starting a vLLM server failed in process 0: OSError: no more processes"):
        open_live(spawning(stand_in), context)
