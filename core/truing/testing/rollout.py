"""The check that a rollout backend runs in its own tests."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, get_args

from truing.context import OpenContext
from truing.rollout import Completion, ConcurrentRollout, LiveRollout, Rollout, RolloutRequest, Sampling
from truing.rollout.completion import FinishReason, cover, is_concurrent
from truing.testing.fakes import FakeWeights, fake_context
from truing.testing.settings import as_settings

LIMIT = 6
VERSION = 7
SUBMITTED_SECONDS = 300.0
"""How long a request may take that was submitted."""
Tokens = dict[tuple[str, int], tuple[int, ...]]


def check_rollout(rollout: Rollout | type[Rollout], context: OpenContext | None = None, *, deterministic: bool = True) -> None:
    """Check that a backend answers every request in full, says the truth about its tokens, takes new weights and closes.

    `rollout` is a class, taken with its default settings, or an instance; `context` defaults to a run with a tiny model. Pass
    `deterministic=False` for a backend whose samples depend on more than prompt and seed, such as on what else is in the batch.
    Raises AssertionError that says which promise is broken and what to do.
    """
    backend = as_settings("rollout", rollout)
    with tempfile.TemporaryDirectory() as folder:
        run = fake_context(Path(folder)) if context is None else context
        live = backend.open(run)
        try:
            _check_generation(type(backend).__name__, live, run, deterministic=deterministic)
        finally:
            live.close()
        try:
            live.close()
        except Exception as error:
            raise AssertionError(
                f"{type(backend).__name__} fails when it is closed a second time: {error}; let close do nothing then"
            ) from error


def _check_generation(title: str, live: LiveRollout, context: OpenContext, *, deterministic: bool) -> None:
    requests = _requests(context)
    assert not list(live.generate([])), f"{title} answers when nothing is asked"
    completions = _answers(title, live, requests)
    if deterministic:
        tokens = _tokens(completions)
        again = _tokens(_answers(title, live, requests))
        assert again == tokens, (
            f"{title} gives other tokens for the same prompts and seeds, so that a run cannot be resumed; use seeds"
        )
        alone = {key: ids for request in requests for key, ids in _tokens(_answers(title, live, [request])).items()}
        assert alone == tokens, (
            f"{title} gives other tokens when a request comes alone; give every sample a generator of its own seed"
        )
    if is_concurrent(live):
        _check_submitted(title, live, requests, _tokens(completions) if deterministic else None)
    live.update_weights(VERSION, FakeWeights(context.models["policy"]))
    stale = [span for answer in _answers(title, live, requests) for span in answer.versions if span.version != VERSION]
    assert not stale, (
        f"{title} still marks tokens with version {stale[0].version if stale else ''} after update_weights({VERSION}, ...)"
    )


def _check_submitted(title: str, live: ConcurrentRollout, requests: Sequence[RolloutRequest], tokens: Tokens | None) -> None:
    """Check that `submit` answers as `generate` does, with all requests under way at once."""
    answers: list[Completion] = []
    for request, future in [(request, live.submit(request)) for request in requests]:
        assert isinstance(future, Future), f"{title}: submit must return a concurrent.futures.Future, got {type(future).__name__}"
        of_request = list(future.result(timeout=SUBMITTED_SECONDS))
        indexes = [completion.index for completion in of_request]
        assert indexes == list(range(request.n)), (
            f"{title}: submit must give a request's completions in the order of its seeds, got the indexes {indexes}"
        )
        answers += of_request
    _check_answers(title, live, answers, requests)
    assert tokens is None or _tokens(answers) == tokens, f"{title} gives other tokens by submit than by generate"


def _requests(context: OpenContext) -> list[RolloutRequest]:
    prompts = ("Say hi.", "1+1=", "A longer prompt, with a comma")
    sampling = Sampling(max_completion_length=LIMIT)
    return [
        RolloutRequest(
            id=f"request-{n}",
            prompt_ids=tuple(context.tokenizer.encode(prompt)),
            seeds=tuple(range(10 * n, 10 * n + n)),
            sampling=sampling,
        )
        for n, prompt in enumerate(prompts, start=1)
    ]


def _tokens(completions: Sequence[Completion]) -> Tokens:
    return {(completion.request_id, completion.index): completion.token_ids for completion in completions}


def _answers(title: str, live: LiveRollout, requests: Sequence[RolloutRequest]) -> list[Completion]:
    completions = list(live.generate(requests))
    _check_answers(title, live, completions, requests)
    return completions


def _check_answers(title: str, live: LiveRollout, completions: Sequence[Completion], requests: Sequence[RolloutRequest]) -> None:
    by_id = {request.id: request for request in requests}
    extends = getattr(live, "extends_prompts", False)
    for completion in completions:
        assert isinstance(completion, Completion), f"{title} must yield truing.Completion, got {type(completion).__name__}"
        assert completion.request_id in by_id, f"{title} answers {completion.request_id!r}, which was not asked"
        where = f"{title}, {completion.request_id}[{completion.index}]:"
        _check_completion(where, completion, by_id[completion.request_id], extends=extends)
    for request in requests:
        given = sorted(completion.index for completion in completions if completion.request_id == request.id)
        assert given == list(range(request.n)), (
            f"{title} must answer a request of {request.n} seeds once for each, with indexes 0 to {request.n - 1}, got {given}"
        )


def _check_completion(where: str, completion: Completion, request: RolloutRequest, *, extends: bool) -> None:
    length, limit = len(completion.token_ids), request.sampling.max_completion_length
    reason: Any = completion.finish_reason
    begun = completion.prompt_ids[: len(request.prompt_ids)] if extends else completion.prompt_ids
    assert begun == request.prompt_ids, (
        f"{where} prompt_ids {'do not begin with' if extends else 'differ from'} those of the request; pass them on as they are"
    )
    assert reason in get_args(FinishReason), f"{where} finish_reason is {reason!r}; use one of {', '.join(get_args(FinishReason))}"
    assert reason != "error", f"{where} finished with an error, on an ordinary prompt: {dict(completion.extra)}"
    assert length <= limit, f"{where} {length} tokens, and max_completion_length is {limit}; stop there"
    # what an environment answers may be what there is no room for
    assert reason != "length" or length == limit or extends, (
        f'{where} finish_reason is "length" at {length} of {limit} tokens; that is "stop"'
    )
    logps, mask = completion.token_logps, completion.loss_mask
    assert logps is None or len(logps) == length, (
        f"{where} {len(logps or ())} token_logps for {length} tokens; give one for each, or None"
    )
    assert logps is None or all(math.isfinite(logp) and logp <= 1e-3 for logp in logps), (
        f"{where} token_logps must be finite natural logarithms of probabilities, 0 or less, got {logps}"
    )
    assert mask is None or len(mask) == length, (
        f"{where} a loss_mask of {len(mask or ())} for {length} tokens; give one for each, or None"
    )
    spans = [(span.start, span.end) for span in completion.versions]
    assert not spans or cover(spans, length), f"{where} versions must cover its {length} tokens in order without gaps, got {spans}"
