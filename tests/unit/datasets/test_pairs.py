from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from bench.datasets.pairs import MAX_BYTES, file_name, parse_pairs
from bench.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

SMALL = """2\t2
Ann\t1\t2
Bob\t1\t3
Ann\t1\tBob\t2
Cid\t1\tAnn\t2
Cid\t1\t2
Dan_Day\t1\t12
Cid\t1\tDan_Day\t2
Dan_Day\t4\tCid\t2
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "pairs.txt"
    path.write_bytes(text.encode())
    return path


def replaced(line: int, text: str) -> str:
    lines = SMALL.splitlines()
    lines[line - 1] = text
    return "\n".join(lines) + "\n"


def test_reads_pairs_with_their_folds(tmp_path: Path) -> None:
    pairs = parse_pairs(written(tmp_path, SMALL))
    assert len(pairs) == 8
    assert (pairs.left[0], pairs.right[0]) == (("Ann", 1), ("Ann", 2))
    assert (pairs.left[7], pairs.right[7]) == (("Dan_Day", 4), ("Cid", 2))
    assert pairs.same.dtype == np.bool_
    assert pairs.same.tolist() == [True, True, False, False] * 2
    assert pairs.folds.tolist() == [0] * 4 + [1] * 4


def test_file_name() -> None:
    assert file_name("Abel_Pacheco", 4) == "Abel_Pacheco/Abel_Pacheco_0004.jpg"


@pytest.mark.parametrize("ending", ["", "\n\n", " \n"])
def test_blank_lines_at_the_end_and_other_line_ends_are_harmless(
    tmp_path: Path, ending: str
) -> None:
    text = SMALL.rstrip().replace("\n", "\r\n").replace("\t", "  ") + ending
    assert len(parse_pairs(written(tmp_path, text))) == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected a header"),
        (replaced(1, "2"), "line 1: expected a header"),
        (replaced(1, "0\t2"), "line 1: expected a header"),
        (replaced(1, "2\t-2"), "line 1: expected a header"),
        (replaced(1, "2\t" + "9" * 5000), "line 1: expected a header"),
        (replaced(1, "999999 999999"), "line 4: expected a matched pair"),
        (replaced(1, "3\t2"), "ends after 8 pairs, but its header promises 3 sets of 2"),
        (replaced(1, "1\t2"), "line 6: a pair too many"),
        (SMALL + "Ann\t3\t4\n", "line 10: a pair too many"),
        (replaced(3, "Bob\t1\tAnn\t3"), "line 3: expected a matched pair 'name i j'"),
        (replaced(4, "Bob\t1\t3"), "line 4: expected a mismatched pair"),
        (replaced(5, ""), "line 5: expected a mismatched pair"),
        (replaced(3, "Bob\t1"), "line 3: expected a matched pair"),
        (replaced(3, "Bob\t0\t1"), "line 3: '0' is not the number of an image"),
        (replaced(3, "Bob\t1\t٣"), "line 3: '٣' is not the number"),
        (replaced(3, "Bob\t1\t1"), "line 3: a matched pair cannot compare"),
        (replaced(4, "Bob\t1\tBob\t2"), "line 4: a mismatched pair cannot compare"),
        (replaced(3, "../../etc\t1\t2"), "line 3: '../../etc' cannot be the name of a folder"),
        (replaced(3, "..\t1\t2"), "cannot be the name of a folder"),
        (replaced(3, "a\\b\t1\t2"), "cannot be the name of a folder"),
        (replaced(3, "c:\t1\t2"), "cannot be the name of a folder"),
        (replaced(3, "x" * 5000 + "\t1\t2"), "cannot be the name of a folder"),
    ],
)
def test_refuses_what_would_shift_the_folds_or_leave_the_data(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        parse_pairs(written(tmp_path, text))
    assert message in str(caught.value)
    assert str(tmp_path / "pairs.txt") in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_refuses_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"10\t300\n\xff\xfe\n")
    with pytest.raises(DataError, match="line 2: not UTF-8 text"):
        parse_pairs(path)


def test_refuses_a_file_beyond_the_cap(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at most"):
        parse_pairs(written(tmp_path, "\n" * (MAX_BYTES + 1)))


def test_refuses_what_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a file"):
        parse_pairs(tmp_path)
    with pytest.raises(DataError, match="is not a file"):
        parse_pairs(tmp_path / "absent.txt")
