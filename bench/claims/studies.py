"""Gathered cells by a study's levels: which cells a claim means, and what they hold.

A study is `{"points": [{"levels", "pretraining", "evaluations"}]}` as `bench.records.gather` gives it. A metric is
`PROTOCOL.NAME` (`linear.top1`), `history.NAME` (the last epoch's) or `cost.NAME`.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from bench.claims.predicates import UntestableError
from bench.registry import nearest_hint

Study = Mapping[str, Any]
MAIN = "main"  # the main table, as a study of one point
METHOD = "method"  # in a selector: whose cells, rather than a level
TRAINED = ("history", "cost")  # what pretraining cells hold


def pick(study: Study, selector: Mapping[str, Any], metric: str, keys: dict[str, None]) -> dict[int, float]:
    """A metric by seed, of the one point and method that a selector names; adds the cells' keys to `keys`."""
    source, _, name = metric.partition(".")
    found: dict[int, float] = {}
    for cell in cells(study, selector, source):
        values = _reading(cell, source)
        if name not in values:
            raise UntestableError(f"no metric '{metric}'; {nearest_hint(name, values)}")
        refuse_second(selector, cell, found)
        found[cell["seed"]] = float(values[name])
        keys[cell["key"]] = None
    return found


def refuse_second(selector: Mapping[str, Any], cell: Mapping[str, Any], found: Collection[int]) -> None:
    """Refuse a second value of one seed."""
    if cell["seed"] in found:
        raise UntestableError(f"{text_of(selector)} names several settings of seed {cell['seed']}; name one")


def _reading(cell: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """What a cell holds of a source: of a history, its last line."""
    if source == "history":
        return cell["history"][-1] if cell["history"] else {}
    return cell["cost"] if source == "cost" else cell["metrics"]


def cells(study: Study, selector: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """The cells of a metric's source, of the points that a selector names.

    Raises:
        UntestableError: no point has these levels, or none of them has such a cell.
    """
    points = [point for point in study["points"] if matches(point["levels"], selector)]
    if not points:
        raise UntestableError(f"no point of the study has {text_of(selector)}")
    group, wanted = ("pretraining", None) if source in TRAINED else ("evaluations", source)
    found = [c for p in points for c in p[group] if METHOD not in selector or c["method"] == selector[METHOD]]
    if wanted is not None:
        found = [cell for cell in found if cell["protocol"] == wanted]
    if not found:
        raise UntestableError(f"no cell of {source} with {text_of(selector)}")
    return found


def matches(levels: Mapping[str, Any], selector: Mapping[str, Any]) -> bool:
    """Whether a point has these levels; a path may be given by its last parts, and is that of one level only."""
    chosen = {path: value for path, value in selector.items() if path != METHOD or METHOD in levels}
    return all(any(_ends(full, path) and levels[full] == value for full in levels) for path, value in chosen.items())


def label_of(value: Any) -> str:
    """A level's label: itself, or as JSON writes it (null, true, [1, 2])."""
    return value if isinstance(value, str) else json.dumps(value)


def text_of(selector: Mapping[str, Any]) -> str:
    """A selector for people."""
    return ", ".join(f"{path} {label_of(value)}" for path, value in selector.items()) or "any levels"


def studies_of(numbers: Mapping[str, Any]) -> dict[str, Study]:
    """The studies of `bench.records.gather`'s numbers, and the main table as the study `main`."""
    main = {"levels": {}, "pretraining": numbers["pretraining"], "evaluations": numbers["evaluations"]}
    return {**numbers["studies"], MAIN: {"points": [main]}}


def known_metrics(study: Study) -> set[str]:
    """The metrics that a gathered study's cells hold."""
    return {metric for point in study["points"] for metric in _metrics(point)}


def _metrics(point: Mapping[str, Any]) -> Iterator[str]:
    for cell in point["evaluations"]:
        yield from (f"{cell['protocol']}.{name}" for name in cell["metrics"])
    for cell in point["pretraining"]:
        yield from (f"history.{name}" for line in cell["history"] for name in line)
        yield from (f"cost.{name}" for name in cell["cost"])


def values_of(study: Study, path: str) -> list[Any]:
    """The levels that a study gives a path, in its order.

    Raises:
        UntestableError: it varies no such path.
    """
    found: list[Any] = []
    for point in study["points"]:
        found += [v for full, v in point["levels"].items() if _ends(full, path) and v not in found]
    if not found:
        paths = {full for point in study["points"] for full in point["levels"]}
        raise UntestableError(f"the study varies no '{path}'; {nearest_hint(path, paths)}")
    return found


def _ends(full: str, path: str) -> bool:
    return full == path or full.endswith(f".{path}")
