"""Write requirements.lock: the exact versions that pyproject.toml resolves to in a new environment.

Every package of the environment is in it, setuptools too, so it can be installed with --no-deps. The peers
that tests compare with come without their own dependencies, which those tests do not import. torch wants
the CUDA packages on Linux only, so their lines carry a marker.
"""

import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINUX = ("nvidia-", "cuda-", "triton")
MARKER = ' ; sys_platform == "linux"'
HEAD = "# Generated from pyproject.toml by `make lock`; do not edit.\n"


def main() -> None:
    """Resolve in a temporary environment, freeze, and write the lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [os.fspath(Path(folder, "bin", "python")), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", *project["dependencies"], *extras["dev"]], check=True)
        subprocess.run([*pip, "install", "--quiet", "--no-deps", *extras["peers"]], check=True)
        frozen = subprocess.run(
            [*pip, "freeze", "--all", "--exclude", "pip"], check=True, capture_output=True, text=True
        ).stdout.splitlines()
    lines = [line + (MARKER if line.startswith(LINUX) else "") for line in frozen]
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(sorted(lines, key=str.lower)) + "\n")


if __name__ == "__main__":
    main()
