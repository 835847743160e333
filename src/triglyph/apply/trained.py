"""A trained model as its users see it: sections in, embeddings of the shared space out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triglyph.encoders.base import Modality
from triglyph.errors import ContractError
from triglyph.models import fused
from triglyph.models.alignment import Alignment
from triglyph.models.method import Method
from triglyph.tissue.section import Section
from triglyph.training.features import encode_rows, encode_section, to_device
from triglyph.training.release import load_model
from triglyph.training.run import Run

Embedded = tuple[NDArray[np.float32], NDArray[np.bool_]]


class TrainedModel:
    """A finished run. Open it with `TrainedModel.open`.

    Parameters
    ----------
    model
        In evaluation mode.
    manifest
        What it was trained on; empty for a model that is not of a run.
    device
        Where it encodes.
    """

    def __init__(self, model: Method, manifest: dict[str, Any], *, device: str | torch.device = "cpu") -> None:
        self.model, self.manifest, self.device = model.to(device).eval(), manifest, device
        self.fingerprints: dict[str, str] = {m: model.applied(m).fingerprint() for m in model.modalities}
        self._kept: dict[tuple[Path, str], Embedded] = {}

    @classmethod
    def open(
        cls, run: Path, *, device: str | torch.device = "cpu", weights: dict[str, Path] | None = None
    ) -> TrainedModel:
        """Open a run folder.

        Parameters
        ----------
        run
            The `--out` of `triglyph train`.
        weights
            modality -> folder of published weights, for locked encoders that are not where the recipe had them.

        Raises
        ------
        StorageError
            The run is not finished, or the folder is none.
        WeightsError
            Its tensors or encoders are not those it was trained with.
        """
        folder = Run(Path(run))
        manifest = folder.manifest()
        return cls(load_model(folder.model_path, weights=weights), manifest, device=device)

    @property
    def alignment(self) -> Alignment:
        """The model, where it aligns modalities in one space.

        Raises
        ------
        ContractError
            It is of another method.
        """
        if not isinstance(self.model, Alignment):
            raise ContractError(
                f"a model of the method {self.model.name} has no space that modalities share",
                where=self.manifest.get("recipe", "model"),
                mend="give a run of the method alignment",
            )
        return self.model

    @property
    def training_sections(self) -> tuple[str, ...]:
        """Sections it has seen, validation included: nothing may be claimed on them."""
        return (*self.manifest.get("training_sections", ()), *self.manifest.get("validation_sections", ()))

    @property
    def split_name(self) -> str:
        """The split it was trained on; "" for named sections."""
        split = self.manifest.get("split")
        return split["name"] if split else ""

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those it reads."""
        return self.model.modalities

    @property
    def fusions(self) -> tuple[str, ...]:
        """What `embed` gives of image and expression together: `fused`, as the model was trained, and each by name."""
        return fused.names(self.model.fusions)

    def pooled(self, section: Section, modality: str) -> Embedded:
        """Output of a tower's encoder, before its head: values (n, dim_in), NaN where absent, and present (n,).

        Of a locked tower it is read from, or added to, `section.embeddings`; of another it is kept in memory.

        Raises
        ------
        ContractError
            There is no tower of this modality.
        """
        if fused.is_fused(modality):
            raise ContractError(
                "before the shared space nothing is fused",
                where=modality,
                mend="take the embedding (`features: embedding`), or image or expression",
            )
        encoder, fingerprint = self.model.applied(modality), self.fingerprints[modality]
        if modality in self.model.config.cached:
            encode_section(section, encoder, device=self.device, fingerprint=fingerprint)
            stored = section.embeddings.read(fingerprint)
            return np.asarray(stored.values), np.asarray(stored.present)
        key = (section.path, modality)
        if key not in self._kept:
            self._kept[key] = encode_rows(section, encoder, device=self.device)
        return self._kept[key]

    def forget(self) -> None:
        """Let go of what is kept in memory of the sections read so far."""
        self._kept.clear()

    def embed(self, section: Section, modality: str) -> Embedded:
        """Locations of a section in the shared space.

        Parameters
        ----------
        modality
            A tower's, or one of `fusions`.

        Returns
        -------
        values
            (n, D) float32; NaN where the modality is absent, of a fusion where either of both is. L2-normalised where
            modalities share a space, which a `stamp-genes` run has none of: its lengths mean something.
        present
            (n,)

        Raises
        ------
        ContractError
            The model has no such tower, or no such fusion.
        """
        if fused.is_fused(modality):
            return self._fused(section, modality)
        pooled, present = self.pooled(section, modality)
        return self.project(modality, pooled, present, section.centres_um), present

    def _fused(self, section: Section, modality: str) -> Embedded:
        fusion = self.model.fusion(fused.made_of(modality))  # before anything is encoded
        (image, has_image), (expression, has_expression) = (self.embed(section, part) for part in fused.PARTS)
        present = has_image & has_expression
        with torch.no_grad():
            v, g = (torch.from_numpy(values[present]).to(self.device) for values in (image, expression))
            found = self.model.fuse(v, g, fusion).cpu().numpy()
        out = np.full((len(present), found.shape[1]), np.nan, dtype=np.float32)
        out[present] = found
        return out, present

    def project(
        self,
        modality: str,
        pooled: NDArray[np.float32],
        present: NDArray[np.bool_],
        centres_um: NDArray[np.float64],
    ) -> NDArray[np.float32]:
        """Pooled features (n, dim_in) of one section as embeddings (n, D); NaN where absent."""
        rows = np.flatnonzero(present)
        with torch.no_grad():
            pieces = []
            for chunk in np.split(rows, range(4096, len(rows), 4096)):
                values = torch.from_numpy(np.array(pooled[chunk], dtype=np.float32)).to(self.device)
                pieces.append(self.model.project(modality, values))
            found = self.model.of_section(modality, torch.cat(pieces), centres_um[rows]).cpu().numpy()
        out = np.full((len(pooled), found.shape[1]), np.nan, dtype=np.float32)
        out[rows] = found
        return out

    @property
    def transductive(self) -> tuple[str, ...]:
        """What of its embeddings comes from the sections that it is applied to, in words."""
        return self.model.transductive()

    def embed_text(self, texts: list[str]) -> NDArray[np.float32]:
        """Free text in the shared space, (k, D), L2-normalised.

        Raises
        ------
        ContractError
            The model has no text tower, or a text is blank.
        """
        if blank := [i for i, text in enumerate(texts) if not text.strip()]:
            raise ContractError(f"text {blank[0]} is blank", where="embed_text", mend="give words")
        encoder = self.model.encoder("text")
        out = np.empty((len(texts), self.alignment.config.dim), dtype=np.float32)
        with torch.no_grad():
            for start in range(0, len(texts), 64):
                inputs = to_device(encoder.prepare(texts[start : start + 64]), self.device)
                out[start : start + 64] = self.alignment.embed("text", encoder.encode(inputs).pooled).cpu().numpy()
        return out
