"""The matmul limit: how long a step would take if it were nothing but the matrix products that it cannot do without.

Counted are the products of the linear layers, at every position of the batch that something is predicted from (each prompt once,
each completion without its last token), and of the head, at every token that is predicted: 2 operations per weight in the policy's
forward, 4 in its backward, 2 in the reference's forward where that is in the step. A mismatched completion has no backward. A
reward model reads the last token of a completion too, and its head is too narrow to count. Under an adapter the frozen weights
need no gradient of their own: 2 in the backward. Attention's own products, norms, the softmax over the vocabulary, the optimiser,
and products that a method chooses to do twice are not counted: they are overhead. The rate is the best that this machine reaches
on any of the model's own products.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache

import torch

from tests.benchmarks.profiles import LORA_RANK, Case, Shape, TokenCounts

POSITIONS = 2048
HEAD_TOKENS, HEAD_WORDS = 1024, 2048
REPEATS = 5


def linear_shapes(shape: Shape) -> list[tuple[int, int]]:
    """Return inputs and outputs of every linear layer of a block: four of attention and three of the MLP."""
    hidden, inner = shape.hidden, shape.intermediate
    return [(hidden, hidden), (hidden, hidden // shape.groups)] * 2 + [(hidden, inner)] * 2 + [(inner, hidden)]


def useful_operations(case: Case, counts: TokenCounts) -> float:
    """Return the floating-point operations of a step's matrix products, as the module defines them."""
    shape, method = case.shape, case.method
    per_position = shape.layers * sum(inputs * outputs for inputs, outputs in linear_shapes(shape))
    if method.family == "rm":
        return float((2 + 4) * counts.unique * per_position)
    per_target = shape.hidden * shape.vocabulary
    products = counts.positions * per_position + counts.targets * per_target
    untrained = counts.untrained_positions * per_position + counts.untrained_targets * per_target
    reference = 2 if method.reference and not method.precomputed else 0
    if not method.lora:
        return float((2 + 4 + reference) * products - 4 * untrained)
    adapters = counts.positions * shape.layers * sum(LORA_RANK * (inputs + outputs) for inputs, outputs in linear_shapes(shape))
    return float((2 + 2 + reference) * products + (2 + 4) * adapters)


@cache
def best_rate(shape: Shape, seconds: float = 0.1) -> float:
    """Return operations per CPU second of the fastest of the model's products: forward and the backward's two.

    Each is repeated for `seconds`, five times.
    """
    return max(_rate(*product, seconds) for product in _products(shape))


def _products(shape: Shape) -> Iterable[tuple[int, int, int]]:
    for inputs, outputs in set(linear_shapes(shape)):
        yield POSITIONS, inputs, outputs
        yield POSITIONS, outputs, inputs
        yield outputs, POSITIONS, inputs
    yield HEAD_TOKENS, shape.hidden, HEAD_WORDS
    yield HEAD_TOKENS, HEAD_WORDS, shape.hidden
    yield HEAD_WORDS, HEAD_TOKENS, shape.hidden


def _rate(rows: int, inner: int, columns: int, seconds: float) -> float:
    left, right, out = torch.randn(rows, inner), torch.randn(columns, inner).t(), torch.empty(rows, columns)
    torch.mm(left, right, out=out)
    best = 0.0
    for _ in range(REPEATS):
        done, started = 0, time.process_time()
        while (spent := time.process_time() - started) < seconds:
            torch.mm(left, right, out=out)
            done += 1
        best = max(best, done * 2 * rows * inner * columns / spent)
    return best
