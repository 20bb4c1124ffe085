from __future__ import annotations

import asyncio
import functools
import math

import attrs
import numpy as np
import pytest
import torch

from truing.errors import ConfigError, PluginError
from truing.functions import find_function, load_function
from truing.rewards import (
    DEFAULT_WARNING,
    SIGNATURES,
    CallableReward,
    DefaultReward,
    EnvironmentReward,
    FunctionReward,
    RewardRegistry,
    as_reward,
    reward_registry,
    score,
)
from truing.rewards.functions import fed_from, with_arguments
from truing.testing import LetterReward, check_reward, fake_completions


def completions(**columns):
    """Two completions, "ab" and "abcd", with the given columns."""
    made = fake_completions(["ab", "abcd"])
    return [
        attrs.evolve(one, columns={key: values[row] for key, values in columns.items() if values[row] is not ...})
        for row, one in enumerate(made)
    ]


def test_default_reward_is_zero_and_warns():
    assert score(DefaultReward(), completions()) == [0.0, 0.0]
    assert "nothing will be learned" in DEFAULT_WARNING
    check_reward(DefaultReward)


def prompt_response(prompt, response):
    return len(response) + int(prompt[-1])


def batch(completions, **columns):
    return [len(text) + len(columns) for text in completions]


def batch_with_prompts(prompts, completions, **columns):
    return [f"{prompt}{text}".count("1") for prompt, text in zip(prompts, completions, strict=True)]


def batch_without_columns(completions):
    return [len(text) for text in completions]


@pytest.mark.parametrize(
    ("function", "expected"),
    [(prompt_response, [2, 5]), (batch, [3, 5]), (batch_with_prompts, [0, 1]), (batch_without_columns, [2, 4])],
)
def test_the_accepted_signatures(function, expected):
    assert score(as_reward(function), completions(answer=["x", "y"])) == expected


def test_async_functions_of_both_forms():
    async def one(prompt, response):
        await asyncio.sleep(0)
        return len(response)

    async def many(completions):
        await asyncio.sleep(0)
        return [len(text) for text in completions]

    assert score(as_reward(one), completions()) == [2, 4]
    assert score(as_reward(many), completions()) == [2, 4]


def test_async_reward_within_a_running_loop():
    async def many(completions):
        await asyncio.sleep(0)
        return [1.0] * len(completions)

    async def notebook():
        return score(as_reward(many), completions())

    assert asyncio.run(notebook()) == [1.0, 1.0]


def test_columns_reach_batches_as_lists_and_single_calls_as_values():
    seen = {}

    def many(completions, answer, level=3, **columns):
        seen.update(answer=answer, level=level, **columns)
        return [0.0] * len(completions)

    def one(prompt, response, answer):
        return float(answer)

    rows = completions(answer=[1, 2], extra=["a", ...])
    score(as_reward(many), rows)
    assert seen == {"answer": [1, 2], "level": 3, "extra": ["a", None]}
    assert score(as_reward(one), rows) == [1.0, 2.0]


def plural(prompts, completions, answers, **kwargs):
    return [float(answer) + len(kwargs) for answer in answers]


def test_a_plural_is_fed_from_the_column_of_its_singular():
    assert score(as_reward(plural), completions(answer=[1, 2], other=["x", "y"])) == [3.0, 4.0]
    assert score(as_reward(plural), completions(answer=[1, 2], answers=[5, 6])) == [6.0, 7.0]
    line = "reward plural: its parameter `answers` is fed from the column `answer`"
    assert fed_from(as_reward(plural), {"answer", "other"}) == [line]
    assert fed_from(as_reward(plural), {"answer", "answers"}) == fed_from(DefaultReward(), {"answer"}) == []


def test_which_column_feeds_a_function_of_a_file_is_known_without_importing_it(tmp_path):
    (tmp_path / "mine.py").write_text("raise ValueError\nasync def f(completions, *, answers):\n    pass\n")
    (tmp_path / "other.py").write_text("from mine import f\n")
    found = [fed_from(FunctionReward(name=f"{file}.f", base_dir=tmp_path), {"answer"}) for file in ("mine", "other")]
    assert found == [["reward mine.f: its parameter `answers` is fed from the column `answer`"], []]


def test_missing_column_is_named():
    def many(completions, answer):
        return [0.0] * len(completions)

    message = r"reward 'many' asks for column 'answer', which these rows lack \(columns: answers, level\); did you mean 'answers'\?"
    with pytest.raises(ConfigError, match=message):
        score(as_reward(many), completions(answers=[1, 2], level=[1, 1]))


def test_parameters_of_a_function_are_set_by_its_entry():
    def many(completions, answer, limit=3, **columns):
        assert not columns
        return [float(answer[row] + limit) for row in range(len(completions))]

    def one(prompt, response, *, limit):
        return float(limit)

    rows = completions(answer=[1, 2], limit=[7, 7])
    assert score(with_arguments(as_reward(many), {"limit": 5}), rows) == [6.0, 7.0]
    assert score(with_arguments(as_reward(one), {"limit": 5}), rows) == [5.0, 5.0]
    message = r"function many has no parameter 'limmit' to be set \(parameters: answer, limit\); did you mean 'limit'\?"
    with pytest.raises(ConfigError, match=message):
        with_arguments(as_reward(many), {"limmit": 5})
    with pytest.raises(ConfigError, match="has no parameter 'completions' to be set"):
        with_arguments(as_reward(many), {"completions": []})
    with pytest.raises(ConfigError, match="reward 'default' is no plain function and takes no settings; remove limit"):
        with_arguments(DefaultReward(), {"limit": 5})


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: 0.0,
        lambda response: 0.0,
        lambda prompts: [],
        lambda prompt, completions: [],
        lambda *completions: [],
        lambda completions, /: [],
        dict,
    ],
)
def test_unclear_signature_lists_the_accepted_ones(function):
    with pytest.raises(ConfigError) as info:
        CallableReward("f", function)
    assert all(signature in str(info.value) for signature in SIGNATURES)
    assert "f(" in str(info.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0], "returned 1 scores for 2 completions"),
        ("ab", "must return a list with a number or None for each completion, got str 'ab'"),
        ({"a": 1, "b": 2}, "got dict"),
        (1.0, "got float 1.0"),
        (None, "got NoneType None"),
        ([1.0, "2"], "returned str '2' for completion 1; a score is a number or None"),
        ([[1.0], 2.0], r"returned list \[1.0\] for completion 0"),
        ([1.0, math.nan], "returned nan for completion 1; return None where it does not apply"),
        ([math.inf, 0.0], "returned inf for completion 0"),
        ([torch.zeros(2), 0.0], r"returned Tensor tensor\(\[0., 0.\]\) for completion 0, which is not one number"),
        ([np.zeros(2), 0.0], r"returned ndarray array\(\[0., 0.\]\) for completion 0, which is not one number"),
    ],
)
def test_nonsense_results_say_what_was_wrong(result, message):
    with pytest.raises(PluginError, match=message) as info:
        score(CallableReward("bad", lambda completions: result), completions())
    assert "reward 'bad'" in str(info.value)


@pytest.mark.parametrize(
    "result", [[True, None], (1, None), [np.float32(1), None], [torch.tensor(1.0), None]], ids=["bool", "tuple", "numpy", "tensor"]
)
def test_numbers_of_any_kind_and_none_are_scores(result):
    scores = score(CallableReward("r", lambda completions: result), completions())
    assert scores == [1.0, None]
    assert type(scores[0]) is float


def test_a_tensor_of_scores():
    assert score(CallableReward("r", lambda completions: torch.tensor([0.5, 2.0])), completions()) == [0.5, 2.0]


def test_as_reward_takes_classes_instances_and_callable_objects():
    assert as_reward(LetterReward) == LetterReward()
    assert as_reward(LetterReward(letter="b")) == LetterReward(letter="b")
    partial = as_reward(functools.partial(batch, extra=1))
    assert (partial.name, score(partial, completions())) == ("partial", [3, 5])

    class Scorer:
        def __call__(self, completions):
            return [1.0] * len(completions)

    assert score(as_reward(Scorer()), completions()) == [1.0, 1.0]


def test_as_reward_refuses_what_cannot_be_called():
    with pytest.raises(ConfigError, match="must be a function, a Reward or a name, got int 3"):
        as_reward(3)


def test_function_beside_the_configuration(tmp_path):
    (tmp_path / "my_rewards.py").write_text("def length(completions):\n    return [len(text) for text in completions]\n")
    reward = as_reward("my_rewards.length", base_dir=tmp_path)
    assert reward == FunctionReward(name="my_rewards.length", base_dir=tmp_path)
    assert score(reward, completions()) == [2, 4]


def test_function_with_an_unclear_signature_is_named_as_the_user_wrote_it(tmp_path):
    (tmp_path / "my_rewards.py").write_text("def bad(x):\n    return 0\n")
    with pytest.raises(ConfigError, match=r"reward function my_rewards.bad\(x\) fits none"):
        score(FunctionReward(name="my_rewards.bad", base_dir=tmp_path), completions())


def test_registry_gives_back_the_function_and_finds_it():
    registry = RewardRegistry()
    decorated = registry.register("length")(batch_without_columns)
    registry.register("letter")(LetterReward)
    assert decorated is batch_without_columns
    assert registry.names() == ("length", "letter")
    assert score(registry.get("length"), completions()) == [2, 4]
    assert registry.get("letter") == LetterReward()


def test_registry_refuses_taken_bad_and_unknown_names():
    registry = RewardRegistry()
    registry.register("length")(batch_without_columns)
    with pytest.raises(ConfigError, match=r"'length' is taken by \S*test_rewards.batch_without_columns; choose another"):
        registry.register("length")(LetterReward)
    registry.register("letter")(LetterReward)
    with pytest.raises(ConfigError, match=r"'letter' is taken by truing.testing.fakes.LetterReward"):
        registry.register("letter")(batch_without_columns)
    with pytest.raises(ConfigError, match=r"'default' is taken by truing.rewards.contract.DefaultReward"):
        registry.register("default")(batch_without_columns)
    with pytest.raises(ConfigError, match="'My-Reward' is not allowed; use lower-case words joined by \"_\""):
        registry.register("My-Reward")
    with pytest.raises(ConfigError, match="no reward 'lenght' is registered; did you mean 'length'\\?"):
        registry.get("lenght")
    with pytest.raises(ConfigError, match="fits none of the accepted signatures"):
        registry.register("other")(lambda x: x)
    assert registry.names() == ("length", "letter")


def test_the_module_registry_serves_as_reward(monkeypatch):
    monkeypatch.setattr(reward_registry, "_rewards", {})
    reward_registry.register("letters")(LetterReward(letter="b"))
    assert as_reward("letters") == LetterReward(letter="b")
    with pytest.raises(ConfigError, match="no reward 'unknown' is registered"):
        as_reward("unknown")


def test_a_function_that_is_run_anew_takes_its_own_place(tmp_path):
    def cell(value):
        def constant(completions):
            return [value] * len(completions)

        return constant

    registry = RewardRegistry()
    registry.register("constant")(cell(1.0))
    registry.register("constant")(cell(2.0))
    assert score(registry.get("constant"), completions()) == [2.0, 2.0]
    (tmp_path / "mine.py").write_text(
        "from truing.rewards import reward_registry\n@reward_registry.register('anew')\ndef anew(prompt, response): return 1.0\n"
    )
    source = find_function("mine.anew", tmp_path)
    try:
        load_function(source)
        latest = load_function(source)
        assert reward_registry.get("anew").function is latest
    finally:
        reward_registry._rewards.pop("anew", None)


def rewarded(*rewards):
    made = fake_completions(["a"] * len(rewards))
    return [attrs.evolve(one, rewards=of_one) for one, of_one in zip(made, rewards, strict=True)]


def test_the_environment_rewards():
    assert score(EnvironmentReward(), rewarded({"game": 0.5}, {}, {"game": -1.0})) == [0.5, None, -1.0]
    assert score(EnvironmentReward(key="b"), rewarded({"a": 0.5, "b": 2.0}, {})) == [2.0, None]
    check_reward(EnvironmentReward)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (None, r"gives several rewards \(a, b\); set `key` of the reward `environment` to one"),
        ("c", r"key 'c' of the reward `environment` is none of the environment's \(a, b\)"),
    ],
)
def test_which_of_an_environments_rewards_is_meant_must_be_clear(key, message):
    with pytest.raises(PluginError, match=message):
        EnvironmentReward(key=key)(rewarded({"a": 0.5, "b": 2.0}))
