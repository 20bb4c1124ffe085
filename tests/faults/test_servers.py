"""Faults of rollout servers under a run: no stale sample is trained on, none hangs, no prompt is lost or trained twice.

The server is the fake one (tests/rollouts/fake_vllm.py), the client, the sampler and the loop are the real ones.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from concurrent.futures import Future
from typing import ClassVar

import attrs
import pytest
import torch

from tests.end_to_end.test_online import ROWS, align, completions
from tests.faults.sizes import named, portions
from tests.rollouts.fake_vllm import FakeVllm
from tests.rollouts.helpers import FLOAT32
from truing import Completion, ConcurrentRollout, OpenContext, RolloutError, RolloutRequest, WeightSource
from truing.testing import tiny_model, tiny_tokenizer
from truing_grpo import GRPO
from truing_vllm import VllmRollout
from truing_vllm.opening import open_live

FAULTS_A_RUN = 4
TIMEOUT = 3.0
"""Seconds for one completion, a push, or a server to come back."""
DEADLINE = 60.0
"""Seconds within which a run of ten steps with four faults ends, each of which may take TIMEOUT and be tried four times."""
SPOILT = ("500", "429", "truncated", "two", "none", "echo", "nan", "hang", "drip")
KINDS = (*SPOILT, "restart", "killed", "failed update", "half-loaded")


class Watched:
    """A live backend that remembers what it gave, and the weights of every version."""

    def __init__(self, live: ConcurrentRollout, policy: torch.nn.Module, do: Faults) -> None:
        self.live, self.policy, self.do = live, policy, do
        self.about = ""
        self.weights: dict[int, dict[str, torch.Tensor]] = {}
        self.given: list[Completion] = []

    def submit(self, request: RolloutRequest) -> Future[tuple[Completion, ...]]:
        self.do.before_request()
        future = self.live.submit(request)
        future.add_done_callback(lambda done: None if done.cancelled() or done.exception() else self.given.extend(done.result()))
        return future

    def update_weights(self, version: int, source: WeightSource) -> None:
        self.weights[version] = {name: weight.detach().clone() for name, weight in self.policy.state_dict().items()}
        self.do.before_push()
        self.live.update_weights(version, source)

    def close(self) -> None:
        self.live.close()

    @torch.no_grad()
    def gap(self) -> float:
        """Return the largest difference between a log-probability given and that of the weights that it is said to be of."""
        largest = 0.0
        model = tiny_model(tiny_tokenizer()).eval()
        for version, weights in self.weights.items():
            model.load_state_dict(weights)
            for one in self.given:
                for span in one.versions:
                    if span.version == version:
                        ids = torch.tensor([[*one.prompt_ids, *one.token_ids]])
                        scores = model(input_ids=ids, use_cache=False).logits[0, len(one.prompt_ids) - 1 : -1].log_softmax(-1)
                        logps = scores.gather(-1, ids[0, len(one.prompt_ids) :, None]).squeeze(-1)
                        gaps = (logps - torch.tensor(one.token_logps)).abs()[span.start : span.end]
                        largest = max(largest, float(gaps.max()))
        return largest


class Faults:
    """What befalls a server, and after which request or push."""

    def __init__(self, number: int, fake: FakeVllm) -> None:
        draw = random.Random(number)
        self.fake = fake
        self.kinds = [KINDS[(number * FAULTS_A_RUN + place) % len(KINDS)] for place in range(FAULTS_A_RUN)]
        self.at = dict(zip(sorted(draw.sample(range(1, 2 * len(ROWS)), FAULTS_A_RUN)), self.kinds, strict=True))
        self.requests = 0
        self.of_push: list[str] = []
        self.done: list[str] = []
        self.restarts: list[threading.Thread] = []
        self.restarting = threading.Lock()

    def before_request(self) -> None:
        self.requests += 1
        kind = self.at.pop(self.requests, None)
        if kind is None:
            return
        if kind in ("failed update", "half-loaded"):
            self.of_push.append(kind)
            return
        self.done.append(kind)
        if kind in SPOILT:
            self.fake.faults.append(kind)
        else:
            self.restarts.append(threading.Thread(target=self._restart, args=(0.5 if kind == "killed" else 0.0,)))
            self.restarts[-1].start()

    def _restart(self, seconds: float) -> None:
        with self.restarting:  # one after the other, for both would take the same port
            self.fake.die()
            time.sleep(seconds)
            self.fake.restart()

    def before_push(self) -> None:
        for kind in self.of_push:
            self.done.append(kind)
            if kind == "failed update":
                self.fake.fail_updates += 1
            else:
                self.fake.half_loaded += 1
        self.of_push.clear()


@attrs.frozen(kw_only=True)
class Rollout:
    """vLLM, watched."""

    name: ClassVar[str] = "watched"
    fake: FakeVllm = attrs.field(metadata={"internal": True})
    faults: Faults = attrs.field(metadata={"internal": True})
    opened: list[Watched] = attrs.field(factory=list, metadata={"internal": True})

    def open(self, context: OpenContext) -> Watched:
        settings = VllmRollout(server=self.fake.url, token=self.fake.token, timeout=TIMEOUT, serve=FLOAT32)
        self.opened.append(Watched(open_live(settings, context), context.models["policy"], self.faults))
        return self.opened[-1]


@pytest.mark.parametrize("numbers", portions(50, 4, 2), ids=named)
def test_faults_of_servers_cost_time_and_at_most_the_completions_that_they_hit(tmp_path, numbers):
    for number in numbers:
        folder, staleness = tmp_path / str(number), number % 3
        method = GRPO(importance_sampling_correction="token_truncate")
        with FakeVllm(tiny_model(tiny_tokenizer()), folder / "vllm-weights", token_seconds=0.002) as fake:
            faults = Faults(number, fake)
            backend = Rollout(fake=fake, faults=faults)
            started = time.monotonic()
            rollout = {"backend": backend, "max_staleness": staleness, "max_error_rate": 1.0}
            state = align(folder, method, rollout=rollout, num_epochs=2, learning_rate=1e-2)
            assert time.monotonic() - started < DEADLINE, (number, faults.done)
            for restart in faults.restarts:  # which may come when the run is done already
                restart.join()
        lines, watched = completions(folder), backend.opened[-1]
        assert state.step == 10 and len(faults.done) >= FAULTS_A_RUN - 1, "one that was to befall a push may have come too late"
        samples = Counter(line["sample"] for line in lines)
        lost = sum(int(line["completions/lost"]) for line in state.history)
        assert len(samples) == len(ROWS) and max(samples.values()) <= 2 * 4, (number, faults.done)
        assert sum(samples.values()) + lost == 2 * 4 * len(ROWS), (number, faults.done)
        assert lost <= 4 * sum(kind in SPOILT for kind in faults.done), (number, faults.done)
        assert all(line["step"] - 1 - line["version"] <= staleness for line in lines), (number, faults.done)
        assert watched.gap() < 1e-4, (number, faults.done)


@pytest.mark.parametrize("staleness", [0, 2])
def test_a_server_that_stays_away_ends_the_run_with_a_checkpoint_that_goes_on(tmp_path, staleness):
    folder, method = tmp_path / "run", GRPO(importance_sampling_correction="token_truncate")
    with FakeVllm(tiny_model(tiny_tokenizer()), folder / "vllm-weights") as fake:
        faults = Faults(0, fake)
        faults.at = {11: "gone"}
        faults._restart = lambda seconds: fake.die()
        with pytest.raises(RolloutError, match="no vLLM server c"):
            align(folder, method, rollout={"backend": Rollout(fake=fake, faults=faults), "max_staleness": staleness}, num_epochs=2)
        faults.at = {}
        fake.restart()
        rollout = {"backend": Rollout(fake=fake, faults=faults), "max_staleness": staleness}
        state = align(folder, method, rollout=rollout, num_epochs=2, resume=True)
    assert state.step == 10
    assert Counter(line["sample"] for line in completions(folder)) == dict.fromkeys(range(len(ROWS)), 2 * 4)
