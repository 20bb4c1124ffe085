"""Models and datasets that would run code, or lead elsewhere: refused with the reason, or read without what is bad about them.

Each leaves a mark if its code runs; none does.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from truing.config.classes import DataConfig, ModelConfig, TrainerConfig
from truing.data import prepare
from truing.data.load import load_rows
from truing.data.strategies import Preference, PromptText
from truing.data.tokenizer import load_context_length, load_tokenizer
from truing.errors import ConfigError, DataError, ModelError, TruingError
from truing.loss import Layout
from truing.model.loading import load_model
from truing.model.precomputed import Precomputed
from truing.model.weights import check_weights, conversion
from truing.testing import tiny_model, tiny_tokenizer


class Evil:
    """Its pickle runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def mark(tmp_path: Path) -> Any:
    path = tmp_path / "MARK"
    yield path
    assert not path.exists(), "code has run"


@pytest.fixture
def folder(good: Path, tmp_path: Path, mark: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


def load(folder: Path, **config: Any) -> Any:
    return load_model(ModelConfig(name=str(folder), **config), Path(), trained=True)


def load_all(folder: Path) -> None:
    load(folder)
    load_tokenizer(ModelConfig(name=str(folder)), Path())
    load_context_length(ModelConfig(name=str(folder)), Path())


def refused(folder: Path, *words: str) -> str:
    with pytest.raises(ModelError) as failure:
        load_all(folder)
    message = str(failure.value)
    assert all(word in message for word in words), message
    return message


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.ckpt", "consolidated.00.pth", "pytorch_model-00001-of-00002.bin"]
)
def test_weights_that_are_a_pickle(folder: Path, mark: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Evil(mark)))
    change(folder / "pytorch_model.bin.index.json", weight_map={"model.norm.weight": name})
    refused(folder, f"its weights are in {name}, a pickle, which can run code as it is read", conversion(str(folder)))


def test_the_conversion_that_the_message_names_works(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    made = tmp_path / "made"
    code = conversion(str(folder)).replace("NEW_FOLDER", "made")
    eval(code, {"transformers": transformers, "made": made})
    assert torch.equal(load(made).model.norm.weight, weights["model.norm.weight"])


def test_a_pickle_beside_the_weights_is_not_read(folder: Path, mark: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "adapter_model.bin", "vocab.pkl"):
        (folder / name).write_bytes(pickle.dumps(Evil(mark)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(f"open({str(mark)!r}, 'w')\n")
    load_all(folder)


def test_a_configuration_that_names_a_pickle_as_the_weights(folder: Path, mark: Path) -> None:
    """transformers reads this one file name as a pickle, whatever it is told about safetensors."""
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    refused(folder, "names the weights 'adapter_model.bin', which are no safetensors")


@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("pytorch_model.bin", "which is no safetensors file"),
        ("../other/model.safetensors", "which is outside of the model's folder"),
        ("sub/../../other/model.safetensors", "which is outside of the model's folder"),
        ("{other}/model.safetensors", "which is outside of the model's folder"),
        ("link.safetensors", "which is outside of the model's folder"),
        ("absent.safetensors", "and there is no such file"),
        (3, "does not say which file each weight is in"),
        (None, "does not say which file each weight is in"),
    ],
)
def test_an_index_that_leads_elsewhere(folder: Path, good: Path, mark: Path, tmp_path: Path, shard: Any, reason: str) -> None:
    other = Path(shutil.copytree(good, tmp_path / "other"))
    (folder / "link.safetensors").symlink_to(other / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    names = load_file(folder / "model.safetensors").keys()
    (folder / "model.safetensors").unlink()
    shard = shard.format(other=other) if isinstance(shard, str) else shard
    change(folder / "model.safetensors.index.json", metadata={}, weight_map=None if shard is None else dict.fromkeys(names, shard))
    refused(folder, reason)


def test_shards_in_their_folder_and_in_the_hubs_cache_are_read(good: Path, tmp_path: Path) -> None:
    """The cache has links from each version to the one place of a file's contents."""
    repository = tmp_path / "models--owner--tiny"
    snapshot = repository / "snapshots" / "0123"
    shutil.copytree(good, snapshot)
    (repository / "blobs").mkdir()
    names = load_file(snapshot / "model.safetensors").keys()
    (snapshot / "model.safetensors").rename(repository / "blobs/4567")
    (snapshot / "model-00001-of-00001.safetensors").symlink_to("../../blobs/4567")
    change(
        snapshot / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, "model-00001-of-00001.safetensors")
    )
    assert torch.equal(load(snapshot).model.norm.weight, tiny_model().model.norm.weight)


def adapter(folder: Path, base: Path) -> Path:
    adapted = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return folder


def test_an_adapter_that_is_a_pickle(good: Path, mark: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter", good)
    assert load(path) is not None
    (path / "adapter_model.safetensors").unlink()
    refused(path, "no adapter_model.safetensors; copy the folder again")
    (path / "adapter_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    refused(path, "its weights are in adapter_model.bin, a pickle", "peft.AutoPeftModelForCausalLM.from_pretrained")


def test_an_adapter_on_a_pickle_or_on_itself(folder: Path, mark: Path, tmp_path: Path) -> None:
    path = adapter(tmp_path / "adapter", folder)
    (folder / "model.safetensors").rename(tmp_path / "put-away")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(mark)))
    refused(path, f"'{folder}' is not loaded: its weights are in pytorch_model.bin")
    change(path / "adapter_config.json", base_model_name_or_path=str(path))
    refused(path)


def test_an_adapter_that_names_a_module_to_import(good: Path, mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil_core.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = adapter(tmp_path / "adapter", good)
    change(path / "adapter_config.json", megatron_config={"a": 1}, megatron_core="evil_core")
    refused(path, "potential security risk")


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_in_a_repository(folder: Path, mark: Path, file: str) -> None:
    code = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    change(folder / file, auto_map=code, model_type="evil", tokenizer_class="Evil")
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    refused(folder, "needs Python code of its own, which is not run", "model.trust_remote_code: true")


def test_code_in_a_repository_of_a_known_kind_is_not_needed_and_not_run(folder: Path, mark: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"})
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    load_all(folder)


@pytest.mark.parametrize("value", ["evil/kernel", {"": "evil/kernel"}])
def test_a_kernel_of_another_repository(folder: Path, value: Any) -> None:
    change(folder / "config.json", attn_implementation=value)
    refused(folder, "asks for the code of another repository, attn_implementation 'evil/kernel'")
    check_weights("x", folder, None, trusts_code=True)


@pytest.mark.parametrize("content", ["pickle", "header"])
def test_safetensors_that_are_none(folder: Path, mark: Path, content: str) -> None:
    absurd = (2**60).to_bytes(8, "little") + b"{}"
    (folder / "model.safetensors").write_bytes(pickle.dumps(Evil(mark)) if content == "pickle" else absurd)
    refused(folder, "SafetensorError: ")


@pytest.mark.parametrize("content", ["", "[]", "[" * 100_000, '"text"'])
def test_a_configuration_that_is_no_configuration(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, "config.json")


def test_a_file_is_no_model(tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pickle.dumps(Evil(mark)))
    refused(path, "it is a file; give the folder")


def test_a_chat_template_that_reaches_for_the_system(folder: Path, mark: Path, tmp_path: Path) -> None:
    template = "{{ cycler.__init__.__globals__.os.system('touch MARK') }}{{ messages[0].content }}"
    (folder / "chat_template.jinja").write_text(template.replace("MARK", str(mark)))
    turns = {side: [{"role": role, "content": side}] for side, role in (("prompt", "user"), ("chosen", "assistant"))}
    rejected = [{"role": "assistant", "content": "no"}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({**turns, "rejected": rejected}) + "\n")
    with pytest.raises(TruingError, match="unsafe"):
        prepare(
            [DataConfig(path="rows.jsonl", format=Preference())],
            layout=Layout.PAIRED,
            tokenizer=load_tokenizer(ModelConfig(name=str(folder)), Path()),
            trainer=TrainerConfig(),
            context_length=None,
            base_dir=tmp_path,
        )


def test_a_hub_repository_with_pickles_only(mark: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "cached"
    repository.mkdir()
    monkeypatch.setattr(
        "transformers.utils.hub.cached_file",
        lambda _, file, **kwargs: str(repository / file) if (repository / file).exists() else None,
    )
    (repository / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"'owner/name' is not loaded: its weights are in adapter_model\.bin, a pickle"):
        check_weights("owner/name", None, None, trusts_code=False)
    (repository / "adapter_config.json").unlink()
    change(repository / "model.safetensors.index.json", weight_map={"a": "pytorch_model.bin"})
    with pytest.raises(ModelError, match=r"names 'pytorch_model\.bin', which is no safetensors file"):
        check_weights("owner/name", None, None, trusts_code=False)
    (repository / "model.safetensors.index.json").unlink()

    def without_safetensors(name: str, **kwargs: Any) -> None:
        assert kwargs["use_safetensors"] is True
        raise OSError(
            f"{name} does not appear ... and thus cannot be loaded with `safetensors`. Please do not set `use_safetensors=True`."
        )

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", without_safetensors)
    with pytest.raises(
        ModelError, match="it has no safetensors, and a pickle, which can run code as it is read, is not read; convert"
    ):
        load(Path("owner/name"))


def rows_of(folder: Path, **source: Any) -> list[Any]:
    rows = list(load_rows(DataConfig(format=PromptText(), **source), folder))
    assert not any(row.problem for row in rows), rows
    return [row.columns for row in rows]


@pytest.mark.parametrize("name", ["rows.pkl", "rows.npy", "rows.py", "rows.pt", "rows.bin", "rows.pickle"])
def test_data_of_types_that_can_run_code(tmp_path: Path, mark: Path, name: str) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir()
    if name == "rows.npy":
        np.save(path, np.array([Evil(mark)], dtype=object))
    elif name == "rows.py":
        path.write_text(f"open({str(mark)!r}, 'w')\n")
    else:
        path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(ConfigError, match=r"has a suffix that is not read; use \.json"):
        rows_of(tmp_path, path=f"data/{name}")
    with pytest.raises(ConfigError, match="no dataset in .*data"):
        rows_of(tmp_path, path="data")
    for kind in ("json", "csv", "parquet"):
        row = next(load_rows(DataConfig(format=PromptText(), data_files=(f"data/{name}",), ds_type=kind), tmp_path), None)
        assert row is None or row.problem


def test_a_loading_script(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/data.py").write_text(f"open({str(mark)!r}, 'w')\n")
    (tmp_path / "data/rows.jsonl").write_text('{"n": 1}\n')
    with pytest.raises(ConfigError, match="Dataset scripts are no longer supported, but found data.py"):
        rows_of(tmp_path, path="data")


def test_an_arrow_type_with_a_pickle_is_plain_bytes(tmp_path: Path, mark: Path) -> None:
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickle.dumps(Evil(mark))}
    schema = pyarrow.schema([pyarrow.field("n", pyarrow.binary(), metadata=metadata)])
    table = pyarrow.table([pyarrow.array([b"abc"])], schema=schema)
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert rows_of(tmp_path, path="rows.parquet") == [{"n": b"abc"}]
    saved = saved_dataset(tmp_path)
    with pyarrow.OSFile(str(next(saved.glob("*.arrow"))), "wb") as file, pyarrow.ipc.new_stream(file, schema) as stream:
        stream.write_table(table)
    assert rows_of(tmp_path, path="saved") == [{"n": b"abc"}]


@pytest.mark.parametrize("where", ["../outside.jsonl", "{folder}/outside.jsonl", "https://127.0.0.1:9/rows.jsonl"])
def test_a_readme_that_names_data_elsewhere(tmp_path: Path, where: str) -> None:
    (tmp_path / "outside.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text('{"n": 2}\n')
    text = f"configs:\n- config_name: default\n  data_files: {where.format(folder=tmp_path)}\n"
    (tmp_path / "data/README.md").write_text(f"---\n{text}---\n")
    with pytest.raises(ConfigError, match=r"data\.path: (.* names data outside of itself|no dataset in)"):
        rows_of(tmp_path, path="data")


def test_a_readme_that_would_run_code(tmp_path: Path, mark: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/rows.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "data/README.md").write_text(f"---\nconfigs: !!python/object/apply:os.system ['touch {mark}']\n---\n")
    with pytest.raises(ConfigError, match="could not determine a constructor for the tag"):
        rows_of(tmp_path, path="data")


def saved_dataset(tmp_path: Path, name: str = "saved") -> Path:
    datasets.Dataset.from_list([{"n": 1}]).save_to_disk(tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("name", ["../other/data-00000-of-00001.arrow", "{folder}/other/data-00000-of-00001.arrow", "..", ""])
def test_a_saved_dataset_that_names_files_elsewhere(tmp_path: Path, name: str) -> None:
    saved_dataset(tmp_path, "other")
    change(saved_dataset(tmp_path) / "state.json", _data_files=[{"filename": name.format(folder=tmp_path)}])
    with pytest.raises(DataError, match="which is not in its folder; only what is there is read|cannot be read"):
        rows_of(tmp_path, path="saved")


def test_a_saved_dataset_with_splits_elsewhere(tmp_path: Path) -> None:
    saved_dataset(tmp_path, "other")
    (tmp_path / "splits").mkdir()
    change(tmp_path / "splits/dataset_dict.json", splits=["../other"])
    with pytest.raises(DataError, match="names '../other', which is not in its folder"):
        rows_of(tmp_path, path="splits")


def test_a_saved_dataset_of_pickles_or_with_a_function(tmp_path: Path, mark: Path) -> None:
    saved = saved_dataset(tmp_path)
    change(saved / "state.json", _format_type="custom", _format_kwargs={"transform": "os.system"})
    assert rows_of(tmp_path, path="saved") == [{"n": 1}]
    next(saved.glob("*.arrow")).write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(DataError, match=r"\.arrow cannot be read"):
        rows_of(tmp_path, path="saved")


def test_a_kept_reference_that_is_a_pickle_is_not_used(tmp_path: Path, mark: Path) -> None:
    path = tmp_path / "kept.safetensors"
    path.write_bytes(pickle.dumps(Evil(mark)))
    assert Precomputed.read(path, 1) is None
