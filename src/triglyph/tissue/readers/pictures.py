"""Images a section can refer to: used where they are if they can be read at random, else made a tiled pyramid once.

A JPEG, PNG or striped TIFF has to be decoded whole for any one window. Such an image is decoded here once, strictly
(a truncated file is an error, not a grey band), and written as a pyramid into the reader's scratch folder.
"""

from __future__ import annotations

from pathlib import Path

from triglyph.errors import SourceError
from triglyph.tissue.decode import decode
from triglyph.tissue.draft import ImageSource
from triglyph.tissue.frames import Affine
from triglyph.tissue.readers.base import Notes, ReadOptions
from triglyph.tissue.readers.scales import Scale

QUALITY = 95
"""Of the JPEG tiles that are made; the source is one already, and should not lose much more."""

_JPEG, _PNG, _TIFF = (b"\xff\xd8",), (b"\x89PNG",), (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")


def section_image(path: Path, *, scale: Scale, section_id: str, options: ReadOptions, notes: Notes) -> ImageSource:
    """The H&E of a section in a frame that is the image itself, in µm.

    Parameters
    ----------
    path
        Any slide OpenSlide or tifffile reads, or a JPEG, PNG or striped TIFF.
    scale
        µm per pixel and where it came from.
    section_id
        Names the pyramid, if one has to be made.

    Raises
    ------
    SourceError
        The image is missing, truncated, no image, not 8-bit RGB, or too large to decode whole.
    """
    from triglyph.tissue.pyramid import write_pyramid

    if not path.is_file():
        raise SourceError("the image is not there", where=path, mend="check the path, or give --image FILE")
    if needs_pyramid(path):
        pixels = decode(path)
        made = options.scratch / f"{section_id}.tif"
        write_pyramid(pixels, made, mpp=scale.mpp, quality=QUALITY, lossless=options.lossless)
        how = "lossless" if options.lossless else f"JPEG quality {QUALITY}"
        notes.add(f"made a tiled pyramid ({how}) of {path.name}, which cannot be read at random")
        path = made
    return ImageSource(path=path, to_um=Affine.scale(scale.mpp), mpp=scale.mpp, mpp_source=scale.source)


def needs_pyramid(path: Path) -> bool:
    """Whether reading one window of `path` would mean decoding all of it.

    Raises
    ------
    SourceError
        It is no image.
    """
    import openslide
    import tifffile

    if openslide.OpenSlide.detect_format(path) not in (None, "generic-tiff"):
        return False
    with path.open("rb") as stream:
        head = stream.read(4)
    if head.startswith(_JPEG) or head.startswith(_PNG):
        return True
    if head not in _TIFF:
        raise SourceError(
            "not an image: neither a slide OpenSlide reads, nor TIFF, JPEG or PNG", where=path, mend="check the file"
        )
    try:
        with tifffile.TiffFile(path) as tiff:
            return not tiff.pages.first.is_tiled
    except (tifffile.TiffFileError, ValueError, IndexError, OSError) as error:
        raise SourceError(
            f"not readable as a TIFF ({error})", where=path, mend="copy the image again; it may be truncated"
        ) from error
