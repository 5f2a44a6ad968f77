"""Readers: real files in the layouts that each wants, decoding that survives a kill, and what is told of a bad file."""

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from bench.data import READERS, decode, prepared
from bench.data.readers import torchvision_set
from bench.data.source import DataError
from bench.params import check_options

GIVEN = prepared.data_root()  # where real sets may lie: BENCH_DATA or data/raw


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "root"
    folder.mkdir()
    monkeypatch.setenv("BENCH_DATA", str(folder))
    # no download: an address that refuses at once
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    prepared._load.cache_clear()
    yield folder
    prepared._load.cache_clear()


def pixels(seed, height=12, width=10, channels=3):
    draws = np.random.default_rng(seed)
    coarse = draws.integers(0, 256, (4, 4, channels), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)[:height, :width])


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze()).save(path)
    return path


def naive(path, side):
    """What torchvision's own transforms make of a file."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    transform = Compose([Resize(side, InterpolationMode.BICUBIC), CenterCrop(side)])
    with Image.open(path) as image:
        return np.asarray(transform(image.convert("RGB")))


# Decoding


@pytest.mark.parametrize("size", [(8, 8), (7, 31), (31, 7), (9, 10), (5, 8), (40, 41), (100, 33)], ids=str)
@pytest.mark.parametrize("side", [8, 9])
def test_resizing_and_cropping_is_what_torchvision_does(tmp_path, size, side):
    path = save(tmp_path / "image.png", pixels(0, *size))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(decode.fit(image, side)), naive(path, side))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty images of several sizes and modes."""
    folder = tmp_path_factory.mktemp("photos")
    suffixes = ("png", "jpg", "bmp", "webp")
    return [
        save(folder / f"{i:02}.{suffixes[i % 4]}", pixels(i, 20 + i % 7, 20 + i % 5, 1 if i % 8 == 1 else 3))
        for i in range(60)
    ]


def decoded(monkeypatch, root, photos, threads, side=16, rows=7):
    monkeypatch.setenv("BENCH_DATA", str(root))
    monkeypatch.setattr(decode, "cores", lambda: threads)
    monkeypatch.setattr(decode, "CHUNK_BYTES", rows * side * side * 3)
    return decode.from_files("photos", photos, side)


def test_several_threads_decode_the_bytes_that_one_does(tmp_path, monkeypatch, photos):
    one, many = (decoded(monkeypatch, tmp_path / str(n), photos, n) for n in (1, 5))
    np.testing.assert_array_equal(one, many)
    np.testing.assert_array_equal(one, [naive(path, 16) for path in photos])


@pytest.mark.parametrize("rows", [1, 59, 60, 61])
def test_the_size_of_a_chunk_changes_no_byte(tmp_path, monkeypatch, photos, rows):
    one, other = (decoded(monkeypatch, tmp_path / str(r), photos, 2, rows=r) for r in (7, rows))
    np.testing.assert_array_equal(one, other)


def test_decoded_images_are_mapped_and_cannot_be_written(tmp_path, monkeypatch, photos):
    images = decoded(monkeypatch, tmp_path, photos, 2)
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


@pytest.fixture
def asked(monkeypatch):
    """The files that are decoded, in the order asked for."""
    found, original = [], decode._rgb
    monkeypatch.setattr(decode, "_rgb", lambda path, side: found.append(path) or original(path, side))
    return found


def test_what_is_decoded_is_not_decoded_again(tmp_path, monkeypatch, photos, asked):
    decoded(monkeypatch, tmp_path, photos, 2)
    assert sorted(asked) == photos
    decoded(monkeypatch, tmp_path, photos, 2)
    assert len(asked) == len(photos)


def test_after_a_damaged_file_only_its_chunk_is_left_to_do(tmp_path, monkeypatch, photos, asked):
    folder = tmp_path / "copies"
    folder.mkdir()
    copies = [folder / path.name for path in photos]
    for copy, path in zip(copies, photos, strict=True):
        copy.write_bytes(path.read_bytes())
    copies[-1].write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{copies[-1]} cannot be decoded .* fetch it again"):
        decoded(monkeypatch, tmp_path, copies, 1)
    asked.clear()
    copies[-1].write_bytes(photos[-1].read_bytes())
    found = decoded(monkeypatch, tmp_path, copies, 1)
    assert asked == copies[56:]  # eight chunks of seven were finished
    np.testing.assert_array_equal(found, decoded(monkeypatch, tmp_path / "other", photos, 1))


def test_a_changed_file_has_its_chunk_decoded_again(tmp_path, monkeypatch, photos, asked):
    folder = tmp_path / "copies"
    copies = [folder / path.name for path in photos]
    for copy, path in zip(copies, photos, strict=True):
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    before = np.array(decoded(monkeypatch, tmp_path, copies, 2))
    asked.clear()
    save(copies[8], pixels(99))
    after = decoded(monkeypatch, tmp_path, copies, 2)
    assert sorted(asked) == copies[7:14]
    assert [i for i in range(60) if (before[i] != after[i]).any()] == [8]


KILLED = """
import sys
from pathlib import Path
from bench.data import decode
decode.cores, decode.CHUNK_BYTES = lambda: 2, 4 * 16 * 16 * 3
decode.from_files("many", sorted(Path(sys.argv[1]).iterdir()), 16)
"""


def test_decoding_goes_on_where_a_kill_stopped_it(tmp_path, monkeypatch, asked):
    folder, one = tmp_path / "many", tmp_path / "one.png"
    folder.mkdir()
    save(one, np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    paths = [folder / f"{i:03}.png" for i in range(240)]
    for path in paths:
        path.hardlink_to(one)
    environment = {**os.environ, "BENCH_DATA": str(tmp_path / "root")}
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(folder)], env=environment)
    marks, deadline = tmp_path / "root" / "prepared" / ".decoding", time.monotonic() + 60
    while not any(any(path.read_bytes()) for path in marks.glob("*/chunks")):
        assert child.poll() is None, "finished before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    (chunks,) = marks.glob("*/chunks")
    content = chunks.read_bytes()
    finished = sum(any(content[start : start + decode.MARK]) for start in range(0, len(content), decode.MARK))
    assert 0 < finished < 60
    resumed = decoded_many(monkeypatch, tmp_path / "root", paths)
    assert len(asked) == 240 - 4 * finished
    np.testing.assert_array_equal(resumed, decoded_many(monkeypatch, tmp_path / "straight", paths))
    assert resumed.any(axis=(1, 2, 3)).all()


def decoded_many(monkeypatch, root, paths):
    monkeypatch.setenv("BENCH_DATA", str(root))
    monkeypatch.setattr(decode, "CHUNK_BYTES", 4 * 16 * 16 * 3)
    return decode.from_files("many", paths, 16)


def test_two_that_decode_at_once_give_one_array(tmp_path, monkeypatch, photos, asked):
    monkeypatch.setattr(decode, "cores", lambda: 1)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: decode.from_files("photos", photos, 16), range(2))
    np.testing.assert_array_equal(first, second)
    assert len(asked) == len(photos)


def test_side_0_keeps_the_size_that_all_images_have(root, tmp_path):
    paths = [save(tmp_path / f"{i}.png", pixels(i, 9, 14)) for i in range(3)]
    np.testing.assert_array_equal(decode.from_files("same", paths, 0), [pixels(i, 9, 14) for i in range(3)])


def test_images_of_several_sizes_want_a_side(root, tmp_path):
    paths = [save(tmp_path / f"{i}.png", pixels(i, 9, 14 + i // 2)) for i in range(3)]
    with pytest.raises(DataError, match=rf"{paths[0]} is 14x9 and {paths[2]} is 15x9; set `side`"):
        decode.from_files("several", paths, 0)


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


BAD_FILES = {
    "truncated_jpeg": ("a.jpg", cut, "cannot be decoded .*truncated"),
    "truncated_png": ("a.png", cut, "cannot be decoded"),
    "empty": ("a.png", lambda path: path.write_bytes(b""), "cannot be decoded"),
    "text": ("a.jpg", lambda path: path.write_text("not found"), "cannot be decoded"),
    "absent": ("a.png", lambda path: path.unlink(), "No such file.*put it back"),
    "sixteen_bits": (
        "a.png",
        lambda path: Image.fromarray(np.full((20, 20), 999, dtype=np.uint16)).save(path),
        "mode I;16, not 8 bits",
    ),
}


@pytest.mark.parametrize(("name", "spoil", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file_is_named(root, tmp_path, name, spoil, told):
    paths = [save(tmp_path / "good" / "b.png", pixels(0, 40, 40)), save(tmp_path / name, pixels(1, 40, 40))]
    spoil(paths[1])
    with pytest.raises(DataError, match=rf"{paths[1]} .*{told}"):
        decode.from_files("bad", paths, 8)


# An image folder


def make_folder(root, layout, suffix="png"):
    """Images by part, class and count; gives their paths."""
    return [
        save(
            root / "set" / part / name / f"{i}.{suffix}", pixels(zlib.crc32(f"{part}/{name}/{i}".encode()), 10 + i, 12)
        )
        for part, classes in layout.items()
        for name, count in classes.items()
        for i in range(count)
    ]


def read_folder(side=8):
    return READERS["image_folder"](folder="set", side=side)


@pytest.mark.parametrize("test", ["test", "val"])
def test_a_folder_is_read_by_class_and_path(root, test):
    make_folder(root, {test: {"cat": 2, "ant": 1}, "train": {"cat": 2, "bee": 1, "ant": 3}})
    found = read_folder()
    paths = [*(f"train/ant/{i}" for i in range(3)), "train/bee/0", "train/cat/0", "train/cat/1"]
    paths += [f"{test}/ant/0", f"{test}/cat/0", f"{test}/cat/1"]
    assert found.labels.tolist() == [0, 0, 0, 1, 2, 2, 0, 2, 2]
    assert found.test.tolist() == [False] * 6 + [True] * 3
    assert (found.classes, found.metric) == (3, "top1")
    np.testing.assert_array_equal(found.images, [naive(root / "set" / f"{path}.png", 8) for path in paths])


def test_a_folder_is_prepared_without_a_second_copy_and_not_decoded_again(root, tmp_path, asked):
    make_folder(root, {"train": {"ant": 3, "bee": 2}, "test": {"ant": 1}})
    options = {"folder": "set", "side": 8}
    first = prepared.prepare("small", "image_folder", options, tmp_path / "manifests")
    assert len(asked) == 6
    assert len(list((root / "prepared").rglob("images.npy"))) == 1
    found = prepared.load(first)
    assert isinstance(found.images, np.memmap)
    assert prepared.prepare("small", "image_folder", options, tmp_path / "manifests") == first
    assert prepared.prepare("again", "image_folder", options, tmp_path)["sha256"] == first["sha256"]
    assert len(asked) == 6


def test_a_folder_that_changed_since_it_was_prepared_is_decoded_again(root, tmp_path):
    paths = make_folder(root, {"train": {"ant": 3, "bee": 2}, "test": {"ant": 1}})
    options = {"folder": "set", "side": 8}
    first = prepared.prepare("small", "image_folder", options, tmp_path / "manifests")
    save(paths[1], pixels(99))
    second = prepared.prepare("small", "image_folder", options, tmp_path / "manifests")
    assert second["sha256"] != first["sha256"]
    np.testing.assert_array_equal(prepared.load(second).images, [naive(path, 8) for path in paths])


@pytest.mark.parametrize("large", [False, True])
def test_a_damaged_decoded_set_is_mended_as_its_error_tells(root, tmp_path, monkeypatch, large):
    monkeypatch.setattr(prepared, "LARGE", 0 if large else 1 << 28)
    make_folder(root, {"train": {"ant": 3, "bee": 2}, "test": {"ant": 1}})
    manifest = prepared.prepare("small", "image_folder", {"folder": "set", "side": 8}, tmp_path / "manifests")
    (path,) = (root / "prepared").rglob("images.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"damaged .* remove {path.parent}"):
        prepared.load(manifest)
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    assert prepared.load(manifest).images.shape == (6, 8, 8, 3)
    assert path.read_bytes() == content


def test_preparing_mends_a_damaged_decoded_set(root, tmp_path):
    make_folder(root, {"train": {"ant": 3, "bee": 2}, "test": {"ant": 1}})
    options = {"folder": "set", "side": 8}
    manifest = prepared.prepare("small", "image_folder", options, tmp_path / "manifests")
    (path,) = (root / "prepared").rglob("images.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    assert prepared.prepare("small", "image_folder", options, tmp_path / "manifests") == manifest
    assert path.read_bytes() == content


TWO = {"train": {"ant": 1, "bee": 1}, "test": {"ant": 1}}
BAD_FOLDERS = {
    "no_train": ({"test": {"ant": 1}}, None, r"set/train is no folder; put"),
    "no_test": ({"train": {"ant": 1}}, None, r"either test/ or val/ .* neither is there"),
    "test_and_val": (TWO | {"val": {"ant": 1}}, None, r"either test/ or val/ .* both are there"),
    "no_class": ({"test": {"ant": 1}}, "train", r"train holds no class; put .* train/<class>/<image>"),
    "empty_class": (TWO, "train/cow", r"train/cow holds no image"),
    "class_only_in_test": (TWO | {"test": {"emu": 1}}, None, r"test/emu is of no class .* allowed: ant, bee"),
}


@pytest.mark.parametrize(("layout", "empty", "told"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
def test_a_folder_of_another_layout_is_refused(root, layout, empty, told):
    make_folder(root, layout)
    if empty:
        (root / "set" / empty).mkdir()
    with pytest.raises(DataError, match=told):
        read_folder()


def test_a_file_that_is_no_image_is_named_but_hidden_ones_are_left_alone(root):
    make_folder(root, TWO)
    (root / "set" / "train" / "ant" / ".hidden").write_text("")
    assert len(read_folder().images) == 3
    other = root / "set" / "train" / "ant" / "list.txt"
    other.write_text("")
    with pytest.raises(DataError, match=rf"{other} is no image; remove it"):
        read_folder()


# numpy archives


IMAGES = np.stack([pixels(i) for i in range(8)])
LABELS = np.arange(8) % 3


def write_npz(root, train=None, test=None):
    for name, arrays, rows in (("train", train, slice(0, 6)), ("test", test, slice(6, 8))):
        np.savez(root / f"{name}.npz", **(arrays or {"images": IMAGES[rows], "labels": LABELS[rows]}))


def read_npz(root):
    return READERS["npz"](train="train.npz", test=str(root / "test.npz"))


@pytest.mark.parametrize("images", ["images", "x", "data"])
@pytest.mark.parametrize("labels", ["labels", "y", "targets"])
def test_archives_are_read_under_each_documented_name(root, images, labels):
    write_npz(root, train={images: IMAGES[:6], labels: LABELS[:6].astype(np.uint8), "file_names": LABELS})
    found = read_npz(root)
    np.testing.assert_array_equal(found.images, IMAGES)
    assert found.labels.tolist() == LABELS.tolist()
    assert found.labels.dtype == np.int64
    assert found.test.tolist() == [False] * 6 + [True] * 2
    assert found.classes == 3


def test_archives_of_gray_images_have_one_channel(root):
    parts = [{"x": IMAGES[rows, ..., 0], "y": LABELS[rows]} for rows in (slice(0, 6), slice(6, 8))]
    write_npz(root, *parts)
    assert read_npz(root).images.shape == (8, 12, 10, 1)


TRAIN = {"images": IMAGES[:6], "labels": LABELS[:6]}
BAD_ARCHIVES = {
    "no_images": ({"labels": LABELS[:6]}, None, r"train.npz: images want .* images or x or data; it holds labels"),
    "images_twice": (TRAIN | {"x": IMAGES[:6]}, None, r"train.npz: images want one array"),
    "floats": (TRAIN | {"images": IMAGES[:6] / 255}, None, r"train.npz: images want .* not \(6, 12, 10, 3\) float64"),
    "channels_first": (TRAIN | {"images": IMAGES[:6].transpose(0, 3, 1, 2)}, None, r"not \(6, 3, 12, 10\) uint8"),
    "a_label_too_few": (TRAIN | {"labels": LABELS[:5]}, None, r"6 images want labels of shape \(6,\).* not \(5,\)"),
    "fractions": (TRAIN | {"labels": LABELS[:6] / 2}, None, r"whole numbers, not \(6,\) float64"),
    "below_zero": (TRAIN | {"labels": LABELS[:6] - 1}, None, r"train.npz: label -1 is below 0"),
    "of_no_class": (None, {"images": IMAGES[6:], "labels": LABELS[6:] + 5}, r"test.npz: label 6 is of no class"),
    "another_size": (None, {"images": IMAGES[6:, 1:], "labels": LABELS[6:]}, r"test.npz: images are \(11, 10, 3\)"),
    "nothing": ({"images": IMAGES[:0], "labels": LABELS[:0]}, None, "train.npz: holds no image"),
    "objects": (TRAIN | {"labels": np.array([None] * 6)}, None, r"train.npz cannot be read"),
}


@pytest.mark.parametrize(("train", "test", "told"), BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_malformed_archive_is_named(root, train, test, told):
    write_npz(root, train, test)
    with pytest.raises(DataError, match=told):
        read_npz(root)


@pytest.mark.parametrize("damage", ["absent", "cut", "one_byte", "array"])
def test_a_damaged_archive_is_named(root, damage):
    write_npz(root)
    path = root / "train.npz"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one_byte":
        path.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, IMAGES)
    with pytest.raises(DataError, match=rf"{path} (is missing|cannot be read)"):
        read_npz(root)


# Digits


def test_the_small_digits_are_those_of_scikit_learn(root):
    from sklearn.datasets import load_digits

    found, published = READERS["digits"](side=8, test=360), load_digits()
    assert np.abs(found.images[..., 0] - published.images * 255 / 16).max() <= 0.5
    assert (found.images.min(), found.images.max()) == (0, 255)
    np.testing.assert_array_equal(found.labels, published.target)
    assert found.test.sum() == 360


def test_the_small_digits_are_resized_as_every_image_is(root):
    small, large = (READERS["digits"](side=side, test=360) for side in (8, 28))
    assert large.images.shape == (1_797, 28, 28, 1)
    np.testing.assert_array_equal(large.test, small.test)
    for i in (0, 1_796):
        resized = Image.fromarray(small.images[i, ..., 0]).resize((28, 28), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(large.images[i, ..., 0], np.asarray(resized))


@pytest.mark.parametrize(("first", "last"), [(0, 4), (5, 9)])
def test_some_classes_of_the_digits_keep_images_and_split(first, last):
    whole = READERS["embedded_mnist"](test=1_000)
    part = READERS["embedded_mnist_classes"](first=first, last=last, test=1_000)
    rows = np.flatnonzero((whole.labels >= first) & (whole.labels <= last))
    np.testing.assert_array_equal(part.images, whole.images[rows])
    np.testing.assert_array_equal(part.labels + first, whole.labels[rows])
    np.testing.assert_array_equal(part.test, whole.test[rows])
    assert np.bincount(part.labels).tolist() == [500] * 5 == [500] * part.classes


@pytest.mark.parametrize(("first", "last"), [(4, 4), (5, 4), (5, 10)])
def test_classes_that_are_not_there_are_refused(first, last):
    with pytest.raises(DataError, match=f"first < last <= 9, not {first} and {last}"):
        READERS["embedded_mnist_classes"](first=first, last=last, test=1_000)


# Published sets, as tiny files in their own layouts. Each builder gives the wanted rows, training first:
# the file or the pixels, the label, and whether it is a test row.


def idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(head + array.tobytes())


def make_mnist(root, patch, folder="MNIST"):
    images, labels = IMAGES[:5, :, :, 0], np.array([0, 9, 1, 3, 3], dtype=np.uint8)
    for prefix, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        idx(root / folder / "raw" / f"{prefix}-images-idx3-ubyte", images[rows])
        idx(root / folder / "raw" / f"{prefix}-labels-idx1-ubyte", labels[rows])
    return [(images[i, ..., None], labels[i], i > 2) for i in range(5)]


def make_fashion_mnist(root, patch):
    return make_mnist(root, patch, "FashionMNIST")


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def make_cifar10(root, patch, kind="CIFAR10", folder="cifar-10-batches-py", key="labels"):
    import torchvision

    images, labels = np.stack([pixels(i, 32, 32) for i in range(5)]), [3, 1, 4, 1, 5]
    (root / folder).mkdir()
    lists = {"train_list": [("one", slice(0, 2)), ("two", slice(2, 3))], "test_list": [("last", slice(3, 5))]}
    for name, batches in lists.items():
        for file, rows in batches:
            content = {"data": images[rows].transpose(0, 3, 1, 2).reshape(-1, 3_072), key: labels[rows]}
            (root / folder / file).write_bytes(pickle.dumps(content))
        found = [[file, md5(root / folder / file)] for file, _ in batches]
        patch.setattr(getattr(torchvision.datasets, kind), name, found)
    meta = root / folder / "meta"
    meta.write_bytes(pickle.dumps({"names": list("abcdef")}))
    told = {"filename": "meta", "key": "names", "md5": md5(meta)}
    patch.setattr(getattr(torchvision.datasets, kind), "meta", told)
    return [(images[i], labels[i], i > 2) for i in range(5)]


def make_cifar100(root, patch):
    return make_cifar10(root, patch, "CIFAR100", "cifar-100-python", "fine_labels")


def write_stl10(root, patch):
    from torchvision.datasets import STL10

    images = np.stack([pixels(i, 96, 96) for i in range(6)])
    folder = root / "stl10_binary"
    folder.mkdir()
    for name, rows in (("train", slice(0, 2)), ("test", slice(2, 4)), ("unlabeled", slice(4, 6))):
        (folder / f"{name}_X.bin").write_bytes(images[rows].transpose(0, 3, 2, 1).tobytes())
        (folder / f"{name}_y.bin").write_bytes(bytes([1, 10]))
    for name, files in (
        ("train_list", ["train_X.bin", "train_y.bin", "unlabeled_X.bin"]),
        ("test_list", ["test_X.bin", "test_y.bin"]),
    ):
        patch.setattr(STL10, name, [[file, md5(folder / file)] for file in files])
    return images


def make_stl10(root, patch):
    images = write_stl10(root, patch)
    return [(images[i], (0, 9)[i % 2], i > 1) for i in range(4)]


def make_stl10_unlabeled(root, patch):
    return [(image, 0, False) for image in write_stl10(root, patch)[4:]]


def make_svhn(root, patch):
    from torchvision.datasets import SVHN

    images, labels = np.stack([pixels(i, 32, 32) for i in range(4)]), [10, 1, 9, 10]
    lists = {}
    for part, rows in (("train", slice(0, 2)), ("test", slice(2, 4))):
        path = root / f"{part}_32x32.mat"
        savemat(path, {"X": images[rows].transpose(1, 2, 3, 0), "y": np.array(labels[rows], dtype=np.uint8)[:, None]})
        lists[part] = ["", path.name, md5(path)]
    patch.setattr(SVHN, "split_list", lists)
    return [(images[i], labels[i] % 10, i > 1) for i in range(4)]


def files(folder, names, suffix=".jpg"):
    return [save(folder / f"{name}{suffix}", pixels(i, 20 + i, 26)) for i, name in enumerate(names)]


def rows_of(paths, labels, trained):
    return [(path, label, i >= trained) for i, (path, label) in enumerate(zip(paths, labels, strict=True))]


def make_food101(root, patch):
    folder = root / "food-101"
    names = ["pie/1", "pie/2", "bun/3", "bun/4"]
    paths = files(folder / "images", names)
    (folder / "meta").mkdir()
    (folder / "meta" / "train.json").write_text(json.dumps({"pie": names[:2], "bun": names[2:3]}))
    (folder / "meta" / "test.json").write_text(json.dumps({"bun": names[3:], "pie": []}))
    return rows_of(paths, [1, 1, 0, 0], 3)


def make_sun397(root, patch):
    folder = root / "SUN397"
    names = ["a/abbey/sun_a", "b/barn/indoor/sun_b", "a/abbey/sun_c", "b/barn/indoor/sun_d"]
    paths = files(folder, names)
    files(folder, ["a/abbey/sun_unlisted"])
    (folder / "ClassName.txt").write_text("/a/abbey\n/b/barn/indoor\n")
    (folder / "Training_01.txt").write_text("".join(f"/{name}.jpg\n" for name in names[:2]))
    (folder / "Testing_01.txt").write_text("".join(f"/{name}.jpg\n" for name in names[2:]))
    return rows_of(paths, [0, 1, 0, 1], 2)


def make_cars(root, patch):
    folder = root / "stanford_cars"
    paths = files(folder, ["cars_train/1", "cars_train/2", "cars_test/1", "cars_test/2"])
    (folder / "devkit").mkdir()
    kind = [("fname", object), ("class", object)]

    def annotate(path, rows):
        savemat(path, {"annotations": np.array([(f"{name}.jpg", label) for name, label in rows], dtype=kind)})

    annotate(folder / "devkit" / "cars_train_annos.mat", [("1", 196), ("2", 1)])
    annotate(folder / "cars_test_annos_withlabels.mat", [("1", 2), ("2", 196)])
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": np.array(["a", "b"], dtype=object)})
    return rows_of(paths, [195, 0, 1, 195], 2)


def make_aircraft(root, patch):
    folder = root / "fgvc-aircraft-2013b" / "data"
    paths = files(folder / "images", ["10", "11", "12"])
    (folder / "variants.txt").write_text("707-320\nA 340\n")
    (folder / "images_variant_trainval.txt").write_text("10 A 340\n11 707-320\n")
    (folder / "images_variant_test.txt").write_text("12 A 340\n")
    return rows_of(paths, [1, 0, 1], 2)


def make_voc2007(root, patch):
    folder = root / "VOCdevkit" / "VOC2007"
    things = [[("dog", 0), ("dog", 1)], [("person", 0), ("aeroplane", 0)], [("cat", 1), ("tvmonitor", 0)], [("cat", 1)]]
    paths = files(folder / "JPEGImages", ["000001", "000002", "000003", "000004"])
    (folder / "Annotations").mkdir()
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for path, seen in zip(paths, things, strict=True):
        text = "".join(f"<object><name>{n}</name><difficult>{d}</difficult></object>" for n, d in seen)
        (folder / "Annotations" / f"{path.stem}.xml").write_text(f"<annotation>{text}</annotation>")
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("000001\n000002\n")
    (folder / "ImageSets" / "Main" / "test.txt").write_text("000003\n000004\n")
    shown = [{11}, {14, 0}, {19}, set()]
    return rows_of(paths, [[int(c in classes) for c in range(20)] for classes in shown], 2)


def make_dtd(root, patch):
    folder = root / "dtd" / "dtd"
    names = ["dots/a", "waves/b", "dots/c", "waves/d", "dots/e", "waves/f"]
    paths = files(folder / "images", names)
    (folder / "labels").mkdir()
    for part, some in (("train1", names[:2]), ("val1", names[2:4]), ("test1", names[4:]), ("train2", names[::2])):
        (folder / "labels" / f"{part}.txt").write_text("".join(f"{name}.jpg\n" for name in some))
    return rows_of(paths, [0, 1] * 3, 4)


def make_pets(root, patch):
    folder = root / "oxford-iiit-pet"
    paths = files(folder / "images", ["Abyssinian_1", "pug_2", "pug_3"])
    (folder / "annotations").mkdir()
    (folder / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\npug_2 37 2 25\n")
    (folder / "annotations" / "test.txt").write_text("pug_3 37 2 25\n")
    return rows_of(paths, [0, 36, 36], 2)


def make_caltech101(root, patch):
    folder = root / "caltech101"
    names = ["ant/image_0001", "BACKGROUND_Google/image_0001", "ant/image_0002"]
    paths = files(folder / "101_ObjectCategories", names)
    (folder / "train.txt").write_text("".join(f"{name}.jpg\n" for name in names[:2]))
    (folder / "test.txt").write_text(f"{names[2]}.jpg\n")
    return rows_of(paths, [1, 0, 1], 2)


def make_flowers102(root, patch):
    from torchvision.datasets import Flowers102

    folder = root / "flowers-102"
    paths = files(folder / "jpg", [f"image_{i:05}" for i in range(1, 7)])
    savemat(folder / "imagelabels.mat", {"labels": np.array([1, 102, 2, 3, 102, 1])})
    savemat(folder / "setid.mat", {"trnid": [6, 2], "valid": [1, 4], "tstid": [3, 5]})
    told = {name: (file, md5(folder / file)) for name, file in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    patch.setattr(Flowers102, "_file_dict", {**Flowers102._file_dict, **told})
    order = [6, 2, 1, 4, 3, 5]
    return rows_of([paths[i - 1] for i in order], [0, 101, 0, 2, 1, 101], 4)


MAKE = {name: globals()[f"make_{name}"] for name in torchvision_set.SETS}


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("side", [0, 8])
def test_a_published_set_is_read_from_its_own_layout(root, tmp_path, monkeypatch, name, side):
    wanted = MAKE[name](root, monkeypatch)
    of_files = isinstance(wanted[0][0], Path)
    if of_files and not side:
        with pytest.raises(DataError, match=r"set `side`"):
            READERS["torchvision_set"](set=name, side=0)
        return
    found = READERS["torchvision_set"](set=name, side=side)
    np.testing.assert_array_equal(found.labels, [label for _, label, _ in wanted])
    assert found.test.tolist() == [test for _, _, test in wanted]
    assert found.classes == torchvision_set.SETS[name].classes
    for i, (source, _, _) in enumerate(wanted):
        path = source if of_files else save(tmp_path / "image.png", source)
        image = source if not side else naive(path, side)
        np.testing.assert_array_equal(found.images[i], image[..., : found.images.shape[3]])


# Table 3 of NNCLR: training (with validation) and test images, classes, metric
TABLE = {
    "food101": (75_750, 25_250, 101, "top1"),
    "cifar10": (50_000, 10_000, 10, "top1"),
    "cifar100": (50_000, 10_000, 100, "top1"),
    "sun397": (19_850, 19_850, 397, "top1"),
    "cars": (8_144, 8_041, 196, "top1"),
    "aircraft": (6_667, 3_333, 100, "mean_per_class"),
    "voc2007": (5_011, 4_952, 20, "map11"),
    "dtd": (3_760, 1_880, 47, "top1"),
    "pets": (3_680, 3_669, 37, "mean_per_class"),
    "caltech101": (3_060, 6_084, 102, "mean_per_class"),
    "flowers102": (2_040, 6_149, 102, "mean_per_class"),
}


def test_sizes_and_metrics_are_those_of_the_transfer_table():
    for name, row in TABLE.items():
        known = torchvision_set.SETS[name]
        assert (*known.sizes, known.classes, known.metric) == row


def test_a_set_of_another_size_than_the_published_is_remarked_on(root, monkeypatch):
    make_dtd(root, monkeypatch)
    notes = READERS["torchvision_set"](set="dtd", side=8).notes
    assert notes == ("4 training and 2 test images; published are 3760 training and 1880 test images",)


def test_without_lists_caltech_is_drawn_by_address_and_says_so(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    for name, count in (("BACKGROUND_Google", 31), ("ant", 45)):
        files(folder / name, [f"image_{i:04}" for i in range(count)])
    (folder / "BACKGROUND_Google" / "tmp").write_text("")
    first, second = (READERS["torchvision_set"](set="caltech101", side=8) for _ in range(2))
    assert np.bincount(first.labels[~first.test]).tolist() == [30, 30]
    assert np.bincount(first.labels[first.test]).tolist() == [1, 15]
    assert "drawn by address" in first.notes[0]
    np.testing.assert_array_equal(first.images, second.images)
    assert len({image.tobytes() for image in first.images}) == 45  # both parts together are the whole set


def test_a_list_that_is_alone_is_refused(root, monkeypatch):
    make_caltech101(root, monkeypatch)
    (root / "caltech101" / "test.txt").unlink()
    with pytest.raises(DataError, match=r"train.txt is alone: put the other list there"):
        READERS["torchvision_set"](set="caltech101", side=8)


def test_sun_without_its_lists_tells_where_they_go(root, monkeypatch):
    make_sun397(root, monkeypatch)
    (root / "SUN397" / "Testing_01.txt").unlink()
    with pytest.raises(DataError, match=r"SUN397/Testing_01.txt is missing: .*Partitions.zip"):
        READERS["torchvision_set"](set="sun397", side=8)


@pytest.mark.parametrize("name", MAKE)
def test_an_absent_set_that_cannot_be_downloaded_tells_what_goes_where(root, name):
    with pytest.raises(DataError) as caught:
        READERS["torchvision_set"](set=name, side=8)
    message, known = str(caught.value), torchvision_set.SETS[name]
    assert f"{name}: {root / known.files[0]} is missing" in message
    assert known.get.format(root=root) in message
    assert "downloading failed" in message


ADDRESSES = {
    "cifar10": lambda datasets: datasets.CIFAR10.url,
    "cifar100": lambda datasets: datasets.CIFAR100.url,
    "stl10": lambda datasets: datasets.STL10.url,
    "svhn": lambda datasets: datasets.SVHN.split_list["train"][0].rpartition("/")[0],
    "fashion_mnist": lambda datasets: datasets.FashionMNIST.mirrors[0],
    "mnist": lambda datasets: datasets.MNIST.mirrors[0],
    "food101": lambda datasets: datasets.Food101._URL,
    "sun397": lambda datasets: datasets.SUN397._DATASET_URL,
    "aircraft": lambda datasets: datasets.FGVCAircraft._URL,
    "voc2007": lambda datasets: datasets.voc.DATASET_YEAR_DICT["2007-test"]["url"],
    "dtd": lambda datasets: datasets.DTD._URL,
    "pets": lambda datasets: datasets.OxfordIIITPet._RESOURCES[1][0],
    "flowers102": lambda datasets: datasets.Flowers102._download_url_prefix + "102flowers.tgz",
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_the_addresses_told_are_those_that_torchvision_downloads_from(name):
    from torchvision import datasets

    assert ADDRESSES[name](datasets) in torchvision_set.SETS[name].get


@pytest.mark.parametrize("name", ["cifar10", "stl10", "svhn"])
def test_a_damaged_file_of_a_set_is_named(root, monkeypatch, name):
    MAKE[name](root, monkeypatch)
    path = {"cifar10": "cifar-10-batches-py/two", "stl10": "stl10_binary/test_y.bin", "svhn": "test_32x32.mat"}[name]
    (root / path).write_bytes((root / path).read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{name}: {root / path} is damaged \(its md5 is another\); put there"):
        READERS["torchvision_set"](set=name, side=0)


def test_a_damaged_annotation_is_named(root, monkeypatch):
    make_voc2007(root, monkeypatch)
    path = root / "VOCdevkit" / "VOC2007" / "Annotations" / "000003.xml"
    path.write_text("<annotation>")
    with pytest.raises(DataError, match=rf"{path} cannot be read"):
        READERS["torchvision_set"](set="voc2007", side=8)


def test_many_labels_go_through_preparing(root, tmp_path, monkeypatch):
    make_voc2007(root, monkeypatch)
    with pytest.raises(DataError, match="voc2007: class 1 has no training row"):
        prepared.prepare("voc2007", "torchvision_set", {"set": "voc2007", "side": 8}, tmp_path)


# All readers


GOOD = {
    "embedded_mnist": {"test": 1_000},
    "embedded_mnist_classes": {"first": 0, "last": 4, "test": 1_000},
    "digits": {"side": 8, "test": 360},
    "scenes": {"test": 1_000, "hues": 3, "spread": 0.1, "texture": 0.05},
    "image_folder": {"folder": "imagenet", "side": 224},
    "image_folder_lists": {"folder": "imagenet", "side": 256, "label_lists": {"0.01": "1percent.txt"}},
    "npz": {"train": "train.npz", "test": "test.npz"},
    "torchvision_set": {"set": "cifar10", "side": 0},
}


@pytest.mark.parametrize("reader", READERS)
def test_options_are_checked_before_anything_is_read(reader):
    assert check_options(READERS, "datasets.x.options", reader, GOOD[reader]) == []
    for option in GOOD[reader]:
        wrong = check_options(READERS, "datasets.x.options", reader, GOOD[reader] | {option: -1})
        assert wrong, option


def test_making_a_set_ready_leaves_torch_out_of_the_process(root, tmp_path, monkeypatch):
    make_mnist(root, monkeypatch)
    labels = np.arange(10, dtype=np.uint8)  # every class wants a training row
    idx(root / "MNIST" / "raw" / "train-images-idx3-ubyte", np.stack([pixels(i, 28, 28, 1)[..., 0] for i in range(10)]))
    idx(root / "MNIST" / "raw" / "train-labels-idx1-ubyte", labels)
    idx(root / "MNIST" / "raw" / "t10k-images-idx3-ubyte", pixels(3, 28, 28, 1)[None, ..., 0])
    idx(root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte", labels[:1])
    script = """
import json, sys
from pathlib import Path
from bench.data.prepared import ensure, load
if __name__ == "__main__":
    made = [ensure("tiny", "torchvision_set", {"set": "mnist", "side": 0}, Path("manifests")) for _ in range(2)]
    assert made[0] == made[1]
    assert load(made[0]).images.shape == (11, 28, 28, 1)
    assert not {"torch", "torchvision", "PIL"} & set(sys.modules), "too much was imported"
    print(json.dumps(made[0]["duplicates"]))
"""
    (tmp_path / "script.py").write_text(script)
    found = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {"within_train": 0, "within_test": 0, "across": 1}
    assert "tiny: 1 of 1 test images are training images too" in found.stderr


# Real sets, where the data root has them


def real(root, *places):
    for place in places:
        if not (GIVEN / place).exists():
            pytest.skip(f"{GIVEN / place} is not there (BENCH_DATA names the folder that holds it)")
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(GIVEN / place)


def test_real_cifar10_has_its_published_content(root, tmp_path):
    real(root, "cifar-10-batches-py")
    manifest = prepared.prepare("cifar10", "torchvision_set", {"set": "cifar10", "side": 0}, tmp_path)
    assert [manifest[k] for k in ("rows", "test_rows", "height", "channels", "notes")] == [60_000, 10_000, 32, 3, []]
    assert manifest["per_class"] == [6_000] * 10
    assert manifest["duplicates"]["across"] == 0
    found = prepared.load(manifest)
    assert found.labels[:5].tolist() == [6, 9, 9, 4, 1]  # frog, truck, truck, deer, automobile
    means = found.images[:50_000].mean((0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=1e-4)  # as published everywhere


def test_real_mnist_has_its_published_content(root, tmp_path):
    real(root, "MNIST")
    manifest = prepared.prepare("mnist", "torchvision_set", {"set": "mnist", "side": 0}, tmp_path)
    assert [manifest[k] for k in ("rows", "test_rows", "height", "channels", "notes")] == [70_000, 10_000, 28, 1, []]
    found = prepared.load(manifest)
    assert found.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert found.images[:60_000].mean() / 255 == pytest.approx(0.1307, abs=1e-4)


def test_the_embedded_digits_are_rows_of_real_mnist(root):
    real(root, "MNIST")
    whole = {image.tobytes() for image in READERS["torchvision_set"](set="mnist", side=0).images}
    assert all(image.tobytes() in whole for image in READERS["embedded_mnist"](test=1_000).images)


def test_a_real_subset_of_cifar100_is_read_from_its_archives(root, tmp_path):
    real(root, "cifar100_subset/train.npz", "cifar100_subset/test.npz")
    options = {"train": "cifar100_subset/train.npz", "test": "cifar100_subset/test.npz"}
    manifest = prepared.prepare("cifar100_subset", "npz", options, tmp_path)
    assert [manifest[k] for k in ("height", "channels", "classes")] == [32, 3, 100]
    assert manifest["rows"] == sum(manifest["per_class"])
    assert min(manifest["per_class"]) == max(manifest["per_class"])
