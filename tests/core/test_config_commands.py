"""truing check, schema and explain, as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.core.config_fakes import DPO, ONLINE, REGISTRY
from truing.cli import main
from truing.registry import Registry

MEASURED = """
import sys, time
from truing.cli import main
try:
    main({args!r})
except SystemExit as exit:
    code = exit.code
heavy = sorted({{"torch", "transformers", "datasets", "accelerate", "peft"}} & set(sys.modules))
print("MEASURED", code, heavy, time.process_time())
"""


@pytest.fixture
def truing(monkeypatch, tmp_path):
    """Run the program with the fakes for plugins, in an empty folder with run.yaml in it."""
    monkeypatch.setattr(Registry, "load", classmethod(lambda cls, **_: REGISTRY))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(DPO)
    return lambda *args: CliRunner().invoke(main, args)


def test_check_says_what_would_be_run(truing, tmp_path):
    result = truing("check", "run.yaml")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "run.yaml is valid.",
        "  method    dpo",
        "  model     meta-llama/Llama-3.1-8B-Instruct",
        "  data      data/preferences.jsonl as preference",
        "  step      4 prompts x 4 accumulated = 16 prompts in each process",
        "  length    num_epochs 1",
        "  output    output/dpo-align",
    ]
    assert result.stderr.startswith(f"warning: data.path data/preferences.jsonl is not there yet: looked for {tmp_path}/data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "preferences.jsonl").touch()
    assert truing("check", "run.yaml").stderr == ""


def test_check_of_an_online_run(truing, tmp_path):
    (tmp_path / "run.yaml").write_text(ONLINE)
    result = truing("check", "run.yaml")
    assert result.stdout.splitlines()[1:] == [
        "  method    grpo",
        "  model     Qwen/Qwen2.5-1.5B-Instruct, training a lora adapter",
        "  data      openai/gsm8k as text, weight 1",
        "  data      more.jsonl, a.json, b.json as text, weight 0.5",
        "  eval_data openai/gsm8k as text",
        "  rollout   vllm: 4 completions of each prompt, of up to 256 tokens",
        "  rewards   2 x brevity, 1 x brevity",
        "  step      4 prompts x 1 accumulated = 4 prompts in each process",
        "  length    max_steps 10",
        "  output    output/grpo",
    ]
    assert "more.jsonl is not there yet" in result.stderr
    assert "gsm8k" not in result.stderr


def test_check_warns_loudly_of_the_default_reward(truing):
    result = truing("check", "run.yaml", "method=grpo", "data.format=text")
    assert result.exit_code == 0
    assert "warning: reward `default` returns 0.0 for every completion: nothing will be learned; name a reward" in result.stderr


@pytest.mark.parametrize(
    ("args", "exit_code", "message"),
    [
        (["nowhere.yaml"], 2, "error: cannot read the configuration nowhere.yaml: No such file or directory"),
        (["run.yaml", "trainer.sed=1"], 2, "error: command line: trainer.sed is not a known key; did you mean 'seed'?"),
        (
            ["run.yaml", "method=ppo"],
            3,
            "error: command line: method 'ppo' is not installed; install its plugin with: pip install truing-ppo",
        ),
    ],
)
def test_check_exits_with_a_clear_error(truing, args, exit_code, message):
    result = truing("check", *args)
    assert (result.exit_code, result.stderr.strip(), result.stdout) == (exit_code, message, "")


def test_schema_prints_json(truing):
    schema = json.loads(truing("schema").stdout)
    assert schema["$ref"] in {f"#/$defs/{name}" for name in schema["$defs"]}


def test_explain_prints_or_suggests(truing):
    assert truing("explain", "trainer.seed").stdout.startswith("trainer.seed: an int >= 0 and <= 4294967295, default 42\n")
    result = truing("explain", "trainer.sed")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "did you mean 'trainer.seed'?" in result.stderr


@pytest.mark.parametrize("args", [["check", "run.yaml"], ["schema"], ["explain", "trainer.learning_rate"]])
def test_no_command_imports_torch_or_takes_two_seconds(tmp_path, args):
    (tmp_path / "run.yaml").write_text(ONLINE.replace("grpo, beta: 0.001", "nothing"))
    script = MEASURED.format(args=args)
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    _, code, heavy, seconds = done.stdout.splitlines()[-1].split(" ")
    assert (code, heavy) == ("3" if args[0] == "check" else "0", "[]")
    assert float(seconds) < 2


def test_a_valid_configuration_is_checked_without_torch(tmp_path):
    (tmp_path / "run.yaml").write_text(DPO)
    script = "from truing.registry import Registry\nfrom tests.core.config_fakes import REGISTRY\n"
    script += "Registry.load = classmethod(lambda cls, **_: REGISTRY)\n" + MEASURED.format(
        args=["check", str(tmp_path / "run.yaml")]
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith("MEASURED 0 [] ")
    assert float(done.stdout.split()[-1]) < 2
