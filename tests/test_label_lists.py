"""Published lists of labelled images: read where they are given, and used exactly."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bench.data import READERS, decode, prepared
from bench.data.source import DataError, ImageSet
from bench.encoders.base import Encoder
from bench.encoders.layers import numbered
from bench.evaluate import evaluation_data
from bench.evaluators.semisup import evaluate, label_subset
from bench.features import Trained

CLASSES = ("n01440764", "n01443537", "n02102040")
EACH = 20  # training images of a class
TRAINING = [f"{name}_{10 * i}.JPEG" for name in CLASSES for i in range(EACH)]
ROWS = {name: row for row, name in enumerate(sorted(TRAINING))}  # images of a class are in the order of their paths
LISTED = [TRAINING[i] for i in (33, 2, 50, 21, 59, 0)]  # in no order, as SimCLR's are


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data root with a folder laid out as ImageNet is: three classes, and a list of 10 %."""
    folder = tmp_path / "root"
    monkeypatch.setenv("BENCH_DATA", str(folder))
    for c, name in enumerate(CLASSES):
        places = [folder / "set" / "train" / name / f"{name}_{10 * i}.JPEG" for i in range(EACH)]
        places += [folder / "set" / "val" / name / f"ILSVRC2012_val_{name}{i}.JPEG" for i in range(4)]
        for i, place in enumerate(places):
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(100 * c + i).integers(0, 120, (9, 8, 3), dtype=np.uint8)
            pixels[..., c] += 100
            Image.fromarray(pixels).save(place)
    write(folder, LISTED)
    prepared._load.cache_clear()
    yield folder
    prepared._load.cache_clear()


def write(root, names, file="10percent.txt", end="\n"):
    (root / file).write_text("\n".join(names) + end)


OPTIONS = {"folder": "set", "side": 8, "label_lists": {"0.1": "10percent.txt"}}


def read(**changed):
    return READERS["image_folder_lists"](**{**OPTIONS, **changed})


def prepare(root, reader="image_folder_lists", **changed):
    options = {**OPTIONS, **changed}
    if reader == "image_folder":
        del options["label_lists"]
    return prepared.prepare("imagenet", reader, options, root / "manifests")


# ---- reading


def test_a_list_gives_the_rows_of_the_training_images_that_it_names(root):
    found = read()
    assert list(found.label_lists) == [0.1]
    np.testing.assert_array_equal(found.label_lists[0.1], sorted(ROWS[name] for name in LISTED))
    for name in LISTED:
        with Image.open(root / "set" / "train" / name.split("_")[0] / name) as image:
            np.testing.assert_array_equal(found.images[ROWS[name]], np.asarray(decode.fit(image.convert("RGB"), 8)))


FORMS = {
    "another_order": (LISTED[::-1], "\n"),
    "no_newline_at_the_end": (LISTED, ""),
    "empty_lines": (["", *LISTED[:3], " ", *LISTED[3:], ""], "\n\n"),
    "windows_newlines": ([f"{name}\r" for name in LISTED], "\n"),
    "spaces": ([f"  {name} " for name in LISTED], "\n"),
    "class_and_name": ([f"{name.split('_')[0]}/{name}" for name in LISTED], "\n"),
    "from_train_on": ([f"train/{name.split('_')[0]}/{name}" for name in LISTED], "\n"),
}


@pytest.mark.parametrize(("lines", "end"), FORMS.values(), ids=FORMS)
def test_the_order_of_lines_and_the_space_around_them_say_nothing(root, lines, end):
    wanted = read().label_lists[0.1]
    write(root, lines, end=end)
    np.testing.assert_array_equal(read().label_lists[0.1], wanted)


def test_images_labels_and_split_are_those_of_the_folder_alone(root):
    found, plain = read(), READERS["image_folder"](folder="set", side=8)
    for array in ("images", "labels", "test"):
        np.testing.assert_array_equal(getattr(found, array), getattr(plain, array))
    assert plain.label_lists == read(label_lists={}).label_lists == {}


def test_images_of_one_name_are_told_apart_by_their_folder(root):
    for name in CLASSES[:2]:
        shutil.copy(root / "set/train" / name / f"{name}_0.JPEG", root / "set/train" / name / "0.JPEG")
    write(root, [f"{CLASSES[1]}/0.JPEG"])
    (row,) = read().label_lists[0.1]
    assert row == EACH + 1  # after the other class's, whose 0.JPEG comes first; 0 is before n
    write(root, ["0.JPEG"])
    with pytest.raises(DataError, match=r"line 1: 2 training images are called '0.JPEG'; write it as <class>/<image>"):
        read()


BAD_LISTS = {
    "unknown_name": ([*LISTED, "n01440764_7.JPEG"], r"line 7: no training image is called 'n01440764_7.JPEG'; put"),
    "unknown_class": (
        ["n09999999_10.JPEG"],
        r"line 1: no training image is called 'n09999999_10.JPEG'; .* the list that",
    ),
    "name_in_another_class": ([f"{CLASSES[1]}/{TRAINING[0]}"], "line 1: no training image is called"),
    "end_of_a_name": ([TRAINING[0][1:]], "line 1: no training image is called"),
    "no_suffix": ([TRAINING[0][:-5]], "line 1: no training image is called"),
    "image_of_the_test_split": ([f"ILSVRC2012_val_{CLASSES[0]}0.JPEG"], "line 1: no training image is called"),
    "row_number": (["17"], "line 1: no training image is called '17'"),
    "same_line_twice": ([*LISTED[:3], LISTED[1]], rf"line 4: '{LISTED[1]}' is on line 2 too; take one out"),
    "same_image_twice": ([LISTED[0], "", f"{CLASSES[1]}/{LISTED[0]}"], r"line 3: '.*' is on line 1 too"),
    "empty": ([], "names no image; fetch it again"),
    "empty_lines": (["", "  "], "names no image; fetch it again"),
}


@pytest.mark.parametrize(("lines", "told"), BAD_LISTS.values(), ids=BAD_LISTS)
def test_a_bad_list_is_named_with_its_line_and_mend_before_anything_is_decoded(root, monkeypatch, lines, told):
    monkeypatch.setattr(decode, "_rgb", lambda path, side: pytest.fail(f"{path} is decoded"))
    write(root, lines)
    with pytest.raises(DataError, match=rf"{root / '10percent.txt'}.*{told}"):
        read()


def test_a_list_that_cannot_be_read_is_named(root):
    with pytest.raises(DataError, match=rf"{root / 'other.txt'} is missing; put the list there, or take it out"):
        read(label_lists={"0.1": "other.txt"})
    (root / "other.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=rf"{root / 'other.txt'} cannot be read as text .*; fetch it again"):
        read(label_lists={"0.1": "other.txt"})


@pytest.mark.parametrize("text", ["0", "-0.1", "1.5", "ten", "", "nan", "1%"])
def test_what_is_no_fraction_is_told(root, text):
    with pytest.raises(DataError, match=rf"label_lists: '{text}' wants to be a fraction of the labels"):
        read(label_lists={text: "10percent.txt"})


def test_a_fraction_written_in_two_ways_is_given_twice(root):
    with pytest.raises(DataError, match="label_lists: '1e-1' is a fraction that is given twice"):
        read(label_lists={"0.1": "10percent.txt", "1e-1": "10percent.txt"})


LISTS = {
    "a_test_row": [0, 3],
    "no_row": [9],
    "a_negative_row": [-1],
    "twice": [1, 1],
    "descending": [2, 1],
    "none": [],
}


@pytest.mark.parametrize("rows", LISTS.values(), ids=LISTS)
def test_a_set_with_a_malformed_list_is_refused(rows):
    given = {"images": np.zeros((4, 2, 2, 1), dtype=np.uint8), "labels": np.array([0, 1, 0, 1]), "classes": 2}
    given["test"] = np.array([False, False, False, True])
    ImageSet(**given, label_lists={0.5: np.array([0, 2])})
    with pytest.raises(DataError, match=r"the label list of 0.5 wants training rows, each once and ascending"):
        ImageSet(**given, label_lists={0.5: np.array(rows, dtype=np.int64)})
    with pytest.raises(DataError, match="wants to be above 0 and at most 1, not 2"):
        ImageSet(**given, label_lists={2: np.array([0])})


# ---- preparing


def test_what_is_loaded_is_what_was_read(root):
    write(root, TRAINING[:2], "1percent.txt")
    lists = {"0.1": "10percent.txt", "0.01": "1percent.txt"}
    found, given = prepared.load(prepare(root, label_lists=lists)), read(label_lists=lists)
    assert found.label_lists.keys() == given.label_lists.keys() == {0.01, 0.1}
    for fraction, rows in given.label_lists.items():
        assert rows.dtype == found.label_lists[fraction].dtype == np.int64
        np.testing.assert_array_equal(found.label_lists[fraction], rows)


def test_the_checksum_of_a_set_changes_with_a_list_and_only_then(root):
    plain, listed = prepare(root, "image_folder"), prepare(root)
    assert prepare(root, label_lists={})["sha256"] == plain["sha256"]
    assert listed["sha256"] != plain["sha256"]
    # other lines for the same images, and another place: the same list
    write(root, [f"{name.split('_')[0]}/{name}" for name in LISTED[::-1]], "moved.txt")
    assert prepare(root, label_lists={"1e-1": "moved.txt"})["sha256"] == listed["sha256"]
    # another image, another fraction, another list beside it: another one
    write(root, [*LISTED[:-1], TRAINING[1]], "other.txt")
    others = [{"0.1": "other.txt"}, {"0.2": "10percent.txt"}, {"0.1": "10percent.txt", "0.2": "other.txt"}]
    others += [{"0.2": "10percent.txt", "0.1": "other.txt"}]
    found = {prepare(root, label_lists=lists)["sha256"] for lists in others}
    assert len(found | {plain["sha256"], listed["sha256"]}) == 6


def test_a_list_is_read_again_whenever_a_set_is_prepared(root):
    before = prepare(root)
    write(root, LISTED[:-1])
    after = prepare(root)
    assert after["sha256"] != before["sha256"]
    assert len(prepared.load(after).label_lists[0.1]) == len(LISTED) - 1
    # and the set as it was before can be loaded still
    assert len(prepared.load(before).label_lists[0.1]) == len(LISTED)


def test_a_list_neither_decodes_nor_copies_the_images_again(root, monkeypatch):
    prepare(root, "image_folder")
    monkeypatch.setattr(decode, "_rgb", lambda path, side: pytest.fail(f"{path} is decoded"))
    (images,) = (root / "prepared").rglob("images.npy")
    before = images.stat().st_ino, images.stat().st_mtime_ns
    found = prepared.load(prepare(root))
    assert (images.stat().st_ino, images.stat().st_mtime_ns) == before
    assert list((root / "prepared").rglob("images.npy")) == [images]
    assert isinstance(found.images, np.memmap)
    assert found.images.filename == images


def test_after_a_bad_list_decoding_goes_on_where_a_damaged_file_stopped_it(root, monkeypatch):
    monkeypatch.setattr(decode, "CHUNK_BYTES", 10 * 8 * 8 * 3)
    monkeypatch.setattr(decode, "cores", lambda: 1)
    damaged = root / "set" / "train" / CLASSES[2] / TRAINING[-1]
    content = damaged.read_bytes()
    damaged.write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be decoded"):
        prepare(root)
    damaged.write_bytes(content)
    asked, original = [], decode._rgb
    monkeypatch.setattr(decode, "_rgb", lambda path, side: asked.append(path) or original(path, side))
    write(root, ["no such image"])
    with pytest.raises(DataError, match="no training image"):
        prepare(root)
    write(root, LISTED)
    manifest = prepare(root)
    assert 10 <= len(set(asked)) < 72  # 8 chunks of 10
    assert prepared.load(manifest).images.any(axis=(1, 2, 3)).all()


def test_a_damaged_list_is_an_error_that_says_what_to_remove_and_an_absent_one_is_made_again(root):
    manifest = prepare(root)
    (path,) = (root / "prepared").rglob("label_list_0.1-*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=rf"{path} is damaged .*; remove {path} and run again"):
        prepared.load(manifest)
    path.unlink()
    assert len(prepared.load(manifest).label_lists[0.1]) == len(LISTED)
    assert path.read_bytes() == content
    path.write_bytes(content[:-3])
    assert prepare(root) == manifest  # preparing mends as well
    assert path.read_bytes() == content


def test_an_absent_list_is_not_made_from_another_one(root):
    manifest = prepare(root)
    (path,) = (root / "prepared").rglob("label_list_0.1-*.npy")
    path.unlink()
    write(root, LISTED[:-1])
    with pytest.raises(DataError, match=r"source of 'imagenet' is no longer what its manifest vouches for"):
        prepared.load(manifest)


# ---- semi-supervised evaluation


class Mean(Encoder):
    """A weight for each channel and quarter of an image."""

    def __init__(self):
        super().__init__()
        self.convolution, self.dim = nn.Conv2d(3, 4, 1), 16

    def forward(self, x):
        return nn.functional.avg_pool2d(self.convolution(x), x.shape[2] // 2).flatten(1)

    def layers(self):
        return numbered([self.convolution])


def tuned(images, seed=0, query="test", fractions=(0.1, 0.5), validation=0.25):
    torch.manual_seed(0)
    data = evaluation_data(images, validation, query, "cpu")
    rates = {"draw": 0, "lr": [0.05] * len(fractions), "head_lr": [0.5] * len(fractions), "epochs": 3, "batch": 4}
    rates |= {"momentum": 0.9, "milestones": [2], "factor": 0.2}
    views = {"crop_scale": [0.5, 1.0], "crop_ratio": [1.0, 1.0], "flip": 0.5}
    return data, evaluate(Trained(Mean().eval()), data, seed=seed, fractions=list(fractions), **rates, **views)


@pytest.mark.parametrize("validation", [0.0, 0.25, 0.7])
def test_the_published_list_is_used_exactly_whatever_the_seed_and_the_validation_part(root, validation):
    images, wanted = prepared.load(prepare(root)), sorted(ROWS[name] for name in LISTED)
    for seed in (0, 1, 7):
        _, result = tuned(images, seed, validation=validation)
        assert sorted(result.arrays["rows_10pct_published"]) == wanted


def test_a_fraction_without_a_list_falls_back_to_the_addressed_subset_and_the_record_says_which(root):
    data, result = tuned(prepared.load(prepare(root)))
    assert list(result.arrays) == ["rows_10pct_published", "rows_50pct"]
    wanted = data.fitted.ids[label_subset(data.fitted, 0.5)].numpy()
    np.testing.assert_array_equal(result.arrays["rows_50pct"], wanted)
    _, plain = tuned(prepared.load(prepare(root, "image_folder")))
    assert list(plain.arrays) == ["rows_10pct", "rows_50pct"]
    for metric in ("top1_50pct", "top5_50pct"):
        assert plain.metrics[metric] == result.metrics[metric]


def test_a_list_of_the_addressed_rows_gives_the_numbers_of_the_addressed_subset(root):
    plain = prepared.load(prepare(root, "image_folder"))
    data, wanted = tuned(plain, fractions=[0.1])
    rows = np.sort(data.fitted.ids[label_subset(data.fitted, 0.1)].numpy())
    _, given = tuned(replace(plain, label_lists={0.1: rows}), fractions=[0.1])
    assert given.metrics == wanted.metrics


def test_where_settings_are_tuned_no_scored_row_is_trained_on(root):
    """There the queries are training rows, some of which a list may name."""
    data, result = tuned(prepared.load(prepare(root)), query="validation")
    listed, scored = {ROWS[name] for name in LISTED}, set(data.query.ids.tolist())
    assert listed & scored
    assert set(result.arrays["rows_10pct_published"].tolist()) == listed - scored
