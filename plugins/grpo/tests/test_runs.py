"""Runs of a tiny model on random letters: what core's loop and the method make of each other."""

from __future__ import annotations

import json

import pytest

import truing
from truing.config import RolloutConfig
from truing.testing import FakeRollout, tiny_model, tiny_tokenizer
from truing_grpo import GRPO

ROWS = [{"prompt": f"{number}+{number}="} for number in range(8)]


def vowels(prompt, response):
    return float(sum(letter in "aeiou" for letter in response))


def history(folder, method, rollout=None, **trainer):
    tokenizer = tiny_tokenizer()
    truing.align(
        model=tiny_model(tokenizer),
        tokenizer=tokenizer,
        dataset=ROWS,
        method=method,
        format="text",
        rollout=RolloutConfig(backend=FakeRollout(), num_generations=4, max_completion_length=6, **(rollout or {})),
        rewards=[vowels],
        output_dir=folder,
        **{"batch_size": 2, "learning_rate": 1e-3, "logging_steps": 1, "max_steps": 2, **trainer},
    )
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("settings", "metrics"),
    [
        ({"beta": 0.1, "num_minibatches": 2, "mask_truncated_completions": True}, {"kl", "clip_ratio/region_mean"}),
        ({"top_entropy_quantile": 0.4, "entropy_coef": 0.1}, {"entropy", "policy_loss"}),
        (
            {"importance_sampling_correction": "token_truncate", "off_policy_mask_threshold": 0.5, "overlong_buffer": 3},
            {"sampling/importance_sampling_ratio/mean", "off_policy_mask_ratio"},
        ),
        ({"loss_type": "dr_grpo", "scale_rewards": "none"}, set()),
    ],
    ids=["kl", "entropy", "sampler", "dr_grpo"],
)
def test_a_run_does_not_depend_on_how_its_steps_are_cut(tmp_path, settings, metrics):
    """One forward, or several of at most 40 tokens: the same loss, gradient and metrics."""
    whole = history(tmp_path / "whole", GRPO(**settings))
    cut = history(tmp_path / "cut", GRPO(**settings), max_tokens_per_batch=40)
    names = metrics | {"loss", "grad_norm", "reward"}
    assert len(whole) == 2 and whole[0]["grad_norm"] > 0
    for one, other in zip(whole, cut, strict=True):
        assert {name: one[name] for name in names} == pytest.approx({name: other[name] for name in names}, rel=1e-4, abs=1e-6)


def test_rollouts_of_several_steps_are_compared_with_their_start(tmp_path):
    """The first step clips nothing, the second one does; rollout.prompts_per_batch makes two of them where no setting does."""
    lines = history(tmp_path, GRPO(epsilon=1e-4), {"prompts_per_batch": 4}, learning_rate=1e-2)
    assert lines[0]["clip_ratio/region_mean"] == 0 < lines[1]["clip_ratio/region_mean"]
