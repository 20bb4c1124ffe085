"""What is asked of a server and what it answers, for the two routes that take token ids and give them back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import msgspec

from truing import RolloutRequest
from truing.rollout.completion import FinishReason, cover
from truing_vllm.faults import BadAnswerError

GENERATE, COMPLETIONS = "/inference/v1/generate", "/v1/completions"
FLOOR = -9999.0
"""What vLLM writes for a log-probability that is not a number, or minus infinity."""
_BYTES_BESIDE, _BYTES_PER_TOKEN = 1 << 16, 512


class Span(msgspec.Struct):
    """Tokens `start` to `end` were sampled from the weights that bear this label."""

    version: str
    start: int
    end: int


class TokenLogp(msgspec.Struct):
    """The log-probability of a sampled token."""

    logprob: float | None
    token_id: int | None = None


class GeneratedLogps(msgspec.Struct):
    """Those of a choice of /inference/v1/generate."""

    content: list[TokenLogp] | None = None


class GeneratedChoice(msgspec.Struct):
    """A completion as /inference/v1/generate gives it."""

    token_ids: list[int]
    finish_reason: str
    logprobs: GeneratedLogps
    weight_versions: list[Span] | None = None


class Generated(msgspec.Struct):
    """An answer of /inference/v1/generate."""

    choices: list[GeneratedChoice]


class CompletedLogps(msgspec.Struct):
    """Those of a choice of /v1/completions."""

    token_logprobs: list[float | None]


class CompletedChoice(msgspec.Struct):
    """A completion as /v1/completions gives it, with return_token_ids."""

    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: str
    logprobs: CompletedLogps


class Completed(msgspec.Struct):
    """An answer of /v1/completions."""

    choices: list[CompletedChoice]


@attrs.frozen
class Sample:
    """One completion, checked."""

    token_ids: tuple[int, ...]
    token_logps: tuple[float, ...]
    finish_reason: FinishReason
    spans: tuple[Span, ...] | None
    """None where the server does not say which weights it had."""
    error: str = ""


def sampling_params(request: RolloutRequest, seed: int, ends: Sequence[int]) -> dict[str, Any]:
    """Return how the tokens of one of a request's samples are drawn."""
    sampling = request.sampling
    params = draw_params(seed=seed, limit=sampling.max_completion_length, temperature=sampling.temperature)
    return {**params, "top_p": sampling.top_p, "top_k": sampling.top_k, "stop_token_ids": list(ends)}


def draw_params(*, seed: int, limit: int, temperature: float) -> dict[str, Any]:
    """Return everything that decides how tokens are drawn, so that no default of the server's or the model's takes part."""
    return {
        "n": 1,
        "seed": seed,
        "max_tokens": limit,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def generate_body(prompt: Sequence[int], params: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """Return what /inference/v1/generate is asked; `model` is an adapter's name, None the model itself."""
    body = {"token_ids": prompt, "sampling_params": {**params, "logprobs": 0, "detokenize": False}, "stream": False}
    return body if model is None else {**body, "model": model}


def completions_body(prompt: Sequence[int], params: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return what /v1/completions is asked."""
    return {"model": model, "prompt": prompt, "logprobs": 0, "return_token_ids": True, "add_special_tokens": False, **params}


def answer_limit(prompt: int, completion: int) -> int:
    """Return the most bytes that an answer to so many tokens may have."""
    return _BYTES_BESIDE + _BYTES_PER_TOKEN * (prompt + completion)


def generated(answer: Generated, limit: int) -> Sample:
    """Return the completion in an answer of /inference/v1/generate. Raises BadAnswerError where it is not what was asked."""
    choice = _only(answer.choices)
    logps = [item.logprob for item in choice.logprobs.content or ()]
    spans = None if choice.weight_versions is None else tuple(choice.weight_versions)
    return _checked(choice.token_ids, logps, choice.finish_reason, limit, spans)


def completed(answer: Completed, prompt: Sequence[int], limit: int) -> Sample:
    """Return the completion in an answer of /v1/completions. Raises BadAnswerError where it is not what was asked."""
    choice = _only(answer.choices)
    if tuple(choice.prompt_token_ids) != tuple(prompt):
        raise BadAnswerError("it completed another prompt than the one that was asked")
    return _checked(choice.token_ids, choice.logprobs.token_logprobs, choice.finish_reason, limit, None)


def _only(choices: Sequence[Any]) -> Any:
    if len(choices) != 1:
        raise BadAnswerError(f"it gave {len(choices)} completions, and was asked for 1")
    return choices[0]


def _checked(
    tokens: Sequence[int], logps: Sequence[float | None], reason: str, limit: int, spans: tuple[Span, ...] | None
) -> Sample:
    if reason not in ("stop", "length"):
        raise BadAnswerError(f"it broke a completion off ({reason})")
    if not 0 < len(tokens) <= limit or len(logps) != len(tokens):
        raise BadAnswerError(f"it gave {len(tokens)} tokens and {len(logps)} log-probabilities, and was asked for 1 to {limit}")
    if spans is not None and not cover([(span.start, span.end) for span in spans], len(tokens)):
        raise BadAnswerError(f"its weight versions do not cover the {len(tokens)} tokens")
    known = [logp for logp in logps if logp is not None and math.isfinite(logp) and logp > FLOOR]
    if len(known) < len(tokens):
        return Sample((), (), "error", spans, error="the policy's probabilities are not finite")
    return Sample(tuple(tokens), tuple(known), "length" if reason == "length" else "stop", spans)
