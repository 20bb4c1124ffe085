"""Explaining keys and plugins."""

from __future__ import annotations

import pytest

from tests.core.config_fakes import REGISTRY
from truing import ConfigError
from truing.config.explain import explain


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("trainer.learning_rate", "trainer.learning_rate: a float >= 0, default 5e-06\n    Peak learning rate."),
        ("learning_rate", "trainer.learning_rate: a float >= 0, default 5e-06\n    Peak learning rate."),
        ("trainer.max_steps", "trainer.max_steps: an int > 0, default null\n    Optimiser steps; overrides num_epochs."),
        ("model.adapter.r", "model.adapter.r: an int > 0, default 16\n    Rank."),
        ("model.name", "model.name: a string, required\n    Hub id or local folder of the model."),
        ("output.dir", "output.dir: a path, required\n    Run directory."),
        (
            "model.reference",
            "model.reference: one of auto, copy or a mapping, default auto\n    auto: with an adapter, the same",
        ),
        ("data.0.split", "data.split: a string, default train\n    Split, slices included: train[:10%]."),
        ("trainer.report_to", "trainer.report_to: a list (each one of tensorboard, wandb, mlflow, trackio), default []\n"),
        ("rewards.0.weight", "rewards.weight of every reward: a float, default 1.0\n    Factor of this reward in the sum."),
        (
            "trainer",
            "trainer: a mapping, default: that of each of its keys\n    The loop.\n  batch_size              Prompts (trees)",
        ),
        (
            "method",
            "method: a name or a mapping, required\n    The method: a name, or a mapping with name and its fields.\n  dpo   ",
        ),
        ("brevity", "brevity: a reward\n    Short is good.\n    From plugin 'fakes' ("),
        ("user.columns", "user.columns: a format for paired data\n    Pairs from columns of any name.\n"),
        ("method.loss_type", "method.loss_type of the method dpo: one of sigmoid, ipo, or a list of them, default sigmoid\n"),
        (
            "method.groups",
            "method.groups of the method dpo: a mapping, default {}\n    Sizes by name.\n    From plugin",
        ),
    ],
)
def test_explained(key, text):
    assert explain(key, REGISTRY).startswith(text)


def test_a_key_of_several_plugins_is_explained_for_each():
    text = explain("method.beta", REGISTRY)
    assert "method.beta of the method dpo: a float > 0, default 0.1" in text
    assert "method.beta of the method grpo: a float >= 0, default 0.0" in text


def test_a_plugin_is_explained_with_its_settings():
    text = explain("dpo", REGISTRY)
    assert "  label_smoothing: a float >= 0 and < 0.5, default 0.0\n      Share of flipped labels." in text


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("trainer.lerning_rate", "did you mean 'trainer.learning_rate'?"),
        ("lerning_rate", "did you mean 'learning_rate'?"),
        ("lr", "did you mean 'trainer.learning_rate'?"),
        ("brevty", "did you mean 'brevity'?"),
        ("quux", "the keys of the first level are recipe, method, model, data, eval_data, rollout, rewards, trainer, output"),
    ],
)
def test_an_unknown_key_is_an_error_that_suggests(key, hint):
    with pytest.raises(ConfigError) as caught:
        explain(key, REGISTRY)
    assert str(caught.value) == f"{key!r} is no key of the configuration and no plugin; {hint}"


def test_a_plugins_own_field_is_explained():
    assert explain("dpo.beta", REGISTRY).startswith("dpo.beta: a float > 0, default 0.1\n    Scale.\n    From plugin 'fakes' (")


@pytest.mark.parametrize("key", ["", "0", "."])
def test_an_empty_key_is_refused(key):
    with pytest.raises(ConfigError, match="the key is empty; give one, such as trainer.learning_rate"):
        explain(key, REGISTRY)
