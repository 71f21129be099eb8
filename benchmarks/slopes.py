"""`python -m benchmarks.slopes`: how the score matrix's cost grows with the number of principles K and the prompt's length.

Writes slopes_<device>.json and its picture. Ten minutes on two cores.
"""

from pathlib import Path
from statistics import median

import torch

from benchmarks.cases import device, machine, seconds
from enigma.llm.loading import load_model
from enigma.llm.scoring import completion_logprobs
from enigma.profile import load_profile
from enigma.record.files import atomic_write_json

HERE = Path(__file__).parent

COMPLETIONS, TOKENS, PROMPT = 16, 48, 140
OWN = (
    35  # tokens at the end of a prompt that are its own: instruction and demonstration before them are shared
)
PRINCIPLES = (1, 2, 4, 8)
PROMPTS = (35, 140, 280, 560)


def measure(profile, rounds: int = 1) -> list[dict]:
    """Seconds of forward and backward: all of 16 completions under K prompts packed, and as dense padded rows.

    The dense side scores each completion under its own prompt alone, which is plain GRPO's forward. Token ids are
    random: the cost does not depend on them. One round shows the slope; more would steady the single points.
    """
    model, _ = load_model(profile.model, 0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    # As with an adapter: activations carry a gradient, weights do not.
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: output.requires_grad_())
    made = []
    _timed(model, 1, PROMPT, 1)  # the first call of all is slow
    for k in PRINCIPLES:
        made.append(
            {"varied": "principles", "principles": k, "prompt": PROMPT, **_timed(model, k, PROMPT, rounds)}
        )
    for p in PROMPTS:
        made.append({"varied": "prompt", "principles": 2, "prompt": p, **_timed(model, 2, p, rounds)})
    return made


def _timed(model, k: int, prompt: int, rounds: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    high = model.config.vocab_size
    some = lambda n: torch.randint(3, high, (n,), generator=generator).to(model.device)
    shared = some(prompt - OWN)
    prompts = [torch.cat([shared, some(OWN)]) for _ in range(k)]
    completions = [some(TOKENS) for _ in range(COMPLETIONS)]
    own = [list(range(i * COMPLETIONS // k, (i + 1) * COMPLETIONS // k)) for i in range(k)]
    dense = torch.stack(
        [torch.cat([prompts[i], completions[j]]) for i, group in enumerate(own) for j in group]
    )

    def packed():
        completion_logprobs(model, prompts, completions).logps.sum().backward()

    def plain():
        logits = model(input_ids=dense, use_cache=False, logits_to_keep=TOKENS + 1).logits[:, :-1]
        torch.log_softmax(logits.float(), dim=-1).gather(-1, dense[:, prompt:, None]).sum().backward()

    taken = [(seconds(packed), seconds(plain)) for _ in range(rounds)]
    ours, peer = (median(side) for side in zip(*taken, strict=True))
    return {
        "packed_seconds": round(ours, 3),
        "dense_seconds": round(peer, 3),
        "packed_tokens": prompt - OWN + k * (OWN - 1 + COMPLETIONS * (TOKENS + 1)),
        "dense_tokens": dense.numel(),
    }


def draw(curves: list[dict], machine: dict, path: Path) -> None:
    """Two panels: seconds against K, and against the prompt's length."""
    import matplotlib.pyplot as plt
    import pandas as pd

    frame = pd.DataFrame(curves)
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), layout="constrained")
    for axis, varied, x, label in (
        (axes[0], "principles", "principles", "principles K"),
        (axes[1], "prompt", "prompt", "prompt, tokens (K = 2)"),
    ):
        part = frame[frame.varied == varied]
        axis.plot(
            part[x],
            part.packed_seconds,
            "o-",
            color="#0072B2",
            label="packed: all completions under K prompts",
        )
        axis.plot(
            part[x],
            part.dense_seconds,
            "s--",
            color="#D55E00",
            label="dense: each under its own (plain GRPO)",
        )
        axis.set(xlabel=label, ylabel="forward and backward, s", ylim=(0, None), xticks=part[x])
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(frameon=False, fontsize=7, loc="upper left")
    figure.suptitle(f"16 completions of 48 tokens, {machine['device']}, {machine['dtype']}", fontsize=9)
    figure.savefig(path, dpi=200)
    plt.close(figure)


def main() -> None:
    profile = load_profile("cpu")
    found, curves = machine(profile), measure(profile)
    atomic_write_json(HERE / f"slopes_{device()}.json", {"machine": found, "slopes": curves})
    draw(curves, found, HERE / f"slopes_{device()}.png")


if __name__ == "__main__":
    main()
