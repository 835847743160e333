"""Errors that say what is wrong, where, and the mend.

Every failure a user can cause or cure is a `TriglyphError`. The command line prints its three parts
and exits with 2; anything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class TriglyphError(Exception):
    """A failure with a location and a remedy.

    Parameters
    ----------
    what
        What is wrong, as one sentence.
    where
        File, section, row or setting in which it is wrong.
    mend
        What the reader can do about it, in the imperative.
    """

    def __init__(self, what: str, *, where: object = "", mend: str = "") -> None:
        self.what, self.where, self.mend = what, str(where), mend
        super().__init__(self.__str__())

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.mend:
            lines.append(f"  mend:  {self.mend}")
        return "\n".join(lines)


class SourceError(TriglyphError):
    """A file or folder of a vendor is missing, truncated or not what it claims to be."""


class ContractError(TriglyphError):
    """Data breaks the contract of a Section, Cohort or Result."""


class ScaleError(TriglyphError):
    """A physical scale is missing, impossible, or would have to be stretched too far."""


class GeneError(TriglyphError):
    """Genes cannot be matched, or are not what a model needs."""


class SplitError(TriglyphError):
    """A split leaks or does not fit its cohort."""


class RecipeError(TriglyphError):
    """A recipe or an option is not understood."""


class WeightsError(TriglyphError):
    """Weights are absent, gated, or do not fit the architecture."""


class StorageError(TriglyphError):
    """The disk is full, read-only, or holds something that is not ours."""
