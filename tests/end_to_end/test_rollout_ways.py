"""Every architecture of the tables is sampled by the way that is exact for it."""

from __future__ import annotations

import pytest
import torch

from tests.core.architectures import FALLBACK, SHARED_PREFIX, architecture_model
from truing import RolloutRequest, Sampling
from truing.model.attention import own_attention
from truing.model.lent import lent
from truing_transformers.library import LibraryGenerate
from truing_transformers.probe import choose_way
from truing_transformers.row import rows_of
from truing_transformers.sampler import Sampler
from truing_transformers.shared import SharedPrompts

PROMPTS = (tuple(range(10, 40)), (7, 8, 9), (50,))
"""The first is longer than every sliding window."""


@pytest.mark.parametrize("architecture", [*SHARED_PREFIX, *FALLBACK])
def test_log_probabilities_are_those_of_plain_passes(architecture):
    model = architecture_model(architecture)
    way = choose_way(model, 65_536).way
    assert isinstance(way, SharedPrompts if architecture in SHARED_PREFIX else LibraryGenerate)
    sampling = Sampling(max_completion_length=6)
    requests = [
        RolloutRequest(id=str(number), prompt_ids=prompt, seeds=(number, 10 + number), sampling=sampling)
        for number, prompt in enumerate(PROMPTS)
    ]
    rows = list(way.complete([rows_of(request) for request in requests], Sampler(sampling), ends=()))
    assert len(rows) == 6
    for row in rows:
        ids = torch.tensor([[*row.request.prompt_ids, *row.token_ids]])
        with lent(model, own_attention(model)):
            logps = model(input_ids=ids, use_cache=False).logits[0, -7:-1].log_softmax(-1)
        plain = logps.gather(-1, ids[0, -6:, None]).squeeze(-1)
        assert torch.allclose(torch.tensor(row.token_logps), plain, atol=1e-5)
