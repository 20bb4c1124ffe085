"""The order of the data."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from truing.train.order import DataOrder


@given(size=st.integers(1, 40), per_step=st.integers(1, 50), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_has_every_sample_once(size, per_step, seed, epoch):
    order = DataOrder(size, per_step, seed)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    assert sorted(sample for step in steps for sample in order.samples(step)) == list(range(size))
    assert order.epoch_after(steps.stop) == epoch + 1


def test_epochs_and_seeds_differ():
    orders = {tuple(DataOrder(50, 50, seed).samples(epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_total_steps():
    order = DataOrder(10, 4, 0)
    assert order.steps_per_epoch == 3
    assert [order.total_steps(epochs, None) for epochs in (1, 2, 0.5, 0.01)] == [3, 6, 2, 1]
    assert order.total_steps(1, 100) == 100
