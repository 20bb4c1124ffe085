"""Before the first step: loads, prepares and checks everything, and says what it found."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import attrs
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.distributed.constants import default_pg_timeout
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from truing.config import DataConfig, TrainConfig
from truing.config.agreement import warnings_of
from truing.data import DataReport, prepare, prepare_rows
from truing.data.dataset import TreeDataset
from truing.data.mismatched import with_mismatched
from truing.data.recognise import with_formats
from truing.data.tokenizer import load_tokenizer
from truing.data.tree import Trees
from truing.declared import all_needs, prompt_tokens_of, sees_whole_step
from truing.errors import ModelError
from truing.loss import Layout, Needs
from truing.model.compiled import compile_models
from truing.model.critic import make_critic, needs_copy
from truing.model.loading import add_adapter, context_length, disable_dropout, enable_checkpointing, load_model
from truing.model.mapped import detach_from_files
from truing.model.memory import token_budget
from truing.model.policy import Policy
from truing.model.probe import ForwardChoice, choose_forward, made_up_trees, probed_trees
from truing.model.reference import Following, Reference
from truing.model.score_head import find_score_head, freeze_unread, new_score_head, read_score_head
from truing.registry import Registry
from truing.rewards.functions import fed_from
from truing.rollout.plan import RolloutPlan, completion_limit, plan_of
from truing.rollout.sampler import STALL_SECONDS
from truing.train.console import Reporter
from truing.train.given import Given, Model, Rows
from truing.train.identity import run_identity
from truing.train.optimizer import make_optimizer, make_schedule
from truing.train.order import DataOrder
from truing.train.preconditions import check_run
from truing.train.references import is_copy, is_other_model, load_other_model, make_reference, with_references
from truing.train.restarts import has_begun, join_restarted
from truing.train.rollouts import RolloutSource
from truing.train.run import Run
from truing.train.run_dir import RunDir
from truing.train.source import DatasetSource, Source
from truing.train.state import TrainState

BEYOND_WAITS = timedelta(minutes=10)
"""How much longer than a save or a completion may take processes wait for each other."""


@attrs.frozen(eq=False, kw_only=True)
class Data:
    """Training and evaluation data, tokenised, and what became of their rows."""

    trees: Trees
    report: DataReport
    eval_trees: Trees | None
    eval_report: DataReport | None


def set_up(
    config: TrainConfig,
    given: Given,
    run_dir: RunDir,
    *,
    resume: bool,
    reporter: Reporter | None = None,
    data: Data | None = None,
) -> Run:
    """Return a run that is ready for its first step; `data` takes the place of what the configuration names.

    Raises the errors of truing.errors for what a user can mend.
    """
    check_run(config, given)
    accelerator = _accelerator(config)
    reporter = reporter or Reporter(quiet=not accelerator.is_main_process)
    _claim(run_dir, accelerator, resume=resume)
    set_seed(config.trainer.seed)
    config = _with_formats(config, given, reporter)
    tokenizer, model, data = _load(config, given, data, reporter)
    plan = plan_of(config, _trees_per_step(config, accelerator))
    policy, second = _policy_and_second(config, given, model, data, plan, accelerator, reporter)
    choice, budget = _choose_forward(config, (policy, second), data.trees, plan, accelerator, reporter)
    order = _order(config, len(data.trees), _trees_per_step(config, accelerator), plan)
    total_steps = order.total_steps(config.trainer.num_epochs, config.trainer.max_steps)
    optimizer = make_optimizer(policy, config.trainer)
    state = TrainState(
        model=policy.model, heads=policy.heads, tokenizer=tokenizer, output_dir=run_dir.path, tokens_per_batch=budget
    )
    state.loss_state = _initial_state(config)
    state.scheduler, state.scaler = make_schedule(optimizer, config.trainer, total_steps), accelerator.scaler
    other = second.model if second is not None and is_other_model(config) else None
    eval_data = None if data.eval_trees is None else data.eval_trees.fingerprint
    identity = run_identity(config, policy, order, data.trees.fingerprint, eval_data=eval_data, reference=other)
    wrapped, state.optimizer = accelerator.prepare(policy, optimizer)
    reference = make_reference(config, policy, wrapped, second)
    if accelerator.is_main_process:
        run_dir.require_space(_bytes_to_write(policy, reference))
    return with_references(
        Run(
            config=config,
            loss=config.method,
            accelerator=accelerator,
            policy=policy,
            wrapped=wrapped,
            reference=reference,
            eval_reference=reference,
            trees=data.trees,
            eval_trees=data.eval_trees,
            order=order,
            source=make_source(data.trees, order, plan),
            constants={} if plan is None else _constants(config, plan, accelerator.device),
            total_steps=total_steps,
            state=state,
            identity=identity,
            environment=_environment(config, accelerator, data, choice, identity),
            run_dir=run_dir,
            reporter=reporter,
        )
    )


def _claim(run_dir: RunDir, accelerator: Accelerator, *, resume: bool) -> None:
    """Claim the run directory on the first rank, before the others go on."""
    with accelerator.main_process_first():
        if accelerator.is_main_process:
            run_dir.claim(resume=resume or has_begun(run_dir))


def _with_formats(config: TrainConfig, given: Given, reporter: Reporter) -> TrainConfig:
    """Return the configuration with a format for every dataset; say which were chosen by looking at the data, and warnings."""
    for warning in warnings_of(config):
        reporter.warn(warning)

    def registry() -> Registry:
        return Registry.load(quiet=True)  # what is broken was said when the configuration was read

    config, chosen = with_formats(config, registry, rows=given.dataset, eval_rows=given.eval_dataset)
    reporter.say(*chosen)
    return config


def make_source(trees: Trees, order: DataOrder, plan: RolloutPlan | None = None) -> Source:
    """Return where the steps' trees come from: the data itself, or completions of its prompts."""
    if plan is None:
        return DatasetSource(trees, order)
    assert isinstance(trees, TreeDataset)
    return RolloutSource(prompts=trees, order=order, plan=plan)


def _order(config: TrainConfig, size: int, per_step: int, plan: RolloutPlan | None) -> DataOrder:
    seed = config.trainer.seed
    return DataOrder(size, per_step, seed) if plan is None else DataOrder(size, plan.prompts, seed, plan.updates)


def _constants(config: TrainConfig, plan: RolloutPlan, device: torch.device) -> dict[str, Any]:
    """Return the fields of LossInputs that are the same in every batch of an online method."""
    weights = torch.tensor([entry.weight for entry in config.rewards], device=device)
    return {"reward_weights": weights, "max_completion_length": plan.sampling.max_completion_length}


def _accelerator(config: TrainConfig) -> Accelerator:
    # accelerate keeps one state per process; a second run in a notebook may ask for another precision
    AcceleratorState._reset_state(reset_partial_state=False)
    timeout = _longest_wait(config)
    join_restarted(timeout)
    return Accelerator(
        mixed_precision=config.trainer.mixed_precision,
        log_with=list(config.trainer.report_to) or None,
        project_dir=str(config.output.dir),
        # ranks may make different numbers of forwards in a step, and a broadcast of buffers in each would hang them
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=timeout)],
    )


def _longest_wait(config: TrainConfig) -> timedelta:
    """Return how long processes wait for each other: for all of the deadline of a save of the first one, or of completions.

    It is not what a lost process costs, which its launcher sees at once.
    """
    longest = config.trainer.save_timeout if config.rollout is None else max(config.trainer.save_timeout, STALL_SECONDS)
    return max(default_pg_timeout, timedelta(seconds=longest) + BEYOND_WAITS)


def _load(config: TrainConfig, given: Given, data: Data | None, reporter: Reporter) -> tuple[PreTrainedTokenizerBase, Model, Data]:
    """Return tokenizer, model and data, where they are not there already, and say what became of the rows."""
    tokenizer = given.tokenizer or load_tokenizer(config.model, config.base_dir)
    model = given.model or load_model(config.model, config.base_dir, trained=config.model.adapter is None)
    data = data or _read_data(config, given, tokenizer, model)
    reporter.say(*data.report.lines(), *(f"evaluation: {line}" for line in (data.eval_report.lines() if data.eval_report else ())))
    if config.rewards:
        columns = data.trees[0].columns
        reporter.say(*(line for entry in config.rewards for line in fed_from(entry.reward, columns)))
    return tokenizer, model, data


def _read_data(config: TrainConfig, given: Given, tokenizer: PreTrainedTokenizerBase, model: Model) -> Data:
    def read(key: str, sources: Sequence[DataConfig], rows: Rows | None) -> tuple[Any, Any]:
        shared: dict[str, Any] = {
            "layout": config.method.layout,
            "tokenizer": tokenizer,
            "trainer": config.trainer,
            "context_length": context_length(model),
            "config": config,
            "prompt_tokens": prompt_tokens_of(config.method),
            "reserved": completion_limit(config) if config.method.layout is Layout.ROLLOUT else 1,
        }
        if rows is not None:
            source = (sources or config.data)[0]
            trees, report = prepare_rows(rows, source.format, on_bad_row=source.on_bad_row, unpair=source.unpair, **shared)
        elif sources:
            trees, report = prepare(sources, base_dir=config.base_dir, **shared)
        else:
            return None, None
        if Needs.MISMATCHED_LOGPS in config.method.needs:
            return with_mismatched(trees, report, config.trainer.seed, key), report
        return trees, report

    trees, report = read("data", config.data, given.dataset)
    eval_trees, eval_report = read("eval_data", config.eval_data, given.eval_dataset)
    return Data(trees=trees, report=report, eval_trees=eval_trees, eval_report=eval_report)


def _policy_and_second(
    config: TrainConfig,
    given: Given,
    model: Model,
    data: Data,
    plan: RolloutPlan | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> tuple[Policy, Policy | None]:
    """Return the policy, and the second model that the reference is, where it is one."""
    policy, copied = _policy_and_copy(config, given, model, accelerator.device, reporter)
    _check_vocabulary(data, policy)
    if is_other_model(config):
        return policy, load_other_model(config, policy, data.trees, data.eval_trees, plan, accelerator, reporter)
    return policy, copied


def _policy_and_copy(
    config: TrainConfig, given: Given, model: Model, device: torch.device, reporter: Reporter
) -> tuple[Policy, Policy | None]:
    """Return the policy, and a frozen copy of the weights that it starts from where the reference needs one.

    The copy has the policy's own type, so that at the first step both give the same numbers.
    """
    detach_from_files(model)  # one that was handed over may be mapped as well
    if config.trainer.disable_dropout:
        disable_dropout(model)
    start = None
    if is_copy(config):
        start = Policy(copy.deepcopy(model), "padded").requires_grad_(False).eval().to(device)
    critic_start = copy.deepcopy(model) if Needs.VALUES in all_needs(config.method) and needs_copy(config) else None
    if config.model.adapter is not None:
        assert isinstance(model, PreTrainedModel), "an adapter on an adapter was refused before"
        model = add_adapter(model, config.model.adapter)
    if config.trainer.gradient_checkpointing:
        enable_checkpointing(model)
    policy = Policy(model, "padded")
    if Needs.NO_LOGPS in config.method.needs:
        freeze_unread(policy.causal_lm)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ModelError(
            "no weight of the model trains (requires_grad is False for all); load a PeftModel with is_trainable=True, and adapt "
            "more than the token head where the method reads no log-probabilities"
        )
    if Needs.SCORES in config.method.needs:
        policy.score_head = _score_head(config, given, policy, reporter)
    if Needs.VALUES in all_needs(config.method):
        _add_critic(config, policy, critic_start, reporter)
    _warn_of_half_precision(policy, reporter)
    return policy.train().to(device), start


def _add_critic(config: TrainConfig, policy: Policy, start: Model | None, reporter: Reporter) -> None:
    made = make_critic(config, policy, start)
    reporter.say(f"critic: {made.origin}")
    if made.model is None:
        policy.value_head = made.head
    else:
        policy.critic = made.model


def _score_head(config: TrainConfig, given: Given, policy: Policy, reporter: Reporter) -> nn.Linear:
    trained = next(weight.dtype for weight in policy.parameters() if weight.requires_grad)
    dtype = torch.promote_types(trained, torch.float32)  # half precision would blur differences of scores
    found = find_score_head(config.model, config.base_dir) if given.model is None else None
    if found is not None:
        reporter.say(f"score head: that of {found}")
        return read_score_head(found, policy.causal_lm, dtype)
    reporter.say("score head: a new one")
    return new_score_head(policy.causal_lm, dtype, config.trainer.seed)


def _warn_of_half_precision(policy: Policy, reporter: Reporter) -> None:
    half = {weight.dtype for weight in policy.parameters() if weight.requires_grad} & {torch.bfloat16, torch.float16}
    for dtype in half:
        reporter.warn(
            f"weights that train are {str(dtype).removeprefix('torch.')}, in which small updates are lost; load them as float32 "
            "(model.dtype: float32) and set trainer.mixed_precision"
        )


def _choose_forward(
    config: TrainConfig,
    models: tuple[Policy, Policy | None],
    trees: Trees,
    plan: RolloutPlan | None,
    accelerator: Accelerator,
    reporter: Reporter,
) -> tuple[ForwardChoice, int]:
    """Return how the policy computes, and a copy of it, and its token budget."""
    policy, second = models
    probed = probed_trees(trees) if plan is None else made_up_trees(trees, plan.sampling.max_completion_length)
    mixed = config.trainer.mixed_precision != "no"
    choice = choose_forward(policy, probed, config.trainer.forward, accelerator.autocast if mixed else None)
    if second is not None and not is_other_model(config):
        second.adopt_forward(policy)
    if policy.critic is not None:
        policy.critic.adopt_forward(policy)
    if plan is not None and plan.sampling.temperature > 0:  # not before, for the probe compares with the model's own logits
        for model in filter(None, models):
            model.temperature = plan.sampling.temperature
    if config.trainer.torch_compile:
        compile_models(policy, filter(None, (policy.critic, second)), probed, accelerator.autocast)
        choice = attrs.evolve(choice, reason=f"{choice.reason}; layers compiled (the policy's probed: equal to those that are not)")
    budget = config.trainer.max_tokens_per_batch
    if budget is None:
        fits = token_budget(
            policy,
            sorted(probed, key=lambda tree: tree.num_tokens),
            config.method.needs,
            whole_steps=sees_whole_step(config.method),
            autocast=accelerator.autocast,
        )
        # ranks may have unequal memory, and must cut alike where each forward gathers weights from all
        budget = min(gather_object([fits]))
    reporter.say(f"forward: {choice.reason}; at most {budget:,} tokens at once")
    return choice, budget


def _check_vocabulary(data: Data, policy: Policy) -> None:
    rows = next(policy.causal_lm.get_input_embeddings().parameters()).shape[0]
    largest = max(trees.largest_id for trees in (data.trees, data.eval_trees) if trees is not None)
    if largest >= rows:
        raise ModelError(f"the data has token id {largest}, and the model {rows} embeddings; the tokenizer is of another model")


def _trees_per_step(config: TrainConfig, accelerator: Accelerator) -> int:
    return config.trainer.batch_size * config.trainer.gradient_accumulation * int(accelerator.num_processes)


def _initial_state(config: TrainConfig) -> dict[str, Any]:
    make = getattr(config.method, "initial_state", None)
    return dict(make()) if make is not None else {}


def _bytes_to_write(policy: Policy, reference: Reference | None) -> int:
    """Return the size of the model and of one checkpoint: what trains, Adam's two moments of it, and a reference that moves."""
    sizes = [(weight.numel() * weight.element_size(), weight.requires_grad) for weight in policy.parameters()]
    moving = reference.tensors().values() if isinstance(reference, Following) else ()
    return sum(size * (4 if trained else 1) for size, trained in sizes) + sum(weight.nbytes for weight in moving)


def _environment(
    config: TrainConfig, accelerator: Accelerator, data: Data, choice: ForwardChoice, identity: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "seed": config.trainer.seed,
        "processes": accelerator.num_processes,
        "device": accelerator.device,
        "forward": choice.reason,
        "data": data.report.as_dict(),
        "eval_data": data.eval_report.as_dict() if data.eval_report else None,
        "identity": identity,
    }
