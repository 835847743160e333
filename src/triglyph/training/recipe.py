"""The recipe: one YAML file, one typed configuration, nothing between them.

Overrides (`--set model.head.kind=linear`) are merged into the YAML key by key *before* it is typed, so they never
replace a block wholesale and silently bring back defaults in its other keys. (A reference implementation of this field
did that: a delta with one key of the model dropped the width of its shared space to another value, and a published
ablation was confounded by it.) Unknown keys are refused, with the nearest known ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, SerializeAsAny, create_model, model_validator

from triglyph.cards import Frozen
from triglyph.configs import deep_merge, near, parse_override, read_yaml, validated
from triglyph.encoders.base import Modality
from triglyph.errors import RecipeError
from triglyph.models.method import MethodConfig, method_class
from triglyph.storage import atomic_file
from triglyph.training.augment import AugmentConfig


class DataConfig(Frozen):
    """Which sections are trained on: those of a split's fold, or those named here."""

    split: str | None = None
    """A split saved in the cohort."""
    fold: str = "0"
    train: tuple[str, ...] = ()
    """Section ids, instead of a split."""
    val: tuple[str, ...] = ()
    without: dict[Modality, tuple[str, ...]] = Field(default_factory=dict)
    """Modality -> ids of sections (`D*` is all that begin so) in which it is taken for absent, as if not measured."""
    shuffled: tuple[Modality, ...] = ()
    """A control: what these modalities show is dealt anew among the training rows that have them."""

    @model_validator(mode="after")
    def _one_of_both(self) -> DataConfig:
        if (self.split is None) == (not self.train):
            raise ValueError("give either split, or train (section ids)")
        if self.split is not None and self.val:
            raise ValueError("val belongs to train; a split says its own validation sections")
        return self


DEFAULT_METHOD = "alignment"


class TrainingConfig(Frozen):
    """How it is trained."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=256, ge=2)
    """Rows of a step over all devices together, so that the result does not hang on their number."""
    mixing: dict[str, float] | None = None
    """Weights of the groups of rows that have the same modalities (`image+expression`, ...); null is proportional."""
    sections_per_batch: int | None = Field(default=None, ge=1)
    """Batches hold equally many rows of this many sections; null draws rows by themselves."""
    sections_at_once: int | None = Field(default=None, ge=1)
    """Of a method whose batches are neighbourhoods: an epoch goes through its sections in windows of so many, and no
    more than two windows are in memory, in each process that reads (`workers`). null mixes all sections and keeps them
    in memory."""
    lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=0.05, ge=0, le=1)
    """The cosine ends at this fraction of `lr`."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Fraction of all steps over which the rate climbs from 0."""
    frozen_warmup: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of all steps in which only heads learn; then towers join and the rate climbs anew."""
    tower_lr: float = Field(default=1.0, gt=0)
    """Rate of encoders, as a multiple of `lr`."""
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=0.0, ge=0)
    """Of matrices; never of biases, norms, or the temperature."""
    clip_norm: float | None = Field(default=None, gt=0)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    """Of the windows of an image tower that learns."""
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = Field(default=1, ge=1)
    """Of one machine. More than one trains data-parallel, with negatives from all of them."""
    nodes: int = Field(default=1, ge=1)
    """Machines, under SLURM or torchrun."""
    workers: int = Field(default=0, ge=0)
    """Processes that read and prepare batches; 0 does it in the training process."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints; the end of an epoch always makes one."""


class Recipe(Frozen):
    """One training run, apart from where its data and output lie. Made by `typed`, which knows the method's model."""

    name: str
    summary: str = ""
    method: str = DEFAULT_METHOD
    seed: int = Field(default=0, ge=0, lt=2**31)
    tries: int = Field(default=1, ge=1)
    """How many configurations were tried before this one was kept; stated in the manifest beside every result."""
    data: DataConfig
    model: SerializeAsAny[MethodConfig]
    training: TrainingConfig = Field(default_factory=TrainingConfig)

    @model_validator(mode="after")
    def _training_suits_the_method(self) -> Recipe:
        given = {
            k for k in ("mixing", "sections_per_batch", "sections_at_once") if getattr(self.training, k) is not None
        }
        of_rows, of_neighbours = given - {"sections_at_once"}, given & {"sections_at_once"}
        if self.model.groups is not None and of_rows:
            raise ValueError(f"training.{min(of_rows)} draws single rows; batches of {self.method} are neighbourhoods")
        if self.model.groups is None and of_neighbours:
            raise ValueError(f"training.sections_at_once streams neighbourhoods; batches of {self.method} are rows")
        if "image" not in self.model.reads and self.training.augment != AugmentConfig():
            raise ValueError(f"training.augment varies windows of images; {self.method} reads no image")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # The class of a method's recipe is made on demand, and is found again by the method's name.
        return _restored, (self.as_dict(),)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, every default written out."""
        return self.model_dump(mode="json")

    def write(self, path: Path) -> None:
        """Write as YAML, every default written out; `load_recipe` gives an equal recipe back."""
        with atomic_file(path) as partial:
            partial.write_text(yaml.safe_dump(self.as_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")


HARMLESS = frozenset({"training.workers", "training.checkpoint_every"})
"""Keys that change nothing in what is learnt or logged; a run may be resumed with others."""


def shipped_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that come with the package."""
    # In a wheel they lie inside the package; in a checkout at its root.
    inside = Path(str(resources.files("triglyph"))) / "recipes"
    folder = inside if inside.is_dir() else Path(__file__).parents[3] / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(recipe: str | Path, *, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Parameters
    ----------
    recipe
        Path of a YAML file, or the name of a shipped one.
    overrides
        `a.b=value`, the value in YAML: `training.epochs=3`, `model.pairs.image-text=0`, `model.towers.text=null`.

    Raises
    ------
    RecipeError
        No such recipe, not YAML, or a key or value that is not understood.
    """
    path = find_recipe(recipe)
    values = read_yaml(path, noun="recipe")
    for override in overrides:
        values = deep_merge(values, parse_override(override))
    return typed(values, where=path)


def find_recipe(recipe: str | Path) -> Path:
    """The file of a recipe given by path or by shipped name."""
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    raise RecipeError(
        f"there is no recipe {str(recipe)!r}",
        where=path.absolute(),
        mend=f"give a YAML file, or one of the shipped: {', '.join(shipped) or 'none'}{near(str(recipe), shipped)}",
    )


def typed(values: Mapping[str, Any], *, where: object) -> Recipe:
    """Plain values as a `Recipe`; errors name each key and the nearest known ones."""
    method = values.get("method", DEFAULT_METHOD)
    return validated(_recipe_class(method), values, where=where, noun="recipe")


@cache
def _recipe_class(method: str) -> type[Recipe]:
    """`Recipe` with the model of a method."""
    model = method_class(method).config_class
    fields: dict[str, Any] = {"method": (Literal[method], method), "model": (model, ...)}
    made: type[Recipe] = create_model(f"Recipe of {method}", __base__=Recipe, **fields)
    return made


def _restored(values: dict[str, Any]) -> Recipe:
    return typed(values, where="a recipe")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new), of all leaves that differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in [*old, *(k for k in new if k not in old)]:
        dotted = f"{prefix}{key}"
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found.update(differences(a, b, prefix=f"{dotted}."))
        elif a != b:
            found[dotted] = (a, b)
    return found
