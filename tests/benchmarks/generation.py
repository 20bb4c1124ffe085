"""Ways of generating in process: completions of the same lengths to the same prompts, one thread, float32, CPU seconds.

python -m tests.benchmarks.generation [--cases grpo-1x8-h256-long,...] [--rounds 5] [--arms ...]

- generate: the library's generate() as TRL's trainers call it: every prompt repeated for its completions, padded on the left.
- continuous: the library's generate_batch(), which computes a prompt once and lets finished rows go.
- plain: a prompt computed once, the library's cache repeated, finished rows taken out; a group at a time.
- truing: this repository's backend.

Lengths are geometric from the profile's shortest completion on, cut at its longest, the same for all arms but continuous: that one
has no place for them and draws its own, with an end token as probable as gives the same mean. In each round the arms run on the
same prompts in random order. A round's ratio is an arm's tokens per CPU second over those of generate.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from tests.benchmarks.profiles import Case, Profile, make_batch, make_model
from truing import RolloutRequest, Sampling
from truing.model.logits import Head
from truing_transformers.row import Row, rows_of
from truing_transformers.sampler import Sampler
from truing_transformers.shared import SharedPrompts

CASES = ("grpo-1x8-h256-long", "grpo-1x8-h512-long", "grpo-3x8-h256-long", "grpo-3x8-h512-long")
SAMPLES = 8
PAD, END = 0, 1
PAGE = 64
Prompts = Sequence[tuple[int, ...]]
Lengths = Sequence[Sequence[int]]
"""Of each prompt's completions."""


class _Ends(LogitsProcessor):
    """Makes rows end at given lengths."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.count = torch.tensor(lengths), 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.count += 1
        ended = self.lengths <= self.count
        scores[:, END] = -torch.inf
        scores[ended] = -torch.inf
        scores[ended, END] = 0.0
        return scores


def rows_to(prompts: Prompts, lengths: Lengths) -> list[list[Row]]:
    """Return rows that end at given lengths."""
    groups = []
    for number, (prompt, group) in enumerate(zip(prompts, lengths, strict=True)):
        groups.append(rows_of(RolloutRequest(id=str(number), prompt_ids=prompt, seeds=tuple(range(len(group))))))
        for row, length in zip(groups[-1], group, strict=True):
            row.limit = length
    return groups


def generate(model: PreTrainedModel, prompts: Prompts, lengths: Lengths) -> int:
    """Return the tokens of completions, the lengths' sum."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts]).repeat_interleave(SAMPLES, dim=0)
    flat = [length for group in lengths for length in group]
    config = GenerationConfig(
        max_new_tokens=max(flat), do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=END, pad_token_id=PAD
    )
    model.generate(
        ids, attention_mask=(ids != PAD).long(), generation_config=config, logits_processor=LogitsProcessorList([_Ends(flat)])
    )
    return sum(flat)


def plain(model: PreTrainedModel, prompts: Prompts, lengths: Lengths) -> int:
    """Return the tokens of completions, the lengths' sum."""
    sampler = Sampler(Sampling())
    for rows in rows_to(prompts, lengths):
        cache = DynamicCache(config=model.config)
        prompt = torch.tensor([rows[0].request.prompt_ids])
        logits = model(prompt, past_key_values=cache, logits_to_keep=1).logits[:, -1].repeat_interleave(len(rows), dim=0)
        cache.batch_repeat_interleave(len(rows))
        while True:
            tokens, logps = sampler.draw(logits, [row.noise for row in rows])
            for row, token, logp in zip(rows, tokens.tolist(), logps.tolist(), strict=True):
                row.add(token, logp, ends=())
            going = [at for at, row in enumerate(rows) if row.finish_reason is None]
            if not going:
                break
            if len(going) < len(rows):
                rows, tokens = [rows[at] for at in going], tokens[going]
                cache.batch_select_indices(torch.tensor(going))
            logits = model(tokens.unsqueeze(1), past_key_values=cache).logits[:, -1]
    return sum(map(sum, lengths))


def continuous(model: PreTrainedModel, prompts: Prompts, lengths: Lengths) -> int:
    """Return the tokens of completions that end by chance."""
    longest, mean = max(map(max, lengths)), statistics.mean(length for group in lengths for length in group)
    config = GenerationConfig(
        max_new_tokens=longest, do_sample=True, top_k=0, eos_token_id=END, pad_token_id=PAD, num_return_sequences=SAMPLES
    )
    blocks = sum(len(prompt) + SAMPLES * longest for prompt in prompts) // PAGE + 2 * SAMPLES * len(prompts)
    settings = ContinuousBatchingConfig(
        return_logprobs=True, page_size=PAGE, num_blocks=blocks, max_batch_tokens=2048, seed=len(prompts[0])
    )
    bias = torch.zeros(model.config.vocab_size)
    bias[END] = torch.logit(torch.tensor(1 / mean)) + torch.tensor(float(len(bias))).log()
    head = model.lm_head
    model.lm_head = nn.Linear(head.in_features, head.out_features, device="meta")
    model.lm_head.weight, model.lm_head.bias = head.weight, nn.Parameter(bias)
    try:
        found: dict[str, Any] = model.generate_batch(
            [list(prompt) for prompt in prompts], generation_config=config, continuous_batching_config=settings
        )
    finally:
        model.lm_head = head
    return sum(len(output.generated_tokens) for output in found.values())


def truing(model: PreTrainedModel, prompts: Prompts, lengths: Lengths) -> int:
    """Return the tokens of completions, the lengths' sum."""
    groups = rows_to(prompts, lengths)
    return sum(
        len(row.token_ids) for row in SharedPrompts(model, 65_536, Head.of(model)).complete(groups, Sampler(Sampling()), ends=())
    )


ARMS: dict[str, Callable[[PreTrainedModel, Prompts, Lengths], int]] = {
    "generate": generate,
    "continuous": continuous,
    "plain": plain,
    "truing": truing,
}


def geometric(profile: Profile, draw: random.Random) -> int:
    """Return a length: geometric from the shortest on, and at most the longest, which cuts one in twenty."""
    shortest, longest = profile.completion
    return min(longest, shortest + int(draw.expovariate(1 / ((longest - shortest) / 3))))


def speeds(case: Case, arms: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Print and return tokens per CPU second of every round, by arm; a first round warms up."""
    model = make_model(case)
    found: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(rounds + 1):
        prompts = [tree.prompt_ids for tree in make_batch(case, seed)]
        draw = random.Random(f"lengths {seed}")
        lengths = [[geometric(case.profile, draw) for _ in range(SAMPLES)] for _ in prompts]
        for name in draw.sample(arms, len(arms)):
            started = time.process_time()
            with torch.no_grad():
                tokens = ARMS[name](model, prompts, lengths)
            if seed:
                found[name].append(tokens / (time.process_time() - started))
        if seed:
            print(f"{case.name}: {', '.join(f'{name} {speed[-1]:.0f}' for name, speed in found.items())}", flush=True)
    return found


def row(case: Case, found: dict[str, list[float]]) -> str:
    """Return a case's row of the table."""
    cells = []
    for name, values in found.items():
        ratios = sorted(one / base for one, base in zip(values, found["generate"], strict=True))
        spread = f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f}), " if name != "generate" else ""
        cells.append(f"{spread}{statistics.median(values):.0f}")
    return f"| {case.name} | {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.generation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    arms = options.arms.split(",")
    cases = [Case.named(name, pairs=1) for name in options.cases.split(",")]
    rows = [row(case, speeds(case, arms, options.rounds)) for case in cases]
    print("\n".join((f"| case | {' | '.join(arms)} |", f"|{'---|' * (1 + len(arms))}", *rows)))


if __name__ == "__main__":
    main()
