"""What holds for all inputs: advantages, clipping, splits, order, extremes; and the formulas as plain arithmetic."""

from __future__ import annotations

from math import exp, isfinite, log, sqrt
from typing import get_args

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing.testing import check_cut, check_loss
from truing_grpo import GRPO
from truing_grpo.loss_types import CLIPPED, LossType

NAN = float("nan")
few_examples = settings(max_examples=40, deadline=None)


def make(loss_type, **more):
    return GRPO(loss_type=loss_type, **{"epsilon_high": 1.1} if loss_type == "cispo" else {}, **more)


reward = st.one_of(st.integers(-3, 3).map(float), st.floats(-5, 5, width=16))
maybe = st.one_of(reward, reward, reward, st.just(NAN))


@st.composite
def groups(draw, entries=maybe, rewards=2):
    """Rewards of up to four prompts with one to five completions each, and the prompt of each, mixed."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    trees = draw(st.permutations([tree for tree, size in enumerate(sizes) for _ in range(size)]))
    return [[draw(entries) for _ in range(rewards)] for _ in trees], trees


METHODS = [
    *(GRPO(scale_rewards=scale) for scale in ("group", "batch", "none")),
    GRPO(multi_objective_aggregation="normalize_then_sum"),
]
every_method = pytest.mark.parametrize(
    "method", METHODS, ids=lambda method: method.scale_rewards + method.multi_objective_aggregation
)


@every_method
@few_examples
@given(drawn=groups())
def test_advantages_sum_to_zero_in_every_group(rollouts, method, drawn):
    rows, trees = drawn
    values = method.advantages(rollouts(rows, trees)).values
    assert values.isfinite().all()
    for tree in set(trees):
        assert values[torch.tensor(trees) == tree].sum().item() == pytest.approx(0, abs=1e-9)


@every_method
@few_examples
@given(drawn=groups(reward), shifts=st.tuples(st.integers(-100, 100), st.integers(-100, 100)))
def test_adding_to_all_of_a_reward_changes_nothing(rollouts, method, drawn, shifts):
    rows, trees = drawn
    before = method.advantages(rollouts(rows, trees)).values.tolist()
    moved = [[a + b for a, b in zip(row, shifts, strict=True)] for row in rows]
    assert method.advantages(rollouts(moved, trees)).values.tolist() == pytest.approx(before, rel=1e-6, abs=1e-8)


@every_method
@settings(max_examples=100, deadline=None)
@given(drawn=st.lists(st.tuples(st.integers(1, 9), st.floats(-(2.0**99), 2.0**99, width=32)), min_size=1, max_size=3))
def test_constant_rewards_give_exactly_zero(rollouts, method, drawn):
    rows, trees = zip(*(([value], tree) for tree, (size, value) in enumerate(drawn) for _ in range(size)), strict=True)
    inputs = rollouts(rows, trees)
    inputs = attrs.evolve(inputs, rewards=inputs.rewards.float(), reward_weights=inputs.reward_weights.float())
    assert not method.advantages(inputs).values.any()


@every_method
@few_examples
@given(drawn=groups(), draw=st.randoms(use_true_random=False))
def test_the_order_of_completions_changes_nothing(rollouts, method, drawn, draw):
    rows, trees = drawn
    order = draw.sample(range(len(rows)), len(rows))
    before = method.advantages(rollouts(rows, trees)).values
    after = method.advantages(rollouts([rows[i] for i in order], [trees[i] for i in order])).values
    assert after.tolist() == pytest.approx(before[order].tolist(), rel=1e-9, abs=1e-12)


@few_examples
@given(drawn=groups(rewards=1))
def test_one_reward_by_itself_is_grpo_but_for_a_factor(rollouts, drawn):
    """A positive one for the whole batch."""
    inputs = rollouts(*drawn)
    alone = METHODS[-1].advantages(inputs).values
    plain = GRPO().advantages(inputs).values
    factors = (alone / plain)[plain != 0]
    assert (factors > 0).all()
    assert factors.tolist() == pytest.approx([factors.mean().item()] * len(factors), rel=1e-6)


@few_examples
@given(drawn=groups(), weights=st.tuples(st.floats(0.1, 2), st.floats(0.1, 2)))
def test_advantages_as_plain_arithmetic(rollouts, drawn, weights):
    """One group and one reward at a time."""
    rows, trees = drawn
    expected = [0.0] * len(rows)
    for tree in set(trees):
        sums = {}
        for index in (i for i, owner in enumerate(trees) if owner == tree):
            there = [w * r for w, r in zip(weights, rows[index], strict=True) if r == r]
            if there:
                sums[index] = sum(there)
        mean = sum(sums.values()) / max(1, len(sums))
        spread = sqrt(sum((r - mean) ** 2 for r in sums.values()) / max(1, len(sums) - 1))
        for index, value in sums.items():
            expected[index] = (value - mean) / (spread + 1e-4)
    assert GRPO().advantages(rollouts(rows, trees, weights)).values.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


ratio = st.floats(0.05, 20)
completion = st.tuples(st.lists(ratio, min_size=1, max_size=4), st.floats(-3, 3))
completions = st.lists(completion, min_size=1, max_size=5)


@few_examples
@given(drawn=completions, low=st.floats(0.05, 0.5), high=st.floats(0.05, 0.5), delta=st.one_of(st.none(), st.floats(1.6, 9)))
def test_clipping_bounds_what_a_token_can_gain(ratios, drawn, low, high, delta):
    """Not more than (1 + epsilon_high) A where A is positive, and at least (1 - epsilon) |A| lost, at most delta |A|, where not."""
    method = GRPO(epsilon=low, epsilon_high=high, delta=delta)
    costs = method(ratios([drawn_ratios for drawn_ratios, _ in drawn], [a for _, a in drawn])).terms[0].values.tolist()
    advantages = [a for drawn_ratios, a in drawn for _ in drawn_ratios]
    for cost, a in zip(costs, advantages, strict=True):
        if a > 0:
            assert -(1 + high) * a - 1e-9 <= cost <= 0
        else:
            assert (1 - low) * -a - 1e-9 <= cost <= (20 if delta is None else delta) * -a + 1e-9


def plain(method, token, pi, w, a):
    """What a token costs, in Python's arithmetic."""
    if method.loss_type == "cispo":
        return -min(w, method.epsilon_high) * a * pi
    if method.loss_type == "sapo":
        t = method.sapo_temperature_pos if a > 0 else method.sapo_temperature_neg
        return -a * 4 / t / (1 + exp(-t * (w - 1)))
    if method.loss_type == "vespo":
        k, steep = (2.0, 3.0) if a >= 0 else (3.0, 2.0)
        whole = min(max(token, 1e-8), exp(20))
        return -(whole**k) * exp(steep * (1 - whole)) * a * pi
    return -min(w * a, min(max(w, 0.8), 1.2) * a)


def average(loss_type, costs, lengths):
    """The loss of costs by completion."""
    sums, tokens, count = [sum(branch) for branch in costs], sum(lengths), len(lengths)
    if loss_type in ("grpo", "gspo", "sapo"):
        return sum(total / length for total, length in zip(sums, lengths, strict=True)) / count
    return sum(sums) / {"luspo": count, "dr_grpo": count * 10}.get(loss_type, tokens)


@pytest.mark.parametrize("loss_type", get_args(LossType))
@few_examples
@given(drawn=completions)
def test_the_formulas_as_plain_arithmetic(ratios, reduced, loss_type, drawn):
    inputs = ratios([own for own, _ in drawn], [a for _, a in drawn])
    method = make(loss_type)
    costs = []
    for own, a in drawn:
        product = exp(sum(map(log, own)))
        weights = [product ** (1 / len(own))] * len(own) if loss_type == "gspo" else own
        costs.append([plain(method, product, log(r / 4), w, a) for r, w in zip(own, weights, strict=True)])
    expected = average(loss_type, costs, [len(own) for own, _ in drawn])
    assert reduced(method(inputs), inputs)[0].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


SPLIT = [
    *(make(kind, beta=0.2) for kind in get_args(LossType)),
    GRPO(beta=0.2, entropy_coef=0.1, off_policy_mask_threshold=0.1, importance_sampling_correction="sequence_truncate"),
]


@pytest.mark.parametrize("method", SPLIT, ids=lambda method: f"{method.loss_type}-{method.entropy_coef}")
@few_examples
@given(drawn=completions, data=st.data())
def test_sum_over_micro_batches_is_the_batch(ratios, method, drawn, data):
    cut = data.draw(st.integers(0, len(drawn)))
    check_cut(method, part_of(ratios, drawn), [part_of(ratios, part) for part in (drawn[:cut], drawn[cut:]) if part])


def part_of(ratios, drawn):
    other = [[-1.5] * len(own) for own, _ in drawn]
    fields = {
        "reference_token_logps": other,
        "behavior_token_logps": other,
        "token_entropy": [[1.5] * len(own) for own, _ in drawn],
    }
    made = ratios([own for own, _ in drawn], [a for _, a in drawn], **fields)
    return attrs.evolve(made, token_entropy=made.token_entropy.requires_grad_())


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("size", [-1e3, -1e2, 1e2, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_extremes_are_finite(sampled, reduced, loss_type, dtype, size, level):
    """Of the policy's log-ratios to the start of the update, the reference and the sampler; with either sign of A."""
    away, own = [[-1001.0 - size], [-1001.0 + size]], {"gspo": "sequence", "vespo": "token"}
    inputs = sampled(
        [[-1001.0], [-1001.0]],
        advantages=[1.0, -1.0],
        proximal_token_logps=away,
        reference_token_logps=away,
        behavior_token_logps=away[::-1],
    )
    names = ("token_logps", "proximal_token_logps", "reference_token_logps", "behavior_token_logps")
    inputs = attrs.evolve(inputs, **{name: getattr(inputs, name).detach().to(dtype) for name in names})
    inputs.token_logps.requires_grad_()
    method = make(
        loss_type,
        beta=0.2,
        importance_sampling_level=own.get(loss_type, level),
        importance_sampling_correction="token_mask",
        off_policy_mask_threshold=1.0,
    )
    loss, metrics = reduced(method(inputs), inputs)
    loss.backward()
    assert all(isfinite(value.item()) for value in metrics.values())
    assert inputs.token_logps.grad.isfinite().all()


@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_promises_to_core(loss_type):
    """The weights of two types carry no gradient, which finite differences of their value do not know."""
    check_loss(make(loss_type), gradcheck=False, group_relative=True)
    check_loss(make(loss_type, beta=0.2), gradcheck=loss_type not in ("cispo", "vespo"), group_relative=True)


OPTIONS = [
    *({"beta": 0.1, "kl_estimator": estimator} for estimator in ("k1", "k2")),
    {"beta": 0.1, "use_bias_correction_kl": False},
    {"delta": 1.3, "epsilon_high": 0.25},
    {"scale_rewards": "batch"},
    {"scale_rewards": "none"},
    {"multi_objective_aggregation": "normalize_then_sum"},
    {"mask_truncated_completions": True},
    {"entropy_coef": 0.1},
    *({"loss_type": kind, "importance_sampling_level": "sequence"} for kind in ("dapo", "dr_grpo", "luspo", "sapo")),
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(map(str, options.values())))
def test_promises_to_core_of_options(options):
    check_loss(GRPO(**options), group_relative=True)


NO_GRADIENT = [
    {"off_policy_mask_threshold": 0.01},
    {"overlong_buffer": 3},
    *({"importance_sampling_correction": f"{level}_{how}"} for level in ("token", "sequence") for how in ("truncate", "mask")),
    {"importance_sampling_correction": "token_mask", "loss_type": "vespo"},
    {"top_entropy_quantile": 0.4},
    {"top_entropy_quantile": 0.4, "entropy_coef": 0.1, "beta": 0.1, "mask_truncated_completions": True},
]


@pytest.mark.parametrize("options", NO_GRADIENT, ids=lambda options: "-".join(map(str, options.values())))
def test_promises_to_core_of_masks_and_corrections(options):
    """They are functions of log-probabilities that stop their gradient; the punishment makes equal rewards unequal."""
    check_loss(GRPO(**options), gradcheck=False)


def test_every_clipped_type_is_one_of_the_types():
    assert set(CLIPPED) < set(get_args(LossType))
