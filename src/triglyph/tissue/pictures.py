"""Sections in which every location has a picture file of its own: captioned figures, labelled tiles.

Columns of `obs` say which file, by a path relative to one folder, and which square of it a location is:

    picture                 path with forward slashes, "" where a location has none
    picture_x, picture_y    centre of the square, in pixels of the file
    picture_px              side of the square, in pixels of the file
    picture_mpp             µm per pixel; NaN in all rows where the pictures are *declared unscaled*
    picture_sha256          of the file; taken when the section is written

With a scale, encoders read a window of their own size in µm about that centre, as they do of a slide. Without one there
is nothing physical to keep: the square is resampled to whatever the encoder reads, and the section says so.

Paths come out of files that somebody else wrote, so none may lead out of the folder.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from triglyph.cards import Frozen, digest
from triglyph.errors import ContractError, ScaleError, SourceError
from triglyph.storage import file_digest
from triglyph.tissue.decode import decode
from triglyph.tissue.draft import PictureSource
from triglyph.tissue.frames import Affine
from triglyph.tissue.pixels import ArrayPixels
from triglyph.tissue.windows import MAX_ENLARGEMENT, WindowReader
from triglyph.units import checked_mpp

COLUMNS = ("picture", "picture_x", "picture_y", "picture_px", "picture_mpp")
HASH = "picture_sha256"
MODES = ("RGB", "RGBA", "P")
"""What can be read as colour."""


class PictureInfo(Frozen):
    """The pictures of a section, by reference."""

    name: str
    folder: str
    """Relative to the section's folder, with forward slashes."""
    n_files: int
    sha256: str
    """Digest of all files' hashes."""
    mpp: tuple[float, float] | None
    """Smallest and largest µm per pixel; None where the pictures are declared unscaled."""
    mpp_source: str
    """Where the scale came from, or why there is none."""
    resize: Literal["area", "bicubic"]

    @property
    def scale(self) -> str:
        """µm per pixel in words."""
        if self.mpp is None:
            return "unscaled"
        low, high = self.mpp
        return f"{low:.4f} µm/px" if high - low < 5e-5 else f"{low:.4f} to {high:.4f} µm/px"


def picture_file(folder: Path, picture: str, *, where: object) -> Path:
    """The file that `picture` names, which must lie under `folder`.

    Raises
    ------
    ContractError
        The path is absolute, goes upwards, or leads out of the folder through a link.
    SourceError
        There is no such file.
    """
    path = PurePosixPath(picture)
    root = folder.resolve()
    file = root.joinpath(*path.parts)
    outside = path.is_absolute() or ".." in path.parts or "\\" in picture or "\0" in picture
    if outside or not file.resolve().is_relative_to(root):
        raise ContractError(
            f"the picture {picture!r} leads out of its folder",
            where=f"{where}, folder {folder}",
            mend="give paths relative to that folder, and copy linked files into it",
        )
    if not file.is_file():
        raise SourceError(f"the picture {picture!r} is not there", where=f"{where}, file {file}", mend="restore it")
    return file


def picture_size(file: Path) -> tuple[int, int]:
    """Width and height in pixels, out of the header alone.

    Raises
    ------
    SourceError
        It is no picture, or not one in colour.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as picture:
            size, mode = picture.size, picture.mode
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SourceError(f"the picture does not open ({error})", where=file, mend="copy it again") from error
    if mode not in MODES:
        raise SourceError(f"not an 8-bit RGB picture (mode {mode})", where=file, mend="convert it, or leave it out")
    return size


def check_pictures(table: ad.AnnData, source: PictureSource, *, where: object) -> None:
    """Refuse rows whose picture is missing, is none, lies elsewhere, or does not hold its square.

    Raises
    ------
    ContractError
        A column is missing, a path leads out of the folder, or a square out of its picture.
    ScaleError
        A scale is impossible, is stated for some pictures alone, or does not say where it came from.
    SourceError
        A file is missing or is no picture.
    """
    if missing := [c for c in COLUMNS if c not in table.obs]:
        raise ContractError(f"obs lacks {', '.join(missing)}", where=where, mend=f"give {', '.join(COLUMNS)}")
    if other := [c for c in COLUMNS[1:] if table.obs[c].dtype.kind not in "iuf"]:
        raise ContractError(f"obs column {other[0]!r} is not numbers", where=where, mend="give pixels, or NaN")
    obs = table.obs[table.obs["picture"] != ""]
    if obs.empty:
        raise ContractError("no location has a picture", where=where, mend="leave `pictures` out of the draft")
    if not source.mpp_source.strip():
        raise ScaleError("nothing says where the scale came from", where=where, mend="set mpp_source")
    mpp = obs["picture_mpp"].to_numpy(dtype=np.float64)
    if np.isnan(mpp).any() and not np.isnan(mpp).all():
        raise ScaleError(
            f"{int(np.isnan(mpp).sum()):,} of {len(mpp):,} pictures have no scale",
            where=where,
            mend="state it for all of them, or declare all unscaled",
        )
    for value in np.unique(mpp[~np.isnan(mpp)]):
        checked_mpp(value, where=where)
    sizes = {p: picture_size(picture_file(source.folder, p, where=where)) for p in obs["picture"].unique()}
    size = np.array([sizes[p] for p in obs["picture"]], dtype=np.float64)
    centre, half = obs[["picture_x", "picture_y"]].to_numpy(np.float64), obs[["picture_px"]].to_numpy(np.float64) / 2
    inside = (half > 0) & (centre - half >= -1e-6) & (centre + half <= size + 1e-6)
    if (bad := np.flatnonzero(~inside.all(axis=1))).size:
        row = bad[0]
        (x, y), (w, h) = centre[row], size[row]
        raise ContractError(
            f"{bad.size:,} squares do not lie in their picture; the first is {2 * half[row, 0]:g} px about "
            f"({x:g}, {y:g}), of a picture of {w:g} x {h:g} px",
            where=f"{where}, row {obs.index[row]}, picture {obs['picture'].iloc[row]}",
            mend="correct the squares",
        )


def take_hashes(table: ad.AnnData, source: PictureSource, final: Path) -> PictureInfo:
    """Hash every file once, into `obs`; and the record of a section that will lie at `final`."""
    names = sorted(set(table.obs["picture"]) - {""})
    hashes = {p: file_digest(picture_file(source.folder, p, where=final)) for p in names}
    table.obs[HASH] = pd.Series([hashes.get(p, "") for p in table.obs["picture"]], index=table.obs.index, dtype=object)
    mpp = table.obs["picture_mpp"].to_numpy(dtype=np.float64)[(table.obs["picture"] != "").to_numpy()]
    return PictureInfo(
        name=source.name,
        folder=Path(os.path.relpath(source.folder.resolve(), final.resolve())).as_posix(),
        n_files=len(names),
        sha256=digest(hashes),
        mpp=None if np.isnan(mpp).all() else (float(mpp.min()), float(mpp.max())),
        mpp_source=source.mpp_source,
        resize=source.resize,
    )


def verify_pictures(folder: Path, obs: pd.DataFrame) -> None:
    """Read every file once and compare its hash with the one that was taken.

    Raises
    ------
    SourceError
        A file is missing, or is another one.
    """
    for picture, sha256 in obs[["picture", HASH]].drop_duplicates().itertuples(index=False):
        if picture and file_digest(file := picture_file(folder, picture, where="verify")) != sha256:
            raise SourceError("the picture is not the one that was read", where=file, mend="restore it, or read again")


class PictureWindows:
    """Windows of locations that have a picture each; as `windows.SlideWindows`, so that encoders read both alike.

    Parameters
    ----------
    folder
        Where the pictures lie now.
    obs
        With the columns this module names.
    info
        How they are to be read.
    """

    def __init__(self, folder: Path, obs: pd.DataFrame, info: PictureInfo) -> None:
        self.folder, self.info = folder, info
        self.pictures = obs["picture"].to_numpy(dtype=object)
        self.centres_px = obs[["picture_x", "picture_y"]].to_numpy(dtype=np.float64)
        self.sides_px, self.mpp = (obs[c].to_numpy(dtype=np.float64) for c in ("picture_px", "picture_mpp"))
        self._open: tuple[str, NDArray[np.uint8]] | None = None

    def order(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """`rows` file by file, so that each is decoded once."""
        return rows[np.argsort(self.pictures[rows].astype(str), kind="stable")]

    def read(self, row: int, px: int, mpp: float | None) -> NDArray[np.uint8]:
        """(px, px, 3) of a location at `mpp`; native pixels about its centre where that is None.

        Raises
        ------
        SourceError
            The picture is missing or does not decode.
        ScaleError
            It would be enlarged by more than `MAX_ENLARGEMENT`.
        """
        array, file = self._decoded(self.pictures[row])
        centre, side = self.centres_px[row], float(self.sides_px[row])
        unit = 1.0 if self.info.mpp is None else float(self.mpp[row])
        reader = WindowReader(
            file, to_um=Affine.scale(unit), mpp_source=self.info.mpp_source, pixels=ArrayPixels(array)
        )
        if mpp is None:
            return reader.read_level0(centre * unit, px)
        if self.info.mpp is not None:
            return reader.read(centre * unit, px * mpp, px)
        if px > MAX_ENLARGEMENT * side * (1 + 1e-9):
            raise ScaleError(
                f"a square of {side:g} px would be enlarged {px / side:.2f} times; {MAX_ENLARGEMENT} is the most",
                where=file,
                mend="use an encoder that reads fewer pixels, or larger pictures",
            )
        return _bicubic(array, centre, side, px) if self.info.resize == "bicubic" else reader.read(centre, side, px)

    def close(self) -> None:
        """Let go of the last picture."""
        self._open = None

    def _decoded(self, picture: str) -> tuple[NDArray[np.uint8], Path]:
        file = picture_file(self.folder, picture, where="pictures of a section")
        if self._open is None or self._open[0] != picture:
            self._open = picture, decode(file)
        return self._open[1], file


def _bicubic(array: NDArray[np.uint8], centre: NDArray[np.float64], side: float, px: int) -> NDArray[np.uint8]:
    """As torchvision's `Resize(px, bicubic)` and `CenterCrop(px)` see the middle square of a picture."""
    from PIL import Image

    height, width = array.shape[:2]
    low = np.clip(centre - side / 2, 0, None)
    high = np.minimum(centre + side / 2, (width, height))
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    return np.asarray(Image.fromarray(array).resize((px, px), Image.Resampling.BICUBIC, box=box))
