"""New reports against the committed ones: byte for byte where the numerics agree, else by intervals."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.files import write_json
from bench.records import CELLS, metrics_frame
from bench.stats import t_interval

PROBE = "probe.json"


class ReportsDifferError(BenchError):
    """Results that should be byte-identical to the committed ones and are not."""


def committed(folder: Path, name: str) -> bytes | None:
    """A file of reports/ as the last commit has it, or None."""
    if shutil.which("git") is None:
        return None
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{folder.name}/{name}"],
        cwd=folder.resolve().parent,
        capture_output=True,
    )
    return shown.stdout if shown.returncode == 0 else None


def committed_probe(folder: Path) -> dict[str, str] | None:
    """The numerics under which the committed reports were computed, or None."""
    content = committed(folder, PROBE)
    return None if content is None else json.loads(content)


def compare(folder: Path, probe: Mapping[str, str]) -> str:
    """What has become of the committed numbers; leaves reports/probe.json telling of the new ones.

    Args:
        folder: reports/.
        probe: of this machine.

    Returns:
        What to tell the user.

    Raises:
        ReportsDifferError: equal probes, the same cells and other numbers.
    """
    before = committed(folder, CELLS)
    content = (folder / CELLS).read_bytes()
    if content != before:
        write_json(folder / PROBE, probe)
    if before is None:
        return "there are no committed reports to compare with"
    if content == before:
        return "the reports' records are byte-identical to the committed ones"
    old, new = json.loads(before), json.loads(content)
    shared = _keys(old) & _keys(new)
    if not shared:
        return "the committed reports are of other cells (other params or code); nothing to compare"
    part = first_difference(probe, committed_probe(folder) or {})
    if part is not None:
        return "\n".join(
            [
                f"the numerics differ from the committed ones, first in '{part}';",
                "new means against the committed 95 % intervals:",
                *_within(old, new),
            ]
        )
    moved = [k for k in sorted(shared) if _cell(old, k) != _cell(new, k)]
    if moved:
        raise ReportsDifferError(
            f"{len(moved)} of {len(shared)} cells differ from the committed reports though the "
            f"numerics probe is equal: {', '.join(moved)}"
        )
    return f"all {len(shared)} cells that the committed reports have too are byte-identical to them"


def first_difference(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str | None:
    """The first part in which two probes differ, or None."""
    for name in [*ours, *(n for n in theirs if n not in ours)]:
        if ours.get(name) != theirs.get(name):
            return name
    return None


def _keys(gathered: dict[str, Any]) -> set[str]:
    return {c["key"] for part in ("pretraining", "evaluations") for c in gathered[part]}


def _cell(gathered: dict[str, Any], key: str) -> Any:
    return next(c for part in ("pretraining", "evaluations") for c in gathered[part] if c["key"] == key)


def _within(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    lines = []
    by = ["protocol", "metric", "method"]
    before = dict(iter(metrics_frame(old).groupby(by, sort=False)["value"]))
    for name, values in metrics_frame(new).groupby(by, sort=False)["value"]:
        if name not in before:
            continue
        was, mean = t_interval(list(before[name])), float(values.mean())
        verdict = "within" if was.low <= mean <= was.high else "OUTSIDE"
        if was.half is None:
            verdict = "equal" if mean == was.mean else "moved (a single value has no interval)"
        shown = f"[{100 * was.low:.2f}, {100 * was.high:.2f}]"
        lines.append(f"  {' '.join(map(str, name))}: {100 * mean:.2f} against {shown}: {verdict}")
    return lines
