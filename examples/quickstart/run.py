"""What `make quickstart` runs: asks a tiny model some questions, trains DPO on preference pairs, and asks again.

No network, no GPU; it writes a fresh run directory, output/quickstart or output/quickstart-2 and so on. Arguments override keys
of dpo.yaml, as they do for `truing train`: run.py method.beta=0.1 trainer.num_epochs=2.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sampling import answer, preference_accuracy, share_right
from tasks import check_answer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

import truing
from truing.config import TrainConfig, load_config
from truing.errors import TruingError
from truing.registry import Registry
from truing.train.state import TrainState

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CONFIG, SCRIPT = Path("examples/quickstart/dpo.yaml"), "examples/quickstart/run.py"
SHOWN = (
    "What is 8 + 17?",
    "Count from 9 to 12.",
    "Repeat the word: river",
    "Reverse: candy",
    "Say tiger in capitals.",
    "Greet Lucy politely.",
)
SEED = 3
DRAWS = 4
"""Sampled answers for each held-out prompt."""


@dataclass(frozen=True)
class Exam:
    """How a model did on the held-out prompts."""

    texts: list[str]
    """Its sampled answers to SHOWN."""
    right: float
    """Share of right answers among the sampled ones to all held-out prompts."""
    preference: float
    """Share of held-out pairs of which it finds the chosen answer more probable."""

    @classmethod
    def of(cls, model: Any, tokenizer: PreTrainedTokenizerBase, rows: list[dict[str, Any]]) -> Exam:
        """Examine a model on rows of the `preference` format."""
        model.eval()
        prompts = [row["prompt"][0]["content"] for row in rows] * DRAWS
        return cls(
            texts=answer(model, tokenizer, SHOWN, seed=SEED),
            right=share_right(prompts, answer(model, tokenizer, prompts, seed=SEED)),
            preference=preference_accuracy(model, tokenizer, rows),
        )


def marked(prompt: str, text: str) -> Text:
    """Return an answer and whether it is right."""
    verdict = ("  right", "green") if check_answer(prompt, text) else ("  wrong", "red")
    return Text.assemble(text.strip(), verdict)


def show_answers(console: Console, **exams: Exam) -> None:
    """Print sampled answers, a column for each exam."""
    table = Table("held-out prompt", *exams, box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for row, prompt in enumerate(SHOWN):
        table.add_row(prompt, *(marked(prompt, exam.texts[row]) for exam in exams.values()))
    console.print(table)


def fresh_directory(base: Path) -> Path:
    """Return base, or the first of base-2, base-3 ... that does not exist."""
    return next(path for path in chain([base], (Path(f"{base}-{number}") for number in count(2))) if not path.exists())


def say_what_next(console: Console, output: Path) -> None:
    """Print commands to try."""
    programs = Path(sys.executable).parent
    shown = f"{programs.relative_to(ROOT)}/" if programs.is_relative_to(ROOT) else ""
    console.print(f"\nThe trained model is in {output / 'model'}, the metrics of the run in {output / 'metrics.jsonl'}.\n")
    console.print("[bold]What to try next[/bold]")
    for command, what in (
        (f"{shown}truing preview {CONFIG}", "the pairs, as the model sees them"),
        (f"{shown}truing explain method.beta", "what a key does"),
        (f"{shown}python {SCRIPT} method=ipo trainer.learning_rate=1e-4", "another method"),
        (f"{shown}python {SCRIPT} method.rpo_alpha=0", "pure DPO: preferences learned, answers spoilt; then a lower learning rate"),
        (f"{shown}truing train my.yaml", f"your model and data, in a copy of {CONFIG}"),
    ):
        console.print(f"  {command}\n      [dim]{what}[/dim]")


def align(console: Console, config: TrainConfig) -> TrainState:
    """Train, and say how long it took."""
    started = time.monotonic()
    state = truing.align(config=config)
    console.print(f"trained {state.step} steps in {time.monotonic() - started:.0f} s\n")
    return state


def main() -> None:
    """Examine, train, examine again."""
    os.chdir(ROOT)
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # on two busy cores, a second thread made this model train four times slower
    console = Console(highlight=False, soft_wrap=True)
    directory = fresh_directory(Path("output/quickstart"))
    config = load_config(CONFIG, [f"output.dir={directory}", *sys.argv[1:]], registry=Registry.load())
    rows = [json.loads(line) for line in (HERE / "data/eval.jsonl").read_text(encoding="utf-8").splitlines()]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(HERE / "model"), AutoTokenizer.from_pretrained(HERE / "model")
    console.print(
        f"[bold]Truing quickstart[/bold]: {CONFIG} aligns a model of {model.num_parameters():,} parameters on this CPU.\n"
        "The model knows the answers but has bad habits: one too many, the last letter lost, rambling, rudeness.\n"
        f"Preference pairs teach it to answer right and say no more. The {len(rows)} prompts below are in none of them.\n"
    )
    before = Exam.of(model, tokenizer, rows)
    show_answers(console, before=before)
    console.print(f"right: {before.right:.0%} of {DRAWS * len(rows)} sampled answers to {len(rows)} held-out prompts\n")

    state = align(console, config)
    after = Exam.of(state.model, state.tokenizer, rows)
    show_answers(console, before=before, after=after)
    console.print(
        f"\nright answers, sampled         {before.right:5.0%} -> [bold green]{after.right:.0%}[/bold green]\n"
        f"held-out preference accuracy   {before.preference:5.2f} -> [bold green]{after.preference:.2f}[/bold green]"
        "   (chosen more probable than rejected)\n"
        f"held-out implicit rewards            [bold green]{state.metrics['eval_rewards/accuracies']:.2f}[/bold green]"
        "   (chosen gained more than rejected; the loss trains this)"
    )
    say_what_next(console, state.output_dir)


if __name__ == "__main__":
    try:
        main()
    except TruingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
