"""`triglyph train`: a recipe and a cohort in, a run folder out."""

from __future__ import annotations

from pathlib import Path

from triglyph.errors import RecipeError


def train(
    recipe: str, *, cohort: Path | None = None, set: list[str] | None = None, out: Path, quiet: bool = False
) -> Path:
    """Train a model; run the same command again to go on after an interruption.

    Parameters
    ----------
    recipe
        A YAML file, or the name of a recipe that comes with the package.
    cohort
        Folder made by `triglyph read` or `triglyph simulate`.
    set
        Change a key of the recipe: `--set training.epochs=3`. May be given several times.
    out
        Folder of the run.
    quiet
        Draw no progress bars.
    """
    from triglyph.training.loop import fit

    if cohort is None:
        raise RecipeError("there is no cohort to train on", where="--cohort", mend="give --cohort FOLDER")
    return fit(recipe, cohort=cohort, overrides=set or [], out=out, show=not quiet)
