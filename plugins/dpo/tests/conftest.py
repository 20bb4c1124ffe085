from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from truing import Layout, LossInputs
from truing.testing import reduce_step

Tokens = Sequence[float]
Pair = tuple[Tokens, Tokens, Tokens, Tokens]


def make_inputs(pairs: Sequence[Pair], *, reference: bool = True) -> LossInputs:
    """PAIRED inputs of pairs (chosen, rejected, reference of chosen, reference of rejected), each a list of log-probs per token."""
    branches = [branch for pair in pairs for branch in pair[:2]]
    references = [branch for pair in pairs for branch in pair[2:]]
    lengths = torch.tensor([len(branch) for branch in branches])
    return LossInputs(
        layout=Layout.PAIRED,
        token_logps=torch.tensor([x for branch in branches for x in branch], dtype=torch.float64).requires_grad_(),
        sequence_ids=torch.arange(len(branches)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(pairs)).repeat_interleave(2),
        lengths=lengths,
        reference_token_logps=torch.tensor([x for branch in references for x in branch], dtype=torch.float64)
        if reference
        else None,
    )


def make_ratio_inputs(ratios: Sequence[tuple[float, float]], lengths: tuple[int, int] = (1, 1)) -> LossInputs:
    """Inputs of pairs with these summed log-ratios (a, b), spread evenly over branches of these lengths; the reference gives -2."""
    chosen, rejected = lengths
    return make_inputs(
        [([-2 + a / chosen] * chosen, [-2 + b / rejected] * rejected, [-2.0] * chosen, [-2.0] * rejected) for a, b in ratios]
    )


@pytest.fixture(scope="session")
def paired() -> Callable[..., LossInputs]:
    return make_inputs


@pytest.fixture(scope="session")
def ratios() -> Callable[..., LossInputs]:
    return make_ratio_inputs


@pytest.fixture(scope="session")
def reduced() -> Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    return reduce_step
