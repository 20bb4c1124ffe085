"""TRL's GRPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer

from tests.benchmarks.profiles import ADVANTAGES, Case, make_model
from tests.benchmarks.trl_arms.arm import TrlArm, arguments
from truing.data.tree import PromptTree
from truing.testing import tiny_tokenizer


class GrpoArm(TrlArm):
    """GRPOTrainer, given completions and their advantages instead of sampling and scoring them.

    Its loss type cispo has the value and the gradient of an advantage times a log-probability where the samples are fresh, so that
    the value can be compared too; the default type has the same gradient there, at the same cost.
    """

    def __init__(self, case: Case, folder: Path, *, best: bool) -> None:
        trainer = GRPOTrainer(
            model=make_model(case),
            reward_funcs=_no_reward,
            args=GRPOConfig(
                num_generations=case.method.branches,
                max_completion_length=case.profile.completion[1],
                loss_type="cispo",
                epsilon_high=5.0,
                **arguments(case, folder, best=best) | {"per_device_train_batch_size": case.prompts * case.method.branches},
            ),
            train_dataset=Dataset.from_dict({"prompt": ["1 and "]}),
            processing_class=tiny_tokenizer(),
        )
        # in place of sampling completions
        trainer._prepare_inputs = lambda inputs: {name: tensor.to(case.device) for name, tensor in inputs.items()}
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


def _no_reward(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)
