"""The shared-prefix forward against padded rows: the same pairs, weights and loss, interleaved, one thread, CPU seconds."""

from __future__ import annotations

import random
import statistics
import time

import torch

from truing.data.batch import Forward, collate
from truing.data.tree import Branch, PromptTree
from truing.model.attention import use_tree_attention
from truing.model.policy import Policy
from truing.testing import tiny_model

ROUNDS = 5
PAIRS = 8
VOCABULARY = 32_000
SHAPES = {"long": ((256, 768), (32, 256)), "chat": ((30, 300), (50, 400))}
"""Prompt lengths and completion lengths, as in the field's benchmarks."""


def pairs(shape: str, seed: int) -> list[PromptTree]:
    """Return random pairs of a shape."""
    draw = random.Random(seed)
    prompt, completion = SHAPES[shape]

    def tokens(bounds: tuple[int, int]) -> tuple[int, ...]:
        return tuple(draw.randrange(VOCABULARY) for _ in range(draw.randint(*bounds)))

    def branch(role: str) -> Branch:
        ids = tokens(completion)
        return Branch(token_ids=ids, loss_mask=(True,) * len(ids), role=role)

    return [
        PromptTree(prompt_ids=tokens(prompt), branches=(branch("chosen"), branch("rejected")), sample_id=index)
        for index in range(PAIRS)
    ]


def step(policy: Policy, forward: Forward, trees: list[PromptTree]) -> tuple[float, torch.Tensor, int]:
    """Return CPU seconds of forward and backward, the log-probabilities, and the positions computed."""
    policy.layout = forward
    policy.zero_grad()
    started = time.process_time()
    batch = collate(trees, forward)
    logps = policy(batch).tokens.logps
    logps.sum().backward()
    return time.process_time() - started, logps.detach(), batch.slots


def main() -> None:
    """Print seconds, positions and the ratio."""
    torch.set_num_threads(1)
    model = tiny_model(
        hidden_size=256, layers=6, heads=4, kv_heads=4, vocab_size=VOCABULARY, max_positions=2048, initializer_range=0.02
    )
    use_tree_attention(model)
    policy = Policy(model, "padded")
    for shape in SHAPES:
        ratios, slots = [], {}
        for round_ in range(ROUNDS + 1):
            trees = pairs(shape, round_)
            seconds = {}
            results = {}
            for forward in random.Random(round_).sample(["shared_prefix", "padded"], 2):
                seconds[forward], results[forward], slots[forward] = step(policy, forward, trees)
            assert (results["shared_prefix"] - results["padded"]).abs().max() < 1e-4
            if round_ > 0:  # the first round warms up
                ratios.append(seconds["padded"] / seconds["shared_prefix"])
        print(
            f"DPO policy step, {shape}: padded / shared_prefix = {statistics.median(ratios):.2f} "
            f"(rounds {', '.join(f'{ratio:.2f}' for ratio in sorted(ratios))}; "
            f"positions {slots['padded']:,} and {slots['shared_prefix']:,} in the last round)"
        )


if __name__ == "__main__":
    main()
