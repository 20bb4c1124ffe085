"""Adapters on their way to a fake server, alone and beside those of earlier versions; and those that it cannot take."""

from __future__ import annotations

import shutil

import attrs
import pytest
import torch

from tests.rollouts.fake_http import Reply
from tests.rollouts.fake_vllm import FakeVllm
from tests.rollouts.helpers import AdapterWeights, agrees, lora_context, moved, plain_logps, request_of, rig
from truing import ConfigError, RolloutError
from truing_vllm import ServeSettings
from truing_vllm.faults import StaleError
from truing_vllm.probe import Probe


def test_an_adapter_is_pushed_alone_under_a_name_of_its_version(tmp_path):
    context = lora_context(tmp_path)
    settings = {"serve": ServeSettings(dtype="float32", max_loras=2)}
    with rig(tmp_path, context=context, **settings) as run:
        for version in range(4):
            moved(run.policy, 0.1)
            run.live.update_weights(version, AdapterWeights(run.policy, tmp_path, version))
            (one,) = run.live.submit(request_of(seeds=(3,))).result(20)
            assert [span.version for span in one.versions] == [version]
            assert torch.allclose(torch.tensor(one.token_logps), plain_logps(run.policy, one), atol=1e-4)
        assert [name.split("-v")[1] for name in run.fake.state.adapters] == ["2", "3"]
        assert "/pause" not in run.fake.calls and "gets the adapter alone" in run.live.about


def test_as_many_adapters_are_held_as_completions_may_be_behind(tmp_path):
    context = attrs.evolve(lora_context(tmp_path), max_staleness=2)
    with rig(tmp_path, context=context, serve=ServeSettings(dtype="float32", max_loras=3)) as run:
        assert run.live.adapter_alone
    message = "rollout.serve.max_loras is 2, and with rollout.max_staleness 2 completions of 3 versions .* set it to 3 or more"
    with (
        pytest.raises(ConfigError, match=message),
        rig(tmp_path, context=context, serve=ServeSettings(dtype="float32", max_loras=2)),
    ):
        pass


def test_an_adapter_goes_through_the_folder_for_weights_where_one_is_named(tmp_path):
    with rig(tmp_path, context=lora_context(tmp_path), weights_dir=tmp_path / "shared") as run:
        moved(run.policy, 0.1)
        run.live.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
        shutil.rmtree(tmp_path / "version-1")  # which servers of other machines do not see
        run.fake.die()
        run.fake.restart()
        assert agrees(run)
    assert not list((tmp_path / "shared").glob("*/*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_an_adapter_that_cannot_be_copied_is_an_error_of_every_process(tmp_path, monkeypatch, rank):
    asked = []

    def gathered(own: list) -> list:
        asked.extend(own)
        return [(None, (RolloutError, "it cannot be written to")), (tmp_path, None)]

    context = attrs.evolve(lora_context(tmp_path), rank=rank, num_ranks=2)
    with rig(tmp_path, context=context, weights_dir=tmp_path / "file" / "w") as run:
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("truing.train.ranks.gather_object", gathered)
        says = (
            "cannot be written to" if rank == 0 else "copying the adapter for the servers failed in process 0: it cannot be written"
        )
        with pytest.raises(RolloutError, match=says):
            run.live.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
        assert len(asked) == 1 and (asked[0][1] is None) == (rank == 1)


def test_an_adapter_is_pushed_again_to_a_server_that_started_again(tmp_path):
    with rig(tmp_path, context=lora_context(tmp_path)) as run:
        moved(run.policy, 0.1)
        run.live.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
        run.fake.die()
        run.fake.restart()
        assert agrees(run)


@pytest.mark.parametrize(
    "config, serve, why",
    [
        ({"use_dora": True}, {}, "vLLM has no DoRA"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save trains whole modules beside it"),
        ({"rank_pattern": {"q_proj": 600}}, {}, "its rank is 4, 600, and vLLM takes 1 to 512"),
        ({}, {"data_parallel_size": 2}, "a server with data_parallel_size > 1 loads adapters into one copy only"),
    ],
)
def test_an_adapter_that_a_server_cannot_take_is_merged_and_that_is_said(tmp_path, config, serve, why):
    with rig(tmp_path, context=lora_context(tmp_path, **config), serve=ServeSettings(dtype="float32", **serve)) as run:
        assert not run.live.adapter_alone and f"gets all weights with the adapter merged, because {why}" in run.live.about


def test_an_adapter_that_is_refused_is_refused_with_the_servers_reason(tmp_path, monkeypatch):
    async def refuse(self, query, body):
        return Reply({"error": "LoRA rank 4 is greater than max_lora_rank 2"}, 400)

    with rig(tmp_path, context=lora_context(tmp_path)) as run:
        monkeypatch.setattr(FakeVllm, "_v1_load_lora_adapter", refuse)
        with pytest.raises(
            RolloutError, match=r"/v1/load_lora_adapter with 400: .*rank 4 is greater than max_lora_rank 2"
        ) as caught:
            run.live.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
        assert "lies over the model" not in str(caught.value)


def test_an_adapter_bears_the_name_that_is_asked_for_when_the_probe_is_done(tmp_path, monkeypatch):
    """No process has it before, and every try has a name of its own, for a server keeps keys and values under it."""
    check, doubts, held = Probe.check, [StaleError("it has others")], []

    async def doubt(self, *args, **named):
        held.extend(run.fake.state.adapters)
        if doubts:
            raise doubts.pop()
        await check(self, *args, **named)

    with rig(tmp_path, context=lora_context(tmp_path)) as run:
        monkeypatch.setattr(Probe, "check", doubt)
        run.live.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
        assert held == [f"?{run.live.run}-{attempt}-1" for attempt in (1, 2)]
        assert list(run.fake.state.adapters) == [f"{run.live.run}-v1"] and agrees(run)
        assert "/reset_prefix_cache" not in run.fake.calls


def test_an_adapter_that_is_loaded_once_more_finds_no_keys_and_values_of_its_name(tmp_path, monkeypatch):
    check, doubts = Probe.check, [StaleError("it has others")]

    async def doubt(self, *args, **named):
        if doubts:
            raise doubts.pop()
        await check(self, *args, **named)

    with rig(tmp_path, context=lora_context(tmp_path)) as run:
        run.live.update_weights(1, AdapterWeights(run.policy, tmp_path, 1))
        monkeypatch.setattr(Probe, "check", doubt)
        run.fake.calls.clear()
        run.live._loop.call_soon_threadsafe(run.live._fleet._lost, run.live._fleet.servers[0])  # it is probed anew
        assert agrees(run)
        calls = [call for call in run.fake.calls if "lora" in call or "cache" in call]
        load, unload = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
        assert calls == [unload, "/reset_prefix_cache", load, unload, load]
