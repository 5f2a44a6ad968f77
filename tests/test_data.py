"""Image sets: the embedded digits, splits, and arrays that are checked, mended and made again."""

import hashlib
import json
import os
import shutil
from itertools import pairwise

import numpy as np
import pytest

from bench.data import READERS, content, prepared
from bench.data.source import DataError, ImageSet
from bench.data.splits import split

ARRAYS = ("images", "labels", "test")


@pytest.fixture(scope="module")
def digits():
    return READERS["embedded_mnist"](test=1_000)


def test_the_digits_are_five_hundred_of_each_class(digits):
    assert digits.images.shape == (5_000, 28, 28, 1)
    assert digits.classes == 10
    assert np.bincount(digits.labels).tolist() == [500] * 10
    assert digits.test.sum() == 1_000


def test_the_digits_are_images_of_ink_on_an_empty_border(digits):
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.images[:, 0].max() < digits.images[:, 14].max()
    # MNIST's digits fill the 20x20 pixels in the middle; their mean ink is .13
    assert digits.images.mean() / 255 == pytest.approx(0.13, abs=0.01)


def test_digits_of_one_class_look_alike(digits):
    means = np.stack([digits.images[digits.labels == c].mean(0).ravel() for c in range(10)])
    pixels = digits.images.reshape(5_000, -1).astype(np.float64)
    distances = (means**2).sum(1) - 2 * pixels @ means.T
    assert (distances.argmin(1) == digits.labels).mean() > 0.75  # nearest mean: .1 at chance


@pytest.mark.parametrize("test", [1, 4_999])
def test_a_smaller_test_split_lies_inside_a_larger_one(digits, test):
    marks = READERS["embedded_mnist"](test=test).test
    assert marks.sum() == test
    inner, outer = sorted([marks, digits.test], key=np.sum)
    assert not (inner & ~outer).any()


def test_a_test_split_of_everything_is_refused():
    with pytest.raises(DataError, match="fewer than the 5000 digits, not 5000"):
        READERS["embedded_mnist"](test=5_000)


def images_of(n, test, seed=0):
    draws = np.random.default_rng(seed)
    images = draws.integers(0, 256, (n, 4, 5, 3), dtype=np.uint8)
    marks = np.arange(n) % (n // test) == 0 if test else np.zeros(n, dtype=bool)
    return ImageSet(images, draws.integers(0, 3, n), marks, 3)


def test_the_default_split_has_the_documented_sizes(digits):
    found = split(digits, validation=0.1, fraction=1.0)
    sizes = [len(part) for part in (found.train, found.labelled, found.validation, found.test)]
    assert sizes == [3_600, 3_600, 400, 1_000]


@pytest.mark.parametrize("fraction", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("validation", [0.0, 0.1, 0.75])
def test_parts_are_disjoint_and_cover_the_set(digits, validation, fraction):
    found = split(digits, validation=validation, fraction=fraction)
    parts = np.concatenate([found.labelled, found.validation, found.test])
    assert sorted(parts) == list(range(5_000))
    assert set(found.train) <= set(found.labelled)
    assert len(found.train) == round(fraction * len(found.labelled))
    assert not digits.test[found.labelled].any()
    assert not digits.test[found.validation].any()
    assert digits.test[found.test].all()


def test_each_part_is_in_the_order_of_its_rows(digits):
    found = split(digits, validation=0.1, fraction=0.3)
    for part in (found.train, found.labelled, found.validation, found.test):
        assert (np.diff(part) > 0).all()


def test_smaller_fractions_lie_inside_larger_ones(digits):
    shares = [split(digits, validation=0.1, fraction=f) for f in (0.01, 0.1, 0.5, 0.99, 1.0)]
    for small, large in pairwise(shares):
        assert set(small.train) < set(large.train)
        np.testing.assert_array_equal(small.validation, large.validation)
        np.testing.assert_array_equal(small.labelled, large.labelled)


def test_a_smaller_validation_part_lies_inside_a_larger_one(digits):
    small, large = (split(digits, validation=v, fraction=1.0) for v in (0.1, 0.2))
    assert set(small.validation) < set(large.validation)


def test_a_split_is_the_same_every_time_and_asks_only_for_the_test_marks():
    first, second = images_of(90, 30), images_of(90, 30, seed=1)
    for part in ("train", "labelled", "validation", "test"):
        one, other = (getattr(split(s, validation=0.2, fraction=0.5), part) for s in (first, second))
        np.testing.assert_array_equal(one, other)


def test_classes_are_split_about_evenly(digits):
    counts = np.bincount(digits.labels[split(digits, validation=0.1, fraction=1.0).validation], minlength=10)
    # 400 rows of 10 classes: five standard deviations of a count, sqrt(400 * .1 * .9) each
    assert abs(counts - 40).max() < 30


@pytest.mark.parametrize(("validation", "fraction"), [(0.1, 1e-9), (0.999, 1.0)])
def test_a_split_that_leaves_nothing_to_train_on_is_refused(validation, fraction):
    with pytest.raises(DataError, match=f"validation {validation} and fraction {fraction} leave none of 60"):
        split(images_of(90, 30), validation=validation, fraction=fraction)


GOOD = {
    "images": np.zeros((3, 4, 4, 1), dtype=np.uint8),
    "labels": np.array([0, 1, 1]),
    "test": np.zeros(3, dtype=bool),
    "classes": 2,
}
BAD = {
    "no_channels": ({"images": GOOD["images"][..., 0]}, r"images want shape .* not \(3, 4, 4\)"),
    "two_channels": ({"images": GOOD["images"].repeat(2, 3)}, r"1 or 3\), not \(3, 4, 4, 2\)"),
    "floats": ({"images": GOOD["images"] / 255}, "images want uint8, not float64"),
    "a_label_too_few": ({"labels": GOOD["labels"][1:]}, r"3 images want as many labels .* \(2,\) and \(3,\)"),
    "a_mark_too_few": ({"test": GOOD["test"][1:]}, r"3 images want as many .* \(3,\) and \(2,\)"),
    "a_label_too_large": ({"classes": 1}, "labels want 0 to 0, not 0 to 1"),
    "a_label_below_zero": ({"labels": GOOD["labels"] - 1}, "labels want 0 to 1, not -1 to 0"),
    "an_unknown_metric": ({"metric": "top5"}, "one of top1, mean_per_class, map11, not top5"),
    "one_label_where_many_are_wanted": ({"metric": "map11"}, r"3 images want as many .* \(3,\) and \(3,\)"),
    "a_count_in_place_of_a_mark": (
        {"metric": "map11", "labels": np.full((3, 2), 2, dtype=np.uint8)},
        "labels want 0 to 1, not 2 to 2",
    ),
}


@pytest.mark.parametrize(("change", "told"), BAD.values(), ids=BAD)
def test_a_malformed_image_set_is_refused(change, told):
    ImageSet(**GOOD)
    with pytest.raises(DataError, match=told):
        ImageSet(**(GOOD | change))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The digits prepared once: their manifest and the data root."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENCH_DATA", str(folder / "root"))
        manifest = prepared.prepare("digits", "embedded_mnist", {"test": 1_000}, folder / "manifests")
    return manifest, folder


@pytest.fixture
def ready(made, tmp_path, monkeypatch):
    """A copy of them, under a data root of its own: the manifest and the arrays' folder."""
    manifest, folder = made
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "root"))
    prepared._load.cache_clear()  # what is loaded is kept, whatever the data root
    (arrays,) = (tmp_path / "root" / "prepared").iterdir()
    yield manifest, arrays
    prepared._load.cache_clear()


def assert_equal_sets(one, other):
    for array in ARRAYS:
        assert getattr(one, array).dtype == getattr(other, array).dtype
        np.testing.assert_array_equal(getattr(one, array), getattr(other, array))
    assert one.classes == other.classes


def test_what_is_loaded_is_what_was_read(ready, digits):
    assert_equal_sets(prepared.load(ready[0]), digits)


def test_a_manifest_tells_what_the_set_holds_and_vouches_for_its_arrays(ready, tmp_path):
    manifest, _ = ready
    sizes = ("rows", "test_rows", "height", "width", "channels", "classes", "metric", "per_class", "notes")
    assert [manifest[k] for k in sizes] == [5_000, 1_000, 28, 28, 1, 10, "top1", [500] * 10, []]
    assert manifest["duplicates"] == {"within_train": 0, "within_test": 0, "across": 0}
    assert json.loads((tmp_path / "manifests" / "digits.json").read_text()) == manifest
    # recorded from the first version; another checksum moves the key of every cell
    assert {array: checksum[:12] for array, checksum in manifest["arrays"].items()} == {
        "images": "6ef7cb59e088",
        "labels": "ff363887bfbe",
        "test": "269a6cd54daa",
    }
    assert manifest["sha256"] == "b9a4925e891053262ca792c7809de260152c6b18f3db85531bd7be49ab5f983f"


def test_another_split_has_another_checksum_and_folder(ready, tmp_path):
    other = prepared.prepare("digits", "embedded_mnist", {"test": 200}, tmp_path / "manifests")
    assert other["sha256"] != ready[0]["sha256"]
    assert len(list(ready[1].parent.iterdir())) == 2


def test_preparing_again_writes_the_same_manifest_and_leaves_the_arrays(ready, tmp_path):
    folder = ready[1]
    path = tmp_path / "manifests" / "digits.json"
    text, times = path.read_bytes(), {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    prepared.prepare("digits", "embedded_mnist", {"test": 1_000}, tmp_path / "manifests")
    assert path.read_bytes() == text
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == times


@pytest.mark.parametrize("absent", [ARRAYS, ("labels",)], ids=["all", "one"])
def test_absent_arrays_are_made_again(ready, digits, absent):
    manifest, folder = ready
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for array in absent:
        (folder / f"{array}.npy").unlink()
    assert_equal_sets(prepared.load(manifest), digits)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_an_absent_folder_is_made_again(ready, digits):
    manifest, folder = ready
    shutil.rmtree(folder)  # what the errors below tell to do
    assert_equal_sets(prepared.load(manifest), digits)


def test_a_source_that_changed_is_refused(ready):
    manifest, folder = ready
    shutil.rmtree(folder)
    changed = manifest | {"arrays": manifest["arrays"] | {"labels": "0" * 64}}
    with pytest.raises(DataError, match=r"source of 'digits' is no longer .* `dvc repro`"):
        prepared.load(changed)
    assert not folder.exists()


DAMAGES = {
    "one_bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "half": lambda content: content[: len(content) // 2],
    "part_of_the_header": lambda content: content[:40],
    "other_bytes": lambda content: b"x" * len(content),
    "nothing": lambda content: b"",
}


def spoil(path, damage):
    content = path.read_bytes()
    path.unlink()  # the images may be mapped into memory
    path.write_bytes(damage(content))


def damages(*names):
    return [pytest.param(DAMAGES[name], id=name) for name in names]


@pytest.mark.parametrize("damage", damages(*DAMAGES))
@pytest.mark.parametrize("array", ARRAYS)
def test_a_damaged_array_is_named_with_its_mend(ready, array, damage):
    manifest, folder = ready
    spoil(folder / f"{array}.npy", damage)
    with pytest.raises(DataError) as caught:
        prepared.load(manifest)
    message = str(caught.value)
    assert str(folder / f"{array}.npy") in message
    assert f"remove {folder} and run again" in message


@pytest.mark.parametrize("damage", damages("one_bit", "nothing"))
def test_preparing_mends_damaged_arrays(ready, digits, tmp_path, damage):
    manifest, folder = ready
    spoil(folder / "labels.npy", damage)
    prepared.prepare("digits", "embedded_mnist", {"test": 1_000}, tmp_path / "manifests")
    assert_equal_sets(prepared.load(manifest), digits)


def test_the_data_root_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "here"))
    assert prepared.data_root() == tmp_path / "here"
    monkeypatch.delenv("BENCH_DATA")
    assert prepared.data_root().parts[-2:] == ("data", "raw")


def written_at_once(array):
    """The digest as it was first defined: of type, shape and all bytes in one piece."""
    return hashlib.sha256(
        f"{array.dtype.str}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
    ).hexdigest()


ANY = np.random.default_rng(0).integers(0, 256, (70, 6, 5, 3), dtype=np.uint8)
SHAPED = {
    "images": ANY,
    "strided": ANY[::2, :, ::-1],
    "transposed": ANY.transpose(0, 2, 1, 3),
    "labels": np.arange(70),
    "marks": np.arange(70) % 3 == 0,
    "many_labels": ANY[..., 0, 0] % 2,
    "empty": ANY[:0],
    "no_pixels": ANY[:, :0],
}


@pytest.mark.parametrize("block", [1, 90, 1_000, 1 << 24])
@pytest.mark.parametrize("array", SHAPED.values(), ids=SHAPED)
def test_a_checksum_read_in_blocks_is_that_of_the_whole(monkeypatch, array, block):
    monkeypatch.setattr(content, "BLOCK_BYTES", block)
    assert content.checksum(array) == written_at_once(array)


@pytest.mark.parametrize("block", [1, 20, 1 << 24])
def test_duplicates_are_those_that_comparing_every_pair_finds(monkeypatch, block):
    monkeypatch.setattr(content, "BLOCK_BYTES", block)
    draws = np.random.default_rng(1)
    images = draws.integers(0, 2, (60, 2, 2, 1), dtype=np.uint8)  # 16 different ones
    test = draws.random(60) < 0.3

    def repeats(rows, of):
        return sum(any((images[i] == images[j]).all() for j in of if j < i or j not in rows) for i in rows)

    train, tested = np.flatnonzero(~test).tolist(), np.flatnonzero(test).tolist()
    assert content.duplicates(images, test) == {
        "within_train": repeats(train, train),
        "within_test": repeats(tested, tested),
        "across": sum(any((images[i] == images[j]).all() for j in train) for i in tested),
    }


def written(folder, images, labels):
    """Prepare a set of two .npz files; its last two rows are the test split."""
    test = np.arange(len(images)) >= len(images) - 2
    for part, rows in (("train", ~test), ("test", test)):
        np.savez(folder / f"{part}.npz", images=images[rows], labels=labels[rows])
    options = {"train": str(folder / "train.npz"), "test": str(folder / "test.npz")}
    return prepared.prepare("small", "npz", options, folder / "manifests")


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_DATA", str(tmp_path / "root"))
    prepared._load.cache_clear()
    yield tmp_path / "root"
    prepared._load.cache_clear()


def test_a_test_image_that_is_a_training_image_is_counted_and_told(root, tmp_path, capsys):
    images = ANY[:10].copy()
    images[9] = images[0]
    manifest = written(tmp_path, images, np.arange(10) % 2)
    assert manifest["duplicates"] == {"within_train": 0, "within_test": 0, "across": 1}
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: small: 1 of 2 test images are training images too, byte for byte"


def test_nothing_is_told_of_a_set_without_remarks(root, tmp_path, capsys):
    written(tmp_path, ANY[:10], np.arange(10) % 2)
    assert capsys.readouterr().err == ""


def test_a_class_without_a_training_row_is_refused(root, tmp_path):
    with pytest.raises(DataError, match=r"small: class 1 has no training row \(1 in all\)"):
        written(tmp_path, ANY[:6], np.array([0, 2, 0, 2, 1, 0]))
    assert not (tmp_path / "manifests" / "small.json").exists()


@pytest.mark.parametrize("metric", ["top1", "mean_per_class", "map11"])
def test_a_metric_and_many_labels_survive_but_the_metric_moves_no_checksum(root, tmp_path, monkeypatch, metric):
    labels = np.arange(10) % 2
    many = np.eye(2, dtype=np.uint8)[labels]
    many[3] = 1
    given = ImageSet(ANY[:10], many if metric == "map11" else labels, np.arange(10) > 7, 2, metric)
    monkeypatch.setattr(READERS, "_components", {"given": type("Given", (), {"load": lambda self: lambda: given})()})
    manifest = prepared.prepare("given", "given", {}, tmp_path)
    assert manifest["metric"] == metric
    assert manifest["per_class"] == ([6, 5] if metric == "map11" else [5, 5])
    found = prepared.load(manifest)
    assert_equal_sets(found, given)
    assert found.metric == metric
    plain = ImageSet(given.images, given.labels, given.test, 2) if metric == "mean_per_class" else given
    assert prepared._checksums(plain) == manifest["arrays"]


def test_a_set_prepared_before_is_not_read_again(ready, tmp_path, monkeypatch):
    options = {"test": 1_000}
    monkeypatch.setattr(READERS, "_components", {})  # reading would fail
    (tmp_path / "manifests" / "digits.json").unlink()
    assert prepared.ensure("digits", "embedded_mnist", options, tmp_path / "manifests") == ready[0]
    assert json.loads((tmp_path / "manifests" / "digits.json").read_text()) == ready[0]


@pytest.mark.parametrize("changed", ["name", "reader", "options", "code", "package"])
def test_a_set_is_prepared_again_when_what_made_it_changed(root, monkeypatch, changed):
    asked = ("digits", "embedded_mnist", {"test": 1_000})
    before = prepared._recorded(*asked)
    others = {
        "name": ("other", *asked[1:]),
        "reader": ("digits", "digits", asked[2]),
        "options": (*asked[:2], {"test": 9}),
    }
    if changed == "code":
        monkeypatch.setattr(prepared, "_code", lambda: "other")
    elif changed == "package":
        monkeypatch.setattr(prepared, "_version", lambda package: "0")
    assert prepared._recorded(*others.get(changed, asked)) != before


def loaded_anew(manifest):
    prepared._load.cache_clear()
    return prepared.load(manifest)


def keep_time(path, change):
    seen = path.stat()
    change(path)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))


def test_a_large_array_is_read_once_and_then_known_by_its_size_and_time(ready, monkeypatch):
    manifest, folder = ready
    monkeypatch.setattr(prepared, "LARGE", 0)
    prepared.load(manifest)  # reads it all, and notes which file it was
    keep_time(folder / "images.npy", lambda path: spoil(path, DAMAGES["one_bit"]))
    loaded_anew(manifest)
    (folder / "images.npy").touch()
    with pytest.raises(DataError, match=r"images.npy is damaged"):
        loaded_anew(manifest)


def test_a_large_array_that_another_file_replaced_is_read_again(ready, monkeypatch):
    manifest, folder = ready
    monkeypatch.setattr(prepared, "LARGE", 0)
    prepared.load(manifest)
    spoil(folder / "images.npy", DAMAGES["other_bytes"])
    with pytest.raises(DataError, match=r"images.npy cannot be read"):
        loaded_anew(manifest)


def test_a_small_array_is_read_at_every_load(ready):
    manifest, folder = ready
    prepared.load(manifest)
    keep_time(folder / "images.npy", lambda path: spoil(path, DAMAGES["one_bit"]))
    with pytest.raises(DataError, match=r"images.npy is damaged"):
        loaded_anew(manifest)


def test_images_are_mapped_and_cannot_be_written(ready):
    images = prepared.load(ready[0]).images
    assert isinstance(images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0
