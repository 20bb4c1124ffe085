"""The words that settings take, which loss types read which settings, and the settings that do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from truing.settings import refuse_unread

if TYPE_CHECKING:
    from truing_grpo.grpo import GRPO

LossType: TypeAlias = Literal["dapo", "grpo", "dr_grpo", "bnpo", "cispo", "gspo", "sapo", "luspo", "vespo"]
"""The loss types by name: truing_grpo.surrogates has what a token costs in each, truing_grpo.normalisers how costs are averaged."""
Level: TypeAlias = Literal["token", "sequence"]
"""Whether each token has its own importance ratio, or all of a completion the geometric mean of theirs."""
Scale: TypeAlias = Literal["group", "batch", "none"]
"""Over what the standard deviation is taken that a reward's distance from its group's mean is divided by."""
Aggregation: TypeAlias = Literal["sum_then_normalize", "normalize_then_sum"]
"""Whether several rewards are compared within a group as their sum, or each by itself."""

CLIPPED: tuple[LossType, ...] = ("dapo", "grpo", "dr_grpo", "bnpo", "gspo", "luspo")
"""The loss types that clip the importance ratio as PPO does."""
READERS: Mapping[str, tuple[LossType, ...]] = {
    "epsilon": CLIPPED,
    "epsilon_high": (*CLIPPED, "cispo"),
    "delta": CLIPPED,
    "sapo_temperature_pos": ("sapo",),
    "sapo_temperature_neg": ("sapo",),
    "vespo_k_pos": ("vespo",),
    "vespo_lambda_pos": ("vespo",),
    "vespo_k_neg": ("vespo",),
    "vespo_lambda_neg": ("vespo",),
}
"""The loss types that read a setting, for settings that not all of them do."""


def check_settings(method: GRPO) -> None:
    """Raise ValueError for settings that contradict each other, or that nothing reads."""
    for name, readers in READERS.items():
        if method.loss_type not in readers:
            refuse_unread(method, name, f"loss_type {method.loss_type}", f"use {_either(readers)}")
    if method.beta == 0:
        for name in ("kl_estimator", "use_bias_correction_kl"):
            refuse_unread(method, name, "beta 0, which leaves the KL divergence out,", "set beta above 0")
    method.check_correction("token_mask" if method.loss_type == "vespo" else "sequence_mask")
    if method.multi_objective_aggregation == "normalize_then_sum":
        refuse_unread(
            method,
            "scale_rewards",
            "multi_objective_aggregation normalize_then_sum, which divides each reward by its group's deviation,",
            "set that to sum_then_normalize",
        )
    if method.overlong_buffer is None:
        refuse_unread(method, "overlong_penalty", "a run without overlong_buffer", "set that to a number of tokens")
    _check_clipping(method)
    _check_levels(method)
    _check_estimator(method)
    if method.overlong_buffer is not None and method.max_completion_length is not None:
        check_buffer(method.overlong_buffer, method.max_completion_length)


def _check_clipping(method: GRPO) -> None:
    if method.loss_type == "cispo" and method.epsilon_high is None:
        raise ValueError(
            "loss_type cispo needs epsilon_high: there it is the largest weight that a token may have, and not a distance from 1, "
            "so that the usual 0.2 would cut the weight of every token; set it to 5, for example"
        )
    if method.delta is not None and method.delta <= 1 + method.high:
        raise ValueError(
            f"delta is {method.delta:g}, but it bounds ratios that clipping at 1 + epsilon_high ({1 + method.high:g}) leaves "
            "alone; set it above that, for example to 4, or leave it out"
        )


def _check_levels(method: GRPO) -> None:
    if method.loss_type == "gspo" and method.importance_sampling_level == "token":
        raise ValueError(
            "loss_type gspo is grpo with the importance ratios of whole sequences, but importance_sampling_level is token; leave "
            "that out, or use loss_type grpo"
        )
    if method.loss_type != "vespo":
        return
    if method.importance_sampling_level == "sequence":
        raise ValueError(
            "loss_type vespo makes its own weights of whole sequences, but importance_sampling_level is sequence; leave that out"
        )
    correction = method.importance_sampling_correction
    if correction.startswith("sequence"):
        raise ValueError(
            "loss_type vespo takes the correction of each token into its weight of the sequence, but "
            f"importance_sampling_correction is {correction}; set it to {correction.replace('sequence', 'token')}"
        )


def _check_estimator(method: GRPO) -> None:
    if method.beta and method.kl_estimator == "k1" and not method.use_bias_correction_kl:
        raise ValueError(
            "kl_estimator k1 without use_bias_correction_kl has a gradient that is 0 on average, so that nothing would be drawn "
            "towards the reference; set use_bias_correction_kl to true, or use k2 or k3"
        )


def check_buffer(buffer: int, limit: int) -> None:
    """Raise ValueError for an overlong_buffer that is longer than a completion may be."""
    if buffer > limit:
        raise ValueError(
            f"overlong_buffer is {buffer}, which is more than max_completion_length ({limit}), so that even an empty completion "
            "would be punished; set it lower"
        )


def _either(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
