"""GMT: what is written is read back, and what cannot be told in the format is refused with the line."""

from __future__ import annotations

import pytest

from triglyph.errors import GeneError, SourceError
from triglyph.genes.gmt import GeneSet, read_gmt, write_gmt

SETS = [
    GeneSet("HYPOXIA", "low oxygen, as µm away from vessels", ("CA9", "VEGFA", "ADM")),
    GeneSet("EMPTY_DESCRIPTION", "", ("HLA-A",)),
]


def test_sets_come_back_as_they_were_written_in_their_order(tmp_path):
    found = read_gmt(write_gmt(SETS, tmp_path / "a.gmt"))
    assert list(found.values()) == SETS
    assert list(found) == ["HYPOXIA", "EMPTY_DESCRIPTION"]


def test_the_file_is_plain_gmt(tmp_path):
    text = write_gmt(SETS, tmp_path / "a.gmt").read_bytes()
    assert text.splitlines()[0] == "HYPOXIA\tlow oxygen, as µm away from vessels\tCA9\tVEGFA\tADM".encode()
    assert text.endswith(b"EMPTY_DESCRIPTION\t\tHLA-A\n")


def test_files_of_windows_with_empty_lines_and_a_mark_are_read(tmp_path):
    path = tmp_path / "a.gmt"
    path.write_bytes(b"\xef\xbb\xbfA\tx\tCA9\r\n\r\nB\ty\tADM\tCA9\r\n")
    assert [s.genes for s in read_gmt(path).values()] == [("CA9",), ("ADM", "CA9")]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("A\tx\tCA9\nA\ty\tADM\n", r"a second set is called 'A'[\s\S]*line 2"),
        ("A\tx\tCA9\nB x ADM\n", r"1 tab-separated fields[\s\S]*line 2[\s\S]*mend"),
        ("A\tx\n", "2 tab-separated fields"),
        ("A\tx\tCA9\t\n", r"gene '' is empty[\s\S]*line 1"),
        ("A\tx\tCA9\t ADM\n", "gene ' ADM'"),
        ("A\tx\tCA9\tCA9\n", "twice in the set: CA9"),
        ("\tx\tCA9\n", "name '' is empty"),
        ("\n\n", "no gene sets"),
    ],
)
def test_a_line_that_breaks_the_format_is_refused_and_named(tmp_path, text, what):
    path = tmp_path / "a.gmt"
    path.write_text(text)
    with pytest.raises(GeneError, match=what):
        read_gmt(path)


def test_no_file_and_no_text_are_errors_of_the_source(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        read_gmt(tmp_path / "a.gmt")
    (tmp_path / "b.gmt").write_bytes(b"A\t\xff\xfe\tCA9")
    with pytest.raises(SourceError, match="UTF-8"):
        read_gmt(tmp_path / "b.gmt")


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [SETS[0], SETS[0]],
        [GeneSet("A", "two\nlines", ("CA9",))],
        [GeneSet("A", "", ("C\tA9",))],
        [GeneSet("A", "", ())],
        [GeneSet("A ", "", ("CA9",))],
    ],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path, bad):
    with pytest.raises(GeneError):
        write_gmt(bad, tmp_path / "a.gmt")
    assert not (tmp_path / "a.gmt").exists()
