"""Reading YAML: the scalars of YAML 1.2, places, and the refusals."""

from __future__ import annotations

import json
import math
import time

import pytest

from truing.config.reading import read_file, read_text, scalar
from truing.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5e-6", 5e-6),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("+12e03", 12000.0),
        ("-.inf", -math.inf),
        ("12", 12),
        ("010", 10),
        ("-3", -3),
        ("0o17", 15),
        ("0x1F", 31),
        ("9" * 19, 1e19),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("inf", "inf"),
        ("1e", "1e"),
        ("tRue", "tRue"),
    ],
)
def test_unquoted_text_means_what_the_core_schema_says(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_nan_is_a_float():
    assert math.isnan(scalar(".nan"))


def test_quoted_text_is_text():
    assert read_text("a: '1'\nb: \"no\"\nc: |\n  1e-3\n", "f").values == {"a": "1", "b": "no", "c": "1e-3\n"}


def test_jsons_two_escapes_for_one_character_are_one_character():
    assert read_text(json.dumps({"😀": "a 😀"}), "f").values == {"😀": "a 😀"}


def test_keys_are_text_and_have_lines():
    document = read_text("a: 1\nb:\n  - x\n  - {c: 2,\n     1: 3}\n", "f.yaml")
    assert document.values == {"a": 1, "b": ["x", {"c": 2, "1": 3}]}
    assert {path: place.text for path, place in document.places.items()} == {
        (): "f.yaml",
        ("a",): "f.yaml:1",
        ("b",): "f.yaml:2",
        ("b", 0): "f.yaml:3",
        ("b", 1): "f.yaml:4",
        ("b", 1, "c"): "f.yaml:4",
        ("b", 1, "1"): "f.yaml:5",
    }


def test_aliases_copy_and_are_placed_where_they_stand():
    document = read_text("a: &x {c: 1}\nb: *x\n", "f.yaml")
    assert document.values == {"a": {"c": 1}, "b": {"c": 1}}
    assert document.values["a"] is not document.values["b"]
    assert document.place(("b",)).text == "f.yaml:2"


def test_duplicate_keys_are_faults_with_both_lines():
    document = read_text("a: 1\nb: 2\na: 3\n", "f.yaml")
    assert [str(fault) for fault in document.faults] == ["f.yaml:3: a is given twice, here and in line 1; remove one"]
    assert document.values == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\tb\n", "f:1: line 1 has a tab where YAML takes only spaces; replace it by spaces"),
        (
            "a: 1\nb: [1,\n\t2]\nc: @\n",
            "f:4: not YAML: while scanning for the next token, found character '@' that cannot start any token",
        ),
        ("a: 'x\nb: 1\n", "f:1: not YAML: while scanning a quoted scalar, found unexpected end of stream in line 3; check quotes"),
        (
            "a: {b: ${c}}",
            "f:1: not YAML: while parsing a flow mapping, expected ',' or '}', but got '{' in line 1; put ${...} in quotes",
        ),
        ("a: b: c", "f:1: not YAML: mapping values are not allowed here; check quotes, brackets and indentation"),
        ("a: 1\n---\nb: 1\n", "f:2: a second document begins here; a configuration is one document, so remove the ---"),
        (
            "a: !!python/object:os.system {}",
            "f:1: the tag tag:yaml.org,2002:python/object:os.system is not allowed; write the plain",
        ),
        ("a: ! x", "f:1: the tag ! is not allowed"),
        ("a: *x", "f:1: the alias *x has no anchor &x before it; put text with a * in quotes"),
        ("a: &x [*x]", "f:1: the alias *x has no anchor &x before it"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n", "f:3: merge keys (<<) are not part of YAML 1.2; repeat the keys, or alias"),
        ("a: {{ x }}", "f:1: a key must be a plain name, not a list, a mapping or an alias; put {{ }} in quotes"),
        ("a: b\0", "f:1: character #x0000 is not allowed in YAML; remove it"),
        (
            'a: "\\ud83d"',
            r"f:1: an escape from \ud800 to \udfff stands alone, which is half a character; write the character itself",
        ),
        ('b: 1\n"\\ude00": 1', r"f:2: an escape from \ud800 to \udfff stands alone"),
        ('a: "\\UFFFFFFFF"', "f: not YAML: Python int too large"),
    ],
)
def test_what_is_not_a_configuration_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError) as caught:
        read_text(text, "f")
    assert str(caught.value).startswith(message)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "f:1: aliases (*) make more than 10,000 values of this; use fewer"),
        ("[" * 5000 + "]" * 5000, "f:1: nested deeper than 50 levels"),
        ("{a: " * 5000 + "}" * 5000, "f:1: nested deeper than 50 levels"),
        ("- " * 5000 + "a", "f:1: nested deeper than 50 levels"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(300)), "f:51: nested deeper than 50 levels"),
        ("- a\n" * 20_000, "f:10000: more than 10,000 values; a configuration is a few lines of YAML"),
        ("? " * 5000, "f:1: a key must be a plain name"),
    ],
)
def test_bombs_are_refused_quickly(text, message):
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_text(text, "f")
    assert str(caught.value).startswith(message)
    assert time.process_time() - start < 2


def test_fifty_levels_are_allowed():
    assert read_text("a: " + "[" * 49 + "]" * 49, "f").values["a"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*run\.yaml: No such file or directory"):
        read_file(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="Is a directory"):
        read_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "run.yaml is empty; a configuration has at least method, model, data and output"),
        (b"# nothing\n---\n", "run.yaml is empty"),
        (b"- a\n", "run.yaml: the top level must be a mapping of keys such as method: and model:, not a list or one value"),
        (b"hello", "run.yaml: the top level must be a mapping"),
        (b"a: 1\nb: \xff\n", "run.yaml:2: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a: 1\n" * 60_000, "run.yaml is larger than 250,000 bytes; a configuration is a few lines of YAML"),
    ],
)
def test_files_that_cannot_be_configurations(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    assert read_file(path).values == {"a": 1, "b": 2}
