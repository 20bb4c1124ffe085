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


def first_third(prompt, response):
    return float(response[:1] in "abcdefgh")


def second_third(prompt, response):
    return float(response[:1] in "ijklmnopq")


def last_third(prompt, response):
    return 1 - first_third(prompt, response) - second_third(prompt, response)


def alike(prompt, response):
    return 1.0


def history(folder, method, rollout=None, rewards=(vowels,), **trainer):
    tokenizer = tiny_tokenizer()
    truing.align(
        model=tiny_model(tokenizer),
        tokenizer=tokenizer,
        dataset=ROWS,
        method=method,
        format="text",
        rollout=RolloutConfig(backend=FakeRollout(), num_generations=4, max_completion_length=6, **(rollout or {})),
        rewards=list(rewards),
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


@pytest.mark.parametrize(
    ("settings", "rewards"),
    [
        ({"multi_objective_aggregation": "normalize_then_sum"}, [first_third, second_third, last_third]),
        ({"overlong_buffer": 5}, [alike]),
    ],
    ids=["one_reward_or_another", "lengths"],
)
def test_prompts_that_teach_something_are_not_sampled_anew_for_equal_sums(tmp_path, settings, rewards):
    """Every completion's rewards sum to 1: to plain GRPO all of 8 prompts are flat, three times; to the method some differ."""
    options = {"rewards": rewards, "batch_size": 8}
    plain = history(tmp_path / "plain", GRPO(dynamic_sampling=2), **options)
    lines = history(tmp_path / "run", GRPO(dynamic_sampling=2, **settings), **options)
    assert [(line["frac_reward_zero_std"], line["dynamic_sampling/resampled"]) for line in plain] == [(1, 16)] * 2
    assert all(line["frac_reward_zero_std"] < 1 and line["dynamic_sampling/resampled"] < 16 for line in lines)
    advantages = [json.loads(line) for line in (tmp_path / "run/completions.jsonl").read_text().splitlines()]
    groups = {(line["step"], line["sample"]) for line in advantages}
    taught = {(line["step"], line["sample"]) for line in advantages if abs(line["advantage"]) > 1e-6}
    flat = 1 - len(taught) / len(groups)
    assert sum(line["frac_reward_zero_std"] for line in lines) / 2 == pytest.approx(flat)
