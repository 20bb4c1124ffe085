"""Loading: what is accepted, and every fault at once with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.core.config_fakes import DPO, ONLINE, REGISTRY, Brevity, InProcess, Pairs, Sampled, Server, failure, load
from truing import ConfigError, PluginError
from truing.config import RewardEntry, RolloutConfig, build_config, dump_config
from truing.data.strategies import FunctionStrategy, Preference
from truing.registry import Registry
from truing.rewards import DefaultReward, FunctionReward, reward_registry
from truing.rollout.functions import FunctionRollout

BARE = Registry.from_modules({})


def test_the_first_example_is_accepted_as_it_stands(tmp_path):
    config = load(tmp_path, DPO)
    assert config.method == Pairs()
    assert (config.data[0].path, config.data[0].format) == ("data/preferences.jsonl", Preference())
    assert (config.trainer.batch_size, config.trainer.learning_rate, config.trainer.num_epochs) == (4, 5e-6, 1.0)
    assert type(config.trainer.num_epochs) is float
    assert config.trainer.mixed_precision == "bf16"
    assert config.output.dir == Path("output/dpo-align")
    assert config.base_dir == tmp_path


@pytest.mark.parametrize(("method", "rate"), [("grpo", "5e-6"), ("ppo", "1e-5")])
def test_online_methods_that_are_not_installed_say_which_plugin_to_install(tmp_path, method, rate):
    text = DPO.replace("dpo\n", f"{method}\n", 1).replace("preferences", "prompts").replace("preference\n", "text\n")
    text = text.replace("  mixed_precision: bf16\n", "").replace("5e-6", rate)
    with pytest.raises(PluginError) as caught:
        load(tmp_path, text, registry=BARE)
    assert caught.value.exit_code == 3
    assert f"pip install truing-{method}" in str(caught.value)


def test_a_rollout_method_without_rewards_gets_the_default_reward(tmp_path):
    config = load(tmp_path, DPO, "method=grpo", "data.format=text")
    assert config.rewards == (RewardEntry(reward=DefaultReward(), weight=1.0),)
    assert load(tmp_path, DPO).rewards == ()


@pytest.mark.parametrize(
    ("text", "rollout"),
    [
        ("", RolloutConfig(backend=InProcess())),
        ("rollout: {num_generations: 2}", RolloutConfig(backend=InProcess(), num_generations=2)),
        ("rollout: vllm", RolloutConfig(backend=Server())),
        ("rollout: {name: vllm, temperature: 0.5}", RolloutConfig(backend=Server(), temperature=0.5)),
    ],
)
def test_a_rollout_without_a_name_is_of_the_default_backend(tmp_path, text, rollout):
    assert load(tmp_path, f"{DPO}{text}\n", "method=grpo", "data.format=text").rollout == rollout


def test_plugins_by_name_and_by_mapping(tmp_path):
    config = load(tmp_path, ONLINE)
    assert config.method == Sampled(beta=0.001)
    assert config.rollout == RolloutConfig(backend=Server(port=9000), num_generations=4)
    assert config.rewards == (RewardEntry(reward=Brevity(limit=7), weight=2.0), RewardEntry(reward=Brevity()))
    assert config.model.adapter.target_modules == ("q_proj", "v_proj")
    assert [entry.weight for entry in config.data] == [1.0, 0.5]
    assert (len(config.eval_data), config.eval_data[0].split) == (1, "test")


def test_null_is_the_default_and_one_value_stands_for_a_list(tmp_path):
    config = load(tmp_path, ONLINE)
    assert config.trainer.max_length is None
    assert config.trainer.report_to == ("tensorboard",)
    assert load(tmp_path, DPO, "trainer=null").trainer.batch_size == 4


FAULTS = """\
recipe: aline
method: {name: dpo, bta: 0.2, beta: -1}
modl: {name: x}
model: gpt2
data:
  - path: x.jsonl
    format: {name: preference, collumn: 1}
    limit: 1e3
  - format: {nme: preference}
    on_bad_row: skp
trainer:
  batch_size: 3.7
  batch_size: 4
  learning_rate: "1e-3"
  gradient_checkpointing: yes
  warmup_ratio: 2
  weight_decay: .nan
  adam_epsilon: true
  seed: true
  logging_steps: 1
  report_to: [wandb, tensorbord]
  forward: 3
output:
  dir: ${output.dri}
"""


def test_all_faults_are_reported_at_once_by_line(tmp_path):
    assert failure(tmp_path, FAULTS, "trainer.sed=1").splitlines() == [
        "21 faults:",
        "  run.yaml:1: recipe must be align, got 'aline'",
        "  run.yaml:2: method.bta is not a known key; did you mean 'beta'?",
        "  run.yaml:2: method.beta must be > 0, got -1",
        "  run.yaml:3: modl is not a known key; did you mean 'model'?",
        "  run.yaml:4: model must be a mapping, such as {name: gpt2}, got 'gpt2'",
        "  run.yaml:7: data.0.format.collumn is not a known key; nothing can be set here",
        "  run.yaml:8: data.0.limit must be an int, got 1000.0; write 1000",
        "  run.yaml:9: data.1.format is a mapping without `name`; did you mean 'name' where it says 'nme'?",
        "  run.yaml:10: data.1.on_bad_row must be one of error, skip, got 'skp'; did you mean 'skip'?",
        "  run.yaml:12: trainer.batch_size must be an int, got 3.7",
        "  run.yaml:13: batch_size is given twice, here and in line 12; remove one",
        "  run.yaml:14: trainer.learning_rate must be a float, got the string '1e-3'; remove the quotes",
        "  run.yaml:15: trainer.gradient_checkpointing must be true or false, got the string 'yes'; write true",
        "  run.yaml:16: trainer.warmup_ratio must be >= 0 and <= 1, got 2",
        "  run.yaml:17: trainer.weight_decay must be a finite number, got nan",
        "  run.yaml:18: trainer.adam_epsilon must be a float, got true",
        "  run.yaml:19: trainer.seed must be an int, got true",
        "  run.yaml:21: trainer.report_to.1 must be one of tensorboard, wandb, mlflow, trackio, got 'tensorbord'; "
        "did you mean 'tensorboard'?",
        "  run.yaml:22: trainer.forward must be one of auto, shared_prefix, padded, got 3",
        "  run.yaml:24: output.dir: '${output.dri}' cannot be resolved: Interpolation key 'output.dri' not found; "
        "\\${ stands for a plain ${",
        "  command line: trainer.sed is not a known key; did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.dtype=false"], "model.dtype must be one of auto, float32, bfloat16, float16, float64, got false"),
        (["trainer.batch_size='4'"], "trainer.batch_size must be an int, got the string '4'; remove the quotes"),
        (["trainer.batch_size=[4]"], "trainer.batch_size must be an int, got a list"),
        (["trainer.batch_size=99999999999999999999"], "trainer.batch_size must be an int, got 1e+20"),
        (["trainer.disable_dropout=1"], "trainer.disable_dropout must be true or false, got 1"),
        (
            ["trainer.disable_dropout='false'"],
            "trainer.disable_dropout must be true or false, got the string 'false'; remove the quotes",
        ),
        (["trainer.learning_rate=.inf"], "trainer.learning_rate must be a finite number, got inf"),
        (["trainer.learning_rate={a: 1}"], "trainer.learning_rate must be a float, got a mapping"),
        (["trainer.learning_rate=fast"], "trainer.learning_rate must be a float, got the string 'fast'"),
        (["trainer=fast"], "trainer must be a mapping, such as {batch_size: fast}, got 'fast'"),
        (["trainer=3"], "trainer must be a mapping, got 3"),
        (["model.name=3"], "model.name must be a string, got 3; put it in quotes"),
        (["model.revision=true"], "model.revision must be a string, got true; put it in quotes"),
        (["output.dir=''"], "output.dir must be a path, got ''"),
        (["output.dir=[a]"], "output.dir must be a path, got a list"),
        (["model.adapter=lora"], "model.adapter must be a mapping, such as {type: lora}, got 'lora'"),
        (["model.adapter.target_modules=[a, 3]"], "model.adapter.target_modules.1 must be a string, got 3; put it in quotes"),
        (["model.adapter.target_modules=3"], "model.adapter.target_modules must be a string, got 3; put it in quotes"),
        (
            ["model.adapter.target_modules={a: 1}"],
            "model.adapter.target_modules must be a string, or a list of them, got a mapping",
        ),
        (["method.loss_type=sigmod"], "method.loss_type must be one of sigmoid, ipo, got 'sigmod'; did you mean 'sigmoid'?"),
        (
            ["method.loss_type=[ipo, sigmod]"],
            "method.loss_type.1 must be one of sigmoid, ipo, got 'sigmod'; did you mean 'sigmoid'?",
        ),
        (["method.loss_weights=[1, -2]"], "method.loss_weights must be >= 0, got -2"),
        (["method.clip_range=[1]"], "method.clip_range must be a list of 2, got one of 1"),
        (["method.clip_range=[1, x]"], "method.clip_range must be a float, got the string 'x'"),
        (["method.clip_range=1"], "method.clip_range must be a list (each a float), got 1"),
        (["method.groups=1"], "method.groups must be a mapping, got 1"),
        (["method.groups={a: x}"], "method.groups.a must be an int, got the string 'x'"),
        (["method.label_smoothing=0.1", "method.loss_type=ipo"], "method: label_smoothing means nothing to ipo; set it to 0"),
        (["method=3"], "method must be a name, or a mapping with name and settings, got 3"),
        (["method={beta: 1}"], "method is a mapping without `name`, such as {name: ...}"),
        (["method.name=3"], "method has a name that must be a string, got 3"),
        (["method=null"], "method is required: the method: a name, or a mapping with name and its fields."),
        (["data=[]"], "data is empty; name at least one dataset"),
        (["data.path=null"], "data needs a path or data_files: a hub id, a folder or a file"),
        (["data.pth=1"], "data.pth is not a known key; did you mean 'path'?"),
        (["lr=1"], "lr is not a known key; did you mean trainer.learning_rate?"),
        (["batch_size=1"], "batch_size is not a known key; did you mean trainer.batch_size?"),
        (["trainer.quux=1"], "trainer.quux is not a known key; `truing explain trainer` lists the keys"),
        (["trainer.sed=null"], "trainer.sed is not a known key; did you mean 'seed'?"),
        (["output.quux=1"], "output.quux is not a known key; the keys here are dir"),
        (
            ["base_dir=x"],
            "base_dir is not a known key; the keys here are recipe, method, model, data, eval_data, rollout, rewards, ",
        ),
        (
            ["trainer.max_length=8", "trainer.max_prompt_length=8"],
            "trainer.max_prompt_length must be below trainer.max_length (8), got 8",
        ),
        (
            ["rewards=brevity"],
            "rewards is only for methods that sample completions (grpo); dpo trains on the data's own, so remove it",
        ),
        (
            ["rollout=vllm"],
            "rollout is only for methods that sample completions (grpo); dpo trains on the data's own, so remove it",
        ),
        (
            ["model.precompute_reference=true", "method.reference_free=true"],
            "model.precompute_reference is true, but dpo with these settings uses no reference; remove it",
        ),
        (
            ["model.reference={sync_steps: 8}", "method.reference_free=true"],
            "model.reference.sync_steps is 8, but dpo with these settings uses no reference; remove it",
        ),
        (
            ["model.reference={name: other}", "method.reference_free=true"],
            "model.reference.name is 'other', but dpo with these settings uses no reference; remove it",
        ),
        (
            ["model.reference={sync_steps: 8}", "model.precompute_reference=true"],
            "model.precompute_reference keeps log-probabilities of a reference that stays as it is, and with "
            "model.reference.sync_steps it follows the policy; remove one of the two",
        ),
        (
            ["model.reference={name: other, sync_steps: 8}", "model.adapter={type: lora}"],
            "model.reference.sync_steps is 8, but where an adapter is trained only a second adapter can follow it, and not the "
            "model that model.reference.name says; remove one of the two",
        ),
        (
            ["model.reference={mixup_alpha: 0.5}"],
            "model.reference.mixup_alpha is 0.5, but without sync_steps the reference never moves; set that, or remove mixup_alpha",
        ),
        (["model.reference={sync_steps: 0}"], "model.reference.sync_steps must be > 0, got 0"),
        (
            ["model.reference={sync_steps: 8, mixup_alpha: 1.5}"],
            "model.reference.mixup_alpha must be > 0 and <= 1, got 1.5",
        ),
        (["model.reference={sync_step: 8}"], "model.reference.sync_step is not a known key; did you mean 'sync_steps'?"),
        (["model.reference=other/model"], "model.reference must be one of auto, copy or a mapping, got 'other/model'"),
    ],
)
def test_one_fault(tmp_path, overrides, message):
    found = failure(tmp_path, DPO, *overrides)
    assert "\n" not in found
    assert re.sub(r"^(command line|run\.yaml(:\d+)?): ", "", found).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.0.weight=heavy"], "rewards.0.weight must be a float, got the string 'heavy'"),
        (["rewards.0.limit=0"], "rewards.0.limit must be > 0, got 0"),
        (["rewards.0.wieght=1"], "rewards.0.wieght is not a known key; did you mean 'weight'?"),
        (["rewards.0.limt=1"], "rewards.0.limt is not a known key; did you mean 'limit'?"),
        (["rewards=[careless]"], "rewards.0: ZeroDivisionError: float division by zero"),
        (["rewards=[7]"], "rewards.0 must be a name, or a mapping with name and settings, got 7"),
        (["data.1.weight=null"], "data.1 has no weight, but other entries have; give one to all of them or to none"),
    ],
)
def test_one_fault_online(tmp_path, overrides, message):
    found = failure(tmp_path, ONLINE, *overrides)
    assert "\n" not in found
    assert found.partition(": ")[2].startswith(message)


def test_faults_across_keys_are_reported_with_the_others(tmp_path):
    found = failure(tmp_path, DPO, "trainer.max_length=8", "trainer.max_prompt_length=9", "model.dtype=x", "rollout=vllm")
    assert found.startswith("3 faults:")


def test_only_missing_plugins_is_a_plugin_error_and_anything_else_a_config_error(tmp_path):
    with pytest.raises(PluginError, match=r"run\.yaml:2: .*'dpoo'"):
        load(tmp_path, DPO.replace("method: dpo", "method: dpoo"))
    with pytest.raises(ConfigError, match="2 faults") as caught:
        load(tmp_path, DPO.replace("method: dpo", "method: dpoo"), "trainer.seed=x")
    assert caught.value.exit_code == 2


def test_a_format_for_another_layout_is_refused(tmp_path):
    assert "'text'" in failure(tmp_path, DPO, "data.format=text")


def test_functions_beside_the_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def pairs(cfg, dataset_idx=0): ...\ndef short(prompt, response): ...\ndef draw(model): ...\n"
    )
    assert load(tmp_path, DPO, "data.format=mine.pairs").data[0].format == FunctionStrategy(name="mine.pairs", base_dir=tmp_path)
    rewards = load(tmp_path, ONLINE, "rewards=[mine.short, {name: mine.short, weight: 2}]").rewards
    function = FunctionReward(name="mine.short", base_dir=tmp_path)
    assert rewards == (RewardEntry(reward=function), RewardEntry(reward=function, weight=2.0))
    sampled = load(tmp_path, ONLINE, "rollout=mine.draw")
    assert sampled.rollout.backend == FunctionRollout(name="mine.draw", base_dir=tmp_path)
    assert "rollout:\n  name: mine.draw" in dump_config(sampled)


def test_parameters_of_a_reward_function_are_set_by_its_entry_and_written_down(tmp_path):
    (tmp_path / "mine.py").write_text("def short(completions, limit=3, **columns): ...\n")
    config = load(tmp_path, ONLINE, "rewards=[{name: mine.short, limit: 5, weight: 2}]")
    function = FunctionReward(name="mine.short", base_dir=tmp_path, arguments={"limit": 5})
    assert config.rewards == (RewardEntry(reward=function, weight=2.0),)
    assert "- name: mine.short\n  limit: 5\n  weight: 2.0" in dump_config(config)
    message = "reward function mine.short has no parameter 'wieght' to be set (parameters: limit)"
    assert message in failure(tmp_path, ONLINE, "rewards=[{name: mine.short, wieght: 5}]")


@pytest.mark.parametrize(
    ("override_", "message"),
    [
        ("data.format=mine.pair", "data.format: mine.py defines no function 'pair'; did you mean 'pairs'?"),
        ("data.format=nowhere.pairs", "data.format: no module for 'nowhere.pairs'"),
        ("data.format=chatml.intel", "pip install truing-chatml"),
        ("data.format=user.colums", "did you mean the plugin 'user.columns'?"),
        ("data.format={name: mine.pairs, x: 1}", "data.format names the function mine.pairs, which takes no settings; remove x"),
    ],
)
def test_functions_that_cannot_be(tmp_path, override_, message):
    (tmp_path / "mine.py").write_text("def pairs(cfg, dataset_idx=0): ...\n")
    assert message in failure(tmp_path, DPO, override_)


def test_a_dotted_plugin_name_comes_first_unless_a_file_has_it_too(tmp_path):
    assert (
        load(tmp_path, DPO, "data.format.name=user.columns", "data.format.field_chosen=best").data[0].format.field_chosen == "best"
    )
    (tmp_path / "user.py").write_text("def columns(cfg, dataset_idx=0): ...\n")
    found = failure(tmp_path, DPO, "data.format=user.columns")
    assert found == (
        "command line: data.format 'user.columns' is both a plugin and a function in user.py; rename the function or its file"
    )


VALUES = {
    "method": "grpo",
    "model": {"name": "m"},
    "data": {"path": "x.jsonl", "format": "text"},
    "output": {"dir": Path("out")},
}


def test_a_python_mapping_has_the_same_checks_without_places(tmp_path):
    config = build_config({**VALUES, "trainer": {"report_to": ("wandb",)}}, registry=REGISTRY, base_dir=tmp_path)
    assert (config.output.dir, config.base_dir, config.trainer.report_to) == (Path("out"), tmp_path, ("wandb",))
    with pytest.raises(ConfigError) as caught:
        build_config({**VALUES, "trainer": {"sed": 1, "seed": 1.5}, 3: 4}, registry=REGISTRY)
    assert str(caught.value).splitlines() == [
        "3 faults:",
        "  3 is not a known key; the keys here are recipe, method, model, data, eval_data, rollout, rewards, trainer, output",
        "  trainer.sed is not a known key; did you mean 'seed'?",
        "  trainer.seed must be an int, got 1.5",
    ]


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"learning_rate": 10**400}, f"trainer.learning_rate must be a finite number, got {10**56}..."),
        ({"learning_rate": 10**5000}, "trainer.learning_rate must be a finite number, got an int of 16610 bits"),
        ({"seed": "x" * 99}, f"trainer.seed must be an int, got the string '{'x' * 56}..."),
    ],
)
def test_long_values_are_shortened_in_messages(trainer, message):
    with pytest.raises(ConfigError) as caught:
        build_config({**VALUES, "trainer": trainer}, registry=REGISTRY)
    assert str(caught.value) == message


def test_a_value_of_every_type_is_accepted(tmp_path):
    method = {
        "name": "dpo",
        "loss_type": ["ipo"],
        "loss_weights": 1,
        "clip_range": [0, 2],
        "groups": {"a": 1},
        "reference_free": True,
    }
    values = {**VALUES, "method": method, "data": {"path": "x", "format": "preference"}, "model": {"name": "m", "revision": None}}
    config = build_config(values, registry=REGISTRY, base_dir=tmp_path)
    assert config.method == Pairs(
        loss_type=("ipo",), loss_weights=(1.0,), clip_range=(0.0, 2.0), groups={"a": 1}, reference_free=True
    )
    assert build_config({**values, "rollout": None, "rewards": ()}, registry=REGISTRY, base_dir=tmp_path) == config


def test_rewards_from_python_may_be_callables_or_registered_names(monkeypatch):
    monkeypatch.setattr(reward_registry, "_rewards", {})

    def short(prompt, response):
        return 0.0

    @reward_registry.register("shorter")
    def shorter(prompt, response):
        return 1.0

    config = build_config({**VALUES, "rewards": [short, "shorter"]}, registry=REGISTRY)
    assert [entry.reward.function for entry in config.rewards] == [short, shorter]
