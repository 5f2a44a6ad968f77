"""How a batch is cut into shards, who holds them, and what is added up over all of them.

A batch is cut into `count` shards of as many rows each; each process holds as many of them, neighbours. Whatever
reaches across shards is gathered from all processes and added up in the order of the shards: the bits of training
depend on how many shards there are, never on how many processes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.distributed.world import DistributedError, World


class Shards:
    """The shards of every batch of a cell.

    Args:
        count: of all processes together.
        world: the processes.

    Raises:
        DistributedError: the processes cannot share the shards evenly.
    """

    def __init__(self, count: int, world: World):
        if count % world.size:
            raise DistributedError(
                f"{world.size} processes cannot share {count} shards evenly; start as many as divide {count}, "
                f"or set shards to a multiple of {world.size}"
            )
        share = count // world.size
        self.count, self.world = count, world
        self.local = range(world.rank * share, (world.rank + 1) * share)  # those that this process holds

    def usable(self, rows: int) -> int:
        """How many of a batch's rows the shards can share evenly: the first ones."""
        return rows - rows % self.count

    def cuts(self, rows: int) -> list[slice]:
        """Where the shards that this process holds lie among a batch's rows."""
        size = rows // self.count
        return [slice(shard * size, (shard + 1) * size) for shard in self.local]

    def gather(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """A tensor for each shard of all processes, in order, from those of this process's shards."""
        return parts if self.world.size == 1 else self.world.gather(torch.stack(list(parts))).unbind()

    def total(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over the shards of all processes, in their order, laid out in memory as the first part is."""
        first, *others = self.gather(parts)
        total = torch.empty_like(parts[0]).copy_(first)
        for part in others:
            total += part
        return total
