"""Stage 2: a run that is cut off ends like one that was not; a run without signal says so."""

import importlib.util
import json
import subprocess
import sys
import typing
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from enigma.data.principles import Principle, load_pool
from enigma.errors import InputError
from enigma.profile import Trainer, load_profile
from enigma.record.results import Results
from enigma.run.inputs import check_inputs
from enigma.stages import train as training

PRINCIPLES = [Principle(f"p{i}", f"do thing {i}", f"never do thing {i}", "f", "s") for i in range(4)]


@pytest.fixture
def stage(monkeypatch, toy_model, toy_tokenizer, tmp_path):
    """The smoke profile on the toy model, with a reward that has spread."""
    profile = load_profile("smoke")
    monkeypatch.setenv("ENIGMA_HEADLESS", "1")
    monkeypatch.setattr(training, "load_model", lambda spec, seed: (toy_model(), toy_tokenizer))

    def letters(completions, **kwargs):
        texts = [completion[0]["content"] for completion in completions]
        return [sum(c.islower() for c in text) / (len(text) + 1) for text in texts]

    monkeypatch.setattr(training, "graded_format_reward", letters)
    return SimpleNamespace(profile=profile, results=lambda name: Results(profile, tmp_path / name))


def tables(folder):
    steps = pd.read_csv(folder / "steps.csv").drop(columns=["seconds", "peak_memory_gb"])
    return (
        steps,
        (folder / "rollouts.jsonl").read_text(),
        (folder / "adapter/adapter_model.safetensors").read_bytes(),
    )


def test_an_interrupted_run_ends_like_an_uninterrupted_one(stage, monkeypatch):
    whole = training.train(stage.profile, stage.results("whole"), "enigma_high", 0, PRINCIPLES)
    results = stage.results("cut")

    class Cut(training.Watch):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "Watch", Cut)
        with pytest.raises(KeyboardInterrupt):
            training.train(stage.profile, results, "enigma_high", 0, PRINCIPLES)
    folder = results.run_folder("enigma_high", 0)
    assert not (folder / "done.json").exists()
    checkpoints = folder / "checkpoints"
    assert [path.name for path in checkpoints.glob("checkpoint-*")] == ["checkpoint-2"]
    # A checkpoint that was cut off while it was written has no marker and is passed over.
    (checkpoints / "checkpoint-3").mkdir()
    resumed = training.train(stage.profile, results, "enigma_high", 0, PRINCIPLES)
    for a, b in zip(tables(whole), tables(resumed), strict=True):
        assert a.equals(b) if isinstance(a, pd.DataFrame) else a == b
    assert not checkpoints.exists()


@pytest.mark.parametrize(
    "name", ["adapter_model.safetensors", "optimizer.pt", training.MARKER, "rollouts.jsonl"]
)
def test_a_damaged_checkpoint_is_passed_over(stage, name):
    results = stage.results("damaged")
    profile = stage.profile.model_copy(
        update={"trainer": stage.profile.trainer.model_copy(update={"save_steps": 1})}
    )
    key, recorder = "k", training.Recorder("k")
    folder = results.run_folder("grpo", 0) / "checkpoints"
    training._trainer(profile, "grpo", 0, PRINCIPLES, folder, recorder).train()
    newest = training.last_checkpoint(folder, key)
    assert newest.name == "checkpoint-3" and training.last_checkpoint(folder, "other") is None
    (newest / name).write_bytes((newest / name).read_bytes()[:-9])
    assert training.last_checkpoint(folder, key) is None


def test_a_finished_run_is_kept_and_another_profile_is_not(stage):
    results = stage.results("kept")
    folder = training.train(stage.profile, results, "grpo", 0, PRINCIPLES)
    written = (folder / "adapter/adapter_model.safetensors").stat().st_mtime_ns
    training.train(stage.profile, results, "grpo", 0, PRINCIPLES)
    assert (folder / "adapter/adapter_model.safetensors").stat().st_mtime_ns == written
    training.train(stage.profile, results, "grpo", 0, PRINCIPLES[::-1])
    assert (folder / "adapter/adapter_model.safetensors").stat().st_mtime_ns != written


def test_arms_see_the_same_questions_and_as_many_tokens_at_most(stage):
    rows = {}
    for arm in ("grpo", "enigma_high", "enigma_low"):
        folder = training.train(stage.profile, stage.results(arm), arm, 0, PRINCIPLES)
        lines = [json.loads(line) for line in (folder / "rollouts.jsonl").read_text().splitlines()]
        rows[arm] = [(row["step"], row["question"], row["principle"]) for row in lines]
        assert len(lines) == 3 * stage.profile.trainer.per_device_train_batch_size
    assert rows["grpo"] == rows["enigma_high"] == rows["enigma_low"]


def test_matched_prompts():
    rows = training.matched_prompts(["a?", "b?"], PRINCIPLES, 2, 0, placement="question", demonstration=False)
    assert [row["matched_set"] for row in rows] == ["q0", "q0", "q1", "q1"]
    assert all(a["principle"] != b["principle"] for a, b in zip(rows[::2], rows[1::2], strict=True))
    other = [Principle(f"o{i}", f"other {i}", None, None, None) for i in range(4)]
    again = training.matched_prompts(["a?", "b?"], other, 2, 0, placement="question", demonstration=False)
    assert [row["principle"][1] for row in rows] == [row["principle"][1] for row in again]


def frames(rewards, spread):
    steps = pd.DataFrame({"arm": "grpo", "seed": 0, "step": range(1, 11), "zero_spread": float(not spread)})
    groups = pd.DataFrame(
        [
            {"arm": "grpo", "seed": 0, "step": s, "reward_graded": r + 0.01 * g}
            for s, r in enumerate(rewards, 1)
            for g in range(4)
        ]
    )
    return steps, groups


def test_checks_tell_gain_and_silence():
    table = training.checks(*frames([0.1 * i for i in range(10)], spread=True), seed=0)
    assert table.status[0] == "ok"
    assert table.gain[0] == pytest.approx(0.8)
    assert table.gain_low[0] < 0.8 < table.gain_high[0]
    silent = training.checks(*frames([0.0] * 10, spread=False), seed=0)
    assert silent.status[0] == "no signal"
    strict = SimpleNamespace(trainer=SimpleNamespace(zero_spread="error"))
    with pytest.raises(InputError, match="grpo-s0: no group of completions had any spread"):
        training._fail_without_signal(strict, silent)


def test_a_trained_model_moves_its_adapter(stage):
    from safetensors.torch import load_file

    folder = training.train(stage.profile, stage.results("moved"), "enigma_high", 0, PRINCIPLES)
    weights = load_file(folder / "adapter/adapter_model.safetensors")
    assert any("lora_B" in name and torch.count_nonzero(w) for name, w in weights.items())


@pytest.mark.parametrize(
    ("method", "what"),
    [("_sami", "loss"), ("_get_per_token_logps_and_entropies", "loss"), ("log", "gradient")],
)
def test_what_is_not_finite_stops_the_run_and_is_named(stage, monkeypatch, method, what):
    """Spoilt at the third step, from each place in turn."""

    class Spoilt(training.EnigmaTrainer):
        pass

    def spoil(self, *args, **kwargs):
        made = getattr(super(Spoilt, self), method)
        if self.state.global_step < 2 + (method == "log") or (method == "log" and "grad_norm" not in args[0]):
            return made(*args, **kwargs)
        if method == "log":
            return made({**args[0], "grad_norm": float("inf")}, *args[1:], **kwargs)
        output = made(*args, **kwargs)
        return output * float("nan") if method == "_sami" else (output[0] * float("nan"), *output[1:])

    setattr(Spoilt, method, spoil)
    monkeypatch.setattr(training, "EnigmaTrainer", Spoilt)
    message = rf"enigma_high-s0: step \d: the {what} is not finite.*last good checkpoint: .*checkpoint-2"
    with pytest.raises(InputError, match=message):
        training.train(stage.profile, stage.results("spoilt"), "enigma_high", 0, PRINCIPLES)


def test_an_arm_may_have_a_budget_and_a_kl_of_its_own(stage, tmp_path):
    arm = stage.profile.arms["enigma_high"].model_copy(update={"ot_budget": 0.3, "beta": 0.2})
    profile = stage.profile.model_copy(update={"arms": {**stage.profile.arms, "enigma_high": arm}})
    found = {}
    for name in ("enigma_high", "enigma_low"):
        args = training._trainer(profile, name, 0, PRINCIPLES, tmp_path / name, training.Recorder("")).args
        found[name] = (args.lambda_sami, args.ot_budget, args.beta)
    assert found == {"enigma_high": (0.1, 0.3, 0.2), "enigma_low": (0.1, 0.0, 0.0)}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("generate", (False, False)),
        ("continuous_batching", (False, True)),
        ("vllm_colocate", (True, False)),
        ("vllm_server", (True, False)),
    ],
)
def test_the_profiles_word_for_rollouts_is_trls(tmp_path, word, expected):
    """As far as the configuration: the engines themselves need a GPU."""
    config = training.EnigmaConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=16,
        use_cpu=True,
        bf16=False,
        **training.ROLLOUTS[word],
    )
    assert (config.use_vllm, config.use_transformers_continuous_batching) == expected
    assert not config.use_vllm or word == f"vllm_{config.vllm_mode}"
    assert word in typing.get_args(Trainer.model_fields["rollouts"].annotation)


def test_a_rollout_engine_that_is_not_there_is_refused_at_once(stage):
    trainer = stage.profile.trainer.model_copy(update={"rollouts": "vllm_colocate"})
    if importlib.util.find_spec("vllm"):
        pytest.skip("vllm is installed")
    with pytest.raises(
        InputError, match="trainer.rollouts: found vllm_colocate, for which vllm is not installed"
    ):
        check_inputs(stage.profile.model_copy(update={"trainer": trainer}))


def test_checkpointed_gradients_are_the_same(stage):
    """Kept activations or made once more: the same adapter, as far as float32 goes."""
    from safetensors.torch import load_file

    weights = []
    for checkpointing in (False, True):
        trainer = stage.profile.trainer.model_copy(update={"gradient_checkpointing": checkpointing})
        profile = stage.profile.model_copy(update={"trainer": trainer})
        folder = training.train(profile, stage.results(str(checkpointing)), "enigma_high", 0, PRINCIPLES)
        weights.append(load_file(folder / "adapter/adapter_model.safetensors"))
    for name, plain in weights[0].items():
        assert torch.allclose(plain, weights[1][name], atol=1e-5), name


def test_several_processes_write_no_tables(stage, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="found 2 processes, expected 1 to write the tables"):
        training.run(stage.profile, stage.results("many"))


def test_two_jobs_never_train_one_run(stage):
    results = stage.results("held")
    folder = results.run_folder("grpo", 0)
    code = "import sys, time; from pathlib import Path; from enigma.record.runlock import hold\n"
    code += "with hold(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(folder / ".run.lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=rf"grpo-s0: found process {holder.pid} on .* writing there"):
            training.train(stage.profile, results, "grpo", 0, PRINCIPLES)
    finally:
        holder.kill()
        holder.wait()


def test_collecting_trains_nothing_and_names_what_is_missing(stage):
    results, none = stage.results("collected"), training.jobs.How(jobs=0)
    names = [p.name for p in load_pool("default")]
    results.write_yaml(
        "selection", {"high": {"principles": names[:4]}, "low": {"principles": names[4:8]}}, "made up"
    )
    chosen = training.chosen_sets(stage.profile, results)
    runs = stage.profile.runs()
    for arm, seed in runs[:-1]:
        key = training.run_key(stage.profile, chosen[stage.profile.arms[arm].set])
        training.atomic_write_json(results.run_folder(arm, seed) / "done.json", {"key": key})
    with pytest.raises(
        InputError,
        match=rf"found {len(runs) - 1} of {len(runs)} runs trained, without {runs[-1][0]}-s0; expected",
    ):
        training.train_runs(stage.profile, results, runs, none)
    training.train_runs(stage.profile, results, runs[:-1], none)
