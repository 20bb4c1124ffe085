"""`truing preview`: samples as the model will get them, and which of their tokens are trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from truing.cli.streams import as_it_is
from truing.data.tree import Branch, PromptTree

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from truing.config import TrainConfig

# what a terminal would obey instead of showing it
_CONTROL: dict[int, int | str] = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
_CONTROL |= {0x7F: 0x2421} | {code: f"\\x{code:02x}" for code in range(0x80, 0xA0)}
# JSON leaves these as they are
_JSON_CONTROL = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
SHOWN = 3
"""How many samples people see who do not say how many."""
_LEGEND = "Trained text stands in [[ ]]; the rest is context."


@click.command("preview")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("-n", "count", type=click.IntRange(min=0), help="Samples to show; 0 shows all. The default is 3, with --json all.")
@click.option("--json", "as_json", is_flag=True, help="Print one object per row, and the counts of rows on standard error.")
def preview(config: Path, overrides: tuple[str, ...], count: int | None, as_json: bool) -> None:
    """Show the first samples of CONFIG's data, tokenised, and what became of the rows. OVERRIDES change single keys."""
    from truing.config import load_config
    from truing.data import prepare
    from truing.data.dataset import tree_to_json
    from truing.data.recognise import with_formats
    from truing.data.tokenizer import load_context_length, load_tokenizer
    from truing.declared import prompt_tokens_of
    from truing.registry import Registry

    registry = Registry.load()
    loaded: TrainConfig
    loaded, chosen = with_formats(load_config(config, overrides, registry=registry), lambda: registry)
    tokenizer = load_tokenizer(loaded.model, loaded.base_dir)
    dataset, report = prepare(
        loaded.data,
        layout=loaded.method.layout,
        tokenizer=tokenizer,
        trainer=loaded.trainer,
        context_length=load_context_length(loaded.model, loaded.base_dir),
        base_dir=loaded.base_dir,
        config=loaded,
        prompt_tokens=prompt_tokens_of(loaded.method),
        keep_text=True,
    )
    wanted = (0 if as_json else SHOWN) if count is None else count
    shown = range(min(wanted or len(dataset), len(dataset)))
    with as_it_is():
        if as_json:
            for index in shown:
                sample = json.dumps(tree_to_json(dataset[index], tokenizer, dataset.text(index)), ensure_ascii=False)
                click.echo(sample.translate(_JSON_CONTROL))
        else:
            _show_all((dataset[index] for index in shown), tokenizer)
    click.echo("\n".join([*chosen, *report.lines()]), err=as_json)


@attrs.frozen
class Span:
    """Neighbouring tokens of one kind, as text."""

    text: str
    counted: bool
    special: bool


def spans(ids: Sequence[int], mask: Sequence[bool], tokenizer: PreTrainedTokenizerBase, before: Sequence[int] = ()) -> list[Span]:
    """Return tokens as text, cut wherever counted turns to uncounted or ordinary to special; `before` precedes them."""
    from truing.data.tokenizer import decode_after

    special_ids = frozenset(tokenizer.all_special_ids)
    kinds = groupby(zip(ids, mask, strict=True), key=lambda pair: (pair[1], pair[0] in special_ids))
    found, seen = [], list(before)
    for (counted, special), pairs in kinds:
        group = [token for token, _ in pairs]
        found.append(Span(decode_after(seen, group, tokenizer), counted, special))
        seen += group
    return found


def _show_all(trees: Iterable[PromptTree], tokenizer: PreTrainedTokenizerBase) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, soft_wrap=True)
    coloured = console.is_terminal and not console.no_color and console.color_system is not None
    if not coloured:
        click.echo(_LEGEND)
    for tree in trees:
        _show(tree, tokenizer, console if coloured else None)


def _show(tree: PromptTree, tokenizer: PreTrainedTokenizerBase, console: Console | None) -> None:
    prompt_mask = tree.prompt_mask or (False,) * len(tree.prompt_ids)
    _show_part(
        f"── sample {tree.sample_id} · prompt · {_tokens(len(tree.prompt_ids), sum(prompt_mask))}",
        spans(tree.prompt_ids, prompt_mask, tokenizer),
        console,
        "dim",
    )
    for branch in tree.branches:
        found = spans(branch.token_ids, branch.loss_mask, tokenizer, before=tree.prompt_ids)
        _show_part(f"── {_name(branch)} · {_tokens(len(branch.token_ids), branch.counted)}", found, console, "bright_black")


def _show_part(heading: str, found: list[Span], console: Console | None, uncounted: str) -> None:
    if console is None:
        click.echo(heading + "\n" + "".join(_marked(found)))
        return
    from rich.text import Text

    console.print(Text(heading, style="bold"))
    body = Text()
    for span in found:
        style = "green" if span.counted else uncounted
        body.append(span.text.translate(_CONTROL), f"{style} reverse" if span.special else style)
    console.print(body)


def _marked(found: list[Span]) -> Iterator[str]:
    for counted, group in groupby(found, key=lambda span: span.counted):
        text = "".join(span.text for span in group).translate(_CONTROL)
        yield f"[[{text}]]" if counted else text


def _name(branch: Branch) -> str:
    known: dict[str, Any] = {"label": branch.label, "rank": branch.rank}
    return ", ".join([branch.role, *(f"{key} {json.dumps(value)}" for key, value in known.items() if value is not None)])


def _tokens(total: int, counted: int) -> str:
    return f"{total} tokens, {counted} trained on"
