"""Where things live, and writing so that a file that exists is complete."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_IMODE
from typing import Any

from bench.errors import BenchError
from bench.registry import ROOT


def checkout() -> Path:
    """The checkout whose store and data root this code shares.

    A git worktree shares those of its main checkout, and a temporary copy made by `dvc exp run
    --temp` those of the project it was made from.
    """
    for parent in ROOT.parents:
        if parent.name == "exps" and parent.parent.name == "tmp" and parent.parents[1].name == ".dvc":
            home = parent.parents[2]
            return home.parents[1] if home.parent.name == "profiles" else home
    pointer = ROOT / ".git"
    if pointer.is_file():  # a worktree: "gitdir: <main>/.git/worktrees/<name>"
        folder = (ROOT / pointer.read_text().partition(":")[2].strip()).resolve()
        if folder.parent.name == "worktrees":
            return folder.parents[2]
    return ROOT


class UnwritableError(BenchError, OSError):
    """A folder that cannot be written."""


def demand_writable(folder: Path, mend: str) -> None:
    """Make a folder and try to write there.

    Raises:
        UnwritableError: names the folder, the reason and how to mend it.
    """
    probe = folder / f".write-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(4096))  # a full disk still takes an empty file
        probe.unlink()
    except OSError as error:
        raise UnwritableError(f"{folder} cannot be written ({error.strerror}); {mend}") from None


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path beside, for the body to write to, that then takes this one's name.

    A reader sees the old file or the whole new one. Who may read it is up to the umask, as for any new file, even where
    what the body calls makes a file that nobody else may read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.unlink(missing_ok=True)  # of a process with this number that was killed
    beside.touch()
    mode = S_IMODE(beside.stat().st_mode)
    try:
        yield beside
        beside.chmod(mode)
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is whole once it is there."""
    with written(path) as beside:
        beside.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for JSON; keys keep their order, since a record's first metric is its headline."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the state of a run before a step is kept."""
    return folder / f"checkpoint-{step:09d}.safetensors"


def checkpoint_steps(folder: Path) -> list[int]:
    """The steps whose states are kept in a folder, in order."""
    return sorted(int(path.stem.partition("-")[2]) for path in folder.glob("checkpoint-*.safetensors"))
