"""Columns of a study's histories against the epoch: the curves that its entry in params.yaml names."""

from collections.abc import Iterator
from typing import Any

from bench.errors import BenchError
from bench.exhibits.base import Figure, drawing, epochs_on, finish, look
from bench.exhibits.study import level_texts, paths, remarks, short, subject
from bench.registry import nearest_hint
from bench.stats import t_interval

DIGITS = 6  # that are kept of a value, whatever its size: noise of the last bits must not reach a file


class UnknownCurveError(BenchError, ValueError):
    """A curve that no history of its study has."""


def study_curves(name: str, study: dict[str, Any]) -> Iterator[Figure]:
    """A figure of each column that `curves` names: a line per point, the mean over seeds with its interval.

    Raises:
        UnknownCurveError: a name that no history has.
    """
    histories = [cell["history"] for point in study["points"] for cell in point["pretraining"]]
    known = {column for history in histories for line in history for column in line}
    for column in study["curves"] if histories else []:  # of what is missing nothing is known
        if column not in known:
            raise UnknownCurveError(
                f"studies.{name}.curves: no history of this study has '{column}'; {nearest_hint(column, known)}"
            )
        yield _figure(name, study, column)


def _figure(name: str, study: dict[str, Any], column: str) -> Figure:
    title, shown = column.replace("_", " "), f"study_{name}_{column}"
    curves = [(point["levels"], _curve(point, column)) for point in study["points"]]
    labels = [" / ".join(level_texts(levels)) for levels, _ in curves]
    with drawing(shown) as plt:
        figure, axis = plt.subplots(figsize=(6.4, 3.2))
        for (_, lines), label in zip(curves, labels, strict=True):
            if lines:
                _draw(axis, lines, f"{label} (n = {max(line['n'] for line in lines)})", look(label, labels))
        epochs_on(axis)
        axis.set_ylabel(title)
        by = " / ".join(map(short, paths(study)))
        axis.legend(frameon=False, fontsize=7, title=by, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        figure.tight_layout()
        return finish(
            shown,
            f"How does {title} of {subject(study)} go with training? After each epoch, the mean over n seeds and, as a "
            f"band, its 95 % Student t interval; a point whose histories have no such column has no line."
            f"{remarks(study)}",
            f"{title} of {subject(study)} against epoch, by {by}",
            figure,
            [{**levels, **line} for levels, lines in curves for line in lines],
        )


def _draw(axis: Any, lines: list[dict[str, Any]], label: str, style: dict[str, Any]) -> None:
    epochs, means = ([line[part] for line in lines] for part in ("epoch", "mean"))
    halves = [line["half_width_95"] or 0.0 for line in lines]
    low, high = ([m + sign * half for m, half in zip(means, halves, strict=True)] for sign in (-1, 1))
    axis.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axis.plot(epochs, means, label=label, markersize=3, **style)


def _curve(point: dict[str, Any], column: str) -> list[dict[str, Any]]:
    """A column's mean after each epoch at which a history has it."""
    by_epoch: dict[int, list[float]] = {}
    for cell in sorted(point["pretraining"], key=lambda cell: cell["seed"]):
        for line in cell["history"]:
            if column in line:
                by_epoch.setdefault(line["epoch"], []).append(line[column])
    return [_line(epoch, by_epoch[epoch]) for epoch in sorted(by_epoch)]


def _line(epoch: int, values: list[float]) -> dict[str, Any]:
    interval = t_interval(values)
    half = "" if interval.half is None else _rounded(interval.half)
    seeds = " ".join(f"{value:.{DIGITS}g}" for value in values)
    return {"epoch": epoch, "mean": _rounded(interval.mean), "half_width_95": half, "n": interval.n, "seeds": seeds}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
