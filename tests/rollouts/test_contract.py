"""What the plugin relies on, asked of the fake server and of the real one: by this the fake stays honest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.rollouts.fake_vllm import FakeVllm
from tests.rollouts.helpers import AdapterWeights, moved, plain_logps, request_of
from tests.rollouts.real import SHAPE
from truing import Completion, OpenContext
from truing.testing import FakeWeights, check_rollout, tiny_model, tiny_tokenizer
from truing_vllm import ServeSettings, VllmRollout
from truing_vllm.address import Address
from truing_vllm.connection import Connection
from truing_vllm.faults import BadAnswerError, NoRouteError, RefusedError
from truing_vllm.live import LiveVllm
from truing_vllm.opening import open_live

GUARDED = [
    *(
        ("GET", path)
        for path in ("/v1/models", "/metrics", "/server_info", "/is_paused", "/weight_info", "/openapi.json", "/version")
    ),
    *(("POST", path) for path in ("/v1/completions", "/inference/v1/generate", "/invocations", "/adapters", "/tokenize", "/pause")),
    *(("POST", path) for path in ("/collective_rpc", "/update_weights", "/v1/load_lora_adapter", "/reset_prefix_cache", "/sleep")),
]


@attrs.frozen
class Served:
    """A server, and the policy of a run beside it, which is the served model."""

    address: Address
    weights_dir: Path
    """Where the folder that weights go through lies."""
    context: OpenContext

    @property
    def policy(self) -> torch.nn.Module:
        return self.context.models["policy"]

    def opened(self, context: OpenContext | None = None, **settings: Any) -> LiveVllm:
        rollout = VllmRollout(
            server=self.address.url,
            token=self.address.token,
            weights_dir=self.weights_dir,
            timeout=60.0,
            serve=ServeSettings(dtype="float32"),
            **settings,
        )
        return open_live(rollout, context or self.context)

    def call(self, work: Callable[[Connection], Any], **address: Any) -> Any:
        """Return what a coroutine returns that is given a connection."""

        async def run() -> Any:
            connection = Connection(attrs.evolve(self.address, **address))
            try:
                return await work(connection)
            finally:
                await connection.close()

        return asyncio.run(run())


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.rollouts)])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    def context(model: Any, tokenizer: Any) -> OpenContext:
        return OpenContext(tokenizer=tokenizer, device=torch.device("cpu"), run_dir=tmp_path, seed=0, models={"policy": model})

    if request.param == "real":
        real = request.getfixturevalue("real_vllm")
        model = AutoModelForCausalLM.from_pretrained(real.model)
        yield Served(real.address, real.weights_dir, context(model, AutoTokenizer.from_pretrained(real.model)))
        return
    tokenizer = tiny_tokenizer()
    with FakeVllm(tiny_model(tokenizer, **SHAPE), tmp_path / "weights" / "vllm-weights", socket=str(tmp_path / "v.sock")) as fake:
        address = Address(url=fake.url, token=fake.token)
        yield Served(address, tmp_path / "weights", context(tiny_model(tokenizer, **SHAPE), tokenizer))


@pytest.fixture
def live(served: Served) -> Iterator[LiveVllm]:
    """With the served model's own weights, whatever a test before left on the server."""
    opened = served.opened()
    opened.update_weights(0, FakeWeights(served.policy))
    yield opened
    opened.close()


def close_to(completion: Completion, model: torch.nn.Module, temperature: float = 1.0) -> bool:
    found = torch.tensor(completion.token_logps)
    return torch.allclose(found, plain_logps(model, completion, temperature), atol=1e-4)


@pytest.mark.parametrize("method, path", GUARDED)
@pytest.mark.parametrize("token", [None, "wrong"])
def test_nothing_but_health_is_open(served, method, path, token):
    async def ask(connection: Connection) -> None:
        await connection.get("/health", seconds=10)
        if method == "GET":
            await connection.get(path, seconds=10)
        else:
            await connection.post(path, {}, seconds=10)

    with pytest.raises(RefusedError, match="with 401"):
        served.call(ask, token=token)


def test_what_it_was_started_without_is_told_from_what_it_does_not_find(served):
    with pytest.raises(NoRouteError, match="with 404"):
        served.call(lambda connection: connection.get("/no/such/route", seconds=10))
    with pytest.raises(RefusedError, match="with 404") as caught:
        served.call(lambda connection: connection.post("/v1/unload_lora_adapter", {"lora_name": "none"}, seconds=10))
    assert not isinstance(caught.value, NoRouteError)


def test_it_keeps_the_promises_of_a_backend(served):
    rollout = VllmRollout(
        server=served.address.url, token=served.address.token, weights_dir=served.weights_dir, serve=ServeSettings(dtype="float32")
    )
    with_weights = served.opened()
    with_weights.update_weights(0, FakeWeights(served.policy))
    check_rollout(rollout, served.context)
    with_weights.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.5])
def test_log_probabilities_are_those_of_what_is_drawn_from(served, live, temperature):
    completions = live.submit(request_of(seeds=(1, 2, 3), temperature=temperature, max_completion_length=20)).result(60)
    assert len({one.token_ids for one in completions}) == 3
    assert all(close_to(one, served.policy, temperature) for one in completions)


def test_greedy_completions_are_the_most_probable_tokens_at_temperature_1(served, live):
    one, other = live.submit(request_of(temperature=0.0)).result(60)
    assert one.token_ids == other.token_ids and close_to(one, served.policy)
    ids = torch.tensor([one.prompt_ids])
    expected = served.policy.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    assert list(one.token_ids) == expected[0, len(one.prompt_ids) :].tolist()


def test_a_sample_depends_on_its_prompt_and_seed_alone(live):
    alone = live.submit(request_of(seeds=(7,), max_completion_length=16)).result(60)[0].token_ids
    crowd = [request_of(id=str(n), prompt=(n + 4, 9), seeds=(n, n + 1), max_completion_length=16) for n in range(16)]
    futures = [live.submit(request) for request in crowd]
    among = live.submit(request_of(seeds=(7, 8), max_completion_length=16)).result(60)[0].token_ids
    assert among == alone and len({one.token_ids for future in futures for one in future.result(60)}) > 16


def test_an_end_token_ends_a_completion_and_is_in_it(served, live):
    """The likeliest tokens of an untrained model, sampled long enough."""
    end = served.context.tokenizer.eos_token_id
    ended = []
    for lot in range(4):
        answers = live.submit(request_of(seeds=tuple(range(32 * lot, 32 * lot + 32)), max_completion_length=120)).result(120)
        assert all((one.finish_reason == "length") == (len(one.token_ids) == 120 and one.token_ids[-1] != end) for one in answers)
        ended += [one for one in answers if one.finish_reason == "stop"]
    assert ended and all(one.token_ids.index(end) == len(one.token_ids) - 1 for one in ended)


def test_truncated_sampling_gives_what_is_drawn_from(live):
    for one in live.submit(request_of(seeds=(1, 2, 3), top_k=1)).result(60):
        assert one.token_logps == pytest.approx([0.0] * 6, abs=1e-5)


def test_the_completions_route_gives_the_same_tokens(live):
    request = request_of(seeds=(1, 2, 3), max_completion_length=20)
    before = live.submit(request).result(60)
    live._fleet.servers[0]._route = "/v1/completions"
    after = live.submit(request).result(60)
    assert [one.token_ids for one in before] == [one.token_ids for one in after]
    for one, other in zip(before, after, strict=True):
        assert one.token_logps == pytest.approx(other.token_logps, abs=1e-5)


def test_new_weights_reach_requests_in_flight(served, live):
    before = tiny_model(served.context.tokenizer, **SHAPE)
    before.load_state_dict(served.policy.state_dict())
    requests = [request_of(id=str(n), seeds=(n,), max_completion_length=200, prompt=(n + 5, 6)) for n in range(8)]
    futures = [live.submit(request) for request in requests]
    time.sleep(0.15)
    moved(served.policy)
    live.update_weights(1, FakeWeights(served.policy))
    for one in (future.result(120)[0] for future in futures):
        versions = [span.version for span in one.versions]
        assert versions in ([0], [1], [0, 1])
        ids = torch.tensor(one.token_logps)
        for span in one.versions:
            part, model = slice(span.start, span.end), before if span.version == 0 else served.policy
            if span.start == 0:  # behind an update, keys and values of the tokens before are the old weights' or the new ones'
                assert torch.allclose(ids[part], plain_logps(model, one)[part], atol=1e-4)
    assert close_to(live.submit(request_of(seeds=(3,))).result(60)[0], served.policy)


def test_pushes_one_after_another_are_all_seen(served, live):
    for version in range(1, 6):
        moved(served.policy, 0.02)
        live.update_weights(version, FakeWeights(served.policy))
        (one,) = live.submit(request_of(seeds=(version,), max_completion_length=20)).result(60)
        assert [span.version for span in one.versions] == [version] and close_to(one, served.policy)


@pytest.mark.parametrize("files", [["../outside.safetensors"], ["/etc/passwd"], ["nothing.safetensors"], []])
def test_files_outside_of_the_folder_are_not_loaded_and_the_next_push_mends_it(served, live, files, tmp_path):
    served.weights_dir.mkdir(exist_ok=True)
    (served.weights_dir / "outside.safetensors").write_bytes(b"")

    async def broken(connection: Connection) -> None:
        await connection.post("/pause?mode=keep", {}, seconds=30)
        await connection.post("/start_weight_update", {}, seconds=30)
        await connection.post("/update_weights", {"update_info": {"files": files}}, seconds=30)

    with pytest.raises(BadAnswerError, match="/update_weights with 500"):
        served.call(broken)
    live.update_weights(1, FakeWeights(served.policy))
    assert close_to(live.submit(request_of(seeds=(3,))).result(60)[0], served.policy)


def test_an_update_that_was_begun_and_left_is_finished_by_the_next(served, live):
    async def begun(connection: Connection) -> None:
        await connection.post("/pause?mode=keep", {}, seconds=30)
        await connection.post("/start_weight_update", {}, seconds=30)

    served.call(begun)
    live.update_weights(1, FakeWeights(served.policy))
    assert close_to(live.submit(request_of(seeds=(3,))).result(60)[0], served.policy)


def test_adapters_of_several_versions_beside_each_other(served, live, tmp_path):
    torch.manual_seed(0)
    base = tiny_model(served.context.tokenizer, **SHAPE)
    policy = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear")).eval()
    adapting = served.opened(attrs.evolve(served.context, models={"policy": policy}))
    assert adapting.adapter_alone
    for version in range(6):
        moved(policy, 0.05)
        adapting.update_weights(version, AdapterWeights(policy, tmp_path, version))
        (one,) = adapting.submit(request_of(seeds=(version,), max_completion_length=20)).result(60)
        assert [span.version for span in one.versions] == [version] and close_to(one, policy)
    adapting.close()
    assert close_to(live.submit(request_of(seeds=(3,))).result(60)[0], served.policy)


def test_a_prompt_that_is_too_long_is_an_error_of_its_completion(live):
    (one,) = live.submit(request_of(prompt=(5,) * 300, seeds=(1,))).result(60)
    assert one.finish_reason == "error" and "with 400" in one.extra["error"]


def test_a_completion_ends_where_the_server_has_no_more_room(live):
    for one in live.submit(request_of(seeds=tuple(range(8)), max_completion_length=5000)).result(60):
        assert one.finish_reason == "stop" or (one.finish_reason, len(one.token_ids)) == ("length", 253)


def test_cancelling_frees_the_server(live):
    future = live.submit(request_of(seeds=tuple(range(16)), max_completion_length=240))
    time.sleep(0.2)
    future.cancel()
    started = time.monotonic()
    assert live.submit(request_of(seeds=(1,), max_completion_length=4)).result(60)
    assert time.monotonic() - started < 20
