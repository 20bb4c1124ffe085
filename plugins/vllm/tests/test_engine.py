"""The engine that loads weights in the server, with a stand-in for vLLM: no part of the model stays as it was unnoticed."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, Generic, TypeVar

import pytest
import torch
from safetensors.torch import save_file

Init, Given = TypeVar("Init"), TypeVar("Given")


class Base(Generic[Init, Given]):
    """What of vLLM's base class the engine uses."""

    update_info_cls: Any

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        self.model_config, self.device, self.model = vllm_config.model_config, device, model

    def parse_update_info(self, given: dict[str, Any]) -> Any:
        return self.update_info_cls(**given)


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)

    def load_weights(self, weights: Any) -> set[str]:
        found = dict(weights)
        self.load_state_dict(found, strict=False)
        return set(found)


@pytest.fixture
def engine(tmp_path, monkeypatch):
    named = {
        "vllm.distributed.weight_transfer": {"WeightTransferEngineFactory": object},
        "vllm.distributed.weight_transfer.base": {
            "WeightTransferEngine": Base,
            "WeightTransferInitInfo": object,
            "WeightTransferUpdateInfo": object,
        },
        "vllm.model_executor.model_loader.reload": {"finalize_layerwise_reload": None, "initialize_layerwise_reload": None},
    }
    for name, members in named.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "truing_vllm.inside.engine", raising=False)
    monkeypatch.setenv("TRUING_WEIGHTS_DIR", str(tmp_path))
    module = importlib.import_module("truing_vllm.inside.engine")
    monkeypatch.delitem(sys.modules, "truing_vllm.inside.engine")
    config = SimpleNamespace(model_config=SimpleNamespace(quantization=None))
    return module.SafetensorsEngine(None, config, torch.device("cpu"), Model())


def test_all_weights_of_the_files_are_loaded(engine, tmp_path):
    given = {name: torch.full((2, 2), float(number)) for number, name in enumerate(["one.weight", "other.weight"])}
    for name, weight in given.items():
        save_file({name: weight}, str(tmp_path / f"{name}.safetensors"))
    engine.update_weights({"files": [f"{name}.safetensors" for name in given]})
    assert all(torch.equal(weight, given[name]) for name, weight in engine.model.named_parameters())


def test_an_update_without_one_of_the_models_weights_fails_and_names_it(engine, tmp_path):
    save_file({"one.weight": torch.zeros(2, 2)}, str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match=r"1 of 2 weights are in none of the files: other\.weight"):
        engine.update_weights({"files": ["w.safetensors"]})


def test_room_for_adapters_changes_names_and_nothing_else(engine, tmp_path):
    engine.names = {"one.weight"}
    engine.model.load_weights = lambda weights: {"one.base_layer.weight" for _ in weights}
    save_file({"one.weight": torch.zeros(2, 2)}, str(tmp_path / "w.safetensors"))
    engine.update_weights({"files": ["w.safetensors"]})


@pytest.mark.parametrize("files", [[], ["../w.safetensors"], ["nothing.safetensors"]])
def test_files_elsewhere_are_not_loaded(engine, files):
    with pytest.raises(ValueError, match="needs files|no file below"):
        engine.update_weights({"files": files})
