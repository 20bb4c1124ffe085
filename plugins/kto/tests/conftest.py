from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from truing import Layout, LossInputs
from truing.testing import reduce_step

Sample = tuple[Sequence[float], Sequence[float], bool]


def make_inputs(samples: Sequence[Sample], mismatched: Sequence[float] | None = None) -> LossInputs:
    """LABELED inputs of samples (policy's and reference's log-probs per token, label), and a log-ratio for each mismatched one."""
    lengths = torch.tensor([len(policy) for policy, _, _ in samples])
    others = torch.tensor([0.0] * len(samples) if mismatched is None else mismatched, dtype=torch.float64)
    return LossInputs(
        layout=Layout.LABELED,
        token_logps=torch.tensor([x for policy, _, _ in samples for x in policy], dtype=torch.float64).requires_grad_(),
        reference_token_logps=torch.tensor([x for _, reference, _ in samples for x in reference], dtype=torch.float64),
        sequence_ids=torch.arange(len(samples)).repeat_interleave(lengths),
        tree_ids=torch.arange(len(samples)),
        lengths=lengths,
        labels=torch.tensor([label for _, _, label in samples]),
        mismatched_token_logps=(others - 5).requires_grad_(),
        mismatched_reference_token_logps=torch.full_like(others, -5),
        mismatched_sequence_ids=torch.arange(len(samples)),
    )


def make_ratio_inputs(ratios: Sequence[tuple[float, bool]], mismatched: Sequence[float] | None = None) -> LossInputs:
    """Inputs of samples of one token with these log-ratios; the reference gives -2."""
    return make_inputs([([ratio - 2], [-2.0], label) for ratio, label in ratios], mismatched)


@pytest.fixture(scope="session")
def labelled() -> Callable[..., LossInputs]:
    return make_inputs


@pytest.fixture(scope="session")
def ratios() -> Callable[..., LossInputs]:
    return make_ratio_inputs


@pytest.fixture(scope="session")
def reduced() -> Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]:
    return reduce_step
