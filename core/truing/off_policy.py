"""Correction for samples of another policy than the one that is trained: of older weights, of an engine that rounds otherwise."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from truing.loss import LossInputs, Needs, Term
from truing.settings import refuse_unread, setting

if TYPE_CHECKING:
    from torch import Tensor

Correction: TypeAlias = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]
"""Whose probability is divided by the sampler's, and whether a ratio out of bounds is cut to them or becomes 0."""
MAX_EXPONENT = 20.0
"""Exponents are held at this: a ratio beyond 5e8 is as good as that one, and finite. Its gradient is 0."""


def held_exp(exponents: Tensor) -> Tensor:
    """Return exp of exponents held at the bound."""
    return exponents.clamp(max=MAX_EXPONENT).exp()


def sampler_difference(inputs: LossInputs, token_logps: Tensor | None) -> Tensor:
    """Return the log of these probabilities, the policy's own for None, over the sampler's, [T] without gradient.

    It is 0 where the sampler gave no number (NaN).
    """
    assert inputs.behavior_token_logps is not None
    difference = (inputs.token_logps if token_logps is None else token_logps).detach() - inputs.behavior_token_logps
    return difference.masked_fill(difference.isnan(), 0.0)


@attrs.frozen(kw_only=True)
class SamplerCorrection:
    """The settings of a method that weighs what a token costs by the trainer's probability over the sampler's.

    With the ratio of the policy to its own start of the update inside of the cost, this is the decoupled objective (Hilton et al.
    2022, arXiv:2110.00641), as asynchronous sampling needs it (AReaL, Fu et al. 2025, arXiv:2505.24298). Truncated importance
    sampling cuts a ratio to the bounds, masked importance sampling makes 0 of one that is outside (Liu et al. 2025, "When Speed
    Kills Stability"; Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").
    """

    importance_sampling_correction: Correction = setting(
        "none", help="Weigh tokens by the trainer's probability over the sampler's; for samplers that compute another one."
    )
    importance_sampling_clip_max: float = setting(3.0, gt=0, help="Largest such ratio.")
    importance_sampling_clip_min: float | None = setting(None, gt=0, help="Smallest such ratio; null is 0.")

    def check_correction(self, example: Correction = "sequence_mask") -> None:
        """Raise ValueError for bounds that nothing reads, or that no ratio is between; `example` is one that the method takes."""
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if self.importance_sampling_correction == "none":
            for name in ("importance_sampling_clip_max", "importance_sampling_clip_min"):
                why = "importance_sampling_correction none"
                refuse_unread(self, name, why, f"set that to {example}, for example")
        if low is not None and low >= high:
            raise ValueError(
                f"importance_sampling_clip_min is {low:g} and importance_sampling_clip_max {high:g}, so that no ratio is between "
                "them; set the one below the other"
            )

    @property
    def correction_needs(self) -> Needs:
        """The sampler's log-probabilities, if there is a correction."""
        return Needs.NOTHING if self.importance_sampling_correction == "none" else Needs.BEHAVIOR_LOGPS

    @property
    def correction_level(self) -> str:
        """Whether a ratio is of a token or of a whole sequence."""
        return self.importance_sampling_correction.partition("_")[0]

    def correction(self, inputs: LossInputs) -> Tensor | None:
        """Return exp of the sampler difference of each token, or of its sum over the completion, [T], within bounds.

        The trainer's probability is that at the start of the update. None without a correction.
        """
        if self.importance_sampling_correction == "none":
            return None
        difference = sampler_difference(inputs, inputs.proximal_token_logps)
        ratios = held_exp(inputs.expand(inputs.sum(difference)) if self.correction_level == "sequence" else difference)
        low, high = self.importance_sampling_clip_min, self.importance_sampling_clip_max
        if self.importance_sampling_correction.endswith("truncate"):
            return ratios.clamp(low, high)
        return ratios.where((ratios >= (-math.inf if low is None else low)) & (ratios <= high), 0.0)

    def correction_metrics(self, inputs: LossInputs, correction: Tensor | None) -> dict[str, Term]:
        """Return the mean correction, and the mean distance of the log-probabilities that it comes of; {} without one."""
        if correction is None:
            return {}
        per_sequence = self.correction_level == "sequence"
        distance = sampler_difference(inputs, inputs.proximal_token_logps).abs()
        return {
            "sampling/importance_sampling_ratio/mean": (
                Term(inputs.mean(correction), per="sequence") if per_sequence else Term(correction, per="token")
            ),
            "sampling/sampling_logp_difference/mean": Term(distance, per="token"),
        }
