from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import pytest
import torch

from truing import Completion, OpenContext, RolloutRequest, Sampling
from truing.testing import fake_context
from truing_transformers.live import LiveTransformers


def make_request(prompt: Sequence[int], *seeds: int, id: str = "a", **sampling: float) -> RolloutRequest:
    return RolloutRequest(id=id, prompt_ids=tuple(prompt), seeds=seeds, sampling=Sampling(**sampling))


def plain_logps(model: torch.nn.Module, completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a completion by one pass over its sequence alone."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(completion.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, ids[0, len(completion.prompt_ids) :, None]).squeeze(-1)


@pytest.fixture(scope="session")
def request_for() -> Callable[..., RolloutRequest]:
    return make_request


@pytest.fixture(scope="session")
def teacher_forced() -> Callable[..., torch.Tensor]:
    return plain_logps


@pytest.fixture
def context(tmp_path) -> OpenContext:
    return fake_context(tmp_path)


@pytest.fixture
def opened(context) -> Callable[..., LiveTransformers]:
    """Opens the backend for a model, the tiny one by default."""

    def live(model: torch.nn.Module | None = None, max_batch_tokens: int = 65_536) -> LiveTransformers:
        run = context if model is None else attrs.evolve(context, models={"policy": model})
        return LiveTransformers(run, max_batch_tokens)

    return live
