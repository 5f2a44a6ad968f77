"""How much memory a cell took at its peak, told to the log: it is no result, since it differs from run to run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.plan import Cell
from bench.say import say

PROCESS = Path("/proc/self")  # Linux; elsewhere nothing is said of the process
MB = 1e6


@contextmanager
def peak_told(cell: Cell) -> Iterator[None]:
    """Say after a pretraining cell what its process, and on a GPU torch, held at most while it ran.

    A worker computes several cells, so the peak begins anew with each; `getrusage` knows that of the process alone.
    """
    if cell.stage != "pretrain":
        yield
        return
    on_gpu = cell.config["device"] == "cuda" and _sees_gpu()
    _forget(on_gpu)
    yield
    peaks = [f"{held / MB:.0f} MB{where}" for where, held in _peaks(on_gpu).items()]
    if peaks:
        say(f"{cell.label}: peak memory {', '.join(peaks)}")


def _sees_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _forget(on_gpu: bool) -> None:
    try:
        (PROCESS / "clear_refs").write_text("5")  # man 5 proc: the peak is what is resident now
    except OSError:  # no Linux, or not allowed
        pass
    if on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()


def _peaks(on_gpu: bool) -> dict[str, int]:
    found = {}
    try:
        lines = (PROCESS / "status").read_text().splitlines()
        found[""] = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # no Linux
        pass
    if on_gpu:
        import torch

        found[" on the GPU"] = torch.cuda.max_memory_allocated()
    return found
