"""What decides the bits of a result: pins that are set before torch is imported.

`portable` pins the instruction set and one thread, so that CPUs of several vendors may agree in every
bit; whether two machines do is measured (`bench.probe`), never assumed. `native` pins only the threads.

No pin reaches the square root of MKL's vector library, behind `torch.sqrt` and powers of one half: its last bit follows
each maker's own approximation of 1 / sqrt. What decides a number takes `rsqrt`, a norm or `math.sqrt` instead, which
round correctly, and the fused AdamW.
"""

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

from bench.errors import BenchError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
}
_X86 = {"x86_64", "AMD64", "amd64"}


class NumericsError(BenchError, RuntimeError):
    """Pins that cannot be had or came too late."""


def pins(numerics: str, threads: int) -> dict[str, str]:
    """The environment variables that must be set before torch is imported.

    Raises:
        NumericsError: portable numerics on a CPU that is not x86-64, or unknown numerics.
    """
    wanted = {name: str(threads) for name in _THREADS}
    wanted["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    wanted["THP_MEM_ALLOC_ENABLE"] = "1"  # large pages for large tensors: rows of a large bank are found much faster
    if numerics == "native":
        return wanted
    if numerics != "portable":
        raise NumericsError(f"unknown numerics '{numerics}'; allowed: native, portable")
    if platform.machine() not in _X86:
        raise NumericsError(
            f"portable numerics need an x86-64 CPU, this one is {platform.machine()}; "
            "set numerics: native under defaults in params.yaml"
        )
    return wanted | _PORTABLE


def pin(numerics: str, threads: int) -> None:
    """Set the pins in this process, for it and for the processes it starts.

    Raises:
        NumericsError: torch is already imported under other pins.
    """
    wanted = pins(numerics, threads)
    if "torch" in sys.modules:
        _demand(wanted)
    os.environ.update(wanted)


def require(numerics: str, threads: int, device: str) -> None:
    """Check the pins where a cell is computed, then make torch deterministic.

    Raises:
        NumericsError: a pin is not set, or the device is absent.
    """
    _demand(pins(numerics, threads))
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # its companion fills every new tensor with NaN, a sixth of a small net's step, to expose reads of memory that
    # was never written; there are none here, as equal bits in every process show
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device == "cuda" and not torch.cuda.is_available():
        raise NumericsError("device: cuda, but torch sees no GPU; set device: cpu or mend the driver")


def _demand(wanted: Mapping[str, str]) -> None:
    wrong = [f"{k}={os.environ.get(k)} (wants {v})" for k, v in wanted.items() if os.environ.get(k) != v]
    if wrong:
        raise NumericsError(
            "these must be set before torch is imported, which `python -m bench` and the stages do: " + ", ".join(wrong)
        )


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a computed cell's environment.json tells: versions, CPU, pins, and the GPU where that is the device."""
    from importlib.metadata import version

    names = ("torch", "numpy", "safetensors")
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "machine": platform.machine(),
        "cpu": _cpu(),
        "pins": {k: os.environ.get(k) for k in (*_PORTABLE, *_THREADS)},
        **(_gpu() if device == "cuda" else {}),
    }


def _gpu() -> dict[str, Any]:
    import torch

    versions = {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return {"gpu": torch.cuda.get_device_name(), "gpu_versions": versions}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
