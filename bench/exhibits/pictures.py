"""Pictures: what recipes show, and what encoders find alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.exhibits.base import COLOURS, Figure, display, drawing, finish

Arrays = dict[str, NDArray[Any]]
TITLE = 0.2  # inches above a grid of pictures
RIGHT, WRONG = COLOURS[2], COLOURS[1]


def recipe_gallery(recipe: str, arrays: Arrays) -> Figure:
    """A row per image: itself, then its views in epoch 0."""
    views = sorted(name for name in arrays if name.startswith("view"))
    columns = ["image", *views]
    count = len(arrays["image"])
    with drawing(f"recipe_{recipe}") as plt:
        figure, axes = plt.subplots(count, len(columns), figsize=(0.8 * len(columns), 0.8 * count), squeeze=False)
        for i in range(count):
            for axis, column in zip(axes[i], columns, strict=True):
                _show(axis, arrays[column][i])
        for axis, column in zip(axes[0], columns, strict=True):
            axis.set_title(column, fontsize=7)
        figure.tight_layout(pad=0.3)
        return finish(
            f"recipe_{recipe}",
            f"What does the recipe '{recipe}' show? Images evenly spaced over the training subset and their views "
            "in epoch 0 of the first seed.",
            f"Images and their views under the recipe {recipe}",
            figure,
        )


def retrieval(method: str, arrays: Arrays) -> Figure | None:
    """A row per query; its nearest neighbours after each snapshot side by side, framed by whether they agree."""
    names = sorted((n for n in arrays if n.startswith("neighbours_epoch")), key=_epoch)
    if not names:
        return None
    queries, k = arrays["queries"], arrays[names[0]].shape[1]
    with drawing(f"retrieval_{method}") as plt:
        columns = 1 + len(names) * (k + 1)
        height = 0.5 * len(queries) + TITLE
        figure, axes = plt.subplots(len(queries), columns, figsize=(0.42 * columns, height), squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for i, query in enumerate(queries):
            _show(axes[i][0], query)
            for block, name in enumerate(names):
                for j in range(k):
                    axis = axes[i][2 + block * (k + 1) + j]
                    same = bool(arrays[name.replace("neighbours", "same")][i, j])
                    _show(axis, arrays[name][i, j], RIGHT if same else WRONG, "-" if same else ":")
        axes[0][0].set_title("query", fontsize=6)
        for block, name in enumerate(names):
            axes[0][2 + block * (k + 1)].set_title(f"epoch {_epoch(name)}", fontsize=6, loc="left")
        figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=1 - TITLE / height, wspace=0.12, hspace=0.12)
        return finish(
            f"retrieval_{method}",
            f"What does {display(method)} find alike as it trains? The first test image of each class, by row, and "
            f"its {k} nearest training images by cosine on h, first seed. Solid frame: same class; dotted: another.",
            f"Nearest neighbours of queries under {display(method)} at {len(names)} epochs",
            figure,
        )


def _epoch(name: str) -> int:
    return int(name.rpartition("epoch")[2])


def _show(axis: Any, image: NDArray[np.uint8], frame: str | None = None, style: str = "-") -> None:
    axis.set_axis_on()
    axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(frame is not None)
        spine.set_color(frame or "none")
        spine.set_linestyle(style)
        spine.set_linewidth(1.2)
