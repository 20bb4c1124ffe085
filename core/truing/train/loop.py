"""The training loop: steps, and what happens between them."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import cast

import attrs
import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from truing.config import TrainConfig, dump_config
from truing.errors import TruingError
from truing.model.attention import use_own_attention
from truing.model.critic import CRITIC_FOLDER
from truing.model.loading import disable_checkpointing
from truing.model.reference import Following
from truing.model.score_head import write_score_head
from truing.model.spread import is_spread, whole
from truing.train.card import model_card
from truing.train.console import Reporter
from truing.train.given import Given
from truing.train.interrupt import SAVING, STOPPING, Interrupted, InterruptSignal
from truing.train.meter import Meter
from truing.train.quiet import quiet_libraries
from truing.train.ranks import together
from truing.train.restarts import launch, resumed_from
from truing.train.rollouts import RolloutSource
from truing.train.run import Run
from truing.train.run_dir import RunDir
from truing.train.saving import Saver, restore
from truing.train.setup import set_up
from truing.train.state import TrainState
from truing.train.step import evaluate, train_step
from truing.train.trackers import end_trackers, start_trackers, track


def train(
    config: TrainConfig, given: Given | None = None, *, resume: bool | str | Path = False, reporter: Reporter | None = None
) -> TrainState:
    """Train as the configuration says and return the state, with the trained model in it.

    `resume` continues from the newest whole checkpoint of the run directory, or from the one at the path given. Raises the errors
    of truing.errors, and truing.train.interrupt.Interrupted after saving when a signal asked the run to stop.
    """
    run_dir = RunDir(config.output.dir)
    with quiet_libraries(), closing(run_dir), InterruptSignal() as signal:
        run = set_up(config, given or Given(), run_dir, resume=bool(resume), reporter=reporter)
        with run.reporter, closing(run.source):
            signal.note_stops()
            with signal.raised():
                run.source.open(run)
            resume = resumed_from(run_dir, resume)
            if resume:
                restore(run, None if isinstance(resume, bool) else Path(resume))
            elif run.accelerator.is_main_process:
                run_dir.cut_completions(0)  # of a start that did not come to its first checkpoint
            if run.accelerator.is_main_process:  # not before: a resume that is refused leaves what the run was
                run_dir.begin(launch())
                run_dir.write_config(dump_config(run.config))
                run_dir.write_environment(**run.environment)
            start_trackers(run)
            saver = Saver(run)
            if isinstance(resume, (str, Path)) and not run_dir.store.has(Path(resume)):
                saver.save(wait=True)  # else a restart would go on from one that is here, of another course
            try:
                _steps(run, signal, saver)
            except Exception:  # a second signal, which acts at once, is none
                saver.leave()
                raise
            _finish(run)
        return run.state


def _steps(run: Run, signal: InterruptSignal, saver: Saver) -> None:
    trainer, state = run.trainer, run.state
    meter = Meter()
    run.wrapped.train()
    run.reporter.begin(state.step, run.total_steps)
    if _lacks_evaluation(run):
        _log_evaluation(run)
    while state.step < run.total_steps:
        started = time.perf_counter()
        with _saved_first(run, saver, meter):
            trees = run.source.trees(run)
        result = train_step(run, trees)
        meter.add(result, time.perf_counter() - started)
        state.step += 1
        if isinstance(run.reference, Following):
            run.reference.follow(state.step)
        state.epoch = run.order.epoch_after(state.step)
        run.reporter.stepped(state.step)
        if result.ends_for is not None:
            _save_before_the_end(run, saver, meter)
            raise TruingError(result.ends_for)
        last = state.step == run.total_steps
        saves = last or _due(state.step, trainer.save_steps)
        # a checkpoint ends an interval, so that a resumed run logs what an unbroken one does
        if saves or state.step == 1 or _due(state.step, trainer.logging_steps):
            meter = _log(run, meter)
        if _evaluates(run):
            with _saved_first(run, saver, meter):
                _log_evaluation(run)
        number = signal.received(run.accelerator)
        if number and not last and meter.steps:
            meter = _log(run, meter)
        if number in STOPPING and not last:
            raise Interrupted(number, saver.save(wait=True))
        if saves or number == SAVING:
            saver.save(wait=last)
        saver.settle(wait=False)


@contextmanager
def _saved_first(run: Run, saver: Saver, meter: Meter) -> Iterator[None]:
    """Save what was learned before an error of sampling or of rewards ends the run, where all ranks have it."""
    try:
        yield
    except Exception as error:
        everywhere = run.accelerator.num_processes == 1 or isinstance(error, TruingError)
        if everywhere and isinstance(run.source, RolloutSource):
            _save_before_the_end(run, saver, meter)
        raise


def _save_before_the_end(run: Run, saver: Saver, meter: Meter) -> None:
    """Log and save what was learned, where something was and it can be saved, before an error ends the run; all ranks call this."""
    if meter.steps:
        _log(run, meter)
    if run.state.step - run.state.skipped_in_a_row <= saver.begun_at:
        return
    try:
        saved = f"the run is saved as {saver.save(wait=True)} before it ends for what follows; --resume goes on"
    except TruingError as error:
        saved = f"the run is not saved before it ends for what follows: {error}"
    run.reporter.warn(saved)


def _evaluates(run: Run) -> bool:
    """Whether the step that was taken is one after which there is an evaluation."""
    step = run.state.step
    return run.eval_trees is not None and (step == run.total_steps or _due(step, run.trainer.eval_steps))


def _lacks_evaluation(run: Run) -> bool:
    """Whether the run resumes where an evaluation was to be, and failed."""
    if not _evaluates(run):
        return False
    lacks = False
    if run.accelerator.is_main_process:  # which has the file
        of_step = [line for line in run.state.history if line["step"] == run.state.step]
        lacks = bool(of_step) and not any(name.startswith("eval_") for line in of_step for name in line)
    return bool(gather_object([lacks])[0])


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _log(run: Run, meter: Meter) -> Meter:
    values = {"skipped_steps": float(run.state.skipped_steps), "memory/peak_mb": _peak_megabytes(run)}
    _record(run, {**meter.means(run), **values})
    return Meter()


def _log_evaluation(run: Run) -> None:
    started = time.perf_counter()
    values = evaluate(run)
    _record(run, {**values, "eval_seconds": time.perf_counter() - started})


def _record(run: Run, values: dict[str, float]) -> None:
    line = {"step": run.state.step, "epoch": round(run.state.epoch, 6), **values}
    run.state.metrics.update(line)
    if run.accelerator.is_main_process:
        error = run.run_dir.append_metrics(line)
        if error is not None:
            run.reporter.warn(f"metrics.jsonl cannot be written ({error}); tried again with the next line")
        run.reporter.logged(line)
    track(run, values)


def _peak_megabytes(run: Run) -> float:
    if run.accelerator.device.type == "cuda":
        return torch.cuda.max_memory_allocated(run.accelerator.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts in KiB


def _finish(run: Run) -> None:
    """Write the model, and leave it to the caller as one to use: no dropout, no optimiser beside it."""
    state = run.state
    state.model.eval()
    use_own_attention(run.policy.causal_lm)
    if run.trainer.gradient_checkpointing:
        disable_checkpointing(run.policy.causal_lm)
    state.optimizer = state.scheduler = state.scaler = None
    for head in state.heads.values():
        head.eval()
    written = _Written.of(run)
    main, sizes = run.accelerator.is_main_process, written.sizes(run)
    together(
        lambda: run.run_dir.replace_model(lambda folder: _write_model(run, folder, written), sizes) if main else None,
        "writing the model",
    )
    end_trackers(run)
    run.reporter.measured(f"done: {state.step} steps, ", state.metrics)
    run.reporter.say(f"model: {run.run_dir.model}")


@attrs.frozen(eq=False, kw_only=True)
class _Written:
    """What the model's folder is to hold, gathered where it is spread over ranks."""

    model: dict[str, Tensor] | None
    """On the first rank, the weights of a model that is spread over ranks; None where the model has them itself."""
    critic: dict[str, Tensor] | None
    """The same of the critic."""
    heads: Mapping[str, Tensor]
    """The weights of heads on either, by name."""

    @classmethod
    def of(cls, run: Run) -> _Written:
        critic = run.policy.critic
        linear = {name: head for name, head in run.state.heads.items() if isinstance(head, nn.Linear)}
        if critic is not None and critic.value_head is not None:
            linear["critic"] = critic.value_head
        return cls(
            model=_whole_weights(run, run.state.model),
            critic=None if critic is None else _whole_weights(run, critic.model),
            heads={name: whole(head.weight) for name, head in linear.items()},
        )

    def sizes(self, run: Run) -> list[int]:
        """About how many bytes each file of weights has; of a model with an adapter that is written alone."""
        models: list[nn.Module] = [run.state.model, *([] if run.policy.critic is None else [run.policy.critic.model])]
        weights: list[list[Tensor]] = [
            [weight for weight in model.parameters() if weight.requires_grad or not isinstance(model, PeftModel)]
            for model in models
        ]
        files = [*weights, *([head] for head in self.heads.values())]
        return [sum(weight.numel() * weight.element_size() for weight in file) for file in files]


def _whole_weights(run: Run, model: nn.Module) -> dict[str, Tensor] | None:
    if not is_spread(run.policy):
        return None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = cast(dict[str, Tensor], get_model_state_dict(model, options=options))
    first: dict[int, str] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        if name in weights:  # tied weights share memory again, by which save_pretrained knows them
            weights[name] = weights[first.setdefault(id(weight), name)]
    return weights


def _write_model(run: Run, folder: Path, written: _Written) -> None:
    state, critic = run.state, run.policy.critic
    state.model.save_pretrained(str(folder), state_dict=written.model)
    for name, head in written.heads.items():
        if name != "critic":
            write_score_head(head, folder)
    if critic is not None:
        critic.model.save_pretrained(str(folder / CRITIC_FOLDER), state_dict=written.critic)
        write_score_head(written.heads["critic"], folder / CRITIC_FOLDER)
    state.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(run.config, state))
