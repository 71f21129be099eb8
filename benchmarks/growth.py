"""`python -m benchmarks.growth`: what a step costs against model size, K, T, completions and processes.

Tiny random Llamas with LoRA on one core, each size of a step changed alone. The measured seconds are compared with the
operations that `enigma.run.gpu_costs` counts, by one rate for all points; what a layer keeps for the backward pass is counted
tensor by tensor. `enigma.run.gpu_costs` then says what that means for 8B and 70B. Writes benchmarks/growth.json and docs/growth.png.
"""

import functools
import json
import os
import time
import warnings
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from enigma.llm.matched_sets import own_scores, score_matched_sets
from enigma.llm.sampling import draw_completions
from enigma.profile import load_profile
from enigma.record.results import atomic_write_bytes, atomic_write_json
from enigma.run import gpu_costs as costs

HERE = Path(__file__).parent
BASE = {"width": 256, "k": 2, "tokens": 64, "sets": 1, "processes": 1}
VARIED = {
    "width": (128, 256, 512),
    "k": (2, 3, 4),
    "tokens": (32, 64, 128),
    "sets": (1, 2, 4),
    "processes": (1, 2),
}
GENERATIONS, PROMPT, LAYERS, VOCABULARY, ROUNDS = 4, 64, 4, 2048, 2
PHASES = ("update", "reference", "sampling")


@functools.cache
def model(width: int):
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 64,
    )
    torch.manual_seed(0)
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, target_modules=["q_proj", "v_proj"]))


def rollouts(k: int, tokens: int, sets: int) -> dict:
    """Random matched sets as TRL hands them on: rows by set, principle, generation."""
    rows = sets * k * GENERATIONS
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(3, VOCABULARY, (sets * k, PROMPT), generator=generator).repeat_interleave(
        GENERATIONS, 0
    )
    completions = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    place = torch.arange(rows)
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.ones_like(completions),
        "set_index": place // (k * GENERATIONS),
        "principle_index": place // GENERATIONS % k,
    }


def seconds(work) -> float:
    """Median processor time over ROUNDS after a warm-up; a shared machine's other work does not count."""
    work()
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return median(taken)


def point(width: int, k: int, tokens: int, sets: int, processes: int) -> dict:
    """Measured seconds of each phase on one of `processes`, which deal out `sets`, and what the model counts."""
    mine = model(width)
    batch = rollouts(k, tokens, max(1, sets // processes))

    def update():
        score_matched_sets(mine, batch, k, layers=(-1,), cross_gradient=True).matrix.sum().backward()

    @torch.no_grad()
    def reference():
        with mine.disable_adapter():
            own_scores(
                mine, list(batch["prompt_ids"]), list(batch["completion_ids"]), layers=(-1,), entropy=False
            )

    def sampling():
        draw_completions(mine, batch["prompt_ids"].tolist(), tokens, ends=())

    found = dict(zip(PHASES, map(seconds, (update, reference, sampling)), strict=True))
    return {
        **{phase: round(value, 4) for phase, value in found.items()},
        **counted(width, k, tokens, sets, processes),
    }


def counted(width: int, k: int, tokens: int, sets: int, processes: int) -> dict:
    """Operations of the update and of the reference by `enigma.run.gpu_costs`, as seconds at its assumed rate."""
    parameters = sum(
        p.numel() for n, p in model(width).named_parameters() if "lora" not in n and "embed" not in n
    )
    shape = costs.Shape(float(parameters), LAYERS, width, width // 2, VOCABULARY)
    spec = SimpleNamespace(
        num_principles=k,
        num_generations=GENERATIONS,
        max_completion_length=tokens,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=sets * k * GENERATIONS,
        gradient_checkpointing=False,
        lora=SimpleNamespace(r=16, target_modules=["q_proj", "v_proj"]),
    )
    step = costs.step(shape, spec, sami=True, processes=processes, prompt=PROMPT)
    rate = costs.PEAK_FLOPS * costs.TRAIN_UTILISATION
    return {
        "parameters": parameters,
        "update_flops": step.update * rate,
        "reference_flops": step.reference * rate,
    }


def kept_widths(width: int) -> float:
    """Values that a layer keeps of a token for the backward pass, in widths: the slope between two depths' sums."""

    def kept(layers: int) -> int:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            num_key_value_heads=width // 64,
        )
        built = get_peft_model(
            LlamaForCausalLM(config), LoraConfig(r=16, target_modules=["q_proj", "v_proj"])
        )
        weights = {p.untyped_storage().data_ptr() for p in built.parameters()}
        found = {}

        def note(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            scores = score_matched_sets(built, rollouts(2, 64, 1), 2, layers=(-1,), cross_gradient=True)
        del scores
        return sum(found.values())

    tokens = 2 * (PROMPT + 2 * GENERATIONS * 65)
    return (kept(4) - kept(2)) / 2 / tokens / width / 4


def measure() -> dict:
    rows = []
    for varied, values in VARIED.items():
        # Two processes need two sets to share.
        base = BASE | ({"sets": 2} if varied == "processes" else {})
        for value in values:
            rows.append({"varied": varied, **base, varied: value, **point(**base | {varied: value})})
            print(json.dumps(rows[-1]), flush=True)
    # One rate for all: the ratio of the sums. How far each point is off is then the model's error.
    for phase in ("update", "reference"):
        rate = sum(row[f"{phase}_flops"] for row in rows) / sum(row[phase] for row in rows)
        for row in rows:
            row[f"{phase}_by_model"] = round(row.pop(f"{phase}_flops") / rate, 4)
    widths = {str(width): round(kept_widths(width), 1) for width in (128, 256)}
    return {"threads": torch.get_num_threads(), "rows": rows, "kept_widths": widths, "large": large()}


def large() -> list[dict]:
    """The paper profile's step by `enigma.run.gpu_costs`, for larger models on one or eight GPUs."""
    spec, rows = load_profile("paper").trainer, []
    for name, processes, sharded in (
        ("google/gemma-3-1b-it", 1, False),
        ("8B", 1, False),
        ("8B", 8, True),
        ("70B", 8, True),
    ):
        for checkpointing in (False, True):
            changed = spec.model_copy(update={"gradient_checkpointing": checkpointing})
            step = costs.step(costs.SHAPES[name], changed, True, processes, sharded)
            parts = {part: round(value, 2) for part, value in step._asdict().items()}
            rows.append(
                {
                    "model": name.split("/")[-1],
                    "gpus": processes,
                    "checkpointing": checkpointing,
                    **parts,
                    "seconds": round(step.seconds, 1),
                    "memory_gb": round(step.memory_gb, 1),
                }
            )
    return rows


LABELS = {
    "width": "parameters, millions",
    "k": "principles K",
    "tokens": "completion tokens T",
    "sets": "questions a step",
}


def draw(found: dict, path: Path) -> None:
    """(a)-(d) measured seconds and the model's against each size; (e) memory and (f) seconds of a large model's step."""
    from io import BytesIO

    import matplotlib
    import matplotlib.pyplot as plt
    import pandas as pd

    from enigma.figures.style import SETTINGS

    frame = pd.DataFrame(found["rows"])
    with matplotlib.rc_context(SETTINGS):
        figure, axes = plt.subplots(2, 3, figsize=(7.0, 4.6))
        for axis, (varied, label) in zip(axes.flat, LABELS.items(), strict=False):
            part = frame[frame.varied == varied]
            x = part.parameters / 1e6 if varied == "width" else part[varied]
            for phase, colour, marker in zip(PHASES, ("#D55E00", "#0072B2", "#009E73"), "os^", strict=True):
                axis.plot(x, part[phase], marker, color=colour, label=f"{phase}, measured")
                if phase != "sampling":
                    axis.plot(x, part[f"{phase}_by_model"], "--", color=colour, lw=1, label=f"{phase}, model")
            axis.set(xlabel=label, ylabel="seconds, one core", ylim=(0, None), xlim=(0, None))
        axes[0, 0].legend(fontsize=6, loc="upper left")
        _large(axes[1, 1], axes[1, 2], pd.DataFrame(found["large"]))
        for axis, letter in zip(axes.flat, "abcdef", strict=True):
            axis.set_title(f"({letter})", loc="left")
        data = BytesIO()
        figure.savefig(data, format="png", dpi=200, metadata={"Software": None})
        plt.close(figure)
    atomic_write_bytes(path, data.getvalue())


def _large(memory, time_, rows) -> None:
    names = [
        f"{r.model.replace('gemma-3-1b-it', 'Gemma 1B')}, {r.gpus} GPU{'s' * (r.gpus > 1)}"
        + (", ckpt" if r.checkpointing else "")
        for r in rows.itertuples()
    ]
    y = -np.arange(len(rows))
    parts = {"weights": rows.weights_gb, "adapter": rows.adapter_gb, "activations": rows.activations_gb}
    _stacked(memory, y, parts)
    memory.plot(
        rows.weights_gb + rows.adapter_gb + rows.cache_gb,
        y,
        "|",
        color="#D55E00",
        ms=9,
        mew=1.5,
        label="while sampling",
    )
    memory.legend(fontsize=6, loc="upper right")
    memory.axvline(costs.GPU_GB, color="black", lw=0.8, ls=":")
    memory.set(xlabel="GB on a GPU (dotted: 80)", xlim=(0, 320))
    _stacked(time_, y, {name: rows[name] for name in ("sampling", "reference", "update", "gathering")})
    time_.set(xlabel="seconds a step, by the model")
    memory.set_yticks(y, names, fontsize=5.5)
    time_.set_yticks(y, [])


def _stacked(axis, y, parts: dict) -> None:
    left = np.zeros(len(y))
    for (name, values), colour in zip(
        parts.items(), ("#7f7f7f", "#56B4E9", "#E69F00", "#CC79A7"), strict=False
    ):
        axis.barh(y, values, left=left, color=colour, label=name, height=0.7)
        left = left + values.to_numpy()
    axis.legend(fontsize=6, loc="upper right")


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    found = measure()
    atomic_write_json(HERE / "growth.json", found)
    draw(found, HERE.parent / "docs" / "growth.png")


if __name__ == "__main__":
    main()
