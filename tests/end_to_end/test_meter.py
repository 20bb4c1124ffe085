"""How much a step computed and how fast, by hand, and the same on any number of ranks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.end_to_end.helpers import save_tiny_model, write_rows
from tests.end_to_end.steps import make_run, on_ranks, step
from truing.train.loop import _peak_megabytes
from truing.train.meter import Meter
from truing.train.step import StepResult

ROWS = [(10, 4, 6), (3, 8, 2), (20, 1, 5)]
"""Bytes, which are tokens, of a prompt and of its two answers, each of which an end token follows."""
TOKENS = sum(prompt + chosen + rejected + 2 for prompt, chosen, rejected in ROWS)
INPUTS = TOKENS - 2 * len(ROWS)
"""The last token of an answer is none."""
UNSHARED = INPUTS + sum(prompt for prompt, _, _ in ROWS)
"""With every prompt computed twice."""


@pytest.fixture
def folder(tmp_path):
    save_tiny_model(tmp_path / "model", architecture="gpt2")
    rows = [dict(zip(("prompt", "chosen", "rejected"), ("a" * size for size in sizes), strict=True)) for sizes in ROWS]
    write_rows(tmp_path / "rows.jsonl", rows)
    return tmp_path


def expect(metrics, *, padding, savings):
    assert metrics["tokens_per_second"] == TOKENS  # in the second that a step is said to have taken
    assert metrics["padding_fraction"] == pytest.approx(padding)
    assert metrics["shared_prefix_savings"] == pytest.approx(savings)


def test_a_row_with_shared_prompts(folder):
    """59 inputs instead of 92, so that a third is saved, and nothing is padded."""
    assert (TOKENS, INPUTS, UNSHARED) == (65, 59, 92)
    expect(step(make_run(folder, "run"))[0], padding=0.0, savings=33 / 92)


def test_padded_rows(folder):
    """Six rows as long as the longest, 25 inputs."""
    expect(step(make_run(folder, "run", forward="padded"))[0], padding=1 - 92 / 150, savings=0.0)


def test_padded_rows_of_two_micro_batches(folder):
    """Rows of 26 tokens twice, whose last ones are no input, and behind them four of at most 17 tokens."""
    metrics, _ = step(make_run(folder, "run", forward="padded", max_tokens_per_batch=68))
    expect(metrics, padding=1 - 92 / (2 * 25 + 4 * 16), savings=0.0)


@pytest.mark.parametrize("sharded", [False, True])
def test_two_ranks_sum_what_each_computed(folder, sharded):
    """Two trees on the first and one on the second, which computes another one with it where weights are spread, for nothing."""
    options = {"max_tokens_per_batch": 1, "batch_size": 2, "sharded": sharded}
    expect(on_ranks(folder, 2, **options)[0], padding=0.0, savings=33 / 92)


def test_tokens_by_the_time_of_all_steps():
    meter = Meter()
    for tokens, seconds in ((300, 2.0), (100, 0.5)):
        meter.add(StepResult(learning_rate=0.1, metrics={"loss": torch.tensor(1.0)}, tokens=tokens), seconds)
    alone = SimpleNamespace(num_processes=1, device=torch.device("cpu"), reduce=lambda tensor, reduction: tensor)
    assert meter.means(SimpleNamespace(accelerator=alone))["tokens_per_second"] == 160


def test_peak_memory_is_in_mebibytes(monkeypatch):
    """Linux says 3 GiB as 3 * 2^20 KiB."""
    monkeypatch.setattr("truing.train.loop.resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=3 * 2**20))
    on_cpu = SimpleNamespace(accelerator=SimpleNamespace(device=torch.device("cpu")))
    assert _peak_megabytes(on_cpu) == 3072
