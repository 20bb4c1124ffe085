"""Gradients of one optimiser step, in this process or on several ranks: what tests compare with each other.

python -m torch.distributed.run --nproc-per-node N -m tests.end_to_end.steps FOLDER OPTIONS (JSON) writes FOLDER/ranks.safetensors.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from truing import Layout, Loss, LossInputs, LossOutput, Needs, Term
from truing.config import build_config
from truing.registry import Registry
from truing.train.console import Reporter
from truing.train.given import Given
from truing.train.meter import Meter
from truing.train.run import Run
from truing.train.run_dir import RunDir
from truing.train.setup import set_up
from truing.train.step import accumulate_gradients, gather_metrics, train_step


@attrs.frozen(kw_only=True)
class SortedMargins(Loss):
    """Weighs margins by their place in the order of the whole step's margins; also reads everything else that a forward gives."""

    name: ClassVar[str] = "sorted-margins"
    layout: ClassVar[Layout] = Layout.PAIRED
    scope: ClassVar = "step"
    needs: ClassVar[Needs] = Needs.REFERENCE_LOGPS | Needs.ENTROPY | Needs.SQUARED_PROBS

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return a term per pair and one per token."""
        ratios = inputs.logps - inputs.reference_logps
        margins, _ = (ratios[::2] - ratios[1::2]).sort()
        weights = torch.linspace(0, 1, len(margins), dtype=margins.dtype, device=margins.device)
        assert inputs.token_entropy is not None and inputs.token_squared_probs is not None
        calls = inputs.state["calls"] + 1
        return LossOutput(
            terms=[
                Term((weights * margins).tanh(), "pair"),
                Term(-0.1 * inputs.token_entropy, "token"),
                Term(inputs.token_squared_probs.square(), "token", 0.5),
            ],
            metrics={"margins": Term(margins, "pair"), "calls": Term(torch.tensor(float(calls)), "constant")},
            state={"calls": calls},
        )

    def initial_state(self) -> dict[str, Any]:
        """Return that it was not called yet."""
        return {"calls": 0}


def prepare_folder(folder: Path, architecture: str = "gpt2", rows: int = 16) -> None:
    """Write a model and data. gpt2 has no step that rounds to fp32 when all else is float64."""
    save_tiny_model(folder / "model", architecture=architecture)
    write_rows(folder / "rows.jsonl", preferences(rows))


def make_run(
    folder: Path, output: str, *, method: Any = "dpo", dtype: str = "float64", eval_rows: bool = False, **trainer: Any
) -> Run:
    """Return a run on the folder's model and data, away from its reference, where the loss's curvature shows."""
    source = {"path": str(folder / "rows.jsonl"), "format": "preference"}
    values = {
        "method": OWN.get(method, method) if isinstance(method, str) else method,
        "model": {"name": str(folder / "model"), "dtype": dtype},
        "data": source,
        "eval_data": source if eval_rows else None,
        "trainer": {"batch_size": 16, **trainer},
        "output": {"dir": str(folder / output)},
    }
    values = {key: value for key, value in values.items() if value is not None}
    config = build_config(values, registry=Registry.load())
    run = set_up(config, Given(), RunDir(config.output.dir), resume=False, reporter=Reporter(quiet=True))
    with torch.no_grad():
        for weight in run.policy.parameters():
            drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
            weight.add_(0.02 * drawn.to(weight.device))
    return run


@attrs.frozen(kw_only=True)
class SomeMargins(Loss):
    """Learns from pairs with a positive margin only, so that a micro-batch may have nothing to learn from."""

    name: ClassVar[str] = "some-margins"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs: ClassVar[Needs] = Needs.NOTHING

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return one term."""
        kept = [margin for margin in inputs.chosen.mean_logps - inputs.rejected.mean_logps if margin > 0]
        values = torch.stack(kept) if kept else torch.zeros(0, dtype=inputs.token_logps.dtype)
        return LossOutput(terms=[Term(values, "pair")])


@attrs.frozen(kw_only=True)
class Scored(Loss):
    """Pushes the scores of a pair apart, and reads no log-probability."""

    name: ClassVar[str] = "scored"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs: ClassVar[Needs] = Needs.SCORES | Needs.NO_LOGPS

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return one term, and a metric."""
        assert inputs.scores is not None and inputs.token_logps.isnan().all() and not inputs.token_logps.requires_grad
        return LossOutput(
            terms=[Term(torch.nn.functional.softplus(inputs.scores[1::2] - inputs.scores[::2]), "pair")],
            metrics={"mean_reward": Term(inputs.scores.detach(), "sequence")},
        )


@attrs.frozen(kw_only=True)
class SortedScores(Loss):
    """Weighs scores by their place in the order of the whole step's, and log-probabilities beside them."""

    name: ClassVar[str] = "sorted-scores"
    layout: ClassVar[Layout] = Layout.PAIRED
    scope: ClassVar = "step"
    needs: ClassVar[Needs] = Needs.SCORES

    def __call__(self, inputs: LossInputs) -> LossOutput:
        """Return a term per pair and one per branch."""
        assert inputs.scores is not None
        margins, _ = (inputs.scores[::2] - inputs.scores[1::2]).sort()
        weights = torch.linspace(0, 1, len(margins), dtype=margins.dtype, device=margins.device)
        return LossOutput(
            terms=[Term((weights * margins).tanh(), "pair"), Term(inputs.mean_logps * inputs.scores, "sequence", 0.1)]
        )


OWN = {loss.name: loss for loss in (SortedMargins(), SomeMargins(), Scored(), SortedScores())}


def step(run: Run) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return metrics and gradients of the run's first step, as if it had taken a second."""
    meter = Meter()
    meter.add(accumulate_gradients(run, run.source.trees(run)), seconds=1.0)
    gradients = {name: _whole(weight.grad).clone() for name, weight in run.policy.named_parameters() if weight.grad is not None}
    return meter.means(run), gradients


def _whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


def shard(run: Run) -> Run:
    """Return the run with its weights spread over the ranks. accelerate knows FSDP2 on accelerators only, PyTorch on CPUs too."""
    decoder = run.policy.causal_lm.get_decoder()
    for layer in decoder.h if hasattr(decoder, "h") else decoder.layers:
        fully_shard(layer)
    return attrs.evolve(run, wrapped=fully_shard(run.policy))


def on_ranks(folder: Path, ranks: int, **options: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the same of a step that `ranks` processes share."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", __name__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [sys.executable, *command, str(folder), json.dumps(options)],
        capture_output=True, text=True, env=environment, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "ranks.json").read_text()), load_file(folder / "ranks.safetensors")


if __name__ == "__main__":
    place, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    sharded = settings.pop("sharded", False)
    shared = make_run(place, "ranks", **settings)
    shared = shard(shared) if sharded else shared
    metrics, found = step(shared)
    if sharded:
        shared.state.optimizer.zero_grad()
        gather_metrics(shared, train_step(shared).metrics)
    if shared.accelerator.is_main_process:
        (place / "ranks.json").write_text(json.dumps(metrics))
        save_file(found, place / "ranks.safetensors")
    shared.accelerator.wait_for_everyone()
    os._exit(0)  # gloo's threads may still run when the interpreter takes itself apart, which aborts it now and then
