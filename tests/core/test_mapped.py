"""Weights whose file changes after they were loaded: they stay what they were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from tests.end_to_end.steps import make_run, prepare_folder
from tests.faults.inject import BufferedSource
from truing.config.classes import ModelConfig
from truing.errors import ModelError
from truing.model import mapped
from truing.model.loading import load_model
from truing.model.mapped import detach_from_files, own
from truing.model.precomputed import Precomputed
from truing.testing import tiny_model, tiny_tokenizer
from truing.train.saving import Saver, _take_over

linux = pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="asks the kernel what is mapped")


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def spoil(path: Path) -> None:
    """Overwrite a file in place and cut it; reading what is still mapped of it would then kill the process."""
    assert not is_mapped(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\x3f" * size)
    os.truncate(path, 0)


def numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model with weights of its own for the head, and one that shares the embedding's."""
    tiny_model(architecture=request.param).save_pretrained(tmp_path / "model", max_shard_size="60KB")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@linux
@pytest.mark.parametrize("dtype", ["float32", "auto", "bfloat16"])
def test_loaded_weights_do_not_depend_on_their_file(folder: Path, dtype: Any) -> None:
    model = load_model(ModelConfig(name=str(folder), dtype=dtype), Path(), trained=True)
    before = numbers(model)
    files = list(folder.glob("*.safetensors"))
    assert len(files) > 1
    for file in files:
        spoil(file)
    assert same(model, before)
    tied = model.config.tie_word_embeddings
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == bool(tied)


@linux
def test_a_model_that_is_mapped_gets_memory_of_its_own(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    files = list(folder.glob("*.safetensors"))
    assert any(map(is_mapped, files)), "transformers maps weights no longer, and this module is not needed"
    before, parameters = numbers(model), list(model.parameters())
    detach_from_files(model)
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    for file in files:
        spoil(file)
    assert same(model, before)


@linux
def test_tensors_that_share_mapped_memory_go_on_sharing_it(tmp_path: Path) -> None:
    storage = torch.arange(6.0)
    storage.numpy().tofile(tmp_path / "numbers")
    file = torch.from_file(str(tmp_path / "numbers"), size=6)
    model = nn.Module()
    model.first, model.second = nn.Parameter(file), nn.Parameter(file)
    model.transposed = nn.Parameter(file.view(2, 3).T)
    model.own = nn.Parameter(torch.zeros(2))
    place = model.own.data_ptr()
    del file
    detach_from_files(model)
    spoil(tmp_path / "numbers")
    assert model.first.data_ptr() == model.second.data_ptr() and model.own.data_ptr() == place
    assert model.first.tolist() == storage.tolist() and model.transposed.tolist() == storage.view(2, 3).T.tolist()
    assert model.transposed.stride() == (1, 3)


def test_where_the_system_does_not_say_what_is_mapped_all_is_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(mapped, "_MAPS", tmp_path / "absent")
    tensor = torch.ones(3)
    assert own(tensor).data_ptr() != tensor.data_ptr()
    monkeypatch.undo()
    assert own(tensor).data_ptr() == tensor.data_ptr() or not mapped._MAPS.exists()


@linux
def test_kept_reference_log_probabilities_do_not_depend_on_their_file(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    Precomputed(torch.arange(5.0), torch.tensor([0, 2, 5])).write(path)
    with safe_open(path, framework="pt") as file:
        view = file.get_tensor("logps")
    assert own(view).data_ptr() != view.data_ptr()
    del view, file
    found = Precomputed.read(path, 2)
    assert found is not None
    spoil(path)
    assert found.logps.tolist() == [0, 1, 2, 3, 4] and found.starts.tolist() == [0, 2, 5]


def test_weights_that_change_while_they_are_loaded_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = AutoModelForCausalLM.from_pretrained

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        os.utime(next(folder.glob("*.safetensors")), ns=(0, 0))
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", disturbed)
    with pytest.raises(ModelError, match=r"model\.name: .*\.safetensors changed while it was being read: it had .* bytes of"):
        load_model(ModelConfig(name=str(folder)), Path(), trained=True)


@linux
def test_a_rollout_buffer_does_not_depend_on_the_checkpoint_that_it_came_from(tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    run = make_run(tmp_path, "run", dtype="float32", max_steps=3)
    run, held = attrs.evolve(run, source=BufferedSource([], per_step=2)), torch.arange(6)
    run.source.load({"used": 2}, {"held": held.clone()})
    run.state.step = 1
    path = Saver(run).save(wait=True)
    assert _take_over(run, path) is None
    spoil(path / "source.safetensors")
    assert run.source.tensors()["held"].equal(held)
