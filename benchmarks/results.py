"""results.csv, a line for each row that was ever run, and results.md, which is drawn from it."""

import csv
import platform
from collections.abc import Iterable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.numerics import environment
from benchmarks.registry import rows
from benchmarks.rows import Measured, Row

FOLDER = Path(__file__).parent
COLUMNS = (
    "name",
    "what",
    "against",
    "ours",
    "theirs",
    "unit",
    "ratio",
    "n",
    "target",
    "reached",
    "note",
    "versions",
    "cpu",
    "date",
)
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "faiss-cpu", "lightly", "pillow", "dvc")
SHOWN = ("what", "against", "ours", "theirs", "unit", "ratio", "n", "target", "reached")
ABOUT = """# Speed and memory

`make bench` measures these rows and writes this file; `python -m benchmarks NAME...` measures some of them again and
leaves the others as they were, with their own date. Ours and the peer run in turn in one process, so a busy machine
slows both; numbers are medians of n. A ratio is theirs / ours where the target says "at least" and ours / theirs where
it says "at most". Both sides have one thread unless the row says otherwise; numerics are native.
"""

Line = Mapping[str, str]


def line(row: Row, measured: Measured | None, trouble: str = "") -> dict[str, str]:
    """A row as results.csv has it; without numbers where `trouble` prevented them."""
    known = {"name": row.name, "what": row.what, "against": row.against, "unit": row.unit, "target": row.wanted}
    known |= {"versions": versions(), "cpu": environment()["cpu"], "date": date.today().isoformat()}
    if measured is None:
        return {**dict.fromkeys(COLUMNS, ""), **known, "reached": f"not measured: {trouble}"}
    ratio = row.ratio(measured)
    return known | {
        "ours": _number(measured.ours),
        "theirs": _number(measured.theirs),
        "ratio": "" if ratio is None else f"{ratio:.3g}",
        "n": str(measured.n),
        "reached": row.verdict(measured),
        "note": measured.note,
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def versions() -> str:
    """Of python and of the packages that are compared."""
    return " ".join([f"python {platform.python_version()}", *(f"{name} {_version(name)}" for name in PACKAGES)])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def read(path: Path) -> dict[str, dict[str, str]]:
    """The lines of a results.csv by name; none where there is no file."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {found["name"]: dict(found) for found in csv.DictReader(file)}


def write(lines: Iterable[Line], folder: Path = FOLDER) -> None:
    """Write both files."""
    lines = list(lines)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    (folder / "results.md").write_text(render(lines))


def render(lines: Iterable[Line]) -> str:
    """results.md."""
    lines = list(lines)
    table = [f"| {' | '.join(SHOWN)} |", f"|{'---|' * len(SHOWN)}"]
    table += [f"| {' | '.join(_cell(each, column) for column in SHOWN)} |" for each in lines]
    known = {row.name: row.tried for row in rows()}
    tried = [f"- **{each['name']}**: {known[each['name']]}" for each in lines if each["reached"] == "falls short"]
    notes = [f"- **{each['name']}**: {each['note']}" for each in lines if each["note"]]
    runs: dict[tuple[str, str, str], list[str]] = {}
    for each in lines:
        runs.setdefault((each["date"], each["cpu"], each["versions"]), []).append(each["name"])
    where = [f"- {when}, {cpu}, {with_}: {', '.join(names)}" for (when, cpu, with_), names in runs.items()]
    return "\n".join(
        [
            ABOUT,
            *table,
            "",
            "## What was tried where a row falls short",
            "",
            *tried,
            "",
            "## Notes",
            "",
            *notes,
            "",
            "## Measured",
            "",
            *where,
            "",
        ]
    )


def _cell(each: Line, column: str) -> str:
    text = each[column]
    if column == "ratio" and text:
        return f"{text}x"
    return f"**{text}**" if text == "falls short" else text
