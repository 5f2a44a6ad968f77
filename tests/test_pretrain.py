"""The trainer's loop over batches: made ahead where a core is free for it, in turn elsewhere, with the same bits."""

import threading
import weakref

import pytest
import torch

from bench import pretrain
from bench.pretrain import ahead, each


@pytest.mark.parametrize("loop", [ahead, each])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_items_come_in_order_with_what_is_made_of_them(loop, count):
    assert list(loop(lambda item: item * item, range(count))) == [(item, item * item) for item in range(count)]


@pytest.mark.parametrize("loop", [ahead, each])
def test_an_error_while_making_reaches_the_loop(loop):
    with pytest.raises(ZeroDivisionError):
        list(loop(lambda item: 1 // item, [1, 0]))


@pytest.mark.parametrize("loop", [ahead, each])
def test_what_the_loop_lets_go_of_is_in_memory_no_more(loop):
    for _, made in loop(torch.ones, [1, 2, 3]):
        kept = weakref.ref(made)
        del made
        assert kept() is None


def test_ahead_makes_in_another_thread_and_each_in_this_one():
    here = threading.get_ident()
    assert here not in [made for _, made in ahead(lambda _: threading.get_ident(), range(3))]
    assert [made for _, made in each(lambda _: threading.get_ident(), range(3))] == [here] * 3


@pytest.mark.parametrize(
    ("device", "threads", "cores", "wanted"),
    [("cpu", 1, 2, True), ("cpu", 2, 2, False), ("cpu", 1, 1, False), ("cuda", 1, 1, True)],
)
def test_views_are_made_ahead_where_a_core_is_free(monkeypatch, device, threads, cores, wanted):
    monkeypatch.setattr(pretrain, "cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    trainer = pretrain.Trainer.__new__(pretrain.Trainer)
    trainer.config = {"device": device}
    assert trainer._leaves_a_core() is wanted
