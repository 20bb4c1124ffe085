"""Keeps what is not finite, and spikes, away from the weights: decides, on all ranks together, whether a step is left out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from truing.errors import TruingError
from truing.train.run import Run

LOSS, LOGPS, SCORES, REFERENCE, GRADIENT, OPTIMIZER, SPIKE = (
    "loss",
    "log-probabilities",
    "scores",
    "reference's log-probabilities",
    "gradient",
    "optimiser's state",
    "spike",
)
CHECKED = (LOSS, LOGPS, SCORES, REFERENCE, GRADIENT, OPTIMIZER)
"""What must be finite for a step to change the weights."""
REMEMBERED = 100
"""Gradient norms of good steps that a spike is measured against."""
ENOUGH = 20
"""Below so many of them nothing is a spike."""
LEAST_SPREAD = 0.1
"""Standard deviation of log-norms at least, so that a very even run does not see spikes in small changes."""


def judge(run: Run, finite: Mapping[str, Tensor], norm: Tensor) -> list[str]:
    """Return why the step must be left out, nothing where it is good.

    `norm` is that of the gradient, and `finite` are bool scalars by the words of `CHECKED`. All ranks call this together and get
    the same. In a step of one micro-batch most methods read numbers off the device nowhere else.
    """
    flags = {**finite, GRADIENT: norm.isfinite(), OPTIMIZER: _moments_are_finite(run.state.moments(), norm)}
    bad = [~flags.get(word, norm.new_ones((), dtype=torch.bool)) for word in CHECKED]
    shares = torch.stack([*(flag.to(norm) for flag in bad), norm / run.accelerator.num_processes])
    if run.accelerator.num_processes > 1:
        shares = run.accelerator.reduce(shares, reduction="sum")
    *counts, total = shares.tolist()
    problems = [word for word, count in zip(CHECKED, counts, strict=True) if count]
    return problems or _spike(run, total)


def _spike(run: Run, norm: float) -> list[str]:
    """Return SPIKE when log(norm) is further above the mean of the last good steps' than the allowed number of deviations."""
    limit, recent = run.trainer.skip_spikes, run.state.recent_norms
    if limit is None:
        return []
    if len(recent) >= ENOUGH and norm > 0:
        logs = [math.log(value) for value in recent]
        spread = max(statistics.stdev(logs), LEAST_SPREAD)
        if (math.log(norm) - statistics.fmean(logs)) / spread > limit:
            return [SPIKE]
    if norm > 0:
        recent.append(norm)
        del recent[:-REMEMBERED]
    return []


def _moments_are_finite(moments: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return a bool scalar on the device of `like`."""
    kinds = {(moment.device, moment.dtype) for moment in moments}
    if like.device.type != "cuda" or kinds != {(like.device, torch.float32)}:
        return _is_finite(moments, like)
    found, one = torch.zeros((), device=like.device), torch.ones((), device=like.device)
    # what unscales gradients, by 1, which changes nothing: it sets one flag, where norms are a number for each of all moments
    torch._amp_foreach_non_finite_check_and_unscale_(list(moments), found, one)
    return found == 0


def _is_finite(tensors: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return a bool scalar on the device of `like`."""
    some = [tensor for tensor in tensors if tensor.numel()]
    if not some:
        return like.new_ones((), dtype=torch.bool)
    if all(tensor.device.type == "cpu" for tensor in some):  # where the other way takes eight times as long
        ends = [end.double() for tensor in some for end in torch.aminmax(tensor)]  # both are NaN where one element is
        return torch.stack(ends).isfinite().all().to(like.device)
    return get_total_norm(some, norm_type=math.inf).isfinite().to(like.device)


def take_state(run: Run, state: Mapping[str, Any]) -> None:
    """Make a method's new state the run's, unless something in it is not finite, which would spoil every step from here on."""
    if all(map(_is_finite_value, state.values())):
        run.state.loss_state = dict(state)
    else:
        run.reporter.warn(
            f"step {run.state.step + 1}: the state that {run.loss.name} returned is not finite; it goes on with the one before"
        )


def _is_finite_value(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite_value, value))
    return not isinstance(value, (float, Tensor)) or bool(torch.as_tensor(value).isfinite().all())


def weights_are_finite(run: Run) -> bool:
    """Whether all that trains is, on all ranks, which call this together."""
    return _are_finite(run, run.state.weights())


def require_finite_state(run: Run, *, weights: bool) -> None:
    """Raise TruingError, on all ranks, when the optimiser's state, or with `weights` they, are not finite: that is never saved."""
    state = run.state
    tables = {**(state.weights() if weights else {}), **state.optimizer_tensors()}
    if _are_finite(run, tables):
        return
    names = [name for name, tensor in tables.items() if not bool(tensor.isfinite().all())][:3]
    raise TruingError(
        f"step {state.step}: {' and '.join(names) or 'the state of another rank'} is not finite, so nothing is saved; the "
        "checkpoints before are whole. Go on from them with --resume and a lower trainer.learning_rate"
    )


def _are_finite(run: Run, tables: Mapping[str, Tensor]) -> bool:
    """Whether tensors are on all ranks."""
    bad = 1 - _is_finite(list(tables.values()), torch.zeros((), device=run.accelerator.device)).float()
    return not bool(run.accelerator.reduce(bad, reduction="sum") if run.accelerator.num_processes > 1 else bad)
