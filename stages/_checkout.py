"""Make a stage run this checkout's code in this checkout's environment, however DVC was called."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

NEEDED = ("pydantic", "torch", "filelock")
if any(importlib.util.find_spec(name) is None for name in NEEDED):  # `python` is not the environment's
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.executable) == own:
        sys.exit("the pinned packages are not installed: run `make setup`, then activate .venv")
    os.execv(own, [str(own), *sys.argv])
