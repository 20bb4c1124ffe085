"""Attention of completions that grow by one token at a time, over their prompts' keys and values and their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from truing.data.row import KeptKeys
from truing.model.attention import HARMLESS, Rules, as_autocast, tree_attention
from truing.model.logits import wide
from truing_transformers.row import Group, Row

# transformers refuses names with "sdpa" or "flash" in them for models that lack those
NAME = "truing_rollout"
STEP_ARGUMENT = "truing_step"
LEAST_ROOM = 16
"""Tokens that a completion's keys and values have room for at first; twice as many whenever it is full."""


@attrs.define(eq=False)
class _Layer:
    """What one attention module keeps; `room` is of tokens, K are key-value heads."""

    prompt_keys: Tensor
    """[N, K, P, size], each prompt at the right end."""
    prompt_values: Tensor
    own_keys: Tensor
    """[R, K, room, size]."""
    own_values: Tensor

    def append(self, key: Tensor, value: Tensor, at: int, limit: int) -> None:
        """Put the rows' next keys and values, [R, K, size]."""
        if at == self.own_keys.shape[2]:
            room = min(max(2 * at, LEAST_ROOM), limit)
            self.own_keys, self.own_values = (_with_room(kept, len(key), room) for kept in (self.own_keys, self.own_values))
        self.own_keys[: len(key), :, at] = key
        self.own_values[: len(value), :, at] = value

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Put rows into the places of others."""
        for kept in (self.own_keys, self.own_values):
            kept[targets] = kept[sources]


def _with_room(kept: Tensor, rows: int, room: int) -> Tensor:
    larger = kept.new_empty(rows, kept.shape[1], room, kept.shape[3])
    larger[:, :, : kept.shape[2]] = kept[:rows]
    return larger


class Batch:
    """Groups of completions that began together: N prompts, R rows that go on, all of which have the same number of tokens.

    A row's query attends to its prompt, together with those of the other rows of the group, and to the row's own keys; one softmax
    is over both. Prompts of unequal lengths are padded on the left; nothing else is.
    """

    def __init__(self, groups: Sequence[Group], kept: KeptKeys) -> None:
        self.kept = kept
        """The prompts' keys and values as they lie in the row that computed them, until each layer takes its own."""
        self.lengths = [len(group[0].request.prompt_ids) for group in groups]
        self.rows = [row for group in groups for row in group]
        self.limit = max(row.limit for row in self.rows)
        self._group_of = [index for index, group in enumerate(groups) for _ in group]
        self._layers: dict[nn.Module, _Layer] = {}
        self._taken = 0
        """Tokens whose keys and values are there or, during a step, come with it."""
        self._arrange()

    @property
    def reserved(self) -> int:
        """Positions whose keys and values it may come to hold."""
        return len(self.lengths) * max(self.lengths) + len(self.rows) * self.limit

    def begin_step(self) -> None:
        """Make room for one more token of each row."""
        self._taken += 1

    def drop_finished(self) -> list[Row]:
        """Take out the rows that are finished, and return them; others move into their places."""
        finished = [row for row in self.rows if row.finish_reason is not None]
        if not finished:
            return []
        count = len(self.rows) - len(finished)
        targets = [at for at, row in enumerate(self.rows[:count]) if row.finish_reason is not None]
        sources = [at for at, row in enumerate(self.rows) if at >= count and row.finish_reason is None]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target], self._group_of[target] = self.rows[source], self._group_of[source]
        del self.rows[count:], self._group_of[count:]
        for layer in self._layers.values() if sources else ():
            device = layer.own_keys.device
            layer.move(torch.tensor(sources, device=device), torch.tensor(targets, device=device))
        if self.rows:
            self._arrange()
        return finished

    def _arrange(self) -> None:
        """Note where each row's query lies among those of its group, and which positions of its prompt are padding."""
        members: list[list[int]] = [[] for _ in self.lengths]
        for at, group in enumerate(self._group_of):
            members[group].append(at)
        self._width = max(map(len, members))
        places = {at: group * self._width + n for group, row in enumerate(members) for n, at in enumerate(row)}
        in_order = [places[at] for at in range(len(self.rows))]
        self._moved = in_order != list(range(len(self.lengths) * self._width))
        self._places = torch.tensor(in_order)
        self._sources = torch.tensor([at for row in members for at in (row + [0] * self._width)[: self._width]])
        self._padding: Tensor | None = None
        if len(set(self.lengths)) > 1:
            first = torch.tensor([max(self.lengths) - self.lengths[group] for group in self._group_of])
            self._padding = torch.arange(max(self.lengths)) < first.unsqueeze(1)

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Return outputs [R, heads, size] for `query` [R, heads, size] and `key`, `value` [R, K, size] of the rows' last tokens."""
        self._to(query.device)
        layer = self._layers.get(module) or self._open(module, key, value)
        layer.append(key, value, self._taken - 1, self.limit)
        rows, heads, size = query.shape
        by_row = query.view(rows, key.shape[1], -1, size)
        prompt, own = self._seen(rules.window)
        reach = prompt.stop - prompt.start
        over_prompt = self._by_row(self._by_prompt(by_row) @ layer.prompt_keys[:, :, prompt].transpose(-1, -2))
        over_own = by_row @ layer.own_keys[:rows, :, own].transpose(-1, -2)
        scores = torch.cat((over_prompt, over_own), -1).to(wide(query.dtype))
        weights = self._weights(scores, rules, prompt).to(value.dtype)
        output = weights[..., reach:] @ layer.own_values[:rows, :, own]
        output += self._by_row(self._by_prompt(weights[..., :reach]) @ layer.prompt_values[:, :, prompt])
        return output.reshape(rows, heads, -1)

    def _weights(self, scores: Tensor, rules: Rules, prompt: slice) -> Tensor:
        """Return the softmax of scores [R, K, heads of one, positions]."""
        assert rules.scale is not None
        scores *= rules.scale
        if rules.softcap is not None:
            scores = rules.softcap * (scores / rules.softcap).tanh()
        if self._padding is not None:
            scores[..., : prompt.stop - prompt.start].masked_fill_(self._padding[:, None, None, prompt], -torch.inf)
        if rules.sinks is None:
            return scores.softmax(-1)
        sinks = rules.sinks.to(scores.dtype).view(1, *scores.shape[1:3], 1).expand(len(scores), -1, -1, 1)
        return torch.cat((scores, sinks), -1).softmax(-1)[..., :-1]

    def _seen(self, window: int | None) -> tuple[slice, slice]:
        """Return which positions of a prompt, its padding counted, and which own ones the last token sees."""
        longest, taken = max(self.lengths), self._taken
        if window is None:
            return slice(0, longest), slice(0, taken)
        return slice(min(longest, max(0, longest + taken - window)), longest), slice(max(0, taken - window), taken)

    def _by_prompt(self, tensor: Tensor) -> Tensor:
        """Return [N, K, width * n, size] from [R, K, n, size]: side by side what belongs to one prompt."""
        if self._moved:
            tensor = tensor[self._sources]
        grouped: Tensor = tensor.unflatten(0, (len(self.lengths), self._width)).transpose(1, 2).flatten(2, 3)
        return grouped

    def _by_row(self, tensor: Tensor) -> Tensor:
        """Undo `_by_prompt`."""
        rows: Tensor = tensor.unflatten(2, (self._width, -1)).transpose(1, 2).flatten(0, 1)
        return rows[self._places] if self._moved else rows

    def _open(self, module: nn.Module, key: Tensor, value: Tensor) -> _Layer:
        heads = key.shape[1]
        prompts = [self._padded(kept) for kept in self.kept.take(module)]
        empty = [tensor.new_empty(len(self.rows), heads, 0, tensor.shape[-1]) for tensor in (key, value)]
        self._layers[module] = layer = _Layer(*prompts, *empty)
        return layer

    def _padded(self, row: Tensor) -> Tensor:
        """Return [N, K, P, size] of prompts that lie behind each other, [1, K, S, size]."""
        longest = max(self.lengths)
        if len(self.lengths) == 1:
            return row.contiguous()
        padded = row.new_zeros(len(self.lengths), row.shape[1], longest, row.shape[3])
        for at, prompt in enumerate(row.split(self.lengths, dim=2)):
            padded[at, :, longest - prompt.shape[2] :] = prompt[0]
        return padded

    def _to(self, device: torch.device) -> None:
        if self._places.device != device:
            self._places, self._sources = self._places.to(device), self._sources.to(device)
            self._padding = None if self._padding is None else self._padding.to(device)


@attrs.frozen(eq=False)
class Step:
    """One more token of each row of some batches, side by side in one row."""

    batches: Sequence[Batch]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
        """Return [1, R, heads, size] for `query` [1, heads, R, size], and `key` and `value` [1, K, R, size]."""
        counts = [len(batch.rows) for batch in self.batches]
        parts = (tensor[0].transpose(0, 1).split(counts) for tensor in as_autocast(query, key, value))
        outputs = [batch.attend(module, *part, rules) for batch, *part in zip(self.batches, *parts, strict=True)]
        return torch.cat(outputs).unsqueeze(0)


def rollout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    truing_step: Step | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """Return attention outputs [1, S, heads, size] for rows that go on, or as core does for their prompts.

    Raises ValueError for an argument that this function does not know: ignoring it would be silently wrong.
    """
    if truing_step is None:
        return tree_attention(module, query, key, value, attention_mask, **asked)
    scale = asked.pop("scaling", None)
    rules = Rules(
        scale=query.shape[-1] ** -0.5 if scale is None else scale,
        window=asked.pop("sliding_window", None),
        softcap=asked.pop("softcap", None),
        sinks=asked.pop("s_aux", None),
    )
    unknown = [name for name, given in asked.items() if given is not None and name not in {*HARMLESS, "dropout"}]
    if unknown:
        raise ValueError(f"{type(module).__name__} asks for attention with {', '.join(unknown)}")
    return truing_step.attend(module, query, key, value, rules), None


AttentionInterface.register(NAME, rollout_attention)
