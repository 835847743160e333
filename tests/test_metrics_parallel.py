"""Threads: how many, in which order, and what they do with errors and with BLAS."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from triglyph.metrics.parallel import each, n_threads, spans


def test_threads_are_those_that_blas_was_given_else_the_cores(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert n_threads() == 3
    for unset in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unset)
        assert n_threads() >= 1


def test_results_come_in_the_order_of_the_items_though_later_ones_end_first(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    later = threading.Event()

    def work(i):
        if i == 0:
            assert later.wait(10)
        else:
            later.set()
        return i * i

    assert each(work, range(5)) == [0, 1, 4, 9, 16]
    assert each(work, []) == []


def test_an_error_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ZeroDivisionError):
        each(lambda i: 1 / i, [1, 0, 2])


def test_blas_keeps_to_one_thread_inside_and_gets_its_own_back(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    def blas():
        return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]

    np.ones((2, 2)) @ np.ones((2, 2))
    before = blas()
    assert set().union(*each(lambda _: blas(), range(2))) == {1}
    assert blas() == before


def test_spans_cover_everything_once():
    assert spans(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert spans(0, 3) == []
    assert spans(2, 0) == [slice(0, 1), slice(1, 2)]
