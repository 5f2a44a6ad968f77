"""Pictures: what recipes show, and what encoders find alike."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.exhibits.base import COLOURS, Figure, display, drawing, finish

Arrays = dict[str, NDArray[Any]]
PITCH = 1.12  # from one picture to the next, whose side is 1
HEADING = 0.4  # of the same, above the first row
RIGHT, WRONG = COLOURS[2], COLOURS[1]


def recipe_gallery(recipe: str, arrays: Arrays) -> Figure:
    """A row per image: itself, then its views in epoch 0."""
    views = sorted(name for name in arrays if name.startswith("view"))
    columns = ["image", *views]
    count = len(arrays["image"])
    with drawing(f"recipe_{recipe}") as plt:
        figure, axis = _sheet(plt, count, len(columns), inches=0.8)
        for j, column in enumerate(columns):
            _heading(axis, j, column)
            for i in range(count):
                _show(axis, i, j, arrays[column][i])
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
        figure, axis = _sheet(plt, len(queries), 1 + len(names) * (k + 1), inches=0.42)
        _heading(axis, 0, "query")
        for i, query in enumerate(queries):
            _show(axis, i, 0, query)
        for block, name in enumerate(names):
            first = 2 + block * (k + 1)
            _heading(axis, first, f"epoch {_epoch(name)}")
            for i, j in np.ndindex(len(queries), k):
                same = bool(arrays[name.replace("neighbours", "same")][i, j])
                _show(axis, i, first + j, arrays[name][i, j], RIGHT if same else WRONG, "-" if same else ":")
        return finish(
            f"retrieval_{method}",
            f"What does {display(method)} find alike as it trains? The first test image of each class, by row, and "
            f"its {k} nearest training images by cosine on h, first seed. Solid frame: same class; dotted: another.",
            f"Nearest neighbours of queries under {display(method)} at {len(names)} epochs",
            figure,
        )


def _epoch(name: str) -> int:
    return int(name.rpartition("epoch")[2])


def _sheet(plt: Any, rows: int, columns: int, inches: float) -> tuple[Any, Any]:
    """A figure and its axes for a grid of pictures of that size; axes of their own for each take ten times as long."""
    width, height = columns * PITCH, rows * PITCH + HEADING
    figure = plt.figure(figsize=(inches * width, inches * height))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axis.set_axis_off()
    return figure, axis


def _corner(row: int, column: int) -> tuple[float, float]:
    margin = (PITCH - 1) / 2
    return column * PITCH + margin, row * PITCH + HEADING + margin


def _heading(axis: Any, column: int, text: str) -> None:
    axis.text(_corner(0, column)[0], 0.75 * HEADING, text, fontsize=6)


def _show(
    axis: Any, row: int, column: int, image: NDArray[np.uint8], frame: str | None = None, style: str = "-"
) -> None:
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

    x, y = _corner(row, column)
    shown = AxesImage(axis, cmap="gray", extent=(x, x + 1, y + 1, y), clip_on=False)
    shown.set_data(image.squeeze(-1) if image.shape[-1] == 1 else image)
    shown.set_clim(0, 255)
    axis.add_image(shown)
    if frame:
        axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=frame, linestyle=style, linewidth=1.2))
