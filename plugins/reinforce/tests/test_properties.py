"""What holds for all inputs: sums of advantages, shifts and scales, equal rewards, order and split, extremes."""

from __future__ import annotations

from statistics import stdev

import attrs
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from truing import Layout
from truing.testing import check_cut, check_loss, fake_inputs, take_trees
from truing.testing.advantages import with_advantages
from truing_reinforce import RLOO, Reinforce

few_examples = settings(max_examples=40, deadline=None)
rewards = st.floats(-5, 5)
groups = st.lists(st.lists(rewards, min_size=2, max_size=5), min_size=1, max_size=4)
LEAVE_ONE_OUT = Reinforce(baseline="leave_one_out")
METHODS = [
    *(Reinforce(baseline=kind) for kind in ("none", "moving_average", "leave_one_out", "batch")),
    *(Reinforce(baseline=kind, beta=0.1) for kind in ("moving_average", "batch")),
    Reinforce(beta=0.1, kl_estimator="k2"),
    Reinforce(beta=0.1, kl_in="loss"),
    Reinforce(baseline="leave_one_out", beta=0.1, kl_in="loss", kl_estimator="k3", importance_sampling_level="sequence"),
    Reinforce(baseline="none", normalize_advantages=True, mask_truncated_completions=True, epsilon_high=0.3),
    RLOO(),
    RLOO(beta=0.0, normalize_advantages=True, reward_clip_range=(-1.0, 1.0), epsilon=0.05),
]


def values_of(method, inputs):
    return method.advantages(inputs).values


@few_examples
@given(batch=groups)
def test_advantages_sum_to_zero_for_each_prompt(rollouts, batch):
    for part in values_of(LEAVE_ONE_OUT, rollouts(batch)).split([len(group) for group in batch]):
        assert part.sum().item() == pytest.approx(0, abs=1e-9)


@few_examples
@given(batch=groups, shifts=st.lists(rewards, min_size=4, max_size=4))
def test_a_shift_of_a_prompts_rewards_changes_nothing(rollouts, batch, shifts):
    shifted = [[reward + shift for reward in group] for group, shift in zip(batch, shifts, strict=False)]
    here, there = (values_of(LEAVE_ONE_OUT, rollouts(rewards)) for rewards in (batch, shifted))
    torch.testing.assert_close(here, there, rtol=1e-9, atol=1e-9)


@few_examples
@given(batch=groups, scale=st.floats(0.1, 10), shift=rewards)
def test_scale_and_shift_of_a_batch_change_nothing(rollouts, batch, scale, shift):
    """Of batch, but for the 1e-4 beside the standard deviation."""
    assume(stdev(reward for group in batch for reward in group) > 0.5)
    moved = [[scale * reward + shift for reward in group] for group in batch]
    here, there = (values_of(Reinforce(), rollouts(rewards)) for rewards in (batch, moved))
    torch.testing.assert_close(here, there, rtol=3e-3, atol=1e-9)


@few_examples
@given(batch=groups)
def test_leave_one_out_is_the_mean_over_the_others(rollouts, batch):
    expected = [
        reward - sum(other for at, other in enumerate(group) if at != index) / (len(group) - 1)
        for group in batch
        for index, reward in enumerate(group)
    ]
    assert values_of(LEAVE_ONE_OUT, rollouts(batch)).tolist() == pytest.approx(expected, abs=1e-9)


@few_examples
@given(batch=groups, beta=st.floats(0.01, 2), clip=st.sampled_from([None, (-1.0, 2.0)]), data=st.data())
def test_rloo_has_the_advantages_of_trl(rollouts, batch, beta, clip, data):
    """Those of TRL 1.16.0, one completion at a time: the clipped reward less beta times the log-ratio, then leave-one-out."""
    size = sum(map(len, batch))
    token = st.tuples(st.floats(-4, 0), st.floats(-4, 0))
    tokens = data.draw(st.lists(st.lists(token, min_size=1, max_size=4), min_size=size, max_size=size))
    scores, branches, expected = [], iter(tokens), []
    for group in batch:
        held = [reward if clip is None else min(max(reward, clip[0]), clip[1]) for reward in group]
        scores.append([reward - beta * sum(own - other for own, other in next(branches)) for reward in held])
    for group in scores:
        expected += [score - (sum(group) - score) / (len(group) - 1) for score in group]
    method = RLOO(beta=beta, reward_clip_range=clip)
    assert values_of(method, rollouts(batch, tokens)).tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("method", [LEAVE_ONE_OUT, Reinforce(), RLOO(beta=0.0), RLOO(beta=0.0, normalize_advantages=True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@few_examples
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3), reward=st.floats(-100, 100, width=32))
def test_equal_rewards_give_exactly_nothing(rollouts, method, dtype, sizes, reward):
    inputs = rollouts([[reward] * size for size in sizes])
    inputs = attrs.evolve(inputs, rewards=inputs.rewards.to(dtype), reward_weights=inputs.reward_weights.to(dtype))
    assert not values_of(method, inputs).any()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_promises_to_core(method):
    baseline = getattr(method, "baseline", "leave_one_out")
    needs_no_reference = method.beta == 0 or getattr(method, "kl_in", "reward") == "loss"
    compares = baseline in ("leave_one_out", "batch") and needs_no_reference
    check_loss(method, group_relative=compares)


def batch_of(method, **options):
    state = method.initial_state() if hasattr(method, "initial_state") else {}
    inputs = with_advantages(method, fake_inputs(Layout.ROLLOUT, needs=method.needs, state=state, **options))
    return attrs.evolve(inputs, token_logps=inputs.token_logps.clone().requires_grad_())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_that_is_cut_is_the_step(method):
    whole = batch_of(method)
    parts = [take_trees(whole, trees) for trees in ((0,), (1, 2))]
    check_cut(method, whole, [attrs.evolve(part, token_logps=part.token_logps.detach().requires_grad_()) for part in parts])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", [Reinforce(), RLOO()], ids=str)
def test_ratios_of_e_to_the_15_are_finite(method, dtype):
    """Of a token; of five of them the ratio is e^75."""
    inputs = batch_of(method, dtype=dtype)
    moved = (inputs.proximal_token_logps + torch.linspace(-15, 15, len(inputs.token_logps), dtype=dtype)).requires_grad_()
    (term,) = method(attrs.evolve(inputs, token_logps=moved)).terms
    (gradient,) = torch.autograd.grad(term.values.sum(), moved)
    assert gradient.isfinite().all() and term.values.isfinite().all()
