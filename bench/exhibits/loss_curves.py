"""Training loss of every method that trains, a panel each: their losses have no common scale."""

from typing import Any

from bench.exhibits.base import COLOURS, DECIMALS, Figure, display, drawing, to_svg


def loss_curves(gathered: dict[str, Any]) -> Figure:
    """The mean over seeds, thick, and every seed, thin, against the epoch."""
    methods = [m for m in gathered["methods"] if any(_of(gathered, m))]
    with drawing("loss") as plt:
        figure, axes = plt.subplots(
            1, max(1, len(methods)), figsize=(3.2 * max(1, len(methods)), 2.4), squeeze=False
        )
        for axis, method, colour in zip(axes[0], methods, COLOURS, strict=False):
            curves = _of(gathered, method)
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.6, alpha=0.6)
            epochs = [epoch for epoch, _ in curves[0]]
            means = [
                round(sum(curve[i][1] for curve in curves) / len(curves), DECIMALS)
                for i in range(min(map(len, curves)))
            ]
            axis.plot(epochs[: len(means)], means, color=colour, linewidth=1.8)
            axis.set_title(f"{display(method)} (n = {len(curves)})")
            axis.set_xlabel("epoch")
            axis.set_ylabel("training loss")
        figure.tight_layout()
        svg = to_svg(figure)
    names = ", ".join(display(m) for m in methods) or "no method"
    return Figure(
        "loss",
        "Does training go down, and do seeds agree? Mean loss of each epoch; thick: mean over seeds, "
        "thin: each seed. Panels have scales of their own.",
        f"Training loss against epoch for {names}",
        svg,
    )


def _of(gathered: dict[str, Any], method: str) -> list[list[tuple[int, float]]]:
    return [
        [(line["epoch"], round(line["loss"], DECIMALS)) for line in cell["history"]]
        for cell in gathered["pretraining"]
        if cell["method"] == method and cell["history"]
    ]
