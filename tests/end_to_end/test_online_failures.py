"""What failing rewards and backends cost a run that samples its completions: their samples, or whole steps, and when the run."""

from __future__ import annotations

import shutil
import signal
from typing import ClassVar

import attrs
import pytest
import torch

import truing
from tests.core.good_losses import Grpo
from tests.end_to_end.helpers import save_tiny_model, train_by, write_rows
from tests.end_to_end.test_online import ROWS, Repeated, align, completions
from tests.end_to_end.test_resume import history
from truing import RolloutError, TruingError
from truing.config import RewardEntry
from truing.testing import tiny_model, tiny_tokenizer
from truing.testing.fakes import FakeRollout, LiveFakeRollout


def test_what_a_failing_reward_costs(tmp_path):
    def picky(prompt, response):
        if "a" in response:
            raise RuntimeError("no a, please")
        return 1.0

    state = align(tmp_path / "run", rewards=[RewardEntry(reward=truing.rewards.as_reward(picky))], max_steps=1, batch_size=8)
    lines = completions(tmp_path / "run")
    assert all("a" not in line["completion"] for line in lines)
    assert state.history[0]["completions/lost"] == 8 * 4 - len(lines) > 0
    assert state.history[0]["rewards/picky/error_rate"] == pytest.approx(1 - len(lines) / 32)
    with pytest.raises(TruingError, match="picky"):
        entry = RewardEntry(reward=truing.rewards.as_reward(picky), on_error="fail")
        align(tmp_path / "fail", rewards=[entry], max_steps=1, batch_size=8)


@attrs.frozen(kw_only=True)
class Unsure(FakeRollout):
    """Fails on the first completion of each prompt, and tells something of the others."""

    name: ClassVar[str] = "unsure"

    def open(self, context):
        class Live(LiveFakeRollout):
            def generate(self, requests):
                for completion in super().generate(requests):
                    failed = {"finish_reason": "error", "extra": {"error": "out of letters"}}
                    yield attrs.evolve(completion, **(failed if completion.index == 0 else {"extra": {"turns": "many"}}))

        return Live(context.tokenizer)


def test_what_a_failing_backend_costs(tmp_path):
    state = align(tmp_path / "run", rollout={"backend": Unsure()}, max_steps=2)
    assert state.history[0]["completions/error_rate"] == 0.25 and state.history[0]["completions/lost"] == 2
    assert len(completions(tmp_path / "run")) == 2 * 2 * 3
    with pytest.raises(
        RolloutError, match="failed on 2 of 8 completions, more than .* 0.2 allows; the first failure: out of letters"
    ):
        align(tmp_path / "strict", rollout={"backend": Unsure(), "max_error_rate": 0.2}, max_steps=2)


@attrs.frozen(kw_only=True)
class Stopped(FakeRollout):
    """Is sent a signal while it starts, which may take minutes."""

    name: ClassVar[str] = "stopped"

    def open(self, context):
        signal.raise_signal(signal.SIGTERM)
        return super().open(context)


def test_a_stop_while_the_backend_starts_ends_the_run_at_once(tmp_path):
    with pytest.raises(TruingError, match="stopped by SIGTERM before the first step") as stopped:
        align(tmp_path / "run", rollout={"backend": Stopped()}, max_steps=2)
    assert stopped.value.exit_code == 143


def test_what_a_reward_costs_that_fails_on_everything(tmp_path, capsys):
    def broken(prompt, response):
        raise RuntimeError("out of order")

    def run(name, **limits):
        entry = RewardEntry(reward=truing.rewards.as_reward(broken), **limits)
        return align(tmp_path / name, rewards=[entry], max_steps=2)

    before = {name: weight.clone() for name, weight in tiny_model(tiny_tokenizer()).named_parameters()}
    state = run("lenient", max_error_rate=1)
    assert state.step == 2 and all(torch.equal(weight, before[name]) for name, weight in state.model.named_parameters())
    assert [line["completions/lost"] for line in state.history] == [8, 8] and not (tmp_path / "lenient/completions.jsonl").exists()
    assert not any(name.startswith(("completions/clipped", "completions/max")) for name in state.history[0])
    assert "step 2: none of 8 completions has a score" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(TruingError, match="has no score for 8 of 8 samples, more than its max_error_rate 0.5 allows"):
        run("default")


@attrs.frozen(kw_only=True)
class LateRiser(FakeRollout):
    """Fails on all of the first rollout batch."""

    name: ClassVar[str] = "late-riser"

    def open(self, context):
        class Live(LiveFakeRollout):
            def generate(self, requests):
                for completion in super().generate(requests):
                    failed = completion.request_id.startswith("lot.0.")
                    yield attrs.evolve(completion, finish_reason="error") if failed else completion

        return Live(context.tokenizer)


def test_what_fails_while_groups_are_drawn_again_ends_no_run_that_it_would_not_have_ended_before(tmp_path):
    """A reward fails on two prompts of eight. Drawn again thrice, they would be 8 + 24 failures of 32 + 24, which is too many."""

    @attrs.frozen(kw_only=True)
    class Dynamic(Grpo):
        name: ClassVar[str] = "dynamic"
        dynamic_sampling: int = truing.setting(3, ge=0, help="Times.")

    def half_blind(prompt, response, answer):
        if answer < 2:
            raise RuntimeError("cannot see")
        return float(sum(map(ord, response)))

    for on_error, lost in (("mask", 2 * 4), (0.0, 0)):
        entry = RewardEntry(reward=truing.rewards.as_reward(half_blind), on_error=on_error)
        folder = tmp_path / str(on_error)
        line = align(folder, Dynamic(), rewards=[entry], max_steps=1, batch_size=8, dataset=ROWS[:8]).history[0]
        assert (line["completions/lost"], line["dynamic_sampling/resampled"]) == (lost, 0)
        assert line["rewards/half_blind/error_rate"] == 0.25
    with pytest.raises(RolloutError, match="failed on 32 of 32 completions, more than rollout.max_error_rate 0.5 allows"):
        align(tmp_path / "late", Dynamic(), rollout={"backend": LateRiser()}, max_steps=1, batch_size=8, dataset=ROWS[:8])


def test_a_rollout_batch_that_is_lost_changes_nothing_and_can_be_resumed_within(tmp_path):
    def run(name, **options):
        rollout = {"backend": LateRiser(), "max_error_rate": 1}
        return align(tmp_path / name, Repeated(), rollout=rollout, save_steps=1, **options)

    whole = run("whole", max_steps=6)
    assert ["loss" in line for line in whole.history] == [False] * 4 + [True] * 2
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for later in range(3, 7):
        shutil.rmtree(tmp_path / "resumed/checkpoints" / f"step-{later:08d}")
    resumed = run("resumed", max_steps=6, resume=True)
    assert history(tmp_path / "resumed") == history(tmp_path / "whole") and resumed.step == 6
    assert completions(tmp_path / "resumed") == completions(tmp_path / "whole") != []


WORST = """
import ctypes
import os
import time


def good(prompts, completions, **columns):
    return [float(len(set(text))) for text in completions]


def unless_bad(act):
    return lambda prompts, completions, **columns: act(completions) if "bad" in prompts else good(prompts, completions)


exits_hard = unless_bad(lambda texts: os._exit(0))
crashes = unless_bad(lambda texts: ctypes.string_at(0))
hangs = unless_bad(lambda texts: time.sleep(1000))
raises = unless_bad(lambda texts: [1.0][1])
nan = unless_bad(lambda texts: [float("nan")] * len(texts))
too_few = unless_bad(lambda texts: [1.0] * (len(texts) - 1))
"""


def test_a_run_survives_the_worst_rewards_together(tmp_path):
    """All but one fail on one prompt of four: on 2 of 8 completions of each step, which are lost; the rest is trained on."""
    save_tiny_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", [{"prompt": text} for text in ("one", "bad", "two", "three")])
    (tmp_path / "worst.py").write_text(WORST)
    worst = ("exits_hard", "crashes", "hangs", "raises", "nan", "too_few")
    config = {
        "method": "grpo",
        "model": {"name": "model"},
        "data": {"path": "rows.jsonl", "format": "text"},
        "rollout": {"num_generations": 2, "max_completion_length": 8},
        "rewards": ["worst.good", *({"name": f"worst.{name}", "timeout": 1 if name == "hangs" else 20} for name in worst)],
        "trainer": {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "logging_steps": 1, "reward_workers": 2},
    }
    train_by(tmp_path, config)
    lines = history(tmp_path / "run")
    assert len(lines) == 2
    for line in lines:
        rates = {name.split("/")[1]: value for name, value in line.items() if name.endswith("error_rate") and "rewards" in name}
        assert rates == {"worst.good": 0.0} | {f"worst.{name}": 0.25 for name in worst}
        assert line["completions/lost"] == 2 and line["grad_norm"] > 0
    written = completions(tmp_path / "run")
    assert len(written) == 2 * 6 and "bad" not in {line["prompt"] for line in written}
    assert all(set(line["rewards"].values()) == {line["rewards"]["worst.good"]} for line in written)
    said = (tmp_path / "run/rewards.log").read_text()
    for why in (
        "ended itself with exit code 0",
        "died of SIGSEGV",
        "not answered within 1 s",
        "IndexError",
        "returned nan",
        "1 scores",
    ):
        assert why in said, why
