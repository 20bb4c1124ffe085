"""The check that a reward runs in its own tests."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from truing.errors import PluginError
from truing.rewards import Reward, as_reward, score
from truing.rollout import Completion
from truing.testing.fakes import fake_completions, fake_context
from truing.testing.settings import as_settings


def check_reward(
    reward: Reward | type[Reward] | Callable[..., Any],
    completions: Sequence[Completion] | None = None,
    *,
    order_matters: bool = False,
    tolerance: float = 0.0,
) -> None:
    """Check that a reward gives one finite number, or None, for each completion, whatever comes with it in the call.

    `reward` is a class, taken with its default settings, an instance, or a plain function. Give `completions` if it reads columns
    or a certain form of text. Pass `order_matters=True` for a reward that compares the completions of a call, and
    `tolerance` for one that a model computes, whose last digits depend on what is computed together. Raises AssertionError that
    says which promise is broken and what to do.
    """
    is_plugin = isinstance(getattr(reward, "name", None), str)
    settings = as_settings("reward", reward) if is_plugin else as_reward(reward)
    given = list(fake_completions() if completions is None else completions)
    assert given, "check_reward needs at least one completion"
    with _opened(settings) as live:
        scores = _score(live, given)
        assert _score(live, given) == scores, (
            f"reward {live.name!r} gives other scores for the same completions; it must repeat itself"
        )
        assert _score(live, []) == []
        if not order_matters:
            _check_alone(live, given, scores, tolerance)


def _score(reward: Reward, completions: Sequence[Completion]) -> list[float | None]:
    try:
        return score(reward, completions)
    except PluginError as error:
        raise AssertionError(str(error)) from error
    except Exception as error:
        hint = "; a call with no completion must return an empty list" if not completions else ""
        raise AssertionError(f"reward {reward.name!r} failed{hint}. {type(error).__name__}: {error}") from error


def _check_alone(reward: Reward, completions: Sequence[Completion], scores: Sequence[float | None], tolerance: float) -> None:
    hint = "a score must depend on its own completion alone. Pass order_matters=True if it compares those of a call on purpose"
    assert _same(_score(reward, completions[::-1]), scores[::-1], tolerance), (
        f"reward {reward.name!r} gives other scores when the completions come in another order; {hint}"
    )
    for index, completion in enumerate(completions):
        assert _same(_score(reward, [completion]), [scores[index]], tolerance), (
            f"reward {reward.name!r} gives completion {index} another score when it comes alone; {hint}"
        )


def _same(found: Sequence[float | None], expected: Sequence[float | None], tolerance: float) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(one == other if one is None or other is None else abs(one - other) <= tolerance for one, other in pairs)


@contextmanager
def _opened(settings: Any) -> Iterator[Reward]:
    if not hasattr(settings, "open"):
        yield settings
        return
    with tempfile.TemporaryDirectory() as folder, settings.open(fake_context(Path(folder))) as live:
        yield cast("Reward", _Named(live, settings.name))


class _Named:
    """An opened reward with the name of its settings."""

    def __init__(self, live: Callable[..., Any], name: str) -> None:
        self.live = live
        self.name = name

    def __call__(self, completions: Sequence[Completion]) -> Any:
        return self.live(completions)
