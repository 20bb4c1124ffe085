"""Attention over a row of prompt trees: a prompt attends to itself, a branch to its own prompt and to itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from truing.data.row import LaterRow, RowLayout
from truing.model import flash_cuda
from truing.model.flash import flash_attention, flash_kernel

# transformers refuses names with "sdpa" or "flash" in them for models that lack those
NAME = "truing_tree"
PLAIN_NAME = "truing_tree_plain"
"""Under which no flash kernel is called."""
LAYER_KINDS = {"full_attention", "sliding_attention"}
HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_router_logits"}
"""What models hand to every attention function, and what changes no result."""


@attrs.frozen(eq=False, kw_only=True)
class Rules:
    """What a layer asks of its attention besides the mask."""

    scale: float | None = None
    """Factor of the scores; None is 1 / sqrt(size of a head)."""
    dropout: float = 0.0
    window: int | None = None
    """Positions that a position sees, itself included."""
    softcap: float | None = None
    """Scores are bounded to it by tanh."""
    sinks: Tensor | None = None
    """[heads] scores that take part in every softmax and have no value."""


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    truing_layout: RowLayout | LaterRow | None = None,
    use_flash: bool = True,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention outputs [1, S, heads, size] for a row of S positions; without a layout, what the mask says.

    `query` is [1, heads, S, size], `key` and `value` [1, key-value heads, S, size]. `options` have the names under which
    transformers' models give them. Raises ValueError for one that this function does not know: ignoring it would be silently wrong.
    Without `use_flash` no flash kernel is called.
    """
    if torch.compiler.is_compiling() and use_flash and isinstance(truing_layout, RowLayout):
        asked = {name: given for name, given in options.items() if given is not None and name not in HARMLESS}
        scale, window = asked.pop("scaling", query.shape[-1] ** -0.5), asked.pop("sliding_window", None)
        plain = asked.pop("dropout", 0.0) == 0.0 and not asked and truing_layout.kept is None
        q, k, v = as_autocast(query, key, value)
        if plain and getattr(module, "is_causal", True) and flash_kernel(q, k, v, truing_layout, window) is flash_cuda:
            assert truing_layout.segments is not None
            return flash_cuda.traced(q, k, v, truing_layout.segments, scale, window), None
    output = _untraced(module, query, key, value, attention_mask, truing_layout=truing_layout, use_flash=use_flash, **options)
    return output, None


def _attention_of_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    truing_layout: RowLayout | LaterRow | None,
    use_flash: bool,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """Return what `tree_attention` does where nothing is compiled."""
    rules = Rules(scale=scaling, dropout=dropout, window=sliding_window, softcap=softcap, sinks=s_aux)
    if truing_layout is None:
        return _masked(query, key, value, attention_mask, rules).transpose(1, 2).contiguous()
    unknown = [name for name, given in others.items() if given is not None and name not in HARMLESS]
    if unknown or not getattr(module, "is_causal", True):
        raise ValueError(f"{type(module).__name__} asks for attention with {', '.join(unknown) or 'no causal order'}")
    if rules.window is not None and truing_layout.reach <= rules.window:
        rules = attrs.evolve(rules, window=None)
    query, key, value = as_autocast(query, key, value)
    if isinstance(truing_layout, LaterRow):
        assert truing_layout.kept is not None
        return _over_kept(query, key, value, truing_layout, truing_layout.kept.take(module), rules)
    if truing_layout.kept is not None:
        truing_layout.kept.put(module, key, value)
    flash = use_flash and not (rules.dropout or rules.softcap)
    if flash and (kernel := flash_kernel(query, key, value, truing_layout, rules.window)):
        scale = query.shape[-1] ** -0.5 if rules.scale is None else rules.scale
        return flash_attention(query, key, value, truing_layout, scale, rules.sinks, kernel, rules.window)
    return _per_branch(query, key, value, truing_layout, rules)


_untraced: Callable[..., Tensor] = torch.compiler.disable(_attention_of_row)
"""The compiler would write the trees of one row into its program."""


def as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Cast as autocast would if it knew flash kernels; what rotary embeddings return is fp32."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def _per_branch(query: Tensor, key: Tensor, value: Tensor, layout: RowLayout, rules: Rules) -> Tensor:
    """Return [1, S, heads, size] by one call per prompt and per branch: right for every rule and device; nothing is padded."""
    # one split instead of many slices: the backward of a slice writes a whole row of zeros
    queries, keys, values = (iter(tensor.split(layout.sizes, dim=2)) for tensor in (query, key, value))
    pieces: list[Tensor] = []
    for tree in layout.trees:
        q, prompt_k, prompt_v = next(queries), next(keys), next(values)
        pieces.append(_attend(q, prompt_k, prompt_v, None, rules))
        for _ in tree.branches:
            q, k, v = next(queries), next(keys), next(values)
            if q.shape[2] > 0:
                pieces.append(_attend(q, torch.cat((prompt_k, k), dim=2), torch.cat((prompt_v, v), dim=2), None, rules))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous()


def _over_kept(query: Tensor, key: Tensor, value: Tensor, layout: LaterRow, kept: tuple[Tensor, Tensor], rules: Rules) -> Tensor:
    """Return [1, S, heads, size] of branches whose prompts' keys and values are ranges of those kept."""
    pieces: list[Tensor] = []
    for tree in layout.trees:
        prompt = slice(*tree.prompt)
        for own in (slice(start, stop) for start, stop in tree.branches if start < stop):
            k, v = (
                torch.cat((before[:, :, prompt], now[:, :, own]), dim=2) for before, now in zip(kept, (key, value), strict=True)
            )
            pieces.append(_attend(query[:, :, own], k, v, None, rules))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous()


def _masked(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: Rules) -> Tensor:
    """Return [batch, heads, Q, size] as the model's own mask says, which has the window in it; no mask is causal."""
    return _attend(query, key, value, mask, attrs.evolve(rules, window=None))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: Rules) -> Tensor:
    """Return [batch, heads, Q, size] for queries that are the last Q of K positions; `mask` is bool, None is causal."""
    count, reach = query.shape[2], key.shape[2]
    plain = rules.softcap is None and rules.sinks is None
    if mask is None and plain and rules.window is None and count in (1, reach):
        return _sdpa(query, key, value, None, rules, is_causal=count > 1)
    visible = _sees(count, reach, rules.window, query.device) if mask is None else mask
    return _sdpa(query, key, value, visible, rules) if plain else _written_out(query, key, value, visible, rules)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rules: Rules, *, is_causal: bool = False) -> Tensor:
    key, value = _repeat_heads(key, query), _repeat_heads(value, query)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=rules.dropout, is_causal=is_causal, scale=rules.scale
    )


def _written_out(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, rules: Rules) -> Tensor:
    """Return the attention of `_attend` by its definition, with all scores in memory at once."""
    scale = query.shape[-1] ** -0.5 if rules.scale is None else rules.scale
    scores = query @ _repeat_heads(key, query).transpose(-1, -2) * scale
    if rules.softcap is not None:
        scores = rules.softcap * (scores / rules.softcap).tanh()
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    # not -inf: padding on the left sees nothing, and its NaN would reach what it is masked from, times zero
    scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if rules.sinks is not None:
        column = rules.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = scores.softmax(-1)[..., : key.shape[2]].to(value.dtype)
    return dropout(weights, rules.dropout) @ _repeat_heads(value, query)


def _repeat_heads(tensor: Tensor, query: Tensor) -> Tensor:
    groups = query.shape[1] // tensor.shape[1]
    return tensor.repeat_interleave(groups, dim=1) if groups > 1 else tensor


def _sees(count: int, reach: int, window: int | None, device: torch.device) -> Tensor:
    """Return [count, reach] bool for the last `count` of `reach` positions: each sees those before it and itself."""
    visible = torch.ones(count, reach, dtype=torch.bool, device=device).tril(reach - count)
    return visible if window is None else visible.triu(reach - count - window + 1)


def use_tree_attention(model: PreTrainedModel, *, flash: bool = True) -> None:
    """Make the model call `tree_attention`; calls without a layout (generation) keep the model's own masks and results."""
    name = NAME if flash else PLAIN_NAME
    AttentionInterface.register(name, partial(tree_attention, use_flash=flash))
    AttentionMaskInterface.register(name, sdpa_mask)
    model.set_attn_implementation(name)


def own_attention(model: PreTrainedModel) -> str:
    """Return the name of the model's attention, that of the library where `use_tree_attention` replaced it."""
    name: str = model.config._attn_implementation
    if name not in (NAME, PLAIN_NAME):
        return name
    return "sdpa" if model._supports_sdpa else "eager"


def use_own_attention(model: PreTrainedModel) -> None:
    """Undo `use_tree_attention`."""
    model.set_attn_implementation(own_attention(model))


def why_not_shared_prefix(model: PreTrainedModel) -> str | None:
    """Return why this model cannot run on rows of prompt trees, or None when nothing speaks against it.

    Only what a model declares is looked at here; whether its numbers agree is for the probe to say.
    """
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return f"{config.model_type} models do not take an attention function from outside"
    others = set(getattr(config, "layer_types", None) or ()) - LAYER_KINDS
    if others:
        return f"{config.model_type} has layers of type {', '.join(sorted(others))}"
    return None
