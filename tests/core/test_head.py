"""Log-probabilities from hidden states, tile by tile, and their hand-written backward, against plain log-softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from truing.loss import Needs
from truing.model import head as head_module
from truing.model import logits as logits_module
from truing.model.head import Part, fused_loss, score_logits, score_tokens
from truing.model.logits import Head

ALL = Needs.ENTROPY | Needs.SQUARED_PROBS
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    """Tiles of 13 columns and chunks of 4 tokens, 3 of kept ones, so that small examples have several of each."""
    monkeypatch.setattr(logits_module, "TILE", {"cpu": 13})
    monkeypatch.setattr(head_module, "CHUNK", 4)
    monkeypatch.setattr(head_module, "KEPT_CHUNK", {"cpu": 3})


def problem(tokens, vocabulary, bias, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    linear = nn.Linear(5, vocabulary, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(draw(*parameter.shape))
    targets = torch.randint(vocabulary, (tokens,), generator=generator)
    return linear, draw(tokens, 5).requires_grad_(), targets, draw(3, tokens)


def weighted(scores, weights):
    pairs = zip(weights, scores.columns, strict=True)
    return sum((weight * column).sum() for weight, column in pairs if column is not None)


shapes = given(
    tokens=st.integers(1, 11),
    vocabulary=st.integers(2, 40),
    bias=st.booleans(),
    scale=st.sampled_from([1.0, 0.5]),
    softcap=st.sampled_from([None, 2.0]),
    kept=st.booleans(),
    needs=st.sampled_from([ALL, Needs.NOTHING]),
    seed=st.integers(0, 9),
)


@settings(deadline=None, max_examples=60)
@shapes
def test_scores_and_gradients_equal_those_of_plain_log_softmax(tokens, vocabulary, bias, scale, softcap, kept, needs, seed):
    linear, hidden, targets, weights = problem(tokens, vocabulary, bias, seed)
    head = Head(linear, scale, softcap)
    inputs = [hidden, *linear.parameters()]
    plain = score_logits(head.shaped(linear(hidden)), targets, needs)
    expected = torch.autograd.grad(weighted(plain, weights), inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "KEPT_BYTES", 10**9 if kept else 0)
        scores = score_tokens(hidden, targets, head, needs)
        found = torch.autograd.grad(weighted(scores, weights), inputs)
    for one, other in zip((*scores.columns, *found), (*plain.columns, *expected), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, **EXACT)


@settings(deadline=None, max_examples=60)
@shapes
def test_a_fused_loss_is_the_sum_of_its_parts(tokens, vocabulary, bias, scale, softcap, kept, needs, seed):
    """A loss that is not linear in the scores of a part, called for the tokens at even and at odd places."""
    linear, hidden, targets, weights = problem(tokens, vocabulary, bias, seed)
    head = Head(linear, scale, softcap)
    inputs = [hidden, *linear.parameters()]
    places = [torch.arange(start, tokens, 2) for start in (0, 1) if start < tokens]

    def loss(scores, at):
        return weighted(scores, weights[:, at]).tanh()

    plain = score_logits(head.shaped(linear(hidden)), targets, needs)
    expected = sum(loss(plain[at], at) for at in places)
    expected_gradients = torch.autograd.grad(3 * expected, inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_module, "KEPT_BYTES", 10**9 if kept else 0)
        parts = [Part(at, len(at), lambda scores, at=at: loss(scores, at)) for at in places]
        fused = fused_loss(hidden, targets, head, needs, parts)
        found = torch.autograd.grad(3 * fused, inputs)
    torch.testing.assert_close(fused, expected.detach(), **EXACT, check_dtype=False)
    for one, other in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_a_second_backward_through_a_fused_loss_is_refused():
    linear, hidden, targets, _ = problem(6, 20, bias=False, seed=0)
    part = Part(slice(0, 6), 6, lambda scores: scores.logps.sum())
    loss = fused_loss(hidden, targets, Head(linear), Needs.NOTHING, [part])
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_frozen_head_gets_no_gradient():
    linear, hidden, targets, _ = problem(6, 20, bias=True, seed=0)
    linear.requires_grad_(False)
    score_tokens(hidden, targets, Head(linear), Needs.NOTHING).logps.sum().backward()
    assert hidden.grad is not None
    assert linear.weight.grad is None


def test_logits_far_apart_do_not_overflow():
    linear, hidden, targets, _ = problem(6, 30, bias=False, seed=1)
    with torch.no_grad():
        linear.weight *= 1e5
    scores = score_tokens(hidden, targets, Head(linear), ALL)
    torch.testing.assert_close(scores.logps, score_logits(linear(hidden), targets, ALL).logps, **EXACT)
    (gradient,) = torch.autograd.grad(scores.logps.sum() + scores.entropy.sum(), [hidden])
    assert gradient.isfinite().all()


def test_a_token_that_the_head_never_says_leaves_the_others_alone():
    """A bias of -inf masks an entry of the vocabulary, here in another tile than the targets."""
    linear, hidden, targets, _ = problem(6, 40, bias=True, seed=1)
    with torch.no_grad():
        linear.bias[13] = float("-inf")
    targets = targets.clamp(max=12)
    scores = score_tokens(hidden, targets, Head(linear), Needs.NOTHING)
    torch.testing.assert_close(scores.logps, score_logits(linear(hidden), targets, Needs.NOTHING).logps, **EXACT)


def test_under_bf16_sums_are_in_fp32():
    """Logits are bf16 products; what is summed over 40 of them is as exact as in fp32."""
    linear, hidden, targets, _ = problem(6, 40, bias=False, seed=2)
    linear, hidden = linear.float(), hidden.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_tokens(hidden, targets, Head(linear), ALL)
        logits = linear(hidden).float()
    assert scores.logps.dtype == torch.float32
    torch.testing.assert_close(scores.logps, score_logits(logits, targets, ALL).logps, rtol=0, atol=1e-5)
    gradients = torch.autograd.grad(scores.logps.sum(), [hidden, linear.weight])
    exact = torch.autograd.grad(score_logits(linear(hidden), targets, ALL).logps.sum(), [hidden, linear.weight])
    for one, other in zip(gradients, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)  # bf16 has 8 bits


def test_a_head_with_an_adapter_goes_through_its_module():
    """Anything but a plain matrix is called as it is; here one with a low-rank part beside it."""

    class Adapted(nn.Linear):
        def forward(self, hidden):
            return super().forward(hidden) + hidden.sum(-1, keepdim=True) * 0.1 * torch.arange(self.out_features)

    linear = Adapted(5, 20, dtype=torch.float64)
    hidden = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.arange(9)
    scores = score_tokens(hidden, targets, Head(linear), Needs.NOTHING)
    plain = score_logits(linear(hidden), targets, Needs.NOTHING)
    torch.testing.assert_close(scores.logps, plain.logps, **EXACT)
    for one, other in zip(
        torch.autograd.grad(scores.logps.sum(), [hidden, linear.weight]),
        torch.autograd.grad(plain.logps.sum(), [hidden, linear.weight]),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **EXACT)


def test_no_token_at_all():
    linear, hidden, _, _ = problem(3, 20, bias=False, seed=0)
    assert len(score_tokens(hidden[:0], torch.zeros(0, dtype=torch.int64), Head(linear), Needs.NOTHING).logps) == 0


@pytest.mark.parametrize("needs", [Needs.NOTHING, ALL])
def test_a_second_backward_gives_the_same(needs):
    linear, hidden, targets, _ = problem(6, 40, bias=True, seed=0)
    total = sum(column.sum() for column in score_tokens(hidden, targets, Head(linear), needs).columns if column is not None)
    first = torch.autograd.grad(total, [hidden, linear.weight], retain_graph=True)
    for one, other in zip(torch.autograd.grad(total, [hidden, linear.weight]), first, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("kept", [0, 10**9])
def test_log_probabilities_alone(monkeypatch, kept):
    """What nearly every loss asks for has a way of its own: the logits' memory is used again."""
    monkeypatch.setattr(head_module, "KEPT_BYTES", kept)
    linear, hidden, targets, weights = problem(9, 40, bias=True, seed=3)
    inputs = [hidden, *linear.parameters()]
    scores, plain = score_tokens(hidden, targets, Head(linear), Needs.NOTHING), score_logits(linear(hidden), targets, Needs.NOTHING)
    torch.testing.assert_close(scores.logps, plain.logps, **EXACT)
    found, expected = (torch.autograd.grad((weights[0] * one.logps).sum(), inputs) for one in (scores, plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("kept", [0, 10**9])
def test_under_bf16_a_likely_target_is_still_pulled_up(monkeypatch, kept):
    """With p = 0.9986 its gradient is 1 - p = 0.0014 of its own row: bf16 rounds p to 1, or to 0.996."""
    monkeypatch.setattr(head_module, "KEPT_BYTES", kept)
    linear = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0], [0.0]]))
    hidden, target = torch.full((1, 1), 6.5625, requires_grad=True), torch.zeros(1, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_tokens(hidden, target, Head(linear), Needs.NOTHING)
    (gradient,) = torch.autograd.grad(scores.logps.sum(), hidden)
    assert gradient.item() == pytest.approx(1 - torch.tensor(6.5625).sigmoid().item(), rel=0.01)


@pytest.mark.parametrize(("size", "lengths"), [(0, [0]), (1, [1]), (3, [3]), (4, [2, 2]), (10, [3, 3, 3, 1])])
def test_logits_that_are_kept_are_cut_evenly(size, lengths):
    assert [chunk.stop - chunk.start for chunk in head_module._kept_chunks(size, "cpu")] == lengths
    assert head_module._kept_chunks(size, "cuda") == [slice(0, size)]
