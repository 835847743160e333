"""Stamp's second stage: images at two scales aligned with gene expression (ICLR 2026).

A location is seen twice by one vision transformer (`triglyph.encoders.pretext_vit`): as a *patch* about its centre, and
as a *region* three patches wide that holds the patch in one of nine cells. Its expression is the *spot*. Single linear
maps lead from each into one space, and four losses tie them, each a cross-entropy over scaled cosines with one learnt
scale:

    patch_spot      patch and spot of a location find each other            (L_PS, symmetric)
    region_spot     region and spot of a location find each other           (L_RS, symmetric)
    patch_region    patch and region of a location find each other          (L_PR; one-sided in the release)
    localisation    the patch finds its cell in the region                  (L_CSP)

`total` is their weighted sum, over those that the batch has rows for. A location drawn twice is no negative of itself.
In data-parallel training all losses are of the rows of all processes.

Of a location the model gives: `pooled` image, the patch's class token; Stamp_V, the patch in the shared space
(`project`); Stamp_G, the spot there; and Stamp_F, both in one (`fuse`): by the recipe's own fusion, or by another that
needs no training. The patch is always read with its pretext token, as in training: `applied` gives the encoder that
does so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.cards import Frozen
from triglyph.encoders.base import Encoder, Modality
from triglyph.encoders.image import ImageEncoder
from triglyph.encoders.pretext_vit import PretextToken, PretextViT, View, transformer
from triglyph.errors import ContractError
from triglyph.models.base import Batch, Output
from triglyph.models.method import Method, MethodConfig, RegionConfig
from triglyph.objectives.contrastive import INIT_TEMPERATURE, Temperature, held_by_both, info_nce
from triglyph.objectives.gather import gather_batch, is_distributed
from triglyph.objectives.localisation import (
    cell_cosines,
    cell_window,
    localisation_loss,
    one_sided_nce,
    pool_cells,
)
from triglyph.tissue.regions import NOWHERE, SIDE

Fusion = Literal["concat", "sum", "gated"]
UNTRAINED: tuple[Fusion, ...] = ("concat", "sum")
"""Fusions that learn nothing: any model has them."""


class LossWeights(Frozen):
    """Weights of the four losses; 0 takes one out. The paper has them all at 1."""

    patch_spot: float = Field(default=1.0, ge=0)
    region_spot: float = Field(default=1.0, ge=0)
    patch_region: float = Field(default=1.0, ge=0)
    localisation: float = Field(default=1.0, ge=0)


class StampAlignConfig(MethodConfig):
    """Towers, losses and fusion.

    Negatives of the same slide: the release draws to each sample another one of its slide, so that a batch of 128 holds
    256 locations, two of each slide. Here that is `training.batch_size: 256` with `training.sections_per_batch: 128`
    (fewer sections make larger handfuls of each); a location that comes twice is masked.

    The image tower reads pixels in every mode, `locked` too: its transformer sees the region together with a token that
    learns, so its output is no constant that could be kept.
    """

    dim: int = Field(default=512, ge=1)
    """Width of the shared space, and of the one in which cells are compared."""
    weights: LossWeights = LossWeights()
    patch_region: Literal["symmetric", "one-sided"] = "symmetric"
    """`one-sided`, as the release: patches find their region, and regions need not find their patch."""
    fusion: Fusion = "concat"
    """Stamp_F of a location: both embeddings side by side, their sum, or a mean by learnt gates (see `GatedFusion`);
    of unit length each."""
    init_temperature: float = Field(default=INIT_TEMPERATURE, gt=0)
    max_scale: float | None = Field(default=100.0, gt=0)
    """Of the learnt logit scale; null never clamps it, as the release."""
    regions: RegionConfig = RegionConfig()
    compat: Literal["release"] | None = None
    """`release` lays out a region's cells as Stamp's release does: none is of a place, unless a transformer that learns
    makes it one (see `triglyph.objectives.localisation`). What else differs there has a name of its own:
    `patch_region: one-sided`, `max_scale: null`."""

    @model_validator(mode="after")
    def _towers_and_losses_fit(self) -> StampAlignConfig:
        weights = self.weights
        if not self.terms:
            raise ValueError("every loss has the weight 0, so there is nothing to train")
        if "image" not in self.towers or "text" in self.towers:
            raise ValueError("stamp-align has a tower of image, and one of expression; no other")
        spots = weights.patch_spot > 0 or weights.region_spot > 0
        if spots and "expression" not in self.towers:
            raise ValueError("patch_spot and region_spot need a tower of expression; or set both weights to 0")
        if not spots and "expression" in self.towers:
            raise ValueError("no loss reads the tower of expression; give patch_spot or region_spot a weight")
        if self.fusion == "gated" and not (spots and (weights.region_spot > 0 or weights.patch_region > 0)):
            raise ValueError("fusion: gated learns from spots and regions; give region_spot or patch_region a weight")
        for modality, tower in self.towers.items():
            if tower.head is not None:
                raise ValueError(f"projections are single linear maps; take out towers.{modality}.head")
        if self.towers["image"].standardise:
            raise ValueError("the image tower's output is no constant to be standardised")
        return self

    @property
    def terms(self) -> dict[str, float]:
        """Loss -> weight, of those that are trained."""
        found: dict[str, float] = self.weights.model_dump()
        return {name: weight for name, weight in found.items() if weight > 0}

    @property
    def needs(self) -> tuple[tuple[Modality, ...], ...]:
        """A picture is enough where a loss reads images alone."""
        alone = self.weights.patch_region > 0 or self.weights.localisation > 0
        return (("image",),) if alone else (("image", "expression"),)

    @property
    def wider(self) -> RegionConfig | None:
        """Regions, where a loss reads them."""
        return self.regions if set(self.terms) != {"patch_spot"} else None

    @property
    def cached(self) -> tuple[Modality, ...]:
        """Those whose pooled output is a constant that can be kept."""
        return tuple(m for m in self.locked if m != "image")


class GatedFusion(nn.Module):
    """`g * image + (1 - g) * expression`; `g = sigmoid(W [image, expression] + b)`, one for each dimension.

    It starts at g = 1/2, the sum, and learns by InfoNCE of what it makes with the location's *region*, a third view
    that is neither of the two. The loss sees detached embeddings, so only the gate learns from it: which fusion is
    chosen changes no other output of the model.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, image: Tensor, expression: Tensor) -> Tensor:
        share = torch.sigmoid(self.gate(torch.cat([image, expression], dim=-1)))
        return share * image + (1 - share) * expression


class StampAlign(Method):
    """Towers, pretext token, projections and the four losses.

    Of a batch (`triglyph.models.base`) the entry `image` holds `pixels` (k, px, px, 3) uint8 of patches, `region`
    (k, px, px, 3) uint8, `ref` (k, s, s, 3) uint8, the patches shrunk to one token, and `cell` (k,) 0 to 8 or
    `NOWHERE`: see `triglyph.tissue.regions`. The entry `expression` is as ever.

    Parameters
    ----------
    config
        What to build.
    encoders
        One per tower; that of images around a timm vision transformer. They keep their weights.
    """

    name = "stamp-align"
    config_class = StampAlignConfig

    def __init__(self, config: StampAlignConfig, encoders: Mapping[str, Encoder]) -> None:
        super().__init__(config, encoders)
        vision = self._vision
        for tokens in transformer(vision).patch_embed.grid_size:
            cell_window(tokens)
        config.regions.cuts(vision.card)
        self.pretext = PretextToken(vision)
        width = transformer(vision).embed_dim
        self.heads = nn.ModuleDict({"image": nn.Linear(width, config.dim)})
        if self._reads_regions:
            self.heads["region"] = nn.Linear(width, config.dim)
        if "localisation" in config.terms:
            self.heads["position"] = nn.Linear(width, config.dim)
        if "expression" in config.towers:
            self.heads["expression"] = nn.Linear(encoders["expression"].card.dim, config.dim)
        self.temperature = Temperature(init=config.init_temperature, max_scale=config.max_scale)
        # Last, and without drawing at random: the other parts start the same whatever the fusion.
        self.gate = GatedFusion(config.dim) if config.fusion == "gated" else None

    @property
    def _vision(self) -> ImageEncoder:
        found = self.encoder("image")
        assert isinstance(found, ImageEncoder)
        return found

    @property
    def _reads_regions(self) -> bool:
        return self.config.wider is not None

    @property
    def loss_names(self) -> tuple[str, ...]:
        """One a loss, and the gate's own."""
        return (*self.config.terms, *(("fusion",) if self.gate is not None else ()))

    def scalars(self) -> dict[str, dict[str, float]]:
        """The learnt scale, shared by all losses."""
        return {"logit_scale": {"shared": self.logit_scale()}}

    def logit_scale(self) -> float:
        """The learnt scale."""
        return float(self.temperature("").detach())

    @property
    def apart(self) -> tuple[nn.Module, ...]:
        """The gate."""
        return () if self.gate is None else (self.gate,)

    def applied(self, modality: str) -> Encoder:
        """The encoder of a modality as the trained model reads it: that of images with the patch's pretext token."""
        return PretextViT(self._vision, self.pretext).eval() if modality == "image" else self.encoder(modality)

    # ---- from a batch to the shared space

    def patch(self, entry: Mapping[str, Any]) -> View:
        """Patches of an image entry, through the transformer."""
        with self._trunk_learns():
            return self.pretext.patch(self._vision, entry["pixels"])

    def region(self, entry: Mapping[str, Any]) -> View:
        """Regions of an image entry, through the same transformer, each carrying its patch as a token."""
        with self._trunk_learns():
            return self.pretext.region(self._vision, entry["region"], entry["ref"])

    def _trunk_learns(self) -> torch.set_grad_enabled:
        # A locked transformer too: its weights are constants, but the token that goes through it learns.
        return torch.set_grad_enabled(torch.is_grad_enabled() and not self.heads_only)

    def pooled(self, modality: str, entry: Mapping[str, Any]) -> Tensor:
        """(k, dim_in) output of an encoder before its projection; of images the class token of the patch."""
        return self.patch(entry).pooled if modality == "image" else super().pooled(modality, entry)

    def project(self, modality: str, pooled: Tensor) -> Tensor:
        """(k, dim) of unit length: Stamp_V of `image`, Stamp_G of `expression`."""
        return F.normalize(self._projected(modality, pooled).float(), dim=-1)

    def _projected(self, stream: str, pooled: Tensor) -> Tensor:
        return self.heads[stream](self.scalers[stream](pooled) if stream in self.scalers else pooled)

    @property
    def fusions(self) -> tuple[str, ...]:
        """The recipe's own, and those that learn nothing; none without a tower of expression."""
        own: Fusion = self.config.fusion
        return tuple(dict.fromkeys((own, *UNTRAINED))) if "expression" in self.config.towers else ()

    def fuse(self, image: Tensor, expression: Tensor, fusion: str = "") -> Tensor:
        """Stamp_F of locations that have both, of unit length: (k, dim), or (k, 2 dim) for `concat`.

        Parameters
        ----------
        image, expression
            (k, dim) Stamp_V and Stamp_G of the same locations.
        fusion
            One of `fusions`; "" takes the recipe's own.
        """
        if self.fusion(fusion) == "gated":
            assert self.gate is not None
            return F.normalize(self.gate(image, expression), dim=-1)
        return super().fuse(image, expression, fusion)

    def forward(self, batch: Batch) -> Output:
        """Embeddings of patches (`image`), regions and spots (`expression`), and the losses between them.

        `predictions["cell"]` are the cosines (k, 9) of each patch with the cells of its region; rows as `region`.

        Raises
        ------
        ContractError
            No loss has rows enough: two locations with what it compares, or one whose region fits its image.
        """
        pooled: dict[str, Tensor] = {}
        rows: dict[str, Tensor] = {}
        keys = {"index": batch["index"]}
        cosines: Tensor | None = None
        image, expression = (
            batch[m] if m in batch and len(batch[m]["rows"]) else None for m in ("image", "expression")
        )
        localises = "localisation" in self.config.terms
        if localises:
            keys["cell"] = torch.full_like(batch["index"], NOWHERE)
        if image is not None:
            self._check(image)
            pooled["image"], rows["image"] = self.patch(image).pooled, image["rows"]
            if self._reads_regions:
                region = self.region(image)
                pooled["region"], rows["region"] = region.pooled, image["rows"]
            if localises:
                cells = pool_cells(region.grid, compat=self.config.compat)
                cosines = cell_cosines(self.heads["position"](region.pretext), self.heads["position"](cells))
                keys["cell"][image["rows"]] = image["cell"]
        if expression is not None and "expression" in self.config.towers:
            pooled["expression"], rows["expression"] = self.pooled("expression", expression), expression["rows"]
        projected = {stream: self._projected(stream, x).float() for stream, x in pooled.items()}
        if is_distributed():
            projected, rows, keys, cosines = self._gathered(projected, rows, keys, cosines, n=batch["n"])
        embeddings = {stream: F.normalize(x, dim=-1) for stream, x in projected.items()}
        losses = self._losses(embeddings, rows, keys, cosines)
        return Output(embeddings, rows, {} if cosines is None else {"cell": cosines}, losses)

    def _check(self, image: Mapping[str, Any]) -> None:
        wanted = ("pixels", *(("region", "ref") if self._reads_regions else ()))
        wanted += ("cell",) if "localisation" in self.config.terms else ()
        if missing := [name for name in wanted if name not in image]:
            raise ContractError(
                f"the images of a batch come without {', '.join(missing)}",
                where=f"it holds {', '.join(image)}",
                mend="give both scales, as pixels: see triglyph.tissue.regions",
            )

    def _gathered(
        self,
        projected: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        keys: Mapping[str, Tensor],
        cosines: Tensor | None,
        *,
        n: int,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], Tensor | None]:
        """The same, of the rows of all processes."""
        index = keys["index"]
        streams = [s for s in ("image", "region", "expression") if s in self.heads]
        nothing, no_rows = torch.zeros(0, self.config.dim, device=index.device), index[:0]
        everyone, at, all_keys = gather_batch(
            {s: projected.get(s, nothing) for s in streams}, {s: rows.get(s, no_rows) for s in streams}, keys, n=n
        )
        if "cell" in keys:
            mine = nothing.new_zeros(0, SIDE * SIDE) if cosines is None else cosines
            found, _, _ = gather_batch({"cell": mine}, {"cell": rows.get("region", no_rows)}, {}, n=n)
            cosines = found["cell"]
        return everyone, at, all_keys, cosines

    def _losses(
        self,
        embeddings: Mapping[str, Tensor],
        rows: Mapping[str, Tensor],
        keys: Mapping[str, Tensor],
        cosines: Tensor | None,
    ) -> dict[str, Tensor]:
        """Those of the terms that have rows, and `total`."""
        scale, terms = self.temperature(""), self.config.terms
        found: dict[str, Tensor] = {}
        if "image" in rows and "region" in rows and "patch_region" in terms and len(rows["image"]) > 1:
            one_sided = self.config.patch_region == "one-sided"
            compare = one_sided_nce if one_sided else info_nce
            duplicates = [keys["index"][rows["image"]]]
            found["patch_region"] = compare(embeddings["image"], embeddings["region"], scale, duplicates=duplicates)
        at_image, at_spot, positions = held_by_both(rows.get("image"), rows.get("expression"))
        if len(at_image) > 1:
            # index_select: the gradient of plain indexing is summed in no fixed order by several threads.
            spot = embeddings["expression"].index_select(0, at_spot)
            patch = embeddings["image"].index_select(0, at_image)
            duplicates = [keys["index"][positions]]
            if "patch_spot" in terms:
                found["patch_spot"] = info_nce(patch, spot, scale, duplicates=duplicates)
            if "region" in rows:
                region = embeddings["region"].index_select(0, at_image)
                if "region_spot" in terms:
                    found["region_spot"] = info_nce(region, spot, scale, duplicates=duplicates)
                if self.gate is not None:
                    fused = self.fuse(patch.detach(), spot.detach())
                    found["fusion"] = info_nce(fused, region.detach(), scale.detach(), duplicates=duplicates)
        if cosines is not None:
            where = localisation_loss(cosines, keys["cell"][rows["region"]], scale)
            if where is not None:
                found["localisation"] = where
        if not found:
            raise ContractError(
                "no loss has rows enough in this batch, so there is nothing to learn from",
                where=f"weights {', '.join(terms)}; rows {({s: len(r) for s, r in rows.items()}) or 'none'}",
                mend="use a larger batch, or train on sections that have images and expression",
            )
        # In the order of the configuration, so that the sum does not hang on who is absent.
        found = {name: found[name] for name in self.loss_names if name in found}
        total = torch.stack([terms.get(name, 1.0) * term for name, term in found.items()]).sum()
        return {**found, "total": total}
