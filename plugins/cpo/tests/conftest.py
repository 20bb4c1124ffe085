from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from truing import Layout, LossInputs
from truing.testing import reduce_step

Tokens = Sequence[float]


def make_inputs(pairs: Sequence[tuple[Tokens, Tokens]], dtype: torch.dtype = torch.float64) -> LossInputs:
    """PAIRED inputs of pairs (chosen, rejected), each a list of log-probs per token."""
    branches = [branch for pair in pairs for branch in pair]
    lengths = torch.tensor([len(branch) for branch in branches])
    return LossInputs(
        layout=Layout.PAIRED,
        token_logps=torch.tensor([x for branch in branches for x in branch], dtype=dtype).requires_grad_(),
        sequence_ids=torch.arange(len(branches)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(pairs)).repeat_interleave(2),
        lengths=lengths,
    )


@pytest.fixture(scope="session")
def paired() -> Callable[..., LossInputs]:
    return make_inputs


@pytest.fixture(scope="session")
def reduced() -> Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    return reduce_step
