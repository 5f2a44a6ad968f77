"""How a training step's cost grows with support set, memory bank and batch: counted, and measured beside."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from bench.exhibits.base import DECIMALS, Figure, Table, display, drawing, finish, look

Point = Mapping[str, Any]
"""A step: method, axis (what grows), value, batch, ms, flops, bytes (of the method's state), n, cpu, date, commit."""

GROWS = {"support_size": "support set", "bank": "memory bank", "batch": "batch"}
COSTS = {"ms": ("time", 1.0), "flops": ("operations", 1e9), "bytes": ("memory", 1e6)}
NUMBERS = {"value": int, "batch": int, "ms": float, "flops": int, "bytes": int, "n": int}


def point(text: Mapping[str, str]) -> dict[str, Any]:
    """A line of growth.csv, with its numbers as such."""
    return {name: NUMBERS.get(name, str)(each) for name, each in text.items()}


def growth_table(points: Sequence[Point]) -> Table | None:
    """Each step's cost, and how many times that of the smallest of its series; None where nothing was measured."""
    if not points:
        return None
    rows, data = [], []
    for series in _series(points):
        for each in series:
            times = _times(each, series[0])
            costs = [f"{each[cost] / unit:,.1f}" for cost, (_, unit) in COSTS.items()]
            rows.append([display(each["method"]), GROWS[each["axis"]], f"{each['value']:,}", str(each["batch"])])
            rows[-1] += [*costs, *(f"{times[cost]:.2f}" for cost in COSTS)]
            data.append({name: each[name] for name in ("method", "axis", *NUMBERS)})
            data[-1] |= {f"{cost}_over_smallest": round(times[cost], DECIMALS) for cost in COSTS}
    columns = ["Method", "grows", "to", "batch", "ms", "GFLOP", "MB", "x ms", "x GFLOP", "x MB"]
    caption = (
        "What a training step costs as support set, memory bank or batch grows, on 32x32x3 images with a small conv4. "
        "GFLOP: counted operations (of matrix products and convolutions); MB: the method's state, parameters and past "
        "embeddings; ms: measured, so that only their ratios say something of another machine. x: over the smallest of "
        f"the series. {_origin(points)}"
    )
    return Table("growth", caption, columns, rows, data)


def growth_figure(points: Sequence[Point], methods: Sequence[str]) -> Figure | None:
    """A panel for each thing that grows; None where nothing was measured.

    Args:
        points: all steps.
        methods: in the order that gives them their looks.
    """
    if not points:
        return None
    order = list(dict.fromkeys([*methods, *(each["method"] for each in points)]))
    axes_of = {axis: list(series) for axis, series in groupby(_series(points), key=lambda s: s[0]["axis"])}
    with drawing("growth") as plt:
        figure, axes = plt.subplots(1, len(axes_of), figsize=(3.0 * len(axes_of) + 1.4, 2.8), squeeze=False)
        for axis, (name, several) in zip(axes[0], axes_of.items(), strict=True):
            axis.set(xscale="log", yscale="log", xlabel=GROWS[name])
            if len(several) == 1:
                _draw_costs(axis, several[0])
            else:
                _draw_times(axis, several, order)
        figure.tight_layout()
        return finish(
            "growth",
            "What does a larger support set, memory bank or batch cost? One method: measured time, counted operations "
            "and held memory of a step, over those of the smallest; several: measured time. Both axes are logarithmic. "
            f"{_origin(points)}",
            f"Cost of a training step against {', '.join(GROWS[name] for name in axes_of)}",
            figure,
        )


def _draw_costs(axis: Any, series: Sequence[Point]) -> None:
    sizes = [each["value"] for each in series]
    for cost, (name, _) in COSTS.items():
        times = [round(_times(each, series[0])[cost], DECIMALS) for each in series]
        axis.plot(sizes, times, label=name, markersize=3, **look(cost, list(COSTS)))
    axis.set_title(display(series[0]["method"]))
    axis.set_ylabel("over the smallest")
    axis.legend(frameon=False, fontsize=7)


def _draw_times(axis: Any, several: Sequence[Sequence[Point]], order: Sequence[str]) -> None:
    for series in several:
        method = series[0]["method"]
        sizes, times = [each["value"] for each in series], [each["ms"] for each in series]
        axis.plot(sizes, times, label=display(method), markersize=3, **look(method, order))
    sizes = sorted({each["value"] for series in several for each in series})
    axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axis.set_xticks([], minor=True)
    axis.set_ylabel("ms / step")
    axis.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _series(points: Sequence[Point]) -> list[list[Point]]:
    """Steps that differ in what grows alone, in the order given."""
    return [list(series) for _, series in groupby(points, key=lambda each: (each["axis"], each["method"]))]


def _times(each: Point, smallest: Point) -> dict[str, float]:
    return {cost: each[cost] / smallest[cost] for cost in COSTS}


def _origin(points: Sequence[Point]) -> str:
    """Where the times come from."""
    origins = dict.fromkeys((each["n"], each["cpu"], each["date"], each["commit"]) for each in points)
    return " ".join(f"Times: medians of {n} on {cpu}, {date}, commit {commit}." for n, cpu, date, commit in origins)
