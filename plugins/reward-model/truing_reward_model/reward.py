"""The reward `reward_model`: the score that a trained reward model gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import attrs

from truing import Completion, Example, OpenContext, RowError, setting

if TYPE_CHECKING:
    from truing.data.example import Text
    from truing.data.tree import PromptTree
    from truing.rewards import Scores
    from truing_reward_model.scorer import Scorer


@attrs.frozen(kw_only=True)
class RewardModel:
    """The score of a reward model that was trained with method reward-model or ranked-reward-model.

    Prompt and completion become the text that the model was trained on: that of its format, which is `format` or what its run's
    config.yaml says. Where the format is a chat markup, messages are written in it, text that ends as its prompts do is taken as
    it is, and other text is the user's turn. Of any other format, messages are rendered by the reward model's own chat template,
    or the format's, and text is taken as it is. Its own tokenizer reads the result.

    None for a completion that it cannot read: one beyond its context length, or a conversation that its format or chat template
    refuses.
    """

    name: ClassVar[str] = "reward_model"

    model: str = setting(help="Directory of the reward model's run, or its model folder.")
    format: str | None = setting(
        None, help="The format that it was trained with, such as chatml.intel; null is that of config.yaml in its run."
    )

    @property
    def critic_start(self) -> str:
        """What a critic begins as: the model, with its score head as the head that values tokens."""
        return self.model

    def open(self, context: OpenContext) -> AbstractContextManager[LiveRewardModel]:
        """Load the model on the run's device. Raises ConfigError or ModelError where that cannot be."""
        from truing.data.paths import local_path
        from truing_reward_model.formats import row_format
        from truing_reward_model.scorer import Scorer, run_of

        path = local_path(self.model, context.config_dir) or Path(self.model)
        scorer = Scorer.load(path, context.device)
        form = row_format(run_of(path), self.format, scorer.encoder.tokenizer)
        return nullcontext(LiveRewardModel(scorer, getattr(form.strategy, "write", _as_it_is)))


@attrs.frozen(eq=False)
class LiveRewardModel:
    """A loaded reward model that is called with completions."""

    scorer: Scorer
    write: Callable[[Text, Sequence[str]], Example]
    """Makes a prompt and completions what the model was trained on. Raises RowError."""

    def __call__(self, completions: Sequence[Completion]) -> Scores:
        """Return the scores; completions of one prompt share its computation."""
        groups: dict[str, list[int]] = {}
        for index, completion in enumerate(completions):
            groups.setdefault(json.dumps(completion.prompt, default=str), []).append(index)
        found = self._encode([[completions[index] for index in group] for group in groups.values()])
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

    def _encode(self, groups: Sequence[Sequence[Completion]]) -> list[PromptTree | RowError]:
        """Return a tree for the completions of each prompt, or why there is none."""
        written = [self._try_write(group) for group in groups]
        trees = iter(self.scorer.encode([example for example in written if isinstance(example, Example)]))
        return [next(trees) if isinstance(example, Example) else example for example in written]

    def _try_write(self, completions: Sequence[Completion]) -> Example | RowError:
        try:
            return self.write(completions[0].prompt, [completion.text for completion in completions])
        except RowError as error:
            return error


def _as_it_is(prompt: Text, answers: Sequence[str]) -> Example:
    """Return the Example in the form of the prompt: text, or messages."""
    if isinstance(prompt, str):
        return Example(prompt=prompt, responses=tuple(answers))
    return Example(prompt=prompt, responses=tuple([{"role": "assistant", "content": answer}] for answer in answers))
