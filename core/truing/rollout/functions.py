"""A plain function as a rollout backend: `f(model, processing_class, prompts, generation_config=None) -> list[str]`."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from truing.context import OpenContext
from truing.errors import ConfigError, PluginError, first_line, naming
from truing.rollout.completion import Completion, RolloutRequest, Sampling, VersionSpan, WeightSource

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from truing.functions import FunctionSource

SIGNATURE = "f(model, processing_class, prompts, generation_config=None) -> list[str]"
"""What a plain function must look like to be a rollout backend."""


@attrs.frozen(kw_only=True)
class FunctionRollout:
    """A user's function `file.function` as a rollout backend; it is found and imported when it is opened.

    It gets the policy, the tokenizer, prompts as text (each as often as completions are wanted) and a GenerationConfig, and returns
    one string for each prompt.
    """

    name: str
    base_dir: Path = attrs.field(default=Path(), metadata={"internal": True})

    def open(self, context: OpenContext) -> LiveFunctionRollout:
        """Return the live backend. Raises ConfigError where the function cannot be found, imported or called so."""
        from truing.functions import find_function, load_function

        source = find_function(self.name, self.base_dir)
        return LiveFunctionRollout(self.name, load_function(source), context, source=source)


@attrs.define(eq=False)
class LiveFunctionRollout:
    """Calls a function in this process with the policy itself, so that new weights need no transfer.

    The policy is in evaluation mode meanwhile, without gradient, with the library's own attention. Its strings are tokenised; a
    completion that leaves room gets the end token, for the function stopped there, and a longer one is cut at the limit. Log-
    probabilities are left to the trainer. PyTorch's global generator is seeded from the requests for each call and put back
    afterwards: the same requests give the same completions.
    """

    name: str
    function: Callable[..., Any]
    context: OpenContext
    version: int = 0
    source: FunctionSource | None = None
    """Where it is, for errors."""

    def __attrs_post_init__(self) -> None:
        try:
            inspect.signature(self.function).bind("model", "processing_class", "prompts", generation_config=None)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"rollout function {self.name!r} cannot be called as {SIGNATURE}: {error}") from error

    def generate(self, requests: Sequence[RolloutRequest]) -> Iterator[Completion]:
        """Yield the completions of all requests, after one call of the function for all that share their sampling."""
        in_order = sorted(requests, key=lambda request: repr(request.sampling))
        for sampling, group in itertools.groupby(in_order, key=lambda request: request.sampling):
            samples = [(request, index) for request in group for index in range(request.n)]
            texts = self._call([self._prompt(request) for request, _ in samples], sampling, samples[0][0].seeds[0])
            for (request, index), text in zip(samples, texts, strict=True):
                yield self._completion(request, index, text)

    def _call(self, prompts: list[str], sampling: Sampling, seed: int) -> list[str]:
        import torch

        from truing.model.attention import own_attention
        from truing.model.lent import lent

        policy, device = self.context.models["policy"], self.context.device
        model: Any = self.context.policy
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), lent(model, own_attention(model), model.generation_config):
            torch.manual_seed(seed)
            options = self._generation_config(sampling)
            with naming(f"rollout function {self.name!r} failed", self._place):
                texts = self.function(policy, self._processing_class, prompts, generation_config=options)
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            raise PluginError(
                f"rollout function {self.name!r} must return a list of strings, got {type(texts).__name__} {texts!r:.60}"
            )
        if len(texts) != len(prompts):
            raise PluginError(f"rollout function {self.name!r} returned {len(texts)} completions for {len(prompts)} prompts")
        return list(texts)

    def _place(self, error: Exception) -> str:
        """Return what is wrong with the function and, where it is of a file, in which line."""
        from truing.functions import describe_failure

        return first_line(error) if self.source is None else describe_failure(error, self.source)

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        from transformers import GenerationConfig

        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        tokenizer = self.context.tokenizer
        return GenerationConfig(
            max_new_tokens=sampling.max_completion_length,
            do_sample=sampling.temperature > 0,
            eos_token_id=sorted(self.context.end_tokens) or None,
            pad_token_id=tokenizer.pad_token_id,
            **(drawn if sampling.temperature > 0 else {}),
        )

    @cached_property
    def _processing_class(self) -> PreTrainedTokenizerBase:
        """The tokenizer; asked to render messages with `processing_class=False`, as some functions do, it gives text."""
        tokenizer = copy.copy(self.context.tokenizer)
        render: Any = tokenizer.apply_chat_template

        def apply_chat_template(conversation: Any, *args: Any, processing_class: Any = None, **options: Any) -> Any:
            tokenize = {"tokenize": False} if processing_class is False else {}
            return render(conversation, *args, **{**options, **tokenize})

        vars(tokenizer)["apply_chat_template"] = apply_chat_template
        return tokenizer

    @cached_property
    def _beginning(self) -> list[int]:
        """The special tokens that the tokenizer puts before any text, and will put there again."""
        return list(self.context.tokenizer("").input_ids)

    def _prompt(self, request: RolloutRequest) -> str:
        ids = list(request.prompt_ids)
        start = len(self._beginning) if ids[: len(self._beginning)] == self._beginning else 0
        return str(self.context.tokenizer.decode(ids[start:], skip_special_tokens=False))

    def _completion(self, request: RolloutRequest, index: int, text: str) -> Completion:
        tokenizer, limit = self.context.tokenizer, request.sampling.max_completion_length
        ends = self.context.end_tokens
        ids = tokenizer(text, add_special_tokens=False).input_ids
        finished = len(ids) < limit
        if finished and tokenizer.eos_token_id is not None and not ends.intersection(ids[-1:]):
            ids = [*ids, tokenizer.eos_token_id]
        ids = ids[:limit]
        return Completion(
            request_id=request.id,
            index=index,
            prompt_ids=request.prompt_ids,
            token_ids=tuple(ids),
            finish_reason="stop" if finished or ids[-1] in ends else "length",
            versions=(VersionSpan(version=self.version, start=0, end=len(ids)),),
            text=str(tokenizer.decode(ids, skip_special_tokens=True)),
            columns=request.columns,
        )

    def update_weights(self, version: int, source: WeightSource) -> None:
        """Note the version; the function is called with the policy itself."""
        self.version = version

    def close(self) -> None:
        """Nothing is held."""
