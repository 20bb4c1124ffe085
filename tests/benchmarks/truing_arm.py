"""Truing's side of the comparisons: its own set-up and its own step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import nn

from tests.benchmarks.arms import LEARNING_RATE, MAX_GRAD_NORM, SEED, Step
from tests.benchmarks.profiles import ADVANTAGES, LORA_RANK, SCORE_HEAD, Case, Method, make_model, move_from_reference
from truing.config import (
    DataConfig,
    LoraConfig,
    ModelConfig,
    OutputConfig,
    RewardEntry,
    RolloutConfig,
    TrainConfig,
    TrainerConfig,
)
from truing.data.example import DatasetStrategy, Example
from truing.data.strategies import Preference, PromptText
from truing.data.tree import PromptTree, Sampled
from truing.loss import Layout, Loss
from truing.model.precomputed import Precomputed
from truing.testing import tiny_tokenizer
from truing.testing.fakes import FakeRollout, LetterReward
from truing.train.console import Reporter
from truing.train.given import Given
from truing.train.order import DataOrder
from truing.train.run import Run
from truing.train.run_dir import RunDir
from truing.train.setup import set_up
from truing.train.source import DatasetSource
from truing.train.step import train_step

OURS = ("truing", "truing-compiled")
"""The arms that are Truing's."""
ROWS = [{"prompt": f"{number} and ", "chosen": "one more", "rejected": "two", "label": number % 2 == 0} for number in range(4)]
"""What the run is set up with, before trees of random tokens take their place."""
PRECOMPUTED_TOKENS = 8192
"""Of one forward that is not timed."""


@attrs.frozen(kw_only=True)
class Completions(DatasetStrategy):
    """The same rows with one response each."""

    name: ClassVar[str] = "benchmark-completions"
    layouts: ClassVar[frozenset[Layout]] = frozenset({Layout.SINGLE, Layout.LABELED})

    def parse(self, row: Mapping[str, Any]) -> Example:
        """Return the prompt, its response and its label."""
        return Example(prompt=row["prompt"], responses=(row["chosen"],), label=row["label"])


FORMATS: Mapping[Layout, DatasetStrategy] = {Layout.PAIRED: Preference(), Layout.ROLLOUT: PromptText()}
"""How ROWS are read, where it is not as Completions."""
METHODS = {
    "dpo": "truing_dpo.DPO",
    "kto": "truing_kto.KTO",
    "orpo": "truing_orpo.ORPO",
    "cpo": "truing_cpo.CPO",
    "simpo": "truing_cpo.SimPO",
    "rm": "truing_reward_model.RewardModelLoss",
    "sft": "truing_sft.SFT",
    "grpo": "truing_grpo.GRPO",
}
"""The class of each family of `profiles.METHODS`."""


def make_method(method: Method) -> Loss:
    """Return the method with its settings."""
    module, name = METHODS[method.family].split(".")
    made: Loss = getattr(import_module(module), name)(**method.settings)
    return made


class TruingArm:
    """The product's step on a run whose data are replaced by the benchmark's trees."""

    def __init__(self, case: Case, folder: Path, *, compiled: bool = False) -> None:
        self.case, self.name = case, "truing-compiled" if compiled else "truing"
        given = Given(model=make_model(case), tokenizer=tiny_tokenizer(), dataset=ROWS)
        config = _config(case, folder, compiled=compiled)
        self.run = set_up(config, given, RunDir(config.output.dir), resume=False, reporter=Reporter(quiet=True))
        self.run.wrapped.train()
        weights = self.parameters()
        if SCORE_HEAD in weights:
            torch.nn.init.zeros_(weights[SCORE_HEAD])
        move_from_reference(weights, case.shape)

    @property
    def model(self) -> nn.Module:
        """The policy."""
        return self.run.state.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's own, inside accelerate's."""
        optimizer: Any = self.run.state.optimizer
        return getattr(optimizer, "optimizer", optimizer)

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the policy's parameters by name."""
        head = self.run.state.score_head
        return dict(self.model.named_parameters()) | ({} if head is None else {SCORE_HEAD: head.weight})

    def prepare(self, batches: Sequence[Sequence[PromptTree]]) -> None:
        """Take the reference's log-probabilities of all trees, where the case has them precomputed."""
        if self.case.method.precomputed:
            run, trees = self.run, [tree for batch in batches for tree in batch]
            assert run.reference is not None
            stored = Precomputed.of(run.reference, trees, run.policy, PRECOMPUTED_TOKENS)
            self.run = attrs.evolve(run, reference=stored)

    def step(self, trees: Sequence[PromptTree]) -> Step:
        """Run one step on the trees, in an order of the run's own."""
        if self.run.loss.layout is Layout.ROLLOUT:
            trees = [_with_advantages(tree) for tree in trees]
        result = train_step(_with_trees(self.run, trees))
        self.run.state.step += 1
        metrics = {name: float(value) for name, value in result.metrics.items()}
        return Step(metrics["loss"], metrics["grad_norm"], metrics)


def _with_advantages(tree: PromptTree) -> PromptTree:
    """Return the tree as the driver of online methods makes it of completions that were sampled and scored."""
    known = [Sampled(rewards=(advantage,), advantage=advantage) for advantage in ADVANTAGES[: len(tree.branches)]]
    pairs = zip(tree.branches, known, strict=True)
    return attrs.evolve(tree, branches=tuple(attrs.evolve(branch, sampled=sampled) for branch, sampled in pairs))


def _with_trees(run: Run, trees: Sequence[PromptTree]) -> Run:
    order = DataOrder(len(trees), len(trees), SEED)
    return attrs.evolve(run, trees=trees, order=order, source=DatasetSource(trees, order))


def _config(case: Case, folder: Path, *, compiled: bool) -> TrainConfig:
    method = make_method(case.method)
    trainer = TrainerConfig(
        batch_size=case.prompts,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        max_grad_norm=MAX_GRAD_NORM,
        mixed_precision="bf16" if case.device == "cuda" else "no",
        max_steps=10_000,
        max_tokens_per_batch=case.tokens_per_batch,
        seed=SEED,
        torch_compile=compiled,
    )
    online: dict[str, Any] = {}
    if method.layout is Layout.ROLLOUT:
        rollout = RolloutConfig(backend=FakeRollout(), max_completion_length=case.profile.completion[1])
        online = {"rollout": rollout, "rewards": (RewardEntry(reward=LetterReward()),)}
    return TrainConfig(
        **online,
        method=method,
        model=ModelConfig(name="given", adapter=LoraConfig(r=LORA_RANK) if case.method.lora else None),
        data=(DataConfig(path="given", format=FORMATS.get(method.layout, Completions())),),
        trainer=trainer,
        output=OutputConfig(dir=folder / "truing"),
    )
