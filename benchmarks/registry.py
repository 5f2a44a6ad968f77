"""All rows, by group."""

import argparse
from collections.abc import Collection

from benchmarks import growth, kmeans, knn, l2_path, lookup, makespan, memory, nce, pipeline, training, views
from benchmarks.rows import Row

GROUPS: dict[str, list[Row]] = {
    "views": views.ROWS,
    "training": training.ROWS,
    "lookup": lookup.ROWS,
    "knn": knn.ROWS,
    "kmeans": kmeans.ROWS,
    "l2_path": l2_path.ROWS,
    "nce": nce.ROWS,
    "pipeline": pipeline.ROWS,
    "memory": memory.ROWS,
    "growth": growth.ROWS,
    "makespan": makespan.ROWS,
}


def rows() -> list[Row]:
    """Every row."""
    return [row for group in GROUPS.values() for row in group]


def chosen(names: Collection[str]) -> list[Row]:
    """Rows by their own or their group's name; without names those that need nothing special."""
    if not names:
        return [row for row in rows() if row.default]
    return [row for group, members in GROUPS.items() for row in members if group in names or row.name in names]


def parser() -> argparse.ArgumentParser:
    """The command line: rows and groups by name."""
    listed = [f" {' ' if row.default else '*'}{row.name:22}{row.what}; {row.against}; {row.wanted}" for row in rows()]
    about = "groups: " + ", ".join(GROUPS) + "\nrows (* only where it is named: it takes minutes):\n"
    made = argparse.ArgumentParser(
        "python -m benchmarks",
        description="Measure speed and memory against peers.",
        epilog=about + "\n".join(listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("name", nargs="*", choices=[[], *GROUPS, *(row.name for row in rows())], metavar="NAME")
    return made
