"""Numbers that are not finite: in what one sample gives, in one element of a gradient, in the optimiser's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import attrs
import torch
from torch import Tensor

import truing.train.objective
import truing_dpo
from tests.faults.inject import at_step
from truing.data.batch import TreeBatch
from truing.loss import LossInputs, LossOutput
from truing.train.run import Run


class BadGradient(torch.autograd.Function):
    """Is the identity, but for the first element of its gradient."""

    @staticmethod
    def forward(context: Any, logps: Tensor, value: float) -> Tensor:
        """Return what is given."""
        context.value = value
        return logps.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Put the value into the gradient."""
        gradient = gradients[0].clone()
        gradient[0] = context.value
        return gradient, None


def _logps(inputs: LossInputs, value: float) -> LossInputs:
    return attrs.evolve(inputs, token_logps=_with(inputs.token_logps, value))


def _reference(inputs: LossInputs, value: float) -> LossInputs:
    assert inputs.reference_token_logps is not None
    return attrs.evolve(inputs, reference_token_logps=_with(inputs.reference_token_logps, value))


def _gradient(inputs: LossInputs, value: float) -> LossInputs:
    return attrs.evolve(inputs, token_logps=BadGradient.apply(inputs.token_logps, value))


def _with(logps: Tensor, value: float) -> Tensor:
    return torch.cat([logps.new_full((1,), value), logps[1:]])


OF_INPUTS: Mapping[str, Callable[[LossInputs, float], LossInputs]] = {
    "log-probabilities": _logps,
    "reference's log-probabilities": _reference,
    "gradient": _gradient,
}
"""By the guard's words."""
OF_A_SAMPLE = ("loss", *OF_INPUTS)


def sample(kind: str, sample_id: int, value: float) -> None:
    """Let one sample give a number that is not finite whenever it is computed, in a replay too."""
    real_inputs, real_call = truing.train.objective.loss_inputs, truing_dpo.DPO.__call__
    bad: list[float] = []

    def loss_inputs(batch: TreeBatch, *arguments: Any, **more: Any) -> LossInputs:
        inputs = real_inputs(batch, *arguments, **more)
        bad.clear()
        if all(tree.sample_id != sample_id for tree in batch.trees):
            return inputs
        if kind == "loss":
            bad.append(value)
            return inputs
        return OF_INPUTS[kind](inputs, value)

    def call(self: truing_dpo.DPO, inputs: LossInputs) -> LossOutput:
        output = real_call(self, inputs)
        terms = [attrs.evolve(term, values=term.values + value) for value in bad for term in output.terms]
        return attrs.evolve(output, terms=terms or output.terms)

    truing.train.objective.loss_inputs = loss_inputs
    mock.patch.object(truing_dpo.DPO, "__call__", call).start()  # for as long as the child lives


def weight(step: int, value: float) -> None:
    """Make one element of one weight's gradient not finite in a step, counted from 0."""

    def spoil(run: Run) -> None:
        some = next(weight for weight in run.policy.parameters() if weight.requires_grad)
        handle = some.register_post_accumulate_grad_hook(lambda weight: _set_first(weight.grad, value))
        at_step(step + 1, lambda _: handle.remove())

    at_step(step, spoil)


def optimizer(step: int, field: str, value: float) -> None:
    """Make one element of the optimiser's state not finite before a step, for good."""
    at_step(step, lambda run: _set_first(next(iter(run.state.optimizer.state.values()))[field], value))


def _set_first(tensor: Tensor | None, value: float) -> None:
    assert tensor is not None
    tensor.view(-1)[0] = value


PLUGIN = """
from typing import ClassVar, Literal

import attrs

from tests.faults.poison import BadGradient
from truing import LossInputs, LossOutput, hookimpl, setting
from truing_dpo import DPO


@attrs.frozen(kw_only=True)
class Faulty(DPO):
    "DPO that a long completion is too much for."

    name: ClassVar[str] = "faulty"
    fault: Literal["loss", "gradient"] = setting("loss", help="What is not finite then.")
    value: Literal["nan", "inf", "-inf"] = setting("nan", help="Which number it is.")
    longest: int = setting(60, help="Tokens that are not yet too many.")

    def __call__(self, inputs: LossInputs) -> LossOutput:
        bad = bool((inputs.lengths > self.longest).any())
        if bad and self.fault == "gradient":
            logps = BadGradient.apply(inputs.token_logps, float(self.value))
            return super().__call__(attrs.evolve(inputs, token_logps=logps))
        output = super().__call__(inputs)
        if not bad:
            return output
        terms = [attrs.evolve(term, values=term.values + float(self.value)) for term in output.terms]
        return attrs.evolve(output, terms=terms)


@hookimpl
def register_loss():
    return [Faulty]
"""
"""A method, as a package has it, for programs of their own."""
