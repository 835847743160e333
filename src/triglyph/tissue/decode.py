"""Pictures that have to be decoded whole: JPEG, PNG, striped TIFF.

Strictly: a truncated file is an error, not a grey band.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triglyph.errors import SourceError

LARGEST_BYTES = 16 * 2**30
"""An image that decodes to more than this is not held in memory."""


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
