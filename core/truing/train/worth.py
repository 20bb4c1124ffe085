"""What a method takes completions to be worth: it learns nothing from a prompt whose completions are all worth the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from truing.data.tree import PromptTree
from truing.errors import PluginError
from truing.rollout.grown import tree_of
from truing.rollout.sampler import Group
from truing.train.advantages import naming_the_method, rollout_inputs, without_forks
from truing.train.run import Run


def worths(run: Run, weights: Sequence[float], group: Group) -> list[float]:
    """Return what each completion is worth, as the method's `worth` says or else by its weighted rewards; NaN where it has none.

    Raises PluginError for an error of the method's own, and for a tensor of another shape than [B].
    """
    worth: Any = getattr(run.loss, "worth", None)
    if not callable(worth) or not group.completions:
        return group.totals(weights)
    tree = without_forks(tree_of(PromptTree(prompt_ids=(), branches=(), sample_id=group.sample_id), group))
    with naming_the_method(run):
        found: Tensor = worth(rollout_inputs(run, [tree]))
    if list(found.shape) != [len(group.completions)]:
        raise PluginError(
            f"method {run.loss.name!r}: its `worth` gives shape {list(found.shape)}, and it must be [{len(group.completions)}] "
            "here ([B] completions); truing.testing.check_loss finds such faults"
        )
    numbers: list[float] = found.tolist()
    return numbers
