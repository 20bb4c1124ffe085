"""Trackers such as tensorboard and wandb: where metrics go beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping

from truing.errors import SetupError, first_line
from truing.redact import redacted
from truing.train.run import Run


def start_trackers(run: Run) -> None:
    """Start those that trainer.report_to names. Raises SetupError for one that cannot be."""
    names = run.trainer.report_to
    if not names:
        return
    about = redacted({"method": run.config.method.name, "model": run.config.model.name})
    try:
        run.accelerator.init_trackers("truing", config=about, init_kwargs={"wandb": {"dir": str(run.run_dir.path)}})
    except Exception as error:  # each brings errors of its own
        raise SetupError(
            f"trainer.report_to: {', '.join(names)} cannot be started ({first_line(error)}); mend its installation or settings, "
            "or leave it out of report_to: every metric is in metrics.jsonl too"
        ) from error


def track(run: Run, values: Mapping[str, float]) -> None:
    """Send the step's values. A tracker that fails costs a warning, not the run."""
    if run.trainer.report_to:
        try:
            run.accelerator.log(dict(values), step=run.state.step)
        except Exception as error:
            run.reporter.warn(_lost(run, error))


def end_trackers(run: Run) -> None:
    """Let them write what they hold."""
    if run.trainer.report_to:
        try:
            run.accelerator.end_training()
        except Exception as error:
            run.reporter.warn(_lost(run, error))


def _lost(run: Run, error: Exception) -> str:
    return f"{', '.join(run.trainer.report_to)} may lack metrics ({first_line(error)}); metrics.jsonl has them all"
