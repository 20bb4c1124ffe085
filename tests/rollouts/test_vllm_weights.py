"""Weights on their way to a fake server: that it has them, what happens where it does not, and to servers that start again."""

from __future__ import annotations

import asyncio
import threading
import time

import attrs
import pytest
import torch

from tests.rollouts.fake_vllm import FakeVllm
from tests.rollouts.helpers import FLOAT32, AdapterWeights, agrees, lora_context, moved, plain_logps, request_of, rig
from truing import RolloutError
from truing.testing import FakeWeights, fake_context, tiny_model
from truing_vllm import VllmRollout
from truing_vllm.faults import BadAnswerError
from truing_vllm.fleet import Fleet
from truing_vllm.opening import open_live
from truing_vllm.probe import Probe
from truing_vllm.trainer import WeightFiles
from truing_vllm.updates import WholeWeights

PUSH = [
    *("/pause", "/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"),
    *("/reset_prefix_cache", "/resume", "/inference/v1/generate"),
]
WATCHED = ("/health", "/weight_info")
"""What is asked now and then, whatever else is."""


@attrs.frozen(eq=False)
class Gathered(FakeWeights):
    """Remembers which weights were taken from it."""

    names: list[str] = attrs.field(factory=list)

    def parameters(self):
        for name, weight in super().parameters():
            self.names.append(name)
            yield name, weight


@pytest.mark.parametrize("scale_out", [True, False], ids=["generate", "completions"])
def test_a_push_is_paused_loaded_resumed_and_probed(tmp_path, scale_out):
    with rig(tmp_path, fake={"scale_out": scale_out}) as run:
        assert not agrees(run)
        run.fake.calls.clear()
        run.live.update_weights(0, FakeWeights(run.policy))
        calls = [call for call in run.fake.calls if call not in ("/v1/completions", *WATCHED)]
        assert calls[: len(PUSH)] == [*PUSH[:7], PUSH[7] if scale_out else "/update_weight_version"]
        assert calls.count("/update_weight_version") == 1
        assert agrees(run)
        for version in range(1, 4):
            moved(run.policy)
            run.live.update_weights(version, FakeWeights(run.policy))
            assert agrees(run)


def test_the_same_version_is_pushed_once(tmp_path):
    with rig(tmp_path) as run:
        run.live.update_weights(2, FakeWeights(run.policy))
        run.fake.calls.clear()
        run.live.update_weights(2, FakeWeights(run.policy))
        assert set(run.fake.calls) <= set(WATCHED)


def test_files_are_this_users_alone_and_the_newest_two(tmp_path):
    with rig(tmp_path) as run:
        for version in range(4):
            run.live.update_weights(version, FakeWeights(run.policy))
        root = tmp_path / "vllm-weights"
        assert sorted(folder.name.split("-")[-1] for folder in root.iterdir()) == ["2", "3"]
        assert [path.stat().st_mode & 0o777 for path in (root, *root.iterdir())] == [0o700] * 3
    assert list(root.iterdir()) == []


def test_a_folder_of_the_users_for_weights_stays_as_it_is(tmp_path):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory").chmod(0o755)
    with rig(tmp_path / "run", weights_dir=tmp_path / "memory") as run:
        run.live.update_weights(1, FakeWeights(run.policy))
        assert [path.stat().st_mode & 0o777 for path in (tmp_path / "memory", *(tmp_path / "memory").iterdir())] == [0o755, 0o700]
        assert agrees(run)


def test_tied_heads_and_large_models_take_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("truing_vllm.trainer.SHARD_BYTES", 20_000)
    context = fake_context(tmp_path)
    tied = tiny_model(context.tokenizer, tie_word_embeddings=True)
    files = WeightFiles(tmp_path / "w", "run").write("run-1", FakeWeights(tied).parameters())
    assert len(files) > 2 and all((tmp_path / "w" / name).stat().st_size < 60_000 for name in files)


def test_a_full_disk_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RolloutError, match="cannot be written to .*file/w/run-1: .*; free some space, or set rollout.weights_dir"):
        WeightFiles(tmp_path / "file" / "w", "run").write("run-1", FakeWeights(tiny_model()).parameters())


def test_weights_that_all_ranks_gather_are_gathered_to_the_end_where_the_disk_is_full(tmp_path, monkeypatch):
    with rig(tmp_path, weights_dir=tmp_path / "file" / "w") as run:
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("truing_vllm.live.is_spread", lambda model: True)
        source = Gathered(run.policy)
        with pytest.raises(RolloutError, match="cannot be written to"):
            run.live.update_weights(1, source)
        assert source.names == [name for name, _ in run.policy.named_parameters()]


@pytest.mark.parametrize("failure", ["fail_updates", "half_loaded"])
def test_a_push_that_fails_is_made_again(tmp_path, failure):
    with rig(tmp_path) as run:
        setattr(run.fake, failure, 2)
        run.live.update_weights(1, FakeWeights(run.policy))
        assert getattr(run.fake, failure) == 0 and agrees(run)


def test_a_push_that_fails_every_time_is_an_error_and_leaves_the_server_paused(tmp_path):
    with rig(tmp_path, fake={"token_seconds": 0.05}) as run:
        run.live.update_weights(1, FakeWeights(run.policy))
        waiting = run.live.submit(request_of(max_completion_length=200))
        run.fake.fail_updates = 10
        with pytest.raises(RolloutError, match="did not take version 2 of the weights in 4 tries: .*/update_weights with 500"):
            run.live.update_weights(2, FakeWeights(run.policy))
        assert run.fake.state.paused
        for future in (waiting, run.live.submit(request_of())):
            with pytest.raises(RolloutError, match="did not take version 2"):
                future.result(5)


@pytest.mark.parametrize("lacks, adapter", [("/pause", False), ("/update_weights", False), ("/v1/load_lora_adapter", True)])
def test_a_server_that_was_started_without_the_routes_is_told_how_to_start_it(tmp_path, lacks, adapter):
    context = lora_context(tmp_path) if adapter else None
    with rig(tmp_path, context=context, fake={"lacks": (lacks,)}) as run:
        source = AdapterWeights(run.policy, tmp_path, 1) if adapter else FakeWeights(run.policy)
        with pytest.raises(RolloutError, match=rf"answered {lacks}\S* with 404: .*; start it by `truing vllm-serve` with the"):
            run.live.update_weights(1, source)
        assert run.fake.calls.count(lacks) == 1


def test_a_server_that_starts_again_with_another_token_is_told_to_have_it(tmp_path):
    with rig(tmp_path) as run:
        run.live.update_weights(1, FakeWeights(run.policy))
        run.fake.token = "another"
        run.live._loop.call_soon_threadsafe(run.live._fleet._lost, run.live._fleet.servers[0])
        with pytest.raises(RolloutError, match="with 401: .*; set rollout.token"):
            run.live.submit(request_of()).result(20)


def test_a_server_that_is_busy_is_given_the_weights_when_it_is_not(tmp_path):
    with rig(tmp_path) as run:
        run.fake.busy_updates = 5
        run.live.update_weights(1, FakeWeights(run.policy))
        assert run.fake.busy_updates == 0 and agrees(run)


def test_half_loaded_weights_are_found_by_the_probe(tmp_path):
    with rig(tmp_path) as run:
        run.live.update_weights(1, FakeWeights(run.policy))
        moved(run.policy)
        run.fake.half_loaded = 10
        with pytest.raises(
            RolloutError, match=r"does not have the policy's weights: .* differ by \S+ nats in the mean \(allowed: 0.001\)"
        ):
            run.live.update_weights(2, FakeWeights(run.policy))


def test_a_server_that_does_not_give_processed_log_probabilities_is_found(tmp_path, monkeypatch):
    with rig(tmp_path) as run:
        sample = FakeVllm._sample

        async def raw(self, prompt, params, name):
            tokens, logps, reason, spans = await sample(self, prompt, params, name)
            scores = self._logits(prompt, name)[-1].log_softmax(-1)
            return tokens, [float(scores[tokens[0]]), *logps[1:]], reason, spans

        monkeypatch.setattr(FakeVllm, "_sample", raw)
        with pytest.raises(RolloutError, match="those before temperature; start it with --logprobs-mode processed_logprobs"):
            run.live.update_weights(1, FakeWeights(run.policy))


@pytest.mark.parametrize("scale_out", [True, False], ids=["generate", "completions"])
@pytest.mark.parametrize("guarded", [True, False], ids=["guard", "stock"])
def test_a_server_that_starts_again_gets_the_weights_before_it_samples(tmp_path, scale_out, guarded):
    with rig(tmp_path, fake={"scale_out": scale_out, "guarded": guarded, "token_seconds": 0.02}) as run:
        run.live.update_weights(5, FakeWeights(run.policy))
        future = run.live.submit(request_of(seeds=(3, 4, 5), max_completion_length=40))
        time.sleep(0.3)
        run.fake.die()
        run.fake.restart()
        for one in future.result(20):
            assert [span.version for span in one.versions] == [5]
            assert torch.allclose(torch.tensor(one.token_logps), plain_logps(run.policy, one), atol=1e-4)
        assert run.fake.state.version.endswith("-5")


def test_a_server_that_starts_again_between_requests_gets_the_weights(tmp_path):
    with rig(tmp_path) as run:
        run.live.update_weights(5, FakeWeights(run.policy))
        run.fake.die()
        run.fake.restart()
        assert agrees(run)


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
def test_a_server_that_starts_again_after_the_probe_is_not_taken_for_proven(tmp_path, monkeypatch, adapter):
    check, restarts = Probe.check, [True]

    async def check_then_restart(self, *args, **named):
        await check(self, *args, **named)
        if restarts.pop() if restarts else False:
            run.fake.die()
            run.fake.restart()

    with rig(tmp_path, context=lora_context(tmp_path) if adapter else None) as run:
        monkeypatch.setattr(Probe, "check", check_then_restart)
        moved(run.policy)
        run.live.update_weights(5, AdapterWeights(run.policy, tmp_path, 5) if adapter else FakeWeights(run.policy))
        assert run.live._fleet.servers[0].proven == {2} and agrees(run)
        assert len(run.fake.state.adapters) == adapter


def test_a_watch_that_fails_ends_what_it_watches_over(tmp_path, monkeypatch):
    async def fail(self, server):
        raise KeyError("a fault of ours")

    monkeypatch.setattr("truing_vllm.fleet.WATCH_SECONDS", 0.05)
    monkeypatch.setattr(Fleet, "_look_after", fail)
    message = "what looks after the vLLM servers failed: KeyError.*please report it"
    with rig(tmp_path) as run, pytest.raises(RolloutError, match=message):
        run.live.update_weights(5, FakeWeights(run.policy))
        run.fake.hangs = True
        run.live.submit(request_of()).result(20)


def test_what_looks_for_a_servers_end_does_not_fail_unsaid(tmp_path):
    def gone() -> str | None:
        raise KeyError("a fault of ours")

    with rig(tmp_path) as run, pytest.raises(RolloutError, match="what looks after the vLLM servers failed: KeyError"):
        run.fake.hangs = True
        future = run.live.submit(request_of())
        run.live.end_when(gone)
        future.result(20)


def test_a_server_with_another_runs_weights_gets_ours(tmp_path):
    with rig(tmp_path) as run:
        run.live.update_weights(5, FakeWeights(run.policy))
        run.fake.state.version = "other-9"
        run.fake.state.model.load_state_dict(run.fake.base.state_dict())
        assert agrees(run) and run.fake.state.version.endswith("-5")


def test_a_server_that_stays_away_is_an_error_of_the_run(tmp_path):
    with rig(tmp_path, timeout=2.0) as run:
        run.live.update_weights(5, FakeWeights(run.policy))
        run.fake.die()
        with pytest.raises(RolloutError, match="no vLLM server came back within 2 s|could be used for 2 s"):
            run.live.submit(request_of()).result(20)
        with pytest.raises(RolloutError, match="no vLLM server came back within 2 s"):
            run.live.update_weights(6, FakeWeights(run.policy))


def test_one_of_two_servers_may_be_away_for_a_push(tmp_path):
    context = fake_context(tmp_path)
    model = tiny_model(context.tokenizer, seed=1)
    with FakeVllm(model, tmp_path / "vllm-weights") as one, FakeVllm(model, tmp_path / "vllm-weights") as other:
        live = open_live(VllmRollout(server=(one.url, other.url), token="t0ken", timeout=20.0, serve=FLOAT32), context)
        policy = context.models["policy"]
        live.update_weights(1, FakeWeights(policy))
        one.die()
        moved(policy)
        live.update_weights(2, FakeWeights(policy))
        one.restart()
        until = time.monotonic() + 10
        while not one.state.version.endswith("-2") and time.monotonic() < until:
            time.sleep(0.05)
        answers = list(live.generate([request_of(id=str(number), prompt=(number + 1,)) for number in range(8)]))
        live.close()
    assert one.state.version.endswith("-2") and one.asked and other.asked
    for answer in answers:
        assert torch.allclose(torch.tensor(answer.token_logps), plain_logps(policy, answer), atol=1e-4)


def test_a_server_that_takes_long_to_come_back_gets_the_weights_of_then(tmp_path, monkeypatch):
    """The files of the version that it was given first may be gone by then, which is no refusal."""
    context, begun = fake_context(tmp_path), threading.Event()
    model, apply = tiny_model(context.tokenizer, seed=1), WholeWeights.apply
    with FakeVllm(model, tmp_path / "vllm-weights") as one, FakeVllm(model, tmp_path / "vllm-weights") as other:
        live = open_live(VllmRollout(server=(one.url, other.url), token="t0ken", timeout=20.0, serve=FLOAT32), context)
        policy, fleet = context.models["policy"], live._fleet
        live.update_weights(0, FakeWeights(policy))
        one.die()
        live.update_weights(1, FakeWeights(policy))

        async def slow(self, connection, *args, **named):
            if self.version == 1:
                begun.set()
                while fleet.update is self:
                    await asyncio.sleep(0.02)
                raise BadAnswerError("its files are gone")
            await apply(self, connection, *args, **named)

        monkeypatch.setattr(WholeWeights, "apply", slow)
        one.restart()
        assert begun.wait(20)
        moved(policy)
        live.update_weights(2, FakeWeights(policy))
        until = time.monotonic() + 20
        while not fleet.servers[0].up and time.monotonic() < until:
            time.sleep(0.05)
        assert fleet.fatal is None and one.state.version == other.state.version.replace("-3-2", "-4-2")
        live.close()
