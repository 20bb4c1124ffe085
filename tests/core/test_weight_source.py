"""The policy's weights as a backend takes them: plain names, adapters merged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from truing.model.policy import Policy
from truing.model.weight_source import KEPT, PolicyWeights
from truing.testing import tiny_model


def source(model, folder=None, step=0):
    accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None)
    state = SimpleNamespace(model=model, step=step)
    policy = Policy(model, "padded")
    return PolicyWeights(SimpleNamespace(state=state, policy=policy, accelerator=accelerator, run_dir=SimpleNamespace(path=folder)))


def adapted(**options):
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **options))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(weight)
    return model


def test_a_whole_model_gives_its_weights():
    model = tiny_model()
    assert [name for name, _ in source(model).parameters()] == [name for name, _ in model.named_parameters(remove_duplicate=False)]


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "lora and a whole module"])
def test_an_adapter_is_merged_under_plain_names(options):
    model = adapted(**options)
    found = dict(source(model).parameters())
    expected = dict(adapted(**options).merge_and_unload().named_parameters(remove_duplicate=False))
    assert found.keys() == expected.keys() == dict(tiny_model().named_parameters(remove_duplicate=False)).keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight.detach())


def test_what_comes_next_is_said_by_the_merged_weights_without_dropout():
    model = adapted(lora_dropout=0.5).train()
    ids = [5, 6, 7, 8]
    found = source(model).next_logps(ids)
    with torch.no_grad():
        expected = adapted().merge_and_unload().eval()(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    torch.testing.assert_close(found, expected)
    assert model.training and not found.requires_grad


def test_the_adapter_alone_is_a_folder_of_which_the_newest_stay(tmp_path):
    assert source(tiny_model()).adapter() is None
    model = adapted()
    folders = [source(model, tmp_path, step).adapter() for step in range(4)]
    assert sorted((tmp_path / "adapters").iterdir()) == folders[-KEPT:]
    assert (folders[-1] / "adapter_model.safetensors").exists()


def test_the_adapter_that_is_written_stays_where_a_killed_run_left_later_ones(tmp_path):
    model = adapted()
    for step in (56, 57):
        source(model, tmp_path, step).adapter()
    folder = source(model, tmp_path, 50).adapter()
    assert (folder / "adapter_model.safetensors").exists() and len(list(folder.parent.iterdir())) == KEPT
