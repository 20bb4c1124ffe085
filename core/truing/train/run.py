"""All that the phases of training share: made once, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from accelerate import Accelerator
from torch import nn

from truing.config.classes import TrainConfig, TrainerConfig
from truing.data.batch import TreeBatch, collate
from truing.data.tree import PromptTree, Trees
from truing.declared import sees_whole_step
from truing.loss import Layout, Loss, Needs
from truing.model.policy import Policy
from truing.model.reference import Reference
from truing.train.console import Reporter
from truing.train.order import DataOrder
from truing.train.run_dir import RunDir
from truing.train.source import Source
from truing.train.state import TrainState


@attrs.frozen(eq=False, kw_only=True)
class Run:
    """A run whose parts are ready."""

    config: TrainConfig
    loss: Loss
    accelerator: Accelerator
    policy: Policy
    """The policy itself, for its layout and its model."""
    wrapped: nn.Module
    """The policy as accelerate prepared it: what is called with a gradient."""
    reference: Reference | None
    eval_reference: Reference | None
    trees: Trees
    eval_trees: Trees | None
    order: DataOrder
    source: Source
    total_steps: int
    state: TrainState
    run_dir: RunDir
    reporter: Reporter
    identity: Mapping[str, Any]
    """What a checkpoint must share with the run that resumes from it."""
    environment: Mapping[str, Any]
    """What environment.json says beside versions and machine."""
    constants: Mapping[str, Any] = attrs.field(factory=dict)
    """Fields of LossInputs that are the same in every batch."""

    @property
    def trainer(self) -> TrainerConfig:
        """The trainer's settings."""
        return self.config.trainer

    @property
    def needs(self) -> Needs:
        """What the loss reads."""
        return self.loss.needs

    @property
    def trained_layout(self) -> Layout:
        """The layout of the batches that the loss is called with."""
        layout: Layout = getattr(self.loss, "trained_layout", self.loss.layout)
        return layout

    @property
    def sees_whole_step(self) -> bool:
        """Whether the loss must be called once for a whole optimiser step."""
        return sees_whole_step(self.loss)

    def lay_out(self, trees: Sequence[PromptTree]) -> TreeBatch:
        """Return a micro-batch on the device, in the policy's layout."""
        return collate(trees, self.policy.layout, with_ends=Needs.SCORES in self.needs).to(self.accelerator.device)
