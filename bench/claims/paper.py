"""bench/papers/*.yaml: the claims of each paper, as data; anything unknown or missing is an error that names it.

A paper's primary claims are marked before any run, six at most: false verdicts are kept within 5 % over all of them.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import MinLen
from pydantic import BaseModel, ValidationError

from bench.claims.predicates import AnyPredicate
from bench.claims.quantities import Quantity
from bench.errors import BenchError
from bench.published import PAPERS, Published, of_groups, published
from bench.refusals import refusals
from bench.registry import nearest_hint
from bench.strict import Strict
from bench.yaml12 import read

MIN_SEEDS = 5  # for a verdict: at three, a t interval is 2.5 standard deviations wide either way, at five 1.2
MOST_PRIMARY = 6  # of a paper
SCOPE = "out_of_scope.yaml"  # what no claim is tested on, each once, with its reason

Text = Annotated[str, MinLen(1)]
M = TypeVar("M", bound=BaseModel)
E = TypeVar("E", bound="Entry")


class ClaimsError(BenchError, ValueError):
    """A file of claims that cannot be used; one line for each thing wrong."""


class Source(Strict):
    """Where a statement is from, and how sure we are that the paper has it: see `bench.published.CERTAINTIES`."""

    place: Text
    certainty: Literal["noted", "repository", "recalled"]


class Entry(Strict):
    """What every claim has.

    Args:
        id: unique over all papers.
        statement: in our words.
        source: its place in the paper.
        published: groups of `published.csv` to show beside it.
    """

    id: Text
    statement: Text
    source: Source
    published: list[str]


class Untested(Entry):
    """A claim that is not tested here, for a reason of `out_of_scope.yaml`."""

    reason: Text


class Claim(Entry):
    """A claim that a study tests.

    Args:
        study: of params.yaml, or `main` for the main table.
        quantity: what is measured, and its levels.
        predicate: what is said of the levels.
        margin: see `bench.claims.predicates`.
        primary: one of the paper's six at most.
        planned: params.yaml has no such study yet; the claim is not testable until it does.
    """

    study: Text
    quantity: Quantity
    predicate: AnyPredicate
    margin: float
    primary: bool
    planned: bool = False


class Paper(Strict):
    """One paper's file."""

    paper: Text
    claims: list[Claim]
    untested: list[Untested]


class _File(Strict):
    paper: Text
    claims: list[dict[str, Any]]
    untested: list[dict[str, Any]]


class _Scope(Strict):
    out_of_scope: dict[str, Text]


def load(folder: Path = PAPERS) -> dict[str, Paper]:
    """Every paper's claims, by the file's name.

    Raises:
        ClaimsError: anything unknown, missing, ill-typed or given twice, in any file.
    """
    found, lines = dict[str, Paper](), list[str]()
    reasons = out_of_scope(folder)
    for path in sorted(folder.glob("*.yaml")):
        if path.name == SCOPE:
            continue
        try:
            found[path.stem] = _read(path)
        except ClaimsError as error:
            lines.append(str(error))
    lines += [*_twice(found), *(line for name, paper in found.items() for line in _faults(name, paper, reasons))]
    if lines:
        raise ClaimsError("\n".join(lines))
    return found


def published_beside(papers: Mapping[str, Paper], study: str) -> list[Published]:
    """What the claims that name a study want shown beside it, each row once."""
    claims = (claim for paper in papers.values() for claim in paper.claims if claim.study == study)
    return of_groups(dict.fromkeys(group for claim in claims for group in claim.published))


def out_of_scope(folder: Path = PAPERS) -> dict[str, str]:
    """Why some claims are not tested here, by name."""
    path = folder / SCOPE
    return _validated(_Scope, read(path, path.name, ClaimsError), path.name).out_of_scope if path.is_file() else {}


def _read(path: Path) -> Paper:
    file = _validated(_File, read(path, path.name, ClaimsError), path.name)
    lines: list[str] = []
    claims = _entries(path, file.claims, Claim, lines)
    untested = _entries(path, file.untested, Untested, lines)
    if lines:
        raise ClaimsError("\n".join(lines))
    return Paper(paper=file.paper, claims=claims, untested=untested)


def _entries(path: Path, raw: list[dict[str, Any]], model: type[E], lines: list[str]) -> list[E]:
    """The entries that are sound; what is wrong with the others goes to `lines`."""
    found = []
    for entry in raw:
        try:
            found.append(_validated(model, entry, f"{path.name}: claim '{entry.get('id', '(no id)')}'"))
        except ClaimsError as error:
            lines.append(str(error))
    return found


def _validated(model: type[M], raw: Any, where: str) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ClaimsError("\n".join(f"{where}: {line}" for line in refusals(error, model))) from None


def _twice(papers: Mapping[str, Paper]) -> Iterator[str]:
    seen: dict[str, str] = {}
    for name, paper in papers.items():
        entries: list[Entry] = [*paper.claims, *paper.untested]
        for claim in entries:
            if claim.id in seen:
                yield f"{name}.yaml: claim '{claim.id}': its id is given twice, first in {seen[claim.id]}.yaml"
            seen.setdefault(claim.id, name)


def _faults(name: str, paper: Paper, reasons: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with a file whose entries are sound by themselves."""
    primary = [claim.id for claim in paper.claims if claim.primary]
    if len(primary) > MOST_PRIMARY:
        yield f"{name}.yaml: {len(primary)} primary claims ({', '.join(primary)}); {MOST_PRIMARY} at most"
    faults = [
        *((claim, _own_faults(claim)) for claim in paper.claims),
        *((claim, _reason_faults(claim, reasons)) for claim in paper.untested),
    ]
    for claim, found in faults:
        yield from (f"{name}.yaml: claim '{claim.id}': {line}" for line in [*_unpublished(claim), *found])


def _unpublished(claim: Entry) -> Iterator[str]:
    groups = {row.group for row in published()}
    yield from (
        f"published: unknown group '{g}'; {nearest_hint(g, groups)}" for g in claim.published if g not in groups
    )


def _reason_faults(claim: Untested, reasons: Mapping[str, str]) -> Iterator[str]:
    if claim.reason not in reasons:
        yield f"reason: unknown '{claim.reason}'; {nearest_hint(claim.reason, reasons)}"


def _own_faults(claim: Claim) -> Iterator[str]:
    if problem := claim.quantity.problem():
        yield f"quantity: {problem}"
    if problem := claim.predicate.bad_margin(claim.margin):
        yield f"margin: {problem}"
    if claim.quantity.levels is not None:
        yield from (f"predicate: {line}" for line in claim.predicate.problems(list(claim.quantity.levels)))
