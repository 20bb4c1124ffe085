"""Sampling on a CUDA device with the policy itself: what is recorded of a completion is what a plain pass says."""

from __future__ import annotations

import attrs
import pytest
import torch

from truing import RolloutRequest, Sampling
from truing.model.logits import wide
from truing.model.probe import TOLERANCE
from truing.testing import fake_context, tiny_model
from truing_transformers import TransformersRollout
from truing_transformers.shared import SharedPrompts

DEVICE = "cuda"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

PROMPTS = ([5, 6, 7], list(range(40, 65)), [9], [8, 8, 8, 8, 8], [100, 101, 102])
LONGEST = 12


def opened(folder, model):
    context = attrs.evolve(fake_context(folder), device=torch.device(DEVICE), models={"policy": model.to(DEVICE)})
    return TransformersRollout().open(context)


def sampled(live, first_seed=0):
    """By prompt and sample, four completions of each prompt."""
    requests = [
        RolloutRequest(
            id=str(place),
            prompt_ids=tuple(ids),
            seeds=tuple(range(first_seed + 4 * place, first_seed + 4 * place + 4)),
            sampling=Sampling(max_completion_length=LONGEST),
        )
        for place, ids in enumerate(PROMPTS)
    ]
    return {(one.request_id, one.index): one for one in live.generate(requests)}


@torch.no_grad()
def plain_logps(model, one):
    """Log-probabilities of a completion by one pass over its sequence alone."""
    ids = torch.tensor([[*one.prompt_ids, *one.token_ids]], device=DEVICE)
    logits = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1]
    return logits.to(wide(logits.dtype)).log_softmax(-1).gather(-1, ids[0, len(one.prompt_ids) :, None]).squeeze(-1).cpu()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
def test_log_probabilities_are_those_of_plain_passes(tmp_path, architecture, dtype):
    """Mistral's window of 16 tokens hides most of the longest prompt."""
    model = tiny_model(architecture=architecture, dtype=dtype)
    live = opened(tmp_path, model)
    assert isinstance(live.choice.way, SharedPrompts), live.choice.reason
    completions = sampled(live).values()
    assert len(completions) == 4 * len(PROMPTS) == len({one.token_ids for one in completions})
    gaps = torch.cat([(torch.tensor(one.token_logps) - plain_logps(model, one)).abs() for one in completions])
    assert gaps.max() < TOLERANCE[dtype] and gaps.mean() < TOLERANCE[dtype] / 10


def test_the_same_seeds_give_the_same_completions_whatever_their_lengths(tmp_path):
    model = tiny_model()
    model.generation_config.eos_token_id = list(range(40))  # so that many completions end early
    live = opened(tmp_path, model)
    one, again, other = (sampled(live, seed) for seed in (0, 0, 1000))
    assert {key: found.token_ids for key, found in one.items()} == {key: found.token_ids for key, found in again.items()}
    assert all(one[key].token_ids != other[key].token_ids for key in one)
    lengths = {len(found.token_ids) for found in one.values()}
    assert len(lengths) > 3 and {found.finish_reason for found in one.values()} == {"stop", "length"}
