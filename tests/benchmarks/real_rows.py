"""Real rows of many shapes through `truing preview`, and through two steps of every method that can read them.

python -m tests.benchmarks.real_rows DATA STORIES [--rows 60] [--only WORD]

DATA is a folder with the files that `SOURCES` names, STORIES one with a small pretrained model of 512 positions and no chat
template. Sources of plain text whose prompts are short go to it; all others to a random model of 4,096 positions, with a tokenizer
that is made of the data and a ChatML template. Prints one line per source and method: rows read, samples kept, what became of
the others, and the losses of the two steps. Exits 1 where one of them failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
from click.testing import CliRunner

from truing.cli import main as truing
from truing.loss import Layout
from truing.registry import Registry
from truing.testing import tiny_model, tiny_tokenizer

READERS = '''
"""Rows of shapes that no format reads, as rows of core's formats."""

def foundry(cfg, dataset_idx):
    def read(row):
        return {"prompt": row["input"]["messages"], "chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    return read

def llmbar(cfg, dataset_idx):
    def read(row):
        best, other = (1, 2) if row["label"] == 1 else (2, 1)
        return {"prompt": row["input"], "chosen": row[f"output_{best}"], "rejected": row[f"output_{other}"]}
    return read, {"remove_columns": "__all__"}

def pandalm(cfg, dataset_idx):
    def read(row):
        votes = [row[f"annotator{number}"] for number in (1, 2, 3)]
        best, other = (1, 2) if votes.count(1) >= votes.count(2) else (2, 1)
        prompt = f"{row['instruction']}\\n{row['input']}"
        return {"prompt": prompt, "chosen": row[f"response{best}"], "rejected": row[f"response{other}"]}
    return read, {"remove_columns": "__all__"}

def solutions(cfg, dataset_idx):
    def read(row):
        found = row["6b_finetuning"]
        return {"prompt": row["question"], "completion": found["solution"], "label": found["is_correct"]}
    return read, {"remove_columns": "__all__"}

def instructions(cfg, dataset_idx):
    def read(row):
        instance = row["instances"][0]
        return {"prompt": f"{row['instruction']}\\n{instance['input']}\\n", "completion": instance["output"]}
    return read, {"remove_columns": "__all__"}
'''


@attrs.frozen
class Source:
    """A file, the format that reads it, and for which layouts; no format is the one that its columns say."""

    file: str
    format: str | None
    layouts: tuple[Layout, ...]
    stories: bool = False
    """Whether it goes to the pretrained model."""
    unpair: bool = False
    """Whether its pairs are to be taken apart, where the format reads labels too."""


PAIRED, LABELED, RANKED, SINGLE = Layout.PAIRED, Layout.LABELED, Layout.RANKED, Layout.SINGLE
SOURCES = (
    Source("hh_rlhf_harmless_base_test", None, (PAIRED, LABELED)),
    Source("llamafactory_dpo_en_demo", None, (PAIRED,)),
    Source("orpo_messages", None, (PAIRED,)),
    Source("orpo_messages", "chat_template.argilla_chat", (PAIRED,)),
    Source("orpo_messages", "chat_template.argilla", (PAIRED,)),
    Source("orpo_messages", "chatml.argilla_chat", (PAIRED,)),
    Source("orca_dpo_pairs_flat", "chatml.intel", (PAIRED,)),
    Source("orca_dpo_pairs_flat", "chatml.intel", (LABELED,), unpair=True),
    Source("orca_dpo_pairs_flat", "llama3.intel", (PAIRED,)),
    Source("dpo_en_demo_system_flat", "chatml.intel", (PAIRED,)),
    Source("orca_dpo_pairs_foundry", "readers.foundry", (PAIRED,)),
    Source("llmbar", "readers.llmbar", (PAIRED,), stories=True),
    Source("pandalm_human_votes", "readers.pandalm", (PAIRED,), stories=True),
    Source("trl_zen_standard_preference", None, (PAIRED, LABELED), stories=True),
    Source("trl_zen_conversational_preference", None, (PAIRED, LABELED)),
    Source("trl_zen_conversational_implicit_prompt_preference", None, (PAIRED, LABELED)),
    Source("llamafactory_kto_en_demo", None, (LABELED,)),
    Source("trl_zen_standard_unpaired_preference", None, (LABELED,), stories=True),
    Source("trl_zen_conversational_unpaired_preference", None, (LABELED,)),
    Source("gsm8k_model_solutions", "readers.solutions", (LABELED,), stories=True),
    Source("oasst_ranked", None, (RANKED,)),
    Source("oasst_ranked", "ranked", (PAIRED, LABELED)),
    Source("llamafactory_kto_en_demo", "text", (SINGLE,)),
    Source("trl_zen_conversational_prompt_completion", None, (SINGLE,)),
    Source("tinystories_openings", None, (SINGLE,), stories=True),
    Source("self_instruct_seed_tasks", "readers.instructions", (SINGLE,), stories=True),
    Source("self_instruct_user_oriented", "readers.instructions", (SINGLE,), stories=True),
)


def make_chat_model(data: Path, folder: Path) -> Path:
    """Write a random model of 4,096 positions and a tokenizer of the data's own words."""
    files = (data / f"{name}.jsonl" for name in ("orpo_messages", "orca_dpo_pairs_flat", "oasst_ranked"))
    lines = (line for file in files for line in file.read_text(encoding="utf-8").split("\n"))
    tokenizer = tiny_tokenizer().train_new_from_iterator(lines, vocab_size=4096, show_progress=False)
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, max_positions=4096, initializer_range=0.02).save_pretrained(folder)
    return folder


def methods(registry: Registry, layout: Layout) -> Sequence[str]:
    """Return the installed methods that learn from collected data of a layout."""
    return registry.names("loss", layout=layout)


def configuration(source: Source, method: str, data: Path, model: Path, rows: int, folder: Path) -> dict[str, Any]:
    """Return what the YAML says."""
    lines = (data / f"{source.file}.jsonl").read_text(encoding="utf-8").split("\n")[:rows]
    file = folder / f"{source.file}.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    return {
        "method": method,
        "model": {"name": str(model)},
        "data": {"path": str(file), "on_bad_row": "skip", "format": source.format, "unpair": source.unpair},
        "trainer": {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-4, "logging_steps": 1, "max_grad_norm": 1.0},
        "output": {"dir": str(folder / "run")},
    }


def cases(only: str) -> Iterator[tuple[Source, str]]:
    """Yield sources with each method of their layouts."""
    registry = Registry.load()
    for source in SOURCES:
        for layout in source.layouts:
            for method in methods(registry, layout):
                if only in f"{source.file} {source.format} {method}":
                    yield source, method


def run_one(source: Source, method: str, data: Path, models: tuple[Path, Path], rows: int) -> bool:
    """Preview and train; print what happened and return whether all went well."""
    name = f"{source.file} {source.format or '(by its columns)'} {method}"
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "readers.py").write_text(READERS)
        config = folder / "run.yaml"
        config.write_text(json.dumps(configuration(source, method, data, models[not source.stories], rows, folder)))
        previewed = CliRunner().invoke(truing, ["preview", str(config), "--json"])
        shown = len(previewed.stdout.splitlines())
        trained = CliRunner().invoke(truing, ["train", str(config)]) if previewed.exit_code == 0 else previewed
        losses: list[str] = []
        if trained.exit_code == 0:
            metrics = (folder / "run" / "metrics.jsonl").read_text().splitlines()
            losses = [f"{json.loads(line)['loss']:.4f}" for line in metrics]
    good = previewed.exit_code == trained.exit_code == 0
    report = "; ".join(previewed.stderr.splitlines()) if good else trained.output.strip().splitlines()[-1:]
    click.echo(f"{'ok  ' if good else 'FAIL'} {name}: {shown} shown; loss {' '.join(losses)}; {report}")
    return good


def main(argv: Sequence[str] | None = None) -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("stories", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--only", default="")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        models = (options.stories.absolute(), make_chat_model(options.data, Path(made) / "model"))
        results = [run_one(source, method, options.data, models, options.rows) for source, method in cases(options.only)]
    click.echo(f"{sum(results)} of {len(results)} went well")
    return 0 if all(results) and results else 1


if __name__ == "__main__":
    sys.exit(main())
