"""`python -m benchmarks.geometry_cost`: time and peak memory of stage 4, written to benchmarks/geometry_<device>.json.

The whole stage, as in a run, for the embedded model and one adapter of random weights on 500 held-out prompts. Every
completion is 64 random tokens, so that none gains from an early end; writing them is not the comparison and has a row of
its own, from one batch. The built-in held-out questions are numbered to make 500 different ones. `processor_minutes`
counts all cores, so that a busy machine's number can be read too.
"""

import json
import tempfile
import time
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.__main__ import HERE, _peak_resident, absolute, machine
from benchmarks.cases import seconds
from enigma.data.principles import load_pool
from enigma.data.questions import load_questions
from enigma.llm.loading import load_model, model_dtype
from enigma.llm.prompts import encode, messages
from enigma.profile import load_profile
from enigma.record.results import Results, atomic_write_json
from enigma.stages import geometry

PROMPTS, TOKENS, BATCH = 500, 64, 8
MINUTES, GIGABYTES = 5.0, 4.0


def prepare(profile, folder: Path, prompts: int, tokens: int) -> tuple[object, Results]:
    """A profile of one arm and its results, as stages 1 and 2 would leave them."""
    own = load_questions(profile.questions, "heldout", 20, profile.seeds.data)
    questions = [f"{own[i % len(own)]} ({i})" for i in range(prompts)]
    lines = [json.dumps({"question": question, "role": "heldout"}) for question in questions]
    (folder / "questions.jsonl").write_text("\n".join(lines), encoding="utf-8")
    profile = profile.model_copy(
        update={
            "arms": {"grpo": profile.arms["grpo"]},
            "questions": profile.questions.model_copy(
                update={"source": "jsonl", "path": str(folder / "questions.jsonl")}
            ),
            "geometry": profile.geometry.model_copy(
                update={"prompts": prompts, "max_tokens": tokens, "batch_size": BATCH}
            ),
        }
    )
    results, size = Results(profile, folder), profile.principles.set_size
    names = [principle.name for principle in load_pool(profile.principles.pool)]
    sets = {"high": {"principles": names[:size]}, "low": {"principles": names[size : 2 * size]}}
    results.write_yaml("selection", sets, "The pool's first principles.")

    torch.manual_seed(0)
    model, _ = load_model(profile.model, profile.seeds.initialisation)
    lora = profile.trainer.lora
    adapted = get_peft_model(
        model, LoraConfig(r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules)
    )
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(results.run_folder("grpo", 0) / "adapter")
    words = torch.randint(1000, model.config.vocab_size, (prompts, tokens))
    kept = {"profile": profile.hash, "completions": words.tolist()}
    atomic_write_json(results.runs / "geometry_completions.json", kept)
    return profile, results


def writing(profile) -> float:
    """Seconds for one batch of greedy completions, on questions of the profile's own."""
    model, tokenizer = load_model(profile.model, profile.seeds.initialisation)
    questions = load_questions(profile.questions, "heldout", BATCH, profile.seeds.data)
    chat = [messages(q, None, profile.prompts.placement, profile.prompts.demonstration) for q in questions]
    prompts = [encode(tokenizer, turns) for turns in chat]
    return seconds(lambda: geometry.greedy_completions(model, tokenizer, prompts, TOKENS, BATCH))


def measure(profile, folder: Path, prompts: int = PROMPTS, tokens: int = TOKENS) -> list[dict]:
    """The rows; the peak is this process's own."""
    profile, results = prepare(profile, folder, prompts, tokens)
    processor = time.process_time()
    minutes = seconds(lambda: geometry.run(profile, results)) / 60
    processor = round((time.process_time() - processor) / 60, 3)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _peak_resident()
    what = f"base and one adapter, {prompts} prompts x {tokens} tokens"
    return [
        absolute(f"{what}, minutes", minutes, MINUTES) | {"processor_minutes": processor},
        absolute(f"{what}, GB", peak / 1e9, GIGABYTES),
        absolute("writing the completions, minutes", writing(profile) * prompts / BATCH / 60, MINUTES),
    ]


def main() -> None:
    warnings.filterwarnings("ignore")
    profile = load_profile("cpu")
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(profile, Path(folder))
    name = "gpu" if torch.cuda.is_available() else "cpu"
    head = {
        "profile": profile.name,
        "dtype": str(model_dtype(profile.model)).removeprefix("torch."),
        **machine(),
    }
    atomic_write_json(HERE / f"geometry_{name}.json", {"machine": head, "rows": rows})
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
