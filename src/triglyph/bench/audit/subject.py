"""What an audit must know of the model or encoder that a split is to judge; read from its run's records alone.

`SubjectInfo` is plain data, so a method from anywhere can be audited by filling it in by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from triglyph.cards import Frozen
from triglyph.configs import read_yaml
from triglyph.errors import SourceError, SplitError
from triglyph.genes.ids import Gene, ensembl_stem
from triglyph.storage import read_json
from triglyph.tissue.split import Split


class DeclaredSplit(Split):
    """A split as its file states it, before anything in it is refused: the audit says more than the refusal does."""

    @model_validator(mode="after")
    def _sides_are_apart(self) -> DeclaredSplit:
        return self


def declared(cohort: Any, name: str) -> DeclaredSplit:
    """A saved split of a `tissue.Cohort`, not checked against it; of a `PlainCohort` its own one, or a JSON file.

    Raises
    ------
    SplitError
        There is none of that name, or it is no split.
    """
    folder = Path(cohort.path)
    path = folder / "splits" / f"{name}.json" if folder.is_dir() else Path(name)
    if not folder.is_dir() and name in cohort.splits:
        return DeclaredSplit.model_validate(cohort.split(name).model_dump())
    if not path.is_file():
        known = ", ".join(cohort.splits) or "none"
        raise SplitError(f"no split {name!r}", where=cohort.path, mend=f"saved splits: {known}")
    try:
        return DeclaredSplit.model_validate(read_json(path))
    except ValidationError as error:
        raise SplitError(f"not a split: {error.errors()[0]['msg']}", where=path, mend="save it anew") from None


class Exposure(Frozen):
    """What a pretrained encoder was trained on."""

    encoder: str
    weights: Literal["none", "random", "hub"] = "hub"
    """As on the encoder's card; only published weights can have seen anything."""
    pretrained_on: tuple[str, ...] = ()
    """Datasets, by name."""
    seen: tuple[str, ...] = ()
    """`dataset:section`, `dataset:*`, or a bare section id."""
    all_but: tuple[str, ...] | None = None
    """Where it was trained on this very cohort: all its sections but these."""

    @classmethod
    def of_card(cls, card: Mapping[str, Any]) -> Exposure:
        """From an encoder's card, as plain values."""
        return cls(
            encoder=card["name"],
            weights=card.get("weights", "hub"),
            pretrained_on=tuple(card.get("pretrained_on") or ()),
            seen=tuple(card.get("seen") or ()),
        )

    @classmethod
    def read(cls, path: Path) -> Exposure:
        """From a file: JSON with these fields, or text with one section a line (`#` begins a comment).

        Raises
        ------
        SourceError
            There is no such file, or it is neither.
        """
        path = Path(path)
        if not path.is_file():
            raise SourceError("there is no such list of seen sections", where=path, mend="check the path")
        if path.suffix == ".json":
            try:
                return cls.model_validate(read_json(path))
            except ValidationError as error:
                first = error.errors()[0]
                raise SourceError(
                    f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}",
                    where=path,
                    mend=f"its keys are {', '.join(cls.model_fields)}",
                ) from None
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise SourceError("not a text file", where=path, mend="write one section id a line") from None
        ids = [line.partition("#")[0].strip() for line in lines]
        return cls(encoder=path.stem, seen=tuple(i for i in ids if i))


class Fitted(Frozen):
    """Something that was fitted, and on what."""

    what: str
    """`genes`, `scaler`, `PCA`, `prompts`, `calibration`, ..."""
    sections: tuple[str, ...]
    declared: bool = False
    """Whether the card says that it sees the test set."""


class SubjectInfo(Frozen):
    """What is judged. Every field may be left empty; what is empty is reported as not checked."""

    name: str
    split: str = ""
    """The split it was trained or judged on; of that split, only `folds` are audited."""
    folds: tuple[str, ...] = ()
    training_sections: tuple[str, ...] = ()
    """Sections that anything in it was fitted or chosen on, validation included."""
    training_patients: tuple[str, ...] = ()
    held_out_locations: dict[str, int] = Field(default_factory=dict)
    """Section trained on -> number of its locations that were left out."""
    fitted: tuple[Fitted, ...] = ()
    protocols: tuple[dict[str, Any], ...] = ()
    """Cards of the protocols it was judged by: `name`, `fitted` (what -> on what, in words), `transductive`."""
    inputs: tuple[str, ...] | None = None
    """Modalities that it reads *when it is judged*: of `image`, `expression`, `text`; None where nobody says."""
    input_genes: tuple[str, ...] = ()
    """Symbols or Ensembl ids that it reads when judged."""
    target_genes: tuple[str, ...] = ()
    """Symbols or Ensembl ids that it predicts."""
    encoders: tuple[Exposure, ...] = ()
    window_um: float | None = None
    """Side of the largest square of tissue that an image encoder sees around a location, µm."""


def read_subject(folder: Path, *, cards: Mapping[str, Mapping[str, Any]] | None = None) -> SubjectInfo:
    """From a run folder of `triglyph train` or of `triglyph bench run`.

    Parameters
    ----------
    folder
        Holds `manifest.json`; `towers.json` is read where it lies beside it.
    cards
        Encoder -> its card, as plain values, for encoders that the manifest names.

    Raises
    ------
    SourceError
        There is no finished run.
    """
    folder = Path(folder)
    if not (folder / "manifest.json").is_file():
        raise SourceError(
            "not a finished run: it has no manifest.json", where=folder, mend="give a folder of `train` or `bench run`"
        )
    manifest: dict[str, Any] = read_json(folder / "manifest.json")
    judged = manifest.get("kind") == "bench"
    about: dict[str, Any] = manifest.get("subject", {}) if judged else manifest
    protocols = tuple((manifest.get("protocols") or {}).values()) if judged else ()
    encoders = encoder_names(manifest)
    split: dict[str, Any] = manifest.get("split") or {}
    return SubjectInfo(
        name=str(about.get("model") or about.get("embedding") or about.get("recipe") or folder.name),
        split=split.get("name", ""),
        folds=tuple(split["folds"] if "folds" in split else [split["fold"]] if "fold" in split else []),
        training_sections=(*about.get("training_sections", ()), *about.get("validation_sections", ())),
        training_patients=tuple(about.get("training_patients", ())),
        held_out_locations=dict(about.get("held_out_locations") or {}),
        fitted=(*_fitted(about), *(_fitted(manifest) if judged else ())),
        protocols=protocols,
        # Rows know best what labels were read off: one card serves images and expression.
        inputs=tuple(manifest["inputs"]) if judged and manifest.get("inputs") else inputs_of(protocols),
        input_genes=tuple(about.get("input_genes") or ()),
        target_genes=tuple(about.get("target_genes") or ()),
        **_of_run(about, of_encoders(encoders, cards or {})),
    )


def read_recipe(path: Path, cohort: Any, *, cards: Mapping[str, Mapping[str, Any]] | None = None) -> SubjectInfo:
    """From a recipe, before anything is trained.

    Parameters
    ----------
    path
        YAML of `triglyph train`.
    cohort
        A `tissue.Cohort`, for the split that the recipe names.
    cards
        As in `read_subject`.
    """
    recipe = read_yaml(Path(path), noun="recipe")
    data: dict[str, Any] = recipe.get("data") or {}
    seen: tuple[str, ...] = (*(data.get("train") or ()), *(data.get("val") or ()))
    fold = str(data.get("fold", "0"))
    if data.get("split"):
        chosen = declared(cohort, data["split"]).fold(fold)
        seen = (*chosen.train, *chosen.val)
    return SubjectInfo(
        name=str(recipe.get("name") or Path(path).stem),
        split=str(data.get("split") or ""),
        folds=(fold,) if data.get("split") else (),
        training_sections=seen,
        training_patients=tuple(sorted({cohort.patients[s] for s in seen if s in cohort.patients})),
        **of_encoders(recipe_encoders(path), cards or {}),
    )


def recipe_encoders(path: Path) -> tuple[str, ...]:
    """Names of the encoders of a recipe."""
    towers = (read_yaml(Path(path), noun="recipe").get("model") or {}).get("towers") or {}
    return tuple(dict.fromkeys(str(t["encoder"]) for t in towers.values() if t and "encoder" in t))


def encoder_names(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the encoders that the manifest of a run names."""
    about = manifest.get("subject", {}) if manifest.get("kind") == "bench" else manifest
    named = [tower["encoder"] for tower in (about.get("encoders") or {}).values()]
    return tuple(dict.fromkeys([*named, *([about["embedding"]] if about.get("embedding") else [])]))


def inputs_of(protocols: Iterable[Mapping[str, Any]]) -> tuple[str, ...] | None:
    """Modalities that protocols feed a model, from the constant `modality` of their cards.

    None without any, and where a card leaves it to its rows: who does not know must not pass for having checked.
    """
    named = dict.fromkeys(str(m) for card in protocols if (m := (card.get("constants") or {}).get("modality")))
    return tuple(named) if named and set(named) <= {"image", "expression", "text"} else None


def gene_of(name: str) -> Gene:
    """A symbol or an Ensembl id, whichever `name` is."""
    stem = ensembl_stem(name)
    return Gene("" if stem else name.strip(), stem)


def _fitted(about: Mapping[str, Any]) -> tuple[Fitted, ...]:
    """The manifest's `fitted`: what -> section ids; `transductive` in the manifest declares what it names."""
    said = " ".join(map(str, about.get("transductive") or ())).casefold()
    found = about.get("fitted") or {}
    return tuple(
        Fitted(what=what, sections=tuple(sections), declared=what.casefold() in said)
        for what, sections in found.items()
        if not isinstance(sections, str)
    )


def of_encoders(names: Iterable[str], cards: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What encoders have seen, and the largest window of theirs; of one without a card nothing is known."""
    exposures = [Exposure.of_card(cards[n]) if n in cards else Exposure(encoder=n) for n in names]
    windows = [w for n in names if n in cards and (w := _window(cards[n])) is not None]
    return {"encoders": tuple(exposures), "window_um": max(windows, default=None)}


def _of_run(about: Mapping[str, Any], encoders: dict[str, Any]) -> dict[str, Any]:
    """What its encoders have seen, and the datasets that a converted checkpoint names as its own training data."""
    named = tuple(str(dataset) for dataset in about.get("trained_on") or ())
    own = (Exposure(encoder=str(about.get("recipe") or "the checkpoint"), pretrained_on=named),) if named else ()
    return {**encoders, "encoders": (*encoders["encoders"], *own)}


def _window(card: Mapping[str, Any]) -> float | None:
    px, mpp = card.get("input_px"), card.get("mpp")
    return None if px is None or mpp is None else float(px) * float(mpp)
