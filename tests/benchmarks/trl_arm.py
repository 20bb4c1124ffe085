"""TRL's side of the comparisons: its trainers' own collation and training step, then clip and update as its loop does them.

`best` is TRL as a GPU would run it: gradient checkpointing off, and its head told that it is on a device where it scores
completion tokens alone. Otherwise TRL is as it is shipped, in float32: gradient checkpointing on, and a head that scores every
position on a CPU.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

from tests.benchmarks.arms import BETA, LEARNING_RATE, MAX_GRAD_NORM, SEED, Step
from tests.benchmarks.profiles import ADVANTAGES, LORA_RANK, Case, make_model, move_from_reference
from truing.data.tree import PromptTree
from truing.testing import tiny_tokenizer

ROW = {"prompt": ["1 and "], "chosen": ["one more"], "rejected": ["two"]}
"""What the trainers are made with; batches of random tokens are collated by the trainers' own collators."""


disable_progress_bars()


class TrlArm:
    """What both trainers share: the optimiser step."""

    def __init__(self, case: Case, trainer: DPOTrainer | GRPOTrainer, *, best: bool) -> None:
        self.name = "trl-best" if best else "trl-shipped"
        self.case, self.trainer, self.best = case, trainer, best
        move_from_reference(trainer.model, case.shape)
        trainer.create_optimizer_and_scheduler(num_training_steps=10_000)
        trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)
        trainer.current_gradient_accumulation_steps = 1
        if not best:
            trainer.model.gradient_checkpointing_enable({"use_reentrant": False})  # as Trainer.train() does

    @property
    def model(self) -> nn.Module:
        """The policy."""
        return self.trainer.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """PyTorch's own, inside accelerate's."""
        return getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)

    def prepare(self, batches: Sequence[Sequence[PromptTree]]) -> None:
        """Nothing to do."""

    def collate(self, trees: Sequence[PromptTree]) -> dict[str, Any]:
        """Return what the trainer's step takes."""
        raise NotImplementedError

    def step(self, trees: Sequence[PromptTree]) -> Step:
        """Run what the trainer's loop runs for one optimiser step, without its logging and callbacks."""
        trainer = self.trainer
        with mock.patch("trl.trainer.utils._use_triton", lambda device: self.best):
            loss = trainer.training_step(trainer.model, self.collate(trees), None)
        norm = trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1
        return Step(float(loss), float(norm))


class TrlDpoArm(TrlArm):
    """DPOTrainer."""

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        model, method = make_model(case.shape), case.method
        own_reference = not (method.lora or method.precomputed)
        trainer = DPOTrainer(
            model=model,
            ref_model=copy.deepcopy(model) if own_reference else None,
            args=DPOConfig(
                beta=BETA,
                max_length=None,
                precompute_ref_log_probs=method.precomputed,
                **_arguments(case, folder, best=best),
            ),
            train_dataset=Dataset.from_dict(ROW),
            processing_class=tiny_tokenizer(),
            peft_config=_lora() if method.lora else None,
        )
        self.stored: dict[int, tuple[float, float]] = {}
        self.start = copy.deepcopy(model.state_dict()) if method.precomputed else None
        super().__init__(case, trainer, best=best)

    def prepare(self, batches: Sequence[Sequence[PromptTree]]) -> None:
        """Take the reference's log-probabilities with the trainer's own function, where the case has them precomputed."""
        if self.start is None:
            return
        moved = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self.start)
        for trees in batches:
            with mock.patch("trl.trainer.utils._use_triton", lambda device: True):
                chosen, rejected = self.trainer.compute_ref_log_probs(self.model, self.collate(trees))
            logps = zip(chosen.tolist(), rejected.tolist(), strict=True)
            self.stored.update(zip((tree.sample_id for tree in trees), logps, strict=True))
        self.model.load_state_dict(moved)
        self.start = None

    def collate(self, trees: Sequence[PromptTree]) -> dict[str, Any]:
        """Collate tokenised examples."""
        return self.trainer.data_collator([self._example(tree) for tree in trees])

    def _example(self, tree: PromptTree) -> dict[str, Any]:
        chosen, rejected = (list(branch.token_ids) for branch in tree.branches)
        example: dict[str, Any] = {"prompt_ids": list(tree.prompt_ids), "chosen_ids": chosen, "rejected_ids": rejected}
        if tree.sample_id in self.stored:
            example["ref_chosen_logps"], example["ref_rejected_logps"] = self.stored[tree.sample_id]
        return example


class TrlGrpoArm(TrlArm):
    """GRPOTrainer, given completions and their advantages instead of sampling and scoring them.

    Its loss type cispo has the value and the gradient of an advantage times a log-probability where the samples are fresh, so that
    the value can be compared too; the default type has the same gradient there, at the same cost.
    """

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        trainer = GRPOTrainer(
            model=make_model(case.shape),
            reward_funcs=_no_reward,
            args=GRPOConfig(
                num_generations=case.method.branches,
                max_completion_length=case.profile.completion[1],
                loss_type="cispo",
                epsilon_high=5.0,
                **_arguments(case, folder, best=best),
            ),
            train_dataset=Dataset.from_dict({"prompt": ROW["prompt"]}),
            processing_class=tiny_tokenizer(),
        )
        trainer._prepare_inputs = lambda inputs: inputs  # would sample completions
        super().__init__(case, trainer, best=best)

    def collate(self, trees: Sequence[PromptTree]) -> dict[str, Any]:
        """Lay out what sampling would hand to the loss: prompts padded on the left, completions on the right."""
        rows = [(tree.prompt_ids, branch.token_ids) for tree in trees for branch in tree.branches]
        pad = self.trainer.processing_class.pad_token_id
        prompts = [torch.tensor(prompt) for prompt, _ in rows]
        completions = [torch.tensor(completion) for _, completion in rows]
        left = {"batch_first": True, "padding_side": "left"}
        return {
            "prompt_ids": pad_sequence(prompts, padding_value=pad, **left),
            "prompt_mask": pad_sequence([torch.ones_like(ids) for ids in prompts], **left),
            "completion_ids": pad_sequence(completions, padding_value=pad, batch_first=True),
            "completion_mask": pad_sequence([torch.ones_like(ids) for ids in completions], batch_first=True),
            "advantages": torch.tensor(ADVANTAGES).repeat(len(trees)),
            "num_items_in_batch": torch.tensor(sum(map(len, completions))),
        }


def trl_arm(case: Case, folder: Path, *, best: bool) -> TrlArm:
    """Return the arm of a case."""
    return (TrlDpoArm if case.method.reference else TrlGrpoArm)(case, folder, best=best)


def _arguments(case: Case, folder: Path, *, best: bool) -> dict[str, Any]:
    return {
        "output_dir": str(folder / ("trl-best" if best else "trl-shipped")),
        "per_device_train_batch_size": case.prompts * (1 if case.method.reference else case.method.branches),
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": MAX_GRAD_NORM,
        "gradient_checkpointing": not best,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "seed": SEED,
    }


def _lora() -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules="all-linear")


def _no_reward(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)
