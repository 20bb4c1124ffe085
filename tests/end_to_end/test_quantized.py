"""An adapter on a model of 4 bits."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

import truing
from tests.end_to_end.helpers import save_tiny_model, write_config
from truing.config import load_config
from truing.registry import Registry

LORA = ("model.adapter.r=4", "model.adapter.dropout=0.1")


def run(folder, name, *overrides, resume=False, adapter=LORA):
    path = write_config(folder, learning_rate=1e-2, max_steps=4, save_steps=2)
    save_tiny_model(folder / "model", hidden_size=64)
    overrides = ("model.quantization=nf4", f"output.dir={folder / name}", *adapter, *overrides)
    return truing.align(config=load_config(path, overrides, registry=Registry.load()), resume=resume)


def test_without_an_adapter_it_is_refused(tmp_path):
    with pytest.raises(truing.ConfigError, match="model.quantization is nf4, which keeps weights in 4 bits that cannot be trained"):
        run(tmp_path, "run", adapter=())


def test_without_the_package_it_says_what_to_install(tmp_path, monkeypatch):
    from truing.train import preconditions

    monkeypatch.setattr(preconditions.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(truing.SetupError, match=r"pip install truing\[bitsandbytes\]"):
        run(tmp_path, "run")


def test_an_adapter_learns_on_it_and_resumes_to_the_bit(tmp_path):
    pytest.importorskip("bitsandbytes")
    whole = run(tmp_path, "whole")
    layer = whole.model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.dtype == torch.uint8
    assert whole.history[0]["loss"] == pytest.approx(0.693147, abs=1e-6)  # policy and reference are the same 4 bits
    assert whole.history[-1]["loss"] < 0.6
    assert all("lora" in name for name, weight in whole.model.named_parameters() if weight.requires_grad)
    run(tmp_path, "cut")
    for path in (tmp_path / "cut/checkpoints/step-00000004", tmp_path / "cut/model"):
        path.rename(tmp_path / f"{path.name}-of-cut")
    run(tmp_path, "cut", resume=True)
    first, second = (load_file(tmp_path / name / "model/adapter_model.safetensors") for name in ("whole", "cut"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads((tmp_path / "whole/model/adapter_config.json").read_text())["r"] == 4
