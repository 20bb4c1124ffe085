"""Made-up batches as losses see them, and parts of batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from truing.loss import Layout, LossInputs, Needs

NEED_FIELDS: Mapping[Needs, tuple[str, ...]] = {
    Needs.REFERENCE_LOGPS: ("reference_token_logps", "mismatched_reference_token_logps"),
    Needs.MISMATCHED_LOGPS: ("mismatched_token_logps", "mismatched_reference_token_logps", "mismatched_sequence_ids"),
    Needs.BEHAVIOR_LOGPS: ("behavior_token_logps",),
    Needs.PROXIMAL_LOGPS: ("proximal_token_logps",),
    Needs.PROMPT_LOGPS: ("prompt_token_logps", "prompt_tree_ids"),
    Needs.ENTROPY: ("token_entropy",),
    Needs.SQUARED_PROBS: ("token_squared_probs",),
    Needs.VALUES: ("token_values",),
    Needs.SCORES: ("scores",),
    Needs.REWARDS: ("rewards", "reward_weights"),
    Needs.NO_LOGPS: (),
}
"""The fields of LossInputs that each need brings. One that two needs bring is there when both are named."""

LONGEST = 5
"""The most tokens of a branch whose length is drawn, and what sampled ones are cut off at."""

DEFAULT_BRANCHES: Mapping[Layout, int] = {
    Layout.SINGLE: 1,
    Layout.PAIRED: 2,
    Layout.RANKED: 3,
    Layout.LABELED: 1,
    Layout.ROLLOUT: 4,
}


def fake_inputs(
    layout: Layout,
    *,
    trees: int = 3,
    branches: int | None = None,
    lengths: Sequence[int] | None = None,
    needs: Needs = Needs.NOTHING,
    num_rewards: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    state: Mapping[str, Any] | None = None,
) -> LossInputs:
    """Return a random batch of a layout with the fields that `needs` names, those of the layout, and no others.

    `branches` of each tree default to 2 for PAIRED, 3 for RANKED, 4 for ROLLOUT and else 1; `lengths` of the branches to 2 to 5
    tokens. The same seed gives the same batch, whatever is needed, but for token_logps, which NO_LOGPS makes NaN. Policy fields
    carry no gradient until the caller asks for one.
    """
    generator = torch.Generator().manual_seed(seed)
    per_tree = branches or DEFAULT_BRANCHES[layout]
    num_branches = trees * per_tree
    drawn = torch.randint(2, LONGEST + 1, (num_branches,), generator=generator)
    counts = drawn if lengths is None else torch.tensor(lengths)
    assert len(counts) == num_branches, f"{len(counts)} lengths for {num_branches} branches"
    made = _fields(layout, counts, torch.arange(trees).repeat_interleave(per_tree), num_rewards, generator)
    if Needs.NO_LOGPS in needs:
        made["token_logps"] = torch.full_like(made["token_logps"], torch.nan)
    absent = {field for need, fields in NEED_FIELDS.items() if need not in needs for field in fields}
    fields: dict[str, Any] = {
        key: None if key in absent else value.to(dtype) if value.is_floating_point() else value for key, value in made.items()
    }
    limit = LONGEST if layout is Layout.ROLLOUT else None
    return LossInputs(layout=layout, state=dict(state or {}), max_completion_length=limit, **fields)


def _fields(layout: Layout, lengths: Tensor, tree_ids: Tensor, num_rewards: int, generator: torch.Generator) -> dict[str, Tensor]:
    tokens, branches, trees = int(lengths.sum()), len(lengths), int(tree_ids.max()) + 1
    prompt_lengths = torch.randint(1, 4, (trees,), generator=generator)
    mismatched_lengths = torch.randint(2, 6, (branches,), generator=generator)

    def near(logps: Tensor, spread: float) -> Tensor:
        return (logps + spread * torch.randn(logps.shape, generator=generator, dtype=torch.float64)).clamp(max=-0.01)

    def logps(size: int) -> Tensor:
        return -0.1 - 2 * torch.rand(size, generator=generator, dtype=torch.float64)

    token_logps, mismatched = logps(tokens), logps(int(mismatched_lengths.sum()))
    fields = {
        "token_logps": token_logps,
        "sequence_ids": torch.arange(branches).repeat_interleave(lengths),
        "tree_ids": tree_ids,
        "lengths": lengths,
        "token_entropy": -logps(tokens),
        "token_squared_probs": logps(tokens).exp(),
        "token_values": torch.randn(tokens, generator=generator, dtype=torch.float64),
        "scores": torch.randn(branches, generator=generator, dtype=torch.float64),
        "reference_token_logps": near(token_logps, 0.3),
        "behavior_token_logps": near(token_logps, 0.1),
        "proximal_token_logps": near(token_logps, 0.1),
        "prompt_token_logps": logps(int(prompt_lengths.sum())),
        "prompt_tree_ids": torch.arange(trees).repeat_interleave(prompt_lengths),
        "mismatched_token_logps": mismatched,
        "mismatched_reference_token_logps": near(mismatched, 0.3),
        "mismatched_sequence_ids": torch.arange(branches).repeat_interleave(mismatched_lengths),
        "rewards": torch.randn(branches, num_rewards, generator=generator, dtype=torch.float64),
        "reward_weights": torch.ones(num_rewards, dtype=torch.float64),
    }
    if layout is Layout.ROLLOUT:
        fields["truncated"] = lengths == LONGEST
    if layout is Layout.LABELED:
        fields["labels"] = torch.arange(branches) % 2 == 0
    if layout is Layout.RANKED:
        fields["ranks"] = torch.cat([torch.arange(int((tree_ids == tree).sum())) for tree in range(trees)])
    if layout is Layout.PAIRED:
        fields["margins"] = torch.rand(trees, generator=generator, dtype=torch.float64)[tree_ids]
    return fields


def take_branches(inputs: LossInputs, branches: Sequence[int], layout: Layout | None = None) -> LossInputs:
    """Return the batch of these branches in this order, trees and branches numbered anew; their trees' prompts come along."""
    trees = list(dict.fromkeys(inputs.tree_ids[list(branches)].tolist()))
    tokens, sequence_ids = _members(inputs.sequence_ids, branches)
    prompt_tokens, prompt_tree_ids = _members(inputs.prompt_tree_ids, trees)
    mismatched_tokens, mismatched_sequence_ids = _members(inputs.mismatched_sequence_ids, branches)
    size, width = len(inputs.lengths), len(inputs.token_logps)

    def take(key: str, value: Any) -> Any:
        if key == "columns":
            return {name: column[tokens] for name, column in value.items()}
        if not isinstance(value, Tensor) or key == "reward_weights":
            return value
        if key.startswith("prompt_"):
            return value[prompt_tokens]
        if key.startswith("mismatched_"):
            return value[mismatched_tokens]
        assert len(value) in (size, width), f"{key} has {len(value)} entries for {size} branches of {width} tokens"
        return value[tokens] if len(value) == width else value[list(branches)]

    taken = {field.name: take(field.name, getattr(inputs, field.name)) for field in attrs.fields(LossInputs)}
    renumbered = {
        "sequence_ids": sequence_ids,
        "tree_ids": torch.tensor([trees.index(tree) for tree in taken["tree_ids"].tolist()]),
        "prompt_tree_ids": prompt_tree_ids,
        "mismatched_sequence_ids": mismatched_sequence_ids,
    }
    return LossInputs(**{**taken, **renumbered, "layout": layout or inputs.layout})


def take_trees(inputs: LossInputs, trees: Sequence[int]) -> LossInputs:
    """Return the batch of these trees in this order, with all their branches."""
    branches, _ = _members(inputs.tree_ids, trees)
    assert branches is not None
    return take_branches(inputs, branches.tolist())


def _members(owners: Tensor | None, wanted: Sequence[int]) -> tuple[Tensor | None, Tensor | None]:
    """Return the positions that belong to each wanted owner, in that order, and the owner's number in it; None for no owners."""
    if owners is None:
        return None, None
    positions = [(owners == owner).nonzero()[:, 0] for owner in wanted]
    numbers = [torch.full_like(found, number) for number, found in enumerate(positions)]
    return torch.cat(positions), torch.cat(numbers)
