"""What words and images that never met know of each other: table and figure of the rows of `triglyph transitive`.

A *gain* is a value less its chance, of one patient, seeds averaged within the patient. The share of an arm is its mean
gain over that of a reference, with a jackknife interval over patients (Student's t): a ratio of means, since the ratio
of a single patient's gains may have nothing under it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from triglyph.errors import ContractError
from triglyph.metrics.bootstrap import COVERAGE, MIN_PATIENTS
from triglyph.metrics.paired import Paired, compare, corrected
from triglyph.metrics.result import Result
from triglyph.report.style import INK, MUTED, PALETTE, new_figure, png, styled
from triglyph.storage import atomic_file

Floats = NDArray[np.float64]
HELD_OUT = ": held-out words"
QUANTITIES: dict[str, tuple[str, str, str]] = {
    "image→text recall@10": ("retrieval", "recall@10", "image->text"),
    "text→image recall@10": ("retrieval", "recall@10", "text->image"),
    "zero-shot AUROC": ("zero-shot", "auroc", ""),
    "zero-shot AUROC, held-out words": ("zero-shot", "auroc", HELD_OUT),
}
"""Name -> task, metric, and direction or the ending of the model's name."""


@dataclass(frozen=True)
class Gain:
    """One arm in one quantity."""

    quantity: str
    arm: str
    patients: tuple[str, ...]
    values: Floats
    """(patients, seeds)"""
    chance: Floats
    """(patients,)"""
    over_chance: Paired
    """Against chance, corrected over all arms of the quantity."""
    over_reference: Paired | None
    """Against the reference; None for itself."""
    share: tuple[float, float, float] | None
    """Mean gain over the reference's, and its interval; None for the reference, or where it gains nothing."""
    over_null: Paired | None = None
    """Against its null; None where it has none."""
    left_out: int = 0
    """Patients for whom the quantity is undefined in some arm or seed."""

    @property
    def gains(self) -> Floats:
        """(patients,) seeds averaged."""
        return np.asarray(self.values.mean(axis=1) - self.chance)


def gains(
    rows: Sequence[Result], *, arms: Sequence[str], reference: str, nulls: Mapping[str, str] | None = None
) -> list[Gain]:
    """Gains of every arm in every quantity, on the patients for whom it is defined in all arms and seeds.

    A quantity without such a patient is left out.

    Parameters
    ----------
    nulls
        Arm -> the model whose rows are its null, in the quantities that it was asked for.

    Raises
    ------
    ContractError
        None is left.
    """
    out: list[Gain] = []
    for quantity, (task, metric, kind) in QUANTITIES.items():
        found = {arm: _by_patient(rows, arm, task, metric, kind) for arm in arms}
        # A patient without a value in one arm would be missing from its mean alone, and from no other's.
        people = set().union(*found.values())
        patients = tuple(
            sorted(p for p in people if all(np.isfinite(of.get(p, [np.nan])).all() for of in found.values()))
        )
        if not patients:
            continue
        tables = {arm: np.array([found[arm][p] for p in patients]) for arm in arms}
        null = {arm: _by_patient(rows, name, task, metric, kind) for arm, name in (nulls or {}).items()}
        against_null = corrected(
            [
                compare(tables[arm][:, :, 0], [[v for v, _ in of[p]] for p in patients], names=(arm, "its null"))
                for arm, of in null.items()
                if of
            ]
        )
        over_null = dict(zip([arm for arm, of in null.items() if of], against_null, strict=True))
        base = tables[reference][:, :, 0]
        over_chance, over_reference = [], []
        for arm in arms:
            values, chance = tables[arm][:, :, 0], tables[arm][:, 0, 1]
            over_chance.append(compare(values, chance, names=(arm, "chance")))
            over_reference.append(compare(values, base, names=(arm, reference)))
        told = corrected(over_chance)
        others = corrected([p for arm, p in zip(arms, over_reference, strict=True) if arm != reference])
        beside = dict(zip([arm for arm in arms if arm != reference], others, strict=True))
        direct = base.mean(axis=1) - tables[reference][:, 0, 1]
        for arm, against in zip(arms, told, strict=True):
            values, chance = tables[arm][:, :, 0], tables[arm][:, 0, 1]
            share = None if arm == reference else ratio(values.mean(axis=1) - chance, direct)
            left_out = len(people) - len(patients)
            beside_it = (against, beside.get(arm), share, over_null.get(arm), left_out)
            out.append(Gain(quantity, arm, patients, values, chance, *beside_it))
    if not out:
        raise ContractError(
            "no patient has a value in every arm and seed, in any quantity",
            where="report of transitive",
            mend="test on patients with captions or labels at locations that have an image",
        )
    return out


def ratio(of: Floats, to: Floats) -> tuple[float, float, float] | None:
    """Ratio of two means over the same patients, with its jackknife interval; None where `to` has no mean above 0.

    The interval is NaN with fewer patients than intervals need, or where leaving one out turns the sign of `to`.
    """
    n = len(of)
    if not to.mean() > 0:
        return None
    value = float(of.mean() / to.mean())
    without = (to.sum() - to) / max(1, n - 1)
    if n < MIN_PATIENTS or (without <= 0).any():
        return value, float("nan"), float("nan")
    drawn = (of.sum() - of) / (n - 1) / without
    error = float(np.sqrt((n - 1) / n * ((drawn - drawn.mean()) ** 2).sum()))
    reach = float(student_t.ppf((1 + COVERAGE) / 2, n - 1)) * error
    return value, value - reach, value + reach


def write_gains(found: Sequence[Gain], path: Path) -> None:
    """One row a patient, arm and quantity."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["quantity", "arm", "patient", "value", "chance", "seeds"])
    for g in found:
        for patient, values, chance in zip(g.patients, g.values, g.chance, strict=True):
            writer.writerow([g.quantity, g.arm, patient, float(values.mean()), float(chance), len(values)])
    with atomic_file(path) as partial:
        partial.write_text(text.getvalue(), encoding="utf-8")


def markdown(found: Sequence[Gain], *, reference: str, versus: Sequence[tuple[str, str]] = ()) -> str:
    """The table for people, one block a quantity; under it each pair of arms in `versus`, compared in words."""
    lines: list[str] = []
    for quantity in dict.fromkeys(g.quantity for g in found):
        here = [g for g in found if g.quantity == quantity]
        lines += [
            f"## {quantity}",
            f"{len(here[0].patients)} held-out patients{_more(here[0].left_out)}, {here[0].values.shape[1]} seeds "
            "averaged within each; p by sign flips over patients after Holm's correction over the arms; share: mean "
            f"gain over that of {reference}.",
            "",
            f"| arm | value | chance | over chance | p | over its null | p | share of {reference}'s gain "
            f"| less {reference} | p |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for g in here:
            p, q = g.over_chance, g.over_reference
            share = "" if g.share is None else f"{g.share[0]:.2f}"
            if g.share is not None:
                share += f" [{g.share[1]:.2f}, {g.share[2]:.2f}]" if np.isfinite(g.share[1]) else " (no interval)"
            beside = f"{_signed(q)} | {q.p_adjusted:.2g}" if q is not None else " | "
            n = g.over_null
            null = " | " if n is None else f"{_signed(n)} | {n.p_adjusted:.2g}"
            means = f"{p.mean_a:.3f} | {p.mean_b:.3f}"
            lines.append(f"| {g.arm} | {means} | {_signed(p)} | {p.p_adjusted:.2g} | {null} | {share} | {beside} |")
        of = {g.arm: g for g in here}
        lines += ["", *(f"- {compare(of[a].values, of[b].values, names=(a, b)).sentence()}." for a, b in versus), ""]
    if without := [q for q in QUANTITIES if q not in {g.quantity for g in found}]:
        lines += [f"Not asked, or undefined in some arm for every patient: {', '.join(without)}.", ""]
    return "\n".join(lines)


def figure(found: Sequence[Gain], *, reference: str) -> bytes:
    """Gains over chance, a panel each quantity: every patient, the mean and its interval.

    The reference is a dashed line, an arm's null, where it has one, a short upright one.
    """
    quantities = list(dict.fromkeys(g.quantity for g in found))
    arms = list(dict.fromkeys(g.arm for g in found))
    with styled():
        drawn = new_figure(max(4.0, 2.75 * len(quantities) + 1.0), 0.45 * len(arms) + 1.5)
        panels = drawn.subplots(1, len(quantities), sharey=True, squeeze=False)[0]
        for axes, quantity in zip(panels, quantities, strict=True):
            axes.axvline(0, color=INK, linewidth=0.8)
            for g in (g for g in found if g.quantity == quantity):
                y, colour = arms.index(g.arm), PALETTE[arms.index(g.arm) % len(PALETTE)]
                spread = np.linspace(-0.22, 0.22, len(g.gains)) if len(g.gains) > 1 else np.zeros(1)
                axes.plot(np.sort(g.gains), y + spread, ".", color=colour, alpha=0.35, markersize=4, zorder=1)
                mean, ci = float(g.gains.mean()), g.over_chance.ci
                if ci is not None:
                    axes.plot(ci[:2], [y, y], color=colour, linewidth=2.2, zorder=3)
                axes.plot([mean], [y], "o", color=colour, markersize=6, zorder=4)
                if g.over_null is not None:
                    null = g.over_null.mean_b - float(g.chance.mean())
                    axes.plot([null], [y], "|", color=INK, markersize=14, markeredgewidth=1.4, zorder=5)
                if g.arm == reference:
                    axes.axvline(mean, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
            axes.set_title(quantity, fontsize=9)
            axes.set_xlabel("gain over chance")
        panels[0].set_yticks(range(len(arms)), arms)
        panels[0].invert_yaxis()
        return png(drawn, dpi=150)


def _more(left_out: int) -> str:
    return f" ({left_out} more left out: undefined in some arm or seed)" if left_out else ""


def _signed(p: Paired) -> str:
    ends = f" [{p.ci.low:+.3f}, {p.ci.high:+.3f}]" if p.ci else ""
    return f"{p.difference:+.3f}{ends}"


def _by_patient(
    rows: Sequence[Result], arm: str, task: str, metric: str, kind: str
) -> dict[str, list[tuple[float, float]]]:
    """Patient -> (value, chance) of each seed."""
    model, direction = (arm + HELD_OUT, "") if kind == HELD_OUT else (arm, kind)
    out: dict[str, list[tuple[float, float]]] = {}
    for r in rows:
        mine = r.model == model and r.task == task and r.metric == metric and r.aggregation == "per-patient"
        if mine and r.group != "all" and r.level == "patient" and direction in ("", r.direction):
            nothing = float("nan")
            pair = (nothing if r.value is None else r.value, nothing if r.chance is None else r.chance)
            out.setdefault(r.group, []).append(pair)
    return out
