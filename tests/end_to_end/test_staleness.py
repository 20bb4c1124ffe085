"""Sampling ahead of training: how far, with which weights, and that every prompt is trained on once, whatever happens."""

from __future__ import annotations

import shutil
from collections import Counter

import pytest

from tests.core.engines import Letters
from tests.end_to_end.test_online import ROWS, Repeated, align, completions
from tests.end_to_end.test_resume import history
from truing import ConfigError, RolloutError, TruingError
from truing.config import RewardEntry
from truing.rewards import as_reward
from truing.testing.fakes import FakeRollout
from truing_grpo import GRPO

CORRECTED = GRPO(importance_sampling_correction="token_truncate")


def run(folder, method=CORRECTED, *, staleness=2, letters=None, **options):
    backend = letters or Letters(seconds_per_token=0.002)
    state = align(folder, method, rollout={"backend": backend, "max_staleness": staleness}, **options)
    return state, backend.opened[-1]


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_lots_are_asked_for_as_far_ahead_as_staleness_allows_and_none_is_older(tmp_path, staleness):
    state, live = run(tmp_path / "run", staleness=staleness, num_epochs=2)
    assert live.pushed == list(range(10)) and live.closed
    lines = completions(tmp_path / "run")
    assert Counter(line["sample"] for line in lines) == dict.fromkeys(range(len(ROWS)), 2 * 4)
    oldest = [line["step"] - 1 - line["version"] for line in lines]
    assert max(oldest) == staleness
    if staleness:
        assert [line["staleness/max"] for line in state.history] == [min(step, staleness) for step in range(10)]
    assert len(live.submitted) == 2 * len(ROWS), "nothing is asked for that no step trains on"


def test_what_is_sampled_does_not_depend_on_staleness(tmp_path):
    for staleness in (0, 2):
        run(tmp_path / str(staleness), staleness=staleness, num_epochs=1)
    now, ahead = (
        sorted((line["step"], line["sample"], line["completion"]) for line in completions(tmp_path / one)) for one in "02"
    )
    assert now == ahead


def test_a_completion_in_flight_goes_on_across_an_update_and_says_so(tmp_path):
    run(tmp_path / "run", letters=Letters(seconds_per_token=0.05), num_epochs=1)
    spans = [line["versions"] for line in completions(tmp_path / "run") if "versions" in line]
    assert spans
    for of_completion in spans:
        assert [end for _, _, end in of_completion[:-1]] == [start for _, start, _ in of_completion[1:]]
        assert [version for version, _, _ in of_completion] == sorted({version for version, _, _ in of_completion})


def test_several_steps_on_a_lot_are_one_version(tmp_path):
    state, live = run(tmp_path / "run", Repeated(), staleness=1, num_epochs=2)
    assert live.pushed == [0, 4, 8, 12, 16, 20]
    assert max(line["staleness/max"] for line in state.history) == 1


def test_completions_of_weights_beyond_the_bound_are_dropped_counted_and_sampled_anew(tmp_path):
    state, live = run(tmp_path / "run", staleness=1, letters=Letters(late_by=4), num_epochs=2)
    dropped = [line["completions/dropped_stale"] for line in state.history]
    # at step 3 the backend has the first weights still, two versions behind
    assert dropped[:2] == [0, 0] and dropped[2] >= 2 * 4 and sum(dropped) % 4 == 0
    assert max(line["staleness/max"] for line in state.history) == 1
    lines = completions(tmp_path / "run")
    assert Counter(line["sample"] for line in lines) == dict.fromkeys(range(len(ROWS)), 2 * 4)
    assert len(live.submitted) == 2 * len(ROWS) + sum(dropped) / 4


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_backend_that_never_takes_weights_ends_the_run_with_a_checkpoint(tmp_path, capsys):
    with pytest.raises(RolloutError, match="still samples from weights of version 0, and none before 1"):
        run(tmp_path / "run", staleness=1, letters=Letters(late_by=99), max_steps=6)
    assert "step-00000002 before it ends for what follows; --resume goes on" in said(capsys)


@pytest.mark.parametrize("staleness", [0, 2])
def test_when_the_backend_is_gone_the_run_is_saved_and_goes_on_with_every_prompt_once(tmp_path, staleness):
    folder = tmp_path / "run"
    with pytest.raises(RolloutError, match="the server at letters is gone"):
        run(folder, staleness=staleness, letters=Letters(gone_after=13), num_epochs=2)
    state, _ = run(folder, staleness=staleness, num_epochs=2, resume=True)
    assert state.step == 10
    assert Counter(line["sample"] for line in completions(folder)) == dict.fromkeys(range(len(ROWS)), 2 * 4)
    assert len({(line["step"], line["sample"]) for line in completions(folder)}) == 2 * len(ROWS)


def test_what_was_learned_before_an_error_is_saved_whatever_the_error_is_and_no_line_of_the_log_is_lost(tmp_path, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(whole, staleness=0, num_epochs=2, logging_steps=4)

    def fails(prompt, response):
        calls.append(response)
        if len(calls) > 6 * 8:
            raise RuntimeError("no more")
        return 1.0

    calls = []
    entry = RewardEntry(reward=as_reward(fails), on_error="fail")
    with pytest.raises(TruingError, match="no more"):
        run(broken, staleness=0, num_epochs=2, logging_steps=4, rewards=[entry])
    assert "--resume goes on" in said(capsys)
    run(broken, staleness=0, num_epochs=2, logging_steps=4, resume=True)
    assert [line["step"] for line in history(broken)] == [1, 4, 6, 8, 10]
    assert [line["step"] for line in history(whole)] == [1, 4, 8, 10]


def test_an_evaluation_that_failed_is_made_up_for(tmp_path):
    options = {"staleness": 0, "num_epochs": 2, "eval_dataset": ROWS[:2], "eval_steps": 5}
    with pytest.raises(RolloutError):
        run(tmp_path / "run", letters=Letters(gone_after=10), **options)
    state, _ = run(tmp_path / "run", resume=True, **options)
    assert [line["step"] for line in state.history if "eval_reward" in line] == [5, 10]


@pytest.mark.parametrize("step", [1, 4, 7])
def test_a_run_that_is_killed_goes_on_with_every_prompt_once(tmp_path, step):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(whole, num_epochs=2, save_steps=1)
    shutil.copytree(whole, resumed)
    for later in range(step + 1, 11):
        shutil.rmtree(resumed / "checkpoints" / f"step-{later:08d}")
    shutil.rmtree(resumed / "model")
    run(resumed, num_epochs=2, save_steps=1, resume=True)
    one, other = (
        [(line["step"], line["sample"], line["completion"]) for line in completions(folder)] for folder in (whole, resumed)
    )
    assert one == other
    assert len(history(resumed)) == len(history(whole))


def test_a_backend_in_process_cannot_run_ahead(tmp_path):
    with pytest.raises(ConfigError, match="max_staleness is 1, and fake cannot sample while the policy trains; set it to 0"):
        align(tmp_path / "run", rollout={"backend": FakeRollout(), "max_staleness": 1}, max_steps=1)


def test_a_method_that_does_not_correct_is_warned_of(tmp_path, capsys):
    run(tmp_path / "run", GRPO(), max_steps=1)
    assert "takes what older weights sampled for its own" in said(capsys)
    run(tmp_path / "other", max_steps=1)
    assert "older weights" not in capsys.readouterr().out
