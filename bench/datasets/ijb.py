"""IJB-B and IJB-C as insightface distributes them: the lists in `meta/`, and how faces are pooled.

Lists of the 1:1 protocol, separated by single spaces, without a header (deepinsight/insightface,
`recognition/_evaluation_/ijb/ijb_11.py`):

    ijbc_face_tid_mid.txt          1.jpg template media
    ijbc_name_5pts_score.txt       1.jpg x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score
    ijbc_template_pair_label.txt   template template 0|1

Lists of the 1:N protocol are CSV with a header; a row per image, and the first two columns are the
template and the subject (`ijb_1n.py`): `ijbc_1N_gallery_G1.csv`, `ijbc_1N_gallery_G2.csv`,
`ijbc_1N_probe_mixed.csv`, and S1, S2 for IJB-B.

The scripts take the lines of the first two lists to be in the same order and never look at the
names; here that is checked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:

    pass

GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}
"""The two galleries of each set's 1:N protocol. Their subjects are disjoint."""

_BLOCK_BYTES = 4 << 20
_MAX_LINE_BYTES = 4096

_ID_LIMIT = 10**9
_ID = rb"[0-9]{1,9}"
_SIZE = rb"[0-9]{1,9}(\.[0-9]{0,20})?([eE]-[0-9]{1,2})?"

_NAMES = re.compile(rb"^([0-9]+)\.jpg ", re.MULTILINE)


@dataclass(frozen=True)
class _Layout:
    """What the lines of a list are.

    Attributes:
        shown: A line, for messages.
        line: A line without its end, exactly.
        columns: Number of fields.
        named: The first field is the name of a crop.
        alphabet: Bytes that occur, without the names' suffix.
        dtype: Type in which the fast parser reads the numbers.
        last: Smallest and largest value of the last field.
    """

    shown: str
    line: re.Pattern[bytes]
    columns: int
    named: bool
    alphabet: bytes
    dtype: type[np.int64 | np.float64]
    last: tuple[int, int]


_FACES = _Layout(
    shown="1.jpg template media",
    line=re.compile(_ID + rb"\.jpg " + _ID + b" " + _ID),
    columns=3,
    named=True,
    alphabet=b"0123456789 \r\n",
    dtype=np.int64,
    last=(0, _ID_LIMIT),
)
_LANDMARKS = _Layout(
    shown="1.jpg x1 y1 x2 y2 x3 y3 x4 y4 x5 y5 score",
    line=re.compile(_ID + rb"\.jpg( -?" + _SIZE + rb"){10} " + _SIZE),
    columns=12,
    named=True,
    alphabet=b"0123456789.-eE \r\n",
    dtype=np.float64,
    last=(0, _ID_LIMIT),
)
_PAIRS = _Layout(
    shown="template template 0|1",
    line=re.compile(_ID + b" " + _ID + b" [01]"),
    columns=3,
    named=False,
    alphabet=b"0123456789 \r\n",
    dtype=np.int64,
    last=(0, 1),
)


@dataclass(frozen=True)
class Pooling:
    """How the features of a template's images become one feature; part of every result.

    The same flag names mean opposite things in public scripts: `use_norm_score=True` keeps the norm
    in insightface's `ijb_11.py` and removes it in Keras_insightface's `IJB_evals.py`. Here as in the
    former. TFace's script has all three off.

    Attributes:
        norm: Features keep their norm (N1) or are scaled to norm 1 before pooling (N0).
        detector: Features are multiplied by the detector's score (D1).
        flip: The feature of the mirror image is added (F1).
    """

    norm: bool = True
    detector: bool = True
    flip: bool = True

    def __str__(self) -> str:
        return f"N{self.norm:d}D{self.detector:d}F{self.flip:d}"

    @classmethod
    def parse(cls, text: str) -> Pooling:
        """Return what `str` wrote, such as "N1D1F1".

        Raises:
            DataError: The text is anything else.
        """
        match = re.fullmatch(r"N([01])D([01])F([01])", text)
        if match is None:
            raise DataError(f"The pooling {text!r} is unknown: write N, D and F with 0 or 1, N1D1F1.")
        return cls(*(flag == "1" for flag in match.groups()))


@dataclass(frozen=True)
class Faces:
    """Which crop belongs to which template and medium; all arrays int32 of shape (faces,).

    Attributes:
        images: Number n of the crop, the file `loose_crop/n.jpg`.
        templates: Template that the crop is part of.
        media: Photo or video that the crop is from; features are averaged within.
    """

    images: NDArray[np.int32]
    templates: NDArray[np.int32]
    media: NDArray[np.int32]


@dataclass(frozen=True)
class Landmarks:
    """Landmarks by which the crops are aligned.

    Attributes:
        images: Int32 array of shape (faces,): number n of the crop, the file `loose_crop/n.jpg`.
        points: Float32 array of shape (faces, 5, 2): x and y in pixels of the crop, in the order of
            the ArcFace template.
        scores: Float32 array of shape (faces,): the detector's confidence, from 0.
    """

    images: NDArray[np.int32]
    points: NDArray[np.float32]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class TemplatePairs:
    """Which templates are compared; all arrays of shape (pairs,).

    Attributes:
        left: First template, int32.
        right: Second template, int32.
        same: Whether both show the same person.
    """

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    same: NDArray[np.bool_]


@dataclass(frozen=True)
class Templates:
    """Templates of a gallery or of the probes, in ascending order of their number.

    Attributes:
        templates: Int32 array of shape (templates,): the numbers.
        subjects: Int32 array of shape (templates,): whom each shows.
    """

    templates: NDArray[np.int32]
    subjects: NDArray[np.int32]


@dataclass(frozen=True)
class OneToOne:
    """The 1:1 protocol: row i of `faces` and of `landmarks` are the same crop."""

    faces: Faces
    landmarks: Landmarks
    pairs: TemplatePairs


@dataclass(frozen=True)
class OneToN:
    """The 1:N protocol: the probes are searched in each gallery separately."""

    galleries: tuple[Templates, Templates]
    probes: Templates


def read_one_to_one(meta: Path, name: str) -> OneToOne:
    """Read the three lists of the 1:1 protocol and check that they fit together.

    Args:
        meta: Folder of the lists.
        name: "ijbb" or "ijbc", with which the names of the files begin.

    Raises:
        DataError: A list cannot be read, crops are not the same in both lists of them, or a pair
            names a template without a face.
    """
    faces = read_faces(meta / f"{name}_face_tid_mid.txt")
    landmarks = read_landmarks(meta / f"{name}_name_5pts_score.txt")
    pairs = read_template_pairs(meta / f"{name}_template_pair_label.txt")
    if not np.array_equal(faces.images, landmarks.images):
        raise DataError(
            f"{meta}: the two lists of the faces of {name} do not name the same crops in the same "
            "order: get both from one distribution."
        )
    known = np.zeros(_ID_LIMIT if len(faces.templates) == 0 else faces.templates.max() + 1, bool)
    known[faces.templates] = True
    return OneToOne(faces, landmarks, pairs)
