"""Claims beside the studies that params.yaml has: what cannot be tested is refused before anything runs."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from bench.claims.paper import MIN_SEEDS, Claim, ClaimsError, Paper
from bench.claims.predicates import UntestableError
from bench.claims.quantities import AGREEMENT
from bench.claims.studies import MAIN, METHOD, Study, matches, text_of
from bench.registry import nearest_hint


def check(
    papers: Mapping[str, Paper],
    known: Mapping[str, Collection[str]],
    seeds: Mapping[str, int] | None = None,
    studies: Mapping[str, Study] | None = None,
) -> None:
    """Refuse claims that the studies cannot test.

    Args:
        papers: as `load` gives them.
        known: the metrics of each study that params.yaml has; `linear.*` stands for any of a protocol.
        seeds: how many seeds each study has, where that is to be checked.
        studies: each study's points, as `report_plan` has them, where claims' levels and methods are to be checked.

    Raises:
        ClaimsError: an unknown study, metric or level, or fewer seeds than a verdict needs.
    """
    lines = [
        f"{name}.yaml: claim '{claim.id}': {line}"
        for name, paper in papers.items()
        for claim in paper.claims
        for line in _misfits(claim, known, seeds or {}, studies or {})
    ]
    if lines:
        raise ClaimsError("\n".join(lines))


def check_plan(papers: Mapping[str, Paper], plan: Mapping[str, Any]) -> None:
    """Refuse claims that a plan is to judge and cannot test.

    Args:
        papers: as `load` gives them.
        plan: as `bench.plan.report_plan` gives it; its `judged` names studies, or single claims of one that has fewer
            levels here than its other claims want.

    Raises:
        ClaimsError: as `check`, or there is no such study or claim.
    """
    main = {"protocols": plan["protocols"], "points": [{"levels": {}, "cells": plan["cells"]}]}
    studies = {**plan["studies"], MAIN: main}
    seeds = {
        name: min(len({cell["seed"] for cell in point["cells"]}) for point in study["points"])
        for name, study in studies.items()
    }
    allowed = {**studies, **{claim.id: claim for paper in papers.values() for claim in paper.claims}}
    for name in plan["judged"]:
        if name not in allowed:
            raise ClaimsError(f"params.yaml: judged: unknown study or claim '{name}'; {nearest_hint(name, allowed)}")
    known = {name: planned_metrics(study) for name, study in studies.items()}
    check(judged(papers, plan["judged"]), known, seeds, studies)


def judged(papers: Mapping[str, Paper], names: Collection[str]) -> dict[str, Paper]:
    """The papers with some claims alone: those named, and all on the studies named."""
    return {
        name: paper.model_copy(update={"claims": [c for c in paper.claims if c.study in names or c.id in names]})
        for name, paper in papers.items()
    }


def planned_metrics(study: Mapping[str, Any]) -> set[str]:
    """What `check` may know of a study before it has run: any metric of its protocols and of training."""
    return {*(f"{protocol}.*" for protocol in study["protocols"]), "history.*", "cost.*"}


def _misfits(
    claim: Claim, known: Mapping[str, Collection[str]], seeds: Mapping[str, int], studies: Mapping[str, Study]
) -> Iterator[str]:
    if claim.planned:
        if claim.study in known:
            yield f"planned: there is a study '{claim.study}' now; remove this key"
        return
    if claim.study not in known:
        yield f"study: unknown '{claim.study}'; {nearest_hint(claim.study, known)}"
        return
    for metric in claim.quantity.metrics():
        if not any(fnmatchcase(metric, pattern) for pattern in known[claim.study]):
            yield f"metric: unknown '{metric}'; {nearest_hint(metric, known[claim.study])}"
    n = seeds.get(claim.study, MIN_SEEDS)
    if n < MIN_SEEDS:
        yield f"study '{claim.study}' has {n} seeds; {MIN_SEEDS} are needed"
    if claim.study in studies:
        yield from _missing_levels(claim, studies[claim.study])


def _missing_levels(claim: Claim, study: Study) -> Iterator[str]:
    try:
        selectors = claim.quantity.selectors(study)
    except UntestableError as error:
        yield f"quantity: {error}"
        return
    for label, chosen in selectors.items():
        for selector in chosen:
            points = [point for point in study["points"] if matches(point["levels"], selector)]
            if not points:
                yield f"level '{label}': no point of study '{claim.study}' has {text_of(selector)}"
            else:
                yield from (f"level '{label}': {line}" for line in _unknown_method(selector, points))
    if claim.quantity.curve is None:
        labels = list(selectors) if claim.quantity.agreement is None else [AGREEMENT]
        yield from (f"predicate: {line}" for line in claim.predicate.problems(labels))


def _unknown_method(selector: Mapping[str, Any], points: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    methods = {cell["method"] for point in points for cell in point.get("cells", [])}
    wanted = selector.get(METHOD)
    if methods and wanted is not None and wanted not in methods:
        yield f"method: no cell of '{wanted}'; {nearest_hint(wanted, methods)}"
