"""What sampling ahead saves: python -m tests.benchmarks.staleness [--rounds 3] [--steps 40] [--executable VLLM].

GRPO on a small random Llama, which is to write the letter a, from a real vLLM server that has one core to itself, with the trainer
on the other: the same run with rollout.max_staleness 0 and 1, turn by turn against one server. Seconds are wall time between lines
of the log, so that start and end of a run are left out. The program is built by `make test-rollouts`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import attrs

from truing.testing import tiny_model, tiny_tokenizer

VLLM = Path("~/.cache/truing/rollouts/vllm/bin/vllm").expanduser()
WARM_UP = 4
"""Steps that are not timed."""
TOKENS = 32
REWARD = """
def letters(completions, **columns):
    return [text.count("a") / max(1, len(text)) for text in completions]
"""
START_SECONDS = 600


@attrs.frozen
class Found:
    """What a run showed."""

    seconds: float
    """Median wall time of a step."""
    sampling: float
    """Median of what it waited for completions."""
    first_reward: float
    last_reward: float
    """Mean rewards of the first and the last tenth of the steps."""
    gap: float
    """Mean distance of the sampler's log-probabilities from the trainer's, in nats."""


def config(folder: Path, staleness: int, arguments: argparse.Namespace) -> Path:
    """Write the configuration of a run."""
    values = {
        "method": {"name": "grpo", "importance_sampling_correction": "token_truncate"},
        "model": {"name": str(folder / "model")},
        "data": {"path": str(folder / "prompts.jsonl"), "format": "text"},
        "rollout": {
            "name": "vllm",
            "server": f"unix:{folder / 'v.sock'}",
            "weights_dir": str(folder / "weights"),
            "num_generations": arguments.generations,
            "max_completion_length": TOKENS,
            "max_staleness": staleness,
            "serve": {
                "executable": str(arguments.executable),
                "uds": str(folder / "v.sock"),
                "dtype": "float32",
                "enforce_eager": True,
                "args": ["--no-enable-chunked-prefill"],  # in parts, a CPU cannot compute prompts of seeded requests
                "kv_cache_memory_bytes": 2**28,
                "start_timeout": START_SECONDS,
            },
        },
        "rewards": ["rewards.letters"],
        "trainer": {
            "batch_size": arguments.prompts,
            "learning_rate": 3e-4,
            "warmup_ratio": 0.1,
            "max_steps": arguments.steps,
            "logging_steps": 1,
        },
        "output": {"dir": str(folder / f"run-{staleness}")},
    }
    path = folder / f"staleness-{staleness}.yaml"
    path.write_text(json.dumps(values))
    return path


def write_inputs(folder: Path, arguments: argparse.Namespace) -> None:
    """Write model, prompts and reward."""
    tokenizer = tiny_tokenizer()
    # a head size that vLLM's kernels for CPUs know
    model = tiny_model(
        tokenizer, hidden_size=arguments.hidden, layers=6, heads=arguments.hidden // 32, kv_heads=2, initializer_range=0.05
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rows = ({"prompt": f"Letters, number {number}: "} for number in range(256))
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(REWARD)


def truing(core: int, *arguments: str) -> list[str]:
    """Return the command line of truing on one core."""
    return ["taskset", "-c", str(core), sys.executable, "-m", "truing", *arguments]


@contextmanager
def server(path: Path, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a vLLM server on the first core."""
    command = truing(0, "vllm-serve", str(path), f"output.dir={folder / 'server'}")
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not (folder / "server" / "vllm-server.json").exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the server did not start:\n{(folder / 'server.log').read_text()[-3000:]}")
                time.sleep(0.5)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def one_thread() -> dict[str, str]:
    """Return an environment in which server and trainer compute with one thread each, and have a token in common."""
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    return {**os.environ, **own, "TRUING_VLLM_TOKEN": secrets.token_hex(16)}


def run(path: Path, environment: dict[str, str]) -> Found:
    """Train on the second core, and time the lines of the log."""
    with subprocess.Popen(truing(1, "train", str(path)), stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        output, times = [], []
        for line in process.stdout:
            output.append(line)
            if re.match(r"step \d+/\d+  loss", line):
                times.append(time.monotonic())
    if process.returncode:
        raise SystemExit("".join(output[-30:]))
    folder = Path(json.loads(path.read_text())["output"]["dir"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "reward" in line]
    tenth = max(1, len(steps) // 10)
    return Found(
        seconds=statistics.median(later - earlier for earlier, later in zip(times[WARM_UP:-1], times[WARM_UP + 1 :], strict=False)),
        sampling=statistics.median(line["seconds/sampling"] for line in steps[WARM_UP:]),
        first_reward=statistics.fmean(line["reward"] for line in steps[:tenth]),
        last_reward=statistics.fmean(line["reward"] for line in steps[-tenth:]),
        gap=statistics.fmean(line["sampling/sampling_logp_difference/mean"] for line in steps),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for each run, and the medians of the rounds' ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--executable", type=Path, default=VLLM)
    parser.add_argument("--staleness", type=int, default=1)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder, ratios = Path(name), []
        write_inputs(folder, given)
        paths = [config(folder, staleness, given) for staleness in (0, given.staleness)]
        environment = one_thread()
        with server(paths[0], folder, environment):
            for round_ in range(given.rounds):
                found = []
                for path in paths:
                    shutil.rmtree(json.loads(path.read_text())["output"]["dir"], ignore_errors=True)
                    found.append(run(path, environment))
                    print(f"round {round_ + 1} {path.stem}: {attrs.asdict(found[-1])}", flush=True)
                ratios.append(found[0].seconds / found[1].seconds)
                share = found[0].sampling / found[0].seconds
                print(
                    f"round {round_ + 1}: sampling is {share:.0%} of a synchronous step; {ratios[-1]:.2f} times as fast", flush=True
                )
        print(f"median {statistics.median(ratios):.2f} (wanted 1.5)")


if __name__ == "__main__":
    main()
