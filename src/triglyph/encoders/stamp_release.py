"""`stamp-release`: Stamp's gene encoder as published, with its own vocabulary, means and weights.

Han et al., ICLR 2026, arXiv 2602.13944; trained on SpaVis-6M. The published file is the whole of Stamp or its first
stage alone; the gene encoder is taken out of either, strictly, and its heads are left. Beside it must lie the
vocabulary and the non-zero means of the repository; the means are rounded, as the release does it.

The release sorts with an unstable sort while rounding leaves most tokens in ties, so its order hangs on the columns'
and on the machine; here ties go by token id. Its embedding leaves out the first three positions, meant for context
tokens that it does not have, and averages over pads: `pooling="release"` is that, for comparison.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from triglyph.encoders.base import Encoded, EncoderCard, Inputs
from triglyph.encoders.expression import RankEncoder
from triglyph.encoders.hub import HubEncoder
from triglyph.encoders.packed import PackedTransformer, pack, positions, segment_mean, unpack
from triglyph.errors import ContractError, WeightsError
from triglyph.genes.dictionaries import read_dictionary
from triglyph.genes.means import rounded_mean
from triglyph.genes.tokens import RankVocabulary

MASK, PAD, CLS = 0, 1, 2
FIRST = 30
"""The first token that is a gene; those below are reserved."""
GENES = 20_310
DIM, DEPTH, HEADS, FEEDFORWARD, MAX_TOKENS = 512, 12, 16, 1024, 1500
ROWS = FIRST + GENES + 5
"""Rows of the embedding; the last five are never used."""
DROPPED = 3
"""Leading positions that the released pooling leaves out."""

_PREFIX = re.compile(r"(module\.)?(spot_backbone\.|model\.)?")
"""What data parallelism, the whole of Stamp and Lightning put before a name."""
_UNUSED = (
    # heads, and the layer that others were copied from
    "classifier_head.",
    "spatial_classifier_head.",
    "encoder_layer.",
    # the rest of Stamp
    "visual_backbone.",
    "spot_projection.",
    "patch_projection.",
    "region_projection.",
    "positioning_projection.",
    "logit_scale",
)


class _GeneTower(nn.Module):
    """The architecture under its published names."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(ROWS, DIM, padding_idx=PAD)
        self.positional_embedding = nn.Embedding(MAX_TOKENS, DIM)
        self.encoder = PackedTransformer(DIM, depth=depth, heads=HEADS, feedforward=FEEDFORWARD)

    def embedded(self, ids: Tensor, places: Tensor) -> Tensor:
        out: Tensor = self.embeddings(ids) + self.positional_embedding(places)
        return out


class StampRelease(RankEncoder, HubEncoder):
    """Stamp's published gene encoder.

    Parameters
    ----------
    pooling
        `mean` averages over real tokens, all of them. `release` is the published embedding: without the three tokens of
        highest rank, and over pads up to 1,500.
    depth
        Below 12 it cuts layers off, for tests.
    """

    card = EncoderCard(
        name="stamp-release",
        summary="Stamp's published transformer over genes in anomaly-rank order, pretrained on 5.75 M Visium spots.",
        licence="none stated",
        commercial_use=False,
        citation="Han et al., ICLR 2026, arXiv 2602.13944",
        homepage="https://huggingface.co/minghaofdu/STAMP",
        modality="expression",
        dim=DIM,
        pooling="mean",
        hub_id="minghaofdu/STAMP",
        parameters=36_418_048,
        max_tokens=MAX_TOKENS,
        pretrained_on=("SpaVis-6M",),
    )
    tensor_files = ("pytorch_model.bin", "model.safetensors")
    extra_files = {"vocabulary": ("model.h5ad",), "means": ("Visium_mean.npy",)}  # noqa: RUF012
    symbol_files = ("gene_name_id_dict.json", "gene_name_id_dict.pkl")
    """Optional: symbol -> Ensembl id, for sections without ids. They lie beside the vocabulary."""

    def __init__(self, *, pooling: Literal["mean", "release"] = "mean", depth: int = DEPTH) -> None:
        super().__init__()
        if pooling not in ("mean", "release"):
            raise ContractError(f"{self.card.name} has no pooling {pooling!r}", mend="mean or release")
        self.pooling, self.depth = pooling, depth
        self.gene_tower = _GeneTower(depth)
        count = sum(p.numel() for p in self.parameters())
        self.card = type(self).card.model_copy(update={"pooling": pooling, "parameters": count})

    def options(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "depth": self.depth}

    def tower(self) -> nn.Module:
        return self.gene_tower

    def canonical(self, name: str) -> str | None:
        name = _PREFIX.sub("", name, count=1)
        return None if name.startswith(_UNUSED) else name

    # ---- the vocabulary

    def read_extra(self, files: dict[str, Path]) -> None:
        names = _gene_names(files["vocabulary"])
        means = _means(files["means"])
        beside = [files["vocabulary"].with_name(name) for name in self.symbol_files]
        symbols = next((read_dictionary(path) for path in beside if path.is_file()), None)
        tokens = {name: FIRST + i for i, name in enumerate(names)}
        scales = dict(zip(names, rounded_mean(means).tolist(), strict=True))
        self.use(RankVocabulary(tokens, scales, symbols), where=files["vocabulary"])

    def use(self, vocabulary: RankVocabulary, *, where: Path | str) -> None:
        ids = vocabulary.tokens.values()
        if min(ids) < FIRST or max(ids) >= FIRST + GENES:
            raise WeightsError(
                f"token ids from {min(ids)} to {max(ids)}, where genes are {FIRST} to {FIRST + GENES - 1}",
                where=where,
                mend="use the vocabulary of the release",
            )
        self.vocabulary = vocabulary

    # ---- encoding

    def prepare(self, raw: Any) -> Inputs:
        """`ids` and `mask`, (n, length): genes in rank order. A location without a known count has no real token."""
        inputs = self.rank_inputs(raw, max_tokens=MAX_TOKENS)
        return {**inputs, "ids": inputs["ids"].masked_fill(~inputs["mask"], PAD)}

    def encode(self, inputs: Inputs) -> Encoded:
        """The embedding, 0 for a location without tokens; and tokens, padded to 1,500 with `pooling="release"`."""
        ids, lengths = pack(inputs["ids"], inputs["mask"])
        if self.pooling == "release":
            return self._as_released(ids, lengths)
        rows = self.gene_tower.encoder(self.gene_tower.embedded(ids, positions(lengths)), lengths)
        return Encoded(segment_mean(rows, lengths), unpack(rows, inputs["mask"]), inputs["mask"])

    def _as_released(self, ids: Tensor, lengths: Tensor) -> Encoded:
        places = torch.arange(MAX_TOKENS, device=ids.device)
        mask = places < lengths[:, None]
        padded = torch.full_like(mask, PAD, dtype=ids.dtype)
        padded[mask] = ids
        some = lengths > 0  # attention over pads alone has no answer
        found = self.gene_tower.encoder.padded(self.gene_tower.embedded(padded[some], places), mask[some])
        tokens = found.new_zeros(len(mask), MAX_TOKENS, DIM)
        tokens[some] = found
        return Encoded(tokens[:, DROPPED:].mean(dim=1), tokens, mask)


def _gene_names(path: Path) -> list[str]:
    """Names of the vocabulary's columns, in their order."""
    import anndata

    try:
        names = [str(name) for name in anndata.read_h5ad(path).var_names]
    except (OSError, KeyError, ValueError) as error:
        raise WeightsError(f"not readable as .h5ad ({error})", where=path, mend="fetch the file again") from error
    if len(names) != GENES or len(set(names)) != GENES:
        raise WeightsError(
            f"{len(set(names))} genes, where the vocabulary of the release has {GENES}",
            where=path,
            mend="use the file of the release",
        )
    return names


def _means(path: Path) -> NDArray[np.float64]:
    """The published non-zero means, NaN for genes that never occurred."""
    try:
        means = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(f"not readable as an array ({error})", where=path, mend="fetch the file again") from error
    if not isinstance(means, np.ndarray) or means.shape != (GENES,) or means.dtype.kind != "f":
        raise WeightsError(f"holds no {GENES} means", where=path, mend="use the file of the release")
    if (means < 0).any() or np.isinf(means).any():
        raise WeightsError("holds means that are negative or infinite", where=path, mend="use the file of the release")
    return means.astype(np.float64)
