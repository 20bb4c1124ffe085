"""Secrets in text and in configurations: all found, the rest left as it is."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from urllib.parse import quote

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.config_fakes import DPO, load
from truing.cli.streams import RedactedStream, as_it_is, without_secrets
from truing.config import dump_config
from truing.config.reading import read_text
from truing.errors import ConfigError
from truing.redact import HIDDEN, redact, redacted, remember, says_secret

TOKEN = "hf_AbCdEfGhIjKlMnOp"
AWKWARD = "p@ss/w%rd 'q\" \\é$1"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("DB_PASSWORD", AWKWARD)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "in no way a secret")
    monkeypatch.setenv("SHORT_TOKEN", "true")
    monkeypatch.setenv("SSH_PRIVATE_KEY", "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n")
    monkeypatch.setenv("PASSWORD_FOLDER", str(Path(__file__).parent))
    monkeypatch.setenv("WAREHOUSE", "postgres://me:dbpw-4711@db.example/x")


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *[(name, True) for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "MYSQL_PWD", "SSHPASS")],
        *[
            (name, True)
            for name in ("GITHUB_PAT", "MY_CREDENTIALS", "ssh_private_key", "PROXY_AUTH", "OPENAI_APIKEY", "X_PASSPHRASE")
        ],
        *[
            (name, False)
            for name in ("TOKENIZERS_PARALLELISM", "KEYBOARD", "GIT_AUTHOR_NAME", "COMPAT", "PATHS", "MONKEYS", "HOME")
        ],
    ],
)
def test_names_of_environment_variables(monkeypatch, name, secret):
    monkeypatch.setenv(name, "value-of-it")
    assert redact("a value-of-it b") == (f"a {HIDDEN} b" if secret else "a value-of-it b")


@pytest.mark.parametrize(
    "key",
    [
        "token",
        "hf_token",
        "api_key",
        "apiKey",
        "AccessToken",
        "password",
        "db_password",
        "client_secret",
        "Authorization",
        "basic_auth",
    ],
)
def test_keys_that_say_secret(key):
    assert says_secret(key)


@pytest.mark.parametrize(
    "key",
    [
        "pad_token",
        "eos_token",
        "max_tokens_per_batch",
        "prompt_key",
        "key",
        "stop_tokens",
        "tokenizer",
        "author",
        "",
        3,
        "yes_token",
    ],
)
def test_keys_that_speak_of_tokens_and_keys_of_another_kind(key):
    assert not says_secret(key)


URLS = [
    ("https://me:s3cr3t@host/x", f"https://{HIDDEN}@host/x"),
    ("https:/me:s3cr3t@host/x", f"https:/{HIDDEN}@host/x"),  # as a Path has it
    ("https://s3cr3t@host", f"https://{HIDDEN}@host"),
    ("https://me:p@s3cr3t@host:80/x", f"https://{HIDDEN}@host:80/x"),
    ("https://me:s/3#c?r3t@host/x", f"https://{HIDDEN}@host/x"),
    ("s3://b/k?token=s3cr3t&n=1", f"s3://b/k?token={HIDDEN}&n=1"),
    ("https://h/x?a=1&X-Amz-Signature=s3cr3t", f"https://h/x?a=1&X-Amz-Signature={HIDDEN}"),
    ("https://h/x?sig=s3cr3t#access_token=s3cr3t", f"https://h/x?sig={HIDDEN}#access_token={HIDDEN}"),
    ("no 'https://me:s3cr3t@host' and \"ftp://a:s3cr3t@b\"", f"no 'https://{HIDDEN}@host' and \"ftp://{HIDDEN}@b\""),
]


@pytest.mark.parametrize(("text", "expected"), URLS)
def test_credentials_in_urls(text, expected):
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/path@2x.png",
        "https://host/@handle/x",
        "mail me@host",
        "https://h/x?page=3&limit=4",
        "a://b",
    ],
)
def test_urls_without_credentials(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("method.api_key=s3cr3t is no override", f"method.api_key={HIDDEN} is no override"),
        ("{'api_key': 's3cr3t', 'beta': 0.1}", f"{{'api_key': '{HIDDEN}', 'beta': 0.1}}"),
        ('{"password": "s3 cr3t"}', f'{{"password": "{HIDDEN}"}}'),
        ("pad_token=<pad> key=x", "pad_token=<pad> key=x"),
        ("model.password: ValueError: no", "model.password: ValueError: no"),
    ],
)
def test_names_and_values_in_text(text, expected):
    assert redact(text) == expected


@pytest.mark.parametrize("form", [str, repr, json.dumps, quote, lambda text: quote(text, safe=""), lambda text: f"a/{text}/b"])
def test_a_secret_is_found_however_it_is_written(form):
    for secret in (TOKEN, AWKWARD):
        assert form(secret).strip("'\"") not in redact(f"before {form(secret)} after")
    assert "MIIEvQIBADANBgkq" not in redact("the line MIIEvQIBADANBgkq of it")
    assert redact("dbpw-4711") == HIDDEN


def test_what_is_short_or_a_path_or_no_secret_stays():
    text = f"true is in no way a secret, nor is {Path(__file__).parent}"
    assert redact(text) == text


@pytest.mark.parametrize("value", ["/" + "x" * 5000, "caf\udce9-no-utf-8", "of\nlines"])
def test_any_value_may_be_a_secret(monkeypatch, value):
    monkeypatch.setenv("ODD_TOKEN", value)
    assert redact(f"a {value}") == f"a {HIDDEN}"


def test_nested_values():
    values = {"api_key": "abc", "n": 1, "names": (TOKEN, Path("/x")), "auth": {"user": "u", "id": 7, "on": True}, TOKEN: None}
    assert redacted(values) == {
        "api_key": HIDDEN,
        "n": 1,
        "names": [HIDDEN, "/x"],
        "auth": {"user": HIDDEN, "id": HIDDEN, "on": True},
        HIDDEN: None,
    }


def test_what_stood_under_a_secret_key_is_a_secret_elsewhere():
    assert redact("written-out-here") == "written-out-here"
    remember({"rollout": [{"api_key": "written-out-here"}]})
    assert redact("written-out-here") == HIDDEN


@pytest.mark.timeout(120)  # a pattern that goes back over all of it would take hours
def test_long_text_takes_time_in_proportion():
    for text in (
        "https://" * 50_000,
        "a" * 400_000,
        "x:/a:" * 80_000,
        "&a" * 200_000,
        "'a'" * 100_000,
        "k=" * 200_000,
        "@" * 400_000,
    ):
        redact(text)


def config_with(tmp_path, **settings):
    base = load(tmp_path, DPO)
    return attrs.evolve(base, model=attrs.evolve(base.model, **settings))


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (TOKEN, "${oc.env:HF_TOKEN}"),
        (f"folder/{TOKEN}/model", "folder/${oc.env:HF_TOKEN}/model"),
        (f"https://me:{TOKEN}@host", "https://me:${oc.env:HF_TOKEN}@host"),
        (f"https://h/x?token={TOKEN}", "https://h/x?token=${oc.env:HF_TOKEN}"),
        (f"\\{TOKEN}", "\\\\${oc.env:HF_TOKEN}"),
        (f"${{x}}{TOKEN}", "\\${x}${oc.env:HF_TOKEN}"),
        ("postgres://me:dbpw-4711@db.example/x", "${oc.env:WAREHOUSE}"),
        (AWKWARD, "${oc.env:DB_PASSWORD}"),
    ],
)
def test_a_secret_in_a_configuration_is_written_as_where_it_comes_from(tmp_path, name, written):
    config = config_with(tmp_path, name=name)
    text = dump_config(config)
    assert read_text(text, "f").values["model"]["name"] == written
    assert load(tmp_path, text) == config


def test_a_secret_that_no_variable_holds_is_left_out_and_missed_when_it_is_loaded(tmp_path):
    text = dump_config(config_with(tmp_path, name="https://me:s3cr3t@host"))
    assert "s3cr3t" not in text
    with pytest.raises(
        ConfigError, match=r"run\.yaml:\d+: model\.name lacks a secret that was left out of this file; write it as \$"
    ):
        load(tmp_path, text)


PIECES = st.sampled_from(
    [TOKEN, AWKWARD, "\\", "$", "${", "}", "{", "://me:", "@", "/", "?token=", "&", " ", "a", "'", '"', "${oc.env:A}"]
)


@given(pieces=st.lists(PIECES, max_size=8))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_configuration_with_secrets_loads_as_it_was_or_says_what_it_lacks(tmp_path, pieces):
    name = "".join(pieces)
    config = config_with(tmp_path, name=name)
    text = dump_config(config)
    assert TOKEN not in text and AWKWARD not in read_text(text, "f").values["model"]["name"]
    if HIDDEN in text:
        with pytest.raises(ConfigError, match=r"model\.name lacks a secret"):
            load(tmp_path, text)
    else:
        assert load(tmp_path, text) == config


def test_the_value_of_an_override_that_cannot_be_read_is_not_shown(tmp_path):
    with pytest.raises(ConfigError) as failure:
        load(
            tmp_path,
            DPO,
            "method.api_key=@s3cr3t-4711",
            f"trainer.seed={TOKEN}",
            f"model.name=${{oc.env:ABSENT}}https://me:{'s3' * 50}@h",
        )
    assert "s3" not in str(failure.value) and TOKEN not in str(failure.value)


def test_streams_are_redacted_and_restored(capsys):
    before = sys.stdout, sys.stderr
    with without_secrets():
        print("out", TOKEN)
        print("error", TOKEN, file=sys.stderr)
        with as_it_is():
            print("data", TOKEN)
        assert isinstance(sys.stdout, RedactedStream)
        assert (sys.stdout.encoding, sys.stdout.isatty(), sys.stdout.writable()) == (before[0].encoding, False, True)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == (f"out {HIDDEN}\ndata {TOKEN}\n", f"error {HIDDEN}\n")


def test_a_stream_that_was_replaced_meanwhile_stays(monkeypatch):
    other = io.StringIO()
    with without_secrets():
        monkeypatch.setattr(sys, "stdout", other)
    assert sys.stdout is other
    with as_it_is():
        assert sys.stdout is other
    assert os.environ["HF_TOKEN"] == TOKEN
