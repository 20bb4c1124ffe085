"""The one sample type: a prompt with branches, tokenised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from torch import Tensor

TokenIds = tuple[int, ...]
MISMATCHED = "mismatched"
"""The role of a branch that is the completion of another prompt."""


@attrs.frozen(kw_only=True, eq=False)
class Sampled:
    """What is known of a completion that was sampled, beside its tokens."""

    columns: Mapping[str, Tensor] = attrs.field(factory=dict)
    """[counted] each, aligned with the tokens that are counted: fields of LossInputs by name, and what the method carries along."""
    rewards: tuple[float, ...] = ()
    """One for each reward; NaN where it does not apply."""
    truncated: bool = False
    """Whether it was cut off at the most tokens that a completion may have."""
    fork: bool = False
    """Whether it is an earlier row of an episode, whose rewards and advantage are those of the next branch that is none."""
    advantage: float | None = None
    """Where the method gives one for the whole completion, and not one for each token, which is the column `advantages`."""


@attrs.frozen(kw_only=True)
class Branch:
    """One continuation of a prompt. `loss_mask[i]` says whether `token_ids[i]` is counted."""

    token_ids: TokenIds
    loss_mask: tuple[bool, ...]
    role: str = "completion"
    """What the branch is to its prompt: "chosen", "rejected", "completion", "mismatched"."""
    label: bool | None = None
    rank: int | None = None
    sampled: Sampled | None = attrs.field(default=None, eq=False)

    def __attrs_post_init__(self) -> None:
        assert len(self.token_ids) == len(self.loss_mask), (len(self.token_ids), len(self.loss_mask))

    @property
    def counted(self) -> int:
        """How many tokens the loss counts."""
        return sum(self.loss_mask)


@attrs.frozen(kw_only=True)
class PromptTree:
    """A prompt and its branches, each attending to the prompt and to itself.

    `prompt_mask` marks prompt tokens that a method counts (SFT over all turns); empty means none.
    """

    prompt_ids: TokenIds
    branches: tuple[Branch, ...]
    sample_id: int
    """The row's index in the data of the run: stable across epochs, and what a log names."""
    prompt_mask: tuple[bool, ...] = ()
    margin: float | None = None
    columns: Mapping[str, Any] = attrs.field(factory=dict, eq=False)

    @property
    def completions(self) -> tuple[Branch, ...]:
        """The branches that a loss learns from: all but a mismatched one."""
        return tuple(branch for branch in self.branches if branch.role != MISMATCHED)

    @property
    def counted(self) -> int:
        """How many tokens of these the loss counts."""
        return sum(branch.counted for branch in self.completions)

    @property
    def counted_mismatched(self) -> int:
        """How many tokens of mismatched branches it reads."""
        return sum(branch.counted for branch in self.branches if branch.role == MISMATCHED)

    @property
    def counted_in_prompt(self) -> int:
        """How many tokens of the prompt it counts; nothing predicts the first one."""
        return sum(self.prompt_mask[1:])

    @property
    def num_tokens(self) -> int:
        """Tokens that the shared-prefix forward computes: the prompt once, and every branch."""
        return len(self.prompt_ids) + sum(len(branch.token_ids) for branch in self.branches)


class Trees(Protocol):
    """A sequence of prompt trees, made when they are asked for, with facts about all of them."""

    @property
    def fingerprint(self) -> str:
        """Hash of all tokens, masks and labels."""

    @property
    def largest_id(self) -> int:
        """The largest token id."""

    def length(self, index: int) -> int:
        """Return `num_tokens` of a tree without building it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> PromptTree: ...


CHUNK = 1024
"""How many trees exist at a time where all of them are gone through."""


def in_chunks(trees: Trees, size: int | None = None) -> Iterator[list[PromptTree]]:
    """Yield all trees in order, `size` at a time; None is `CHUNK`."""
    size = size or CHUNK
    for start in range(0, len(trees), size):
        yield [trees[index] for index in range(start, min(start + size, len(trees)))]
