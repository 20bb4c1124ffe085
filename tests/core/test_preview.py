"""`truing preview`: what it shows to people, and what it prints for other tools."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import attrs
import click.testing
import pytest

from truing import Layout, Loss, LossInputs, LossOutput, Needs, Rollout, hookimpl
from truing.cli import main
from truing.cli.preview import Span, preview, spans
from truing.registry import Registry
from truing.testing import tiny_model, tiny_tokenizer

EOS = "<|im_end|>"


def method(layout: Layout) -> type[Loss]:
    @attrs.frozen(kw_only=True)
    class Method(Loss):
        """Of one layout; never called here."""

        name: ClassVar[str] = f"toy-{layout.value}"

        @property
        def needs(self) -> Needs:
            return Needs.NOTHING

        @property
        def rollout_needs(self) -> Needs:
            return Needs.REWARDS

        def __call__(self, inputs: LossInputs) -> LossOutput:
            raise NotImplementedError

        def advantages(self, rollouts: LossInputs) -> Any:
            raise NotImplementedError

    Method.layout = layout
    if layout is not Layout.ROLLOUT:
        del Method.advantages, Method.rollout_needs
    return Method


@pytest.fixture(autouse=True)
def toy_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plugin:
        @hookimpl
        def register_rollout(self) -> list[type[Rollout]]:
            return [Backend]

        @hookimpl
        def register_loss(self) -> list[type[Loss]]:
            return [method(layout) for layout in (Layout.PAIRED, Layout.LABELED, Layout.ROLLOUT)]

    @attrs.frozen(kw_only=True)
    class Backend(Rollout):
        """Never opened."""

        name: ClassVar[str] = "transformers"

        def open(self, context: Any) -> Any:
            raise AssertionError("a preview samples nothing")

    registry = Registry.from_modules({"toy": Plugin()})
    monkeypatch.setattr(Registry, "load", lambda **_: registry)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer(add_bos=True).save_pretrained(folder)
    tiny_model().config.save_pretrained(folder)
    return folder


def configure(folder: Path, model: Path, rows: list[dict[str, Any]], layout: str = "paired", format: str = "preference") -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / "cfg.yaml"
    path.write_text(
        f"method: toy-{layout}\nmodel: {{name: {model}}}\n"
        f"data: {{path: rows.jsonl, format: {format}}}\noutput: {{dir: {folder}/out}}\n"
    )
    return path


def run(*args: object) -> click.testing.Result:
    result = click.testing.CliRunner().invoke(preview, [str(arg) for arg in args], catch_exceptions=False)
    assert result.exit_code == 0
    return result


PAIRS = [{"prompt": f"q{index}", "chosen": " a", "rejected": " b"} for index in range(5)]
CHAT = {
    "prompt": [{"role": "user", "content": "{q}"}],
    "chosen": [{"role": "assistant", "content": "a"}],
    "rejected": [{"role": "assistant", "content": "b"}],
}


def test_piped_it_marks_what_is_trained_on(tmp_path: Path, model: Path) -> None:
    result = run(configure(tmp_path, model, PAIRS), "-n", 1)
    assert result.stdout == (
        "Trained text stands in [[ ]]; the rest is context.\n"
        "── sample 0 · prompt · 3 tokens, 0 trained on\n<bos>q0\n"
        f"── chosen · 3 tokens, 3 trained on\n[[ a{EOS}]]\n"
        f"── rejected · 3 tokens, 3 trained on\n[[ b{EOS}]]\n"
        "5 rows read, 5 kept (45 tokens)\n"
    )


def test_on_a_terminal_it_is_in_colour(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    result = run(configure(tmp_path, model, [{**PAIRS[0], "chosen": " [red]\x1b[2J"}]), "-n", 1)
    output = click.unstyle(result.stdout)
    assert " [red]␛[2J" in output and "[[" not in output
    assert "\x1b[32m [red]␛[2J\x1b[0m" in result.output
    assert f"\x1b[7;32m{EOS}\x1b[0m" in result.output
    assert "\x1b[2mq0\x1b[0m" in result.output


def test_json_has_one_object_per_row_that_other_tools_can_check(tmp_path: Path, model: Path) -> None:
    result = run(configure(tmp_path, model, [CHAT, *PAIRS]), "--json", "-n", 2)
    chat, text = map(json.loads, result.stdout.splitlines())
    tokenizer = tiny_tokenizer(add_bos=True)
    rendered = tokenizer.apply_chat_template(CHAT["prompt"], tokenize=False, add_generation_prompt=True)
    assert chat["prompt"] == rendered
    assert chat["prompt_token_ids"] == tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert [(branch["role"], branch["text"]) for branch in chat["branches"]] == [("chosen", f"a{EOS}"), ("rejected", f"b{EOS}")]
    assert text["prompt"] == "q0" and text["prompt_token_ids"] == tokenizer("q0")["input_ids"]
    for branch in (*chat["branches"], *text["branches"]):
        assert branch["token_ids"] == tokenizer(branch["text"], add_special_tokens=False)["input_ids"]
        assert branch["loss_mask"] == [True] * len(branch["token_ids"])
    tokens = len(chat["prompt_token_ids"]) + 2 * 2 + 5 * (3 + 2 * 3)
    assert result.stderr == f"6 rows read, 6 kept ({tokens} tokens)\n"


def test_json_of_a_truncated_prompt_shows_what_is_left(tmp_path: Path, model: Path) -> None:
    path = configure(tmp_path, model, [{**PAIRS[0], "prompt": "abcdef"}])
    result = run(path, "trainer.max_prompt_length=3", "--json")
    assert json.loads(result.stdout)["prompt"] == "ef"
    assert "1 prompt truncated to 3 tokens" in result.stderr


def test_all_rows_on_request(tmp_path: Path, model: Path) -> None:
    path = configure(tmp_path, model, PAIRS)
    assert run(path, "-n", 0).stdout.count("── sample") == 5
    assert run(path).stdout.count("── sample") == 3


def test_every_row_is_an_object_for_other_tools(tmp_path: Path, model: Path) -> None:
    path = configure(tmp_path, model, PAIRS)
    assert len(run(path, "--json").stdout.splitlines()) == 5
    assert len(run(path, "--json", "-n", 3).stdout.splitlines()) == 3
    assert len(run(path, "data.limit=2", "--json").stdout.splitlines()) == 2


def test_labels_and_bare_prompts(tmp_path: Path, model: Path) -> None:
    path = configure(tmp_path, model, [{"prompt": "q", "completion": "a", "label": 0}], "labeled", "unpaired")
    assert json.loads(run(path, "--json").stdout)["branches"][0]["label"] is False
    assert "── completion, label false · 2 tokens, 2 trained on" in run(path).stdout
    path = configure(tmp_path, model, [{"prompt": "q"}], "rollout", "text")
    assert json.loads(run(path, "--json").stdout) == {
        "prompt": "q",
        "branches": [],
        "prompt_token_ids": tiny_tokenizer(add_bos=True)("q")["input_ids"],
    }


def test_the_models_context_is_the_limit(tmp_path: Path, model: Path) -> None:
    result = run(configure(tmp_path, model, [*PAIRS, {**PAIRS[0], "chosen": "x" * 600}]))
    assert "1 dropped: longer than max_length 512" in result.stdout


def test_a_users_mistake_is_one_line(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = configure(tmp_path, model, [{"prompt": "q", "chosen": "a", "rejected": "a"}])
    with pytest.raises(SystemExit) as ended:
        main(["preview", str(path)])
    assert ended.value.code == 2
    assert f"{tmp_path}/rows.jsonl:1: chosen equals rejected ('a')" in capsys.readouterr().err


def test_spans_are_cut_where_counting_or_kind_changes() -> None:
    tokenizer: Any = SimpleNamespace(
        all_special_ids=[9], decode=lambda ids: "".join("<e>" if token == 9 else "abc"[token] for token in ids).lstrip("a")
    )
    assert spans([1, 2, 9, 1], [True, True, True, False], tokenizer, before=[0]) == [
        Span("bc", counted=True, special=False),
        Span("<e>", counted=True, special=True),
        Span("b", counted=False, special=False),
    ]


@pytest.mark.parametrize(("key", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colour_gets_plain_marks(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(key, value)
    result = run(configure(tmp_path, model, PAIRS), "-n", 1)
    assert f"[[ a{EOS}]]" in result.stdout and "\x1b[" not in result.output


def test_control_characters_are_visible_in_every_mode(tmp_path: Path, model: Path) -> None:
    config = configure(tmp_path, model, [{**PAIRS[0], "chosen": " \x1b\x7f\x9b"}])
    assert f"[[ \u241b\u2421\\x9b{EOS}]]" in run(config, "-n", 1).stdout
    printed = run(config, "-n", 1, "--json").stdout
    assert not set(printed) & {"\x1b", "\x7f", "\x9b"}
    assert json.loads(printed.splitlines()[0])["branches"][0]["text"] == f" \x1b\x7f\x9b{EOS}"
