"""Stand-ins that need no model and no network: rows, completions, a reward, a rollout backend and the run around them."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from truing.context import OpenContext
from truing.rewards import Scores
from truing.rollout import Completion, RolloutRequest, VersionSpan, WeightSource
from truing.settings import setting
from truing.testing.models import tiny_model, tiny_tokenizer


def preference_rows(n: int, *, seed: int = 0) -> list[dict[str, str]]:
    """Return `n` rows with prompt, chosen and rejected: a sum of two digits, the right answer and a wrong one."""
    rng = random.Random(seed)
    rows = []
    for _ in range(n):
        a, b, error = rng.randint(0, 9), rng.randint(0, 9), rng.randint(1, 9)
        rows.append({"prompt": f"{a}+{b}=", "chosen": str(a + b), "rejected": str(a + b + error)})
    return rows


def fake_completions(texts: Sequence[str] = ("", "a", "Two words.", "12", "été <think>x</think>\n7")) -> list[Completion]:
    """Return a completion for each text, one per byte, to prompts that all differ."""
    return [
        Completion(
            request_id=f"r{index}",
            index=0,
            prompt_ids=(index + 1,),
            token_ids=tuple(text.encode()),
            finish_reason="stop",
            prompt=f"Prompt {index}",
            text=text,
        )
        for index, text in enumerate(texts)
    ]


@attrs.frozen(kw_only=True)
class LetterReward:
    """The share of one letter in a completion, so that a policy can learn to write it."""

    name: ClassVar[str] = "fake_letter"
    letter: str = setting("a", help="The letter that is rewarded.")

    def __call__(self, completions: Sequence[Completion]) -> Scores:
        """Return a number from 0 to 1; 0 for an empty completion."""
        return [completion.text.count(self.letter) / max(1, len(completion.text)) for completion in completions]


class LiveFakeRollout:
    """Draws every token, each of 26 letters or the end, with equal probability; the last request finishes first."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.version = 0
        letters = [tokenizer.encode(letter, add_special_tokens=False)[-1] for letter in string.ascii_lowercase]
        self.symbols = [*letters, tokenizer.eos_token_id]

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield completions that depend on the prompt and the sample's seed alone."""
        for request in reversed(requests):
            for index, seed in enumerate(request.seeds):
                yield self._complete(request, index, random.Random(f"{seed} {request.prompt_ids}"))

    def _complete(self, request: RolloutRequest, index: int, rng: random.Random) -> Completion:
        ids: list[int] = []
        while len(ids) < request.sampling.max_completion_length and self.symbols[-1] not in ids:
            ids.append(rng.choice(self.symbols))
        return Completion(
            request_id=request.id,
            index=index,
            prompt_ids=request.prompt_ids,
            token_ids=tuple(ids),
            finish_reason="stop" if ids[-1] == self.symbols[-1] else "length",
            versions=(VersionSpan(version=self.version, start=0, end=len(ids)),),
            token_logps=(-math.log(len(self.symbols)),) * len(ids),
            text=self.tokenizer.decode(ids, skip_special_tokens=True),
            columns=request.columns,
        )

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Note the version; the weights are of no use here."""
        self.version = version

    def close(self) -> None:
        """Nothing is held."""


@attrs.frozen(kw_only=True)
class FakeRollout:
    """Random letters at once, without a model; the same for the same seed."""

    name: ClassVar[str] = "fake"

    def open(self, context: OpenContext) -> LiveFakeRollout:
        """Return a live backend with the run's tokenizer."""
        return LiveFakeRollout(context.tokenizer)


@attrs.frozen(eq=False)
class FakeWeights:
    """The weights of a model as a rollout backend gets them, without an adapter."""

    model: torch.nn.Module

    def parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield every parameter by name."""
        yield from ((name, parameter.detach()) for name, parameter in self.model.named_parameters())

    def adapter(self) -> Path | None:
        """Return None: the whole model is trained."""
        return None

    @torch.no_grad()
    def next_logps(self, ids: Sequence[int]) -> torch.Tensor:
        """Return what the model says, in evaluation mode or not as it is."""
        logits: torch.Tensor = self.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        return logits.log_softmax(-1)


def fake_context(run_dir: Path, *, seed: int = 0) -> OpenContext:
    """Return the context of a run on the CPU with `tiny_tokenizer()` and `tiny_model()` as its policy."""
    tokenizer = tiny_tokenizer()
    models = {"policy": tiny_model(tokenizer, seed=seed)}
    return OpenContext(tokenizer=tokenizer, device=torch.device("cpu"), run_dir=run_dir, seed=seed, models=models)
