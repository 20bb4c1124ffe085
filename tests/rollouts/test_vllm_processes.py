"""Several processes beside one server: only the first gives it weights, and the others count no token but of those it proved."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
import torch

from tests.rollouts.helpers import FLOAT32, AdapterWeights, Rig, lora_context, moved, plain_logps, request_of, rig
from truing import Completion
from truing.testing import FakeWeights, tiny_model
from truing_vllm import VllmRollout
from truing_vllm.labels import Label
from truing_vllm.live import LiveVllm
from truing_vllm.opening import open_live
from truing_vllm.probe import Probe

WAYS = [True, False]
NAMES = ["generate", "completions"]


@contextmanager
def another(run: Rig, rank: int = 1) -> Iterator[LiveVllm]:
    """Open the backend of another process of the run; or, with rank 0, of another start of it."""
    settings = VllmRollout(server=run.fake.url, token=run.fake.token, timeout=20.0, serve=FLOAT32)
    live = open_live(settings, attrs.evolve(run.context, rank=rank, num_ranks=2))
    try:
        yield live
    finally:
        live.hang_up()
        live.held.close()


def tell(run: Rig, other: LiveVllm) -> None:
    """Let another process know what the first gave the servers, as the end of `update_weights` does."""
    other._run(other._fleet.follow(run.live._fleet.update))


def is_of(completion: Completion, weights: dict[int, torch.nn.Module]) -> bool:
    """Return whether all tokens have the log-probabilities of the weights of their version."""
    found = torch.tensor(completion.token_logps)
    return all(
        torch.allclose(found[one.start : one.end], plain_logps(weights[one.version], completion)[one.start : one.end], atol=1e-4)
        for one in completion.versions
    )


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("truing_vllm.fleet.WATCH_SECONDS", 0.1)


@pytest.mark.parametrize("scale_out", WAYS, ids=NAMES)
def test_a_server_that_starts_again_under_another_process_gets_the_weights_again(tmp_path, watched, scale_out):
    with rig(tmp_path, fake={"scale_out": scale_out}) as run, another(run) as other:
        run.live.update_weights(5, FakeWeights(run.policy))
        tell(run, other)
        run.fake.die()
        run.fake.restart()
        (one,) = other.submit(request_of(seeds=(3,))).result(20)
        assert [span.version for span in one.versions] == [5] and is_of(one, {5: run.policy})


def test_an_adapter_is_pushed_again_where_another_process_meets_a_server_without_it(tmp_path, watched):
    with rig(tmp_path, context=lora_context(tmp_path)) as run, another(run) as other:
        moved(run.policy, 0.1)
        run.live.update_weights(5, AdapterWeights(run.policy, tmp_path, 5))
        tell(run, other)
        run.fake.die()
        run.fake.restart()
        (one,) = other.submit(request_of(seeds=(3,))).result(20)
        assert [span.version for span in one.versions] == [5] and is_of(one, {5: run.policy})


@pytest.mark.parametrize("scale_out", WAYS, ids=NAMES)
def test_tokens_of_a_half_loaded_push_count_in_no_process(tmp_path, monkeypatch, scale_out):
    check = Probe.check

    async def late(self, *args, **named):
        await asyncio.sleep(0.3)
        await check(self, *args, **named)

    with rig(tmp_path, fake={"scale_out": scale_out, "token_seconds": 0.02}) as run, another(run) as other:
        run.live.update_weights(1, FakeWeights(run.policy))
        tell(run, other)
        before = tiny_model(run.context.tokenizer)
        before.load_state_dict(run.policy.state_dict())
        under_way = [live.submit(request_of(seeds=(3,), max_completion_length=40)) for live in (run.live, other)]
        moved(run.policy)
        run.fake.half_loaded = 1
        monkeypatch.setattr(Probe, "check", late)
        run.live.update_weights(2, FakeWeights(run.policy))
        assert run.fake.half_loaded == 0 and run.live._fleet.servers[0].proven == {1, 3}
        for (one,) in (future.result(20) for future in under_way):
            assert is_of(one, {1: before, 2: run.policy})


@pytest.mark.parametrize("scale_out", WAYS, ids=NAMES)
def test_tokens_of_a_half_loaded_adapter_count_in_no_process(tmp_path, watched, monkeypatch, scale_out):
    """Of a server that was started again, which has an adapter while it is being probed."""
    check = Probe.check

    async def late(self, *args, **named):
        await asyncio.sleep(1.0)
        await check(self, *args, **named)

    with rig(tmp_path, context=lora_context(tmp_path), fake={"scale_out": scale_out}) as run, another(run) as other:
        moved(run.policy, 0.1)
        run.live.update_weights(5, AdapterWeights(run.policy, tmp_path, 5))
        tell(run, other)
        monkeypatch.setattr(Probe, "check", late)
        run.fake.half_loaded = 1
        run.fake.die()
        run.fake.restart()
        for live in (other, run.live):
            (one,) = live.submit(request_of(seeds=(3,))).result(20)
            assert is_of(one, {5: run.policy})
        assert run.fake.half_loaded == 0 and run.live._fleet.servers[0].proven == {1, 3}


@pytest.mark.parametrize("scale_out", WAYS, ids=NAMES)
def test_tokens_of_a_push_that_is_being_probed_count_when_the_probe_is_done(tmp_path, monkeypatch, scale_out):
    with rig(tmp_path, fake={"scale_out": scale_out}) as run, another(run) as other:
        run.live.update_weights(1, FakeWeights(run.policy))
        tell(run, other)
        probed, check, asked = asyncio.Event(), Probe.check, []

        async def held_up(self, *args, **named):
            asked.append(other.submit(request_of(seeds=(3,))))
            await asyncio.sleep(0.5)
            assert not asked[0].done()
            await check(self, *args, **named)
            probed.set()

        moved(run.policy)
        monkeypatch.setattr(Probe, "check", held_up)
        run.live.update_weights(2, FakeWeights(run.policy))
        (one,) = asked[0].result(20)
        assert probed.is_set() and [span.version for span in one.versions] == [2] and is_of(one, {2: run.policy})


@pytest.mark.parametrize("scale_out", WAYS, ids=NAMES)
def test_tokens_of_old_weights_are_called_so_whatever_a_process_expects(tmp_path, scale_out):
    with rig(tmp_path, fake={"scale_out": scale_out}) as run, another(run) as other:
        run.live.update_weights(1, FakeWeights(run.policy))
        tell(run, other)
        other._run(other._fleet.follow(attrs.evolve(run.live._fleet.update, version=2)))
        (one,) = other.submit(request_of(seeds=(3,))).result(20)
        assert [span.version for span in one.versions] == [1]


def test_all_processes_ask_for_the_adapter_that_the_first_one_named(tmp_path, monkeypatch):
    with rig(tmp_path, context=lora_context(tmp_path)) as run, another(run) as other:
        source = AdapterWeights(run.policy, tmp_path, 1)
        run.live.update_weights(1, source)
        told = run.live._fleet.update
        monkeypatch.setattr("truing_vllm.live.together", lambda work, doing: [told, work()])
        other.update_weights(1, source)
        other.submit(request_of(seeds=(3,))).result(20)
        assert run.fake.asked[-1]["model"] == told.model


def test_another_start_of_a_run_has_other_names_for_the_same_versions(tmp_path):
    """A run that is resumed may have other weights of a version, and a server keeps keys and values under an adapter's name."""
    with rig(tmp_path, context=lora_context(tmp_path)) as run:
        run.live.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
        moved(run.policy, 0.1)
        with another(run, rank=0) as again:
            again.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
            (one,) = again.submit(request_of(seeds=(3,))).result(20)
        assert is_of(one, {1: run.policy}) and len(run.fake.state.adapters) == 2


@pytest.mark.parametrize("text", ["default", "", "run-1-2", "other-2-7", "run-a-2-x", "run-a-2", "?run-b-1-1", "run-a--1-2"])
def test_labels_of_others_are_not_ours(text):
    assert Label.read(text, "run-a") is None


@pytest.mark.parametrize("proven", [True, False])
def test_a_label_is_read_as_it_is_written(proven):
    label = Label("run-a", 12, 7, proven=proven)
    assert Label.read(str(label), "run-a") == label
