"""Profiles: everything wrong is one line that names file, key, value and expectation, before anything heavy loads."""

import copy

import pytest
import yaml

from enigma.errors import InputError
from enigma.profile import BUILTIN, load_profile
from enigma.run.costs import CELL_DISK, CELL_MEMORY, sizes

CPU = (BUILTIN / "cpu.yaml").read_text(encoding="utf-8")
CPU_DATA = yaml.safe_load(CPU)  # plain YAML 1.1 reads 1e-3 as text, and writes it as it stood
REMOVED = "removed"


def changed(tmp_path, *changes):
    """The cpu profile with changes (dotted key, value), as a file."""
    data = copy.deepcopy(CPU_DATA)
    for key, value in changes:
        *parents, last = key.split(".")
        section = data
        for parent in parents:
            section = section[parent]
        if value is REMOVED:
            del section[last]
        else:
            section[last] = copy.deepcopy(value)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return path


# key changed, new value, what the message must say besides the file and the key
WRONG = [
    ("trainer.max_steps", "24", "integer"),
    ("trainer.max_steps", 0, "greater than or equal to 1"),
    ("trainer.max_steps", None, "integer"),
    ("trainer.max_steps", REMOVED, "missing"),
    ("trainer.learning_rate", float("nan"), "finite"),
    ("trainer.beta", -0.1, "greater than or equal to 0"),
    ("trainer.sami_span", "answer", "'completion' or 'reasoning'"),
    ("trainer.ot_layers", [-1, -1], "each value once"),
    ("trainer.lora.dropout", 0.1, "expected 0"),
    ("trainer.lora", 16, "a valid dictionary"),
    ("trainer.per_device_train_batch_size", 12, "2 x 4 = 8"),
    ("model.source", "web", "'embedded', 'random', 'hub' or 'local'"),
    ("model.id", "some/model", "null where model.source is embedded"),
    ("principles.pool", "nowhere.yaml", "does not exist"),
    ("arms", {}, "at least 1 item"),
    ("arms.Base!", {"set": "high", "lambda_sami": 0.0, "lambda_ot": 0.0}, "[a-z0-9_]"),
    ("arms.base", {"set": "high", "lambda_sami": 0.0, "lambda_ot": 0.0}, "another name"),
    ("arms.grpo.set", "middle", "'high' or 'low', or a number between 0 and 1"),
    ("arms.grpo.set", 1.0, "a number between 0 and 1"),
    ("arms.grpo.set", True, "a number between 0 and 1"),
    ("arms.grpo.lambda_smai", 0.1, "did you mean lambda_sami?"),
    ("geometry.permutations", 5, "greater than or equal to 19"),
    ("sufficiency.samples", 2**31 - 1, "less than or equal to 10000"),
    ("trainer.ot_points", 2**31 - 1, "less than or equal to 10000"),
    ("geometry.subspace", 32, "less than geometry.prompts"),
    ("seeds.runs", [0, 0], "each value once"),
    ("name", "../cpu", "text that matches"),
    ("seed", 3, "unknown key"),
]


@pytest.mark.parametrize(
    ("key", "value", "expected"), WRONG, ids=[f"{key}={value!r}"[:60] for key, value, _ in WRONG]
)
def test_one_wrong_value_is_one_line_with_file_key_and_expectation(tmp_path, key, value, expected):
    path = changed(tmp_path, (key, value))
    with pytest.raises(InputError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: {key}")
    assert expected in message
    if value is not REMOVED and not isinstance(value, dict | list | str):
        assert ("null" if value is None else repr(value)) in message


def test_a_misspelt_key_is_named_before_the_key_that_is_missing_then(tmp_path):
    path = changed(tmp_path, ("arms.grpo.lambda_sami", REMOVED), ("arms.grpo.lamda_sami", 0.1))
    with pytest.raises(
        InputError, match=r"arms\.grpo\.lamda_sami: unknown key.*did you mean lambda_sami\?.*1 more"
    ):
        load_profile(path)


HUB = {"source": "hub", "id": "some/model", "revision": "a" * 40, "dtype": "float32"}
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
RANDOM = {"source": "random", "dtype": "float32", "config": SHAPE | {"num_key_value_heads": 2}}
QUESTIONS = {"source": "hub", "dataset": "a/b", "revision": "b" * 40, "split": "train", "column": "q"}

IMPOSSIBLE = [
    ([("model", HUB | {"revision": None})], "model.revision", "40-character commit hash"),
    ([("model", HUB | {"revision": "A" * 40})], "model.revision", "[0-9a-f]{40}"),
    ([("model", {"source": "local", "dtype": "float32"})], "model.id", "where model.source is local"),
    ([("model", {"source": "local", "id": "nowhere", "dtype": "float32"})], "model.id", "does not exist"),
    ([("model", {"source": "random", "dtype": "float32"})], "model.config", "where model.source is random"),
    (
        [("model", RANDOM), ("model.config.num_key_value_heads", 3)],
        "model.config.num_attention_heads",
        "multiple",
    ),
    ([("model", RANDOM), ("model.config.hidden_size", 66)], "model.config.hidden_size", "multiple of 2 x"),
    ([("model", RANDOM), ("trainer.ot_layers", [7])], "trainer.ot_layers", "between -3 and 2"),
    ([("questions", {"source": "jsonl"})], "questions.path", "where questions.source is jsonl"),
    ([("questions", QUESTIONS | {"revision": None})], "questions.revision", "40-character commit hash"),
    ([("principles.set_size", 2), ("trainer.num_principles", 4)], "trainer.num_principles", "at most"),
    ([("trainer.num_principles", 1)], "trainer.num_principles", "arm enigma_high"),
]


@pytest.mark.parametrize(("changes", "key", "expected"), IMPOSSIBLE, ids=[key for _, key, _ in IMPOSSIBLE])
def test_impossible_combinations(tmp_path, changes, key, expected):
    path = changed(tmp_path, *changes)
    with pytest.raises(InputError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: {key}: found ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        [("model", HUB)],
        [("model", RANDOM)],
        [("questions", QUESTIONS)],
        [
            ("trainer.num_principles", 1),
            ("arms", {"grpo": {"set": "high", "lambda_sami": 0.0, "lambda_ot": 0.0}}),
        ],
    ],
)
def test_the_same_sections_are_accepted_when_complete(tmp_path, changes):
    assert load_profile(changed(tmp_path, *changes)).name == "cpu"


TEXTS = [
    ("trainer: {max_steps: 3\n", "line "),
    (CPU.replace("  beta: 0.0", "  beta: 0.0\n  beta: 0.1"), "key 'beta' is given twice"),
    (CPU.replace("  beta: 0.0", "  1: 0.0"), "key 1 is not text"),
    ("- a\n- b\n", "expected a mapping"),
    ("name: !!python/object/apply:os.system ['true']\n", "line 1"),
    ("a: &a [1, 2]\nb: *a\n", "line 2, column 4: aliases (*) are not allowed"),
    ("name: !!int ''\n", "not valid YAML"),
    ("[" * 50_000, "too deeply nested"),
    ("#" * 100_001, "larger than 100 kB"),
    ("name: \x00\n", "valid YAML"),
]


@pytest.mark.parametrize(("text", "expected"), TEXTS, ids=range(len(TEXTS)))
def test_broken_yaml_is_one_line(tmp_path, text, expected):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_relative_paths_are_taken_from_the_profiles_folder(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pool.yaml").write_text("principles: []\n")
    changed(tmp_path / "mine", ("principles.pool", "pool.yaml"))
    monkeypatch.chdir(tmp_path)
    assert load_profile("mine/mine.yaml").principles.pool == str(tmp_path / "mine" / "pool.yaml")
    assert load_profile("cpu").principles.pool == "default"


def test_a_loaded_profile_does_not_change():
    profile = load_profile("cpu")
    with pytest.raises(ValueError, match="frozen"):
        profile.trainer.max_steps = 5


def test_sizes_by_hand():
    size = sizes(load_profile("cpu"))
    assert (size.runs, size.total_steps) == (2, 2 * 6)
    assert (size.completions_per_step, size.tokens_per_step) == (16, 16 * 48)
    assert size.selection_completions == 16 * 8
    gpu = sizes(load_profile("gpu"))
    assert (gpu.runs, gpu.tokens_per_step, gpu.total_steps) == (9, 64 * 128, 9 * 40)
    assert sizes(load_profile("smoke")).minutes < size.minutes < gpu.minutes


def test_the_score_matrices_of_a_large_pool_count_as_room(tmp_path):
    """200 principles and 2,000 questions are 160 million numbers: told before anything runs."""
    pool = [{"name": f"p{i}", "text": f"Principle {i}."} for i in range(200)]
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump({"principles": pool}))
    changes = [
        ("principles.pool", str(tmp_path / "pool.yaml")),
        ("sufficiency.samples", 1),
        ("sufficiency.echo", 0),
    ]
    large = sizes(load_profile(changed(tmp_path, *changes, ("sufficiency.questions", 2000))))
    small = sizes(load_profile(changed(tmp_path, *changes, ("sufficiency.questions", 2))))
    cells = 200 * 200 * 2 * (2000 - 2)
    assert large.disk_gb - small.disk_gb == pytest.approx(cells * CELL_DISK / 1e9)
    assert large.memory_gb > cells * CELL_MEMORY / 1e9 > small.memory_gb


def test_estimates_of_an_unknown_hub_model_are_not_invented(tmp_path):
    size = sizes(load_profile(changed(tmp_path, ("model", HUB))))
    assert size.minutes is size.memory_gb is size.disk_gb is None


def test_the_hash_is_of_the_content_alone(tmp_path):
    """A comment or another order of keys changes nothing; any value does."""
    path = changed(tmp_path)
    data = yaml.safe_load(path.read_text())
    path.write_text("# a comment\n" + yaml.safe_dump(dict(reversed(data.items()))))
    assert load_profile(path).hash == load_profile(changed(tmp_path)).hash
    assert load_profile(changed(tmp_path, ("seeds.data", 7))).hash != load_profile("cpu").hash
