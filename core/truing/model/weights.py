"""Which files a model is read from: safetensors of its own folder, and never a pickle, which can run code as it is read.

transformers would read a pickle where a folder's own JSON leads it to one: as the weights that config.json names, as the shards of
an index, as an adapter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs

from truing.errors import ModelError, first_line

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_SAFE = (".safetensors", ".safetensors.index.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NO_WEIGHTS = ("training_args.bin", "optimizer.pt", "scheduler.pt")
"""Pickles that other tools leave beside weights."""


def check_weights(name: str, folder: Path | None, revision: str | None, *, trusts_code: bool, key: str = "model.name") -> None:
    """Raise ModelError where loading the model would read a pickle, files of another folder, or a kernel of another repository.

    `key` is where the configuration names the model. `folder` is the model's, or None for a repository of the hub, of which only
    small files are looked at. What is not there at all is left to the loader to say.
    """
    files = _Files(name, folder, revision, key)
    if folder is not None and not folder.is_dir():
        files.refuse("it is a file", "give the folder that config.json and *.safetensors are in")
    base = files
    if files.find(ADAPTER):
        _check_adapter(files)
        named = files.read(ADAPTER).get("base_model_name_or_path")
        if isinstance(named, str) and not files.find(CONFIG):
            base = _Files(named, Path(named) if Path(named).is_dir() else None, None, key)
    if not trusts_code:
        _check_kernels(base)
    _check_model(base)


def find_file(name: str, folder: Path | None, revision: str | None, file: str) -> Path | None:
    """Return a further file of a model, in its folder or on the hub; None where there is none."""
    return _Files(name, folder, revision).find(file)


@attrs.frozen
class _Files:
    """The files of a model, in a folder or on the hub."""

    name: str
    folder: Path | None
    revision: str | None
    key: str = "model.name"

    def find(self, file: str) -> Path | None:
        """Return a file by its name, or None where there is none."""
        if self.folder is not None:
            path = self.folder / file
            return path if path.is_file() else None
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(self.name, file, revision=self.revision)
        except (OSError, ValueError):  # not there, not to be reached or no name, which the loader tells apart
            return None
        return Path(found) if found else None

    def read(self, file: str) -> Mapping[str, Any]:
        """Return the object in a JSON file, empty where there is none."""
        path = self.find(file)
        if path is None:
            return {}
        try:
            values = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            self.refuse(f"{file} cannot be read ({first_line(error)})", "copy it again from its source")
        if not isinstance(values, dict):
            self.refuse(f"{file} holds no JSON object", "copy it again from its source")
        return values

    def refuse(self, problem: str, advice: str) -> NoReturn:
        """Raise ModelError."""
        raise ModelError(f"{self.key}: {self.name!r} is not loaded: {problem}; {advice}")

    def refuse_pickle(self, file: str, convert: str) -> NoReturn:
        """Raise ModelError for weights that are a pickle."""
        self.refuse(
            f"its weights are in {file}, a pickle, which can run code as it is read",
            f"take weights as safetensors, or convert these where you trust them: {convert}",
        )


def _check_kernels(files: _Files) -> None:
    config = files.read(CONFIG)
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"):
        chosen = config.get(key)
        for kernel in chosen.values() if isinstance(chosen, dict) else (chosen,):
            if isinstance(kernel, str) and "/" in kernel:
                files.refuse(
                    f"its {CONFIG} asks for the code of another repository, {key} {kernel!r}",
                    "remove that key, or trust the code (model.trust_remote_code: true)",
                )


def _check_adapter(files: _Files) -> None:
    if files.find("adapter_model.safetensors"):
        return
    if files.folder is None or (files.folder / "adapter_model.bin").exists():
        files.refuse_pickle(
            "adapter_model.bin", f"peft.AutoPeftModelForCausalLM.from_pretrained({files.name!r}).save_pretrained(NEW_FOLDER)"
        )
    files.refuse(f"it has {ADAPTER} and no adapter_model.safetensors", "copy the folder again from its source")


def _check_model(files: _Files) -> None:
    named = files.read(CONFIG).get("transformers_weights")
    if named is not None and not (isinstance(named, str) and named.endswith(_SAFE)):
        files.refuse(f"its {CONFIG} names the weights {named!r}, which are no safetensors", "remove that key, transformers_weights")
    if named is None and files.find(WHOLE):
        return
    index = named or INDEX
    if index.endswith(".json") and files.find(index):
        _check_index(files, index)
    elif named is None and files.folder is not None:
        _refuse_pickles(files, files.folder)


def _refuse_pickles(files: _Files, folder: Path) -> None:
    """Refuse a folder of which all weights are pickles."""
    names = sorted(path.name for path in folder.iterdir())
    pickles = [name for name in names if name.endswith(_PICKLES) and name not in _NO_WEIGHTS]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        files.refuse_pickle(pickles[0], conversion(files.name))


def conversion(name: str) -> str:
    """Return the Python that writes a model's weights as safetensors."""
    return f"transformers.AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(NEW_FOLDER)"


def _check_index(files: _Files, index: str) -> None:
    path = files.find(index)
    shards = files.read(index).get("weight_map")
    assert path is not None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        files.refuse(f"{index} does not say which file each weight is in", "copy it again from its source")
    root = _root(path)
    for shard in sorted(set(shards.values())):
        if not shard.endswith(".safetensors"):
            files.refuse(f"{index} names {shard!r}, which is no safetensors file", "take weights as safetensors")
        file = path.parent / shard
        if not file.resolve().is_relative_to(root):
            files.refuse(f"{index} names {shard!r}, which is outside of the model's folder", "move the file into the folder")
        if files.folder is not None and not file.is_file():
            files.refuse(f"{index} names {shard!r}, and there is no such file", "copy the folder again from its source")


def _root(index: Path) -> Path:
    """Return the folder that a model's files may be in: where its index is or, in the hub's cache, where all versions of it are."""
    folder = index.parent.resolve()
    return folder.parent.parent if folder.parent.name == "snapshots" else folder
