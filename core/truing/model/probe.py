"""Finds out, before training, which forward is exact for a loaded model: numbers decide, not names."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import attrs
import torch
from torch import Tensor, nn

from truing.data.batch import collate
from truing.data.layouts import Forward
from truing.data.tree import Branch, PromptTree, Trees
from truing.errors import ModelError, first_line
from truing.loss import Needs
from truing.model.attention import use_own_attention, use_tree_attention, why_not_shared_prefix
from truing.model.head import score_logits
from truing.model.lent import uncompiled
from truing.model.loading import is_checkpointing
from truing.model.policy import Policy

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
"""What rounding explains: of a token's log-probability in nats, and of a gradient relative to the largest gradient."""
GRADIENT_TOLERANCE = TOLERANCE | {torch.float64: 1e-6}
"""The same of gradients, where models differ: many norms compute in float32 whatever the model's type."""
PROBED_NUMBERS = 2**26
"""Of so many of the weights' numbers at most the gradients are compared, those of the smallest weights, which every layer has."""

MADE_UP_TOKENS = 512
"""Of a completion that stands for one that is yet to be sampled, at most."""

Numbers = tuple[Tensor, list[Tensor]]
"""Log-probabilities, and gradients of some weights."""
Autocast = Callable[[], AbstractContextManager[Any]]
"""Opens a block in mixed precision."""


@attrs.frozen
class ForwardChoice:
    """How the run computes its forward, and the sentence that says why."""

    forward: Forward
    own_logits: bool
    reason: str


def choose_forward(
    policy: Policy,
    trees: Sequence[PromptTree],
    wanted: Literal["auto", "shared_prefix", "padded"],
    autocast: Autocast | None = None,
) -> ForwardChoice:
    """Set `policy` to the fastest forward that is exact on `trees`, rows of the run's data, and say which and why.

    Log-probabilities and gradients are compared with those of plain padded rows: of the shared-prefix forward, with flash kernels
    and without, and where that is not exact, of two passes over a cache. `autocast` is that of a run in mixed precision. Raises
    ModelError when shared_prefix is demanded and not exact.
    """
    model = policy.causal_lm
    _stop_dropout(policy)
    use_own_attention(model)  # which an earlier run may have replaced
    policy.layout = "padded"
    policy.own_logits = not _head_is_plain(policy, trees[0])
    if wanted == "padded":
        return ForwardChoice("padded", policy.own_logits, "padded rows, as trainer.forward asks")
    plain = _logps_and_gradients(policy, trees, "padded")
    if not plain[0].isfinite().all():
        return ForwardChoice("padded", policy.own_logits, "padded rows, because the model's own log-probabilities are not finite")
    flaw, problem = None, why_not_shared_prefix(model)
    if problem is None:
        flaw, problem = _try_shared_prefix(policy, trees, plain, autocast)
    if problem is None:
        policy.layout = "shared_prefix"
        slower = f"; a call of attention for every branch, because with flash kernels {flaw}" if flaw else ""
        return ForwardChoice(
            "shared_prefix", policy.own_logits, f"every prompt computed once (probed: equal to padded rows){slower}"
        )
    if wanted == "shared_prefix":
        raise ModelError(f"trainer.forward is shared_prefix, but {problem}; set it to auto or padded")
    cache_problem = _why_not_cached(policy) or _compare(policy, trees, "cached", plain)
    if cache_problem is None:
        policy.layout = "cached"
        return ForwardChoice("cached", False, f"every prompt computed once, in a pass of its own, because {problem}")
    return ForwardChoice("padded", policy.own_logits, f"padded rows, because {problem}, and in two passes {cache_problem}")


def why_not_compiled(policy: Policy, trees: Sequence[PromptTree], autocast: Autocast = nullcontext) -> str | None:
    """Return in what the policy's compiled layers differ from those that are not on `trees`, or None where nothing differs.

    Nor is it known where these give numbers that are not finite, of which the run will say more.
    """
    layout = policy.layout
    try:
        with autocast():
            with uncompiled(policy.causal_lm):
                plain = _logps_and_gradients(policy, trees, layout)
            return _compare(policy, trees, layout, plain) if plain[0].isfinite().all() else None
    finally:
        policy.layout = layout


def probed_trees(trees: Trees) -> list[PromptTree]:
    """Return the longest tree, in which windows and limits of length show, and one of middling length."""
    by_length = sorted(range(len(trees)), key=lambda index: (-trees.length(index), index))
    return [trees[index] for index in sorted({by_length[0], by_length[len(by_length) // 2]})]


def made_up_trees(prompts: Trees, longest: int) -> list[PromptTree]:
    """Return trees for prompts that have no completions yet: those of `probed_trees`, each with three branches of its own tokens.

    The branches have at most `longest` tokens, and are not all alike in length. They are three, because the probe gives them
    alternating signs, and two of one token each could cancel.
    """
    found = []
    for tree in probed_trees(prompts):
        tokens = (tree.prompt_ids * (1 + MADE_UP_TOKENS // len(tree.prompt_ids)))[: min(longest, MADE_UP_TOKENS)]
        rows = (tokens, tokens[: (1 + len(tokens)) // 2], tokens[: (2 + len(tokens)) // 3])
        branches = tuple(Branch(token_ids=row, loss_mask=(True,) * len(row)) for row in rows)
        found.append(tree if tree.branches else attrs.evolve(tree, branches=branches))
    return found


def _stop_dropout(policy: Policy) -> None:
    """Make two passes comparable, and leave gradient checkpointing on, without which a probe might need more than training."""
    policy.eval()
    for module in policy.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True


def _head_is_plain(policy: Policy, tree: PromptTree) -> bool:
    """Whether the model's logits are head(decoder(x)) and nothing more."""
    batch = collate([tree], "padded").to(policy.causal_lm.device)
    with torch.no_grad():
        plain = policy(batch).tokens.logps
        logits = policy.causal_lm(**batch.model_inputs, use_cache=False).logits.flatten(0, 1)
        own = score_logits(logits[batch.predictors], batch.targets, Needs.NOTHING).logps
    return bool((plain - own).abs().max() <= TOLERANCE[_dtype(policy)])


def _why_not_cached(policy: Policy) -> str | None:
    if is_checkpointing(policy.causal_lm):
        return "gradient checkpointing takes the cache away"
    return "its logits are not those of its head" if policy.own_logits else None


def _try_shared_prefix(
    policy: Policy, trees: Sequence[PromptTree], plain: Numbers, autocast: Autocast | None
) -> tuple[str | None, str | None]:
    """Return what is wrong with flash kernels, and what is wrong without them; leave the model's attention as suits that."""
    model = policy.causal_lm
    before = model.config._attn_implementation
    flaw = _flaw_of_flash(policy, trees, plain, autocast)
    if flaw is None:
        return None, None
    use_tree_attention(model, flash=False)
    problem = _compare(policy, trees, "shared_prefix", plain)
    if problem is not None:
        model.set_attn_implementation(before)
    return flaw, problem


def _flaw_of_flash(policy: Policy, trees: Sequence[PromptTree], plain: Numbers, autocast: Autocast | None) -> str | None:
    """Return in what the shared-prefix forward with flash kernels differs from plain numbers, or None.

    In mixed precision other kernels may run than without, or none without. There they are compared with the forward that has none:
    padded rows would differ by all that rounding does in all layers.
    """
    model = policy.causal_lm
    use_tree_attention(model)
    flaw = _compare(policy, trees, "shared_prefix", plain)
    if flaw is not None or autocast is None:
        return flaw
    with autocast():
        use_tree_attention(model, flash=False)
        universal = _logps_and_gradients(policy, trees, "shared_prefix")
        use_tree_attention(model)
        return _compare(policy, trees, "shared_prefix", universal)


def _compare(policy: Policy, trees: Sequence[PromptTree], forward: Forward, plain: Numbers) -> str | None:
    """Return in what a forward differs from plain numbers, or None."""
    try:
        logps, gradients = _logps_and_gradients(policy, trees, forward)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a foreign model does with inputs that it cannot take is its own
        told = getattr(error, "inner_exception", error)  # the compiler's own says only that another one was raised
        return f"its code fails ({first_line(told)[:160]})"
    finally:
        policy.layout = "padded"
    tolerance, gradient_tolerance = TOLERANCE[_dtype(policy)], GRADIENT_TOLERANCE[_dtype(policy)]
    gap = float((logps - plain[0]).abs().max())
    largest = max(float(gradient.abs().max()) for gradient in plain[1])
    gradient_gap = max(float((one - other).abs().max()) for one, other in zip(gradients, plain[1], strict=True)) / max(
        largest, torch.finfo(torch.float32).tiny
    )
    if gap <= tolerance and gradient_gap <= gradient_tolerance:
        return None
    return (
        f"its log-probabilities differ from plain ones by {gap:.1e} nats and its gradients by {gradient_gap:.1e} "
        f"(allowed: {tolerance:g}{'' if gradient_tolerance == tolerance else f', gradients {gradient_tolerance:g}'})"
    )


def _logps_and_gradients(policy: Policy, trees: Sequence[PromptTree], forward: Forward) -> Numbers:
    trained = _small_weights(policy)
    policy.layout = forward
    batch = collate(trees, forward).to(policy.causal_lm.device)
    output = policy(batch, Needs.MISMATCHED_LOGPS)
    # alternating signs: a plain sum would let the errors of a tree's branches cancel each other
    signs = 1.0 - 2.0 * (batch.sequence_ids % 2)
    found = torch.autograd.grad((output.tokens.logps * signs).sum(), trained, allow_unused=True)
    return output.logps.detach(), [torch.zeros(1) if gradient is None else gradient for gradient in found]


def _dtype(policy: Policy) -> torch.dtype:
    """Return the type in which the model computes."""
    device = policy.causal_lm.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else policy.causal_lm.dtype


def _small_weights(policy: Policy) -> list[nn.Parameter]:
    """Return weights that train, the smallest first, so that a large model's gradients need not all exist twice."""
    trained = sorted((weight for weight in policy.parameters() if weight.requires_grad), key=lambda weight: weight.numel())
    sizes = itertools.accumulate(weight.numel() for weight in trained)
    return [weight for weight, size in zip(trained, sizes, strict=True) if size <= PROBED_NUMBERS or weight is trained[0]]
