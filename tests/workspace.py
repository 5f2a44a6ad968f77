"""A copy of the checkout as a git repository of its own, and commands run in its smoke profile."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


METHODS = ("random_init", "supervised", "simclr", "nnclr")  # enough for what does not depend on the method
PROTOCOLS = ("linear", "knn", "retrieval")  # nor on the protocol


class Workspace:
    """A fresh clone with the working tree's files; its store and data root are its own.

    Args:
        folder: where it is made.
        whole: keep the smoke profile as it is shipped, or a few of its methods, with the default training, and a few
            of its protocols.
    """

    def __init__(self, folder: Path, *, whole: bool = False):
        self.root = folder / "checkout"
        self.here = self.root / "profiles" / "smoke"
        listed = git(ROOT, "ls-files", "-co", "--exclude-standard", "-z").split("\0")
        for name in filter(None, listed):
            source, target = ROOT / name, self.root / name
            if source.is_symlink() or source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        compiled = self.root / "bench" / "__pycache__"  # numba knows a source by its time: nothing is compiled again
        compiled.mkdir()
        for path in (ROOT / "bench" / "__pycache__").glob("*.nb?"):
            shutil.copy2(path, compiled)
        (self.here / "dvc.lock").unlink(missing_ok=True)
        if not whole:
            self._shrink()
        git(self.root, "init", "-q")
        self.commit()
        self.store = self.root / "work"

    def _shrink(self) -> None:
        path = self.here / "params.yaml"
        sections = re.split(r"(?m)^(?=\w)", path.read_text())
        for i, section in enumerate(sections):
            name = section.partition(":")[0]
            if name in ("methods", "evaluations"):
                sections[i] = kept(section, METHODS if name == "methods" else PROTOCOLS)
            elif name == "training":
                sections[i] = "training: {}\n"
        path.write_text("".join(sections))

    def commit(self, *forced: str) -> None:
        git(self.root, "add", "-A")
        if forced:
            git(self.root, "add", "-f", *forced)
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        git(self.root, *identity, "commit", "-q", "--allow-empty", "-m", "state")

    def run(self, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m COMMAND` in the smoke profile."""
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=self.here,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} exited {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("BENCH_", "DVC_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
        return {**kept, "PATH": path, "PYTHONPATH": str(self.root), **extra}

    def edit(self, name: str, before: str, after: str) -> None:
        """Replace text in a file of the checkout; it must be there."""
        path = self.root / name
        text = path.read_text()
        assert before in text, f"{before!r} is not in {name}"
        path.write_text(text.replace(before, after))

    def cells(self, *options: str) -> dict[str, str]:
        """Key by label, of the cells that `bench cells` lists."""
        lines = self.run("bench", "cells", *options).stdout.splitlines()
        return {line[40:].strip(): line.split()[0] for line in lines}

    def files(self, folder: Path) -> dict[str, bytes]:
        """The contents of every file under a folder, by relative name."""
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def results(self) -> dict[str, bytes]:
        """Every file of every finished cell but the notes on where it was computed."""
        cells = self.files(self.store / "cells")
        return {name: content for name, content in cells.items() if not name.endswith("environment.json")}


def kept(section: str, names: Collection[str]) -> str:
    """A section of params.yaml with those of its entries."""
    head, *entries = re.split(r"(?m)^(?=  \w)", section)
    return head + "".join(entry for entry in entries if entry.partition(":")[0].strip() in names)


def git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
