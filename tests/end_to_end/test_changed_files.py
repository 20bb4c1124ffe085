"""Files that change under a run, or between it and its resume."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from tests.end_to_end.helpers import write_config
from truing.cli import main
from truing.train import loop


def truing(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("adapter", [(), ("model.adapter.type=lora",)], ids=["full", "lora"])
def test_a_model_that_is_overwritten_and_cut_during_the_run_does_not_change_it(tmp_path, monkeypatch, adapter):
    config = write_config(tmp_path)
    assert truing("train", config, *adapter, f"output.dir={tmp_path / 'undisturbed'}").exit_code == 0
    file = tmp_path / "model/model.safetensors"
    set_up = loop.set_up

    def disturbed(*args, **kwargs):
        run = set_up(*args, **kwargs)
        if Path("/proc/self/maps").exists():
            assert str(file) not in Path("/proc/self/maps").read_text()
        file.write_bytes(b"\x3f" * file.stat().st_size)
        os.truncate(file, 0)
        return run

    monkeypatch.setattr(loop, "set_up", disturbed)
    assert truing("train", config, *adapter).exit_code == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "undisturbed")


def test_a_bit_of_the_base_model_that_flips_before_a_resume_is_named(tmp_path):
    config = write_config(tmp_path, save_steps=3)
    assert truing("train", config, "model.adapter.type=lora").exit_code == 0
    file = tmp_path / "model/model.safetensors"
    weights = {name: weight.clone() for name, weight in load_file(file).items()}
    weights["lm_head.weight"].view(torch.int32).view(-1)[4321] ^= 1
    save_file(weights, file, metadata={"format": "pt"})
    done = truing("train", config, "model.adapter.type=lora", "--resume")
    assert done.exit_code == 2
    assert "belongs to a run with other starting weights (" in done.stderr
