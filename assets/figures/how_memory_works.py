"""Draws how_memory_works.png beside itself: one layer's memory during a write and a read.

python assets/figures/how_memory_works.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INK, SHORT, LONG, TEXT, BOS = "#22303c", "#f2a65a", "#5a9bd5", "#9fc18b", "#c9c9c9"


def boxes(ax: Axes, x: float, y: float, count: int, colour: str, width: float = 0.34, alpha: float = 1.0) -> float:
    """A row of memory or text tokens; returns where it ends."""
    for i in range(count):
        style = "round,pad=0,rounding_size=0.06"
        ax.add_patch(
            FancyBboxPatch(
                (x + i * width, y), width * 0.82, 0.5, boxstyle=style, fc=colour, ec=INK, lw=0.7, alpha=alpha
            )
        )
    return x + count * width


def label(ax: Axes, x: float, y: float, text: str, size: float = 10, weight: str = "normal", ha: str = "left") -> None:
    ax.text(x, y, text, fontsize=size, color=INK, ha=ha, va="center", weight=weight)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0.0, colour: str = INK) -> None:
    style = f"arc3,rad={bend}"
    ax.add_patch(
        FancyArrowPatch(start, end, connectionstyle=style, arrowstyle="-|>", mutation_scale=13, lw=1.3, color=colour)
    )


def draw_stores(ax: Axes) -> None:
    label(ax, 0.2, 6.35, "In every layer of the model", 12.5, "bold")
    label(ax, 0.2, 5.85, "short-term memory: N tokens, always on the device")
    boxes(ax, 0.2, 5.1, 12, SHORT)
    label(ax, 6.3, 5.85, "long-term memory: up to M tokens on the host, each with a small retrieval key")
    boxes(ax, 6.3, 5.1, 19, LONG)
    label(ax, 12.95, 5.33, "···", 14)
    arrow(ax, (4.3, 5.35), (6.2, 5.35))
    label(ax, 5.27, 5.6, "dropped", 9, ha="center")


def draw_write(ax: Axes) -> None:
    label(ax, 0.2, 4.25, "Write: mplus inject", 12.5, "bold")
    end = boxes(ax, 0.2, 3.2, 1, BOS)
    end = boxes(ax, end, 3.2, 4, SHORT)
    boxes(ax, end, 3.2, 8, TEXT)
    label(ax, 0.2, 3.93, "the newest K memory tokens, then a chunk of text")
    boxes(ax, 3.26, 2.1, 4, SHORT)
    arrow(ax, (4.0, 3.15), (4.0, 2.68))
    label(ax, 0.2, 2.5, "its last K outputs are")
    label(ax, 0.2, 2.2, "the new memory tokens")
    arrow(ax, (4.75, 2.35), (4.6, 5.0), 0.62)
    label(ax, 0.2, 1.55, "K random short-term tokens make room", 9.5)
    label(ax, 0.2, 1.25, "and move to long-term memory", 9.5)


def draw_read(ax: Axes) -> None:
    label(ax, 8.5, 4.25, "Read: mplus ask", 12.5, "bold")
    label(ax, 8.5, 3.93, "the question attends to both, oldest tokens first")
    end = boxes(ax, 6.9, 3.2, 1, BOS)
    end = boxes(ax, end, 3.2, 4, LONG)
    end = boxes(ax, end, 3.2, 8, SHORT)
    boxes(ax, end, 3.2, 5, TEXT)
    label(ax, 8.0, 2.9, "retrieved", 9, ha="center")
    label(ax, 10.0, 2.9, "short-term", 9, ha="center")
    label(ax, 12.2, 2.9, "question", 9, ha="center")
    arrow(ax, (12.1, 2.7), (8.0, 2.7), -0.35, LONG)
    label(ax, 8.2, 1.6, "each layer searches its own store with the question's hidden states", 9.5)
    label(ax, 8.2, 1.3, "and takes the K$_θ$ best tokens", 9.5)
    arrow(ax, (8.0, 5.02), (7.95, 3.78), 0.06, LONG)


def main() -> None:
    figure, ax = plt.subplots(figsize=(13.4, 5.9), dpi=110)
    ax.set_xlim(0, 13.6)
    ax.set_ylim(0.2, 6.7)
    ax.axis("off")
    draw_stores(ax)
    draw_write(ax)
    draw_read(ax)
    for i, (colour, name) in enumerate(
        (
            (BOS, "the layer's own BOS"),
            (SHORT, "short-term memory token"),
            (LONG, "long-term memory token"),
            (TEXT, "text token"),
        )
    ):
        boxes(ax, 0.2 + 3.2 * i, 0.3, 1, colour, width=0.3)
        label(ax, 0.6 + 3.2 * i, 0.55, name, 9)
    figure.savefig(Path(__file__).with_suffix(".png"), bbox_inches="tight")


if __name__ == "__main__":
    main()
