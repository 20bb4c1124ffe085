from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from truing import Layout, LossInputs
from truing.testing import reduce_step


def make_pairs(pairs: Sequence[tuple[float, float]], margins: Sequence[float] | None = None) -> LossInputs:
    """PAIRED inputs with these scores of chosen and rejected."""
    scores = [score for pair in pairs for score in pair]
    repeated = None if margins is None else torch.tensor(margins, dtype=torch.float64).repeat_interleave(2)
    return _inputs(Layout.PAIRED, scores, [index for index in range(len(pairs)) for _ in "wl"], margins=repeated)


def make_ranked(groups: Sequence[Sequence[tuple[float, int]]]) -> LossInputs:
    """RANKED inputs of groups of (score, rank)."""
    scores = [score for group in groups for score, _ in group]
    ranks = torch.tensor([rank for group in groups for _, rank in group])
    return _inputs(Layout.RANKED, scores, [index for index, group in enumerate(groups) for _ in group], ranks=ranks)


def _inputs(layout, scores, trees, **fields) -> LossInputs:
    return LossInputs(
        layout=layout,
        token_logps=torch.full((len(scores),), torch.nan),
        sequence_ids=torch.arange(len(scores)),
        tree_ids=torch.tensor(trees),
        lengths=torch.ones(len(scores), dtype=torch.int64),
        scores=torch.tensor(scores, dtype=torch.float64).requires_grad_(),
        **fields,
    )


@pytest.fixture(scope="session")
def pairs():
    return make_pairs


@pytest.fixture(scope="session")
def ranked():
    return make_ranked


@pytest.fixture(scope="session")
def reduced():
    return reduce_step
