"""The processes that train one cell together, and what they tell each other: exactly, and in order of rank."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bench.errors import BenchError


class DistributedError(BenchError, RuntimeError):
    """Processes that cannot train a cell together; says why and what to do."""


@dataclass(frozen=True)
class World:
    """The processes of a cell as one of them sees it.

    Args:
        rank: this process, from 0. Rank 0 writes, all read.
        size: how many.
        device: where a tensor must lie for the others to get it.
    """

    rank: int
    size: int
    device: str = "cpu"

    @classmethod
    def alone(cls) -> "World":
        """One process, which has nobody to ask."""
        return cls(0, 1)

    def gather(self, rows: Tensor) -> Tensor:
        """Every process's rows (k, ...), in order of rank: (size * k, ...), bit for bit.

        Never a sum: the order in which a backend adds is not fixed.

        Raises:
            DistributedError: another process is gone or does not answer.
        """
        if self.size == 1:
            return rows
        rows = rows.contiguous()
        everyone = rows.new_empty(self.size * len(rows), *rows.shape[1:])
        try:  # as bytes, which every backend can move, whatever the type
            dist.all_gather_single(everyone.flatten().view(torch.uint8), rows.flatten().view(torch.uint8))
        except (RuntimeError, ValueError) as error:
            raise DistributedError(
                f"rank {self.rank} of {self.size} lost the others; see their logs for the cause ({error})"
            ) from error
        return everyone

    def numbers(self, number: float) -> list[float]:
        """Every process's number, in order of rank."""
        if self.size == 1:
            return [number]
        return self.gather(torch.tensor([number], dtype=torch.float64, device=self.device)).tolist()

    def any(self, flag: bool) -> bool:
        """Whether a flag is up anywhere; every process gets the same answer, once all have asked."""
        return any(self.numbers(float(flag)))

    def demand_equal(self, what: str, number: float, hint: str) -> None:
        """Check that all processes have the same number, NaN included.

        Raises:
            DistributedError: they differ; names `what` and gives the `hint`.
        """
        found = self.numbers(number)
        if len(set(map(str, found))) > 1:
            raise DistributedError(f"the processes disagree about {what}: {', '.join(map(str, found))}; {hint}")

    def demand_same(self, what: str, tensors: Mapping[str, Tensor], hint: str) -> None:
        """Check that all processes have the same bits in tensors of the same names.

        Raises:
            DistributedError: they differ; names `what` and gives the `hint`.
        """
        if self.size == 1:
            return
        digest = hashlib.blake2b(digest_size=6)  # as many bytes as a float holds exactly
        for name, tensor in tensors.items():
            digest.update(name.encode() + tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        self.demand_equal(what, int.from_bytes(digest.digest(), "big"), hint)
