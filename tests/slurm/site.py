"""A project on a cluster: submitted, disturbed, submitted again."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from bench.features import STATE
from tests.slurm.cluster import Cluster
from tests.workspace import Workspace, kept

DROWSY = Path(__file__).with_name("drowsy.py")
LIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"}
PATIENCE = 900.0  # seconds: a minute's job that is queued again and again gets a third of its time on a busy machine


class Site:
    """The smoke profile with two methods, one of them slow, in a store of its own.

    Args:
        folder: where it is made.
        cluster: where its cells run; None for this machine.
        seconds: that a step of the slow method takes, of twenty.
    """

    def __init__(self, folder: Path, cluster: Cluster | None, seconds: float = 0.3):
        self.space = Workspace(folder)
        self.cluster, self.folder = cluster, folder
        self.file = folder / "cluster.yaml"
        shutil.copyfile(DROWSY, self.space.root / "bench" / "methods" / "drowsy.py")
        path = self.space.here / "params.yaml"
        text = path.read_text()
        text = re.sub(r"(?ms)^methods:\n.*?(?=^\S)", "methods:\n  random_init: {}\n  drowsy: {drowsy}\n", text)
        text = re.sub(r"(?ms)^evaluations:\n.*?(?=^\S)", lambda found: kept(found[0], ["knn"]), text)
        text = re.sub(r"(?ms)^studies:.*?(?=^\S)", "studies: {}\n", text)
        text = re.sub(r"(?ms)^  trials:.*?(?=^\S)", "  trials: {}\n\n", text)
        text = text.replace("epochs: 2", "epochs: 4").replace("protocol: linear", "protocol: knn")
        self.text = text
        self.configure()
        self.set(seconds=seconds)

    def set(self, seconds: float = 0.3, megabytes: int = 0, fault: int = 0) -> None:
        """Choose what the slow method does."""
        options = f"{{seconds: {seconds}, megabytes: {megabytes}, fault: {fault}}}"
        (self.space.here / "params.yaml").write_text(self.text.replace("{drowsy}", options))

    def configure(self, **settings: object) -> None:
        """Choose the cluster's settings."""
        given = {"name": "slurm", "time": 10, "checkpoint_seconds": 0.2, "late_seconds": 2, **settings}
        self.file.write_text(json.dumps({"cluster": given}))

    @property
    def variables(self) -> dict[str, str]:
        """The environment of its commands."""
        if self.cluster is None:
            return {}
        return {"BENCH_CLUSTER": str(self.file), "SLURM_CONF": str(self.cluster.config)}

    def run(self, *command: str, check: bool = True, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m COMMAND` in the project."""
        return self.space.run(*command, check=check, **self.variables, **extra)

    def start(self, *command: str, **extra: str) -> subprocess.Popen[str]:
        """Begin `python -m COMMAND` in the project."""
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.space.here,
            env=self.space.environment(**self.variables, **extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until something holds."""
        end = time.monotonic() + PATIENCE
        while not holds():
            if time.monotonic() > end:
                queue = self.cluster.run("squeue", "-t", "all", "-r").stdout if self.cluster else ""
                raise AssertionError(f"not within {PATIENCE:.0f} s: {what}\n{self.status()}\n{queue}")
            time.sleep(0.2)

    def status(self) -> str:
        """What `status` tells."""
        return self.run("bench", "status").stdout

    def jobs(self) -> dict[str, str]:
        """The state of each job."""
        assert self.cluster is not None
        folders = {path.name for path in (self.space.store / "submissions").glob("*")}
        found = {}
        for line in self.cluster.run("squeue", "-h", "-r", "-t", "all", "-o", "%i %T %j").stdout.splitlines():
            number, state, name = line.split()
            if name.startswith("bench-") and name.split("-")[1] in folders:
                found[number] = state
        return found

    def quiet(self) -> bool:
        """No job runs or waits."""
        return not LIVE & set(self.jobs().values())

    def training(self, steps: int = 3) -> list[str]:
        """The jobs whose slow cell has got somewhere, each with a checkpoint behind it."""
        found = []
        for hold in (self.space.store / "locks").glob("*.json"):
            saved = list((self.space.store / "running" / hold.stem).glob("checkpoint-*.safetensors"))
            if any(int(path.stem.partition("-")[2]) >= steps for path in saved):
                found.append(json.loads(hold.read_text())["job"])
        return found

    def finished(self) -> dict[str, float]:
        """When each finished cell was finished."""
        cells = self.space.store / "cells"
        return {path.name: path.stat().st_mtime for path in cells.glob("*")} if cells.is_dir() else {}

    def lock(self) -> str:
        """What DVC noted of the results."""
        return (self.space.here / "dvc.lock").read_text()

    def states(self, method: str = "drowsy") -> list[str]:
        """The checksums of a method's trained states, by seed."""
        found = []
        for folder in (self.space.here / "runs" / method).iterdir():
            seed = json.loads((folder / "cell.json").read_text())["config"]["seed"]
            found.append((seed, hashlib.sha256((folder / STATE).read_bytes()).hexdigest()))
        return [checksum for _, checksum in sorted(found)]

    def recover(self, before: dict[str, float], *, again: bool = True) -> None:
        """Submit again and collect: nothing that was finished is computed again, and no job is left."""
        if again:
            self.run("bench", "submit")
        self.run("dvc", "repro")
        after = self.finished()
        assert before.items() <= after.items()
        self.until(self.quiet, "all jobs have ended")
