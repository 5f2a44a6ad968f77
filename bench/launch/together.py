"""The processes of one job that train a cell together: rank 0 takes the cells and says so, the others follow."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.files import read_json, write_json
from bench.plan import Cell

if TYPE_CHECKING:
    from bench.distributed.world import World

POLL_SECONDS = 0.5


def processes() -> int:
    """How many processes this job has."""
    return int(os.environ.get("SLURM_NTASKS", "1"))


def rank() -> int:
    """Which of them this is."""
    return int(os.environ.get("SLURM_PROCID", "0"))


def shared(cell: Cell) -> bool:
    """Whether the processes of a job train this cell together; all else rank 0 does alone."""
    return cell.stage == "pretrain" and cell.config.get("training") is not None


class Turn(NamedTuple):
    """A cell that is trained next, and where its processes meet."""

    number: int
    key: str | None
    host: str
    port: int


class Turns:
    """Which cell is trained next, told in a file: rank 0 may take hours for what it does alone in between.

    Args:
        folder: of the submission.
    """

    def __init__(self, folder: Path):
        job, start = os.environ.get("SLURM_JOB_ID", ""), os.environ.get("SLURM_RESTART_COUNT", "0")
        self.path = folder / f"{job}-{start}.turn"
        self.turn = Turn(0, None, "", 0)

    def say(self, key: str | None) -> None:
        """Call the others to a cell; None lets them go."""
        if processes() > 1:
            one_machine = os.environ.get("SLURM_JOB_NUM_NODES", "1") == "1"
            host = "127.0.0.1" if one_machine else socket.gethostname()
            self.turn = Turn(self.turn.number + 1, key, host, _free_port())
            write_json(self.path, self.turn)

    def follow(self) -> Iterator[str]:
        """The cells that rank 0 calls to."""
        while True:
            turn = Turn(*read_json(self.path)) if self.path.is_file() else Turn(0, None, "", 0)
            if turn.number == self.turn.number:
                time.sleep(POLL_SECONDS)
                continue
            self.turn = turn
            if turn.key is None:
                return
            yield turn.key

    @contextmanager
    def joined(self, cell: Cell) -> "Iterator[World]":
        """The processes that train a cell, connected for as long as that takes."""
        from bench.distributed.world import World

        if processes() == 1 or not shared(cell):
            yield World.alone()
            return
        from bench.distributed.connect import connect, leave

        device, local = cell.config["device"], int(os.environ.get("SLURM_LOCALID", "0"))
        world = connect(rank(), processes(), host=self.turn.host, port=self.turn.port, device=device, local=local)
        try:
            yield world
        finally:
            leave()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("", 0))
        return int(taken.getsockname()[1])
