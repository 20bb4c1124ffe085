"""The policy's weights as a rollout backend takes them: whole, under their Hugging Face names, or the adapter alone.

Where they are spread over ranks they are gathered, which all of these do together.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from truing.model.spread import is_spread, whole
from truing.train.ranks import together

if TYPE_CHECKING:
    from truing.train.run import Run


KEPT = 2
"""Versions of an adapter whose folders stay."""


@attrs.frozen(eq=False)
class PolicyWeights:
    """The weights that the policy has now; the same on every rank."""

    run: Run

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter by its Hugging Face name, gathered to full size, adapters merged; tied ones under each name."""
        model = self.run.state.model
        if not isinstance(model, PeftModel):
            yield from ((name, whole(weight)) for name, weight in model.named_parameters(remove_duplicate=False))
            return
        base = model.get_base_model()
        merged = {f"{name}.": module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}
        for long_name, weight in base.named_parameters(remove_duplicate=False):
            if ".original_module." in long_name:  # another is trained in its place
                continue
            name = _without_wrapper(long_name, model)
            layer = next((prefix for prefix in merged if name.startswith(prefix)), None)
            if layer is None:
                yield name, whole(weight)
            elif name.startswith(f"{layer}base_layer."):
                plain = f"{layer}{name.removeprefix(f'{layer}base_layer.')}"
                yield plain, _merged(merged[layer], weight) if plain.endswith("weight") else whole(weight)

    def adapter(self) -> Path | None:
        """Return a folder with the adapter alone, as peft saves it; None when the whole model is trained."""
        run = self.run
        if not isinstance(run.state.model, PeftModel):
            return None
        folder = run.run_dir.path / "adapters" / f"version-{run.state.step:08d}"
        weights = self._adapter_weights() if is_spread(run.state.model) else None
        together(lambda: self._save_adapter(folder, weights) if run.accelerator.is_main_process else None, "writing the adapter")
        return folder

    def next_logps(self, ids: Sequence[int]) -> Tensor:
        """Return [len(ids), V] log-probabilities of every token as the one after each of `ids`."""
        policy = self.run.policy
        if isinstance(policy, FSDPModule) and "next_logps" not in vars(policy):
            register_fsdp_forward_method(policy, "next_logps")  # it is a pass through the whole model, beside `forward`
        return policy.next_logps(ids)

    def _adapter_weights(self) -> dict[str, Tensor]:
        return {name: whole(weight) for name, weight in self.run.state.model.named_parameters() if weight.requires_grad}

    def _save_adapter(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self.run.state.model.save_pretrained(str(folder), state_dict=weights)
        # by age, for a run that was killed may have left later versions than the one that it goes on from
        for old in sorted(folder.parent.glob("version-*"), key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
            shutil.rmtree(old)


def _without_wrapper(name: str, model: PeftModel) -> str:
    """Return the plain name of a weight of a module that is trained as a whole beside an adapter."""
    for adapter in model.active_adapters:
        name = name.replace(f".modules_to_save.{adapter}.", ".")
        name = name.removeprefix(f"modules_to_save.{adapter}.")
    return name


@torch.no_grad()
def _merged(layer: BaseTunerLayer, weight: Tensor) -> Tensor:
    linear: Any = layer  # of the tuner that says what it adds
    merged = whole(weight)
    for name in layer.active_adapters:
        merged = merged + whole(linear.get_delta_weight(name)).to(merged.dtype)
    return merged
