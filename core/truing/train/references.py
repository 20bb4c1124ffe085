"""What a run's reference is: the policy's own start, another model, or one that follows the policy; live or precomputed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import attrs
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import nn

from truing.config import ReferenceConfig, TrainConfig
from truing.data.tree import Trees, in_chunks
from truing.declared import all_needs
from truing.errors import ConfigError, ModelError, first_line
from truing.loss import Needs
from truing.model.loading import context_length, load_model
from truing.model.policy import Policy
from truing.model.precomputed import Precomputed, reference_file
from truing.model.probe import choose_forward, made_up_trees, probed_trees
from truing.model.reference import AdapterCopy, AdapterOff, Following, FrozenCopy, LiveReference
from truing.model.spread import is_spread
from truing.rollout.plan import RolloutPlan
from truing.train.console import Reporter
from truing.train.run import Run


def is_other_model(config: TrainConfig) -> bool:
    """Whether the reference is a model of its own, which the configuration names."""
    return Needs.REFERENCE_LOGPS in all_needs(config.method) and config.model.reference_settings.name is not None


def is_copy(config: TrainConfig) -> bool:
    """Whether the reference is a copy of the model that the policy starts from.

    An adapter that is there already is part of where the policy starts, so that with it off the weights are others.
    """
    copied = config.model.reference == "copy" or config.model.adapter is None
    return Needs.REFERENCE_LOGPS in all_needs(config.method) and copied and not is_other_model(config)


def load_other_model(
    config: TrainConfig,
    policy: Policy,
    trees: Trees,
    eval_trees: Trees | None,
    plan: RolloutPlan | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Policy:
    """Return the model that model.reference names, with the forward that is exact for it.

    It is loaded as the policy is. Raises ModelError when it cannot be, or cannot score what the policy scores.
    """
    name = config.model.reference_settings.name
    assert name is not None
    named = attrs.evolve(config.model, name=name, revision=None)
    model = load_model(named, config.base_dir, trained=config.model.adapter is None, key="model.reference.name")
    other = Policy(model, "padded").to(accelerator.device)
    own, found = (_embeddings(model) for model in (policy, other))
    if found != own:
        raise ModelError(
            f"model.reference.name: {name!r} has a vocabulary of {found:,} tokens, and the policy one of {own:,}; a reference "
            "scores the same token ids, so take a model with the same tokenizer and vocabulary size"
        )
    longest = 0 if plan is None else plan.sampling.max_completion_length
    probed = probed_trees(trees) if plan is None else made_up_trees(trees, longest)
    positions = context_length(model)
    # branches of a tree count from its prompt's end, so that one of more tokens than positions may fit
    most = longest + max(tree.num_tokens for some in (trees, eval_trees) if some is not None for tree in probed_trees(some))
    if positions is not None and most > positions:
        most = longest + max(_longest(some) for some in (trees, eval_trees) if some is not None)
    if positions is not None and most > positions:
        raise ModelError(
            f"model.reference.name: {name!r} was made for {positions:,} positions, and the longest sample has {most:,} tokens; set "
            f"trainer.max_length to {positions} or less"
        )
    wanted: Literal["auto", "padded"] = "padded" if config.trainer.forward == "padded" else "auto"
    mixed = config.trainer.mixed_precision != "no"
    choice = choose_forward(other, probed, wanted, accelerator.autocast if mixed else None)
    reporter.say(f"reference: {name}; {choice.reason}")
    return other


def _longest(trees: Trees) -> int:
    """Return the most tokens of a prompt with one of its branches."""
    return max(
        len(tree.prompt_ids) + max((len(branch.token_ids) for branch in tree.branches), default=0)
        for some in in_chunks(trees)
        for tree in some
    )


def _embeddings(policy: Policy) -> int:
    return int(next(policy.causal_lm.get_input_embeddings().parameters()).shape[0])


def make_reference(config: TrainConfig, policy: Policy, wrapped: nn.Module, second: Policy | None) -> LiveReference | None:
    """Return the reference that the method and the configuration ask for; `second` is the copy or the other model, if there is one.

    Raises ModelError for another model that is to follow the policy and has other weights than that.
    """
    settings = config.model.reference_settings
    if Needs.REFERENCE_LOGPS not in all_needs(config.method):
        return None
    if settings.sync_steps is None:
        return AdapterOff(wrapped) if second is None else FrozenCopy(second)
    return _following(policy, AdapterCopy(policy) if second is None else FrozenCopy(second), settings, settings.sync_steps)


def _following(policy: Policy, reference: AdapterCopy | FrozenCopy, settings: ReferenceConfig, sync_steps: int) -> Following:
    # weights that do not train are the same in a copy, and stay so
    own = [(name, weight) for name, weight in policy.named_parameters() if name.startswith("model.")]  # no critic, no head
    moving = {name: weight for name, weight in own if weight.requires_grad or settings.name is not None}
    found = dict(reference.weights)
    for name, weight in moving.items():
        if name not in found or found[name].shape != weight.shape:
            raise ModelError(
                f"model.reference.name: {settings.name!r} has no weight {name} of shape {tuple(weight.shape)}, so it cannot follow "
                "the policy; take a model of the same architecture and size, or remove model.reference.sync_steps"
            )
    return Following(reference=reference, sources=moving, sync_steps=sync_steps, mixup_alpha=settings.mixup_alpha)


def with_references(run: Run) -> Run:
    """Return the run with its reference ready; precomputed, where that is asked for, or found in the file of an earlier run."""
    live = run.reference
    if isinstance(live, Following):
        if is_spread(run.policy):
            raise ConfigError(
                "model.reference.sync_steps: a reference cannot follow weights that are spread over processes; use data "
                "parallelism (truing train --num-processes), or remove sync_steps"
            )
        run.reporter.say(f"reference: follows the policy every {live.sync_steps:,} steps, mixup_alpha {live.mixup_alpha:g}")
    if not run.config.model.precompute_reference or not isinstance(live, (AdapterOff, FrozenCopy)):
        return run
    computes = live.policy if is_other_model(run.config) and isinstance(live, FrozenCopy) else run.policy

    def take(trees: Trees) -> Precomputed:
        path = reference_file(live, computes, trees, run.trainer.mixed_precision)
        found = Precomputed.read(path, len(trees))
        # ranks must agree, for they share the work of taking them
        if not all(gather_object([found is not None])) or found is None:
            run.reporter.say(f"reference: computing log-probabilities of {len(trees):,} rows")
            with run.accelerator.autocast():
                budget, alive = run.state.tokens_per_batch, lambda: run.reporter.alive(0)
                sharing = None if is_spread(run.policy) else run.accelerator
                found = Precomputed.of(live, trees, computes, budget, accelerator=sharing, alive=alive)
            if run.accelerator.is_main_process:
                _keep(found, path, run.reporter)
        else:
            run.reporter.say(f"reference: log-probabilities of {len(trees):,} rows found in {path}")
        run.state.references[path.name] = found.seal()
        return found

    reference = take(run.trees)
    eval_reference = None if run.eval_trees is None else take(run.eval_trees)
    return attrs.evolve(run, reference=reference, eval_reference=eval_reference)


def _keep(found: Precomputed, path: Path, reporter: Reporter) -> None:
    try:
        found.write(path)
    except (OSError, SafetensorError) as error:
        reporter.warn(f"reference: not kept for later runs ({first_line(error)}); set TRUING_CACHE to a folder that can be written")
