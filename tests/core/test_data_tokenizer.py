"""Loading the tokenizer that a configuration names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from truing.config.classes import ModelConfig
from truing.data.tokenizer import load_context_length, load_tokenizer
from truing.errors import ModelError
from truing.testing import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_tokenizer().save_pretrained(path)
    tiny_model().config.save_pretrained(path)
    return path


def load(folder: Path, **config: Any) -> Any:
    return load_tokenizer(ModelConfig(**{"name": folder.name, **config}), folder.parent)


def test_a_folder_beside_the_configuration(folder: Path) -> None:
    tokenizer = load(folder)
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<pad>"
    assert tokenizer("ab")["input_ids"] == tiny_tokenizer()("ab")["input_ids"]
    assert load_context_length(ModelConfig(name=folder.name), folder.parent) == 512


def test_a_tokenizer_of_its_own(folder: Path) -> None:
    assert load(folder, name="not/there", tokenizer=str(folder)).eos_token == "<|im_end|>"


def test_a_chat_template_as_text_or_file(folder: Path) -> None:
    (folder.parent / "chat.jinja").write_text("{{ messages[0].content }}!")
    messages = [{"role": "user", "content": "hi"}]
    for template in ("chat.jinja", "{{ messages[0].content }}!"):
        assert load(folder, chat_template=template).apply_chat_template(messages, tokenize=False) == "hi!"
    with pytest.raises(
        ModelError, match=r"model\.chat_template: no file .*/chat\.jinj; did you mean 'chat\.jinja'\?; give a file, or"
    ):
        load(folder, chat_template="chat.jinj")


def saved_without(folder: Path, tmp_path: Path, *tokens: str) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path / "bare")
    path = tmp_path / "bare" / "tokenizer_config.json"
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key not in tokens}
    path.write_text(json.dumps(settings))
    return tmp_path / "bare"


def test_a_missing_padding_token_becomes_the_end_token_and_adds_none(folder: Path, tmp_path: Path) -> None:
    tokenizer = load(saved_without(folder, tmp_path, "pad_token"))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == len(tiny_tokenizer())


def test_a_missing_end_token_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.name: the tokenizer of 'bare' has no end token; set eos_token in"):
        load(saved_without(folder, tmp_path, "eos_token"))


def test_a_missing_folder_says_what_is_near(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.name: no folder .*/models\w*/tin; did you mean 'tiny'\?"):
        load(folder, name="./tin")
    with pytest.raises(ModelError, match=r"model\.tokenizer: no folder .*/tini/x/y \(no 'tini' in .*did you mean 'tiny'\?\)"):
        load(folder, tokenizer="tini/x/y")


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model\.name: no tokenizer in 'empty' \(.*\); the folder must hold tokenizer\.json"):
        load(tmp_path / "empty")
    with pytest.raises(ModelError, match=r"model\.name: no config\.json of a model that can be read in 'empty'"):
        load_context_length(ModelConfig(name="empty"), tmp_path)


def test_a_hub_that_cannot_be_reached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("We couldn't connect.\nmore")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    with pytest.raises(ModelError) as failure:
        load(folder, name="owner/tiny")
    message = str(failure.value)
    assert "no tokenizer in 'owner/tiny' (OSError: We couldn't connect)" in message
    assert "give a local folder, or a hub id that this machine can reach" in message and "\n" not in message


def test_a_template_file_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder.parent / "latin.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ModelError, match=r"model\.chat_template: .*latin\.jinja is not UTF-8 \(byte 4\); save the file as UTF-8"):
        load(folder, chat_template="latin.jinja")
