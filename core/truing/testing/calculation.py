"""Promises that a loss's `__call__` and its `advantages` share: they read what their needs name, and change nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor

from truing.loss import LossInputs, Needs

Results = Mapping[str, Tensor]


@attrs.frozen
class Calculation:
    """A function of a batch under test: its name, what says its needs, batches with given needs, and its results by name."""

    title: str
    needs_name: str
    needs: Needs
    make: Callable[[Needs], LossInputs]
    call: Callable[[LossInputs], Results]

    def check(self) -> Results:
        """Check all the promises and return the results for the batch with exactly what is needed."""
        results = self._call_with_needs()
        self._check_pure(results)
        self._check_reads(results)
        return results

    def _call_with_needs(self) -> Results:
        try:
            return self.call(self.make(self.needs))
        except AssertionError:
            raise
        except Exception as error:
            missing = [need for need in Needs if need not in self.needs and self._works_with(self.needs | need)]
            way_out = f"it works with {missing[0]}: add that" if missing else "it must work on any batch of its layout"
            raise AssertionError(
                f"{self.title} failed on a batch that has exactly what `{self.needs_name}` names, {self.needs}; {way_out}. "
                f"{type(error).__name__}: {error}"
            ) from error

    def _works_with(self, needs: Needs) -> bool:
        try:
            self.call(self.make(needs))
        except Exception:
            return False
        return True

    def _check_reads(self, results: Results) -> None:
        for need in Needs:
            if need is Needs.NO_LOGPS:  # which brings nothing, and takes log-probabilities away
                continue
            if need not in self.needs:
                more = self.call(self.make(self.needs | need))
                assert close(results, more), (
                    f"{self.title} gives another result when the batch also has what {need} brings; `{self.needs_name}` must name "
                    "all that is read: add it, or do not look at it"
                )
            elif self._works_with(self.needs & ~need):
                less = self.call(self.make(self.needs & ~need))
                assert not close(results, less), (
                    f"`{self.needs_name}` names {need}, but {self.title} gives the same result without it: a run would load "
                    "a model or compute a forward for nothing; drop it"
                )

    def _check_pure(self, results: Results) -> None:
        inputs = self.make(self.needs)
        before = copy.deepcopy(attrs.asdict(inputs, recurse=False))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            again = self.call(inputs)
        changed = [key for key, value in before.items() if not same_value(value, getattr(inputs, key))]
        assert not changed, (
            f"{self.title} changes `inputs.{changed[0]}` in place; inputs are shared with metrics and other calls: copy first"
        )
        assert all(same_value(results[key], again[key]) for key in results), (
            f"{self.title} gives other numbers for the same batch: it must not draw random numbers or remember calls (use `state`)"
        )


def close(one: Results, other: Results) -> bool:
    """Whether two results have the same names, shapes and, within rounding of float64, numbers."""
    return one.keys() == other.keys() and all(
        one[key].shape == other[key].shape and torch.allclose(one[key], other[key], rtol=1e-9, atol=1e-12, equal_nan=True)
        for key in one
    )


def same_value(one: Any, other: Any) -> bool:
    """Whether two values are equal to the last bit, tensors within mappings and lists included."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(same_value(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same_value, one, other))
    return bool(one == other)
