"""The names that `loss_type` and `f_divergence_type` take, and which settings each of them reads."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

LossType: TypeAlias = Literal[
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
]
"""The loss types by name; truing_dpo.losses has their formulas, but for `sft`, the chosen tokens' negative log-likelihood."""
DivergenceType: TypeAlias = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
"""The divergences by name; truing_dpo.divergences has their formulas."""

WITH_DIVERGENCE: tuple[LossType, ...] = ("sigmoid", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft", "sigmoid_norm")
"""The loss types that may be combined with another divergence than reverse_kl."""
WITH_LABEL_SMOOTHING: tuple[LossType, ...] = ("sigmoid", "exo_pair", "robust", "aot", "aot_unpaired", "sigmoid_norm")
"""The loss types whose formula has label_smoothing in it."""
OF_THE_STEP: tuple[LossType, ...] = ("aot", "aot_unpaired")
"""The loss types that compare the pairs of an optimiser step with each other."""


def check_loss_types(types: tuple[LossType, ...], weights: tuple[float, ...]) -> None:
    """Raise ValueError for no loss, one that is named twice, or another number of weights."""
    if not types:
        raise ValueError(f"loss_type is an empty list; name at least one of {', '.join(get_args(LossType))}")
    if len(set(types)) < len(types):
        raise ValueError(
            f"loss_type names a loss twice: {', '.join(types)}; name it once, with the sum of the weights in loss_weights"
        )
    if weights and len(weights) != len(types):
        raise ValueError(
            f"loss_weights has {len(weights)} numbers, but loss_type names {len(types)} ({', '.join(types)}); "
            "give one for each, or leave loss_weights out"
        )


def check_label_smoothing(types: tuple[LossType, ...], label_smoothing: float) -> None:
    """Raise ValueError for a label_smoothing that a loss cannot do with, or that none reads."""
    if "exo_pair" in types and label_smoothing == 0:
        raise ValueError("loss_type exo_pair takes the logarithm of label_smoothing, got 0; set it above 0, for example to 1e-3")
    if label_smoothing == 0:
        return
    if "ipo" in types:
        raise ValueError(
            f"ipo has no label_smoothing, got {label_smoothing:g}: its target 1 / (2 beta) already bounds how far the labels are "
            "trusted; set label_smoothing to 0, and a larger beta where labels are noisy"
        )
    if not set(types) & set(WITH_LABEL_SMOOTHING):
        raise ValueError(
            f"label_smoothing is {label_smoothing:g}, but nothing in loss_type ({', '.join(types)}) reads it; "
            f"set it to 0, or use one of {', '.join(WITH_LABEL_SMOOTHING)}"
        )


def check_divergence(types: tuple[LossType, ...], divergence_type: DivergenceType) -> None:
    """Raise ValueError for a divergence with a loss that takes log-ratios as they are."""
    others = [kind for kind in types if kind not in WITH_DIVERGENCE]
    if divergence_type != "reverse_kl" and others:
        raise ValueError(
            f"f_divergence_type {divergence_type} does not go with loss_type {', '.join(others)}, whose formula takes log-ratios "
            f"as they are; set it to reverse_kl, or use {', '.join(WITH_DIVERGENCE)}"
        )


def check_weighting(types: tuple[LossType, ...]) -> None:
    """Raise ValueError where use_weighting has no pairs to weigh."""
    sorting = [kind for kind in types if kind in OF_THE_STEP]
    if sorting:
        raise ValueError(
            f"use_weighting does not go with loss_type {', '.join(sorting)}, which sorts the pairs of a step apart, so that a "
            "pair's weight belongs to no value of the loss; set it to false, or leave the loss type out"
        )
    if types == ("sft",):
        raise ValueError("use_weighting weighs pairs, but loss_type sft has none; set it to false, or add a loss type with pairs")
