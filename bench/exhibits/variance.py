"""Where the variance over seeds comes from: a study whose points set one source of randomness and leave the others.

A path `....sources.NAME` is a source; its level is the seed that it is drawn by, or None where that is the cell's own.
`evaluations.semisup.draw`, the number of the draw of the labelled rows, is one, too; it is the same for all seeds.
"""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from bench.exhibits.base import COLOURS, DECIMALS, Figure, Table, drawing, finish
from bench.exhibits.study import paths, remarks, short, subject
from bench.stats import Spread, spread

SOURCE = "*.sources.*"
LABELS = "evaluations.semisup.draw"
TOGETHER = "all together"
Values = Mapping[tuple[int, ...], float]  # of cells, by the seed of each source; the cell's own is the last


def varies_sources(study: dict[str, Any]) -> bool:
    """Whether all that a study varies is what sources of randomness are drawn by."""
    return all(fnmatchcase(path, SOURCE) or path == LABELS for path in paths(study))


def _sources(study: dict[str, Any]) -> list[str]:
    return ["labels" if path == LABELS else short(path) for path in paths(study)]


def variance_table(name: str, study: dict[str, Any], gathered: dict[str, Any]) -> Table:
    """Sources down, protocols across: standard deviation with its interval, and share of the sum of variances.

    Args:
        name: the study's.
        study: as gathered.
        gathered: the whole; where its main table trains as the study does, it tells of all sources together.
    """
    protocols = study["protocols"]
    found = {protocol: spreads(study, gathered, protocol) for protocol in protocols}
    sums = {protocol: _sum(found[protocol]) for protocol in protocols}
    rows, data = [], []
    for source in [*_sources(study), TOGETHER]:
        texts = []
        for protocol in protocols:
            own = found[protocol][source]
            share = None if own is None or not sums[protocol] else own.deviation**2 / sums[protocol]
            texts += [_text(own), "–" if share is None else f"{100 * share:.0f} %"]
            if own is not None:
                numbers = {"deviation": own.deviation, "low": own.low, "high": own.high}
                data.append(
                    {"source": source, "protocol": protocol}
                    | {part: round(value, DECIMALS) for part, value in numbers.items()}
                    | {"freedom": own.freedom, "share": "" if share is None else round(share, DECIMALS)}
                )
        freedoms = dict.fromkeys(str(own.freedom) for own in (found[p][source] for p in protocols) if own)
        rows.append([source, ", ".join(freedoms) or "–", *texts])
    columns = ["Varied", "df", *(column for protocol in protocols for column in (protocol, f"{protocol} share"))]
    caption = (
        f"Where the variance of {subject(study)} comes from: standard deviation in percentage points [95 % chi-square "
        "interval of so many degrees of freedom, df] as one source is drawn anew and the others stay, and its share of "
        f"the sum of the sources' variances. {TOGETHER.capitalize()}: over seeds that draw everything anew but the "
        "labelled rows; its share is near 100 % where sources add up and the study has all of them."
        f"{remarks(study)}"
    )
    return Table(f"study_{name}_variance", caption, columns, rows, data)


def variance_figure(name: str, study: dict[str, Any], gathered: dict[str, Any]) -> Figure:
    """A panel per protocol: a bar for each source and one, hatched, for all together."""
    protocols = study["protocols"]
    with drawing(f"study_{name}_variance") as plt:
        figure, axes = plt.subplots(1, len(protocols), figsize=(3.3 * len(protocols), 2.6), squeeze=False)
        for axis, protocol in zip(axes[0], protocols, strict=True):
            found = spreads(study, gathered, protocol)
            for x, (source, own) in enumerate(found.items()):
                if own is not None:
                    _bar(axis, x, own, together=source == TOGETHER)
            axis.set_xticks(range(len(found)), list(found), rotation=30, ha="right")
            axis.set_xlim(-0.6, len(found) - 0.4)
            axis.set_ylim(bottom=0)
            axis.set_ylabel("deviation (points)")
            axis.set_title(protocol)
        figure.tight_layout()
        return finish(
            f"study_{name}_variance",
            f"Which source moves {subject(study)} most? Standard deviation in percentage points with its 95 % "
            f"chi-square interval as one source is drawn anew; hatched: all together.{remarks(study)}",
            f"Standard deviation of {subject(study)} by source of randomness",
            figure,
        )


def _bar(axis: Any, x: int, own: Spread, *, together: bool) -> None:
    deviation, low, high = (round(100 * value, DECIMALS) for value in (own.deviation, own.low, own.high))
    style = {"color": "white", "edgecolor": COLOURS[1], "hatch": "//"} if together else {"color": COLOURS[0]}
    axis.bar([x], [deviation], width=0.6, **style)
    axis.errorbar([x], [deviation], yerr=[[deviation - low], [high - deviation]], capsize=3, color="black")


def spreads(study: dict[str, Any], gathered: dict[str, Any], protocol: str) -> dict[str, Spread | None]:
    """By source, and for all together, the spread of a protocol's headline; None where nothing tells it."""
    sources = _sources(study)
    values = dict(_values(study, protocol))
    found = {source: spread(_groups(values, i)) for i, source in enumerate(sources)}
    return {**found, TOGETHER: spread([_together(study, gathered, protocol)])}


def _values(study: dict[str, Any], protocol: str) -> Iterator[tuple[tuple[int, ...], float]]:
    """A cell that several points share, as the source is nothing to its protocol, counts once: with the first."""
    seen: set[str] = set()
    for point in study["points"]:
        for cell in _of(point["evaluations"], protocol):
            if cell["key"] not in seen:
                seen.add(cell["key"])
                own = (cell["seed"] if level is None else level for level in point["levels"].values())
                yield (*own, cell["seed"]), _headline(cell)


def _groups(values: Values, source: int) -> list[list[float]]:
    """The values of cells that differ by one source alone; a setting that two points stand for counts once."""
    found: dict[tuple[int, ...], list[float]] = {}
    for seeds, value in values.items():
        found.setdefault(seeds[:source] + seeds[source + 1 :], []).append(value)
    return list(found.values())


def _together(study: dict[str, Any], gathered: dict[str, Any], protocol: str) -> list[float]:
    """The method at the main table's seeds, where that trains as the study does; else the point that sets none."""
    if study["data"] == gathered["data"]["name"] and not study["fixed"]:
        cells = [cell for cell in gathered["evaluations"] if cell["method"] == study["base"]]
    else:
        free = [point for point in study["points"] if set(point["levels"].values()) == {None}]
        cells = [cell for point in free for cell in point["evaluations"]]
    return [_headline(cell) for cell in _of(cells, protocol)]


def _of(cells: list[dict[str, Any]], protocol: str) -> list[dict[str, Any]]:
    return sorted((cell for cell in cells if cell["protocol"] == protocol), key=lambda cell: cell["seed"])


def _headline(cell: Mapping[str, Any]) -> float:
    return float(next(iter(cell["metrics"].values())))


def _sum(found: Mapping[str, Spread | None]) -> float:
    return sum(own.deviation**2 for source, own in found.items() if own is not None and source != TOGETHER)


def _text(own: Spread | None) -> str:
    return "–" if own is None else f"{100 * own.deviation:.2f} [{100 * own.low:.2f}, {100 * own.high:.2f}]"
