"""A server that speaks the routes of `vllm serve` that the plugin uses, samples from a tiny model, and has faults on demand.

tests/rollouts/test_contract.py runs the same checks against it and against the real one.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import deque
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.rollouts.fake_http import HttpThread, Reply

Fault = Literal["500", "429", "truncated", "two", "none", "echo", "nan", "hang", "drip", "die"]
"""What the next completion is spoilt with: a status, half of the JSON, a wrong number of completions, ..."""
DEFAULT_VERSION = "default"


@attrs.define(eq=False)
class State:
    """What a start of the server knows; another start knows none of it."""

    model: torch.nn.Module
    version: str = DEFAULT_VERSION
    paused: bool = False
    updating: bool = False
    adapters: dict[str, torch.nn.Module] = attrs.field(factory=dict)
    running: asyncio.Event = attrs.field(factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        self.running.set()


class FakeVllm:
    """To be used as a context manager. Attributes may be changed while it runs."""

    def __init__(
        self,
        model: torch.nn.Module,
        weights_dir: Path,
        *,
        token: str = "t0ken",
        socket: str | None = None,
        scale_out: bool = True,
        guarded: bool = True,
        lacks: tuple[str, ...] = (),
        token_seconds: float = 0.0,
    ) -> None:
        self.base, self.weights_dir, self.token, self.scale_out, self.guarded = model, weights_dir, token, scale_out, guarded
        self.lacks = lacks
        """Routes that it was started without."""
        self.token_seconds = token_seconds
        self.max_model_len = 256
        self.faults: deque[Fault] = deque()
        """Of the next completions, one each."""
        self.fail_updates = 0
        """How many of the next updates fail."""
        self.half_loaded = 0
        """How many of the next updates, or adapters, load half of the weights, and say nothing."""
        self.busy_updates = 0
        """How many of the next updates find it without room."""
        self.hangs = False
        """Whether nothing that is to be computed is answered."""
        self.calls: list[str] = []
        self.asked: list[dict[str, Any]] = []
        """Bodies of requests for completions."""
        self.most_at_once = self._at_once = 0
        self.fresh()
        self.http = HttpThread(self._answer, socket)

    def fresh(self) -> None:
        self.state = State(copy.deepcopy(self.base))

    @property
    def url(self) -> str:
        return self.http.url

    def __enter__(self) -> FakeVllm:
        return self

    def __exit__(self, *args: object) -> None:
        self.http.stop()

    def die(self) -> None:
        self.http.call(self.http.die())

    def restart(self) -> None:
        """Listen again, as a new process with the weights of the start."""
        self.fresh()
        self.http.call(self.http.listen())

    async def _answer(self, method: str, path: str, headers: dict[str, str], body: Any) -> Reply:
        route, _, query = path.partition("?")
        self.calls.append(route)
        if route == "/health":
            return Reply()
        if self.guarded and headers.get("authorization") != f"Bearer {self.token}":
            return Reply({"error": "token"}, 401)
        if route == "/inference/v1/generate":
            return (
                await self._complete(body, body["token_ids"], body["sampling_params"], self._generated)
                if self.scale_out
                else Reply(None, 403)
            )
        if route == "/v1/completions":
            return await self._complete(body, body["prompt"], body, self._completed)
        answer = None if route in self.lacks else getattr(self, f"_{route.strip('/').replace('/', '_')}", None)
        return Reply(b'{"detail":"Not Found"}', 404) if answer is None else await answer(query, body)

    async def _v1_models(self, query: str, body: Any) -> Reply:
        return Reply({"data": [{"id": name} for name in ("policy", *self.state.adapters)]})

    async def _is_paused(self, query: str, body: Any) -> Reply:
        return Reply({"is_paused": self.state.paused})

    async def _weight_info(self, query: str, body: Any) -> Reply:
        return Reply({"weight_version": self.state.version})

    async def _pause(self, query: str, body: Any) -> Reply:
        assert query == "mode=keep", query
        if self.busy_updates:
            self.busy_updates -= 1
            return Reply({"error": "busy"}, 503)
        self.state.paused = True
        self.state.running.clear()
        return Reply({"status": "paused"})

    async def _resume(self, query: str, body: Any) -> Reply:
        self.state.paused = False
        self.state.running.set()
        return Reply({"status": "resumed"})

    async def _init_weight_transfer_engine(self, query: str, body: Any) -> Reply:
        return Reply({"message": "ok"})

    async def _start_weight_update(self, query: str, body: Any) -> Reply:
        if self.state.updating:
            return Reply({"error": "already active"}, 500)
        self.state.updating = True
        return Reply({"message": "ok"})

    async def _update_weights(self, query: str, body: Any) -> Reply:
        if not self.state.updating:
            return Reply({"error": "not started"}, 500)
        if self.fail_updates:
            self.fail_updates -= 1
            self.state.updating = False
            return Reply({"error": "RuntimeError"}, 500)
        root = self.weights_dir.resolve()
        paths = [(root / name).resolve() for name in body["update_info"]["files"]]
        if not paths or any(not path.is_relative_to(root) or not path.is_file() for path in paths):
            self.state.updating = False
            return Reply({"error": "ValueError"}, 500)
        weights = {name: weight for path in paths for name, weight in load_file(path).items()}
        if self.half_loaded:
            self.half_loaded -= 1
            weights = dict(list(weights.items())[len(weights) // 2 :])
        self.state.model.load_state_dict(weights, strict=False)
        return Reply({"message": "ok"})

    async def _finish_weight_update(self, query: str, body: Any) -> Reply:
        self.state.updating = False
        self.state.version = body["weight_version"]
        return Reply({"message": "ok"})

    async def _update_weight_version(self, query: str, body: Any) -> Reply:
        self.state.version = body["new_version"]
        return Reply({"success": True})

    async def _reset_prefix_cache(self, query: str, body: Any) -> Reply:
        return Reply({"success": True})

    async def _v1_load_lora_adapter(self, query: str, body: Any) -> Reply:
        name = body["lora_name"]
        if name in self.state.adapters:
            return Reply({"error": "already loaded"}, 400)
        if self.fail_updates:
            self.fail_updates -= 1
            return Reply({"error": "InternalServerError"}, 500)
        adapter = PeftModel.from_pretrained(copy.deepcopy(self.base), body["lora_path"]).eval()
        if self.half_loaded:
            self.half_loaded -= 1
            factors = [weight for key, weight in adapter.named_parameters() if "lora_B" in key]
            for weight in factors[len(factors) // 2 :]:
                weight.detach().zero_()
        self.state.adapters[name] = adapter
        return Reply({})

    async def _v1_unload_lora_adapter(self, query: str, body: Any) -> Reply:
        return Reply({}) if self.state.adapters.pop(body["lora_name"], None) is not None else Reply({"error": "none"}, 404)

    async def _complete(self, body: Any, prompt: list[int], params: dict[str, Any], shape: Any) -> Reply:
        self.asked.append(body)
        probing = params["max_tokens"] == 1
        fault = self.faults.popleft() if self.faults and not probing else None
        if fault == "hang" or self.hangs:
            await asyncio.Event().wait()
        if fault == "die":
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(self.http.die()))
            await asyncio.Event().wait()
        if fault in ("429", "500"):
            return Reply({"error": "spoilt"}, int(fault))
        if len(prompt) >= self.max_model_len:
            return Reply({"error": "maximum context length"}, 400)
        name = body.get("model")
        if name not in (None, "policy", *self.state.adapters):
            return Reply({"error": f"no model {name}"}, 404)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            answer = shape(prompt, *await self._sample(prompt, params, name))
        finally:
            self._at_once -= 1
        (choice,) = answer["choices"]
        if fault in ("two", "none"):
            answer["choices"] = [choice] * 2 if fault == "two" else []
        if fault == "echo":
            choice["token_ids"] = []
            choice["prompt_token_ids"] = [*prompt, 1]
        if fault == "nan":
            logps = choice["logprobs"]
            logps.update(
                token_logprobs=[None] * len(choice["token_ids"]), content=[{"logprob": -9999.0}] * len(choice["token_ids"])
            )
        return Reply(answer, drip=0.2 if fault == "drip" else 0.0, cut=fault == "truncated")

    def _model(self, name: str | None) -> torch.nn.Module:
        return self.state.adapters.get(name or "", self.state.model)

    @torch.no_grad()
    def _logits(self, ids: list[int], name: str | None) -> torch.Tensor:
        return self._model(name)(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()

    async def _sample(
        self, prompt: list[int], params: dict[str, Any], name: str | None
    ) -> tuple[list[int], list[float], str, list[Any]]:
        generator = torch.Generator().manual_seed(params["seed"])
        tokens: list[int] = []
        logps: list[float] = []
        labels: list[str] = []
        while len(tokens) < min(params["max_tokens"], self.max_model_len - len(prompt)):
            await self.state.running.wait()
            await asyncio.sleep(self.token_seconds)
            await self.state.running.wait()
            temperature = params["temperature"] or 1.0
            logits = self._logits([*prompt, *tokens], name)[-1] / temperature
            if params["top_k"]:
                logits[logits < logits.topk(params["top_k"]).values[-1]] = -torch.inf
            scores = logits.log_softmax(-1)
            drawn = scores.exp().multinomial(1, generator=generator) if params["temperature"] else scores.argmax().unsqueeze(0)
            tokens.append(int(drawn))
            logps.append(float(scores[drawn]))
            labels.append(self.state.version)
            if tokens[-1] in params.get("stop_token_ids", ()):
                return tokens, logps, "stop", _spans(labels)
        return tokens, logps, "length", _spans(labels)

    def _generated(self, prompt: Any, tokens: Any, logps: Any, reason: str, spans: Any) -> dict[str, Any]:
        content = [{"token_id": token, "logprob": logp} for token, logp in zip(tokens, logps, strict=True)]
        choice = {
            "index": 0,
            "token_ids": tokens,
            "finish_reason": reason,
            "logprobs": {"content": content},
            "weight_versions": spans,
        }
        return {"choices": [choice]}

    def _completed(self, prompt: Any, tokens: Any, logps: Any, reason: str, spans: Any) -> dict[str, Any]:
        choice = {
            "index": 0,
            "token_ids": tokens,
            "prompt_token_ids": prompt,
            "finish_reason": reason,
        }
        return {"choices": [{**choice, "logprobs": {"token_logprobs": logps}}]}


def _spans(labels: list[str]) -> list[dict[str, Any]]:
    spans, start = [], 0
    for label, group in itertools.groupby(labels):
        end = start + len(list(group))
        spans.append({"version": label, "start": start, "end": end})
        start = end
    return spans
