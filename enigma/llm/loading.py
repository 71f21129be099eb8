"""Models and tokenizers: the embedded default, a tiny random one, a hub model, a local folder.

Weights come from safetensors. Pickled weights and code from a model's repository are never loaded. Source: our choice.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from enigma.errors import InputError
from enigma.llm.check import check_adapter, check_hub_name, checked_folder, first_line, template_fault
from enigma.llm.fetch import GGUF_SHA256, cache_folder, embedded_folder, encoder_folder, no_bars
from enigma.record.files import atomic_write_json, file_hash, read_json

# Put before a chat template that writes the date.
DAY = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"


def fingerprint(spec, seed: int = 0) -> dict:
    """What names a model's weights, for the recipe of a piece of work: JSON values.

    A local folder is named by the bytes of its files, an embedded or hub model by its pinned source, a random one by
    its shape and seed. The declared dtype counts; whether a processor computes in it is recorded with the piece.
    """
    named = {"source": spec.source, "dtype": spec.dtype}
    if spec.source == "embedded":
        return named | {"gguf_sha256": GGUF_SHA256}
    if spec.source == "random":
        return named | {"shape": spec.config.model_dump(), "seed": seed}
    if spec.source == "hub":
        return named | {"id": spec.id, "revision": spec.revision}
    folder = Path(spec.id)
    files = {
        path.relative_to(folder).as_posix(): file_hash(path)
        for path in (*folder.iterdir(), *folder.glob("additional_chat_templates/*.jinja"))
        if path.is_file() and path.suffix in (".safetensors", ".json", ".jinja", ".txt", ".model")
    }
    return named | {"files": files}


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
    if isinstance(tokenizer.chat_template, dict):  # the others are for tools, which are never given
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if spec.source in ("hub", "local"):
        if fault := template_fault(tokenizer.chat_template):
            raise InputError(f"model: {spec.id}: {fault}; choose another model")
        # A prompt must not depend on the day: templates that write the date get their own usual example.
        if "strftime_now" in tokenizer.chat_template:
            tokenizer.chat_template = DAY + tokenizer.chat_template
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
        model = model.to("cuda")
    return model.eval(), tokenizer


def hub_name(spec) -> str | None:
    """Where the hub has a spec's model; None where it has not, or nobody can tell."""
    return {"embedded": "HuggingFaceTB/SmolLM2-135M-Instruct", "hub": spec.id}.get(spec.source)


def tidy_adapter(adapter: Path, base: str | None) -> None:
    """An adapter's description without this machine's paths, its lists in order.

    PEFT writes sets, whose order is another in every process, the folder of the model, and a card with that folder in it.
    """
    path = adapter / "adapter_config.json"
    config = read_json(path) | {"base_model_name_or_path": base}
    atomic_write_json(
        path, {key: sorted(v) if isinstance(v, list) else v for key, v in sorted(config.items())}
    )
    (adapter / "README.md").unlink(missing_ok=True)


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


def load_encoder(device="cpu"):
    """(encoder, tokenizer) of the sentence encoder, a BERT of 22.7 M parameters and width 384, in evaluation mode."""
    from transformers import AutoModel, AutoTokenizer

    folder = encoder_folder()
    with no_bars():
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
            # Without the embedding check, for which PEFT would ask the hub about the base model.
            own = get_peft_model_state_dict(policy, save_embedding_layers=False)
            odd = set(saved.keys()) ^ set(own)
    except Exception as error:  # whatever a loader raises over a file that is not as it should be
        raise InputError(
            f"{adapter}: found an adapter that does not load ({first_line(error)}); expected one of this "
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
    from transformers import AutoConfig, AutoModelForCausalLM

    with _told(spec), no_bars():
        config = AutoConfig.from_pretrained(_where(spec), revision=spec.revision, trust_remote_code=False)
        if getattr(config, "quantization_config", None):
            raise ValueError("found quantised weights, whose kernels are code of a hub")
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
        if odd := [name for name, weight in model.named_parameters() if not weight.isfinite().all()]:
            raise ValueError(f"{len(odd)} weights are not finite, among them {odd[0]}")
        return model


def _sample_plainly(model, tokenizer) -> None:
    config = model.generation_config
    config.temperature, config.top_p, config.top_k = 1.0, 1.0, 0
    config.pad_token_id = tokenizer.pad_token_id


def _where(spec) -> str:
    if spec.source in ("embedded", "random"):
        return str(embedded_folder())
    if spec.source == "local":
        return str(checked_folder(Path(os.path.expanduser(spec.id))))
    check_hub_name("model.id", spec.id)
    return spec.id


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
                "check the id and revision, the connection, and for a ",
            )
            remedy += "gated model accept its licence and run `hf auth login`"
        elif spec.source == "local":
            where, remedy = str(spec.id), "check the folder; a copy may be incomplete"
        else:
            where, remedy = str(cache_folder()), "delete that cache folder and run `python -m enigma fetch`"
        raise InputError(
            f"model: {where}: does not load ({first_line(error)}); expected a causal language model in "
            f"safetensors; {remedy}"
        ) from error
