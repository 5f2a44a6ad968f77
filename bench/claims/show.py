"""The ledger as text, as a table, and in numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from bench.claims.ledger import VERDICTS, Line
from bench.claims.paper import ClaimsError
from bench.exhibits.base import Table
from bench.published import UNCHECKED
from bench.stats import LEVEL

SYMBOLS = {"reproduced": "●", "contradicted": "✕", "inconclusive": "◐", "not testable here": "○"}
BEGIN, END = "<!-- ledger -->", "<!-- /ledger -->"  # in README.md, around what is generated
ROUNDING = 1e-15  # of sums of a few accuracies
COLUMNS = ["Claim", "Place", "Verdict", "Estimate [interval]", "Margin", "n", "Detectable", "p", "Holm p"]


def counts(lines: Sequence[Line]) -> dict[str, int]:
    """How many claims have each verdict; every verdict is there."""
    found = Counter(line.verdict for line in lines)
    return {verdict: found[verdict] for verdict in VERDICTS}


def summary(lines: Sequence[Line]) -> str:
    """'12 reproduced, 3 contradicted, ...'."""
    return ", ".join(f"{n} {verdict}" for verdict, n in counts(lines).items())


def by_paper(lines: Sequence[Line]) -> Table:
    """How many claims of each paper have each verdict, and of all together."""
    papers = {paper: [line for line in lines if line.paper == paper] for paper in dict.fromkeys(x.paper for x in lines)}
    found = [(paper, counts(own)) for paper, own in [*papers.items(), ("all", lines)]]
    rows = [[paper, *(str(numbers[verdict]) for verdict in VERDICTS)] for paper, numbers in found]
    heads = [f"{SYMBOLS[verdict]} {verdict}" for verdict in VERDICTS]
    data = [{"paper": paper, **numbers} for paper, numbers in found]
    return Table("verdicts", "Claims by verdict:", ["Paper", *heads], rows, data)


def into_readme(text: str, lines: Sequence[Line], ledger: str) -> str:
    """A README with the ledger's counts between its markers.

    Args:
        text: of the README.
        lines: the ledger.
        ledger: where all of it stands, as a link from the README.

    Raises:
        ClaimsError: there are no markers.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ClaimsError(f"README.md: wants a line {BEGIN} and, below it, a line {END}; the counts go between them")
    link = f"Every claim, with what was measured: [the ledger]({ledger})."
    return f"{head}{begin}\n\n{by_paper(lines).markdown()}\n{link}\n\n{end}{tail}"


def as_text(lines: Sequence[Line]) -> str:
    """The ledger for a terminal: the counts, then a paragraph for each claim."""
    return "\n\n".join([summary(lines), *map(_paragraph, lines), UNCHECKED]) + "\n"


def as_table(lines: Sequence[Line]) -> Table:
    """The ledger as an exhibit; its data have every field of a line."""
    caption = (
        f"Claims of the papers: {summary(lines)}. Reproduced: the interval over seeds lies wholly beyond the margin; "
        "contradicted: wholly on the other side. It is Student's t interval of the paired difference that decides, at "
        "95 % or, where several comparisons had their chance, more; primary claims (*) must hold after Holm's "
        "correction over their paper's. Detectable: the distance from the margin that so many seeds find in 80 % of "
        f"experiments. {UNCHECKED}."
    )
    return Table("claims", caption, COLUMNS, [_row(line) for line in lines], [_flat(line) for line in lines])


def _row(line: Line) -> list[str]:
    verdict = f"{SYMBOLS[line.verdict]} {line.verdict}" + (f": {line.reason}" if line.reason else "")
    return [
        f"{line.claim}{'*' if line.primary else ''}: {line.statement}",
        f"{line.paper}, {line.place}",
        verdict,
        _interval(line),
        _number(line.margin),
        str(line.n or ""),
        _number(line.detectable),
        _number(line.p, 2),
        _number(line.holm, 2),
    ]


def _flat(line: Line) -> dict[str, object]:
    fields = asdict(line)
    joined = {name: " ".join(map(str, fields[name])) for name in ("cells", "seeds")}
    numbers = {k: float(_number(v, 6)) for k, v in fields.items() if isinstance(v, float)}
    return {**fields, **numbers, **joined, "published": "; ".join(line.published)}


def _paragraph(line: Line) -> str:
    head = f"{SYMBOLS[line.verdict]} {line.verdict}: {line.claim}{' (primary)' if line.primary else ''}"
    parts = [
        head + (f" ({line.reason})" if line.reason else ""),
        f"{line.paper}, {line.place}: {line.statement}",
    ]
    if line.rule:
        parts.append(f"{line.metric}, {line.rule}, margin {_number(line.margin)}")
    if line.estimate is not None:
        found = f"{line.decides}: {_interval(line)}, n {line.n}, detectable {_number(line.detectable)}"
        p = f", p {_number(line.p, 2)}" if line.p is not None else ""
        parts.append(found + p + (f", by Holm {_number(line.holm, 2)}" if line.holm is not None else ""))
    parts += [f"published: {row}" for row in line.published]
    if line.cells:
        parts.append(f"{len(line.cells)} cells: {', '.join(key[:6] for key in line.cells[:4])} ...")
    return "\n  ".join([*parts, *([line.command] if line.command else [])])


def _interval(line: Line) -> str:
    if line.estimate is None or line.level is None:
        return ""
    level = "" if round(line.level, 6) == LEVEL else f" ({100 * line.level:.3g} %)"
    return f"{_number(line.estimate)} [{_number(line.low)}, {_number(line.high)}]{level}"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return ""
    return f"{0.0 if abs(value) < ROUNDING else value:.{digits}g}"  # differences that cancel leave a rounding error
