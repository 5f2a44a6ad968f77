"""A study's table and figure: what each point gives, with an interval and every seed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from statistics import fmean
from typing import Any

from bench.exhibits.base import DECIMALS, Figure, Table, display, drawing, finish, look, percent
from bench.published import UNCHECKED, Published
from bench.settings import METHOD
from bench.stats import t_interval

SPREAD = 0.5  # of a tick's width: what the series of one level share


def study_table(name: str, study: dict[str, Any]) -> Table:
    """Points down, protocols across: mean and 95 % interval over seeds; and what the training cost."""
    rows, data = [], []
    for point in study["points"]:
        texts, n, cost = [], 0, _operations(point)
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
                | {"training_flops": "" if cost is None else round(cost)}
            )
        rows.append([*level_texts(point["levels"]), str(n), "–" if cost is None else f"{cost / 1e12:.2f}", *texts])
    varied = paths(study)
    columns = [*map(short, varied), "n", "TFLOP", *study["protocols"]]
    caption = (
        f"{subject(study)} by {' and '.join(map(short, varied))}: accuracy (%), mean ± half-width of the "
        f"95 % Student t interval over n seeds. TFLOP: counted operations of one training.{remarks(study)}"
    )
    return Table(f"study_{name}", caption, columns, rows, data)


def published_table(name: str, rows: Sequence[Published]) -> Table | None:
    """What the papers published of the same question, a number a row; None where that is nothing.

    A row's level is as its paper names it: at other images, encoders and lengths of training it is no level of ours.
    """
    if not rows:
        return None
    shown = [[row.who, row.data, row.metric, row.shown, f"{row.paper}, {row.place}", row.certainty] for row in rows]
    caption = (
        "What was published of it, at the papers' own images, encoders and lengths of training, so that levels are to "
        "be compared with each other and not with ours. Certainty: noted (in notes on the paper), repository (in a "
        f"public repository or page), recalled. {UNCHECKED}."
    )
    columns = ["Published", "Images", "Metric", "Value", "Place", "Certainty"]
    return Table(f"study_{name}_published", caption, columns, shown, [asdict(row) for row in rows])


def study_figure(name: str, study: dict[str, Any]) -> Figure:
    """A panel per protocol: mean with interval, and a point for each seed.

    Levels of the last path stand along the axis; every combination of the others is a series of its own.
    """
    varied, series = paths(study), _all_series(study)
    ticks = list(dict.fromkeys(level_texts(point["levels"])[-1] for point in study["points"]))
    with drawing(f"study_{name}") as plt:
        with _panels(plt, study, series) as (figure, axes):
            for axis, protocol in zip(axes, study["protocols"], strict=True):
                for point in study["points"]:
                    own = _series(point)
                    tick = ticks.index(level_texts(point["levels"])[-1])
                    aside = SPREAD * ((series.index(own) + 0.5) / len(series) - 0.5)
                    _draw(axis, tick + aside, _values(point, protocol), _look(own, series))
                axis.set_xticks(range(len(ticks)), ticks)
                axis.set_xlim(-0.5, len(ticks) - 0.5)
                axis.set_xlabel(short(varied[-1]))
        return finish(
            f"study_{name}",
            f"Does {' or '.join(map(short, varied))} matter to {subject(study)}? Large marks: mean over seeds with "
            f"its 95 % Student t interval; small ones: each seed.{remarks(study)}",
            f"Accuracy of {subject(study)} against {', '.join(map(short, varied))}",
            figure,
        )


def compute_figure(name: str, study: dict[str, Any]) -> Figure | None:
    """A panel per protocol: accuracy against the counted operations of training, a line for each series.

    None where no length of training is varied: then points of equal epochs are what is to be compared.
    """
    if short(paths(study)[-1]) != "epochs":
        return None
    series = _all_series(study)
    with drawing(f"study_{name}_compute") as plt:
        with _panels(plt, study, series) as (figure, axes):
            for axis, protocol in zip(axes, study["protocols"], strict=True):
                for own in series:
                    points = [point for point in study["points"] if _series(point) == own]
                    found = [(_operations(point), _values(point, protocol)) for point in points]
                    drawn = sorted((cost / 1e12, values) for cost, values in found if cost and values)
                    for x, values in drawn:
                        _draw(axis, round(x, DECIMALS), values, _look(own, series), aside=0.0)
                    means = [fmean(values) for _, values in drawn]
                    axis.plot(
                        [round(x, DECIMALS) for x, _ in drawn],
                        [round(100 * mean, DECIMALS) for mean in means],
                        **look(own, series) | {"marker": ""},
                    )
                axis.set_xscale("log")
                axis.set_xlabel("TFLOP of training")
        return finish(
            f"study_{name}_compute",
            f"What does more training bring {subject(study)} at equal compute? Accuracy against the counted operations "
            f"of one training; large marks: mean over seeds with its 95 % Student t interval.{remarks(study)}",
            f"Accuracy of {subject(study)} against counted operations of training",
            figure,
        )


def _all_series(study: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(_series(point) for point in study["points"]))


@contextmanager
def _panels(plt: Any, study: dict[str, Any], series: list[str]) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes, one for each protocol; once drawn, the first gets a key where there are several series."""
    count = len(study["protocols"])
    figure, axes = plt.subplots(1, count, figsize=(3.3 * count, 2.6), squeeze=False)
    for axis, protocol in zip(axes[0], study["protocols"], strict=True):
        axis.set_ylabel("accuracy (%)")
        axis.set_title(protocol)
    yield figure, axes[0]
    if len(series) > 1:
        title = " / ".join(map(short, paths(study)[:-1]))
        axes[0][0].legend(*_key(axes[0][0], series), fontsize=7, title=title)
    figure.tight_layout()


def _operations(point: dict[str, Any]) -> float | None:
    """Counted operations of one training, equal at all seeds; None where nothing was trained."""
    return next((cell["cost"]["flops"] for cell in point["pretraining"] if cell["cost"]["flops"]), None)


def _look(name: str, series: list[str]) -> dict[str, Any]:
    """A series' colour and marker: points along an axis of names are no line."""
    return {**look(name, series), "linestyle": "None", "markersize": 4}


def _draw(axis: Any, x: float, values: list[float], style: dict[str, Any], aside: float = 0.06) -> None:
    if not values:
        return
    shown = [round(100 * v, DECIMALS) for v in values]
    interval = t_interval(shown)
    axis.plot([x + aside] * len(shown), shown, ".", color=style["color"], alpha=0.5, markersize=3)
    half = interval.half or 0.0
    axis.errorbar([x], [interval.mean], yerr=[[half], [half]], capsize=3, **style)


def _key(axis: Any, series: list[str]) -> tuple[list[Any], list[str]]:
    """A mark for each series, as a legend wants them."""
    return [axis.plot([], [], **_look(name, series))[0] for name in series], series


def _values(point: dict[str, Any], protocol: str) -> list[float]:
    """The protocol's headline metric of each seed, in the order of seeds."""
    cells = sorted((c for c in point["evaluations"] if c["protocol"] == protocol), key=lambda c: c["seed"])
    return [next(iter(cell["metrics"].values())) for cell in cells]


def paths(study: dict[str, Any]) -> list[str]:
    """What it varies, as dotted paths."""
    return list(study["points"][0]["levels"])


def level_texts(levels: dict[str, Any]) -> list[str]:
    """A point's levels as they are printed."""
    return [display(str(level)) if path == METHOD else str(level) for path, level in levels.items()]


def _series(point: dict[str, Any]) -> str:
    return " / ".join(level_texts(point["levels"])[:-1])


def subject(study: dict[str, Any]) -> str:
    """What is varied: the study's method, or all of those that it compares."""
    methods = [point["levels"].get(METHOD, study["base"]) for point in study["points"]]
    return ", ".join(map(display, dict.fromkeys(methods)))


def remarks(study: dict[str, Any]) -> str:
    """What a reader must know of the image set, and what every point shares."""
    shared = ", ".join(f"{path} = {value}" for path, value in study["fixed"].items())
    return "".join(
        [
            f" Images: {study['data']}{', ' + study['caption'] if study['caption'] else ''}.",
            f" Everywhere {shared}." if shared else "",
        ]
    )


def short(path: str) -> str:
    """The last part of a path, for people."""
    return path.rpartition(".")[2].replace("_", " ")
