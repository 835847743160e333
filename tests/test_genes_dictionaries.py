"""Published pickles are read as data; nothing in them is ever called."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triglyph.errors import SourceError, StorageError
from triglyph.genes.dictionaries import read_dictionary


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [float, int, str, np.float64, np.float32, np.int64, np.int32, np.uint8, np.bool_])
def test_numbers_and_names_come_back_from_every_protocol(protocol, kind, tmp_path):
    values = {
        f"ENSG{i:011d}": kind(i % 2 + 0.5 if kind in (float, np.float64, np.float32) else i % 2) for i in range(9)
    }
    path = tmp_path / "d.pkl"
    path.write_bytes(pickle.dumps(values, protocol=protocol))
    found = read_dictionary(path)
    assert found == values
    assert all(type(v) in (float, int, bool, str) for v in found.values())


def test_big_endian_scalars_and_older_numpy_are_read(tmp_path):
    data = pickle.dumps({"A": np.float64(2.5)}, protocol=2)
    path = tmp_path / "d.pkl"
    path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_dictionary(path) == {"A": 2.5}
    path.write_bytes(pickle.dumps({"A": np.dtype(">f8").type(1.5)}))
    assert read_dictionary(path) == {"A": 1.5}


class Call:
    def __init__(self, function, *arguments):
        self.what = function, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    ("bomb", "named"),
    [
        (lambda p: Call(os.system, f"touch {p}"), r"posix\.system|nt\.system"),
        (lambda p: Call(open, str(p), "w"), r"io\.open"),
        (lambda p: Call(eval, f"open({str(p)!r}, 'w')"), r"builtin.*\.eval"),
        (lambda _: np.array([1.0]), "multiarray"),
        (lambda _: collections.OrderedDict(a=1), r"collections\.OrderedDict"),
        (lambda _: np.dtype([("a", "f8")]), r"numpy\.dtype"),
        (lambda _: np.dtype(object), r"numpy\.dtype"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_anything_else_is_refused_by_name_and_not_run(bomb, named, protocol, tmp_path):
    fuse = tmp_path / "exploded"
    path = tmp_path / "d.pkl"
    path.write_bytes(pickle.dumps({"A": bomb(fuse)}, protocol=protocol))
    with pytest.raises(SourceError, match=named):
        read_dictionary(path)
    assert not fuse.exists()


def test_what_is_not_a_dictionary_of_genes_is_refused(tmp_path):
    path = tmp_path / "d.pkl"
    for value, said in (([1, 2], "holds a list"), ({1: 2}, "maps 1"), ({"A": [1]}, "maps 'A'"), ({"A": None}, "maps")):
        path.write_bytes(pickle.dumps(value))
        with pytest.raises(SourceError, match=said):
            read_dictionary(path)
    path.write_bytes(pickle.dumps({"A": 1.0})[:-4])
    with pytest.raises(SourceError, match="not a readable pickle"):
        read_dictionary(path)
    with pytest.raises(SourceError, match="no such file"):
        read_dictionary(tmp_path / "none.pkl")
    (tmp_path / "d.json").write_text("{not json")
    with pytest.raises(StorageError, match="JSON"):
        read_dictionary(tmp_path / "d.json")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_pickle_is_an_error_and_never_a_crash(data, tmp_path_factory):
    whole = bytearray(pickle.dumps({f"G{i}": np.float64(i) for i in range(5)}, protocol=data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("p") / "d.pkl"
    path.write_bytes(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    with contextlib.suppress(SourceError):
        read_dictionary(path)
