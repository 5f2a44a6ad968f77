"""Training loss of every method on one axis, each scaled by its loss at chance."""

from typing import Any

from bench.exhibits.base import DECIMALS, Figure, display, drawing, epochs_on, finish, look


def loss_curves(gathered: dict[str, Any]) -> Figure:
    """Loss / loss at chance against the epoch: the mean over seeds thick, every seed thin."""
    methods = [m for m in gathered["methods"] if _curves(gathered, m)]
    with drawing("loss") as plt:
        figure, axis = plt.subplots(figsize=(6.4, 3.2))
        for method in methods:
            style = look(method, gathered["methods"])
            curves = _curves(gathered, method)
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), color=style["color"], linewidth=0.5, alpha=0.5)
            epochs = [epoch for epoch, _ in curves[0]]
            means = [round(sum(c[i][1] for c in curves) / len(curves), DECIMALS) for i in range(len(epochs))]
            axis.plot(epochs, means, label=f"{display(method)} (n = {len(curves)})", markersize=3, **style)
        epochs_on(axis)
        axis.set_yscale("log")  # one method that diverges would hide the others
        axis.set_ylabel("training loss / loss at chance")
        if methods:
            axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout()
        return finish(
            "loss",
            "Does training go down, and do seeds agree? Mean training loss of each epoch, divided by the loss "
            "of an encoder that tells nothing apart (SimCLR: ln(2n - 1), NNCLR: ln n, supervised: ln of the "
            "number of classes), so that methods can share the axis; methods without such a loss (BYOL, SimSiam, "
            "Barlow Twins) are left out; above 1 is worse than telling nothing apart. Thick: mean over seeds; thin: "
            "each seed.",
            f"Scaled training loss against epoch for {', '.join(map(display, methods)) or 'no method'}",
            figure,
        )


def _curves(gathered: dict[str, Any], method: str) -> list[list[tuple[int, float]]]:
    return [
        [(line["epoch"], round(line["loss"] / line["chance"], DECIMALS)) for line in cell["history"]]
        for cell in gathered["pretraining"]
        if cell["method"] == method and cell["history"] and "chance" in cell["history"][0]
    ]
