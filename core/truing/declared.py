"""What a loss declares of itself, as core reads it."""

from __future__ import annotations

from typing import cast, get_args

from truing.errors import PluginError
from truing.loss import Layout, Loss, Needs, OnlineLoss, PromptTokens


def check_needs(loss: Loss) -> None:
    """Raise PluginError where `needs` says both that no log-probability is read and that something is which is made of them."""
    contradicting = loss.needs & (Needs.MISMATCHED_LOGPS | Needs.PROMPT_LOGPS | Needs.ENTROPY | Needs.SQUARED_PROBS)
    if Needs.NO_LOGPS in loss.needs and contradicting:
        raise PluginError(
            f"`needs` of {loss.name} names Needs.NO_LOGPS and {contradicting}, which come of the same head; drop one of them"
        )


def all_needs(loss: Loss) -> Needs:
    """Return what the loss reads, and what it reads of rollouts before that, where it samples its completions."""
    needs: Needs = loss.needs
    if loss.layout is Layout.ROLLOUT:
        needs |= cast(OnlineLoss, loss).rollout_needs & ~Needs.NO_LOGPS
    return needs


def sees_whole_step(loss: Loss) -> bool:
    """Return whether the loss must be called once with a whole optimiser step."""
    return getattr(loss, "scope", "example") == "step"


def prompt_tokens_of(loss: Loss) -> PromptTokens:
    """Return which tokens of a prompt the loss counts: its `prompt_tokens`, or else all if it needs PROMPT_LOGPS and none if not.

    Raises PluginError for another word, and for one that its `needs` contradicts.
    """
    reads = Needs.PROMPT_LOGPS in loss.needs
    found: PromptTokens = getattr(loss, "prompt_tokens", "all" if reads else "none")
    if found not in get_args(PromptTokens):
        raise PluginError(f"`prompt_tokens` is {found!r}; it must be one of {', '.join(get_args(PromptTokens))}")
    if (found != "none") is not reads:
        raise PluginError(
            f"`prompt_tokens` of {loss.name} is {found!r}, and its `needs` {'names' if reads else 'does not name'} "
            "Needs.PROMPT_LOGPS; a method reads the log-probabilities of the prompt tokens that it counts, and of no others"
        )
    return found
