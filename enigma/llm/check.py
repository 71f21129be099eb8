"""Is a model's folder fit to be loaded? Looked at before any model library is imported, and nothing of it is run.

Weights are safetensors. Pickled weights, code of a model's own and quantised weights, which bring kernels of a hub along,
are refused. A chat template is a program in a sandbox: it is tried once in a process of its own that may use five
seconds and a gigabyte. Source: our choice.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from enigma.errors import InputError
from enigma.llm.fetch import embedded_place
from enigma.llm.prompts import messages

SHARDS = "model.safetensors.index.json"
DESCRIPTIONS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", SHARDS)
PATIENCE = 3600.0  # seconds that a template's trial may wait for a processor; it may use five of one
LLAMA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def check_model(spec, modules: tuple[str, ...] = ()) -> None:
    """InputError unless the model's files are there and whole, as far as that shows without a model library.

    `modules`: names of layers that an adapter is to change. A hub's model is not looked at: that would need the network.
    Where the embedded model is not yet cached, the cache must be a place that can be made.
    """
    known = LLAMA_MODULES
    if spec.source == "local":
        known = _modules(checked_folder(Path(os.path.expanduser(spec.id))))
    elif spec.source == "hub":
        check_hub_name("model.id", spec.id)
        return
    else:
        _check_cache(embedded_place())
    check_layers(modules, known)


def check_layers(wanted: Sequence[str], known: Sequence[str]) -> None:
    """InputError unless the model has all layers that an adapter is to change."""
    if wrong := [name for name in wanted if name not in known]:
        raise InputError(
            f"trainer.lora.target_modules: found {wrong[0]!a:.60}; expected layers of the model, such as "
            f"{', '.join(known[:8])}; correct it"
        )


def check_hub_name(key: str, name: str) -> None:
    """InputError for a folder of that name, which the library would take instead of the hub's."""
    if os.path.exists(name):
        raise InputError(
            f"{key}: found a folder {name!a:.200} here, which would be read instead of the hub's; expected none; "
            "use source: local, or work in another folder"
        )


def _check_cache(folder: Path) -> None:
    if not os.path.lexists(folder):
        check_can_make(folder, "ENIGMA_CACHE")
    closed = [path for path in (folder, *_files(folder)) if not os.access(path, os.R_OK)]
    if os.path.lexists(folder) and closed:
        raise InputError(
            f"{closed[0]}: may not be read by you; expected a cache of your own or one that all may read; set ENIGMA_CACHE, or "
            "have its owner give `chmod -R a+rX`"
        )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def check_can_make(folder: Path, where: str) -> None:
    """InputError unless `folder` is there, or its nearest parent that exists is a folder to write in."""
    found = next((path for path in (folder, *folder.absolute().parents) if os.path.lexists(path)), Path("/"))
    if not (found.is_dir() and os.access(found, os.W_OK)):
        raise InputError(
            f"{where}: {folder}: found {found}, in which nothing can be made; expected a folder to write "
            "in; name another or remove the obstacle"
        )


def check_adapter(folder: Path) -> None:
    """InputError unless `folder` holds a whole adapter in safetensors."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder}: {name} is missing; expected an adapter saved as safetensors; train the arm first"
            )
    fault = _json_fault(folder / "adapter_config.json") or _weights_fault(
        folder / "adapter_model.safetensors"
    )
    if fault:
        raise InputError(f"{folder}: {fault}; delete that folder and train the arm again")


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
    described = [folder / name for name in DESCRIPTIONS if (folder / name).is_file()]
    faults = [*map(_json_fault, described), *map(_weights_fault, weights)]
    return next(filter(None, faults), None) or _kind_fault(folder) or _shards_fault(folder)


def _modules(folder: Path) -> tuple[str, ...]:
    """Names of the layers that have a matrix of weights."""
    from safetensors import safe_open

    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as weights:
            names = list(weights.keys())  # no mapping: it cannot be iterated
            matrices = [key for key in names if len(weights.get_slice(key).get_shape()) == 2]
        found |= {key.split(".")[-2] for key in matrices if key.endswith(".weight")}
    return tuple(sorted(found - {"embed_tokens", "wte", "wpe"}))


def _json_fault(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"{path.name}: {first_line(error)}; expected JSON"
    return (
        None
        if isinstance(value, dict)
        else f"{path.name}: found {type(value).__name__}; expected a JSON object"
    )


def _weights_fault(path: Path) -> str | None:
    """The header says how long the file must be; the weights themselves are not read."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():  # a link to nothing, a pipe
        return f"{path.name}: found no regular file; expected whole safetensors"
    try:
        with safe_open(path, framework="np"):
            return None
    except (SafetensorError, OSError) as error:
        return f"{path.name}: found a truncated or damaged file ({first_line(error)}); expected whole safetensors"


def _kind_fault(folder: Path) -> str | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("architectures") or []
    if "model_type" not in config or not isinstance(names, list):
        return "config.json: found no model_type; expected a causal language model"
    if names and not str(names[0]).endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")):
        return f"config.json: architectures: found {names[0]!a:.60}; expected a causal language model"
    if config.get("quantization_config"):
        return "config.json: found quantised weights, whose kernels are code of a hub; expected plain ones"
    template = _template(folder)
    return template_fault(template)


def _template(folder: Path) -> str | None:
    file, tokenizer = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return file.read_text(encoding="utf-8", errors="replace")
    found = (
        json.loads(tokenizer.read_text(encoding="utf-8")).get("chat_template")
        if tokenizer.is_file()
        else None
    )
    if isinstance(found, list):  # several by name, as `load_tokenizer` has them
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def _shards_fault(folder: Path) -> str | None:
    index = folder / SHARDS
    if not index.is_file():
        return None
    shards = json.loads(index.read_text(encoding="utf-8")).get("weight_map")
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else {"weight_map"}
    missing = sorted(name for name in names if Path(name).name != name or not (folder / name).is_file())
    return f"{index.name}: found no file {missing[0]!a:.200}; expected all shards" if missing else None


# Tried as transformers renders it: its loop controls, its filter and its two functions.
_TRIAL = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (5, 5)); resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
import jinja2.ext, jinja2.sandbox
from jinja2.exceptions import TemplateError
class Generation(jinja2.ext.Extension):
    tags = {"generation"}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)
def refuse(message):
    raise TemplateError(message)
template, turns = json.load(sys.stdin)
world = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
world.filters["tojson"] = lambda value, **options: json.dumps(value)
world.globals |= {"raise_exception": refuse, "strftime_now": lambda format: "26 Jul 2024"}
names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "", "unk_token": "", "tools": None}
try:
    ready = world.from_string(template)
    try:
        ready.render(messages=turns, add_generation_prompt=True, **names)
    except TemplateError:  # it may know no system message
        ready.render(messages=turns[1:], add_generation_prompt=True, **names)
except Exception as error:
    print(type(error).__name__, error)
"""


@functools.cache
def template_fault(template: str | None) -> str | None:
    """What is wrong with a chat template: it does not render a chat, or not in five seconds and a gigabyte."""
    if not template:
        return "found no chat template; expected an instruction-tuned model's tokenizer"
    chat = json.dumps([template, messages("Why?", "Be brief.")])
    command = [sys.executable, "-I", "-X", "utf8", "-c", _TRIAL]
    try:
        options = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "timeout": PATIENCE}
        done = subprocess.run(command, input=chat, check=False, **options)
        found = done.stdout if done.returncode == 0 else f"ended by signal {-done.returncode}"
    except subprocess.TimeoutExpired:
        found = "it does not end"
    wanted = "expected one that renders a chat in five seconds"
    return f"the chat template fails ({' '.join(found.split()):.160}); {wanted}" if found else None


def checked_folder(folder: Path) -> Path:
    """A local model folder that has what loading needs, and no need of a pickle."""
    if fault := _fault(folder):
        raise InputError(
            f"model.id: {folder}: {fault}; convert it with save_pretrained in an environment you trust it in, "
            "or copy it again"
        )
    return folder


def first_line(error: BaseException, limit: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
