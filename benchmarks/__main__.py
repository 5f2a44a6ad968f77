"""`python -m benchmarks [NAME...]`: measure rows, all or those that are named, and write results.csv and results.md."""

import sys
import time
from collections.abc import Sequence

from bench.numerics import pin

pin("native", 1)

from bench.say import say  # noqa: E402
from benchmarks import results  # noqa: E402
from benchmarks.registry import chosen, parser, rows  # noqa: E402
from benchmarks.rows import Measured, Row  # noqa: E402


def main(arguments: Sequence[str]) -> None:
    """Measure, and write after each row what is known so far."""
    picked = chosen(parser().parse_args(arguments).name)
    start = time.monotonic()
    for number, row in enumerate(picked, 1):
        say(f"[{number}/{len(picked)}, {time.monotonic() - start:.0f} s] {row.name}: {row.what}, {row.against}")
        line = measured(row)
        say(f"  {_told(line)}")
        known = results.read(results.FOLDER / "results.csv") | {row.name: line}  # another run may have written since
        results.write([known[each.name] for each in rows() if each.name in known])


def measured(row: Row) -> dict[str, str]:
    """A row's line; a peer that cannot be imported, or a row that fails, is named there."""
    found: Measured | None = None
    trouble = ""
    try:
        found = row.measure()
    except ImportError as error:
        trouble = f"cannot be imported: {error}"
    except Exception as error:  # the other rows can still be measured
        trouble = f"{type(error).__name__}: {error}".splitlines()[0]
    return results.line(row, found, trouble)


def _told(line: results.Line) -> str:
    numbers = f"{line['ours']} {line['unit']}, theirs {line['theirs'] or '-'}, {line['ratio'] or '-'}x"
    return f"{numbers}; wanted {line['target']}: {line['reached']}"


if __name__ == "__main__":
    main(sys.argv[1:])
