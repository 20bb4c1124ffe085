from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from truing import Layout, LossInputs
from truing.testing import reduce_step

Tokens = Sequence[float]
Row = tuple[Tokens, Tokens, Tokens]


def make_inputs(rows: Sequence[Row], dtype: torch.dtype = torch.float64) -> LossInputs:
    """PAIRED inputs of rows (prompt, chosen, rejected), each a list of log-probs per token."""
    branches = [branch for row in rows for branch in row[1:]]
    lengths = torch.tensor([len(branch) for branch in branches])
    prompts = torch.tensor([len(prompt) for prompt, *_ in rows])
    return LossInputs(
        layout=Layout.PAIRED,
        token_logps=torch.tensor([x for branch in branches for x in branch], dtype=dtype).requires_grad_(),
        sequence_ids=torch.arange(len(branches)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(rows)).repeat_interleave(2),
        lengths=lengths,
        prompt_token_logps=torch.tensor([x for prompt, *_ in rows for x in prompt], dtype=dtype).requires_grad_(),
        prompt_tree_ids=torch.arange(len(rows)).repeat_interleave(prompts),
    )


@pytest.fixture(scope="session")
def paired() -> Callable[..., LossInputs]:
    return make_inputs


@pytest.fixture(scope="session")
def reduced() -> Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    return reduce_step
