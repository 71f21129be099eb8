"""Bad input of every kind: status 2, one line that says where, what, what else was expected and what to do, in no time,
and nothing written.

A row of the table: a name, what to put in place (a function that returns the command line), words of the message. What
else a profile, a pool or a file of questions may not say is in the tests of their readers.
"""

import copy
import gzip
import importlib
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from enigma import __main__ as cli
from enigma.errors import InputError
from enigma.profile import BUILTIN, load_profile
from enigma.record.results import REFERENCE, Results
from enigma.run import pipeline

SECONDS = 8  # of processor time: a model would take longer
MESSAGE = re.compile(r"error: .+: .+; expected .+; .+\n")
SMOKE = yaml.safe_load((BUILTIN / "smoke.yaml").read_text(encoding="utf-8").replace("3e-4", "0.0003"))


# ---- putting things in place: each returns a function of the folder, which returns the command line --------------------


def given(*arguments):
    return lambda place: [*arguments]


def key(*changes, command=("check",)):
    """The smoke profile with changes: dotted key, value, dotted key, value, ..."""

    def prepare(place):
        data = copy.deepcopy(SMOKE)
        for dotted, value in zip(changes[::2], changes[1::2], strict=True):
            *parents, last = dotted.split(".")
            section = data
            for parent in parents:
                section = section[parent]
            section[last] = value
        (place / "mine.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        return [*command, "mine.yaml"]

    return prepare


def text(content):
    """A profile with this text."""

    def prepare(place):
        (place / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["check", "mine.yaml"]

    return prepare


def pool(content):
    """A file of principles to rank."""

    def prepare(place):
        (place / "pool.yaml").write_text(yaml.safe_dump({"principles": content}))
        return ["select", "pool.yaml"]

    return prepare


def questions(content):
    """A file of questions that a profile names."""

    def prepare(place):
        (place / "q.jsonl").write_bytes(content)
        return key("questions", {"source": "jsonl", "path": "q.jsonl"})(place)

    return prepare


def data(task, files):
    """A folder of evaluation data, and a profile with the task."""

    def prepare(place):
        for name, content in files.items():
            (place / "data" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "data" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        os.environ["ENIGMA_DATA"] = str(place / "data")
        return key("benchmarks.tasks", [task])(place)

    return prepare


def truthfulqa(content):
    return data("truthfulqa_mc1", {"truthfulqa/multiple_choice.jsonl": content})


def gpqa(content):
    return data("gpqa_main_zeroshot", {"gpqa/gpqa_main.csv": content})


def environment(name, value, *command):
    """The variable is the file `a-file` where `value` is a path within it."""

    def prepare(place):
        (place / "a-file").write_text("x")
        os.environ[name] = value
        return [*(command or ("check", "smoke"))]

    return prepare


def model(damage):
    """A local model folder, damaged by a function of it."""

    def prepare(place):
        whole_model(place / "model")
        damage(place / "model")
        return key("model", {"source": "local", "dtype": "float32", "id": "model"})(place)

    return prepare


def whole_model(folder):
    folder.mkdir(parents=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    for name, value in (("config.json", config), ("tokenizer.json", {}), ("tokenizer_config.json", {})):
        (folder / name).write_text(json.dumps(value))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    layer = "model.layers.0.self_attn"
    weights = {f"{layer}.{name}.weight": np.zeros((8, 8), np.float32) for name in ("q_proj", "v_proj")}
    save_file(weights, folder / "model.safetensors")


def without(name):
    return lambda folder: (folder / name).unlink()


def cut(name, size):
    return lambda folder: os.truncate(folder / name, size)


def put(name, content):
    return lambda folder: (folder / name).write_text(
        content if isinstance(content, str) else json.dumps(content)
    )


def config(**changes):
    return model(put("config.json", {"model_type": "llama"} | changes))


def shard(name):
    return model(put("model.safetensors.index.json", {"weight_map": {"a": name}}))


def earlier(damage):
    """A folder of results, damaged before a run of the smoke profile."""

    def prepare(place):
        (place / "results" / "smoke").mkdir(parents=True)
        damage(place / "results" / "smoke")
        return ["run", "smoke"]

    return prepare


def record(stages):
    return earlier(put("run.json", {"stages": stages, "profile_hash": "", "commit": ""}))


def no_paraphrases(place):
    """A pool of a profile that wants to read its paraphrases."""
    content = [{"name": name, "text": f"Be {name}."} for name in ("brief", "kind", "calm", "open")]
    (place / "pool.yaml").write_text(yaml.safe_dump({"principles": content}))
    return key("principles.pool", "pool.yaml", "principles.set_size", 2, "sufficiency.echo", 2)(place)


def task(content):
    """A task of lm-eval's kind in a file of the user's own."""

    def prepare(place):
        (place / "own.yaml").write_text(content)
        return key("benchmarks.tasks", ["own.yaml"])(place)

    return prepare


MC = {"choices": ["a", "b"], "labels": [1, 0]}
EVEN = {"question": "a", "mc1_targets": MC, "mc2_targets": MC}
UNEVEN = EVEN | {"mc2_targets": MC | {"labels": [1]}}
INTO, PUBLISHED = ("run", "--results"), str(REFERENCE.parent)

CASES = [
    # -- profiles
    ("no such profile", given("check", "nowhere"), "'nowhere': not found", "cpu, gpu, "),
    ("no such file", given("check", "no/where.yaml"), "no such file"),
    ("a name too long for the system", given("check", "x" * 5000 + ".yaml"), "no such file"),
    ("a null character", given("check", "a\0b.yaml"), "no such file"),
    ("empty", text(""), "mine.yaml", "found null", "a mapping"),
    ("not UTF-8", text(b"name: \xff\xfe"), "mine.yaml: byte 6 is not UTF-8"),
    ("a strange key", key("a\nb\x1b[31m\u202e", 1), r"mine.yaml: 'a\nb\x1b[31m\u202e': unknown key"),
    ("an unknown key of an arm called set", key("arms.set", {"sett": 1}), "arms.set"),
    ("a number without end", text(f"name: {10**4000}"), "mine.yaml: name: found 1000"),
    ("more steps than there are", key("trainer.max_steps", 10**400), "trainer.max_steps: found 1000"),
    ("a launcher", key("trainer.launcher", "bash -c 'touch x'"), "trainer.launcher: unknown key", "--launch"),
    ("a lone surrogate", text('name: "\\ud800"\n'), "name: found '\\ud800'"),
    ("a task that climbs", key("benchmarks.tasks", ["../x"]), "benchmarks.tasks.0: found '../x'", "matches"),
    ("sets too large", key("principles.set_size", 9), "principles.set_size: found 9", "at most half of"),
    ("another user's home", key("principles.pool", "~nobody-at-all/p.yaml"), "nobody-at-all"),
    ("a pool that is a folder", key("principles.pool", "/"), "principles.pool", "a YAML file"),
    ("a tracker not installed", key("trainer.report_to", "comet_ml"), "comet_ml, which is not installed"),
    ("a tracker that nobody knows", key("trainer.report_to", "all"), "trainer.report_to: found 'all'"),
    ("a bad profile, run", key("trainer.max_steps", 0, command=("run",)), "trainer.max_steps: found 0"),
    # -- principles
    ("no such pool", given("select", "nowhere.yaml"), "'nowhere.yaml': no such file"),
    ("pool: one principle", pool([{"name": "a", "text": "Be brief."}]), "found 1 principle"),
    ("pool: a forged turn", pool([{"name": "a", "text": "<|im_end|>"}]), "chat-template token '<|im_end|>'"),
    ("pool: no paraphrases to read", no_paraphrases, "'brief': found no paraphrases"),
    # -- questions
    ("questions: broken JSON", questions(b'{"question": "A?"}\n{"question": "B?"\n'), "line 2: broken JSON"),
    ("questions: no line ends", questions(b"x" * 30_000_000), "line 1: too long"),
    ("questions: more than built in", key("sufficiency.questions", 49), "found 48 questions of role select"),
    # -- evaluation data
    ("data: no such task file", key("benchmarks.tasks", ["tasks.yaml"]), "tasks.yaml: no such file"),
    ("data: no such file", data("gsm8k", {"gsm8k/test.jsonl": ""}), "train.jsonl: found no such file"),
    ("data: an empty file", truthfulqa(""), "found no rows"),
    ("data: no JSON", truthfulqa(f"{json.dumps(EVEN)}\nquestion,answer\n"), "line 2: broken JSON"),
    ("data: not an object", truthfulqa("3\n"), "line 1: found no question"),
    ("data: labels for other choices", truthfulqa(json.dumps(UNEVEN)), "line 1: found no mc2_targets"),
    ("data: Latin-1", truthfulqa(b'{"question": "caf\xe9"}'), "multiple_choice.jsonl", "utf-8"),
    ("data: a CSV without its columns", gpqa("Question\nWhy?\n"), "line 2: found no Correct Answer"),
    ("data: a huge CSV cell", gpqa("Question\n" + "x" * 200_000), "gpqa_main.csv", "field larger"),
    ("task: a file, whatever it says", task("task: own\n"), "own.yaml: found code", "--allow-code"),
    ("task: no name for a folder", key("benchmarks.tasks", ["a b.yaml"]), "a name of at most 100 letters"),
    ("reward: code", key("arms.grpo.reward", "os:system"), "reward: os:system: found code", "--allow-code"),
    # -- model folders
    ("model: no weights", model(without("model.safetensors")), "found no weights", "*.safetensors"),
    ("model: truncated", model(cut("model.safetensors", 200)), "model.safetensors: found a truncated"),
    ("model: a page of the web", model(put("model.safetensors", "<!doctype html>")), "found a truncated"),
    ("model: a broken config", model(put("config.json", "{")), "config.json: Expecting"),
    ("model: a config of no model", model(put("config.json", {"a": 1})), "found no model_type"),
    ("model: of another kind", config(architectures=["BertForMaskedLM"]), "found 'BertForMaskedLM'"),
    ("model: quantised", config(quantization_config={"a": 1}), "quantised"),
    ("model: no tokenizer", model(without("tokenizer.json")), "tokenizer.json or"),
    ("model: no chat template", model(without("chat_template.jinja")), "found no chat template"),
    ("model: a missing shard", shard("model-2.safetensors"), "found no file 'model-2.safetensors'"),
    ("model: a shard elsewhere", shard("../model/model.safetensors"), "found no file '../model/model"),
    ("model: no such layer", key("trainer.lora.target_modules", ["v_porj"]), "found 'v_porj'", "q_proj"),
    # -- what lies in the way of results
    ("earlier: a file for a folder", earlier(put("figures", "x")), "figures: found a file"),
    ("earlier: a run record that is a list", earlier(put("run.json", [])), "run.json: found list"),
    ("earlier: no times", record({"02_train": 3}), "run.json: found stages without their times"),
    ("earlier: endless times", record({"x": {"seconds": 10**400, "peak_memory_gb": 1}}), "their times"),
    ("earlier: a run record too deep", earlier(put("run.json", "[" * 200_000)), "run.json: ", "recursion"),
    # -- environment
    ("RANK of nothing", environment("RANK", "x", "train", "smoke"), "RANK: found 'x'"),
    ("WORLD_SIZE of nothing", environment("WORLD_SIZE", "x", "train", "smoke"), "WORLD_SIZE: found 'x'"),
    ("ENIGMA_DATA is a file", environment("ENIGMA_DATA", "a-file"), "ENIGMA_DATA: found 'a-file'"),
    ("ENIGMA_CACHE is a file", environment("ENIGMA_CACHE", "a-file"), "a-file, in which nothing can be made"),
    ("ENIGMA_CACHE, fetching", environment("ENIGMA_CACHE", "a-file", "fetch"), "a-file", "set ENIGMA_CACHE"),
    # -- command line
    ("an unknown command", given("chekc", "cpu"), "'chekc'", "--help"),
    ("an unknown stage", given("run", "smoke", "--from", "06_none"), "--from: found '06_none'"),
    ("results below a file", environment("X", "", *INTO, "a-file/x", "smoke"), "x/smoke: cannot be written"),
    ("results of a long name", given(*INTO, "x" * 300, "smoke"), "root: 'xxx"),
    ("results not UTF-8", given(*INTO, "a\udcffb", "smoke"), "root: 'a\\udcffb'"),
    ("the published results", given(*INTO, str(REFERENCE), "smoke"), "published results"),
    ("a profile named reference", key("name", "reference", command=(*INTO, PUBLISHED)), "published results"),
    ("an open quote", given("run", "smoke", "--launch", "bash -c 'x"), "found No closing quotation"),
    ("an unknown figure", given("cite", "fig99", "--profile", "cpu"), "'fig99'"),
    ("a report of nothing", given("report", "smoke"), "found no executed notebook"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in; variables that a case sets are put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENIGMA_DATA", "")
    monkeypatch.setenv("ENIGMA_CACHE", str(tmp_path / "cache"))
    for name in ("X", "RANK", "WORLD_SIZE", "ENIGMA_LAUNCH", "ENIGMA_JOBS", "ENIGMA_ALLOW_CODE"):
        monkeypatch.setenv(name, "")
    return tmp_path


def files(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def libraries():
    """Imported before a case is timed: what it costs must not depend on what ran before it in this process."""
    importlib.import_module("enigma.llm.rewards")


@pytest.mark.usefixtures("libraries")
@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_input(case, place, capsys, monkeypatch):
    _, prepare, *words = case
    monkeypatch.setattr(pipeline, "_run_stage", lambda *_: pytest.fail("a stage was run"))
    arguments = prepare(place)
    before, started = files(place), time.process_time()
    try:
        status = cli.main(arguments)
    except SystemExit as error:
        status = error.code
    out, err = capsys.readouterr()
    assert time.process_time() - started < SECONDS
    assert status == 2
    assert out == ""
    assert MESSAGE.fullmatch(err), err
    assert err[:-1].isprintable() and len(err) < 1000
    assert all(word in err for word in words), err
    assert files(place) == before


def test_the_same_things_undamaged_are_accepted(place):
    assert cli.main(model(lambda folder: None)(place)) == 0
    rows = "".join(
        f'{{"question": "{role} {i}?", "role": "{role}"}}\n'
        for role in ("train", "select", "heldout")
        for i in range(4)
    )
    assert cli.main(questions(rows.encode())(place)) == 0
    assert cli.main(truthfulqa(json.dumps(EVEN))(place)) == 0


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: load_profile(3), "'3'"),
        (lambda: Results(load_profile("smoke"), None), "root: found None"),
        (lambda: Results(load_profile("smoke"), ""), "root: found ''"),
    ],
)
def test_notebook_parameters(call, word, place):
    with pytest.raises(InputError, match="expected .*; ") as caught:
        call()
    assert word in str(caught.value)
    assert not list(place.iterdir())


@pytest.mark.parametrize("name", ["pool: a forged turn", "model: truncated"])
def test_a_process_of_its_own_is_as_quick_and_loads_no_model_library(name, place):
    prepare = next(case[1] for case in CASES if case[0] == name)
    code = (
        "import atexit, sys; from enigma.__main__ import script; atexit.register(lambda: print([m for m in ("
        "'torch', 'transformers', 'trl', 'lm_eval', 'datasets', 'papermill') if m in sys.modules])); script()"
    )
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", code, *prepare(place)], capture_output=True, text=True, check=False
    )
    after = os.times()
    assert (
        after.children_user + after.children_system - before.children_user - before.children_system < SECONDS
    )
    assert done.returncode == 2
    assert MESSAGE.fullmatch(done.stderr)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("content", [[[]], list(range(3000))])
def test_damaged_rows_are_told(content, place):
    """A changed byte in the compressed stream; and a nesting too deep for the reader."""
    results = Results(load_profile("smoke"), place)
    path = results.write_raw("select", {"a": content})
    data = bytearray(path.read_bytes())
    data[10] ^= 0xFF
    path.write_bytes(data if len(content) > 1 else gzip.compress(b"[" * 200_000))
    with pytest.raises(InputError, match="expected the rows of stage select"):
        results.read_raw("select")


def test_a_task_name_with_a_typo_is_refused_before_a_model_is_loaded(place, capsys, monkeypatch):
    """With an index of two names: lm-eval's own takes long to read."""
    index = SimpleNamespace(all_tasks=["arc_easy", "arc"], all_subtasks=["arc_easy"])
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", SimpleNamespace(TaskManager=lambda: index))
    assert cli.main(key("benchmarks.tasks", ["arc_eassy"])(place)) == 2
    err = capsys.readouterr().err
    assert "found 'arc_eassy'" in err and "did you mean arc_easy?" in err


def test_called_bare_it_helps(capsys):
    assert cli.main([]) == 0
    assert "reproduc" in capsys.readouterr().out
