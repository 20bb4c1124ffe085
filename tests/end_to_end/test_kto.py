"""KTO from data to weights: the estimate over the whole step, mismatched completions that are the same however a run is cut."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import torch
from click.testing import CliRunner

from tests.end_to_end.helpers import preferences, write_config, write_rows
from tests.end_to_end.steps import make_run, on_ranks, prepare_folder, step
from tests.end_to_end.test_invariance import require_same
from tests.end_to_end.test_resume import history, trained
from tests.end_to_end.test_skipped_steps import poison
from truing import Layout, Loss, LossOutput, Needs, Term
from truing.cli import main
from truing.errors import PluginError
from truing.train.step import evaluate

EXAMPLE = Path(__file__).parents[2] / "examples/kto"
METHODS = [{"name": "kto", "undesirable_weight": 0.5}, {"name": "kto", "loss_type": "apo_zero_unpaired"}]
each_method = pytest.mark.parametrize("method", METHODS, ids=["kto", "apo"])


def truing(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def unpaired(count=24):
    """Rows of one completion each, mostly with a prompt of its own; every third has none of its own."""
    rows = preferences(count)
    return [
        {
            "prompt": rows[index - index % 3 // 2]["prompt"],
            "completion": row["rejected" if index % 2 else "chosen"],
            "label": index % 2 == 0,
        }
        for index, row in enumerate(rows)
    ]


def write_run(folder, rows, **trainer):
    """Write a configuration of an unpaired run, and its model and data."""
    path = write_config(folder, **trainer)
    write_rows(folder / "rows.jsonl", rows)
    config = json.loads(path.read_text())
    config |= {"method": "kto", "data": {"path": str(folder / "rows.jsonl"), "format": "unpaired"}}
    path.write_text(json.dumps(config, indent=1))
    return path


@each_method
@pytest.mark.parametrize("forward", ["shared_prefix", "padded"])
def test_loss_metrics_and_every_gradient_do_not_depend_on_the_split(tmp_path, forward, method):
    """8 pairs as 16 samples, one step of them, in one micro-batch, in some, and in one for each."""
    prepare_folder(tmp_path, rows=8)
    found = []
    for split in (10**6, 230, 1):
        run = make_run(tmp_path, str(split), method=method, batch_size=16, forward=forward, max_tokens_per_batch=split)
        found.append(step(run))
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"} <= found[0][0].keys()
    assert found[0][0].get("kl", 1.0) > 0
    for other in found[1:]:
        require_same(other, found[0], 1e-12)


def test_the_estimate_is_over_the_whole_step(tmp_path):
    """The sum of log-ratios of all mismatched completions, taken from a run's own trees one by one."""
    prepare_folder(tmp_path)
    run = make_run(tmp_path, "run", method="kto", batch_size=32)
    trees = run.source.trees(run)
    ratios = []
    for tree in trees:
        own, other = tree.branches
        assert [branch.role for branch in (own, other)] == ["completion", "mismatched"]
        batch = run.lay_out([attrs.evolve(tree, branches=(attrs.evolve(other, role="completion", label=own.label),))])
        with torch.no_grad():
            ratios.append(float((run.policy(batch).tokens.logps - run.reference.token_logps(batch)).sum()))
    assert sum(ratios) > 0
    assert step(run)[0]["kl"] == pytest.approx(sum(ratios) / len(ratios), abs=1e-9)


@each_method
def test_two_ranks_give_what_one_does(tmp_path, method):
    """Unequal numbers of micro-batches, in float64."""
    prepare_folder(tmp_path, rows=7)
    expected = step(make_run(tmp_path, "one", method=method, batch_size=14))
    shared = on_ranks(tmp_path, 2, method=method, batch_size=7, max_tokens_per_batch=150)
    require_same(shared, expected, 1e-12)


@each_method
def test_references_taken_before_give_the_same(tmp_path, monkeypatch, method):
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "cache"))
    config = write_run(tmp_path, unpaired(), max_steps=3)
    lines = []
    for output, precompute in (("live", False), ("taken", True)):
        chosen = f"method.loss_type={method.get('loss_type', 'kto')}"
        done = truing("train", config, chosen, f"model.precompute_reference={precompute}", f"output.dir={tmp_path / output}")
        assert done.exit_code == 0, done.output
        lines.append(history(tmp_path / output))
    for live, taken in zip(*lines, strict=True):
        assert taken == pytest.approx(live, rel=1e-5, abs=1e-5)


def test_resume_is_bitwise(tmp_path):
    config = write_run(tmp_path, unpaired(), num_epochs=2, save_steps=5)
    assert truing("train", config, f"output.dir={tmp_path / 'unbroken'}").exit_code == 0
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "unbroken", resumed)
    for later in sorted((resumed / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    done = truing("train", config, f"output.dir={resumed}", "--resume")
    assert done.exit_code == 0 and "5 of 12 steps done" in done.output, done.output
    assert history(resumed) == history(tmp_path / "unbroken")
    expected, found = trained(tmp_path / "unbroken"), trained(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_rows_of_pairs_are_two_samples_each(tmp_path):
    config = write_config(tmp_path, num_epochs=4, learning_rate=3e-3)
    done = truing("train", config, "method=kto", "method.beta=0.5", "data.format=null")
    assert done.exit_code == 0, done.output
    assert "format: preference, chosen by the columns 'prompt', 'chosen', 'rejected' of data" in done.output
    assert "24 rows read as 48 samples, 48 kept" in done.output
    margins = [line["rewards/margins"] for line in history(tmp_path / "run") if "rewards/margins" in line]
    assert margins[-1] > margins[0] + 0.5


def test_steps_of_one_label_log_what_there_is(tmp_path):
    rows = [{**row, "label": True} for row in unpaired(8)]
    done = truing("train", write_run(tmp_path, rows))
    assert done.exit_code == 0, done.output
    for line in history(tmp_path / "run"):
        assert {"kl", "rewards/chosen", "logps/chosen"} <= line.keys()
        assert not {"rewards/rejected", "rewards/margins", "logps/rejected"} & line.keys()


def test_an_evaluation_counts_each_label_over_all_of_it(tmp_path):
    """Its steps have one label each where they are of one sample; the means are those of one step of all."""
    prepare_folder(tmp_path, rows=6)
    names = {"eval_rewards/chosen", "eval_rewards/rejected", "eval_rewards/margins", "eval_logps/chosen", "eval_logps/rejected"}
    found = []
    for size in (12, 1):
        metrics = evaluate(make_run(tmp_path, str(size), method="kto", batch_size=size, eval_rows=True))
        found.append({name: metrics[name] for name in names})
    assert found[1] == pytest.approx(found[0], abs=1e-9)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "a", "completion": "b", "label": "good"}, "column 'label' must be true or false"),
        ({"prompt": "a", "completion": "b", "label": None}, "column 'label' is null; it needs a value"),
        ({"prompt": "a", "completion": "b"}, "column 'label' is missing"),
    ],
)
def test_a_label_that_is_none_is_named_with_file_line_and_column(tmp_path, row, says):
    done = truing("train", write_run(tmp_path, [*unpaired(4), row]))
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "rows.jsonl:5: " in done.output and says in done.output


def test_the_examples_rows_are_what_its_script_makes():
    make_rows = runpy.run_path(str(EXAMPLE / "make_rows.py"))["make_rows"]
    rows = [json.loads(line) for line in (EXAMPLE / "data/train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == make_rows()


def test_data_of_one_prompt_is_refused(tmp_path):
    rows = [{**row, "prompt": "the same: "} for row in unpaired(6)]
    config = write_run(tmp_path, rows)
    done = truing("train", config)
    assert done.exit_code == 2
    assert "all samples (6) have the same prompt" in done.output
    assert truing("train", config, "method.loss_type=apo_zero_unpaired").exit_code == 0


@attrs.frozen(kw_only=True)
class PairsWithOthers(Loss):
    """Asks for what pairs do not have."""

    name: ClassVar[str] = "pairs-with-others"
    layout: ClassVar[Layout] = Layout.PAIRED
    needs: ClassVar[Needs] = Needs.MISMATCHED_LOGPS

    def __call__(self, inputs):
        return LossOutput(terms=[Term(inputs.logps, "sequence")])


def test_mismatched_completions_are_for_labelled_ones(tmp_path):
    prepare_folder(tmp_path)
    with pytest.raises(
        PluginError, match="needs MISMATCHED_LOGPS, which exist for Layout.LABELED, and its layout is Layout.PAIRED"
    ):
        make_run(tmp_path, "run", method=PairsWithOthers())


def test_replay_blames_a_sample_for_its_mismatched_completion_too(tmp_path):
    """One completion has a byte whose embedding is NaN; it is sample 3's own, and the mismatched one of another."""
    rows = [{**row, "prompt": f"{index}: "} for index, row in enumerate(unpaired(6))]
    rows = [{**row, "completion": row["completion"].replace("g", "k")} for row in rows]
    rows[3]["completion"] += " grey"
    config = write_run(tmp_path, rows, batch_size=6, max_steps=1)
    poison(tmp_path)
    done = truing("train", config)
    assert done.exit_code == 0 and "left out: not finite" in done.output, done.output
    done = truing("replay", tmp_path / "run", 1)
    assert done.exit_code == 0, done.output
    blamed = [line for line in done.output.splitlines() if line.startswith("  sample")]
    assert len(blamed) == 2 and sum(line.startswith("  sample 3: ") for line in blamed) == 1
    assert all("log-probabilities, reference's log-probabilities" in line for line in blamed)
