"""Images a section can refer to: used where they are if they can be read at random, else made a tiled pyramid once.

A JPEG, PNG or striped TIFF has to be decoded whole for any one window. Such an image is decoded here once, strictly
(a truncated file is an error, not a grey band), and written as a pyramid into the reader's scratch folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import SourceError
from triglyph.tissue.draft import ImageSource
from triglyph.tissue.frames import Affine
from triglyph.tissue.readers.base import Notes, ReadOptions
from triglyph.tissue.readers.scales import Scale

QUALITY = 95
"""Of the JPEG tiles that are made; the source is one already, and should not lose much more."""
LARGEST_BYTES = 16 * 2**30
"""An image that decodes to more than this is not held in memory."""

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


def decode(path: Path) -> NDArray[np.uint8]:
    """A whole JPEG, PNG or striped TIFF as (height, width, 3); transparency lies on white.

    Raises
    ------
    SourceError
        It is truncated or damaged, is not 8-bit, or decodes to more than `LARGEST_BYTES`.
    """
    from PIL import Image, UnidentifiedImageError

    with _large_images():
        try:
            with Image.open(path) as image:
                size = image.size[0] * image.size[1] * 3
                if size > LARGEST_BYTES:
                    raise SourceError(
                        f"decodes to {size / 2**30:.0f} GiB, and cannot be read in parts",
                        where=path,
                        mend="convert it to a tiled pyramidal TIFF first (`vips tiffsave --tile --pyramid`)",
                    )
                if image.mode not in ("RGB", "RGBA", "P"):
                    raise SourceError(
                        f"not an 8-bit RGB image (mode {image.mode})", where=path, mend="give the brightfield H&E image"
                    )
                if image.mode == "RGB":
                    return np.asarray(image)
                rgba = image.convert("RGBA")
                white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
                return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise SourceError(
                f"the image does not open or is truncated ({error})", where=path, mend="copy the image again"
            ) from error


@contextmanager
def _large_images() -> Iterator[None]:
    """Pillow's guard against large images is off inside: slides are large, and `decode` has a guard of its own."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
