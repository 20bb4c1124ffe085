"""check_loss passes losses that keep their promises, and names the promise that a loss breaks: one bad loss for each."""

from __future__ import annotations

import attrs
import pytest
import torch

from tests.core.good_losses import Grpo, Hinge, Labelled, OnlinePairs, Stateful, WithReference
from truing.loss import Advantages, LossOutput, Needs, Term
from truing.testing import check_loss


@pytest.mark.parametrize("loss", [Hinge, Hinge(beta=2.0), WithReference, Labelled, Stateful, OnlinePairs])
def test_good_losses_pass(loss):
    check_loss(loss)


def test_a_good_group_relative_loss_passes():
    check_loss(Grpo, group_relative=True)


def loss_like(base, call=None, *, layout=None, scope=None, **members):
    """A subclass of a good loss, with one thing made wrong; `call` gets (self, inputs, what the good one returns)."""
    body = {"__module__": __name__, "__annotations__": {}, **members}
    body |= {key: value for key, value in (("layout", layout), ("scope", scope)) if value is not None}
    if call is not None:
        body["__call__"] = lambda self, inputs: call(self, inputs, base.__call__(self, inputs))
    return attrs.frozen(kw_only=True)(type("Bad", (base,), body))


def with_terms(*terms):
    return lambda self, inputs, good: LossOutput([term(inputs, good.terms[0].values) for term in terms])


def with_needs(needs):
    return property(lambda self: needs)


def breaks(loss, message, **options):
    with pytest.raises(AssertionError, match=message):
        check_loss(loss, **options)


def test_a_class_that_the_registry_refuses():
    breaks(loss_like(Hinge, name="Not Allowed"), "the registry would refuse this plugin: .*'Not Allowed' is not allowed")


def test_no_output_and_no_term():
    breaks(loss_like(Hinge, lambda self, inputs, good: good.terms[0].values), "must return a truing.LossOutput, got Tensor")
    breaks(loss_like(Hinge, with_terms()), "returned no term")


def test_terms_and_metrics_that_are_no_terms():
    breaks(loss_like(Hinge, with_terms(lambda inputs, values: values)), "term 0 must be a truing.Term.* got Tensor")

    def number(self, inputs, good):
        return LossOutput(good.terms, {"margin": 0.5})

    breaks(loss_like(Hinge, number), "metric 'margin' must be a truing.Term, so that core can count over the step, got float")
    breaks(loss_like(Hinge, with_terms(lambda inputs, values: Term(0.5, "constant"))), "term 0 must hold a tensor, got float")


def test_a_field_that_is_read_but_not_needed():
    breaks(loss_like(WithReference, needs=with_needs(Needs.PROMPT_LOGPS)), "it works with Needs.REFERENCE_LOGPS: add that")

    def optional(self, inputs, good):
        return good if inputs.scores is None else LossOutput([Term(inputs.scores[::2], "pair")])

    breaks(loss_like(Hinge, optional), "another result when the batch also has what Needs.SCORES brings; `needs` must name")


def test_a_loss_that_fails_whatever_it_gets():
    def fail(self, inputs, good):
        raise IndexError("out of range")

    breaks(loss_like(Hinge, fail), "it must work on any batch of its layout. IndexError: out of range")


def test_a_need_that_is_never_read():
    breaks(
        loss_like(Hinge, needs=with_needs(Needs.VALUES)),
        "`needs` names Needs.VALUES, but Bad.__call__ gives the same result without it",
    )


def test_inputs_changed_in_place():
    def change(self, inputs, good):
        inputs.lengths.add_(0).mul_(2)
        return good

    breaks(loss_like(Hinge, change), "changes `inputs.lengths` in place")


def test_random_numbers_and_memory_of_calls():
    noise = with_terms(lambda inputs, values: Term(values + torch.rand_like(values), "pair"))
    breaks(loss_like(Hinge, noise), "gives other numbers for the same batch: it must not draw random numbers or remember calls")
    calls = []

    def remember(self, inputs, good):
        calls.append(inputs)
        return LossOutput([Term(good.terms[0].values * len(calls), "pair")])

    breaks(loss_like(Hinge, remember), "gives other numbers for the same batch")


def test_shapes_that_do_not_fit_what_they_are_per():
    mean = with_terms(lambda inputs, values: Term(values.mean(), "pair"))
    breaks(loss_like(Hinge, mean), r"term 0 is per 'pair' and must have shape \[3\] here, got \[\]; return values as they are")
    breaks(loss_like(Hinge, with_terms(lambda inputs, values: Term(values, "sequence"))), r"must have shape \[6\] here, got \[3\]")
    breaks(loss_like(Hinge, with_terms(lambda inputs, values: Term(inputs.logps, "token"))), r"per 'token' and must have shape")
    breaks(loss_like(Hinge, with_terms(lambda inputs, values: Term(values, "constant"))), 'per "constant" and must be one number')


@pytest.mark.parametrize("per", ["pair", "chosen_token"])
def test_pairs_exist_in_the_paired_layout_only(per):
    bad = loss_like(Labelled, lambda self, inputs, good: LossOutput([Term(good.terms[0].values, per)]))
    breaks(bad, f"per '{per}', which only PAIRED batches have, not LABELED")


@pytest.mark.parametrize("per", ["desirable", "undesirable"])
def test_labels_exist_in_the_labeled_layout_only(per):
    bad = loss_like(Hinge, with_terms(lambda inputs, values: Term(values, per)))
    breaks(bad, f"per '{per}', which only LABELED batches have, not PAIRED")


def test_values_of_one_label_may_be_those_alone_or_zeros_for_others():
    def call(self, inputs, good):
        scores = inputs.mean_logps
        terms = (Term(scores[inputs.labels], "desirable"), Term(scores * ~inputs.labels, "undesirable", -1.0))
        return LossOutput([*good.terms], {"margin": terms})

    check_loss(loss_like(Labelled, call))


def test_numbers_that_are_not_finite():
    breaks(
        loss_like(Hinge, with_terms(lambda inputs, values: Term(values / 0, "pair"))), "term 0 is not finite on an ordinary batch"
    )
    steep = with_terms(lambda inputs, values: Term((values - values.detach()).sqrt(), "pair"))
    breaks(loss_like(Hinge, steep), "the gradient of Bad by token_logps is not finite")


def test_no_gradient():
    detached = with_terms(lambda inputs, values: Term(values.detach(), "pair"))
    breaks(loss_like(Hinge, detached), "no gradient flows from the terms of Bad to the policy")
    zero = with_terms(lambda inputs, values: Term(values * 0, "pair"))
    breaks(loss_like(Hinge, zero), "the gradient of Bad is zero everywhere")


def test_a_gradient_that_is_not_that_of_the_value_unless_on_purpose():
    weighted = loss_like(Hinge, with_terms(lambda inputs, values: Term(values * values.detach(), "pair")))
    breaks(weighted, "the gradient of Bad is not that of its value. If it stops a gradient .* pass gradcheck=False")
    check_loss(weighted, gradcheck=False)


def test_order_of_the_prompts():
    first = with_terms(lambda inputs, values: Term(values * torch.arange(len(values)), "pair"))
    breaks(loss_like(Hinge, first), "change with the order of the prompt trees")


def test_a_mean_over_the_batch():
    mean = with_terms(lambda inputs, values: Term(values * values.mean(), "pair"))
    breaks(loss_like(Hinge, mean), "term 0 sums to .* cut into micro-batches. A loss takes no mean over its batch")
    check_loss(loss_like(Hinge, mean, scope="step"))


def test_a_scope_that_depends_on_the_settings():
    def total(self, inputs, good):
        values = good.terms[0].values
        return LossOutput([Term(values * values.mean() if self.beta > 1 else values, "pair")])

    by_beta = loss_like(Hinge, total, scope=property(lambda self: "step" if self.beta > 1 else "example"))
    check_loss(by_beta(beta=0.5))
    check_loss(by_beta(beta=2.0))


def test_a_metric_that_is_not_always_there():
    def sometimes(self, inputs, good):
        return LossOutput(good.terms, good.metrics if len(inputs.lengths) > 2 else {})

    breaks(loss_like(Hinge, sometimes), "metric 'margins' is missing when the step is cut into micro-batches")


def test_branches_that_are_not_kept():
    def ignores(self, inputs, good):
        ratio = inputs.log_ratios.exp()
        return LossOutput([Term(-ratio * inputs.expand(inputs.advantages), "token")])

    breaks(loss_like(Grpo, ignores), "a branch whose `keep` is False still changes the terms")


def test_state():
    breaks(
        loss_like(Hinge, lambda self, inputs, good: LossOutput(good.terms, state={"a": 1})),
        r"returns state, but has no initial_state\(\) to begin with",
    )
    start = {"initial_state": lambda self: {"a": 1}}
    breaks(
        loss_like(Hinge, lambda self, inputs, good: LossOutput(good.terms, state={"b": 1}), **start),
        r"must keep the keys of initial_state\(\), \['a'\], got \['b'\]",
    )
    check_loss(loss_like(Hinge, lambda self, inputs, good: LossOutput(good.terms, state={"a": 2}), **start))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1, 2}, r"Bad\['a'\] holds a set; a checkpoint keeps numbers"),
        ([{1: 2}], "keys that are not strings"),
        ((1, 2), "holds a tuple"),
    ],
)
def test_state_that_no_checkpoint_can_keep(value, message):
    breaks(loss_like(Hinge, initial_state=lambda self: {"a": value}), message)


def advantages_like(change, base=Grpo, **members):
    """The good online loss, with what `advantages` returns made wrong by `change(rollouts, good)`."""
    return loss_like(base, advantages=lambda self, rollouts: change(rollouts, base.advantages(self, rollouts)), **members)


def test_advantages_of_a_wrong_type_or_shape():
    breaks(advantages_like(lambda rollouts, good: good.values), "must return a truing.Advantages, got Tensor")
    breaks(
        advantages_like(lambda rollouts, good: Advantages(good.values[:-1])),
        r"values of shape \[T\] = \[\d+\] or \[B\] = \[12\], got \[11\]",
    )
    keep = torch.ones(12)
    breaks(advantages_like(lambda rollouts, good: attrs.evolve(good, keep=keep)), r"must return `keep` as bool \[B\] = \[12\]")
    column = {"c": torch.zeros(3)}
    breaks(
        advantages_like(lambda rollouts, good: attrs.evolve(good, columns=column)),
        r"column 'c' of shape \[T\] = \[\d+\], got \[3\]",
    )


def test_pairs_of_a_wrong_shape_or_across_prompts():
    flat = torch.tensor([0, 1])
    breaks(advantages_like(lambda rollouts, good: attrs.evolve(good, pairs=flat), OnlinePairs), r"`pairs` as int64 \[P, 2\]")
    across = torch.tensor([[0, 11]])
    breaks(
        advantages_like(lambda rollouts, good: attrs.evolve(good, pairs=across), OnlinePairs), "pairs branches of different prompts"
    )


def test_advantages_that_are_not_finite_where_a_reward_does_not_apply():
    def blind(rollouts, good):
        return Advantages(rollouts.rewards.sum(1))

    breaks(advantages_like(blind), r"where one of several rewards does not apply \(NaN\), returned values that are not finite")

    def leaves_out(rollouts, good):
        return Advantages(rollouts.rewards.sum(1), keep=rollouts.rewards.isfinite().all(1))

    def leaves_out_by_token(rollouts, good):
        return Advantages(rollouts.expand(rollouts.rewards.sum(1)), keep=rollouts.rewards.isfinite().all(1))

    def by_token(self, inputs, good):
        ratio = inputs.log_ratios.exp()
        return LossOutput([Term(-ratio * inputs.advantages * inputs.expand(inputs.keep), "token")])

    check_loss(advantages_like(leaves_out))
    check_loss(advantages_like(leaves_out_by_token, __call__=lambda self, inputs: by_token(self, inputs, None)))


def test_advantages_depend_on_the_order_of_prompts():
    def ordered(rollouts, good):
        return Advantages(good.values * torch.arange(len(good.values)))

    breaks(advantages_like(ordered), "Bad.advantages depends on the order of the prompt trees")


def test_advantages_read_exactly_what_rollout_needs_names():
    breaks(
        advantages_like(lambda rollouts, good: Advantages(2 * rollouts.token_values)),
        "Bad.advantages failed on a batch that has exactly what `rollout_needs` names, .*; it works with Needs.VALUES: add that",
    )
    breaks(
        advantages_like(lambda rollouts, good: Advantages(good.values if rollouts.scores is None else rollouts.scores)),
        "Bad.advantages gives another result when the batch also has what Needs.SCORES brings; `rollout_needs` must name",
    )
    breaks(
        loss_like(Grpo, rollout_needs=with_needs(Needs.REWARDS | Needs.VALUES)),
        "`rollout_needs` names Needs.VALUES, but Bad.advantages gives the same result without it",
    )


def test_equal_rewards_give_no_advantage():
    def inexact(rollouts, good):
        return Advantages(rollouts.rewards.nanmean(1) - rollouts.rewards.nanmean() + 1e-9)

    check_loss(advantages_like(inexact))
    breaks(advantages_like(inexact), "for 8 equal rewards of 0.1, and must give 0", group_relative=True)


def test_what_completions_are_worth_is_a_number_each():
    check_loss(loss_like(Grpo, worth=lambda self, rollouts: rollouts.rewards.sum(1)))
    breaks(
        loss_like(Grpo, worth=lambda self, rollouts: rollouts.rewards), r"Bad.worth must return a tensor of shape \[B\] = \[12\]"
    )
    breaks(loss_like(Grpo, worth=lambda self, rollouts: None), "got NoneType")


@attrs.frozen(kw_only=True)
class Scored(Hinge):
    """Reads scores, and no log-probability."""

    needs = Needs.SCORES | Needs.NO_LOGPS

    def __call__(self, inputs):
        return LossOutput([Term((inputs.scores[1::2] - inputs.scores[::2]).exp(), "pair")])


def test_a_loss_without_log_probabilities():
    check_loss(Scored)

    def peek(self, inputs, good):
        return LossOutput([Term(good.terms[0].values * inputs.chosen.logps, "pair")])

    breaks(
        loss_like(Scored, peek), r"term 0 is not finite on an ordinary batch \(`needs` names Needs.NO_LOGPS, so token_logps are NaN"
    )
    both = loss_like(Scored, needs=Needs.SCORES | Needs.NO_LOGPS | Needs.ENTROPY)
    breaks(both, "names Needs.NO_LOGPS and Needs.ENTROPY, which come of the same head")
