"""From the configuration's datasets to the prompt trees of a run."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import attrs

from truing.config.classes import DataConfig, TrainerConfig
from truing.data.columns import shorten
from truing.data.dataset import TreeDataset
from truing.data.encode import Encoded, Encoder
from truing.data.example import DatasetStrategy, Example
from truing.data.files import Row, number_rows
from truing.data.load import describe, load_rows, watch_files_of, watched
from truing.data.report import DataReport
from truing.data.strategies import FunctionStrategy
from truing.data.tree import PromptTree
from truing.data.unpair import Parse, takes_apart, unpairing
from truing.data.watch import Watch
from truing.errors import ConfigError, DataError, RowError
from truing.loss import Layout, PromptTokens

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

_ROWS_AT_ONCE = 256


def prepare(
    sources: Sequence[DataConfig],
    *,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    trainer: TrainerConfig,
    context_length: int | None,
    base_dir: Path,
    config: Any = None,
    prompt_tokens: PromptTokens = "none",
    reserved: int = 1,
    keep_text: bool = False,
) -> tuple[TreeDataset, DataReport]:
    """Return the prompt trees of all datasets, and what became of their rows.

    `config` is what a user's function gets as `cfg`; `prompt_tokens` says which tokens of prompts are counted; `reserved` is how
    many tokens a completion may have that is yet to be sampled; `keep_text` keeps every prompt's text for TreeDataset.text.

    Several datasets follow each other. Where they carry `weight`, one epoch is the longest mixture that repeats no row: dataset i
    of n_i rows has the share w_i = weight_i / sum of weights, and gives floor(w_i * N) of its rows, drawn without replacement
    under trainer.seed, with N = min(n_i / w_i); every epoch has the same rows. Raises ConfigError, DataError or ModelError.
    """
    weights = [source.weight for source in sources]
    if None in weights and any(weights):
        lacking = ", ".join(describe(source) for source in sources if source.weight is None)
        raise ConfigError(f"data: some datasets have a weight, but not {lacking}; give every one a weight to mix them, or none")
    settings = SimpleNamespace(trainer=trainer, data=tuple(sources)) if config is None else config
    encoder = Encoder(tokenizer, layout, prompt_tokens)
    maker = _TreeMaker.create(encoder, trainer, context_length, reserved=reserved, keep_text=keep_text)
    ends = []
    for index, source in enumerate(sources):
        parse = _bind(source.format, layout, settings, index, tokenizer, unpair=source.unpair)
        maker.add(load_rows(source, base_dir), parse, source.on_bad_row)
        ends.append(len(maker.trees))
    maker.check_not_empty(" and ".join(map(describe, sources)))
    if len(sources) > 1 and None not in weights:
        return maker.finish(_mixture(ends, [weight or 0.0 for weight in weights], trainer.seed, sources))
    return maker.finish()


def prepare_rows(
    rows: datasets.Dataset | Iterable[Mapping[str, Any]],
    strategy: DatasetStrategy | FunctionStrategy | None,
    *,
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    trainer: TrainerConfig,
    context_length: int | None,
    config: Any = None,
    prompt_tokens: PromptTokens = "none",
    reserved: int = 1,
    on_bad_row: Literal["error", "skip"] = "error",
    unpair: bool = False,
) -> tuple[TreeDataset, DataReport]:
    """Return the prompt trees of rows that are in memory, as `prepare` does for those of files."""
    maker = _TreeMaker.create(Encoder(tokenizer, layout, prompt_tokens), trainer, context_length, reserved=reserved)
    settings = SimpleNamespace(trainer=trainer, data=()) if config is None else config
    watch = Watch()
    watch_files_of(rows, watch)
    parse = _bind(strategy, layout, settings, 0, tokenizer, unpair=unpair)
    maker.add(watched(number_rows(rows, "dataset"), watch), parse, on_bad_row)
    maker.check_not_empty("the dataset")
    return maker.finish()


def _bind(
    strategy: DatasetStrategy | FunctionStrategy | None,
    layout: Layout,
    config: Any,
    index: int,
    tokenizer: Any,
    *,
    unpair: bool = False,
) -> Parse:
    if strategy is None:
        raise ConfigError("data.format is not set; truing.data.with_formats chooses one by the columns of the first row")
    if takes_apart(strategy.layouts, layout, asked=unpair):
        return unpairing(_bind(strategy, Layout.PAIRED, config, index, tokenizer))
    if layout not in strategy.layouts:
        known = ", ".join(sorted(known.name for known in strategy.layouts))
        raise ConfigError(
            f"data.format: {strategy.name} reads rows for {known}, and the method's layout is {layout.name}; choose another"
        )
    if isinstance(strategy, FunctionStrategy):
        return strategy.bind(layout=layout, config=config, dataset_idx=index, tokenizer=tokenizer)

    def parse(row: Mapping[str, Any]) -> Example | Sequence[Example]:
        try:
            return strategy.parse(row)
        except RowError:
            raise
        except Exception as error:
            raise RowError(f"the format {strategy.name} failed: {type(error).__name__}: {error}") from error

    return parse


def _mixture(ends: Sequence[int], weights: Sequence[float], seed: int, sources: Sequence[DataConfig]) -> list[int]:
    import numpy as np

    sizes = np.diff([0, *ends])
    shares = np.asarray(weights) / sum(weights)
    total = (sizes / shares).min()
    # the small number keeps 0.3 / 0.1 rows, which is 2.9999999999999996, at 3
    counts = np.floor(shares * total + 1e-9).astype(int)
    if 0 in counts:
        at = int(np.argmin(counts))
        has = ", ".join(f"{describe(source)} has {size:,} rows" for source, size in zip(sources, sizes, strict=True))
        raise DataError(
            f"data: the mixture leaves no row of {describe(sources[at])}, of which the share is {shares[at]:.3g}: {has}"
        )
    random = np.random.default_rng(seed)
    drawn = [
        start + np.sort(random.permutation(size)[:count]) for start, size, count in zip([0, *ends], sizes, counts, strict=False)
    ]
    return [int(index) for index in np.concatenate(drawn)]


@attrs.frozen
class _TreeMaker:
    """Adds the trees of one dataset after another, under the run's limits of length."""

    encoder: Encoder
    excess_length: Literal["drop", "truncate", "error"]
    report: DataReport
    trees: TreeDataset
    keep_text: bool
    reserved: int
    """Tokens of a completion that is yet to be sampled."""
    rows: array[int] = attrs.field(factory=lambda: array("q"))
    """Of each tree the number of the row that it was made of."""

    @classmethod
    def create(
        cls, encoder: Encoder, trainer: TrainerConfig, context_length: int | None, *, reserved: int = 1, keep_text: bool = False
    ) -> _TreeMaker:
        longest, longest_prompt = trainer.max_length or context_length, trainer.max_prompt_length
        if longest and context_length and longest > context_length:
            raise ConfigError(
                f"trainer.max_length is {longest}, and the model was made for {context_length} tokens; give at most that, or null"
            )
        if longest and longest_prompt and longest_prompt >= longest:
            raise ConfigError(
                f"trainer.max_prompt_length is {longest_prompt}, which leaves no room for a response within {longest} tokens"
            )
        if longest and longest <= reserved and encoder.layout is Layout.ROLLOUT:
            raise ConfigError(
                f"rollout.max_completion_length is {reserved}, which leaves no room for a prompt within {longest} tokens "
                "(trainer.max_length, or the model's context); lower it"
            )
        if longest and encoder.layout is Layout.ROLLOUT and trainer.excess_length == "truncate":
            longest_prompt = min(longest_prompt or longest, longest - reserved)
        report = DataReport(max_length=longest, max_prompt_length=longest_prompt)
        return cls(encoder, trainer.excess_length, report, TreeDataset(encoder.layout), keep_text, reserved)

    def add(self, rows: Iterable[Row], parse: Parse, on_bad_row: Literal["error", "skip"]) -> None:
        """Read, encode and keep rows, some hundreds at a time, for tokenizers are faster on many texts."""
        remaining = iter(rows)
        while batch := list(itertools.islice(remaining, _ROWS_AT_ONCE)):
            first = self.report.rows_read
            self.report.rows_read += len(batch)
            self.report.rows_unfinished += sum(row.unfinished for row in batch)
            parsed = [_try_parse(row, parse) for row in batch]
            good = (examples for examples in parsed if not isinstance(examples, RowError))
            encoded = iter(self.encoder.encode(list(itertools.chain.from_iterable(good))))
            for number, (row, examples) in enumerate(zip(batch, parsed, strict=True), start=first):
                try:
                    trees = _all_or_none(examples, encoded)
                except RowError as error:
                    self._refuse(row, error, on_bad_row)
                else:
                    self.report.samples_read += len(trees)
                    for tree in trees:
                        self._keep(tree, number, row.where)

    def _refuse(self, row: Row, error: RowError, on_bad_row: Literal["error", "skip"]) -> None:
        if row.breaks_off:
            raise DataError(f"{row.where}: {error}") from error
        if on_bad_row == "error":
            raise DataError(f"{row.where}: {error}. data.on_bad_row: skip leaves such rows out and counts them") from error
        self.report.skip(row.where, str(error))

    def check_not_empty(self, name: str) -> None:
        """Raise DataError where no tree is left."""
        if not len(self.trees):
            raise DataError(f"data: no row of {name} can be trained on: {'; '.join(map(str.strip, self.report.lines()))}")

    def finish(self, chosen: Sequence[int] | None = None) -> tuple[TreeDataset, DataReport]:
        """Return all trees, or the chosen ones in this order, with their report."""
        dataset, report = self.trees, self.report
        if chosen is not None:
            dataset = dataset.select(chosen)
            report.rows_not_mixed = len(self.trees) - len(dataset)
        report.samples_kept = len(dataset)
        report.rows_kept = len({self.rows[index] for index in chosen} if chosen is not None else set(self.rows))
        report.tokens = sum(dataset.length(index) for index in range(len(dataset)))
        return dataset, report

    def _keep(self, encoded: Encoded, row: int, where: str) -> None:
        report = self.report
        if self._drops_prompt(encoded.tree, where):
            report.prompts_too_long += 1
            return
        tree = self._fit(encoded.tree, where)
        if tree is None:
            report.rows_too_long += 1
        elif any(branch.counted == 0 for branch in tree.branches):
            report.rows_nothing_counted += 1
        elif self.encoder.layout is Layout.PAIRED and tree.branches[0].token_ids == tree.branches[1].token_ids:
            report.rows_same_tokens += 1
        else:
            text = self.encoder.prompt_text(encoded, tree) if self.keep_text else None
            self.trees.append(tree, encoded.rendered.example.prompt, text)
            self.rows.append(row)
            report.prompts_split += encoded.prompt_split
            report.prompts_invented += encoded.prompt_invented
            report.notes.update(encoded.rendered.example.notes)
            self._count_cuts(encoded.tree, tree)

    def _drops_prompt(self, tree: PromptTree, where: str) -> bool:
        """Return whether this is a prompt to be answered that is over its limit and left out; one with answers is cut instead.

        Raises DataError where `excess_length` is "error".
        """
        most = self.report.max_prompt_length
        if self.encoder.layout is not Layout.ROLLOUT or self.excess_length == "truncate" or not most:
            return False
        length = len(tree.prompt_ids)
        if length > most and self.excess_length == "error":
            raise DataError(
                f"{where}: a prompt of {length} tokens, over trainer.max_prompt_length {most}; raise it, or set excess_length: "
                "drop or truncate"
            )
        return length > most

    def _fit(self, tree: PromptTree, where: str) -> PromptTree | None:
        """Return the tree within the limits, or None where it is to be dropped; a prompt leaves room for what is to be sampled."""
        if self.report.max_prompt_length:
            tree = _keep_end(tree, self.report.max_prompt_length, self.encoder.tokenizer.bos_token_id)
        longest = self.report.max_length
        length = len(tree.prompt_ids) + max((len(branch.token_ids) for branch in tree.branches), default=self.reserved)
        if longest is None or length <= longest:
            return tree
        if self.excess_length == "error":
            raise DataError(
                f"{where}: {length} tokens, over trainer.max_length {longest}; raise it, or set excess_length: drop or truncate"
            )
        if self.excess_length == "drop":
            return None
        room = longest - len(tree.prompt_ids)
        cut = [attrs.evolve(b, token_ids=b.token_ids[: max(room, 0)], loss_mask=b.loss_mask[: max(room, 0)]) for b in tree.branches]
        return attrs.evolve(tree, branches=tuple(cut))

    def _count_cuts(self, before: PromptTree, after: PromptTree) -> None:
        self.report.prompts_truncated += len(after.prompt_ids) < len(before.prompt_ids)
        for whole, cut in zip(before.branches, after.branches, strict=True):
            if len(cut.token_ids) < len(whole.token_ids):
                self.report.completions_truncated += 1
                self.report.ends_lost += self.encoder.has_end(whole.token_ids)


def _try_parse(row: Row, parse: Parse) -> Sequence[Example] | RowError:
    """Return the samples that a row gives, one at least, or why it gives none."""
    if row.problem is not None:
        return RowError(row.problem)
    try:
        parsed = parse(row.columns)
    except RowError as error:
        return error
    examples = [parsed] if isinstance(parsed, Example) else parsed
    if not isinstance(examples, (list, tuple)) or not all(isinstance(example, Example) for example in examples):
        return RowError(f"the format must make an Example of the row, or a list of them, and made {shorten(parsed)}")
    return examples or RowError("the format makes no sample of the row, and does not say why")


def _all_or_none(examples: Sequence[Example] | RowError, encoded: Iterator[Encoded | RowError]) -> list[Encoded]:
    """Return the next trees, those of one row's samples. Raises RowError where one of them has none: the row is not split."""
    if isinstance(examples, RowError):
        raise examples
    trees = []
    # all are taken, for the next row's follow
    for result in list(itertools.islice(encoded, len(examples))):
        if isinstance(result, RowError):
            raise result
        trees.append(result)
    return trees


def _keep_end(tree: PromptTree, most: int, bos: int | None) -> PromptTree:
    """Return the tree with the last `most` tokens of its prompt, of which the first is the beginning token if it was there."""
    ids, mask = tree.prompt_ids, tree.prompt_mask
    start = len(ids) - most
    if start <= 0:
        return tree
    first = ids[0] if ids[0] == bos else ids[start]
    # nothing predicts the first
    kept = (False, *mask[start + 1 :]) if any(mask[start + 1 :]) else ()
    return attrs.evolve(tree, prompt_ids=(first, *ids[start + 1 :]), prompt_mask=kept)
