"""What PPO makes of rewards and values: generalised advantage estimates, and whitening."""

from __future__ import annotations

from torch import Tensor

from truing import LossInputs


def last_tokens(inputs: LossInputs) -> Tensor:
    """Return which tokens are the last counted ones of their branches, [T] bool."""
    return inputs.positions == inputs.expand(inputs.lengths) - 1


def generalised_advantages(inputs: LossInputs, rewards: Tensor, values: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Return A_t = delta_t + gamma lam A_t+1 with delta_t = r_t + gamma V_t+1 - V_t, [T]; V and A are 0 behind a branch's end.

    Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438). The recursion is a discounted sum of the deltas
    that are still to come, which LossInputs.to_go takes over spans that double: no loop over tokens, and nothing is padded to the
    longest branch.
    """
    following = values.roll(-1).masked_fill(last_tokens(inputs), 0.0)
    return inputs.to_go(rewards + gamma * following - values, gamma * lam)


def whitened(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Return values, [T], scaled to unit variance over the tokens in the mask, and 0 at the others.

    Their mean becomes 0, or with `shift_mean` False stays what it was. The variance is unbiased, with 1e-8 added to it.
    """
    count = mask.sum()
    mean = values.where(mask, 0.0).sum() / count.clamp(min=1)
    centred = (values - mean).where(mask, 0.0)
    variance = centred.square().sum() / (count - 1).clamp(min=1)
    scaled = centred * (variance + 1e-8).rsqrt()
    return scaled if shift_mean else (scaled + mean).where(mask, 0.0)
