"""`stain-texture`: 52 numbers that describe the stain and the texture of a window; no weights, no training.

For the inner half of the window and for all of it, 26 each: mean and standard deviation of haematoxylin, eosin and DAB
(Ruifrok and Johnston, Anal Quant Cytol Histol 23:291, 2001; as scikit-image's `rgb2hed`), of red, green and blue, the
5th, 25th, 75th and 95th percentile of haematoxylin, and the histogram of uniform local binary patterns of the grey
image with 8 neighbours at radius 1 (Ojala et al., TPAMI 24:971, 2002). Every method has to beat this.

The numbers equal scikit-image's, ties of flat glass included: there a neighbour between pixels is interpolated, and
which way its last bit falls decides a pattern, so the same operations are done in the same order and precision.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.image import ImageEncoder
from triglyph.settings import settings

DIM = 52
PERCENTILES = (5, 25, 75, 95)
_FLOOR = 1e-6
"""Below it a channel counts as black: the optical density is at most 1."""
_DENSITY = np.log(np.maximum(np.arange(256) / 255, _FLOOR)) / np.log(_FLOOR)
"""Optical density of a channel's grey value, in units of log(1e-6)."""
_DIAGONAL = 0.70711
"""sin 45° to five decimals, as scikit-image rounds it."""
# Neighbour p lies at angle 2πp/8, counter-clockwise from the right; rows grow downwards.
_STRAIGHT = ((0, 0, 1), (2, -1, 0), (4, 0, -1), (6, 1, 0))
_DIAGONALS = ((1, -1, 1), (3, -1, -1), (5, 1, -1), (7, 1, 1))


def window_features(window: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The 52 numbers of one window, (px, px, 3) uint8 with px divisible by 4: 26 of its inner half, 26 of it all."""
    px = window.shape[0]
    inner = slice(px // 4, px - px // 4)
    stains, grey = _stains(window), _grey(window)
    parts = [
        _statistics(np.ascontiguousarray(stains[:, inner, inner]), window[inner, inner].reshape(-1, 3)),
        _patterns(grey[inner, inner]),
        _statistics(stains, window.reshape(-1, 3)),
        _patterns(grey),
    ]
    return np.concatenate(parts)


def _stains(window: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Haematoxylin, eosin and DAB, (3, px, px)."""
    from skimage.color import hed_from_rgb

    density = _DENSITY[window.reshape(-1, 3)]
    stains = np.maximum(density @ hed_from_rgb, 0)
    return np.ascontiguousarray(stains.T).reshape(3, *window.shape[:2])


def _statistics(stains: NDArray[np.float64], rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Means and deviations of stains and colours, and percentiles of haematoxylin: 16 numbers."""
    flat = stains.reshape(3, -1)
    # Counting grey values gives a colour's moments exactly, in one pass over bytes.
    grey = np.arange(256, dtype=np.float64)
    counts = np.stack([np.bincount(rgb[:, c], minlength=256) for c in range(3)])
    mean = counts @ grey / len(rgb)
    variance = (counts * (grey - mean[:, None]) ** 2).sum(axis=1) / len(rgb)
    haematoxylin = np.percentile(flat[0], PERCENTILES)
    return np.concatenate([flat.mean(axis=1), flat.std(axis=1), mean, np.sqrt(variance), haematoxylin])


def _grey(window: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Mean of the channels, cut to a whole number."""
    red = window[..., 0].astype(np.uint16)
    return ((red + window[..., 1] + window[..., 2]) // 3).astype(np.uint8)


def _patterns(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Shares of the ten uniform patterns of 8 neighbours at radius 1; outside the image is black."""
    height, width = grey.shape
    padded = np.zeros((height + 2, width + 2), dtype=np.uint8)
    padded[1:-1, 1:-1] = grey
    code = np.zeros(grey.shape, dtype=np.uint8)
    for bit, dy, dx in _STRAIGHT:
        code |= (padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] >= grey).view(np.uint8) << np.uint8(bit)
    centre, wide = grey.astype(np.float64), padded.astype(np.float64)
    for side in (-1, 1):
        # All rows once, between the column's own pixel and its neighbour on this side.
        low, weight = _between(width, side * _DIAGONAL)
        columns = low + 1 + np.arange(width)
        across = (1 - weight) * wide[:, columns] + weight * wide[:, columns + 1]
        for bit, dy, dx in _DIAGONALS:
            if dx != side:
                continue
            low_y, weight_y = _between(height, dy * _DIAGONAL)
            top, w = across[low_y + 1 : low_y + 1 + height], weight_y[:, None]
            value = (1 - w) * top + w * across[low_y + 2 : low_y + 2 + height]
            code |= (value >= centre).view(np.uint8) << np.uint8(bit)
    histogram = np.bincount(_uniform()[code.reshape(-1)], minlength=10)
    return histogram / code.size


@lru_cache(maxsize=32)
def _between(length: int, offset: float) -> tuple[int, NDArray[np.float64]]:
    """Where samples at `i + offset` lie: below by `low` whole pixels, and how far on, (length,)."""
    position = np.arange(length) + offset
    below = np.floor(position)
    return -1 if offset < 0 else 0, position - below


@lru_cache(maxsize=1)
def _uniform() -> NDArray[np.intp]:
    """Pattern of each of the 256 codes: its number of ones if it changes at most twice along the circle's eight
    places, else 9."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    changes = (bits[:, 1:] != bits[:, :-1]).sum(axis=1)
    return np.where(changes <= 2, bits.sum(axis=1), 9)


class StainTexture(ImageEncoder):
    """Stain and texture of 224 µm windows and of their inner 112 µm, at 0.7 µm per pixel."""

    card: EncoderCard = EncoderCard(
        name="stain-texture",
        summary="Stain and texture statistics, 26 of the inner half and 26 of the whole window; the baseline.",
        licence="Apache-2.0",
        commercial_use=True,
        citation="Ruifrok and Johnston 2001; Ojala et al. 2002, doi:10.1109/TPAMI.2002.1017623",
        homepage="https://scikit-image.org",
        modality="image",
        dim=DIM,
        pooling="none",
        weights="none",
        parameters=0,
        input_px=320,
        mpp=0.7,
    )

    @torch.no_grad()
    def encode(self, inputs: Inputs) -> Encoded:
        pixels = inputs["pixels"]
        windows = pixels.cpu().numpy()
        values = np.empty((len(windows), DIM))
        # NumPy lets go of the interpreter's lock: threads share the rows.
        with ThreadPoolExecutor(max_workers=max(1, min(settings.workers, len(windows)))) as pool:
            for row, features in enumerate(pool.map(window_features, windows)):
                values[row] = features
        return Encoded(torch.from_numpy(values).to(pixels.device, torch.float32))


class StainTextureLevel0(StainTexture):
    """The same of 320 level-0 pixels, whatever they measure: to compare with published figures only."""

    card: EncoderCard = StainTexture.card.model_copy(
        update={
            "name": "stain-texture-level0",
            "summary": "Stain and texture of 160 and 320 level-0 pixels, unscaled; for comparison with published code.",
            "input_px": 320,
            "mpp": None,
        }
    )
