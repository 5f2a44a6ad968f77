"""What the support set gives: how often a neighbour has the image's class, and how often it is the image."""

from typing import Any

from bench.exhibits.base import DECIMALS, Figure, display, drawing, epochs_on, finish, look

SERIES = {"neighbour_purity": "neighbour has the image's class", "same_image": "neighbour is the same image"}


def neighbours(gathered: dict[str, Any]) -> Figure | None:
    """Both shares against the epoch, a panel each; None where no method looks neighbours up."""
    cells = [c for c in gathered["pretraining"] if c["history"] and "neighbour_purity" in c["history"][0]]
    if not cells:
        return None
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    with drawing("neighbours") as plt:
        figure, axes = plt.subplots(1, len(SERIES), figsize=(6.6, 2.6))
        for axis, (name, title) in zip(axes, SERIES.items(), strict=True):
            for method in methods:
                style = look(method, gathered["methods"])
                curves = [cell["history"] for cell in cells if cell["method"] == method]
                for curve in curves:
                    x = [line["epoch"] for line in curve]
                    y = [round(100 * line[name], DECIMALS) for line in curve]
                    axis.plot(x, y, linewidth=0.5, alpha=0.5, color=style["color"])
                mean = [
                    round(100 * sum(curve[i][name] for curve in curves) / len(curves), DECIMALS)
                    for i in range(len(curves[0]))
                ]
                axis.plot(x, mean, label=f"{display(method)} (n = {len(curves)})", markersize=3, **style)
            axis.set_title(title)
            epochs_on(axis)
            axis.set_ylabel("% of look-ups")
            axis.set_ylim(bottom=0)
        axes[0].legend(frameon=False)
        figure.tight_layout()
        return finish(
            "neighbours",
            "Are the neighbours friends? Share of look-ups of view 1 whose nearest row of the support set "
            "came from an image of the same class (left) or from an older view of the very image (right). "
            "Rows that no image has filled yet count as neither. Thick: mean over seeds; thin: each seed.",
            "Neighbour purity and same-image rate against epoch",
            figure,
        )
