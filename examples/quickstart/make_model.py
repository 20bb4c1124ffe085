"""Makes the quickstart's model from nothing: a chat model of half a million parameters that is right about half of the time.

Its training text answers every prompt in one of three ways, drawn anew each time it is seen: right (50 %), with the task's own
mistake (40 %), or rambling (10 %); see tasks.py. So the model knows the right answers and has bad habits, which is what
preference training is for. The held-out prompts of tasks.py are not in the text.

Run `python examples/quickstart/make_model.py` (about ten minutes on one core; it uses no more, so that their number changes
nothing). It is seeded: the same versions of torch and transformers on the same kind of processor make the same model.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from sampling import answer, as_messages, share_right
from tasks import TASKS, answers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_DIR = Path(__file__).parent / "model"
SEED = 1
BATCH = 96
POOL = 8
PEAK_LEARNING_RATE = 4e-3
CONTEXT = 128
KINDS = ("right", "habit", "ramble")
SHARES = (0.50, 0.40, 0.10)
SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>")
FRAMES = (
    *(
        "system",
        "user",
        "assistant",
        "What is the opposite of",
        "Name the opposite",
        "Count from to",
        "Repeat the word:",
        "Reverse:",
    ),
    *("Say in capitals.", "Greet politely.", "Good day, dear", "Hey", "not", "Good question! I would say, I think."),
)
"""What prompts and answers share: the words that are tokens."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are the bytes, and the words that all prompts and answers of a task share.

    Everything else (names, numbers, the words to spell) is spelled in bytes, so any text can be written and read back.
    """
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({piece for frame in FRAMES for piece, _ in split.pre_tokenize_str(frame) if len(piece) > 1})
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *sorted(split.alphabet()), *words])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a small Llama with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, max_new_tokens=48
    )
    return model


def draw_row(rng: random.Random, prompts: list[list[str]], tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """Return the tokens of a task's prompt, and those of one of the three answers to it."""
    prompt = rng.choice(rng.choice(prompts))
    text = getattr(answers(prompt), rng.choices(KINDS, SHARES)[0])
    before = tokenizer.apply_chat_template(as_messages(prompt), tokenize=False, add_generation_prompt=True)
    return tokenizer(before)["input_ids"], tokenizer(f"{text}<|im_end|>\n")["input_ids"]


def collate(rows: list[tuple[list[int], list[int]]], pad: int) -> dict[str, torch.Tensor]:
    """Return input_ids, attention_mask and labels, each [rows, tokens]; only the answer and its end are learned."""
    width = max(len(prompt) + len(text) for prompt, text in rows)
    rests = [width - len(prompt) - len(text) for prompt, text in rows]
    padded = [(prompt, text, rest) for (prompt, text), rest in zip(rows, rests, strict=True)]
    return {
        "input_ids": torch.tensor([[*prompt, *text, *[pad] * rest] for prompt, text, rest in padded]),
        "attention_mask": torch.tensor([[1] * (width - rest) + [0] * rest for rest in rests]),
        "labels": torch.tensor([[-100] * len(prompt) + text + [-100] * rest for prompt, text, rest in padded]),
    }


def draw_batches(tokenizer: PreTrainedTokenizerFast, steps: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yield batches of rows of like length, which saves padding."""
    rng = random.Random(SEED)
    prompts = [task.split()[0] + list(task.drills) for task in TASKS]
    for start in range(0, steps, POOL):
        rows = sorted((draw_row(rng, prompts, tokenizer) for _ in range(POOL * BATCH)), key=lambda row: len(row[0]) + len(row[1]))
        batches = [rows[first : first + BATCH] for first in range(0, len(rows), BATCH)]
        for batch in rng.sample(batches, min(POOL, steps - start)):
            yield collate(batch, tokenizer.pad_token_id)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int) -> None:
    """Train on freshly drawn examples, with a one-cycle learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.1)
    started, recent = time.monotonic(), 0.0
    for step, batch in enumerate(draw_batches(tokenizer, steps), start=1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent += loss.item()
        if step % 100 == 0:
            print(f"step {step}/{steps}  loss {recent / 100:.3f}  {time.monotonic() - started:.0f} s", flush=True)
            recent = 0.0


def report(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print how much of what it is asked the model gets right, on the held-out prompts."""
    total: dict[str, list[float]] = {"sampled": [], "greedy": []}
    for task in TASKS:
        prompts = task.split()[1]
        sampled = share_right(prompts * 8, answer(model, tokenizer, prompts * 8, seed=SEED))
        greedy = share_right(prompts, answer(model, tokenizer, prompts))
        total["sampled"].append(sampled)
        total["greedy"].append(greedy)
        print(f"{task.name:10s} right: {sampled:4.0%} sampled, {greedy:4.0%} greedy")
    for way, shares in total.items():
        print(f"right over all tasks, {way}: {sum(shares) / len(shares):.0%}")


def main() -> None:
    """Train, save, and say how good the model is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=MODEL_DIR, help="folder for the model (default: beside this script)")
    parser.add_argument("--steps", type=int, default=2800, help="training steps (default: %(default)s)")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, arguments.steps)
    model.eval()
    report(model, tokenizer)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
