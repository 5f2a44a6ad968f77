"""Make a stage run this checkout's code in this checkout's environment, however DVC was called."""

import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OWN = ROOT / ".venv" / "bin" / "python"
if sys.prefix == sys.base_prefix and OWN.exists():  # no environment is active
    os.execv(OWN, [str(OWN), *sys.argv])
if importlib.util.find_spec("pydantic") is None or importlib.util.find_spec("torch") is None:
    sys.exit("the pinned packages are not installed: run `make setup`, then activate .venv")
