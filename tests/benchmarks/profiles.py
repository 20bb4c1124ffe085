"""What the comparisons with TRL compute on: cases, models of random weights, and batches of random token ids."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence

import attrs
import torch
from torch import nn
from transformers import PreTrainedModel

from truing.data.tree import Branch, PromptTree
from truing.testing import tiny_model

LORA_RANK = 16
ADVANTAGES = (1.3, -0.9, 0.4, -1.6, 0.8, 0.1, -0.6, 0.5)
"""Of the eight completions of a prompt, in order; their sum is 0."""
SPECIAL_IDS = 4
"""Ids below this one are special tokens, of which a batch has none."""


@attrs.frozen
class Shape:
    """A Llama model with the proportions of the 7B one: keys and values for every head, an MLP of 2.7 times the width, no tie."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int = 32_000
    spread: float = 0.02
    """Standard deviation of the weights."""
    noise: float = 0.004
    """How far the policy's weights are from the reference's, a standard deviation."""
    adapter_noise: float = 0.05
    """The same of an adapter's weights, both factors of each."""


@attrs.frozen
class Profile:
    """Lengths are drawn evenly between the bounds, both included."""

    prompt: tuple[int, int]
    completion: tuple[int, int]


@attrs.frozen
class Method:
    """What a step trains: `prompts` None means as many pairs as the command line asks for."""

    branches: int
    prompts: int | None = None
    reference: bool = False
    precomputed: bool = False
    lora: bool = False


SHAPES = {
    "h256": Shape(256, 6, 4, 688),
    "h512": Shape(512, 8, 8, 1376),
    "tiny": Shape(32, 2, 4, 80, 300, spread=0.2, noise=0.05, adapter_noise=0.3),
}
PROFILES = {
    "long": Profile((256, 768), (32, 256)),
    "chat": Profile((30, 300), (50, 400)),
    "tiny": Profile((4, 24), (2, 12)),
}
METHODS = {
    "dpo": Method(2, reference=True),
    "dpo-precomputed": Method(2, reference=True, precomputed=True),
    "dpo-lora": Method(2, reference=True, lora=True),
    "grpo-1x8": Method(8, prompts=1),
    "grpo-3x8": Method(8, prompts=3),
}


@attrs.frozen
class Case:
    """One comparison, named method-shape-profile."""

    name: str
    method: Method
    shape: Shape
    profile: Profile
    prompts: int
    tokens_per_batch: int | None = None
    """Truing's token budget of one forward; None is what it finds itself."""

    @classmethod
    def named(cls, name: str, pairs: int, tokens_per_batch: int | None = None) -> Case:
        """Return the case of a name such as dpo-h256-long, with `pairs` prompts where the method does not say."""
        try:
            method, shape, profile = name.rsplit("-", 2)
            known = METHODS[method], SHAPES[shape], PROFILES[profile]
        except (KeyError, ValueError):
            parts = " | ".join(map(", ".join, (METHODS, SHAPES, PROFILES)))
            raise SystemExit(f"no case {name!r}; a case is method-shape-profile, of: {parts}") from None
        return cls(name, *known, prompts=known[0].prompts or pairs, tokens_per_batch=tokens_per_batch)


@attrs.frozen
class TokenCounts:
    """Tokens of a batch, as rows of a prompt and one completion each, and as prompt trees."""

    padded: int
    """Slots of rows padded to the longest."""
    real: int
    """Tokens of those rows, padding left out."""
    unique: int
    """Every prompt once, and every completion."""
    positions: int
    """Those of the unique tokens that something is predicted from: all but the last of each completion."""
    targets: int
    """Completion tokens."""


def count(trees: Sequence[PromptTree]) -> TokenCounts:
    """Count the tokens of a batch."""
    rows = [(len(tree.prompt_ids), len(branch.token_ids)) for tree in trees for branch in tree.branches]
    targets = sum(completion for _, completion in rows)
    unique = targets + sum(len(tree.prompt_ids) for tree in trees)
    return TokenCounts(
        padded=len(rows) * max(map(sum, rows)),
        real=sum(map(sum, rows)),
        unique=unique,
        positions=unique - len(rows),
        targets=targets,
    )


def make_batch(case: Case, seed: int) -> list[PromptTree]:
    """Return the prompt trees of one step; those of seeds 0 to n are numbered on from batch to batch."""
    draw = random.Random(f"{case.name} {seed}")

    def tokens(bounds: tuple[int, int]) -> tuple[int, ...]:
        return tuple(draw.randrange(SPECIAL_IDS, case.shape.vocabulary) for _ in range(draw.randint(*bounds)))

    def branch(index: int) -> Branch:
        ids = tokens(case.profile.completion)
        role = ("chosen", "rejected")[index] if case.method.branches == 2 else "completion"
        return Branch(token_ids=ids, loss_mask=(True,) * len(ids), role=role)

    return [
        PromptTree(
            prompt_ids=tokens(case.profile.prompt),
            branches=tuple(branch(i) for i in range(case.method.branches)),
            sample_id=seed * case.prompts + index,
        )
        for index in range(case.prompts)
    ]


def make_model(shape: Shape) -> PreTrainedModel:
    """Return the model of a shape, the same weights every time."""
    return tiny_model(
        hidden_size=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_positions=2048,
        initializer_range=shape.spread,
        tie_word_embeddings=False,
    )


@torch.no_grad()
def move_from_reference(policy: nn.Module, shape: Shape) -> None:
    """Change every weight that trains by noise that depends on its name alone, so that losses are not all log 2."""
    for name, weight in policy.named_parameters():
        if not weight.requires_grad:
            continue
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(weight.shape, generator=generator)
        if "lora_" in name:
            weight.copy_(shape.adapter_noise * drawn)  # an adapter's first weights are random, and half of them zeros
        else:
            weight.add_(shape.noise * drawn)
