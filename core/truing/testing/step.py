"""A batch as if it were a whole optimiser step, and a step that is cut: what core makes of a loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.testing import assert_close

from truing.loss import POLICY_FIELDS, Layout, LossInputs, LossOutput
from truing.reduce import StepCounts, reduce_output


def reduce_step(output: LossOutput, inputs: LossInputs) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss and the metrics that core makes of a step that has this batch only."""
    return reduce_output(output, _counts(inputs))


def check_cut(loss: Callable[[LossInputs], LossOutput], whole: LossInputs, parts: Sequence[LossInputs]) -> None:
    """Assert that a batch and its parts, counted as one step, have the same metrics and gradients to 1e-12, the loss among them.

    `parts` are the trees of `whole` in its order, and the policy's fields of all of them are leaves that take gradients.
    """
    counts = _counts(whole)
    (metrics, gradients), *others = (_differentiated(loss, inputs, counts) for inputs in (whole, *parts))
    for name, value in metrics.items():
        assert_close(torch.stack([found[name] for found, _ in others]).sum(), value, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        assert_close(torch.cat([found[name] for _, found in others]), gradient, rtol=1e-12, atol=1e-12)


def _counts(inputs: LossInputs) -> StepCounts:
    in_prompts = 0 if inputs.prompt_token_logps is None else len(inputs.prompt_token_logps)
    branches, desirable = len(inputs.lengths), 0 if inputs.labels is None else int(inputs.labels.sum())
    paired = inputs.layout is Layout.PAIRED
    return StepCounts(
        pair=branches / 2 if paired else 0,
        example=float(inputs.tree_ids.max() + 1),
        sequence=branches,
        token=len(inputs.token_logps) + in_prompts,
        chosen_token=float(inputs.chosen.lengths.sum() + in_prompts) if paired else 0,
        desirable=desirable,
        undesirable=0 if inputs.labels is None else branches - desirable,
    )


def _differentiated(
    loss: Callable[[LossInputs], LossOutput], inputs: LossInputs, counts: StepCounts
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the metrics, and the gradients by field."""
    value, metrics = reduce_output(loss(inputs), counts)
    fields = {name: field for name in POLICY_FIELDS if (field := getattr(inputs, name)) is not None and field.requires_grad}
    gradients = torch.autograd.grad(value, list(fields.values()), allow_unused=True)
    return metrics, {name: gradient for name, gradient in zip(fields, gradients, strict=True) if gradient is not None}
