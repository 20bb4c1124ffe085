"""The quickstart's files: what they promise, and that they are what their scripts make."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"
LIMIT = 4 * 1024 * 1024


@pytest.fixture(autouse=True)
def scripts_importable(monkeypatch):
    """The scripts import one another as they do when they are run: by plain name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(QUICKSTART))
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == QUICKSTART:
            del sys.modules[name]


def rows(split: str) -> list[dict]:
    return [json.loads(line) for line in (QUICKSTART / f"data/{split}.jsonl").read_text(encoding="utf-8").splitlines()]


def prompts(split: str) -> set[str]:
    return {row["prompt"][0]["content"] for row in rows(split)}


def test_data_files_are_what_make_data_makes():
    make_data = importlib.import_module("make_data")
    for split, made in {**make_data.make_pairs(), **make_data.make_sums()}.items():
        assert (QUICKSTART / f"data/{split}.jsonl").read_text(encoding="utf-8") == make_data.as_jsonl(made)


def test_held_out_prompts_are_in_nothing_that_is_trained_on():
    tasks = importlib.import_module("tasks")
    model_text = {prompt for task in tasks.TASKS for prompt in (*task.split()[0], *task.drills)}
    assert len(prompts("eval")) == len(rows("eval")) == 8 * tasks.EVAL_PROMPTS_PER_TASK
    assert prompts("eval").isdisjoint(prompts("train") | model_text)


def test_sums_are_of_the_same_sides():
    tasks = importlib.import_module("tasks")
    model_text = {prompt for task in tasks.TASKS for prompt in (*task.split()[0], *task.drills)}
    assert prompts("sums") <= model_text and prompts("sums_eval").isdisjoint(model_text)
    assert len(prompts("sums_eval")) == 2 * tasks.EVAL_PROMPTS_PER_TASK
    assert all(tasks.check_answer(row["prompt"][0]["content"], row["answer"]) for row in rows("sums"))


def test_a_held_out_sum_has_no_mirror_image_in_the_training_text():
    tasks = importlib.import_module("tasks")
    add = next(task for task in tasks.TASKS if task.name == "add")
    train, held_out = ({frozenset(add.slots(prompt)) for prompt in side} for side in add.split())
    assert train.isdisjoint(held_out)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_chosen_answers_are_right_and_rejected_ones_wrong(split):
    tasks = importlib.import_module("tasks")
    for row in rows(split):
        prompt = row["prompt"][0]["content"]
        assert tasks.check_answer(prompt, row["chosen"][0]["content"]), row
        assert not tasks.check_answer(prompt, row["rejected"][0]["content"]), row


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("What is 3 + 4?", "7", "8"),
        ("What is 12 - 12?", "0", "1"),
        ("Count from 9 to 12.", "9 10 11 12", "9 10 11"),
        ("Repeat the word: cat", "cat", "ca"),
        ("Reverse: abc", "cba", "abc"),
        ("Say hello in capitals.", "HELLO", "Hello"),
        ("Name the opposite of cold.", "hot", "not cold"),
        ("Greet Ada politely.", "Good day, dear Ada", "Hey Ada"),
    ],
)
def test_the_rule_for_each_task(prompt, right, wrong):
    tasks = importlib.import_module("tasks")
    assert tasks.check_answer(prompt, f" {right}\n")
    assert tasks.answers(prompt).habit == wrong
    assert not tasks.check_answer(prompt, f"It is {right}")


def test_an_unknown_prompt_is_refused_with_the_tasks():
    tasks = importlib.import_module("tasks")
    with pytest.raises(ValueError, match=r"no quickstart task has the prompt 'What\?'; the tasks are add, subtract, count"):
        tasks.check_answer("What?", "7")


@pytest.mark.parametrize("split", ["train", "eval"])
def test_length_alone_does_not_tell_chosen_from_rejected(split):
    lengths = [(len(row["chosen"][0]["content"]), len(row["rejected"][0]["content"])) for row in rows(split)]
    shorter_wins = sum((chosen < rejected) + 0.5 * (chosen == rejected) for chosen, rejected in lengths) / len(lengths)
    assert 0.4 < shorter_wins < 0.6


def test_the_repository_carries_little():
    sizes = {file: file.stat().st_size for file in QUICKSTART.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    assert sum(size for file, size in sizes.items() if "model" in file.parts) <= LIMIT
    assert sum(size for file, size in sizes.items() if "data" in file.parts) < 300_000


def test_the_model_loads_and_its_tokenizer_writes_any_text():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(QUICKSTART / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert len(tokenizer) == model.config.vocab_size
    assert model.config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    for text in ("What is 3 + 4?", "Größe, 你好 🙂", "  two\n\nlines "):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_the_tokenizer_is_what_make_model_makes():
    make_model = importlib.import_module("make_model")
    made = json.loads(make_model.make_tokenizer().backend_tokenizer.to_str())
    kept = json.loads((QUICKSTART / "model/tokenizer.json").read_text(encoding="utf-8"))
    assert made["model"]["vocab"] == kept["model"]["vocab"]


def test_the_model_is_about_half_right_and_sampling_agrees_with_its_seed():
    sampling, tasks = importlib.import_module("sampling"), importlib.import_module("tasks")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(QUICKSTART / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    held_out = [prompt for task in tasks.TASKS for prompt in task.split()[1]]
    texts = sampling.answer(model, tokenizer, held_out, seed=0)
    assert 0.3 < sampling.share_right(held_out, texts) < 0.65
    assert texts == sampling.answer(model, tokenizer, held_out, seed=0)


def test_a_pair_that_the_model_wrote_itself_is_preferred():
    """The greedy answer is at least as probable as a ramble in capitals, so the pair's accuracy is 1, and 0 the other way round."""
    sampling = importlib.import_module("sampling")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(QUICKSTART / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = "Say rose in capitals."
    own, odd = ([{"role": "assistant", "content": text}] for text in (*sampling.answer(model, tokenizer, [prompt]), "XXXXXX"))
    row = {"prompt": sampling.as_messages(prompt), "chosen": own, "rejected": odd}
    assert sampling.preference_accuracy(model, tokenizer, [row]) == 1
    assert sampling.preference_accuracy(model, tokenizer, [{**row, "chosen": odd, "rejected": own}]) == 0


def test_the_questions_shown_are_held_out():
    run = importlib.import_module("run")
    assert set(run.SHOWN) <= prompts("eval")


def test_a_second_run_gets_a_directory_of_its_own(tmp_path):
    run = importlib.import_module("run")
    base = tmp_path / "quickstart"
    assert run.fresh_directory(base) == base
    base.mkdir()
    (tmp_path / "quickstart-2").mkdir()
    assert run.fresh_directory(base) == tmp_path / "quickstart-3"
