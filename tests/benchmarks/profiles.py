"""What the comparisons with TRL compute on: cases, models of random weights, and batches of random token ids."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import torch
from torch import nn
from transformers import PreTrainedModel

from tests.benchmarks.arms import BETA
from truing.data.tree import MISMATCHED, Branch, PromptTree
from truing.testing import tiny_model

LORA_RANK = 16
ADVANTAGES = (1.3, -0.9, 0.4, -1.6, 0.8, 0.1, -0.6, 0.5)
"""Of the eight completions of a prompt, in order; their sum is 0."""
SCORE_HEAD = "score_head.weight"
"""The name of a reward model's head, [1, hidden], on all sides; its first weights are zeros before they are moved."""
SPECIAL_IDS = 4
"""Ids below this one are special tokens, of which a batch has none."""


@attrs.frozen
class Shape:
    """A Llama model, by default with the proportions of the 7B one: keys and values for every head, no tie."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int = 32_000
    groups: int = 1
    """Heads that share keys and values."""
    tied: bool = False
    """Whether the head's weights are the embeddings'."""
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
    """What a step trains: `prompts` None means as many as the command line asks for."""

    family: str
    """Whose trainer computes it: dpo, grpo, kto, orpo, cpo, simpo, rm or sft."""
    branches: int
    prompts: int | None = None
    settings: Mapping[str, Any] = attrs.field(factory=dict)
    """Those of Truing's method; where TRL's trainer has them, by the same names."""
    reference: bool = False
    precomputed: bool = False
    lora: bool = False
    mismatched: bool = False
    """Each prompt is also followed by the completion of the prompt before it, the first one by that of the last."""
    prompt_counted: bool = False
    """Prompt tokens count in the loss, all that something predicts."""
    margins: bool = False
    padding_free: bool = False
    """TRL's side lays all rows end to end instead of padding them, where its trainer can."""


GRPO = {"loss_type": "cispo", "epsilon_high": 5.0}
"""Of fresh samples the value is an advantage times a log-probability, which can be compared; other types have the same gradient."""
SHAPES = {
    "h256": Shape(256, 6, 4, 688),
    "h512": Shape(512, 8, 8, 1376),
    "tiny": Shape(32, 2, 4, 80, 300, spread=0.2, noise=0.05, adapter_noise=0.3),
    "0b5": Shape(896, 24, 14, 4864, 151_936, groups=7, tied=True),
    "1b5": Shape(1536, 28, 12, 8960, 151_936, groups=6, tied=True),
}
PROFILES = {
    "long": Profile((256, 768), (32, 256)),
    "chat": Profile((30, 300), (50, 400)),
    "mixed": Profile((16, 512), (16, 512)),
    "tiny": Profile((4, 24), (2, 12)),
}
METHODS = {
    "dpo": Method("dpo", 2, settings={"beta": BETA}, reference=True),
    "dpo-precomputed": Method("dpo", 2, settings={"beta": BETA}, reference=True, precomputed=True),
    "dpo-lora": Method("dpo", 2, settings={"beta": BETA}, reference=True, lora=True),
    "grpo-1x8": Method("grpo", 8, prompts=1, settings=GRPO),
    "grpo-2x8": Method("grpo", 8, prompts=2, settings=GRPO),
    "grpo-3x8": Method("grpo", 8, prompts=3, settings=GRPO),
    "grpo-4x8": Method("grpo", 8, prompts=4, settings=GRPO),
    "kto": Method("kto", 1, settings={"beta": BETA}, reference=True, mismatched=True),
    "kto-apo": Method("kto", 1, settings={"beta": BETA, "loss_type": "apo_zero_unpaired"}, reference=True),
    "orpo": Method("orpo", 2, settings={"beta": BETA}, prompt_counted=True),
    "cpo": Method("cpo", 2, settings={"beta": BETA}),
    "cpo-hinge": Method("cpo", 2, settings={"beta": BETA, "loss_type": "hinge"}),
    "cpo-ipo": Method("cpo", 2, settings={"beta": BETA, "loss_type": "ipo"}),
    "simpo": Method("simpo", 2, settings={"beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 1.0}),
    "simpo-paper": Method("simpo", 2, settings={"beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    "rm": Method("rm", 2),
    "rm-margin": Method("rm", 2, margins=True),
    "rm-centered": Method("rm", 2, settings={"center_rewards_coefficient": 0.1}),
    "sft": Method("sft", 1),
    "sft-padding-free": Method("sft", 1, padding_free=True),
    "sft-all": Method("sft", 1, settings={"train_on": "all"}, prompt_counted=True),
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
    device: Literal["cpu", "cuda"] = "cpu"
    """On a CUDA device both sides autocast to bf16."""

    @classmethod
    def named(cls, name: str, pairs: int, tokens_per_batch: int | None = None, device: Literal["cpu", "cuda"] = "cpu") -> Case:
        """Return the case of a name such as dpo-h256-long, with `pairs` prompts where the method does not say."""
        try:
            method, shape, profile = name.rsplit("-", 2)
            known = METHODS[method], SHAPES[shape], PROFILES[profile]
        except (KeyError, ValueError):
            parts = " | ".join(map(", ".join, (METHODS, SHAPES, PROFILES)))
            raise SystemExit(f"no case {name!r}; a case is method-shape-profile, of: {parts}") from None
        return cls(name, *known, prompts=known[0].prompts or pairs, tokens_per_batch=tokens_per_batch, device=device)


@attrs.frozen
class TokenCounts:
    """Tokens of a batch, as rows of a prompt and one completion each, and as prompt trees."""

    padded: int
    """Slots of rows padded to the longest; those of mismatched completions are a batch of their own."""
    real: int
    """Tokens of those rows, padding left out."""
    unique: int
    """Every prompt once, and every completion."""
    positions: int
    """Those of the unique tokens that something is predicted from: all but the last of each completion."""
    targets: int
    """Tokens that are predicted."""
    untrained_positions: int = 0
    """Those of the positions that no gradient comes from: of mismatched completions."""
    untrained_targets: int = 0


def count(trees: Sequence[PromptTree]) -> TokenCounts:
    """Count the tokens of a batch."""
    trained, mismatched = (
        [(tree, branch) for tree in trees for branch in tree.branches if (branch.role == MISMATCHED) is asked]
        for asked in (False, True)
    )
    real, padded = zip(*(_rows(side) for side in (trained, mismatched)), strict=True)
    unique = sum(tree.num_tokens for tree in trees)
    untrained = sum(len(branch.token_ids) for _, branch in mismatched)
    return TokenCounts(
        padded=sum(padded),
        real=sum(real),
        unique=unique,
        positions=unique - len(trained) - len(mismatched),
        targets=sum(branch.counted for _, branch in (*trained, *mismatched)) + sum(tree.counted_in_prompt for tree in trees),
        untrained_positions=untrained - len(mismatched),
        untrained_targets=untrained,
    )


def _rows(side: Sequence[tuple[PromptTree, Branch]]) -> tuple[int, int]:
    lengths = [len(tree.prompt_ids) + len(branch.token_ids) for tree, branch in side]
    return sum(lengths), len(lengths) * max(lengths, default=0)


def make_batch(case: Case, seed: int) -> list[PromptTree]:
    """Return the prompt trees of one step; those of seeds 0 to n are numbered on from batch to batch."""
    draw, method = random.Random(f"{case.name} {seed}"), case.method

    def tokens(bounds: tuple[int, int]) -> tuple[int, ...]:
        return tuple(draw.randrange(SPECIAL_IDS, case.shape.vocabulary) for _ in range(draw.randint(*bounds)))

    def tree(number: int) -> PromptTree:
        prompt = tokens(case.profile.prompt)
        return PromptTree(
            prompt_ids=prompt,
            branches=tuple(_branch(method, index, number, tokens(case.profile.completion)) for index in range(method.branches)),
            sample_id=seed * case.prompts + number,
            prompt_mask=(True,) * len(prompt) if method.prompt_counted else (),
            margin=0.5 * number if method.margins else None,
        )

    trees = [tree(number) for number in range(case.prompts)]
    return _with_mismatched(trees) if method.mismatched else trees


def _branch(method: Method, index: int, number: int, ids: tuple[int, ...]) -> Branch:
    role = ("chosen", "rejected")[index] if method.branches == 2 else "completion"
    label = number % 3 != 1 if method.family == "kto" else None
    return Branch(token_ids=ids, loss_mask=(True,) * len(ids), role=role, label=label)


def _with_mismatched(trees: Sequence[PromptTree]) -> list[PromptTree]:
    others = [attrs.evolve(tree.branches[0], role=MISMATCHED, label=None) for tree in (trees[-1], *trees[:-1])]
    return [attrs.evolve(tree, branches=(*tree.branches, other)) for tree, other in zip(trees, others, strict=True)]


def make_model(case: Case) -> PreTrainedModel:
    """Return the model of a case, the same weights every time on a device."""
    shape = case.shape
    with torch.device(case.device):
        return tiny_model(
            hidden_size=shape.hidden,
            layers=shape.layers,
            heads=shape.heads,
            kv_heads=shape.heads // shape.groups,
            intermediate_size=shape.intermediate,
            vocab_size=shape.vocabulary,
            max_positions=2048,
            initializer_range=shape.spread,
            tie_word_embeddings=shape.tied,
        )


@torch.no_grad()
def move_from_reference(weights: Mapping[str, nn.Parameter], shape: Shape) -> None:
    """Change every weight that trains by noise that depends on its name alone, so that losses are not all log 2."""
    for name, weight in weights.items():
        if not weight.requires_grad:
            continue
        generator = torch.Generator(weight.device).manual_seed(zlib.crc32(name.encode()))
        drawn = torch.randn(weight.shape, generator=generator, device=weight.device)
        if "lora_" in name:
            weight.copy_(shape.adapter_noise * drawn)  # an adapter's first weights are random, and half of them zeros
        else:
            weight.add_(shape.noise * drawn)
