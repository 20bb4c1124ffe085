"""What methods learn of held-out pairs: the examples' own configurations on the quickstart's model, with their curves.

python -m tests.benchmarks.learning [--only dpo,orpo] [--seeds 42,1] [--plot FILE.svg]

Each run is evaluated ten times. Printed are, by step, the share of held-out pairs that the method orders right by its own measure
(`eval_rewards/accuracies`, or `eval_accuracy` of a reward model), and of the trained model the share of held-out pairs whose chosen
answer is the more probable one, which any policy can be asked for, and which is 0.67 before training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

import truing
from truing.config import load_config
from truing.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "examples" / "quickstart"
EVALUATIONS = 10
LEARNERS = {
    "dpo": ("quickstart/dpo.yaml", ()),
    "ipo": ("ipo/ipo.yaml", ()),
    "tr-dpo": ("tr-dpo/tr-dpo.yaml", ()),
    "kto": ("kto/kto.yaml", ()),
    "orpo": ("orpo/orpo.yaml", ()),
    "cpo": ("cpo/cpo.yaml", ()),
    "simpo": ("simpo/simpo.yaml", ()),
    "reward-model": ("reward-model/reward-model.yaml", ()),
    "ranked-reward-model": ("ranked-reward-model/ranked-reward-model.yaml", ()),
}
"""By method: a configuration of examples/, and what is changed in it."""
MEASURES = ("eval_rewards/accuracies", "eval_accuracy")


@attrs.frozen
class Curve:
    """One run: held-out accuracy by step, and what the trained model finds more probable."""

    method: str
    seed: int
    steps: tuple[int, ...]
    accuracies: tuple[float, ...]
    preference: float | None
    """None for a reward model, which is not asked for probabilities."""


def learn(method: str, seed: int, folder: Path) -> Curve:
    """Train as the example says, evaluating often, and return the curve."""
    path, changes = LEARNERS[method]
    registry = Registry.load()
    overrides = [*changes, f"trainer.seed={seed}", f"output.dir={folder / method}-{seed}"]
    plain = load_config(ROOT / "examples" / path, overrides, registry=registry)
    rows = sum(len(Path(source.path or "").read_text(encoding="utf-8").splitlines()) for source in plain.data)
    total = plain.trainer.max_steps or round(rows / plain.trainer.batch_size * plain.trainer.num_epochs)
    config = load_config(
        ROOT / "examples" / path, [*overrides, f"trainer.eval_steps={max(1, total // EVALUATIONS)}"], registry=registry
    )
    with contextlib.redirect_stdout(io.StringIO()):
        state = truing.align(config=config)
    evaluated = [line for line in state.history if any(name in line for name in MEASURES)]  # none of KTO, which compares no pairs
    accuracies = tuple(next(line[name] for name in MEASURES if name in line) for line in evaluated)
    return Curve(method, seed, tuple(int(line["step"]) for line in evaluated), accuracies, _preference(method, state))


def _preference(method: str, state: Any) -> float | None:
    if method.endswith("reward-model"):
        return None
    sys.path.insert(0, str(QUICKSTART))
    from sampling import preference_accuracy

    rows = [json.loads(line) for line in (QUICKSTART / "data/eval.jsonl").read_text(encoding="utf-8").splitlines()]
    found: float = preference_accuracy(state.model, state.tokenizer, rows)
    return found


def plot(curves: Sequence[Curve]) -> str:
    """Return an SVG of accuracy against the share of a run's steps."""
    width, height, left, bottom = 640, 320, 50, 40
    colours = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f")
    shown = [curve for curve in curves if curve.steps]
    methods = list(dict.fromkeys(curve.method for curve in shown))
    tenths = math.floor(10 * min((min(curve.accuracies) for curve in shown), default=0.5))
    lowest = min(tenths, 9) / 10

    def point(share: float, accuracy: float) -> str:
        up = (accuracy - lowest) / (1 - lowest)
        return f"{left + share * (width - left - 190):.1f},{height - bottom - up * (height - bottom - 20):.1f}"

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for tick in (number / 10 for number in range(round(10 * lowest), 11)):
        (x, y), end = point(0, tick).split(","), point(1, tick).split(",")[0]
        lines.append(f'<line x1="{x}" y1="{y}" x2="{end}" y2="{y}" stroke="#ddd"/>')
        lines.append(f'<text x="{left - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
    for curve in shown:
        colour = colours[methods.index(curve.method) % len(colours)]
        points = " ".join(point(step / curve.steps[-1], a) for step, a in zip(curve.steps, curve.accuracies, strict=True))
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for index, method in enumerate(methods):
        y = 30 + 20 * index
        lines.append(f'<rect x="{width - 178}" y="{y - 10}" width="12" height="12" fill="{colours[index % len(colours)]}"/>')
        lines.append(f'<text x="{width - 160}" y="{y}">{method}</text>')
    caption = "share of the run's steps, 0 to 1; accuracy on the pairs of 104 held-out prompts"
    lines.append(f'<text x="{left}" y="{height - 12}">{caption}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(LEARNERS))
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args(argv)
    curves = []
    with tempfile.TemporaryDirectory() as made:
        for method in options.only.split(","):
            for seed in map(int, options.seeds.split(",")):
                curve = learn(method, seed, Path(made))
                by_step = " ".join(f"{step}:{value:.2f}" for step, value in zip(curve.steps, curve.accuracies, strict=True))
                preference = "" if curve.preference is None else f"; chosen more probable {curve.preference:.2f}"
                print(f"{method} seed {seed}: {by_step}{preference}", flush=True)
                curves.append(curve)
    if options.plot:
        options.plot.write_text(plot(curves))
    return 0


if __name__ == "__main__":
    sys.exit(main())
