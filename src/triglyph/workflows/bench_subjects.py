"""What `bench run` judges, and on what: a cohort or a plain table; a model, features, a representation, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triglyph.errors import ContractError, RecipeError

if TYPE_CHECKING:
    from triglyph.apply.trained import TrainedModel
    from triglyph.bench.contracts import Subject, Trial
    from triglyph.metrics.result import Source
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.plain import PlainCohort


_OPTIONS = {
    "patient": "--patient-column",
    "section": "--section-column",
    "label": "--label-column",
    "counts_layer": "--counts-layer",
    "um_per_unit": "--um-per-unit",
}
"""Of a plain table, as they are called on the command line."""
UNKNOWN = "what the embedding was fitted on is not known"
"""Of a key of `obsm`: most are fitted on all cells of their file, test cells too."""


@dataclass(frozen=True)
class Judged:
    """What is judged on every fold."""

    of_trial: Callable[[Trial], Subject] | None
    """The subject on a fold; None: only what stands beside it is judged."""
    about: dict[str, Any] = field(default_factory=dict)
    """For the manifest."""
    trained: TrainedModel | None = None
    """The model behind it, where it is one."""


def open_cohort(path: Path, **plain: Any) -> Cohort | PlainCohort:
    """A cohort's folder, or an `.h5ad` with the options of `PlainCohort`.

    Raises
    ------
    RecipeError
        Options of a plain table were given for a cohort.
    """
    from triglyph.tissue.cohort import Cohort
    from triglyph.tissue.plain import PlainCohort

    given = {name: value for name, value in plain.items() if value is not None}
    if path.suffix == ".h5ad":
        return PlainCohort.read(path, **given)
    if given:
        names = ", ".join(_OPTIONS[name] for name in given)
        raise RecipeError(f"{names} say how to read an .h5ad, and {path} is none", mend="leave them out")
    return Cohort.open(path)


def judged(
    cohort: Cohort | PlainCohort,
    model: Path | None,
    embedding: str | None,
    *,
    modality: str,
    places: str,
    fitted_elsewhere: bool,
) -> Judged:
    """From the options of `bench run`.

    Raises
    ------
    RecipeError
        Both a model and an embedding were given, or a model for a plain table.
    ContractError
        Nothing is called `embedding`.
    """
    from triglyph.bench.representations import REPRESENTATIONS
    from triglyph.tissue.cohort import Cohort

    if model is not None and embedding is not None:
        raise RecipeError("give --model or --embedding, not both", where="bench run", mend="one of the two")
    if model is not None:
        if not isinstance(cohort, Cohort):
            raise RecipeError("a model reads sections of a cohort, not a table", mend="give --embedding KEY")
        return _model(Path(model))
    if embedding is None:
        return Judged(None, {"baselines": "alone"})
    if embedding in REPRESENTATIONS:
        fit = partial(REPRESENTATIONS[embedding], places=places, role="method")
        return Judged(fit, {"representation": embedding, "places": places})
    return (
        _stored(cohort, embedding)
        if isinstance(cohort, Cohort)
        else _column(cohort, embedding, modality, fitted_elsewhere=fitted_elsewhere)
    )


def _model(path: Path) -> Judged:
    from triglyph.apply.trained import TrainedModel
    from triglyph.bench.contracts import Subject
    from triglyph.bench.parts import Part
    from triglyph.bench.representations import ACROSS

    trained = TrainedModel.open(path)
    name, split = path.resolve().name, trained.manifest.get("split")
    subject = Subject(
        name,
        trained,
        transductive=trained.transductive,
        training_patients=tuple(trained.manifest.get("training_patients", ())),
        evidence=evidence(trained),
        trained_on="" if split is None else f"{split['digest']}/{split['fold']}",
    )

    def of_trial(trial: Trial) -> Subject:
        if trained.model.reads_surroundings and any(isinstance(section, Part) for section in trial.train):
            return replace(subject, transductive=(*subject.transductive, ACROSS))
        return subject

    return Judged(of_trial, {"model": name, **trained.manifest}, trained)


def untrained(trained: TrainedModel) -> list[str]:
    """Modalities whose encoder has the random weights that it was made with: it was locked, and took nobody's."""
    model = trained.model
    return [m for m in model.locked if model.encoder(m).card.weights == "random" and not model.config.towers[m].weights]


def evidence(trained: TrainedModel) -> Source:
    """What its rows are worth: those of a model with an untrained encoder say nothing of the method."""
    return "architecture-only" if untrained(trained) else "measured"


def _stored(cohort: Cohort, wanted: str) -> Judged:
    """Features that an encoder left in the cohort.

    Encoders that were fitted are left out: what they were fitted on is known to their run alone (give --model).
    """
    from triglyph.bench.contracts import Subject
    from triglyph.bench.features import StoredFeatures
    from triglyph.bench.representations import REPRESENTATIONS

    found: dict[str, tuple[str, str]] = {}
    for section in cohort:
        for fingerprint in section.embeddings.names():
            card = section.embeddings.read(fingerprint).card
            if not card["encoder"]["fitted"]:
                found[fingerprint] = (card["name"], card["encoder"]["modality"])
    matching = [f for f, (name, _) in found.items() if wanted in (f, name)]
    if not matching:
        known = sorted({name for name, _ in found.values()})
        raise ContractError(
            f"no section holds features of {wanted!r}",
            where=cohort.path,
            mend=f"run `triglyph embed` with it first; there are {', '.join(known) or 'none'}, and without embedding "
            f"{', '.join(REPRESENTATIONS)}",
        )
    if len(matching) > 1:
        raise ContractError(
            f"{wanted!r} names {len(matching)} states of the encoder",
            where=cohort.path,
            mend=f"give a fingerprint: {', '.join(matching)}",
        )
    fingerprint, (name, modality) = matching[0], found[matching[0]]
    subject = Subject(name, StoredFeatures(fingerprint, modality))
    return Judged(lambda _: subject, {"embedding": name, "fingerprint": fingerprint, "modality": modality})


def _column(cohort: PlainCohort, key: str, modality: str, *, fitted_elsewhere: bool) -> Judged:
    """A key of `obsm`."""
    from triglyph.bench.contracts import Subject
    from triglyph.bench.features import ObsmFeatures

    if key not in cohort.table.obsm:
        raise ContractError(
            f"obsm has no {key!r}", where=cohort.path, mend=f"there are {', '.join(cohort.table.obsm) or 'none'}"
        )
    subject = Subject(key, ObsmFeatures(key, modality), transductive=(UNKNOWN,) if not fitted_elsewhere else ())
    return Judged(lambda _: subject, {"embedding": key, "obsm": key, "modality": modality})
