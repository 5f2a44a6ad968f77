"""How many cores there are to compute on."""

import os


def cores() -> int:
    """Cores that this process may use: fewer than the machine has under an affinity, as in a job of a cluster."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
