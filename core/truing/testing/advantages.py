"""The part of check_loss that online methods alone have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from truing.loss import Advantages, Layout, LossInputs, Needs
from truing.testing.calculation import Calculation, close
from truing.testing.inputs import fake_inputs, take_branches, take_trees

GROUP = 8


def check_advantages(loss: Any, state: Mapping[str, Any], *, group_relative: bool) -> None:
    """Check the promises of `advantages`: shapes, finite numbers, needs, order of prompts, rewards that are missing or equal."""
    title = f"{type(loss).__name__}.advantages"
    make = _maker(loss, state)
    Calculation(
        title, "rollout_needs", loss.rollout_needs & ~Needs.REWARDS, make, lambda rollouts: _results(loss, rollouts)
    ).check()
    rollouts = make(loss.rollout_needs)
    _check_shapes(title, loss.advantages(rollouts), rollouts)
    _check_order(loss, rollouts)
    rewards = _rewards(rollouts).clone()
    rewards[0, 0] = torch.nan
    advantages = loss.advantages(attrs.evolve(rollouts, rewards=rewards))
    _check_finite(f"{title}, where one of several rewards does not apply (NaN),", advantages, rollouts)
    if callable(getattr(loss, "worth", None)):
        _check_worth(loss, make(Needs.REWARDS | Needs.NO_LOGPS))
    if group_relative:
        _check_equal_rewards(loss, state)


def with_advantages(loss: Any, inputs: LossInputs) -> LossInputs:
    """Return the batch as core hands it to the loss after `advantages`; PAIRED when the method chose pairs."""
    advantages = loss.advantages(_maker(loss, inputs.state)(loss.rollout_needs))
    state = inputs.state if advantages.state is None else advantages.state
    made = attrs.evolve(inputs, advantages=advantages.values, keep=advantages.keep, columns=advantages.columns, state=state)
    return made if advantages.pairs is None else take_branches(made, advantages.pairs.flatten().tolist(), Layout.PAIRED)


def _maker(loss: Any, state: Mapping[str, Any]) -> Any:
    return lambda needs: fake_inputs(Layout.ROLLOUT, needs=needs | Needs.REWARDS, state=state)


def _rewards(rollouts: LossInputs) -> Tensor:
    assert rollouts.rewards is not None
    return rollouts.rewards


def _results(loss: Any, rollouts: LossInputs) -> dict[str, Tensor]:
    advantages = loss.advantages(rollouts)
    assert isinstance(advantages, Advantages), (
        f"{type(loss).__name__}.advantages must return a truing.Advantages, got {type(advantages).__name__}"
    )
    named = {"values": advantages.values, "keep": advantages.keep, "pairs": advantages.pairs}
    columns = {f"column {name!r}": column for name, column in advantages.columns.items()}
    metrics = {f"metric {name!r}": term.values for name, term in advantages.metrics.items()}
    return {key: value for key, value in {**named, **columns, **metrics}.items() if value is not None}


def _check_shapes(title: str, advantages: Advantages, rollouts: LossInputs) -> None:
    tokens, branches = len(rollouts.token_logps), len(rollouts.lengths)
    shape, keep, pairs = list(advantages.values.shape), advantages.keep, advantages.pairs
    assert shape in ([tokens], [branches]), (
        f"{title} must return values of shape [T] = [{tokens}] or [B] = [{branches}], got {shape}"
    )
    assert keep is None or (keep.dtype is torch.bool and len(keep) == branches), (
        f"{title} must return `keep` as bool [B] = [{branches}]"
    )
    for name, column in advantages.columns.items():
        assert len(column) == tokens, f"{title} must return column {name!r} of shape [T] = [{tokens}], got {list(column.shape)}"
    _check_finite(title, advantages, rollouts)
    if pairs is not None:
        assert pairs.dim() == 2 and pairs.shape[1] == 2 and not pairs.is_floating_point(), (
            f"{title} must return `pairs` as int64 [P, 2], chosen and rejected, got {pairs.dtype} {list(pairs.shape)}"
        )
        assert torch.equal(rollouts.tree_ids[pairs[:, 0]], rollouts.tree_ids[pairs[:, 1]]), (
            f"{title} pairs branches of different prompts"
        )


def _check_finite(title: str, advantages: Advantages, rollouts: LossInputs) -> None:
    keep, values = advantages.keep, advantages.values
    if keep is not None:
        values = values[keep if len(keep) == len(values) else rollouts.expand(keep)]
    assert values.isfinite().all(), f"{title} returned values that are not finite: {values.tolist()}; set `keep` to False or give 0"


def _check_order(loss: Any, rollouts: LossInputs) -> None:
    order = (2, 0, 1)
    before = loss.advantages(rollouts)
    if before.pairs is not None:
        return  # their order is the method's own affair
    expected = take_trees(attrs.evolve(rollouts, advantages=before.values, columns=before.columns), order)
    after = loss.advantages(take_trees(rollouts, order))
    assert expected.advantages is not None
    assert close({"": expected.advantages, **expected.columns}, {"": after.values, **after.columns}), (
        f"{type(loss).__name__}.advantages depends on the order of the prompt trees; use tree_ids, not positions"
    )


def _check_worth(loss: Any, rollouts: LossInputs) -> None:
    worth = loss.worth(rollouts)
    assert isinstance(worth, Tensor) and worth.shape == rollouts.lengths.shape, (
        f"{type(loss).__name__}.worth must return a tensor of shape [B] = [{len(rollouts.lengths)}], "
        f"got {list(worth.shape) if isinstance(worth, Tensor) else type(worth).__name__}"
    )


def _check_equal_rewards(loss: Any, state: Mapping[str, Any]) -> None:
    rollouts = fake_inputs(
        Layout.ROLLOUT, branches=GROUP, needs=loss.rollout_needs | Needs.REWARDS, num_rewards=1, state=state, dtype=torch.float32
    )
    values = loss.advantages(attrs.evolve(rollouts, rewards=torch.full_like(_rewards(rollouts), 0.1))).values
    assert not values.any(), (
        f"{type(loss).__name__}.advantages gives up to {values.abs().max():.3g} for {GROUP} equal rewards of 0.1, and must give 0: "
        "a floating-point mean is not exact, so compare the rewards before dividing by their spread"
    )
