"""What holds for all inputs: the closed forms of GAE, whitening, independence of order and split, extremes."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from truing import Layout
from truing.testing import check_cut, check_loss, fake_inputs, take_trees
from truing.testing.advantages import with_advantages
from truing_ppo import PPO
from truing_ppo.gae import generalised_advantages, whitened

few_examples = settings(max_examples=40, deadline=None)
numbers = st.floats(-5, 5)
branches = st.lists(st.lists(st.tuples(numbers, numbers), max_size=9), min_size=1, max_size=5)
METHODS = [
    PPO(),
    PPO(kl_estimator="k3", gamma=0.9, lam=0.5),
    PPO(kl_coef=0.0, vf_coef=0.5),
    PPO(target_kl=1.0, kl_horizon=20),
    PPO(whiten_rewards=True, whiten_advantages=False, missing_eos_penalty=1.0),
    PPO(log_entropy=True, cliprange=0.05, cliprange_value=0.05),
]


def estimated(batch, gamma, lam):
    """The estimates of a batch of branches, each a list of rewards and values per token; a list for each branch."""
    lengths = [len(branch) for branch in batch]
    flat = torch.tensor([token for branch in batch for token in branch], dtype=torch.float64).view(-1, 2)
    inputs = fake_inputs(Layout.ROLLOUT, trees=1, branches=len(batch), lengths=lengths)
    found = generalised_advantages(inputs, flat[:, 0], flat[:, 1], gamma=gamma, lam=lam)
    return [part.tolist() for part in found.split(lengths)]


@few_examples
@given(batch=branches, gamma=st.floats(0.1, 1))
def test_lambda_1_is_the_return_less_the_value(batch, gamma):
    """A_t = sum over k of gamma^k r_t+k, less V_t: the critic is a baseline only."""
    expected = [
        [sum(gamma**k * reward for k, (reward, _) in enumerate(branch[t:])) - branch[t][1] for t in range(len(branch))]
        for branch in batch
    ]
    assert estimated(batch, gamma, 1.0) == [pytest.approx(branch, abs=1e-9) for branch in expected]


@few_examples
@given(batch=branches, gamma=st.floats(0.1, 1))
def test_lambda_0_is_the_error_of_one_step(batch, gamma):
    """A_t = r_t + gamma V_t+1 - V_t."""
    expected = []
    for branch in batch:
        following = [*(value for _, value in branch[1:]), 0.0]
        expected.append([reward + gamma * after - value for (reward, value), after in zip(branch, following, strict=False)])
    assert estimated(batch, gamma, 0.0) == [pytest.approx(branch, abs=1e-9) for branch in expected]


@few_examples
@given(batch=branches, gamma=st.floats(0.1, 1), lam=st.floats(0, 1))
def test_the_recursion(batch, gamma, lam):
    """A_t = delta_t + gamma lambda A_t+1, token by token from the end."""
    expected = []
    for branch in batch:
        found, following, after = [], 0.0, 0.0
        for reward, value in reversed(branch):
            after = reward + gamma * following - value + gamma * lam * after
            following = value
            found.append(after)
        expected.append(found[::-1])
    assert estimated(batch, gamma, lam) == [pytest.approx(branch, abs=1e-9) for branch in expected]


@few_examples
@given(values=st.lists(st.floats(-100, 100), min_size=2, max_size=20), scale=st.floats(0.1, 10), shift=numbers)
def test_whitened_values_have_mean_0_and_variance_1(values, scale, shift):
    """And do not depend on scale and shift of what was whitened, where its variance is not lost in the 1e-8."""
    given_values, mask = torch.tensor(values, dtype=torch.float64), torch.ones(len(values), dtype=torch.bool)
    assume(given_values.var() > 1e-2)
    found = whitened(given_values, mask)
    assert (found.mean().item(), found.var().item()) == pytest.approx((0, 1), abs=1e-5)
    torch.testing.assert_close(whitened(scale * given_values + shift, mask), found, rtol=0, atol=1e-3)
    assert whitened(given_values, mask, shift_mean=False).mean().item() == pytest.approx(given_values.mean().item())


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_promises_to_core(method):
    check_loss(method)


def batch_of(method, **options):
    inputs = with_advantages(method, fake_inputs(Layout.ROLLOUT, needs=method.needs, state=method.initial_state(), **options))
    leaves = {field: getattr(inputs, field).clone().requires_grad_() for field in ("token_logps", "token_values")}
    return attrs.evolve(inputs, **leaves)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_step_that_is_cut_is_the_step(method):
    whole = batch_of(method)
    parts = []
    for trees in ((0,), (1, 2)):
        part = take_trees(whole, trees)
        leaves = {field: getattr(part, field).detach().requires_grad_() for field in ("token_logps", "token_values")}
        parts.append(attrs.evolve(part, **leaves))
    check_cut(method, whole, parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_of_e_to_the_20_are_finite(dtype):
    method = PPO()
    inputs = batch_of(method, dtype=dtype)
    moved = (inputs.proximal_token_logps + torch.linspace(-20, 20, len(inputs.token_logps), dtype=dtype)).requires_grad_()
    output = method(attrs.evolve(inputs, token_logps=moved))
    (gradient,) = torch.autograd.grad(sum(term.weight * term.values.sum() for term in output.terms), moved)
    assert gradient.isfinite().all() and all(term.values.isfinite().all() for term in output.terms)
