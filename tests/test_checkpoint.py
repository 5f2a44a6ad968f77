"""Tensors in files: whole, in place of none but an older one, and written from where they lie."""

import errno
import os
import subprocess
import sys

import pytest
import torch

from bench.checkpoint import load_tensors, optimizer_tensors, restore_optimizer, save_tensors
from bench.files import write_json

MEASURE = """
import sys
from pathlib import Path
import torch
from bench.checkpoint import save_tensors

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(field + ":")))

save_tensors(Path(sys.argv[1]), {"small": torch.ones(2)})
bank = torch.ones(50_000_000)
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
save_tensors(Path(sys.argv[1]), {"bank": bank})
print((status("VmHWM") - before) / bank.nbytes)
"""


def test_what_is_written_is_read_again(tmp_path):
    tensors = {
        "matrix": torch.arange(6.0).view(2, 3),
        "turned": torch.arange(6.0).view(2, 3).mT,
        "kernel": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "number": torch.tensor(7),
        "nothing": torch.empty(0, 4),
        "nothing more": torch.empty(0),
        "learned": torch.nn.Parameter(torch.ones(2)),
    }
    save_tensors(tmp_path / "file", tensors, {"step": 3})
    read = load_tensors(tmp_path / "file")
    assert read.meta == {"step": 3}
    assert read.tensors.keys() == tensors.keys()
    assert all(torch.equal(read.tensors[name], tensors[name]) for name in tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_tensors_that_share_memory_are_written_each(tmp_path):
    whole = torch.arange(10.0)
    save_tensors(tmp_path / "file", {"whole": whole, "again": whole, "part": whole[3:5], "matrix": whole.view(2, 5)})
    read = load_tensors(tmp_path / "file").tensors
    assert torch.equal(read["again"], whole)
    assert read["part"].tolist() == [3.0, 4.0]
    assert torch.equal(read["matrix"], whole.view(2, 5))


def test_equal_tensors_give_equal_bytes_wherever_they_lie(tmp_path):
    x = torch.randn(2, 3, 4, 5)
    save_tensors(tmp_path / "a", {"x": x, "y": x})
    save_tensors(tmp_path / "b", {"x": x.contiguous(memory_format=torch.channels_last), "y": x.clone()})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read as Linux tells it")
def test_a_large_bank_is_not_in_memory_twice_while_it_is_written(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path / "file"], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 0.2


def test_a_full_disk_is_an_error_with_its_number_and_the_older_file_stays(tmp_path, full_disk):
    path = full_disk / "file"
    save_tensors(path, {"x": torch.ones(2)})
    with pytest.raises(OSError, match="No space left on device") as raised:
        save_tensors(path, {"x": torch.ones(1 << 20)})
    assert raised.value.errno == errno.ENOSPC
    assert [each.name for each in full_disk.iterdir()] == ["file"]
    assert load_tensors(path).tensors["x"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_who_may_read_what_is_written_is_up_to_the_umask(tmp_path, mask, mode):
    left = tmp_path / f".json.{os.getpid()}"  # by a process that was killed
    left.touch(0o600)
    before = os.umask(mask)
    try:
        save_tensors(tmp_path / "tensors", {"x": torch.ones(2)})
        write_json(tmp_path / "json", 1)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"tensors": mode, "json": mode}


def test_all_of_an_optimizers_state_is_put_back_on_its_parameters_device():
    saved = torch.optim.AdamW(weights := [torch.ones(3, requires_grad=True)], fused=True)
    weights[0].sum().backward()
    saved.step()
    elsewhere = torch.ones(3, device="meta", requires_grad=True)
    resumed = torch.optim.AdamW([elsewhere])
    restore_optimizer(resumed, optimizer_tensors(saved))
    state = resumed.state[elsewhere]
    assert {name: value.device.type for name, value in state.items()} == dict.fromkeys(
        ("step", "exp_avg", "exp_avg_sq"), "meta"
    )


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 64 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
