"""The checks that a loss plugin runs in its own tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from truing.declared import check_needs, prompt_tokens_of
from truing.errors import PluginError
from truing.loss import POLICY_FIELDS, Layout, Loss, LossInputs, LossOutput, Needs, Term
from truing.testing.advantages import check_advantages, with_advantages
from truing.testing.calculation import Calculation, close, same_value
from truing.testing.inputs import fake_inputs, take_trees
from truing.testing.settings import as_settings

ORDER = (2, 0, 1)
PARTS = ((0,), (1, 2))


def check_loss(loss: Loss | type[Loss], *, gradcheck: bool = True, group_relative: bool = False) -> None:
    """Check that a method keeps every promise that core relies on; see truing.loss for what they are.

    `loss` is a class, taken with its default settings, or an instance: check each setting that changes the formula. Pass
    `gradcheck=False` for a loss that stops a gradient on purpose, for then its gradient is not that of its value. Pass
    `group_relative=True` for an online method that compares the completions of one prompt: equal rewards must then give advantages
    of exactly zero. Raises AssertionError that says which promise is broken and what to do.
    """
    method = as_settings("loss", loss)
    calculation = Calculation(
        title=f"{type(method).__name__}.__call__",
        needs_name="needs",
        needs=method.needs,
        make=lambda needs: _batch(method, needs),
        call=lambda inputs: _sums(method, inputs),
    )
    _check_contradictions(method)
    if method.layout is Layout.ROLLOUT:
        check_advantages(method, _state(method), group_relative=group_relative)
    calculation.check()
    inputs = _batch(method, method.needs)
    _check_terms(method, inputs)
    _check_gradient(method, inputs, gradcheck=gradcheck)
    _check_order(method, inputs)
    if method.scope == "example":
        _check_split(method, inputs)
    if method.layout is Layout.ROLLOUT:
        _check_first_step(method, inputs)
    if inputs.layout is Layout.ROLLOUT:
        _check_keep(method, inputs)
    _check_state(method, inputs)


def _state(loss: Any) -> Mapping[str, Any]:
    return loss.initial_state() if hasattr(loss, "initial_state") else {}


def _batch(loss: Any, needs: Needs) -> LossInputs:
    inputs = fake_inputs(loss.layout, needs=needs, state=_state(loss))
    return with_advantages(loss, inputs) if loss.layout is Layout.ROLLOUT else inputs


def _call(loss: Any, inputs: LossInputs) -> LossOutput:
    output = loss(inputs)
    assert isinstance(output, LossOutput), (
        f"{type(loss).__name__}.__call__ must return a truing.LossOutput, got {type(output).__name__}"
    )
    assert output.terms, f"{type(loss).__name__}.__call__ returned no term; a loss is the sum of one or more"
    for title, term in _named(output).items():
        assert isinstance(term, Term), (
            f"{title} must be a truing.Term, so that core can count over the step, got {type(term).__name__}"
        )
        assert isinstance(term.values, Tensor), f"{title} must hold a tensor, got {type(term.values).__name__}"
    return output


def _named(output: LossOutput) -> dict[str, Term]:
    terms = {f"term {index}": term for index, term in enumerate(output.terms)}
    metrics = {
        f"metric {name!r}" + (f"[{index}]" if index else ""): term
        for name, parts in output.metric_terms.items()
        for index, term in enumerate(parts)
    }
    return {**terms, **metrics}


def _sums(loss: Any, inputs: LossInputs) -> dict[str, Tensor]:
    return {title: term.weight * term.values.detach().sum() for title, term in _named(_call(loss, inputs)).items()}


def _check_contradictions(loss: Any) -> None:
    try:
        check_needs(loss)
        prompt_tokens_of(loss)
    except PluginError as error:
        raise AssertionError(str(error)) from error


def _check_terms(loss: Any, inputs: LossInputs) -> None:
    prompt_tokens = 0 if inputs.prompt_token_logps is None else len(inputs.prompt_token_logps)
    paired, labels = inputs.layout is Layout.PAIRED, inputs.labels
    desirable = None if labels is None else int(labels.sum())
    sizes = {
        "example": [int(inputs.tree_ids.max()) + 1],
        "sequence": [len(inputs.lengths)],
        "token": _with_prompts(len(inputs.token_logps), prompt_tokens),
        "pair": [len(inputs.lengths) // 2] if paired else [],
        "chosen_token": _with_prompts(len(inputs.chosen.token_logps), prompt_tokens) if paired else [],
        "desirable": [len(inputs.lengths), desirable] if desirable is not None else [],
        "undesirable": [len(inputs.lengths), len(inputs.lengths) - desirable] if desirable is not None else [],
    }
    for title, term in _named(_call(loss, inputs)).items():
        if term.per == "constant":
            assert term.values.numel() == 1, (
                f'{title} is per "constant" and must be one number, got shape {list(term.values.shape)}'
            )
        else:
            owner = "LABELED" if "desirable" in term.per else "PAIRED"
            assert sizes[term.per], f"{title} is per {term.per!r}, which only {owner} batches have, not {inputs.layout.name}"
            assert term.values.dim() == 1 and len(term.values) in sizes[term.per], (
                f"{title} is per {term.per!r} and must have shape [{sizes[term.per][0]}] here, got {list(term.values.shape)}; "
                "return values as they are, and core sums and divides"
            )
        hint = " (`needs` names Needs.NO_LOGPS, so token_logps are NaN: drop it, or do not read them)" * (
            Needs.NO_LOGPS in loss.needs
        )
        assert term.values.isfinite().all(), f"{title} is not finite on an ordinary batch{hint}: {term.values.tolist()}"


def _with_prompts(tokens: int, prompt_tokens: int) -> list[int]:
    return [tokens, prompt_tokens, tokens + prompt_tokens] if prompt_tokens else [tokens]


def _check_gradient(loss: Any, inputs: LossInputs, *, gradcheck: bool) -> None:
    given = [field for field in POLICY_FIELDS if getattr(inputs, field) is not None]
    fields = [field for field in given if field != "token_logps" or Needs.NO_LOGPS not in loss.needs]
    leaves = [getattr(inputs, field).detach().clone().requires_grad_() for field in fields]

    def total(*values: Tensor) -> Tensor:
        output = _call(loss, _replace(inputs, dict(zip(fields, values, strict=True))))
        return torch.stack([term.weight * term.values.sum() for term in output.terms]).sum()

    value = total(*leaves)
    assert value.requires_grad, (
        f"no gradient flows from the terms of {type(loss).__name__} to the policy; do not detach or rebuild tensors"
    )
    gradients = dict(zip(fields, torch.autograd.grad(value, leaves, allow_unused=True), strict=True))
    for field, gradient in gradients.items():
        assert gradient is None or gradient.isfinite().all(), f"the gradient of {type(loss).__name__} by {field} is not finite"
    assert any(gradient is not None and gradient.any() for gradient in gradients.values()), (
        f"the gradient of {type(loss).__name__} is zero everywhere on an ordinary batch: nothing would be learned"
    )
    if gradcheck:
        try:
            torch.autograd.gradcheck(total, leaves)
        except GradcheckError as error:
            raise AssertionError(
                f"the gradient of {type(loss).__name__} is not that of its value. If it stops a gradient (detach) on purpose, pass "
                f"gradcheck=False. {error}"
            ) from error


def _replace(inputs: LossInputs, fields: dict[str, Any]) -> LossInputs:
    return attrs.evolve(inputs, **fields)


def _check_order(loss: Any, inputs: LossInputs) -> None:
    assert close(_sums(loss, inputs), _sums(loss, take_trees(inputs, ORDER))), (
        f"the sums of {type(loss).__name__}'s terms or metrics change with the order of the prompt trees; "
        "use sequence_ids and tree_ids, not positions"
    )


def _check_split(loss: Any, inputs: LossInputs) -> None:
    whole = _call(loss, inputs)
    parts = [_sums(loss, take_trees(inputs, part)) for part in PARTS]
    for title, term in _named(whole).items():
        if term.per == "constant":
            continue
        assert all(title in part for part in parts), (
            f"{title} is missing when the step is cut into micro-batches; always return the same"
        )
        total = term.weight * term.values.detach().sum()
        split = torch.stack([part[title] for part in parts]).sum()
        assert torch.allclose(total, split, rtol=1e-9, atol=1e-12), (
            f"{title} sums to {total:.6g} in one batch and to {split:.6g} cut into micro-batches. A loss takes no "
            'mean over its batch: let core divide, or declare scope = "step" if it must see the whole optimiser step'
        )


def _check_first_step(loss: Any, inputs: LossInputs) -> None:
    """Check that None for `proximal_token_logps` is what `token_logps` are: so it comes in the first step of an update."""
    if inputs.proximal_token_logps is None:
        return
    title = f"{type(loss).__name__}.__call__"
    try:
        first = _sums(loss, attrs.evolve(inputs, proximal_token_logps=None))
    except Exception as error:
        raise AssertionError(
            f"{title} fails where proximal_token_logps is None, as it is in the first step of an update ({error}); "
            "use inputs.log_ratios"
        ) from error
    given = _sums(loss, attrs.evolve(inputs, proximal_token_logps=inputs.token_logps.detach()))
    assert close(first, given), (
        f"{title} gives another result for proximal_token_logps None, as in the first step of an update, than for token_logps in "
        "their place; use inputs.log_ratios"
    )


def _check_keep(loss: Any, inputs: LossInputs) -> None:
    keep = torch.ones(len(inputs.lengths), dtype=torch.bool) if inputs.keep is None else inputs.keep.clone()
    keep[1] = False
    dropped = attrs.evolve(inputs, keep=keep)
    moved = dropped.token_logps - 0.5 * (inputs.sequence_ids == 1)
    assert close(_sums(loss, dropped), _sums(loss, attrs.evolve(dropped, token_logps=moved))), (
        f"a branch whose `keep` is False still changes the terms or metrics of {type(loss).__name__}; multiply by inputs.keep"
    )


def _check_state(loss: Any, inputs: LossInputs) -> None:
    name = type(loss).__name__
    output = _call(loss, inputs)
    if not hasattr(loss, "initial_state"):
        assert output.state is None, f"{name} returns state, but has no initial_state() to begin with; add it"
        return
    state = output.state if output.state is not None else inputs.state
    assert state.keys() == _state(loss).keys(), (
        f"the state of {name} must keep the keys of initial_state(), {sorted(_state(loss))}, got {sorted(state)}"
    )
    restored = _through_json(state, name)
    assert same_value(_sums(loss, attrs.evolve(inputs, state=state)), _sums(loss, attrs.evolve(inputs, state=restored))), (
        f"{name} gives other numbers with its state read back from a checkpoint"
    )


def _through_json(value: Any, where: str) -> Any:
    """Return the value as a checkpoint gives it back: tensors as they are, the rest through JSON."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        assert all(isinstance(key, str) for key in value), f"the state of {where} has keys that are not strings: {list(value)}"
        return {key: _through_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, list):
        return [_through_json(item, f"{where}[{index}]") for index, item in enumerate(value)]
    assert value is None or type(value) in (bool, int, float, str), (
        f"the state of {where} holds a {type(value).__name__}; a checkpoint keeps numbers, strings, lists, dicts and tensors only"
    )
    return json.loads(json.dumps(value))
