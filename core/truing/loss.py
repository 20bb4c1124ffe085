"""What a loss plugin is, what it reads and what it returns.

Shape letters, here and everywhere: B branches, P pairs, G branches of one prompt, T counted tokens, R rewards.
Log-probabilities are natural logarithms; `logps` is the sum over a branch, `mean_logps` its mean. True in a mask means counted.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, get_args

import attrs

if TYPE_CHECKING:
    from torch import Tensor


class Layout(enum.Enum):
    """How many branches a prompt has and what they mean."""

    SINGLE = "single"
    """One completion, or several equal ones (SFT)."""
    PAIRED = "paired"
    """Two: chosen, then rejected."""
    RANKED = "ranked"
    """Two or more, best first (K-wise reward models)."""
    LABELED = "labeled"
    """One with a boolean label (KTO)."""
    ROLLOUT = "rollout"
    """Those sampled from the policy; the dataset has prompts only (GRPO, PPO)."""


class Needs(enum.Flag):
    """What a loss reads besides the policy's own log-probabilities of the counted completion tokens.

    It decides which models are loaded and which forwards run.
    """

    NOTHING = 0
    REFERENCE_LOGPS = enum.auto()
    """`reference_token_logps`; a reference is loaded."""
    MISMATCHED_LOGPS = enum.auto()
    """`mismatched_token_logps`, and the reference's where REFERENCE_LOGPS is named too; the LABELED layout."""
    BEHAVIOR_LOGPS = enum.auto()
    """`behavior_token_logps`, those of the sampler."""
    PROXIMAL_LOGPS = enum.auto()
    """`proximal_token_logps`, those of the policy before its first step on the samples."""
    PROMPT_LOGPS = enum.auto()
    """`prompt_token_logps`; prompt tokens are counted too."""
    ENTROPY = enum.auto()
    """`token_entropy`."""
    SQUARED_PROBS = enum.auto()
    """`token_squared_probs`."""
    VALUES = enum.auto()
    """`token_values`, a critic's."""
    SCORES = enum.auto()
    """`scores`, a score head's."""
    REWARDS = enum.auto()
    """`rewards` and `reward_weights`; in `rollout_needs`."""
    NO_LOGPS = enum.auto()
    """No log-probability is read: the head that predicts tokens does not run, nor train unless the decoder shares its weights."""


@attrs.frozen(eq=False, kw_only=True)
class LossInputs:
    """What a loss sees of a batch: ragged and flat, no padding, T counted tokens of B branches in tree order.

    Every [T] tensor is aligned with `token_logps`; tokens of a branch are contiguous and in order. Fields that the loss did not
    ask for in `needs` are None.
    """

    layout: Layout
    token_logps: Tensor
    """[T] policy log-probability of each counted token.

    It carries a gradient, and so do token_entropy, token_squared_probs, token_values, scores and prompt_token_logps; no other field
    does. NaN, without a gradient, where the loss's `needs` names NO_LOGPS.
    """
    sequence_ids: Tensor
    """[T] int64, the branch that each token belongs to."""
    tree_ids: Tensor
    """[B] int64, the prompt tree that each branch belongs to."""
    lengths: Tensor
    """[B] int64, counted tokens of each branch."""

    token_entropy: Tensor | None = None
    """[T] entropy of the policy's distribution at the position that predicts each token, in nats."""
    token_squared_probs: Tensor | None = None
    """[T] sum over the vocabulary of the policy's squared probabilities there (WPO)."""
    token_values: Tensor | None = None
    """[T] the critic's value at the position that predicts each token."""
    scores: Tensor | None = None
    """[B] the score head's output at each branch's last token."""

    reference_token_logps: Tensor | None = None
    """[T] the reference model's log-probabilities."""
    behavior_token_logps: Tensor | None = None
    """[T] the sampler's log-probabilities, at sampling time."""
    proximal_token_logps: Tensor | None = None
    """[T] the trainer's log-probabilities at the start of the update; None in its first step, where they are `token_logps`."""

    prompt_token_logps: Tensor | None = None
    """[Q] policy log-probability of each counted prompt token, with a gradient."""
    prompt_tree_ids: Tensor | None = None
    """[Q] the tree that each counted prompt token belongs to."""

    mismatched_token_logps: Tensor | None = None
    """[M] policy log-probabilities of a completion of another prompt (KTO's estimate of the KL divergence)."""
    mismatched_reference_token_logps: Tensor | None = None
    """[M] the reference's log-probabilities of the same."""
    mismatched_sequence_ids: Tensor | None = None
    """[M] the labelled branch whose prompt it follows."""

    labels: Tensor | None = None
    """[B] bool, LABELED layout: desirable or not."""
    ranks: Tensor | None = None
    """[B] int64, RANKED layout: 0 is the best of its tree."""
    margins: Tensor | None = None
    """[B] float, the margin that the dataset gives with a pair, repeated for both branches; 0 where a row has none."""
    rewards: Tensor | None = None
    """[B, R] one column per reward; NaN where a reward does not apply."""
    reward_weights: Tensor | None = None
    """[R] the weight that the configuration gives each reward; there wherever `rewards` is."""
    truncated: Tensor | None = None
    """[B] bool, ROLLOUT layout: the completion was cut off at the most tokens it may have."""
    max_completion_length: int | None = None
    """The most tokens that a completion may have, ROLLOUT layout."""
    advantages: Tensor | None = None
    """[T] or [B], as the method's `advantages` returned them."""
    keep: Tensor | None = None
    """[B] bool; a branch with False is in no count and must be in no term. None keeps all."""
    columns: Mapping[str, Tensor] = attrs.field(factory=dict)
    """[T] each: what the method's `advantages` asked to carry along."""
    state: Mapping[str, Any] = attrs.field(factory=dict)
    """The loss's own state, from `initial_state` or as it returned it last."""
    _on_host: tuple[Tensor, tuple[int, ...]] | None = attrs.field(default=None, repr=False, alias="_on_host")
    """`lengths`, and their numbers, which are known without waiting for the device as long as `lengths` is that tensor."""

    def sum(self, per_token: Tensor) -> Tensor:
        """Return the sum over each branch, [T] to [B]."""
        return per_token.new_zeros(len(self.lengths)).index_add(0, self.sequence_ids, per_token)

    def mean(self, per_token: Tensor) -> Tensor:
        """Return the mean over each branch's counted tokens, [T] to [B]; 0 for a branch with none."""
        return self.sum(per_token) / self.lengths.clamp(min=1)

    def expand(self, per_branch: Tensor) -> Tensor:
        """Repeat each branch's value for its tokens, [B] to [T]."""
        return per_branch[self.sequence_ids]

    def to_go(self, per_token: Tensor, discount: float = 1.0) -> Tensor:
        """Return the sum from each token to the end of its branch, [T] to [T], a token n further on times discount**n.

        A sum over 2n tokens is made of two over n, so it takes as many vector operations as a length has binary digits.
        """
        lengths = self.known_lengths
        span, longest = 1, int(self.lengths.max()) if lengths is None else max(lengths)
        while span < longest:
            later = per_token.new_zeros(len(per_token))
            later[:-span] = per_token[span:].where(self.sequence_ids[span:] == self.sequence_ids[:-span], 0.0)
            per_token, span = per_token + discount**span * later, 2 * span
        return per_token

    @property
    def known_lengths(self) -> tuple[int, ...] | None:
        """`lengths` as numbers, where they can be had without waiting for the device."""
        return self._on_host[1] if self._on_host is not None and self._on_host[0] is self.lengths else None

    @property
    def weighted_rewards(self) -> Tensor:
        """[B] sum of the rewards that apply, each times its weight; NaN for a branch that has none. Needs REWARDS."""
        if self.rewards is None or self.reward_weights is None:
            raise ValueError("weighted_rewards was read, but the method's `rollout_needs` does not name Needs.REWARDS; add it")
        return (self.rewards * self.reward_weights).nansum(1).masked_fill(self.rewards.isnan().all(1), float("nan"))

    @property
    def kept(self) -> Tensor:
        """[B] bool: `keep`, or True for all where it is None."""
        return self.lengths >= 0 if self.keep is None else self.keep

    @property
    def log_ratios(self) -> Tensor:
        """[T] log of the policy's probability over its own at the start of the update. Needs PROXIMAL_LOGPS.

        In the first step of an update both are the same, so that it is 0, with the gradient of `token_logps`.
        """
        before = self.token_logps if self.proximal_token_logps is None else self.proximal_token_logps
        return self.token_logps - before.detach()

    @property
    def positions(self) -> Tensor:
        """[T] int64: the index of each token among the counted tokens of its branch."""
        starts = self.lengths.cumsum(0) - self.lengths
        return self.lengths.new_ones(len(self.sequence_ids)).cumsum(0) - 1 - self.expand(starts)

    @property
    def logps(self) -> Tensor:
        """[B] sum of the policy's log-probabilities over each branch."""
        return self.sum(self.token_logps)

    @property
    def mean_logps(self) -> Tensor:
        """[B] mean of the policy's log-probabilities over each branch."""
        return self.mean(self.token_logps)

    @property
    def reference_logps(self) -> Tensor:
        """[B] sum of the reference's log-probabilities over each branch. Needs REFERENCE_LOGPS."""
        if self.reference_token_logps is None:
            raise ValueError("reference_logps was read, but the loss's `needs` does not name Needs.REFERENCE_LOGPS; add it")
        return self.sum(self.reference_token_logps)

    @property
    def chosen(self) -> Side:
        """The chosen branches of a PAIRED batch."""
        return Side(self, 0)

    @property
    def rejected(self) -> Side:
        """The rejected branches of a PAIRED batch."""
        return Side(self, 1)


PromptTokens = Literal["none", "assistant", "all"]
"""Which tokens of a prompt are counted: none; those of earlier assistant turns, each with the token that ends it; or all."""

POLICY_FIELDS = ("token_logps", "token_entropy", "token_squared_probs", "token_values", "prompt_token_logps", "scores")
"""The fields of LossInputs that the policy's forward gives, which carry a gradient."""


@attrs.frozen(eq=False)
class Side:
    """One side of a PAIRED batch: its P branches in pair order, or its tokens."""

    inputs: LossInputs
    index: int

    def __attrs_post_init__(self) -> None:
        if self.inputs.layout is not Layout.PAIRED:
            raise ValueError(f"chosen and rejected exist in the PAIRED layout only; this batch is {self.inputs.layout.name}")

    def branches(self, per_branch: Tensor) -> Tensor:
        """Return this side's entries, [B] to [P]."""
        return per_branch[self.index :: 2]

    def tokens(self, per_token: Tensor) -> Tensor:
        """Return this side's tokens, [T] to [those of the side]."""
        lengths = self.inputs.known_lengths
        if lengths is None:
            return per_token[self.inputs.sequence_ids % 2 == self.index]
        from torch import cat  # here, because the commands that only describe methods do without it

        return cat(per_token.split(lengths)[self.index :: 2])

    @property
    def logps(self) -> Tensor:
        """[P] sum of the policy's log-probabilities."""
        return self.branches(self.inputs.logps)

    @property
    def mean_logps(self) -> Tensor:
        """[P] mean of the policy's log-probabilities."""
        return self.branches(self.inputs.mean_logps)

    @property
    def reference_logps(self) -> Tensor:
        """[P] sum of the reference's log-probabilities."""
        return self.branches(self.inputs.reference_logps)

    @property
    def lengths(self) -> Tensor:
        """[P] counted tokens."""
        return self.branches(self.inputs.lengths)

    @property
    def token_logps(self) -> Tensor:
        """[tokens of this side] the policy's log-probabilities."""
        return self.tokens(self.inputs.token_logps)


Per = Literal["pair", "example", "sequence", "token", "chosen_token", "desirable", "undesirable", "constant"]
PER: tuple[str, ...] = get_args(Per)


@attrs.frozen(eq=False)
class Term:
    """A part of a loss, or a metric: values that core sums and divides by a count over the whole optimiser step.

    `per` names the count: pairs, examples (prompt trees), sequences (branches), tokens, tokens of chosen branches (with either,
    counted prompt tokens too), desirable or undesirable branches (LABELED; values of others are 0 or left out), or "constant" for
    a scalar that does not depend on the batch (a coefficient), which is averaged over the step's prompts.
    The loss is the sum of `weight * sum(values) / count` over its terms. Raises ValueError for an unknown `per`.
    """

    values: Tensor
    per: Per
    weight: float = 1.0

    def __attrs_post_init__(self) -> None:
        if self.per not in PER:
            raise ValueError(f"a Term's `per` must be one of {', '.join(PER)}, got {self.per!r}")


@attrs.frozen(eq=False)
class LossOutput:
    """What a loss returns: the terms of its value, its metrics by name, and its state if it keeps one.

    A metric may be several Terms, of which it is the sum; a step that has nothing of what one is `per` has no such metric. Its
    gradient is never taken, so its values may be detached or not.
    """

    terms: Sequence[Term]
    metrics: Mapping[str, Term | Sequence[Term]] = attrs.field(factory=dict)
    state: Mapping[str, Any] | None = None

    @property
    def metric_terms(self) -> dict[str, Sequence[Term]]:
        """The Terms of each metric."""
        return {name: metric if isinstance(metric, list | tuple) else (metric,) for name, metric in self.metrics.items()}


@attrs.frozen(eq=False)
class Advantages:
    """What an online method makes of a rollout batch's rewards."""

    values: Tensor
    """[T] or [B]."""
    keep: Tensor | None = None
    """[B] bool; a branch with False leaves every count. None keeps all."""
    columns: Mapping[str, Tensor] = attrs.field(factory=dict)
    """[T] each: carried to the loss as `inputs.columns`."""
    pairs: Tensor | None = None
    """[P, 2] int64: branches to train on as chosen and rejected (online DPO)."""
    metrics: Mapping[str, Term] = attrs.field(factory=dict)
    state: Mapping[str, Any] | None = None


Scope: TypeAlias = Literal["example", "step"]
"""Whether a loss may be called for some prompts of an optimiser step at a time, or must see the whole step at once.

A "step" costs a second forward wherever a step is cut into micro-batches or shared out over processes.
"""


class Loss(Protocol):
    """A method's mathematics: an attrs class of settings that is called with a batch's log-probabilities.

    It never moves devices, talks to ranks, sees padding, or takes a mean over a batch. A loss that keeps state also has
    `initial_state() -> dict`, of numbers, strings, lists of these, and tensors; it is read as `inputs.state`, and returned,
    changed, by `advantages` or, with `scope` "step", in `LossOutput.state`: once a step either way.

    A loss that needs PROMPT_LOGPS gets those of every prompt token, and all are in its counts. One that counts fewer says so with
    a property `prompt_tokens`, one of "none", "assistant" and "all": "assistant" are the tokens of earlier assistant turns as the
    chat template renders them, which prompts of text do not have. `warnings`, where a loss has it, is a list of what is to be said
    of its settings, by `truing check` and by a run as it starts.
    """

    name: ClassVar[str]
    layout: ClassVar[Layout]

    @property
    def needs(self) -> Needs:
        """What `__call__` reads besides the policy's log-probabilities."""

    @property
    def scope(self) -> Scope:
        """How much of an optimiser step a call must see; a class variable in a loss where no setting changes it."""
        return "example"

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return the terms of the loss and its metrics."""


class OnlineLoss(Loss, Protocol):
    """A loss of the ROLLOUT layout, which also turns rewards into advantages.

    Core reads these attributes, class variables or settings, where a method has them:

    - `default_num_generations`: completions of a prompt where the configuration does not say; else 8.
    - `least_generations`, `least_completion_length`: the least that `rollout` may say of either.
    - `max_completion_length`: the most tokens of a completion, if `rollout` does not say it.
    - `num_minibatches`, `num_iterations`: optimiser steps that one pass over a rollout batch is, and passes.
    - `dynamic_sampling`: how many times a prompt whose completions are all worth the same is sampled anew.
    - `num_sample_generations`: most tables of samples shown over the run.
    - `trained_layout`: the layout that the loss is called with, if it is another; PAIRED needs `Advantages.pairs`.
    - `critic`, "separate" or "shared", and `critic_model`: where VALUES come from.

    One that compares a prompt's completions by more than the weighted sums of their rewards also has `worth(rollouts) -> Tensor`,
    [B]: what it compares, NaN for a completion that has none. It is called with the completions of one prompt or more, and what
    is known of them before any model is asked. Where all of a prompt's are worth the same, their advantages are 0, and the metric
    `frac_reward_zero_std` counts the prompt.
    """

    @property
    def rollout_needs(self) -> Needs:
        """What `advantages` reads; taken once per rollout batch, before the update."""

    def advantages(self, rollouts: LossInputs) -> Advantages:
        """Return advantages for whole groups of all ranks, without gradient; `rollouts.rewards` is [B, R]."""
