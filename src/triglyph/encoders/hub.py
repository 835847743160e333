"""Encoders with published weights: our own architectures, filled strictly from a folder or the hub.

A subclass says which files it needs and how the names of its tensors have changed over versions of libraries; this
class builds it on the meta device, loads it, and lets it read what else it needs (a vocabulary, gene medians).
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from triglyph.encoders.base import Encoder
from triglyph.encoders.weights import check_config, find_file, is_cached, load_strict, read_tensors
from triglyph.errors import WeightsError
from triglyph.storage import read_json


class HubEncoder(Encoder, abc.ABC):
    """Base of encoders whose weights are published. Subclasses take only keyword options with defaults."""

    tensor_files: ClassVar[tuple[str, ...]]
    """The weights: path in the hub repository first, then names a local folder may use."""
    extra_files: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Role -> the same, for other files the encoder cannot do without."""
    config_file: ClassVar[str] = ""
    """Path of `config.json` in the repository, "" if there is none that describes the architecture."""

    @abc.abstractmethod
    def tower(self) -> nn.Module:
        """The module that published tensors belong to."""

    def canonical(self, name: str) -> str | None:
        """See `weights.load_strict`."""
        return name

    def architecture(self) -> dict[str, Any]:
        """Fields of `config.json` that must be as here."""
        return {}

    def restore_buffers(self) -> None:
        """Rebuild buffers that are not part of a checkpoint, after a build on the meta device."""

    def read_extra(self, files: dict[str, Path]) -> None:
        """Read the files of `extra_files`."""

    @classmethod
    def from_weights(cls, weights: Path | None = None, **options: Any) -> Self:
        """Build and fill an encoder.

        Parameters
        ----------
        weights
            Folder, or the file of tensors itself; None for the hub.
        options
            As for the constructor.

        Raises
        ------
        WeightsError
            Files are missing or gated, or do not fit.
        """
        with torch.device("meta"):
            encoder = cls(**options)
        config = encoder._config_path(weights)
        if config is not None:
            check_config(read_json(config), encoder.architecture(), where=config)
        extra = {role: find_file(cls.card, names, weights=_folder(weights)) for role, names in cls.extra_files.items()}
        path = find_file(cls.card, cls.tensor_files, weights=weights)
        load_strict(encoder.tower(), read_tensors(path), where=path, canonical=encoder.canonical)
        encoder.restore_buffers()
        left = [n for n, t in [*encoder.named_parameters(), *encoder.named_buffers()] if t.is_meta]
        if left:
            raise WeightsError(f"tensors that no file fills: {', '.join(left[:6])}", where=path)
        encoder.read_extra(extra)
        return encoder

    @classmethod
    def cached(cls) -> bool:
        """Whether everything lies in the local Hugging Face cache."""
        files = [cls.tensor_files[0], *(names[0] for names in cls.extra_files.values())]
        return all(is_cached(cls.card, f) for f in files)

    def _config_path(self, weights: Path | None) -> Path | None:
        """A local folder may do without `config.json`; the hub's is always read."""
        if not self.config_file:
            return None
        if weights is None:
            return find_file(self.card, (self.config_file,), weights=None)
        folder = weights.parent if weights.is_file() else weights
        for place in (folder / self.config_file, folder / Path(self.config_file).name):
            if place.is_file():
                return place
        return None


def _folder(weights: Path | None) -> Path | None:
    return weights.parent if weights is not None and weights.is_file() else weights
