"""The one state: taken over whole, or not at all."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from truing.config import TrainerConfig
from truing.testing import tiny_model, tiny_tokenizer
from truing.train.checkpoint import DamagedError
from truing.train.optimizer import make_optimizer, make_schedule
from truing.train.state import TrainState, random_state, restore_random_state


def make_state(tmp_path, steps=0, seed=0):
    model = tiny_model(seed=seed)
    trainer = TrainerConfig(learning_rate=1e-2)
    optimizer = make_optimizer(model, trainer)
    schedule = make_schedule(optimizer, trainer, 10)
    for _ in range(steps):
        sum((weight * weight).sum() for weight in model.parameters()).backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return TrainState(
        model=model, tokenizer=tiny_tokenizer(), output_dir=tmp_path, tokens_per_batch=512, step=steps, optimizer=optimizer,
        scheduler=schedule, loss_state={"mean": torch.tensor(float(steps)), "count": steps},
    )  # fmt: skip


def parts(state):
    return state.numbers(), state.weights(), state.optimizer_tensors(), state.loss_tensors()


def copied(tables):
    return [{name: value.clone() for name, value in table.items()} for table in tables]


def test_a_state_is_taken_over_to_the_last_bit(tmp_path):
    old, new = make_state(tmp_path, steps=3), make_state(tmp_path, seed=1)
    new.load(*parts(old))
    for one, other in zip(parts(old)[1:], parts(new)[1:], strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert new.step == 3 and new.loss_state["count"] == 3
    assert new.scheduler.get_last_lr() == [group["lr"] for group in new.optimizer.param_groups] == [1e-2 * (1 - 3 / 10)] * 2


def test_what_the_loss_did_not_keep_before_is_as_it_begins(tmp_path):
    old, new = make_state(tmp_path, steps=3), make_state(tmp_path)
    new.loss_state |= {"coefficient": 0.5, "spread": torch.ones(())}
    new.load(*parts(old))
    assert new.loss_state == {"mean": 3.0, "count": 3, "coefficient": 0.5, "spread": 1.0}


@pytest.mark.parametrize(
    ("table", "change", "message"),
    [
        (1, lambda names: names.pop(next(iter(names))), "weights lacks 'model.embed_tokens.weight'"),
        (1, lambda names: names.update(other=torch.zeros(1)), "weights has 'other'"),
        (1, lambda names: names.update({"model.norm.weight": torch.zeros(1)}), r"'model.norm.weight' is \(1,\) instead of \(32,\)"),
        (2, lambda names: names.update({"exp_avg.other": torch.zeros(1)}), "'exp_avg.other', which belongs to no weight"),
        (2, lambda names: names.update({"exp_avg.model.norm.weight": torch.zeros(3)}), r"'exp_avg.model.norm.weight' is \(3,\)"),
        (2, lambda names: names.pop("exp_avg.model.norm.weight"), "lacks a part of the optimiser's state"),
    ],
)
def test_a_state_with_a_part_that_does_not_fit_changes_nothing(tmp_path, table, change, message):
    """A smaller tensor would otherwise be repeated to fit, without a word."""
    old, new = make_state(tmp_path, steps=3), make_state(tmp_path, steps=1, seed=1)
    before = copied(parts(new)[1:])
    given = [parts(old)[0], *copied(parts(old)[1:])]
    change(given[table])
    with pytest.raises(DamagedError, match=message):
        new.load(*given)
    for one, other in zip(before, parts(new)[1:], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert new.step == 1


def test_every_random_generator_goes_on_where_it_was():
    state = random_state()
    drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
    restore_random_state(*state)
    assert drawn == (random.random(), float(np.random.rand()), float(torch.rand(())))
