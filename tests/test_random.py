"""Addressed randomness: the published generator, and what an address does and does not hold."""

import numpy as np
import pytest

from bench.random import Address, derive, permutation, philox

MASK = 0xFFFFFFFF
IMAGES = np.array([0, 1, 17, 255, 256, 4_999, 1_281_166])


def naive_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 as the paper writes it, in Python's integers."""
    (l0, r0, l1, r1), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * l0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * l1, 2**32)
        l0, r0, l1, r1 = high1 ^ r0 ^ k0, low1, high0 ^ r1 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [l0, r0, l1, r1]


# Random123's kat_vectors, philox4x32 with 10 rounds
KNOWN = {
    "zeros": ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    "ones": ([MASK] * 4, [MASK] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    "digits_of_pi": (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
}


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN.values(), ids=KNOWN)
def test_philox_gives_the_published_answers(counter, key, words):
    assert philox(np.array(counter, dtype=np.uint32), tuple(key)).tolist() == words
    assert naive_philox(counter, key) == words


def test_philox_equals_the_naive_loop_on_any_shape():
    generator = np.random.default_rng(0)
    for _ in range(20):
        counters = generator.integers(0, 2**32, (3, 5, 4), dtype=np.uint32)
        key = generator.integers(0, 2**32, 2).tolist()
        naive = [[naive_philox(c, key) for c in row] for row in counters.tolist()]
        assert philox(counters, tuple(key)).tolist() == naive


# recorded from the first version; a change here moves every number of every result
GOLDEN_KEY = 0xC7D7FB6562126265
GOLDEN_WORDS = [[0x277233CD, 0x490203B6], [0xB5F94988, 0xE23A2917]]


def test_numbers_of_an_address_never_change():
    address = Address(0, "views", np.array([0, 4_999]), epoch=3, occurrence=np.array([0, 1]), view=1)
    assert derive(0, "views", "crop") == GOLDEN_KEY
    assert address.words("crop", 2).tolist() == GOLDEN_WORDS


def test_numbers_of_an_image_do_not_depend_on_its_batch():
    occurrence = np.arange(len(IMAGES)) % 3
    whole = Address(5, "views", IMAGES, epoch=2, occurrence=occurrence, view=1).words("crop", 6)
    for rows in ([3], [6, 0], [4, 4, 1], [6, 5, 4, 3, 2, 1, 0]):
        part = Address(5, "views", IMAGES[rows], epoch=2, occurrence=occurrence[rows], view=1)
        np.testing.assert_array_equal(part.words("crop", 6), whole[rows])


def test_no_occurrence_is_the_first_occurrence():
    first = Address(0, "views", IMAGES, occurrence=np.zeros(len(IMAGES), dtype=np.int64))
    np.testing.assert_array_equal(Address(0, "views", IMAGES).words("op", 4), first.words("op", 4))


ELSEWHERE = {
    "other_seed": {"seed": 2},
    "other_purpose": {"purpose": "order"},
    "other_images": {"images": IMAGES + 7},
    "other_epoch": {"epoch": 1},
    "other_occurrence": {"occurrence": np.ones(len(IMAGES), dtype=np.int64)},
    "other_view": {"view": 1},
    "other_op": {"op": "jitter"},
}


@pytest.mark.parametrize("change", ELSEWHERE.values(), ids=ELSEWHERE)
def test_each_part_of_an_address_changes_every_number(change):
    def draw(op="crop", **parts):
        return Address(**{"seed": 1, "purpose": "views", "images": IMAGES, **parts}).words(op, 8)

    assert (draw(**change) != draw()).all()


def test_at_view_changes_the_view_alone():
    address = Address(1, "views", IMAGES, epoch=4, occurrence=np.arange(len(IMAGES)))
    direct = Address(1, "views", IMAGES, epoch=4, occurrence=np.arange(len(IMAGES)), view=2)
    np.testing.assert_array_equal(address.at_view(2).words("op", 4), direct.words("op", 4))


def test_a_longer_draw_begins_with_the_shorter():
    address = Address(3, "views", IMAGES)
    longest = address.words("crop", 23)
    for count in (1, 3, 4, 5, 8, 22):
        assert address.words("crop", count).shape == (len(IMAGES), count)
        np.testing.assert_array_equal(address.words("crop", count), longest[:, :count])


def test_derived_names_are_not_joined():
    assert derive(0, "ab", "c") != derive(0, "a", "bc")
    assert derive(0, "a") != derive(1, "a")
    assert derive(1, "1") != derive(11, "")


def test_uniform_numbers_are_the_middles_of_equal_steps():
    u = Address(0, "views", np.arange(20_000)).uniform("op", 5)
    words = Address(0, "views", np.arange(20_000)).words("op", 5)
    assert u.dtype == np.float64
    assert u.min() > 0
    assert u.max() < 1
    # exact: a word and a half fit in 33 of the 53 bits; the middle is what keeps 0 and 1 out
    np.testing.assert_array_equal(u * 2.0**32, words + 0.5)


def test_uniform_numbers_look_uniform():
    n = 100_000
    u = Address(0, "views", np.arange(n)).uniform("op", 2)
    # five standard errors: of the mean sqrt(1/12n), of the variance sqrt(1/180n), of r sqrt(1/n)
    np.testing.assert_allclose(u.mean(0), 1 / 2, atol=5 * (12 * n) ** -0.5)
    np.testing.assert_allclose(u.var(0), 1 / 12, atol=5 * (180 * n) ** -0.5)
    assert abs(np.corrcoef(u[:, 0], u[:, 1])[0, 1]) < 5 * n**-0.5
    assert abs(np.corrcoef(u[1:, 0], u[:-1, 0])[0, 1]) < 5 * n**-0.5


def test_every_bit_is_as_often_one_as_zero():
    n = 50_000
    words = Address(0, "views", np.arange(n)).words("op", 4)
    ones = [((words >> bit) & 1).mean() for bit in range(32)]
    np.testing.assert_allclose(ones, 1 / 2, atol=5 * 0.5 * (4 * n) ** -0.5)  # five standard errors


def test_permutation_holds_every_row_once():
    assert sorted(permutation(0, "order", np.arange(1_000))) == list(range(1_000))
    assert len(permutation(0, "order", [])) == 0


def test_order_of_a_subset_is_the_wholes_order_restricted_to_it():
    whole = np.arange(500)[permutation(7, "order", np.arange(500), epoch=3)]
    subset = np.random.default_rng(0).choice(500, 60, replace=False)
    chosen = subset[permutation(7, "order", subset, epoch=3)]
    np.testing.assert_array_equal(chosen, whole[np.isin(whole, subset)])


@pytest.mark.parametrize("change", [{"seed": 1}, {"purpose": "split"}, {"epoch": 1}], ids=str)
def test_another_address_orders_otherwise(change):
    given = {"seed": 0, "purpose": "order", "images": np.arange(100), "epoch": 0}
    assert (permutation(**given) != permutation(**(given | change))).any()


def test_every_row_is_as_likely_first():
    firsts = [permutation(seed, "order", np.arange(4))[0] for seed in range(2_000)]
    # 500 expected of each; five standard errors of a count: 5 sqrt(2000 * 1/4 * 3/4)
    np.testing.assert_allclose(np.bincount(firsts, minlength=4), 500, atol=97)
