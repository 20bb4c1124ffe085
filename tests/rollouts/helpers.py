"""What the tests of servers share: a live backend for a fake server, requests, and the trainer's view of a completion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from peft import LoraConfig, get_peft_model

from tests.rollouts.fake_vllm import FakeVllm
from truing import Completion, OpenContext, RolloutRequest, Sampling
from truing.testing import FakeWeights, fake_context, tiny_model
from truing_vllm import ServeSettings, VllmRollout
from truing_vllm.live import LiveVllm
from truing_vllm.opening import open_live

FLOAT32 = ServeSettings(dtype="float32")


def request_of(
    id: str = "a", prompt: tuple[int, ...] = (5, 6, 7), seeds: tuple[int, ...] = (1, 2), **sampling: Any
) -> RolloutRequest:
    return RolloutRequest(id=id, prompt_ids=prompt, seeds=seeds, sampling=Sampling(**{"max_completion_length": 6, **sampling}))


def plain_logps(model: torch.nn.Module, completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a completion by one pass over its sequence alone."""
    ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(completion.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(-1, ids[0, len(completion.prompt_ids) :, None]).squeeze(-1)


def moved(model: torch.nn.Module, by: float = 0.05) -> None:
    """Change every weight that is trained, as a step does."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
            weight.add_(torch.randn(weight.shape, generator=generator) * by)


@attrs.frozen
class Rig:
    """A fake server, and the live backend of a run beside it."""

    fake: FakeVllm
    live: LiveVllm
    context: OpenContext

    @property
    def policy(self) -> torch.nn.Module:
        return self.context.models["policy"]


@contextmanager
def rig(folder: Path, *, context: OpenContext | None = None, fake: dict[str, Any] | None = None, **settings: Any) -> Iterator[Rig]:
    context = context or fake_context(folder)
    given = {"timeout": 20.0, "serve": FLOAT32, **settings}
    weights = settings.get("weights_dir", folder) / "vllm-weights"
    with FakeVllm(tiny_model(context.tokenizer, seed=1), weights, **(fake or {})) as server:
        live = open_live(VllmRollout(server=server.url, token=server.token, **given), context)
        try:
            yield Rig(server, live, context)
        finally:
            live.close()


@attrs.frozen(eq=False)
class AdapterWeights(FakeWeights):
    """What core gives a backend for a policy with an adapter."""

    folder: Path
    version: int

    def parameters(self):
        raise AssertionError("the adapter alone is wanted")

    def adapter(self):
        folder = self.folder / f"version-{self.version}"
        self.model.save_pretrained(str(folder))
        return folder


def lora_context(folder: Path, **config: Any) -> OpenContext:
    context = fake_context(folder)
    torch.manual_seed(0)
    policy = get_peft_model(tiny_model(context.tokenizer, seed=1), LoraConfig(r=4, target_modules="all-linear", **config))
    return attrs.evolve(context, models={"policy": policy.eval()})


def agrees(run: Rig, **sampling: Any) -> bool:
    (one,) = run.live.submit(request_of(seeds=(3,), max_completion_length=12, **sampling)).result(20)
    return torch.allclose(torch.tensor(one.token_logps), plain_logps(run.policy, one), atol=1e-4)
