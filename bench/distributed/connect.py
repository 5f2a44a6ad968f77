"""How the processes of a cell meet.

Apart from `bench.distributed.world`, which training imports: how processes meet decides no result and is in no key.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from bench.distributed.world import DistributedError, World

MEETING = timedelta(minutes=5)  # until the last process of a cell has started
ANSWER = timedelta(minutes=30)  # until every process answers: rank 0 may be writing to a slow disk meanwhile


def connect(
    rank: int,
    size: int,
    *,
    host: str,
    port: int,
    device: str = "cpu",
    local: int = 0,
    meeting: timedelta = MEETING,
) -> World:
    """The world of process `rank` of `size`.

    Args:
        rank: from 0; rank 0 runs on `host`.
        size: how many processes.
        host: where they meet.
        port: of the host, free there.
        device: "cpu" (gloo) or "cuda" (nccl).
        local: this process's number on its node: the GPU that it takes.
        meeting: how long to wait for the others.

    Raises:
        DistributedError: the processes do not find each other in time.
    """
    if device == "cuda":
        torch.cuda.set_device(local % torch.cuda.device_count())  # each may see its own GPU only, as number 0
    try:
        store = TCPStore(host, port, size, is_master=rank == 0, timeout=meeting)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=ANSWER)
        world = World(rank, size, device)
        world.numbers(rank)  # the first exchange opens the connections: whatever prevents it shows here
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"rank {rank} of {size} did not find the others at {host}:{port} within {meeting}: all must start "
            f"together and reach that port, which must be free ({error})"
        ) from error
    return world


def leave() -> None:
    """Close what `connect` opened; nothing where it opened nothing."""
    if dist.is_initialized():
        dist.destroy_process_group()
