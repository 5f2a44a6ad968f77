"""What the commands take that compute nothing, in a small project of its own under git and DVC."""

import re
import tempfile
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from bench.say import say
from benchmarks.rows import Measured, Row, limit
from benchmarks.timing import Candidate, in_turn
from tests.workspace import Workspace, kept

REPEATS = 5


@cache
def project() -> tuple[Workspace, tempfile.TemporaryDirectory]:
    """The smoke profile with one method, one seed and one protocol, computed and committed; until this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="pipeline-")
    space = Workspace(Path(folder.name))
    path = space.here / "params.yaml"
    path.write_text(shrunk(path.read_text()))
    say("    computing a small project")
    space.run("bench", "repro")
    space.commit("profiles/smoke/reports", "profiles/smoke/dvc.lock")
    return space, folder


def shrunk(text: str, methods: Collection[str] = ("random_init",)) -> str:
    """The smoke profile's params.yaml with one cell to pretrain, and one to evaluate, for each method."""
    for section, names in (("methods", methods), ("evaluations", ["knn"])):
        text = re.sub(rf"(?ms)^{section}:\n.*?(?=^\S)", lambda found, n=names: kept(found[0], n), text)
    text = re.sub(r"(?ms)^training:.*?(?=^\S)", "training: {}\n", text)
    text = re.sub(r"(?ms)^studies:.*?(?=^\S)", "studies: {}\n", text)
    text = re.sub(r"(?ms)^  trials:.*?(?=^\S)", "  trials: {}\n\n", text)
    text = text.replace("protocol: linear", "protocol: knn").replace("raw_pixels: true", "raw_pixels: false")
    return text.replace("seeds: [0, 1]", "seeds: [0]", 1)


def idle(space: Workspace) -> Candidate:
    """`dvc repro` with nothing to do."""
    return lambda: _demand("up to date", space.run("dvc", "repro").stdout)


def collecting(space: Workspace) -> Candidate:
    """A stage whose cell the store has, run again by itself, as DVC runs it."""
    return lambda: space.run("stages.pretrain", "random_init", PYTHONPATH=f"{space.root}:{space.root / 'stages'}")


def helping(space: Workspace) -> Candidate:
    """`python -m bench --help`."""
    return lambda: _demand("usage", space.run("bench", "--help").stdout)


def _demand(text: str, told: str) -> None:
    if text not in told:
        raise RuntimeError(f"'{text}' is not in: {told}")


def measure(command: Callable[[Workspace], Candidate]) -> Measured:
    """Seconds of a command."""
    run = command(project()[0])
    return Measured(in_turn({"ours": run}, REPEATS)["ours"].wall, None, REPEATS)


TRIED = (
    "what only one command needs, numpy and pydantic among it, is imported by that command: a fifth of the time before"
)
ROWS = [
    Row("repro-idle", "dvc repro with nothing to do, one cell", "a limit", "s", limit(3), lambda: measure(idle)),
    Row("collect", "a stage that only collects", "a limit", "s", limit(0.7), lambda: measure(collecting)),
    Row("help", "python -m bench --help", "a limit", "s", limit(0.4), lambda: measure(helping), tried=TRIED),
]
