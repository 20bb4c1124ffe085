"""The client against a fake server: what it asks, what it gives on, and what it does about a server's faults."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError

import httpx2 as httpx
import pytest
import torch

from tests.rollouts.fake_vllm import FakeVllm
from tests.rollouts.helpers import FLOAT32, moved, plain_logps, request_of, rig
from truing import RolloutError, VersionSpan
from truing.testing import FakeWeights, check_rollout, fake_context, tiny_model
from truing_vllm import VllmRollout
from truing_vllm.address import Address
from truing_vllm.connection import Connection
from truing_vllm.course import Course
from truing_vllm.faults import AbsentError, UnreachableError
from truing_vllm.opening import open_live
from truing_vllm.server import Server

ROUTES = [True, False]


@pytest.mark.parametrize("scale_out", ROUTES, ids=["generate", "completions"])
def test_it_keeps_the_promises_of_a_backend(tmp_path, scale_out):
    context = fake_context(tmp_path)
    with FakeVllm(tiny_model(context.tokenizer), tmp_path / "vllm-weights", scale_out=scale_out) as fake:
        check_rollout(VllmRollout(server=fake.url, token=fake.token, serve=FLOAT32), context)


@pytest.mark.parametrize("scale_out", ROUTES, ids=["generate", "completions"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_the_policys(tmp_path, scale_out, temperature):
    with rig(tmp_path, fake={"scale_out": scale_out}) as run:
        run.live.update_weights(3, FakeWeights(run.policy))
        (completions,) = [run.live.submit(request_of(seeds=(1, 2, 3), temperature=temperature)).result(20)]
    assert [one.index for one in completions] == [0, 1, 2] and len({one.token_ids for one in completions}) == 3
    for one in completions:
        assert one.versions == (VersionSpan(version=3, start=0, end=len(one.token_ids)),)
        assert torch.allclose(torch.tensor(one.token_logps), plain_logps(run.policy, one, temperature), atol=1e-5)


def test_a_server_on_a_unix_socket_is_asked_the_same(tmp_path):
    found = []
    for number, socket in enumerate([None, str(tmp_path / "v.sock")]):
        with rig(tmp_path / str(number), fake={"socket": socket}) as run:
            run.live.update_weights(0, FakeWeights(run.policy))
            found.append([one.token_ids for one in run.live.submit(request_of()).result(20)])
    assert found[0] == found[1]


def test_requests_say_everything_that_decides_how_tokens_are_drawn(tmp_path):
    with rig(tmp_path) as run:
        run.live.submit(request_of(seeds=(2**63 - 1,), temperature=0.3, top_p=0.9, top_k=5)).result(20)
        (asked,) = run.fake.asked
    assert asked["token_ids"] == [5, 6, 7] and asked["sampling_params"] == {
        "n": 1,
        "seed": 2**63 - 1,
        "max_tokens": 6,
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": [run.context.tokenizer.eos_token_id],
        "logprobs": 0,
        "detokenize": False,
    }


@pytest.mark.parametrize("fault", ["500", "429", "truncated", "two", "none", "echo"])
@pytest.mark.parametrize("scale_out", ROUTES, ids=["generate", "completions"])
def test_what_may_be_better_once_more_is_asked_once_more(tmp_path, fault, scale_out):
    with rig(tmp_path, fake={"scale_out": scale_out}) as run:
        plain = run.live.submit(request_of(seeds=(4,))).result(20)
        run.fake.faults.extend([fault] * 2)
        assert run.live.submit(request_of(seeds=(4,))).result(20) == plain
        assert len(run.fake.asked) == 4


def test_that_a_server_was_busy_costs_no_try_of_a_bad_answer(tmp_path):
    with rig(tmp_path) as run:
        run.fake.faults.extend(["429"] * 2 + ["truncated"] * 3)
        (one,) = run.live.submit(request_of(seeds=(4,))).result(40)
        assert one.finish_reason != "error" and len(run.fake.asked) == 6


@pytest.mark.parametrize("fault, says", [("500", "with 500"), ("truncated", "cannot be read"), ("two", "gave 2 completions")])
def test_what_fails_every_time_is_an_error_of_its_completion(tmp_path, fault, says):
    with rig(tmp_path) as run:
        run.fake.faults.extend([fault] * 4)
        broken, whole = *run.live.submit(request_of(seeds=(4,))).result(20), *run.live.submit(request_of(seeds=(5,))).result(20)
    assert (broken.finish_reason, broken.token_ids) == ("error", ()) and says in broken.extra["error"]
    assert whole.finish_reason != "error"


@pytest.mark.parametrize("scale_out", ROUTES, ids=["generate", "completions"])
def test_probabilities_that_are_not_finite_are_an_error_of_their_completion(tmp_path, scale_out):
    with rig(tmp_path, fake={"scale_out": scale_out}) as run:
        run.fake.faults.append("nan")
        (broken,) = run.live.submit(request_of(seeds=(4,))).result(20)
    assert broken.finish_reason == "error" and broken.extra == {"error": "the policy's probabilities are not finite"}


def test_trouble_is_over_where_a_server_took_the_request_since():
    server, course = Server(Connection(Address(url="http://127.0.0.1:9"))), Course(timeout=300.0)
    gone, died = AbsentError("it is gone"), UnreachableError("it hung up")
    assert not any(course.gives_up(fault, server, at) for fault, at in ((gone, 1.0), (died, 302.0), (gone, 601.0)))
    with pytest.raises(RolloutError, match="no vLLM server could be used for 300 s; the last: it is gone"):
        course.gives_up(gone, server, 603.0)


def test_a_request_that_servers_die_of_is_not_asked_for_ever():
    """One that they are merely gone for is, as often as it takes."""
    server, course = Server(Connection(Address(url="http://127.0.0.1:9"))), Course(timeout=300.0)
    faults = [*[AbsentError("it is gone")] * 20, *[UnreachableError("it hung up")] * 4]
    assert [course.gives_up(fault, server, float(at)) for at, fault in enumerate(faults)] == [False] * 23 + [True]


@pytest.mark.parametrize("fault", [httpx.ConnectTimeout, httpx.ConnectError, httpx.ReadError])
def test_a_server_that_took_no_connection_is_told_from_one_that_hung_up(monkeypatch, fault):
    async def ask(*args: object) -> None:
        raise fault("it did")

    monkeypatch.setattr(httpx.AsyncHTTPTransport, "handle_async_request", ask)
    with pytest.raises(UnreachableError, match=f"is not there: {fault.__name__} it did") as caught:
        asyncio.run(Connection(Address(url="http://127.0.0.1:9")).get("/health", seconds=5))
    assert isinstance(caught.value, AbsentError) == (fault is not httpx.ReadError)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_a_request_that_takes_too_long_is_given_up_where_others_are_answered(tmp_path, fault):
    with rig(tmp_path, timeout=1.5) as run:
        run.fake.faults.append(fault)
        slow = run.live.submit(request_of(seeds=(4,)))
        time.sleep(0.5)
        assert run.live.submit(request_of(seeds=(5,))).result(20)[0].finish_reason != "error"
        (late,) = slow.result(20)
    assert late.finish_reason == "error" and "did not answer /inference/v1/generate in full within 2 s" in late.extra["error"]


def test_a_server_that_answers_nothing_is_an_error_of_the_run(tmp_path):
    with rig(tmp_path, timeout=1.0) as run:
        run.live.update_weights(0, FakeWeights(run.policy))
        run.fake.hangs = True
        with pytest.raises(RolloutError, match="no vLLM server came back within 1 s, .* did not answer .* within 1 s"):
            run.live.submit(request_of()).result(20)


def test_a_request_that_hangs_is_asked_once_more_when_the_server_answers_the_probe(tmp_path):
    with rig(tmp_path, timeout=1.0) as run:
        run.live.update_weights(0, FakeWeights(run.policy))
        plain = run.live.submit(request_of(seeds=(1,))).result(20)
        run.fake.faults.extend(["hang"])
        assert run.live.submit(request_of(seeds=(1,))).result(20) == plain
        run.fake.faults.extend(["hang"] * 2)
        (failed,) = run.live.submit(request_of(seeds=(1,))).result(20)
        assert failed.finish_reason == "error" and "within 1 s" in failed.extra["error"]


def test_a_hung_server_costs_time_and_no_completion_where_there_is_another(tmp_path):
    context = fake_context(tmp_path)
    model = tiny_model(context.tokenizer)
    with FakeVllm(model, tmp_path / "vllm-weights") as one, FakeVllm(model, tmp_path / "vllm-weights") as other:
        live = open_live(VllmRollout(server=(one.url, other.url), token="t0ken", timeout=1.0, serve=FLOAT32), context)
        one.faults.extend(["hang"] * 2)
        answers = live.submit(request_of()).result(20)
        live.close()
        assert len(one.asked) == len(other.asked) == 2
    assert "error" not in [answer.finish_reason for answer in answers]


def test_several_servers_share_the_work_prompt_by_prompt(tmp_path):
    context = fake_context(tmp_path)
    model = tiny_model(context.tokenizer)
    with FakeVllm(model, tmp_path / "vllm-weights") as one, FakeVllm(model, tmp_path / "vllm-weights") as other:
        live = open_live(VllmRollout(server=(one.url, other.url), token="t0ken", serve=FLOAT32), context)
        list(live.generate([request_of(id=str(number), prompt=(number + 1,)) for number in range(8)]))
        live.close()
        prompts = [{body["token_ids"][0] for body in fake.asked} for fake in (one, other)]
    assert len(prompts[0]) == len(prompts[1]) == 4 and not prompts[0] & prompts[1]


def test_no_more_is_in_flight_than_is_allowed(tmp_path):
    with rig(tmp_path, fake={"token_seconds": 0.01}, max_concurrency=3) as run:
        assert len(list(run.live.generate([request_of(id=str(number), seeds=(1, 2, 3, 4)) for number in range(4)]))) == 16
        assert run.fake.most_at_once == 3


def test_cancelling_stops_the_work_on_the_server(tmp_path):
    with rig(tmp_path, fake={"token_seconds": 0.05}) as run:
        future = run.live.submit(request_of(max_completion_length=400))
        while run.fake.http.open_requests < 2:
            time.sleep(0.01)
        assert future.cancel()
        until = time.monotonic() + 5
        while run.fake.http.open_requests and time.monotonic() < until:
            time.sleep(0.01)
        assert (run.fake.http.open_requests, run.fake.http.hang_ups) == (0, 2)
        with pytest.raises(CancelledError):
            future.result(1)


def test_it_may_be_asked_from_many_threads(tmp_path):
    found: dict[int, object] = {}
    with rig(tmp_path) as run:

        def ask(number: int) -> None:
            found[number] = run.live.submit(request_of(id=str(number), seeds=(number,))).result(20)[0].request_id

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert found == {number: str(number) for number in range(8)}


@pytest.mark.parametrize("first", ["sample", "push"])
def test_a_wrong_token_is_said_to_be_wrong(tmp_path, first):
    """At once, whatever is asked first: a run pushes before it samples."""
    context = fake_context(tmp_path)
    with FakeVllm(tiny_model(context.tokenizer), tmp_path) as fake:
        live = open_live(VllmRollout(server=fake.url, token="wrong"), context)
        with pytest.raises(RolloutError, match="with 401: .*; set rollout.token, or the environment's TRUING_VLLM_TOKEN"):
            if first == "sample":
                live.submit(request_of()).result(20)
            else:
                live.update_weights(0, FakeWeights(context.models["policy"]))
        live.close()
        assert fake.calls.count("/pause") == (first == "push")


def test_an_answer_without_end_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr("truing_vllm.wire._BYTES_BESIDE", 10)
    monkeypatch.setattr("truing_vllm.wire._BYTES_PER_TOKEN", 1)
    with rig(tmp_path) as run:
        (broken,) = run.live.submit(request_of(seeds=(4,))).result(20)
    assert broken.finish_reason == "error" and "with more than 19 bytes" in broken.extra["error"]


def test_no_server_there_is_said_within_the_timeout(tmp_path):
    with pytest.raises(RolloutError, match="no vLLM server came back within 1 s, of http://127.0.0.1:9; the last: "):
        open_live(VllmRollout(host="127.0.0.1", port=9, timeout=1.0), fake_context(tmp_path))


def test_completions_in_flight_go_on_over_an_update(tmp_path):
    """Each token bears the version that sampled it, and has its log-probability under those weights."""
    with rig(tmp_path, fake={"token_seconds": 0.02}) as run:
        run.live.update_weights(1, FakeWeights(run.policy))
        before = tiny_model(run.context.tokenizer)
        before.load_state_dict(run.policy.state_dict())
        future = run.live.submit(request_of(seeds=(11,), max_completion_length=60, temperature=1.0))
        time.sleep(0.4)
        moved(run.policy)
        run.live.update_weights(2, FakeWeights(run.policy))
        (one,) = future.result(30)
    assert [span.version for span in one.versions] == [1, 2] and one.versions[0].end == one.versions[1].start > 0
    for span, model in zip(one.versions, (before, run.policy), strict=True):
        part = slice(span.start, span.end)
        assert torch.allclose(torch.tensor(one.token_logps)[part], plain_logps(model, one)[part], atol=1e-4)
