"""Refits of a trained model's heads on shuffled pairs, over features that are pooled once.

Each location keeps its own features; which location's image goes with which location's expression or caption is
drawn anew. Encoders stay as they were trained, so what is tested is what the pairing taught the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from triglyph.bench.contracts import Array, SectionLike, Trial
from triglyph.bench.parts import cut, whole_of
from triglyph.errors import ContractError

if TYPE_CHECKING:
    from triglyph.apply.trained import TrainedModel
    from triglyph.models.alignment import Alignment

Bools = NDArray[np.bool_]


class PooledCache:
    """A trained model's pooled features: each section and each sentence is encoded once."""

    def __init__(self, trained: TrainedModel) -> None:
        self.trained = trained
        self._sections: dict[tuple[str, str], tuple[Array, Bools]] = {}
        self._texts: dict[str, torch.Tensor] = {}

    def section(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """(n, dim) and which of the n locations are present."""
        key = (section.id, modality)
        if key not in self._sections:
            self._sections[key] = self.trained.pooled(section, modality)
        return self._sections[key]

    def texts(self, texts: list[str]) -> torch.Tensor:
        """(k, dim)"""
        encoder = self.trained.model.encoder("text")
        device = next(self.trained.model.parameters()).device
        for text in texts:
            if text not in self._texts:
                inputs = {name: tensor.to(device) for name, tensor in encoder.prepare([text]).items()}
                with torch.no_grad():
                    self._texts[text] = encoder.encode(inputs).pooled[0].float().cpu()
        return torch.stack([self._texts[text] for text in texts])


class Refitted:
    """The trained model with other heads, as an `Embedder`."""

    def __init__(self, cache: PooledCache, heads: Alignment, *, training_sections: Sequence[str]) -> None:
        self.cache, self.heads = cache, heads.eval()
        self.modalities: Sequence[str] = tuple(cache.trained.modalities)
        self.training_sections = tuple(training_sections)

    def pooled(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """As the trained model's: encoders are the same."""
        return self.cache.section(section, modality)

    def embed(self, section: Any, modality: Any) -> tuple[Array, Bools]:
        """(n, dim) through the refitted heads; NaN where absent."""
        values, present = self.cache.section(section, modality)
        projected = self._project(modality, torch.from_numpy(np.array(values[present], dtype=np.float32)))
        out = np.full((len(present), projected.shape[1]), np.nan, dtype=np.float32)
        out[present] = projected
        return out, present

    def embed_text(self, texts: list[str]) -> Array:
        """(k, dim) of any sentences."""
        return self._project("text", self.cache.texts(texts))

    def _project(self, modality: str, pooled: torch.Tensor) -> NDArray[np.float32]:
        device = next(self.heads.parameters()).device
        with torch.no_grad():
            return self.heads.embed(modality, pooled.to(device)).cpu().numpy()


class ShuffledRefits:
    """From a seed to the model with heads refitted on shuffled pairs.

    Parameters
    ----------
    trained
        The model that is judged.
    trial
        Its training sections are those whose pairs are shuffled.
    epochs, lr, batch_size, weight_decay
        As the model itself was trained, so that the null had the same chance to learn.
    """

    def __init__(
        self,
        trained: TrainedModel,
        trial: Trial,
        *,
        epochs: int = 10,
        lr: float = 1e-3,
        batch_size: int = 256,
        weight_decay: float = 0.0,
    ) -> None:
        self.cache = PooledCache(trained)
        self.trial, self.epochs, self.lr = trial, epochs, lr
        self.batch_size, self.weight_decay = batch_size, weight_decay
        if not trial.train:
            raise ContractError("no training section to shuffle the pairs of", where=f"split {trial.split!r}")
        self.features: dict[str, tuple[Array, Bools]] = {m: self._stacked(trial.train, m) for m in trained.modalities}
        captions = [c.strip() for s in trial.train for c in s.captions]
        self.duplicates = np.unique(np.array(captions), return_inverse=True)[1]
        self.sections = np.repeat(np.arange(len(trial.train)), [len(s.captions) for s in trial.train])

    def _stacked(self, sections: Sequence[SectionLike], modality: str) -> tuple[Array, Bools]:
        parts = [cut(s, *self.cache.section(whole_of(s), modality)) for s in sections]
        return np.concatenate([v for v, _ in parts]), np.concatenate([p for _, p in parts])

    def __call__(self, seed: int) -> Refitted:
        from triglyph.training.refit import refit_heads

        heads = refit_heads(
            self.cache.trained.alignment,
            self.features,
            seed=seed,
            epochs=self.epochs,
            lr=self.lr,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            shuffle_pairs=True,
            duplicates=self.duplicates,
            sections=self.sections,
        )
        # Encoders are the model's: what they were trained on, the refit has seen too.
        seen = dict.fromkeys([*self.cache.trained.training_sections, *(s.id for s in self.trial.train)])
        return Refitted(self.cache, heads, training_sections=list(seen))
