"""The claims ledger: what each claim of the papers comes to here, as a pure function of claims and gathered studies.

A verdict is `reproduced` where the interval of the paired difference over seeds lies wholly beyond the margin,
`contradicted` where wholly on the other side, else `inconclusive`. A paper's primary claims must also hold after Holm's
correction over all of them, tested or not. Below five seeds nothing is concluded. Published numbers decide nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bench.claims.evidence import Evidence
from bench.claims.paper import MIN_SEEDS, Claim, Entry, Paper, Untested, out_of_scope
from bench.claims.predicates import UntestableError
from bench.claims.quantities import Measured, measure
from bench.claims.studies import MAIN, Study
from bench.published import dagger, of_groups
from bench.stats import LEVEL, holm

Verdict = Literal["reproduced", "contradicted", "inconclusive", "not testable here"]
VERDICTS: tuple[Verdict, ...] = ("reproduced", "contradicted", "inconclusive", "not testable here")


@dataclass(frozen=True)
class Line:
    """One claim's line.

    Args:
        claim: its id.
        paper: whose.
        statement: in our words.
        place: in the paper, with a dagger where it was recalled.
        published: what the paper gives, for reading beside it.
        verdict: one of `VERDICTS`.
        reason: why it is no more than inconclusive, or not testable.
        study: that tests it.
        metric: that was measured.
        rule: what had to hold.
        decides: the comparison that decided, of a rule of several.
        estimate: its mean over seeds; a ratio where the rule divides.
        low: lower end of its interval.
        high: upper end.
        level: the interval's coverage: 95 %, or more where several comparisons had their chance.
        margin: the claim's.
        n: seeds.
        detectable: the smallest distance from the margin that so many seeds find in 80 % of experiments.
        p: two-sided.
        holm: p after the correction; of primary claims only.
        primary: whether it is one.
        cells: keys of the cells that were read.
        seeds: that were compared.
        command: computes it again.
    """

    claim: str
    paper: str
    statement: str
    place: str
    published: tuple[str, ...]
    verdict: Verdict
    reason: str = ""
    study: str = ""
    metric: str = ""
    rule: str = ""
    decides: str = ""
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    margin: float | None = None
    n: int = 0
    detectable: float | None = None
    p: float | None = None
    holm: float | None = None
    primary: bool = False
    cells: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    command: str = ""


def ledger(
    papers: Mapping[str, Paper],
    studies: Mapping[str, Study],
    *,
    least_seeds: int = MIN_SEEDS,
    reasons: Mapping[str, str] | None = None,
) -> list[Line]:
    """A line for each claim of each paper, in the order of the files.

    Args:
        papers: as `bench.claims.paper.load` gives them.
        studies: as `bench.claims.quantities.studies_of` gives them.
        least_seeds: fewer conclude nothing; lowered only to test the rules themselves.
        reasons: why some claims are not tested, by name; those of `out_of_scope.yaml` unless given.
    """
    known = out_of_scope() if reasons is None else reasons
    lines: list[Line] = []
    for paper in papers.values():
        tested = [_line(paper, claim, studies, least_seeds) for claim in paper.claims]
        lines += [*_corrected(tested), *(_untested(paper, claim, known) for claim in paper.untested)]
    return lines


def _line(paper: Paper, claim: Claim, studies: Mapping[str, Study], least_seeds: int) -> Line:
    command = "dvc repro report" if claim.study == MAIN else f"dvc repro study@{claim.study} report"
    line = replace(
        _start(paper, claim),
        study=claim.study,
        metric=", ".join(claim.quantity.metrics()),
        rule=claim.predicate.rule,
        margin=claim.margin,
        primary=claim.primary,
        command=command,
    )
    if claim.study not in studies:
        return replace(line, reason=f"this profile judges no study '{claim.study}'", command="")
    try:
        measured = measure(claim.quantity, studies[claim.study]).common()
        for problem in claim.predicate.problems(list(measured.levels)):
            raise UntestableError(problem)
        line = replace(line, verdict="inconclusive", n=len(measured.seeds), seeds=measured.seeds, cells=measured.keys)
        return _judged(line, claim, measured, least_seeds)
    except UntestableError as error:
        return replace(line, verdict="not testable here", reason=str(error))


def _judged(line: Line, claim: Claim, measured: Measured, least_seeds: int) -> Line:
    """The line with what the seeds say."""
    odd = [(label, s) for label, values in measured.levels.items() for s, v in values.items() if not math.isfinite(v)]
    if odd:
        return replace(line, reason=f"{odd[0][0]} at seed {odd[0][1]} is not finite")
    if line.n < 2:
        return replace(line, reason=_too_few(line.n, least_seeds))
    line = _numbers(line, claim.predicate.judge(measured.levels, claim.margin))
    if line.n < least_seeds:
        return replace(line, verdict="inconclusive", reason=_too_few(line.n, least_seeds), p=None)
    return line


def _too_few(n: int, least: int) -> str:
    names = {5: "five"}
    return f"{n} seed{'' if n == 1 else 's'}; {names.get(least, least)} are needed"


def _numbers(line: Line, evidence: Evidence) -> Line:
    side = evidence.surer
    estimate, low, high = side.decides.shown(side.level)
    return replace(
        line,
        verdict=evidence.verdict,
        reason="the interval reaches over the margin" if evidence.verdict == "inconclusive" else "",
        decides=side.decides.name,
        estimate=estimate,
        low=low,
        high=high,
        level=side.level,
        detectable=side.decides.detectable(side.level),
        p=evidence.p,
    )


def _corrected(lines: Sequence[Line]) -> list[Line]:
    """Holm's correction over one paper's primary claims; one without a p counts as p = 1."""
    family = [i for i, line in enumerate(lines) if line.primary]
    found = list(lines)
    known = [1.0 if p is None else p for p in (lines[i].p for i in family)]
    for i, p in zip(family, holm(known), strict=True):
        if lines[i].p is None:
            continue
        found[i] = replace(lines[i], holm=p)
        if p > 1 - LEVEL and lines[i].verdict != "inconclusive":
            reason = f"{lines[i].verdict} by itself (p {lines[i].p:.2g}), not among {len(family)} primary claims"
            found[i] = replace(found[i], verdict="inconclusive", reason=reason)
    return found


def _untested(paper: Paper, claim: Untested, reasons: Mapping[str, str]) -> Line:
    return replace(_start(paper, claim), reason=reasons.get(claim.reason, claim.reason))


def _start(paper: Paper, claim: Entry) -> Line:
    place = claim.source.place + dagger(claim.source.certainty)
    rows = tuple(str(row) for row in of_groups(claim.published))
    return Line(claim.id, paper.paper, claim.statement, place, rows, "not testable here")
