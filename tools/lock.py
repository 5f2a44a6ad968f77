"""Write requirements.lock: the exact versions that pyproject.toml resolves to in a new environment.

CUDA's packages exist for Linux on x86-64 only, so their lines carry a marker.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINUX_X86 = ("nvidia-", "cuda-", "triton")
MARKER = ' ; sys_platform == "linux" and platform_machine == "x86_64"'
HEAD = "# Generated from pyproject.toml by `make lock`; do not edit.\n"


def main() -> None:
    """Resolve in a temporary environment, freeze, and write the lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        python = os.fspath(Path(folder, "bin", "python"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        frozen = subprocess.run(
            [python, "-m", "pip", "freeze"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    lines = [line + (MARKER if line.startswith(LINUX_X86) else "") for line in frozen]
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(sorted(lines, key=str.lower)) + "\n")


if __name__ == "__main__":
    main()
