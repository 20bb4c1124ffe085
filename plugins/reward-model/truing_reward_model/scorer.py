"""A trained reward model, loaded to score completions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import attrs
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from truing import Example, Layout, Needs, RowError
from truing.config import ModelConfig
from truing.data.batch import collate
from truing.data.encode import Encoder
from truing.data.packing import pack
from truing.data.tokenizer import load_tokenizer
from truing.data.tree import PromptTree
from truing.errors import ConfigError
from truing.model.loading import context_length, load_adapted
from truing.model.memory import token_budget
from truing.model.policy import Policy
from truing.model.probe import choose_forward
from truing.model.score_head import VALUE_HEAD, read_score_head

NEEDS = Needs.SCORES | Needs.NO_LOGPS


def model_folder(path: Path) -> Path:
    """Return the folder with the weights: that of the run at `path`, or `path`. Raises ConfigError where neither has a head."""
    for folder in (path / "model", path):
        if (folder / VALUE_HEAD).is_file():
            return folder
    raise ConfigError(
        f"{path} is no reward model: there is neither model/{VALUE_HEAD} nor {VALUE_HEAD} in it; give the directory of a run "
        "with method reward-model that is done, or its model folder"
    )


def run_of(path: Path) -> Path | None:
    """Return the directory of the run that the model at `path` belongs to; None for a model folder that lies elsewhere."""
    folder = model_folder(path)
    folder = folder if folder.name else folder.absolute()  # "." has no name
    return folder.parent if folder.name == "model" else None


def load_parts(
    folder: Path, *, dtype: Literal["auto", "float32"] = "auto"
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Return the model, with its adapter on it where the folder holds one, and the tokenizer. Raises ModelError."""
    model = load_adapted(ModelConfig(name=str(folder), dtype=dtype), Path(), trained=False)
    return model, load_tokenizer(ModelConfig(name=str(folder)), Path())


@attrs.define(eq=False)
class Scorer:
    """Scores completions by the shared-prefix forward: every prompt is computed once, and what fits is computed together."""

    policy: Policy
    encoder: Encoder
    longest: int | None
    """Most tokens of a prompt and a completion."""
    _budget: int | None = None

    @classmethod
    def load(cls, path: Path, device: torch.device) -> Scorer:
        """Load the model of a run, or of a model folder. Raises ConfigError where there is none, ModelError for a damaged one."""
        folder = model_folder(path)
        model, tokenizer = load_parts(folder)
        policy = Policy(model, "padded")
        policy.score_head = read_score_head(
            folder / VALUE_HEAD, policy.causal_lm, torch.promote_types(policy.causal_lm.dtype, torch.float32)
        )
        return cls(policy.eval().to(device), Encoder(tokenizer, Layout.SINGLE), context_length(policy.causal_lm))

    def encode(self, examples: Sequence[Example]) -> list[PromptTree | RowError]:
        """Return a tree for each Example, its branches in the order of the responses, or why there is none."""
        return [found if isinstance(found, RowError) else found.tree for found in self.encoder.encode(examples)]

    def excess(self, tree: PromptTree) -> list[int]:
        """Return by how many tokens each branch is too long for the model, 0 for one that is not."""
        room = float("inf") if self.longest is None else self.longest - len(tree.prompt_ids)
        return [int(max(0, len(branch.token_ids) - room)) for branch in tree.branches]

    def check(self, tree: PromptTree) -> PromptTree | RowError:
        """Return the tree, or why it is too long."""
        longest = len(tree.prompt_ids) + max(len(branch.token_ids) for branch in tree.branches)
        return RowError(f"{longest} tokens, and the model was made for {self.longest}") if any(self.excess(tree)) else tree

    def score(self, trees: Sequence[PromptTree]) -> list[list[float]]:
        """Return the score of each branch of each tree."""
        if not trees:
            return []
        budget = self._prepare(trees)
        numbered = [attrs.evolve(tree, sample_id=index) for index, tree in enumerate(trees)]
        found: list[list[float]] = [[] for _ in trees]
        for together in pack(numbered, budget, self.policy.layout):
            batch = collate(together, self.policy.layout, with_ends=True).to(self.policy.causal_lm.device)
            with torch.no_grad():
                scores = iter(self.policy(batch, NEEDS).scores.tolist())
            for tree in together:
                found[tree.sample_id] = [next(scores) for _ in tree.branches]
        return found

    def _prepare(self, trees: Sequence[PromptTree]) -> int:
        """Return the token budget; the first trees tell which forward is exact, and what a token takes."""
        if self._budget is None:
            by_length = sorted(trees, key=lambda tree: tree.num_tokens)
            self.policy.requires_grad_(True)  # the probe compares gradients too
            with torch.enable_grad():
                choose_forward(self.policy, [by_length[-1], by_length[len(by_length) // 2]], "auto")
                self._budget = token_budget(self.policy, by_length[:1], NEEDS)
            self.policy.requires_grad_(False).eval()
        return self._budget
