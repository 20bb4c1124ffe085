"""The reward `reward_model`: the score that a trained reward model gives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from truing import Completion, Example, OpenContext, RowError, setting

if TYPE_CHECKING:
    from truing.rewards import Scores
    from truing_reward_model.scorer import Scorer


@attrs.frozen(kw_only=True)
class RewardModel:
    """The score of a reward model that was trained with method reward-model or ranked-reward-model.

    Messages are rendered by the reward model's own chat template, and text is taken as it is: a model that was trained on the text
    of a format, such as `chatml.intel`, must be asked in that text. Its own tokenizer reads both. None for a completion that it
    cannot read: one beyond its context length, or a conversation that its chat template refuses.
    """

    name: ClassVar[str] = "reward_model"

    model: str = setting(help="Directory of the reward model's run, or its model folder.")

    def open(self, context: OpenContext) -> AbstractContextManager[LiveRewardModel]:
        """Load the model on the run's device. Raises ConfigError or ModelError where that cannot be."""
        from truing.data.paths import local_path
        from truing_reward_model.scorer import Scorer

        path = local_path(self.model, context.config_dir) or Path(self.model)
        return nullcontext(LiveRewardModel(Scorer.load(path, context.device)))


@attrs.frozen(eq=False)
class LiveRewardModel:
    """A loaded reward model that is called with completions."""

    scorer: Scorer

    def __call__(self, completions: Sequence[Completion]) -> Scores:
        """Return the scores; completions of one prompt share its computation."""
        groups: dict[str, list[int]] = {}
        for index, completion in enumerate(completions):
            groups.setdefault(json.dumps(completion.prompt, default=str), []).append(index)
        found = self.scorer.encode([_example([completions[index] for index in group]) for group in groups.values()])
        fitting, owners = [], []
        for tree, group in zip(found, groups.values(), strict=True):
            if isinstance(tree, RowError):
                continue
            kept = [place for place, excess in enumerate(self.scorer.excess(tree)) if not excess]
            if kept:
                fitting.append(attrs.evolve(tree, branches=tuple(tree.branches[place] for place in kept)))
                owners.append([group[place] for place in kept])
        scores: list[float | None] = [None] * len(completions)
        for of_tree, group in zip(self.scorer.score(fitting), owners, strict=True):
            for score, index in zip(of_tree, group, strict=True):
                scores[index] = score
        return scores


def _example(completions: Sequence[Completion]) -> Example:
    """Return completions of one prompt as an Example, in the form of the prompt: text, or messages."""
    prompt = completions[0].prompt
    texts = [completion.text for completion in completions]
    if isinstance(prompt, str):
        return Example(prompt=prompt, responses=tuple(texts))
    return Example(prompt=prompt, responses=tuple([{"role": "assistant", "content": text}] for text in texts))
