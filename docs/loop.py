"""Draws docs/loop.png, the picture of the loop in the README: python docs/loop.py"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#555555"
# name: centre, colour, title, text
BOXES = {
    "select": ((1.25, 3.3), PURPLE, "before training", "the Sufficiency Index\nchooses principles"),
    "prompt": ((1.25, 1.2), GREY, "a question", "under each of\nK principles"),
    "sample": ((3.85, 1.2), GREY, "a matched set", "G answers under\neach principle"),
    "score": ((3.85, 3.3), GREY, "a forward pass", "scores every answer\nunder every principle"),
    "grpo": ((6.55, 0.7), BLUE, "GRPO", "is the format right?"),
    "sami": ((6.55, 2.25), ORANGE, "SAMI", "which principle\nwrote which answer?"),
    "ot": ((6.55, 3.8), GREEN, "Sinkhorn", "have hidden states\ndrifted too far?"),
    "step": ((9.15, 2.25), GREY, "one step", "of the adapter,\none backward pass"),
}
ARROWS = ["select prompt", "prompt sample", "sample score", "sample grpo", "score sami", "score ot"]
ARROWS += ["grpo step", "sami step", "ot step"]
WIDTH, HEIGHT = 2.0, 1.15


def draw(path: Path) -> None:
    figure, axes = plt.subplots(figsize=(10.4, 4.7))
    axes.set(xlim=(0.1, 10.3), ylim=(-0.55, 4.55))
    axes.axis("off")
    for (x, y), colour, title, text in BOXES.values():
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = {"boxstyle": "round,pad=0.05", "facecolor": colour, "alpha": 0.12, "edgecolor": "none"}
        axes.add_patch(matplotlib.patches.FancyBboxPatch(corner, WIDTH, HEIGHT, **style))
        axes.text(x, y + 0.36, title, ha="center", va="center", weight="bold", color=colour, size=12)
        axes.text(x, y - 0.15, text, ha="center", va="center", color="#222222", size=10.5)
    line = {"arrowstyle": "-|>", "color": GREY, "lw": 1.4, "shrinkA": 2, "shrinkB": 2}
    for arrow in ARROWS:
        (x, y), (u, v) = (BOXES[name][0] for name in arrow.split())
        across = abs(u - x) > 1
        start = (x + WIDTH / 2 + 0.05, y) if across else (x, y + (HEIGHT / 2 + 0.05) * (1 if v > y else -1))
        end = (u - WIDTH / 2 - 0.05, v) if across else (u, v - (HEIGHT / 2 + 0.05) * (1 if v > y else -1))
        axes.annotate("", end, start, arrowprops=line)
    x, y = BOXES["step"][0]
    back = line | {"connectionstyle": "angle,angleA=0,angleB=90,rad=12", "linestyle": "--"}
    axes.annotate("", (3.85, 0.55), (3.85, -0.35), arrowprops=line | {"linestyle": "--"})
    axes.plot([x, x, 3.85], [y - HEIGHT / 2 - 0.08, -0.35, -0.35], color=back["color"], lw=1.4, ls="--")
    axes.text(6.3, -0.27, "the next answers come from the changed model", ha="center", size=10.5, color=GREY)
    figure.savefig(path, dpi=160, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".png"))
