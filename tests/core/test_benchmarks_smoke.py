"""The comparison with TRL runs: Truing's side of every method, tiny, without TRL."""

from __future__ import annotations

import attrs
import pytest

from tests.benchmarks import generation, long_completion, stories
from tests.benchmarks.against_trl import SMOKE_CASES, compare, row
from tests.benchmarks.matmul import useful_operations
from tests.benchmarks.profiles import Case, TokenCounts, count, make_batch
from tests.end_to_end.helpers import save_tiny_model, write_rows


@pytest.mark.parametrize("name", SMOKE_CASES)
def test_truings_side_of_a_case_runs(name):
    case = Case.named(name, pairs=3)
    said: list[str] = []
    rounds = compare(case, ["truing"], rounds=1, say=said.append)
    assert "loss" in said[0]
    assert row(case, rounds, rate=1e12, memory="-").startswith(f"| {name} | - | - | ")


def test_a_case_that_does_not_exist_is_refused_with_the_names_that_do():
    with pytest.raises(SystemExit, match=r"no case 'dpo-h1-long'.*h256"):
        Case.named("dpo-h1-long", pairs=8)


def test_batches_of_a_case_differ_by_seed_alone():
    case = Case.named("dpo-h256-chat", pairs=8)
    assert make_batch(case, 1) == make_batch(case, 1) != make_batch(case, 2)
    trees = make_batch(case, 1)
    assert all(30 <= len(tree.prompt_ids) <= 300 for tree in trees)
    assert all(50 <= len(branch.token_ids) <= 400 for tree in trees for branch in tree.branches)


def test_useful_operations_by_hand():
    """Two layers of 4 x 32 x 32 + 3 x 32 x 80 = 11,776 weights and a head of 32 x 300 = 9,600.

    10 positions and 3 targets: 10 x 2 x 11,776 + 3 x 9,600 = 264,320 products; 2 + 4 + 2 operations each with the reference in the
    step, 6 without. Under an adapter 2 + 2 + 2, and 6 for its own 10 x 2 x 16 x (4 x 64 + 3 x 112) = 189,440 products. A reward
    model reads all 12 tokens. Mismatched completions, here 2 of the positions and 1 of the targets, 2 x 2 x 11,776 + 9,600 = 56,704
    products, have no backward.
    """
    counts = TokenCounts(padded=0, real=0, unique=12, positions=10, targets=3)
    for method, expected in {
        "dpo": 8 * 264_320,
        "dpo-precomputed": 6 * 264_320,
        "grpo-1x8": 6 * 264_320,
        "dpo-lora": 6 * 264_320 + 6 * 189_440,
        "rm": 6 * 12 * 2 * 11_776,
    }.items():
        assert useful_operations(Case.named(f"{method}-tiny-tiny", pairs=3), counts) == expected
    mismatched = attrs.evolve(counts, untrained_positions=2, untrained_targets=1)
    assert useful_operations(Case.named("kto-tiny-tiny", pairs=3), mismatched) == 8 * 264_320 - 4 * 56_704


def test_counts_of_mismatched_completions_are_told_apart():
    """Every prompt twice, in two padded batches; prompts that are counted are so from their second token on."""
    trees = make_batch(Case.named("kto-tiny-tiny", pairs=4), 0)
    prompts, completions = (
        [len(ids) for ids in side] for side in zip(*((t.prompt_ids, t.branches[0].token_ids) for t in trees), strict=True)
    )
    others = [completions[-1], *completions[:-1]]
    counts = count(trees)
    assert [len(tree.branches[1].token_ids) for tree in trees] == others
    assert counts.real == 2 * sum(prompts) + 2 * sum(completions)
    assert counts.padded == 4 * max(map(sum, zip(prompts, completions, strict=True))) + 4 * max(
        map(sum, zip(prompts, others, strict=True))
    )
    assert (counts.untrained_targets, counts.untrained_positions) == (sum(completions), sum(completions) - 4)
    assert counts.targets == 2 * sum(completions)
    everything = make_batch(Case.named("sft-all-tiny-tiny", pairs=4), 0)
    assert count(everything).targets == count(everything).unique - 4


def test_counts_of_a_batch_agree_with_its_trees():
    case = Case.named("grpo-3x8-tiny-tiny", pairs=3)
    trees = make_batch(case, 0)
    counts = count(trees)
    assert counts.unique == sum(tree.num_tokens for tree in trees)
    assert counts.real - counts.unique == 7 * sum(len(tree.prompt_ids) for tree in trees)
    assert counts.positions == counts.unique - 24


def test_ways_of_generating_are_compared_on_the_same_lengths():
    case = Case.named("grpo-3x8-tiny-tiny", pairs=1)
    found = generation.speeds(case, ["generate", "plain", "truing"], rounds=1)
    assert {name: len(speed) for name, speed in found.items()} == {"generate": 1, "plain": 1, "truing": 1}
    assert generation.row(case, found).startswith("| grpo-3x8-tiny-tiny | ")


def test_a_long_completion_is_timed_with_the_short_ones_and_without():
    case = Case.named("grpo-1x8-tiny-tiny", pairs=1)
    trees = long_completion.trees_of(case, 50, seed=1)
    assert {name: len(tree.branches) for name, tree in trees.items()} == {"together": 8, "short": 7, "long": 1}
    assert trees["together"].num_tokens - trees["short"].num_tokens == 50
    rounds = long_completion.compare(case, 50, rounds=1)
    assert [done.keys() for done in rounds] == [trees.keys()]
    assert "the last completion of 50 tokens: together / (short + long) = " in long_completion.line(case, 50, rounds)


def test_the_reward_of_the_stories_by_hand():
    """Twelve words are a point, nine and fifteen are three quarters of one, 24 and more are none; "happy" is one more."""
    texts = ["word " * 12, "word " * 9, "happy " * 15, "word " * 30, "happy " * 24]
    assert stories.happy_and_short(texts) == [1.0, 0.75, 1.75, 0.0, 1.0]


def test_a_curve_of_rewards_has_a_mean_of_every_ten_steps():
    curve = stories.Curve(seed=1, rewards=(0.5,) * 10 + (1.0, 2.0), seconds=3.0)
    assert curve.means == {10: 0.5, 12: 1.5}
    assert "last over first 3.00, over the first 10 steps' 3.00" in curve.line


def test_stories_are_trained_on(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    prompts = write_rows(tmp_path / "openings.jsonl", [{"text": f"one and {number} "} for number in range(8)])
    curve = stories.learn(model, prompts, steps=2, seed=1, folder=tmp_path)
    assert len(curve.rewards) == 2 and list(curve.means) == [2]
