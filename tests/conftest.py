"""Shared toys: a character-level tokenizer with a chat template, and a tiny random Llama that fits it."""

import os
import string

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the tests side by side share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def toy_tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = ["<pad>", "<eos>", *string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"]
    tokenizer = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    return fast


@pytest.fixture
def toy_model(toy_tokenizer):
    """A function that builds the same tiny random model every time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(seed=0, dtype=torch.float32):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
            words = {key: getattr(toy_tokenizer, key) for key in ("pad_token_id", "eos_token_id")}
            config = LlamaConfig(vocab_size=len(toy_tokenizer), num_key_value_heads=2, **sizes, **words)
            model = LlamaForCausalLM(config).to(dtype)
            # Spread the logits, so that a random model's completions differ in probability.
            model.lm_head.weight.data.mul_(10)
        return model

    return build


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, worker_id):
    """A finished run of all five notebooks on a tiny model: the profile's path and the results folder. Only to be read.

    Made once for all processes of a suite: the first makes it, the others find it made.
    """
    import subprocess
    import sys
    from types import SimpleNamespace

    import yaml
    from filelock import FileLock

    from enigma.profile import BUILTIN, load_profile
    from enigma.record.results import Results

    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "tiny"
    folder.mkdir(exist_ok=True)
    text = (BUILTIN / "smoke.yaml").read_text(encoding="utf-8").replace("name: smoke", "name: tiny")
    tasks = yaml.safe_load(text)["benchmarks"]["tasks"]
    text = text.replace("max_steps: 3", "max_steps: 2").replace(
        ", ".join(tasks), "enigma_knowledge, enigma_format, enigma_robustness"
    )
    (folder / "tiny.yaml").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "enigma", "run", str(folder / "tiny.yaml")]
    command += ["--results", str(folder / "results")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with FileLock(folder.with_suffix(".lock")):
        log = folder / "log"
        if not log.exists():
            done = subprocess.run(
                command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
            log.write_text(done.stdout, encoding="utf-8")
    profile = load_profile(folder / "tiny.yaml")
    return SimpleNamespace(
        path=folder / "tiny.yaml",
        profile=profile,
        results=Results(profile, folder / "results"),
        log=log.read_text(encoding="utf-8"),
    )
