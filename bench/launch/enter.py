"""The first thing a job runs: `python -m bench.launch.enter NUMERICS THREADS ... FOLDER`.

Sets what must be set before torch is imported, and reads no pickle from a folder that others can write.
"""

import os
import sys
from pathlib import Path

from bench.errors import BenchError
from bench.launch.submission import demand_private
from bench.numerics import pin


def main(numerics: str, threads: str, *arguments: str) -> None:
    """Run the work that submitit left in the folder that is the last argument."""
    folder = Path(arguments[-1])
    if not folder.is_dir():
        sys.exit(f"error: this machine does not see {folder}; set BENCH_STORE to a folder that all machines share")
    try:
        demand_private(folder, os.geteuid())
        pin(numerics, int(threads))
    except BenchError as error:
        sys.exit(f"error: {error}")
    from submitit.core.submission import process_job

    process_job(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
