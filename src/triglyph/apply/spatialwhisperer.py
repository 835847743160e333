"""SpatialWhisperer as its paper shows it: one call loads the model and what prepares its three kinds of input.

    model, tokenizer, transcriptome_processor, image_processor = load_spatialwhisperer_model("spatialwhisperer")
    _, text = get_text_features(model, tokenizer(["plasma cells"]), normalized=True)
    _, image = get_image_features(model, image_processor(patches, mpp=0.5), normalized=True)
    image @ text.T  # cosines; times model.logit_scale() they are its logits

`pooled` is what an encoder gives, `projected` what its head makes of it. `normalized` has no default: the published
functions leave it off, the published examples turn it on, and cosines of the two differ from dot products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from torch import Tensor
from torch.nn import functional as F

from triglyph.apply.checkpoints.spatialwhisperer import CARD, FILE, convert_spatialwhisperer
from triglyph.apply.embed import resolve_device
from triglyph.encoders.base import Encoder, Expression, Inputs, Modality
from triglyph.encoders.expression import ExpressionEncoder
from triglyph.encoders.weights import find_file
from triglyph.errors import ContractError, GeneError, RecipeError, ScaleError
from triglyph.models.alignment import Alignment
from triglyph.models.towers import MODALITIES
from triglyph.settings import settings
from triglyph.tissue.checks import checked_counts
from triglyph.training.features import to_device
from triglyph.training.release import load_model

if TYPE_CHECKING:
    import anndata as ad


class SpatialWhisperer(NamedTuple):
    """The model and its three processors; unpacks in the order of the paper's function."""

    model: Alignment
    """In evaluation mode; nothing in it learns."""
    tokenizer: Callable[[list[str]], Inputs]
    """Texts -> `ids` and `mask`."""
    transcriptome_processor: Callable[[Any], Inputs]
    """See `transcriptome_inputs`."""
    image_processor: Callable[..., Inputs]
    """See `image_inputs`."""


def load_spatialwhisperer_model(
    path: str | Path | None = None, *, weights: Mapping[str, str | Path] | None = None, device: str = "auto"
) -> SpatialWhisperer:
    """Load SpatialWhisperer, or any model of ours that reads image, expression and text.

    Parameters
    ----------
    path
        Folder that `triglyph convert` or `triglyph train` wrote; None fetches the published checkpoint and converts it
        once, into the cache of this package.
    weights
        modality -> folder of published weights, for UNI2-h and Geneformer where they are not in the Hugging Face cache.
    device
        `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.

    Raises
    ------
    RecipeError
        `path` is a checkpoint that was not converted.
    ContractError
        The model has not all three modalities.
    StorageError
        It is no such folder.
    WeightsError
        Weights are absent, gated, or do not fit.
    """
    folder = _published() if path is None else Path(path)
    if folder.is_file():
        raise RecipeError(
            "a checkpoint that was not converted", where=folder, mend=f"run `triglyph convert {folder} --out DIR`"
        )
    release = folder / "model" if (folder / "model").is_dir() else folder
    model = load_model(release, weights={m: Path(w) for m, w in (weights or {}).items()})
    if not isinstance(model, Alignment):
        raise ContractError(f"a model of the method {model.name}", where=folder, mend="give a converted checkpoint")
    if missing := [m for m in MODALITIES if m not in model.modalities]:
        mend = "open it with `triglyph.TrainedModel.open`"
        raise ContractError(f"the model has no tower for {', '.join(missing)}", where=folder, mend=mend)
    model.requires_grad_(requires_grad=False).to(resolve_device(device))
    return SpatialWhisperer(
        model,
        model.encoder("text").prepare,
        partial(transcriptome_inputs, model.encoder("expression")),
        partial(image_inputs, model.encoder("image")),
    )


def get_text_features(model: Alignment, inputs: Inputs, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """(pooled, projected) of tokenised texts: (n, 768) of BioBERT's pooler, (n, 2048) of its head.

    Parameters
    ----------
    model
        Of `load_spatialwhisperer_model`.
    inputs
        Of its tokenizer.
    normalized
        Whether `projected` has length 1.
    """
    return _features(model, "text", inputs, normalized=normalized)


def get_transcriptome_features(model: Alignment, inputs: Inputs, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """(pooled, projected) of profiles: (n, 512) of Geneformer, (n, 2048) of its head; see `get_text_features`."""
    return _features(model, "expression", inputs, normalized=normalized)


def get_image_features(model: Alignment, inputs: Inputs, *, normalized: bool) -> tuple[Tensor, Tensor]:
    """(pooled, projected) of patches: (n, 1536) of UNI2-h, (n, 2048) of its head; see `get_text_features`."""
    return _features(model, "image", inputs, normalized=normalized)


def _features(model: Alignment, modality: Modality, inputs: Inputs, *, normalized: bool) -> tuple[Tensor, Tensor]:
    device = next(model.parameters()).device
    pooled = model.pooled(modality, to_device(inputs, device))
    projected = model.projected(modality, pooled).float()
    return pooled, F.normalize(projected, dim=-1) if normalized else projected


def image_inputs(encoder: Encoder, images: Any, *, mpp: float | None) -> Inputs:
    """Patches as the image encoder reads them.

    Parameters
    ----------
    encoder
        The image encoder.
    images
        One or several pictures or arrays (px, px, 3) of 8 bits, of the encoder's size: 224 px for UNI2-h.
    mpp
        µm per pixel of the patches, which must be the encoder's (0.5). None takes native pixels of whatever size, as
        the published model was trained on: 0.17 to 0.80 µm per pixel, never resampled.

    Raises
    ------
    ScaleError
        The patches are of another scale.
    ContractError
        They are of another size or type.
    """
    wanted = encoder.card.mpp
    if mpp is not None and wanted is not None and not abs(mpp / wanted - 1) <= 0.01:
        raise ScaleError(
            f"patches at {mpp:g} µm per pixel, where {encoder.card.name} reads {wanted:g}",
            where="image_processor",
            mend=f"read windows of {encoder.card.window_um:g} µm with the window reader, or say mpp=None",
        )
    one = not isinstance(images, list | tuple) and np.ndim(images) in (2, 3)
    arrays = [np.asarray(image) for image in ([images] if one else images)]
    if shapes := sorted({str(a.shape) for a in arrays if a.shape != arrays[0].shape}):
        raise ContractError(f"patches of several shapes: {arrays[0].shape} and {', '.join(shapes[:3])}")
    return encoder.prepare(np.stack(arrays) if arrays else np.empty(0, dtype=np.uint8))


def transcriptome_inputs(encoder: Encoder, profiles: Any) -> Inputs:
    """Raw counts as the expression encoder reads them: for Geneformer `ids` and `mask` in rank order.

    Parameters
    ----------
    encoder
        The expression encoder.
    profiles
        An AnnData with raw counts in `X` (`var["ensembl_id"]` and `var["measured"]` are read where they are there), an
        `Expression`, or one dictionary a cell from symbol or Ensembl id to count. A gene that no dictionary names was
        not measured.

    Raises
    ------
    ContractError
        Counts are not whole, finite and not negative, or a profile has none.
    GeneError
        The encoder knows none of the genes.
    """
    expression = profiles if isinstance(profiles, Expression) else _expression_of(profiles)
    assert isinstance(encoder, ExpressionEncoder)
    known, _ = encoder.matched(expression)
    if known == 0:
        raise GeneError(
            f"{encoder.card.name} knows none of the {len(expression.symbols)} genes",
            where="transcriptome_processor",
            mend="give human Ensembl ids, as names or in var['ensembl_id']",
        )
    empty = np.flatnonzero(np.asarray(expression.counts.sum(axis=1)).ravel() == 0)
    if len(empty):
        raise ContractError(
            f"profile {empty[0]} has no counts", where="transcriptome_processor", mend="leave out profiles without any"
        )
    return encoder.prepare(expression)


def _expression_of(profiles: Any) -> Expression:
    if hasattr(profiles, "var_names"):
        return _of_table(profiles)
    cells: list[Mapping[str, float]] = [profiles] if isinstance(profiles, Mapping) else list(profiles)
    genes = list(dict.fromkeys(gene for cell in cells for gene in cell))
    column = {gene: j for j, gene in enumerate(genes)}
    counts = np.zeros((len(cells), len(genes)))
    for row, cell in enumerate(cells):
        for gene, count in cell.items():
            counts[row, column[gene]] = count
    return _expression(counts, genes, genes, np.ones(len(genes), dtype=bool))


def _of_table(table: ad.AnnData) -> Expression:
    symbols = [str(name) for name in table.var_names]
    ids = table.var["ensembl_id"].astype(str).tolist() if "ensembl_id" in table.var else symbols
    measured = table.var["measured"].to_numpy(dtype=bool) if "measured" in table.var else np.ones(len(symbols), bool)
    return _expression(table.X, symbols, ids, measured)


def _expression(counts: Any, symbols: Iterable[str], ensembl_ids: Iterable[str], measured: Any) -> Expression:
    """What is no Ensembl id is read as none, so a symbol may stand in both places."""
    names = np.array([*symbols], dtype=object)
    rows = np.arange(counts.shape[0]).astype(str)
    checked: sp.csr_matrix = checked_counts(counts, barcodes=rows, genes=names, where="transcriptome_processor")
    return Expression(checked, tuple(names), tuple(ensembl_ids), measured)


def _published() -> Path:
    """The published model, converted once."""
    folder = settings.cache_dir / CARD.name
    if not folder.exists():
        convert_spatialwhisperer(find_file(CARD, (FILE,), weights=None), folder)
    return folder
