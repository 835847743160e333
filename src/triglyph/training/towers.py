"""Towers before the first step: built from a seed, fitted on training sections alone, locked ones encoded once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from triglyph.encoders import registry
from triglyph.encoders.base import Encoder
from triglyph.errors import RecipeError, WeightsError
from triglyph.models.method import Method, method_class
from triglyph.models.towers import build_encoder
from triglyph.storage import read_json, write_json
from triglyph.training.dataset import Locations, Rows
from triglyph.training.features import cache_windows, encode_section, raw_chunks
from triglyph.training.progress import bar
from triglyph.training.recipe import Recipe
from triglyph.training.run import Run

if TYPE_CHECKING:
    from triglyph.tissue.section import Section


def build_encoders(recipe: Recipe, rows: Rows, run: Run) -> dict[str, Encoder]:
    """The encoders of a recipe as they are before the first step, on the CPU.

    What `fit` learns is written to the run folder the first time and read from there ever after.
    """
    found: dict[str, Any] = read_json(run.towers_path) if run.towers_path.is_file() else {}
    encoders: dict[str, Encoder] = {}
    for number, modality in enumerate(recipe.model.modalities):
        tower = recipe.model.towers[modality]
        if modality in found:
            assets = found[modality]["assets"]
        elif registry.encoder_class(tower.encoder).learns(tower.options):
            learner = build_encoder(tower, modality=modality)
            # A tower of another run brings its vocabulary: its weights mean nothing with another.
            if not learner.assets():
                learner.fit(_TrainingInput(rows, learner, modality))
            assets = learner.assets()
        else:
            assets = {}
        # Assets may size parameters anew. The first start and every later one take the same way to the same numbers,
        # and each tower has a seed of its own: changing one does not change the start of another.
        _seed(recipe.seed, number)
        encoders[modality] = build_encoder(tower, modality=modality)
        if assets:
            encoders[modality].load_assets(assets)
        # Adapters are saved without what they are put on, so that must be there again, and the same.
        if tower.mode == "lora" and modality in found:
            _check_base(encoders[modality], found[modality]["fingerprint"], tower.weights)
    if not found:
        about = {
            m: {"encoder": e.card.name, "fingerprint": e.fingerprint(), "assets": e.assets()}
            for m, e in encoders.items()
        }
        write_json(run.towers_path, about)
    return encoders


def initial_fingerprints(run: Run) -> dict[str, str]:
    """modality -> fingerprint before the first step."""
    found: Mapping[str, Any] = read_json(run.towers_path)
    return {modality: about["fingerprint"] for modality, about in found.items()}


def encode_locked(
    sections: Sequence[Section],
    recipe: Recipe,
    encoders: Mapping[str, Encoder],
    fingerprints: Mapping[str, str],
    *,
    device: str | torch.device = "cpu",
    show: bool = True,
) -> None:
    """Fill `embeddings/` for locked towers and `windows/` for image towers that learn, where they are not there yet."""
    for modality, encoder in encoders.items():
        locked = modality in recipe.model.cached
        if not locked and modality != "image":
            continue
        name = encoder.card.name
        total = sum(section.n_locations for section in sections)
        with bar(f"{'encode' if locked else 'read windows'}: {name}", total, show=show, unit="locations") as advance:
            for section in sections:
                if locked:
                    encode_section(
                        section, encoder, device=device, fingerprint=fingerprints[modality], progress=advance
                    )
                elif section.has_image():
                    cache_windows(section, encoder.card, progress=advance)
                    _cache_regions(section, encoder, recipe)
        encoder.to("cpu")


def _cache_regions(section: Section, encoder: Encoder, recipe: Recipe) -> None:
    """Cut the draws of regions that a method goes through, where it goes through few."""
    wider = recipe.model.wider
    if wider is None or wider.draws is None:
        return
    cuts = wider.cuts(encoder.card)
    for draw in range(min(wider.draws, recipe.training.epochs)):
        cuts.cache(section, draw)


def build_model(recipe: Recipe, encoders: Mapping[str, Encoder], data: Locations) -> Method:
    """The method of a recipe on its encoders; features of locked towers are standardised where the recipe says so."""
    _seed(recipe.seed, len(encoders))
    model = method_class(recipe.method)(recipe.model, encoders)
    for modality in model.modalities:
        if recipe.model.towers[modality].standardise:
            model.scaler(modality).fit(data.features(modality))
    return model


def _check_base(encoder: Encoder, fingerprint: str, weights: str | None) -> None:
    if encoder.fingerprint() != fingerprint:
        raise WeightsError(
            f"the {encoder.card.name} under the adapters is not the one that the run began with",
            where=weights or encoder.card.hub_id,
            mend="restore those weights, or begin another run",
        )


class _TrainingInput:
    """Raw input of the training rows, section by section; may be read more than once."""

    def __init__(self, rows: Rows, encoder: Encoder, modality: str) -> None:
        self.rows, self.card, self.modality = rows, encoder.card, modality
        if not rows.present[modality].any():
            raise RecipeError(
                f"no training row has {modality}, so {encoder.card.name} cannot learn its vocabulary",
                where=f"model.towers.{modality}",
                mend="set that tower to null, or train on other sections",
            )

    def __iter__(self) -> Iterator[Any]:
        rows = self.rows
        for number, section in enumerate(rows.sections):
            mine = rows.location[(rows.section == number) & rows.present[self.modality]]
            size = 256 if self.modality == "image" else max(len(mine), 1)
            for _, raw in raw_chunks(section, self.card, mine.astype(np.intp), size=size):
                yield raw


def _seed(seed: int, number: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
