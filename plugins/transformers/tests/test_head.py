from __future__ import annotations

import pytest
import torch
from torch import nn

from truing.model.logits import Head
from truing_transformers.head import few_logits


@pytest.mark.parametrize("rows", [1, 8, 9, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_logits_are_those_of_the_layer(rows, bias):
    """Vocabularies of one tile and of several, the last of which is not full."""
    for vocabulary in (100, 1300):
        linear = nn.Linear(24, vocabulary, bias=bias)
        hidden = torch.randn(rows, 24)
        with torch.no_grad():
            logits = few_logits(Head(linear, scale=0.5, softcap=2.0), hidden)
            assert torch.allclose(logits, 2 * (linear(hidden) * 0.5 / 2).tanh(), atol=1e-6) and logits.is_contiguous()


def test_half_precision_and_layers_with_an_adapter_are_called_as_they_are():
    half = nn.Linear(8, 20).bfloat16()
    hidden = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(few_logits(Head(half), hidden.bfloat16()), half(hidden.bfloat16()))
        layer = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 20))
        assert torch.equal(few_logits(Head(layer), hidden), layer(hidden))
        with torch.autocast("cpu", torch.bfloat16):
            assert few_logits(Head(layer[0]), hidden).dtype == torch.bfloat16
