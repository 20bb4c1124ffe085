"""Secrets of every kind, planted in real runs: none is in the run directory, on standard output or on standard error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from urllib.parse import quote

import pytest

from tests.end_to_end.helpers import preferences, save_tiny_model, write_rows
from truing.redact import HIDDEN

KEY_LINE = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcw"
ENVIRONMENT = {
    "HF_TOKEN": "hf_OnlyInTheEnvironment",
    "WANDB_API_KEY": "wandb-only-in-the-environment",
    "AWS_SECRET_ACCESS_KEY": "aws/only+in/the=environment",
    "DATA_TOKEN": "folder-of-data-5151",
    "MODEL_SECRET": "folder-of-model-5252",
    "OUTPUT_PASSWORD": "folder-of-output-5353",
    "LEAKY_KEY": "key-of-plugin-5454",
    "PLAIN_NAME": "Bearer of-a-header-5555",
    "NOTE_CREDENTIALS": "within a note 5656",
    "DATABASE_URL": "postgres://me:database-5757@db.example/x",
    "SSH_PRIVATE_KEY": f"-----BEGIN KEY-----\n{KEY_LINE}\n-----END KEY-----",
    "PRINTED_TOKEN": "printed-5858",
    "LOGGED_TOKEN": "logged-5959",
    "WARNED_TOKEN": "warned-6060",
    "QUOTED_PASSWORD": "p@ss wörd/6161",
    "RAISED_TOKEN": "raised-6262",
    "TYPED_TOKEN": "typed-6363",
    "ABSENT_AUTH": "absent-6464",
}
WRITTEN = {
    "a key that says secret": "literal-7070",
    "a password in a URL": "url-7171",
    "a token in a query": "query-7272",
    "an override": "override-7373",
    "data.path as URL": "datapath-7474",
    "model.name as URL": "modelname-7575",
    "model.name with a query": "modelquery-7676",
    "an override that cannot be read": "unread-7777",
    "a long URL": "longurl-7878",
}
SECRETS = {**ENVIRONMENT, **WRITTEN, "a line of a key": KEY_LINE, "a password alone": "database-5757"}

PLUGIN = '''
import logging, os, warnings
from typing import Any, ClassVar
from urllib.parse import quote
import attrs
from truing import Layout, Loss, LossOutput, Needs, Term, hookimpl, setting

@attrs.frozen(kw_only=True)
class Leaky(Loss):
    """Says all it knows."""
    name: ClassVar[str] = "leaky"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs: ClassVar[Needs] = Needs.REFERENCE_LOGPS
    api_key: str = setting("", help="A key.")
    auth_token: str = setting("", help="A token.")
    access_token: str = setting("", help="A token.")
    endpoint: str = setting("", help="A URL.")
    bucket: str = setting("", help="A URL.")
    headers: dict[str, str] = setting(factory=dict, help="Headers.")
    note: str = setting("", help="A note.")
    fails: bool = setting(False, help="Whether it raises.")

    def __call__(self, inputs):
        get = os.environ.get
        print("printed", get("PRINTED_TOKEN"), self)
        logging.getLogger("leaky").warning("logged %s", get("LOGGED_TOKEN"))
        warnings.warn(f"warned {get('WARNED_TOKEN')} {quote(get('QUOTED_PASSWORD'))} {get('QUOTED_PASSWORD')!r}")
        if self.fails:
            key = get("SSH_PRIVATE_KEY").splitlines()[1]
            raise RuntimeError(f"no {get('RAISED_TOKEN')}, {key}, {self.endpoint} {get('DATABASE_URL')}")
        return LossOutput(terms=[Term(inputs.chosen.logps - inputs.rejected.logps, "pair")])

@hookimpl
def register_loss() -> list[type]:
    return [Leaky]
'''

SEVERAL = """
import json, sys
from truing.cli import main
for arguments in json.load(sys.stdin):
    try:
        main(arguments)
    except SystemExit as end:
        print("exit", end.code, flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A configuration with a secret wherever one may be, and a plugin that tells what it is told."""
    path = tmp_path_factory.mktemp("secrets")
    plugins = path / "plugins"
    (plugins / "truing_leaky-1.0.dist-info").mkdir(parents=True)
    (plugins / "truing_leaky-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: truing-leaky\nVersion: 1.0\n")
    (plugins / "truing_leaky-1.0.dist-info/entry_points.txt").write_text("[truing]\nleaky = truing_leaky\n")
    (plugins / "truing_leaky.py").write_text(PLUGIN)
    save_tiny_model(path / ENVIRONMENT["MODEL_SECRET"])
    data = path / ENVIRONMENT["DATA_TOKEN"]
    data.mkdir()
    write_rows(data / "pairs.jsonl", [{"prompt": "no answers"}, *preferences(8)])
    config = {
        "method": {
            "name": "leaky",
            "api_key": "${oc.env:LEAKY_KEY}",
            "auth_token": WRITTEN["a key that says secret"],
            "endpoint": f"https://me:{WRITTEN['a password in a URL']}@host/x",
            "bucket": f"s3://bucket/x?token={WRITTEN['a token in a query']}",
            "headers": {"Authorization": "${oc.env:PLAIN_NAME}"},
            "note": "it is ${oc.env:NOTE_CREDENTIALS}, and ${oc.env:DATABASE_URL}",
        },
        "model": {"name": "${oc.env:MODEL_SECRET}", "adapter": {"r": 2}, "precompute_reference": True},
        "data": {"path": "${oc.env:DATA_TOKEN}/pairs.jsonl", "format": "preference", "on_bad_row": "skip"},
        "eval_data": {"path": "${oc.env:DATA_TOKEN}/pairs.jsonl", "format": "preference", "on_bad_row": "skip", "limit": 3},
        "trainer": {"batch_size": 4, "save_steps": 1, "report_to": ["tensorboard"]},
        "output": {"dir": str(path / "${oc.env:OUTPUT_PASSWORD}")},
    }
    (path / "run.yaml").write_text(json.dumps(config))
    return path


def run(folder, *command, given=""):
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder / "plugins"), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *command], input=given, capture_output=True, text=True, env=environment, timeout=200, check=False
    )


def forms(secret):
    return {secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], quote(secret), quote(secret, safe="")}


def found(content):
    return [name for name, secret in SECRETS.items() if any(form.encode() in content for form in forms(secret))]


def test_a_run_writes_and_prints_no_secret(folder):
    assert len(SECRETS) >= 25
    override = f"method.access_token={WRITTEN['an override']}"
    done = run(folder, "-m", "truing", "train", str(folder / "run.yaml"), override)
    assert done.returncode == 0, done.stderr
    assert "printed [secret" in done.stdout and "logged [secret" in done.stderr and "warned [secret" in done.stderr
    assert "1 skipped: cannot be read" in done.stdout and f"{HIDDEN}/pairs.jsonl:1: column" in done.stdout
    assert found((done.stdout + done.stderr).encode()) == []
    files = [path for path in (folder / ENVIRONMENT["OUTPUT_PASSWORD"]).rglob("*") if path.is_file()]
    assert {"config.yaml", "environment.json", "metrics.jsonl", "README.md", "manifest.json"} <= {path.name for path in files}
    assert any("tfevents" in path.name for path in files)
    assert {path.name: found(path.read_bytes()) for path in files if found(path.read_bytes())} == {}
    written = (folder / ENVIRONMENT["OUTPUT_PASSWORD"] / "config.yaml").read_text()
    for reference in (
        "LEAKY_KEY",
        "PLAIN_NAME",
        "NOTE_CREDENTIALS",
        "DATABASE_URL",
        "MODEL_SECRET",
        "DATA_TOKEN",
        "OUTPUT_PASSWORD",
    ):
        assert f"${{oc.env:{reference}}}" in written
    assert written.count(HIDDEN) == 4


def test_no_message_of_any_command_has_a_secret(folder):
    config, longest = str(folder / "run.yaml"), f"https://me:{WRITTEN['a long URL']}{'x' * 60}@host"
    data, model = f"https://me:{WRITTEN['data.path as URL']}@host/x.jsonl", f"https://me:{WRITTEN['model.name as URL']}@host/m"
    taken = folder / ENVIRONMENT["DATA_TOKEN"]
    (taken / "checkpoints").mkdir()
    query = f"s3://bucket/m?X-Amz-Signature={WRITTEN['model.name with a query']}"
    commands = [
        (["check", config], 0),
        (["check", config, f"data.path={data}", f"model.name={query}"], 0),
        (["check", config, "trainer.batch_size=${oc.env:TYPED_TOKEN}", f"trainer.seeds={longest}", f"trainer.seed={longest}"], 2),
        (["check", config, f"method.api_key=@{WRITTEN['an override that cannot be read']}"], 2),
        (["preview", config, "-n", "1"], 0),
        (["preview", config, "data.path=${oc.env:ABSENT_AUTH}/x.jsonl"], 2),
        (["train", config, f"data.path={data}"], 2),
        (["--debug", "train", config, f"model.name={model}"], 2),
        (["--debug", "train", config, f"model.name={query}"], 2),
        (["--debug", "train", config, "method.fails=true", f"output.dir={folder / 'failed'}"], 3),
        (["train", config, f"output.dir={taken}"], 2),
        (["explain", f"https://me:{WRITTEN['model.name as URL']}@host"], 2),
        ([f"https://me:{WRITTEN['model.name as URL']}@host"], 2),
    ]
    done = run(folder, "-c", SEVERAL, given=json.dumps([arguments for arguments, _ in commands]))
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == [f"exit {code}" for _, code in commands]
    assert done.stderr.count("Traceback") >= 3 and f"RuntimeError: no {HIDDEN}, {HIDDEN}, https://{HIDDEN}@host/x" in done.stderr
    assert found((done.stdout + done.stderr).encode()) == []
    assert {str(path) for path in (folder / "failed").rglob("*") if path.is_file() and found(path.read_bytes())} == set()
