"""Completions of tiny models: their tokens, their log-probabilities, and when they end."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from truing import ConfigError, RolloutRequest, Sampling
from truing.model.probe import TOLERANCE
from truing.testing import FakeWeights, tiny_model, tiny_tokenizer
from truing_transformers.attention import Batch
from truing_transformers.library import LibraryGenerate
from truing_transformers.live import LiveTransformers
from truing_transformers.probe import Choice
from truing_transformers.row import rows_of
from truing_transformers.sampler import Sampler
from truing_transformers.shared import SharedPrompts

PROMPTS = ([5, 6, 7], list(range(40, 65)), [9], [8, 8, 8, 8, 8], [100, 101, 102])
END = tiny_tokenizer().eos_token_id
LIBRARY = ["bloom", "mamba2"]
MAMBA2 = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 2, "chunk_size": 8}


def model_of(architecture):
    return tiny_model(architecture=architecture, **(MAMBA2 if architecture == "mamba2" else {}))


def requests_of(request_for, n=3, **sampling):
    return [
        request_for(prompt, *range(10 * number, 10 * number + n), id=str(number), **sampling)
        for number, prompt in enumerate(PROMPTS)
    ]


def by_key(completions):
    return {(one.request_id, one.index): one for one in completions}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "qwen3", *LIBRARY])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_plain_passes(opened, request_for, teacher_forced, architecture, temperature):
    """Prompts of unequal lengths; mistral's window of 16 tokens hides most of the longest one."""
    model = model_of(architecture)
    live = opened(model)
    assert isinstance(live.choice.way, LibraryGenerate if architecture in LIBRARY else SharedPrompts)
    completions = list(live.generate(requests_of(request_for, max_completion_length=12, temperature=temperature)))
    assert len(completions) == 3 * len(PROMPTS) and len({one.token_ids for one in completions}) > len(PROMPTS)
    for one in completions:
        assert torch.allclose(torch.tensor(one.token_logps), teacher_forced(model, one, temperature), atol=1e-5)


def test_mixed_precision_samples_from_what_the_run_computes(opened, request_for):
    """Under autocast log-probabilities are those of a pass under autocast, but for its rounding."""
    model = tiny_model()
    live = opened(model)
    with torch.autocast("cpu", torch.bfloat16):
        completions = list(live.generate(requests_of(request_for, max_completion_length=12)))
    gaps = []
    for one in completions:
        ids = torch.tensor([[*one.prompt_ids, *one.token_ids]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1].float()
        plain = logits.log_softmax(-1).gather(-1, ids[0, len(one.prompt_ids) :, None]).squeeze(-1)
        gaps.append((torch.tensor(one.token_logps) - plain).abs())
    assert 0 < torch.cat(gaps).mean() < 0.02 and torch.cat(gaps).max() < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_both_ways_give_the_same_tokens(request_for, architecture):
    model = model_of(architecture)
    requests = requests_of(request_for, max_completion_length=20)
    found = []
    for way in (SharedPrompts(model, 65_536, None), LibraryGenerate(model, "sdpa")):
        rows = list(way.complete([rows_of(request) for request in requests], Sampler(Sampling()), ends={END, 70, 71, 72}))
        found.append({(row.request.id, row.index): (row.token_ids, row.finish_reason) for row in rows})
    assert found[0] == found[1] and {reason for _, reason in found[0].values()} == {"stop", "length"}


@pytest.mark.parametrize("architecture", ["llama", "mistral", "mamba2"])
def test_greedy_completions_are_those_of_generate(opened, request_for, architecture):
    model = model_of(architecture)
    for one in opened(model).generate(requests_of(request_for, n=1, temperature=0.0, max_completion_length=20)):
        ids = torch.tensor([one.prompt_ids])
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        assert list(one.token_ids) == expected[0, len(one.prompt_ids) :].tolist()


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 4)), min_size=1, max_size=6),
    limit=st.integers(1, 24),
    budget=st.sampled_from([1, 60, 200, 65_536]),
)
@settings(max_examples=20, deadline=None)
def test_however_requests_are_batched_samples_are_the_same(lengths, limit, budget):
    """Of any lengths and numbers of samples, with ends that come early, and with room for few or all."""
    model = tiny_model(layers=1)
    groups = []
    for number, (length, n) in enumerate(lengths):
        prompt = tuple(4 + (7 * number + at) % 200 for at in range(length))
        groups.append((prompt, tuple(range(50 * number, 50 * number + n))))
    ends = frozenset(range(40))

    def run(asked, budget):
        rows = SharedPrompts(model, budget, None).complete(asked, Sampler(Sampling()), ends)
        return {(row.request.prompt_ids, row.index): (row.token_ids, row.finish_reason) for row in rows}

    requests = [
        RolloutRequest(id=str(number), prompt_ids=prompt, seeds=seeds, sampling=Sampling(max_completion_length=limit))
        for number, (prompt, seeds) in enumerate(groups)
    ]
    alone: dict = {}
    for request in requests:
        alone |= run([rows_of(request)], 65_536)
    assert run([rows_of(request) for request in requests], budget) == alone


def test_no_more_is_held_at_once_than_there_is_room_for(request_for, monkeypatch):
    """A request of 3 samples takes its prompt and 3 x 6 tokens: room for 48 holds at most two of these."""
    way = SharedPrompts(tiny_model(), 48, None)
    held = []
    step = SharedPrompts._step
    monkeypatch.setattr(
        SharedPrompts, "_step", lambda self, batches: (held.append(sum(b.reserved for b in batches)), step(self, batches))[1]
    )
    requests = [request_for([7, 8, number], 1, 2, 3, id=str(number), max_completion_length=6) for number in range(6)]
    rows = list(way.complete([rows_of(request) for request in requests], Sampler(Sampling()), ends=()))
    assert len(rows) == 18 and max(held) == 42


def test_a_prompt_is_computed_once_for_all_of_its_completions(request_for):
    model = tiny_model()
    seen = []
    model.register_forward_pre_hook(lambda module, args, given: seen.append(given["input_ids"].numel()), with_kwargs=True)
    requests = [
        request_for(range(4, 54), *range(8), max_completion_length=4),
        request_for(range(60, 70), 9, id="b", max_completion_length=4),
    ]
    list(SharedPrompts(model, 65_536, None).complete([rows_of(request) for request in requests], Sampler(Sampling()), ends=()))
    assert seen == [60, 9, 9, 9]


def test_finished_rows_leave_the_batch(request_for):
    model = tiny_model()
    seen = []
    model.register_forward_pre_hook(lambda module, args, given: seen.append(given["input_ids"].numel()), with_kwargs=True)
    rows = rows_of(request_for([5, 6, 7], *range(4), max_completion_length=6))
    for row, limit in zip(rows, (6, 1, 2, 4), strict=True):
        row.limit = limit
    finished = list(SharedPrompts(model, 65_536, None).complete([rows], Sampler(Sampling()), ends=()))
    assert [row.index for row in finished] == [1, 2, 3, 0]
    assert seen == [3, 3, 2, 2, 1, 1]


def test_end_tokens_of_tokenizer_and_generation_configuration_end_a_completion(opened, request_for):
    """With all tokens but 12 as ends every completion is short, and its end is a part of it."""
    model = tiny_model()
    ends = [token for token in range(260) if token not in range(100, 112)]
    model.generation_config.eos_token_id = [token for token in ends if token != END]
    completions = list(opened(model).generate(requests_of(request_for, max_completion_length=100)))
    assert all(one.finish_reason == "stop" and one.token_ids[-1] in ends for one in completions)
    assert not any(token in ends for one in completions for token in one.token_ids[:-1])
    model.generation_config.eos_token_id = None
    assert opened(model).context.end_tokens == {END}
    model.generation_config.eos_token_id = 7
    assert opened(model).context.end_tokens == {END, 7}


def test_a_completion_says_what_it_is(opened, context, request_for):
    request = attrs.evolve(
        request_for(context.tokenizer.encode("hi"), 3, 4, id="x", max_completion_length=5), columns={"answer": 3}
    )
    live = opened()
    live.update_weights(4, FakeWeights(context.models["policy"]))
    first, second = sorted(live.generate([request]), key=lambda one: one.index)
    assert (first.request_id, first.index, second.index, first.columns) == ("x", 0, 1, {"answer": 3})
    assert (first.prompt_ids, first.finish_reason, len(first.token_ids)) == (request.prompt_ids, "length", 5)
    assert first.text == context.tokenizer.decode(first.token_ids, skip_special_tokens=True)
    assert [(span.version, span.start, span.end) for span in first.versions] == [(4, 0, 5)]
    live.close()


def test_requests_of_several_samplings_are_told_apart(opened, request_for):
    requests = [
        request_for([5, 6], 1, id="a", max_completion_length=3),
        request_for([5, 6], 1, id="b", max_completion_length=7, temperature=0.0),
        request_for([5, 6], 1, id="c", max_completion_length=3),
        request_for([5, 6], id="none"),
    ]
    found = by_key(opened().generate(requests))
    assert {key: len(one.token_ids) for key, one in found.items()} == {("a", 0): 3, ("b", 0): 7, ("c", 0): 3}
    assert found["a", 0].token_ids == found["c", 0].token_ids


def test_top_k_bounds_the_tokens_and_log_probabilities_are_of_what_was_drawn_from(opened, request_for):
    """Every token is among the model's three most probable ones, and its probability is its share of theirs."""
    model = tiny_model()
    for one in opened(model).generate(requests_of(request_for, max_completion_length=6, top_k=3)):
        ids = torch.tensor([[*one.prompt_ids, *one.token_ids]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(one.prompt_ids) - 1 : -1]
        best, tokens = logits.topk(3)
        assert (tokens == ids[0, len(one.prompt_ids) :, None]).any(-1).all()
        chosen = logits.gather(-1, ids[0, len(one.prompt_ids) :, None]).squeeze(-1)
        assert torch.allclose(torch.tensor(one.token_logps), chosen - best.logsumexp(-1), atol=1e-5)


@pytest.mark.parametrize("fast", [True, False], ids=["shared", "library"])
def test_probabilities_that_are_not_finite_are_an_error_of_their_completion(opened, request_for, fast):
    model = tiny_model()
    live = opened(model)
    live.choice = live.choice if fast else Choice(LibraryGenerate(model, "sdpa"), "for the test")
    with torch.no_grad():
        model.get_input_embeddings().weight[77] = math.nan
    found = by_key(
        live.generate([request_for([5, 77], 1, max_completion_length=3), request_for([5, 6], 1, id="b", max_completion_length=3)])
    )
    broken, whole = found["a", 0], found["b", 0]
    assert (broken.finish_reason, broken.token_ids, broken.token_logps) == ("error", (), ())
    assert broken.extra == {"error": "the policy's probabilities are not finite"}
    assert whole.finish_reason == "length" and all(map(math.isfinite, whole.token_logps))


def test_a_way_that_is_not_exact_is_found_out(opened, monkeypatch):
    """What the probe is for: here the attention of a step forgets the prompt."""
    monkeypatch.setattr(
        Batch, "_seen", lambda self, window: (slice(max(self.lengths) - 1, max(self.lengths)), slice(0, self._taken))
    )
    live = opened()
    assert isinstance(live.choice.way, LibraryGenerate)
    assert "because its log-probabilities differ from plain ones by" in live.choice.reason


def test_weights_that_are_spread_over_processes_are_refused(context):
    from torch.distributed.tensor import DTensor

    class Sharded(DTensor):
        def __new__(cls):
            return torch.Tensor._make_wrapper_subclass(cls, (2, 2))

        def __init__(self):
            pass

    model = tiny_model()
    model.model.layers[0].mlp.gate_proj._parameters["weight"] = Sharded()
    with pytest.raises(ConfigError, match="weights are spread over processes here; train without sharding, or sample with another"):
        LiveTransformers(attrs.evolve(context, models={"policy": model}), 1024)
