"""Configurations that are built by hand in Python, and plugins that are instances."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar

import attrs
import numpy as np
import pytest
import torch

import truing
from tests.core.config_fakes import REGISTRY, Brevity, Pairs, Sampled, Server
from truing import ConfigError, Layout, Loss, Needs, setting
from truing.config import (
    DataConfig,
    ModelConfig,
    OutputConfig,
    RewardEntry,
    RolloutConfig,
    TrainConfig,
    TrainerConfig,
    build_config,
    checked,
)
from truing.data.strategies import Preference, PromptText


@attrs.frozen(kw_only=True)
class MyLoss(Loss):
    """A loss that no plugin registers."""

    name: ClassVar[str] = "mine"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs = Needs.NOTHING
    beta: float = setting(0.1, gt=0, help="Scale.")

    def __call__(self, inputs):
        raise NotImplementedError


@attrs.frozen(kw_only=True)
class NoLoss:
    """An attrs class that is no method."""

    name: ClassVar[str] = "none"


VALUES = {
    "method": Pairs(),
    "model": ModelConfig(name="m"),
    "data": (DataConfig(path="d.jsonl", format=Preference()),),
    "output": OutputConfig(dir=Path("out")),
}


def by_hand(**changes):
    return TrainConfig(**{**VALUES, **changes})


def failure(**changes):
    with pytest.raises(ConfigError) as caught:
        checked(by_hand(**changes), registry=REGISTRY)
    return str(caught.value)


def test_what_is_right_stays_as_it_is():
    config = by_hand(base_dir=Path("folder"), method=Pairs(beta=0.3))
    assert checked(config, registry=REGISTRY) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"output": OutputConfig(dir="out")},
        {"output": {"dir": "out"}},
        {"data": VALUES["data"][0]},
        {"data": list(VALUES["data"])},
        {"data": DataConfig(path=Path("d.jsonl"), format="preference")},
        {"method": "dpo"},
        {"trainer": {}},
        {"trainer": TrainerConfig(num_epochs=1, report_to=[])},
        {"model": {"name": "m"}},
    ],
)
def test_what_is_meant_is_converted(changes):
    assert checked(by_hand(**changes), registry=REGISTRY) == by_hand()


def test_rewards_and_rollouts_stay_instances():
    config = by_hand(
        method=Sampled(),
        data=DataConfig(path="d.jsonl", format=PromptText()),
        rollout=RolloutConfig(backend=Server(port=9000), num_generations=2),
        rewards=[RewardEntry(reward=Brevity(limit=7), weight=2)],
    )
    result = checked(config, registry=REGISTRY)
    assert result.rewards == (RewardEntry(reward=Brevity(limit=7), weight=2.0),)
    assert result.rollout == RolloutConfig(backend=Server(port=9000), num_generations=2)


def test_all_faults_come_in_one_error():
    message = failure(trainer=TrainerConfig(learning_rate="5e-6"), model=ModelConfig(name=3), output=None)
    assert "trainer.learning_rate must be a float, got the string '5e-6'; remove the quotes" in message
    assert "model.name must be a string, got 3; put it in quotes" in message
    assert "output is required" in message


def test_a_thing_that_is_no_configuration_is_refused():
    with pytest.raises(ConfigError, match="config must be a TrainConfig, got dict; truing.config.build_config makes one"):
        checked({}, registry=REGISTRY)


@pytest.mark.parametrize("cast", [np.int64, np.int32, np.uint8])
def test_numpys_integers_are_numbers(cast):
    trainer = checked(by_hand(trainer=TrainerConfig(batch_size=cast(2), num_epochs=cast(3))), registry=REGISTRY).trainer
    assert (trainer.batch_size, trainer.num_epochs) == (2, 3.0)
    assert (type(trainer.batch_size), type(trainer.num_epochs)) == (int, float)


@pytest.mark.parametrize("cast", [np.float64, np.float32])
def test_numpys_floats_are_numbers_and_bounds_hold(cast):
    assert type(checked(by_hand(trainer=TrainerConfig(num_epochs=cast(0.5))), registry=REGISTRY).trainer.num_epochs) is float
    with pytest.raises(ValueError, match="num_epochs must be > 0"):
        TrainerConfig(num_epochs=cast(-1))


def test_a_users_own_unregistered_loss_and_instances_fill_slots():
    config = build_config({**VALUES, "method": MyLoss(beta=0.3), "data": {"path": "d", "format": Preference()}}, registry=REGISTRY)
    assert config.method == MyLoss(beta=0.3)
    assert config.data[0].format == Preference()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": MyLoss}, "method is the class MyLoss; give an instance, MyLoss()"),
        ({"method": NoLoss()}, "method is an instance of NoLoss, which is no method: class NoLoss: `layout` is None"),
        ({"method": Preference()}, "method is an instance of Preference, which is no method"),
        (
            {"data": DataConfig(path="d", format=PromptText())},
            "data.format is a PromptText, for the layouts rollout, and the method's is paired",
        ),
    ],
)
def test_an_instance_that_does_not_fit_is_refused(changes, message):
    assert message in failure(**changes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": "0.3"}, "beta must be a float, got the string '0.3'; remove the quotes"),
        ({"beta": True}, "beta must be a float, got true"),
        ({"loss_type": "sigmod"}, "loss_type must be one of sigmoid, ipo, got 'sigmod'; did you mean 'sigmoid'?"),
        ({"loss_weights": [1, "2"]}, "loss_weights.1 must be a float, got the string '2'; remove the quotes"),
        ({"groups": {"a": 1.5}}, "groups.a must be an int, got 1.5"),
        ({"label_smoothing": "0.1"}, "label_smoothing must be a float, got the string '0.1'; remove the quotes"),
    ],
)
def test_a_plugin_that_is_made_with_a_value_of_another_type_is_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Pairs(**settings)


@attrs.frozen(kw_only=True)
class Loose(MyLoss):
    """A loss with a field that checks nothing itself, and with one of a type that no YAML can write."""

    scale: float = 1.0
    device: torch.device = setting(torch.device("cpu"), help="Where.")


def test_the_settings_of_an_instance_are_checked_with_the_other_faults():
    message = failure(method=Loose(scale="2", beta=None), trainer=TrainerConfig(batch_size=1.5))
    assert "method.scale must be a float, got the string '2'; remove the quotes" in message
    assert "method.beta must be a float, got null" in message
    assert "trainer.batch_size must be an int, got 1.5" in message


def test_a_reward_that_is_an_instance_is_checked_too():
    online = {"method": Sampled(), "data": DataConfig(path="d.jsonl", format=PromptText())}
    assert failure(**online, rewards=[Brevity(limit=None)]) == "rewards.0.limit must be an int, got null"
    assert checked(by_hand(**online, rewards=[len_of]), registry=REGISTRY).rewards[0].reward.name == "len_of"


def len_of(completions):
    return [float(len(text)) for text in completions]


def test_the_settings_of_an_instance_are_converted_as_those_of_a_configuration_are():
    """NumPy's numbers and lists could not be written to the run's config.yaml, or not be read back as the same."""
    method = checked(by_hand(method=Loose(beta=np.float32(0.5), device=torch.device("meta"))), registry=REGISTRY).method
    assert (method.beta, type(method.beta), method.device) == (0.5, float, torch.device("meta"))
    assert checked(by_hand(method=Pairs(loss_weights=[1, 2])), registry=REGISTRY).method == Pairs(loss_weights=(1.0, 2.0))


def test_settings_of_a_method_that_is_an_instance_are_set_on_it():
    with pytest.raises(ConfigError, match=r"method is an instance of MyLoss; set beta on it: MyLoss\(beta=...\)"):
        truing.align(model="m", dataset="d.jsonl", method=MyLoss(), beta=0.2, max_steps=1, output_dir="out")


def test_align_checks_a_configuration_before_it_trains():
    with pytest.raises(ConfigError, match="trainer.learning_rate must be a float"):
        truing.align(config=by_hand(method=MyLoss(), trainer=TrainerConfig(learning_rate="5e-6")))


def test_the_users_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked(by_hand(output=OutputConfig(dir="~/runs")), registry=REGISTRY).output.dir == tmp_path / "runs"
    assert "output.dir is '~nobody-of-that-name/runs', and there is no such home folder" in failure(
        output=OutputConfig(dir="~nobody-of-that-name/runs")
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "rows.jsonl", "name": "main"}, "data.name is only for datasets of the hub, and rows.jsonl is a file; remove it"),
        (
            {"path": "rows.csv", "revision": "v1"},
            "data.revision is only for datasets of the hub, and rows.csv is a file; remove it",
        ),
        (
            {"path": "owner/rows", "weight": 2.0},
            "data.weight is only for several datasets that are mixed, and there is one; remove it",
        ),
    ],
)
def test_what_a_dataset_cannot_have_is_said(entry, message):
    assert failure(data=DataConfig(format=Preference(), **entry)) == message


def test_the_hub_has_names_and_revisions():
    entry = DataConfig(path="owner/rows", name="main", revision="v1", format=Preference())
    assert checked(by_hand(data=entry), registry=REGISTRY).data == (entry,)
