"""Benchmarks: lm-eval's own scores on the same items, and marks that follow from them by hand."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest

from enigma.errors import InputError
from enigma.method.marks import marks
from enigma.stages import harness
from enigma.tasks.catalogue import splits
from enigma.tasks.lookup import check_tasks, definition, load_tasks, quiet


@pytest.mark.parametrize(("task", "batch_size"), [("enigma_knowledge", 16), ("enigma_truthfulness", 1)])
def test_log_probabilities_are_those_of_lm_eval_at_any_batch_size(task, batch_size, toy_model, toy_tokenizer):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    with quiet():
        loaded = load_tasks([task], seed=0)[task]
        docs = [loaded.eval_docs[i] for i in range(5)]
        asked = [
            Instance("loglikelihood", doc, (loaded.doc_to_text(doc), f" {choice}"), 0)
            for doc in docs
            for choice in loaded.doc_to_choice(doc)
        ]
        options = dict(tokenizer=toy_tokenizer, backend="causal", batch_size=batch_size)
        options["softmax_dtype"] = "float32"
        ours = harness.language_model()(pretrained=toy_model(), **options).loglikelihood(asked)
        theirs = HFLM(pretrained=toy_model(), **options).loglikelihood(asked)
    assert [found[0] for found in ours] == pytest.approx([found[0] for found in theirs], rel=1e-5)


def test_accuracy_is_that_of_the_likeliest_choice(toy_model, toy_tokenizer):
    rows, items = harness.evaluate(
        toy_model(), toy_tokenizer, "enigma_knowledge", limit=8, batch_size=4, seed=3
    )
    right = [item["value"] for item in items if item["metric"] == "acc"]
    score = next(row for row in rows if row["metric"] == "acc")
    assert score["value"] == pytest.approx(np.mean(right)) and score["n"] == len(right) == 8


def test_marks_by_hand():
    found = marks(np.log([0.5, 0.25]), np.log([0.25, 0.25]), [" ab", " cdef"], gold=[0])
    assert found["margin"] == pytest.approx(math.log(0.5) / 2 - math.log(0.25) / 4)
    assert found["margin_prior"] == pytest.approx(math.log(2) / 2)
    assert found["gold_bits_per_byte"] == pytest.approx(1 / 3)
    assert found["gold_probability"] == pytest.approx(2 / 3)


def test_a_folder_of_data_is_a_path_and_no_pattern_and_is_read_anew(tmp_path, monkeypatch):
    folder = tmp_path / "d[t]*"
    (folder / "arc").mkdir(parents=True)
    row = '{"question": "%s?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "A"}\n'
    monkeypatch.setenv("ENIGMA_DATA", str(folder))
    recipes = set()
    for word in ("one", "two"):  # of the same size, within the same second
        (folder / "arc" / "ARC-Easy-test.jsonl").write_text(row % word)
        recipes.add(str(definition("arc_easy")))
        assert splits("arc_easy", folder)["test"][0]["question"] == f"{word}?"
    assert len(recipes) == 2


def test_a_users_task_is_known_by_all_that_it_reads(tmp_path):
    """Its own file whatever its suffix, what it includes, its data in any folder, and the code that it calls."""
    (tmp_path / "sub").mkdir()
    task, files = tmp_path / "my.yml", ("common.yaml", "sub/items.jsonl", "marks.py")
    task.write_text(
        "include: common.yaml\ndataset_kwargs: {data_files: {test: sub/items.jsonl}}\ndoc_to_text: !function marks.f\n"
    )
    for name in files:
        (tmp_path / name).write_text("a: 1")
    found = [definition(str(task))]
    for name in ("my.yml", *files):
        path = tmp_path / name
        path.write_text(path.read_text() + "\n")
        found.append(definition(str(task)))
    assert len({str(one) for one in found}) == 5
    (tmp_path / "notes.yaml").write_text("")  # and by nothing else
    assert definition(str(task)) == found[-1]


def test_a_group_and_two_files_of_one_name_are_refused(monkeypatch):
    from lm_eval import tasks

    # Of lm-eval's index, which takes long to read, the part with this group.
    folder = str(Path(tasks.__file__).parent / "mmlu" / "default")
    index = functools.partial(tasks.TaskManager, include_path=folder, include_defaults=False)
    monkeypatch.setattr(tasks, "TaskManager", index)
    for names, said in ((["mmlu"], "a group of lm-eval's"), (["a/my.yaml", "b/my.yml"], "found my twice")):
        with pytest.raises(InputError, match=said):
            check_tasks(names)
