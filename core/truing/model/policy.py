"""A causal language model that takes prompt trees and gives the log-probabilities of their completions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import attrs
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from truing.data.batch import BatchPart, TreeBatch
from truing.data.layouts import LAYOUT_ARGUMENT, Forward
from truing.data.row import KeptKeys
from truing.loss import Layout, LossInputs, Needs
from truing.model.attention import own_attention
from truing.model.cached import cached_hidden
from truing.model.head import Part, fused_loss, score_logits, score_tokens, tokens_together
from truing.model.lent import lent
from truing.model.logits import Head, TokenScores, wide

OFFERED = (
    Needs.REFERENCE_LOGPS
    | Needs.MISMATCHED_LOGPS
    | Needs.PROMPT_LOGPS
    | Needs.ENTROPY
    | Needs.SQUARED_PROBS
    | Needs.SCORES
    | Needs.NO_LOGPS
)
"""What the forward and the reference can give a loss of any layout."""
OFFERED_ONLINE = Needs.BEHAVIOR_LOGPS | Needs.PROXIMAL_LOGPS | Needs.REWARDS | Needs.VALUES
"""What only a loss that samples its completions can have."""
_READ_HIDDEN = Needs.VALUES | Needs.SCORES | Needs.NO_LOGPS
"""What is read off the decoder's output by another head than that which predicts tokens, or by that one not at all."""


@attrs.frozen(eq=False)
class PolicyOutput:
    """What one forward says of a batch's T counted completion tokens, and of its Q counted prompt tokens."""

    tokens: TokenScores | None
    """None where no log-probability is asked for."""
    prompt_tokens: TokenScores | None = None
    values: Tensor | None = None
    """[T] of the value head, at each token's predictor."""
    scores: Tensor | None = None
    """[B] of the score head, at each branch's last token."""
    mismatched_logps: Tensor | None = None
    """[M] log-probabilities of mismatched completions' counted tokens, without gradient."""

    @property
    def logps(self) -> Tensor:
        """[T + M] log-probabilities of the counted completion tokens, then those of mismatched ones if they were asked for."""
        assert self.tokens is not None
        return self.tokens.logps if self.mismatched_logps is None else torch.cat((self.tokens.logps, self.mismatched_logps))

    def differentiable(self) -> dict[str, Tensor]:
        """Return what is there and has a gradient, by the names of LossInputs' fields."""
        named = {
            "token_logps": self.tokens.logps if self.tokens else None,
            "token_entropy": self.tokens.entropy if self.tokens else None,
            "token_squared_probs": self.tokens.squared_probs if self.tokens else None,
            "token_values": self.values,
            "prompt_token_logps": self.prompt_tokens.logps if self.prompt_tokens else None,
            "scores": self.scores,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}


Score = Callable[[Tensor, Tensor], TokenScores]
"""Scores targets [N] at predictors [N]."""


class Objective(Protocol):
    """What becomes of a forward: its share of the step's loss. Called with whole trees, each of them once."""

    @property
    def divisible(self) -> bool:
        """Whether it may be called for some trees of the batch at a time."""

    def __call__(self, part: BatchPart, output: PolicyOutput) -> Tensor:
        """Return the loss of a part, a scalar."""


class Policy(nn.Module):
    """Wraps a transformers model, with or without a peft adapter; its code is untouched.

    Called with a TreeBatch it returns a PolicyOutput, or a loss where it is given an Objective. It runs the decoder and then the
    head at counted positions only. For a model whose logits are more than a Head, `own_logits` asks the model itself for them.
    `value_head` and `score_head`, [1, H] each, read the decoder's output where `needs` names VALUES or SCORES. Where it names
    NO_LOGPS, the decoder and these are all that runs. Values are those of `critic`, where that is a model of its own, with a value
    head and the same layout. All that is said of tokens is of the softmax of the logits divided by `temperature`, as they were
    sampled.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        forward: Forward,
        *,
        own_logits: bool = False,
        value_head: nn.Linear | None = None,
        score_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.layout = forward
        self.own_logits = own_logits
        self.value_head = value_head
        self.score_head = score_head
        self.critic: Policy | None = None
        self.temperature = 1.0

    @property
    def causal_lm(self) -> PreTrainedModel:
        """The transformers model, with adapter layers in it if there are any."""
        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    def adopt_forward(self, other: Policy) -> None:
        """Compute as `other` does, whose model is of the same class."""
        self.layout, self.own_logits = other.layout, other.own_logits
        self.causal_lm.set_attn_implementation(other.causal_lm.config._attn_implementation)

    @property
    def heads(self) -> dict[str, nn.Module]:
        """What trains beside the model, by the names that its weights have in a checkpoint."""
        parts = {"score_head": self.score_head, "value_head": self.value_head, "critic": self.critic}
        return {name: part for name, part in parts.items() if part is not None}

    def forward(
        self, batch: TreeBatch, needs: Needs = Needs.NOTHING, *, adapter: bool = True, objective: Objective | None = None
    ) -> PolicyOutput | Tensor:
        """Score the batch's counted tokens; `adapter=False` scores them with the adapter off.

        With an objective, return the sum of its values over the parts of the batch. Their gradients are the same either way; where
        the objective is divisible and the head linear, they are taken part by part while the part's logits are there.
        """
        with nullcontext() if adapter else self._adapter_off():
            of_critic = Needs.NOTHING if self.critic is None else Needs.VALUES  # which it reads off its own decoder
            hidden = self._hidden(batch, needs) if needs & _READ_HIDDEN & ~of_critic or not self.own_logits else None
            if hidden is None or (self.own_logits and Needs.NO_LOGPS not in needs):
                logits = _in_rows(lambda inputs: self.causal_lm(**inputs, use_cache=False).logits, batch, needs)

                def score_own(at: Tensor, targets: Tensor) -> TokenScores:
                    return score_logits(logits[at] / self.temperature, targets, needs)

                output = self._output(batch, needs, score_own, hidden)
                return output if objective is None else objective(batch.whole(), output)
            head = Head.of(self.causal_lm).at(self.temperature)

            def score(at: Tensor, targets: Tensor) -> TokenScores:
                return score_tokens(hidden[at], targets, head, needs)

            if objective is not None and self._fuses(head, needs):
                return _fused(hidden, batch, head, needs, objective, _mismatched(batch, needs, score))
            output = self._output(batch, needs, score, hidden)
            return output if objective is None else objective(batch.whole(), output)

    def next_logps(self, ids: Sequence[int]) -> Tensor:
        """Return [len(ids), V] log-probabilities of every token as the one after each of `ids`, by the model's own attention."""
        model = self.causal_lm
        with lent(model, own_attention(model)):
            logits: Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        return logits.to(wide(logits.dtype)).log_softmax(-1)

    def _hidden(self, batch: TreeBatch, needs: Needs) -> Tensor:
        """Return [slots, H], without those of a later row that nothing is read of."""
        decoder = self.causal_lm.get_decoder()
        if self.layout == "cached":
            return cached_hidden(decoder, batch.model_inputs)
        return _in_rows(lambda inputs: decoder(**inputs, use_cache=False).last_hidden_state, batch, needs)

    def _output(self, batch: TreeBatch, needs: Needs, score: Score, hidden: Tensor | None = None) -> PolicyOutput:
        values = scores = None
        if Needs.VALUES in needs and self.critic is not None:
            values = self.critic(batch, Needs.VALUES | Needs.NO_LOGPS).values
        elif hidden is not None and Needs.VALUES in needs and self.value_head is not None:
            values = _read(self.value_head, hidden[batch.predictors])
        if hidden is not None and Needs.SCORES in needs and self.score_head is not None:
            scores = _read(self.score_head, hidden[batch.ends])
        if Needs.NO_LOGPS in needs:
            return PolicyOutput(None, values=values, scores=scores)
        in_prompt = score(batch.prompt_predictors, batch.prompt_targets) if Needs.PROMPT_LOGPS in needs else None
        return PolicyOutput(
            score(batch.predictors, batch.targets),
            in_prompt,
            values=values,
            scores=scores,
            mismatched_logps=_mismatched(batch, needs, score),
        )

    def _fuses(self, head: Head, needs: Needs) -> bool:
        # in fp16 gradients must be scaled before they are rounded, which happens in the backward only
        device = self.causal_lm.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        return head.is_linear and not half and not needs & _READ_HIDDEN and torch.is_grad_enabled()

    @contextmanager
    def _adapter_off(self) -> Iterator[None]:
        """Turn off an adapter in layers, all of which are on: peft's own way first searches all modules for some that are off."""
        assert isinstance(self.model, PeftModel), "only a model with an adapter can turn it off"
        tuner: Any = self.model.base_model
        tuner.disable_adapter_layers()
        try:
            yield
        finally:
            tuner.enable_adapter_layers()


def _in_rows(call: Callable[[Mapping[str, Any]], Tensor], batch: TreeBatch, needs: Needs) -> Tensor:
    """Return what a call gives for each position, [slots, ...]; mismatched branches follow without gradient, if they are read."""
    if batch.later_inputs is None or Needs.MISMATCHED_LOGPS not in needs:
        return call(batch.model_inputs).flatten(0, 1)
    kept = KeptKeys()
    first = call(_keeping(batch.model_inputs, kept))
    with torch.no_grad():
        later = call(_keeping(batch.later_inputs, kept))
    return torch.cat((first.flatten(0, 1), later.flatten(0, 1)))


def _keeping(inputs: Mapping[str, Any], kept: KeptKeys) -> dict[str, Any]:
    return {**inputs, LAYOUT_ARGUMENT: attrs.evolve(inputs[LAYOUT_ARGUMENT], kept=kept)}


def _read(head: nn.Linear, hidden: Tensor) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):  # half precision would blur differences of scores, and saves nothing
        numbers: Tensor = head(hidden.to(head.weight.dtype)).squeeze(-1)
    return numbers.to(wide(numbers.dtype))


@torch.no_grad()
def _mismatched(batch: TreeBatch, needs: Needs, score: Score) -> Tensor | None:
    """Return [M]."""
    if Needs.MISMATCHED_LOGPS not in needs:
        return None
    return score(batch.mismatched_predictors, batch.mismatched_targets).logps


def _fused(
    hidden: Tensor, batch: TreeBatch, head: Head, needs: Needs, objective: Objective, mismatched_logps: Tensor | None
) -> Tensor:
    """Return the objective's value, by way of `fused_loss`."""
    has_prompt = Needs.PROMPT_LOGPS in needs
    predictors, targets = batch.predictors, batch.targets
    if has_prompt:
        predictors, targets = torch.cat((predictors, batch.prompt_predictors)), torch.cat((targets, batch.prompt_targets))

    def fused_part(part: BatchPart) -> Part:
        size, in_prompt = len(part.batch.targets), len(part.batch.prompt_targets) if has_prompt else 0

        def loss(scores: TokenScores) -> Tensor:
            mismatched = None if mismatched_logps is None else mismatched_logps[part.mismatched]
            output = PolicyOutput(scores[:size], scores[size:] if has_prompt else None, mismatched_logps=mismatched)
            return objective(part, output)

        if not in_prompt:
            return Part(part.tokens, size, loss)
        after = len(batch.targets)
        prompt = torch.arange(after + part.prompt_tokens.start, after + part.prompt_tokens.stop, device=targets.device)
        tokens = torch.arange(part.tokens.start, part.tokens.stop, device=targets.device)
        return Part(torch.cat((tokens, prompt)), size + in_prompt, loss)

    parts = batch.parts(tokens_together(head)) if objective.divisible else [batch.whole()]
    return fused_loss(hidden[predictors], targets, head, needs, [fused_part(part) for part in parts])


def loss_inputs(
    batch: TreeBatch,
    output: PolicyOutput,
    layout: Layout,
    *,
    reference_token_logps: Tensor | None = None,
    mismatched_reference_token_logps: Tensor | None = None,
) -> LossInputs:
    """Join what the dataset says of a batch with what the models say, as a loss reads it."""
    mismatched = output.mismatched_logps
    fields: dict[str, Any] = {"token_logps": torch.full(batch.targets.shape, torch.nan, device=batch.targets.device)}
    fields |= output.differentiable()
    known = {field.name for field in attrs.fields(LossInputs)}
    fields |= {name: column for name, column in batch.columns.items() if name in known}
    if batch.advantages is not None:
        fields["advantages"] = batch.advantages
    if reference_token_logps is not None:
        fields["reference_token_logps"] = reference_token_logps
    return LossInputs(
        layout=layout,
        sequence_ids=batch.sequence_ids,
        tree_ids=batch.tree_ids,
        lengths=batch.lengths,
        _on_host=(batch.lengths, tuple(branch.counted for tree in batch.trees for branch in tree.completions)),
        prompt_tree_ids=batch.prompt_tree_ids if output.prompt_tokens else None,
        **fields,
        columns={name: column for name, column in batch.columns.items() if name not in known},
        rewards=batch.rewards,
        truncated=batch.truncated,
        mismatched_token_logps=mismatched,
        mismatched_reference_token_logps=None if mismatched is None else mismatched_reference_token_logps,
        mismatched_sequence_ids=None if mismatched is None else batch.mismatched_sequence_ids,
        labels=batch.labels,
        ranks=batch.ranks,
        margins=batch.margins,
    )
