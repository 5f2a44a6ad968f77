"""A study's table and figure: what each level gives, with an interval and every seed."""

from typing import Any

from bench.exhibits.base import COLOURS, DECIMALS, Figure, Table, display, drawing, finish, percent
from bench.stats import t_interval


def study_table(name: str, study: dict[str, Any]) -> Table:
    """Levels down, protocols across: mean and 95 % interval over seeds."""
    paths = list(study["vary"])
    rows, data = [], []
    for point in study["points"]:
        texts, n = [], 0
        for protocol in study["protocols"]:
            values = _values(point, protocol)
            if not values:
                texts.append("not run")
                continue
            interval = t_interval(values)
            texts.append(percent(interval))
            n = interval.n
            half = "" if interval.half is None else round(interval.half, DECIMALS)
            data.append(
                {**point["levels"], "protocol": protocol, "mean": round(interval.mean, DECIMALS)}
                | {"half_width_95": half, "n": n, "seeds": " ".join(f"{v:.6g}" for v in values)}
            )
        rows.append([*(str(level) for level in point["levels"].values()), str(n), *texts])
    columns = [*(_short(path) for path in paths), "n", *study["protocols"]]
    caption = (
        f"{display(study['base'])} by {' and '.join(map(_short, paths))}: accuracy (%), mean ± half-width of the "
        "95 % Student t interval over n seeds."
    )
    return Table(f"study_{name}", caption, columns, rows, data)


def study_figure(name: str, study: dict[str, Any]) -> Figure:
    """A panel per protocol: mean with interval, and a point for each seed, in the order of the levels."""
    ticks = [" / ".join(str(v) for v in point["levels"].values()) for point in study["points"]]
    with drawing(f"study_{name}") as plt:
        count = len(study["protocols"])
        figure, axes = plt.subplots(1, count, figsize=(3.3 * count, 2.6), squeeze=False)
        for axis, protocol in zip(axes[0], study["protocols"], strict=True):
            for x, point in enumerate(study["points"]):
                values = [round(100 * v, DECIMALS) for v in _values(point, protocol)]
                if not values:
                    continue
                interval = t_interval(values)
                axis.plot([x + 0.12] * len(values), values, "o", color=COLOURS[1], markersize=2.5)
                bar = [[interval.half or 0.0], [interval.half or 0.0]]
                axis.errorbar([x], [interval.mean], yerr=bar, fmt="s", color=COLOURS[0], capsize=3)
            axis.set_xticks(range(len(ticks)), ticks)
            axis.set_xlim(-0.5, len(ticks) - 0.5)
            axis.set_xlabel(" / ".join(map(_short, study["vary"])))
            axis.set_ylabel("accuracy (%)")
            axis.set_title(protocol)
        figure.tight_layout()
        return finish(
            f"study_{name}",
            f"Does {' or '.join(map(_short, study['vary']))} matter to {display(study['base'])}? Squares: mean "
            "over seeds with its 95 % Student t interval; dots: each seed.",
            f"Accuracy of {display(study['base'])} against {', '.join(study['vary'])}",
            figure,
        )


def _values(point: dict[str, Any], protocol: str) -> list[float]:
    """The protocol's headline metric of each seed, in the order of seeds."""
    cells = sorted((c for c in point["evaluations"] if c["protocol"] == protocol), key=lambda c: c["seed"])
    return [next(iter(cell["metrics"].values())) for cell in cells]


def _short(path: str) -> str:
    return path.rpartition(".")[2].replace("_", " ")
