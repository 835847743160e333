"""What a random split of spots inside slides adds to a number: the same methods under both splits.

    python benchmarks/judge_inflation.py COHORT [--sections A1 B1 C1 D1] [--draws 5]

The field often trains on 95 % of the spots of every section and tests on the rest. Here the same probes are judged
that way and with each patient left out, on the very spots that the random splits test, by the judge's own protocols;
values are means over patients. The random split is what `triglyph audit` fails where it is declared at patient level
(`neighbours-on-both-sides`), and what the judge stamps `within-section` where it is declared as what it is.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from triglyph.bench.audit.whole import audit_split
from triglyph.bench.contracts import Subject, Trial
from triglyph.bench.expression.predictors import Learner, Predict
from triglyph.bench.expression.protocol import Expression
from triglyph.bench.expression.targets import Targets
from triglyph.bench.features import StoredFeatures
from triglyph.bench.labels.classes import known_labels
from triglyph.bench.labels.knn import NearestNeighbours
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.parts import whole_of
from triglyph.bench.protocol import Protocol
from triglyph.bench.representations import REPRESENTATIONS
from triglyph.encoders import registry
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.split import patient_folds
from triglyph.tissue.splitting import random_within
from triglyph.training.features import encode_section

Fit = Callable[[Trial], Subject]


class NearestLocations(Learner):
    """Expression of the nearest training locations of the same section: what a leak is worth, with no model at all."""

    def learn(self, targets: Targets) -> Predict:
        """Remembers the training locations of every section; predicts nothing for sections without any."""
        from sklearn.neighbors import KNeighborsRegressor

        known = {whole_of(s).id: s for s in targets.trial.train}

        def predict(section: Any) -> tuple[Any, Any]:
            n, there = len(section.centres_um), known.get(whole_of(section).id)
            if there is None:
                return np.tile(targets.training_mean, (n, 1)), np.ones(n, dtype=bool)
            near = KNeighborsRegressor(min(5, len(there.centres_um)), weights="distance")
            near.fit(there.centres_um, targets[there][0])
            return near.predict(section.centres_um), np.ones(n, dtype=bool)

        return predict


def on_the_spots_of(trial: Trial, random: Trial) -> Trial:
    """The trial, tested only where the random split tests: which spots are scored is then no difference."""
    parts = {p.id: p for p in random.test}
    return replace(trial, test=tuple(parts[s.id] for s in trial.test))


def mean_over_patients(trials: Sequence[Trial], fit: Fit, protocol: Protocol, metric: str) -> float:
    """Mean over patients of a metric, over all trials."""
    values: dict[str, list[float]] = {}
    for trial in trials:
        for row in protocol.run(fit(trial), trial):
            if (
                row.metric == metric
                and row.aggregation == "per-patient"
                and row.group != "all"
                and row.value is not None
            ):
                values.setdefault(row.group, []).append(row.value)
    return float(np.mean([np.mean(v) for v in values.values()])) if values else float("nan")


def stain_texture(cohort: Cohort, sections: Sequence[str]) -> Subject:
    """Features of the encoder without weights, computed where they are not there."""
    encoder = registry.build("stain-texture")
    fingerprint = encoder.fingerprint()
    for section in sections:
        encode_section(cohort[section], encoder, fingerprint=fingerprint)
    return Subject("stain-texture", StoredFeatures(fingerprint))


def main() -> None:
    """Print one line for every method: patients left out, random split, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("--sections", nargs="*")
    parser.add_argument("--draws", type=int, default=5, help="random splits that are averaged")
    asked = parser.parse_args()
    cohort = Cohort.open(asked.cohort)
    sections = asked.sections or cohort.ids
    people = {s: cohort.patients[s] for s in sections}
    honest = patient_folds(people, name="patients")
    barcodes = {s: tuple(map(str, cohort[s].table.obs_names)) for s in sections}
    random = [random_within(barcodes, name=f"random-{i}", share=0.05, seed=i) for i in range(asked.draws)]

    claimed = random[0].model_copy(update={"level": "patient"})
    print("audit of the random split, declared at patient level:")
    for finding in audit_split(cohort, claimed, tables=False).failures:
        print(f"  {finding.severity} {finding.name}: {finding.what}")

    cases: list[tuple[str, Fit, Protocol, str]] = []
    if any((known_labels(cohort[s]) != "").any() for s in sections):
        fit = partial(REPRESENTATIONS["expression-pca-50"], role="method")
        probe = LinearProbe(modality="expression", n_boot=0, min_locations=1)
        cases += [
            ("labels from expression, logistic regression: AUROC", fit, probe, "auroc"),
            ("labels from expression, logistic regression: macro F1", fit, probe, "macro-f1"),
            (
                "labels from expression, 20 nearest: balanced accuracy",
                fit,
                NearestNeighbours(modality="expression", n_boot=0),
                "balanced-accuracy@20",
            ),
        ]
    if all(cohort[s].has_image() for s in sections):
        image = stain_texture(cohort, sections)
        cases.append(("50 genes from the image, ridge: Pearson", lambda _: image, Expression(n_boot=0), "pearson"))
    nearest = Subject("nearest locations", NearestLocations(), role="control")
    cases.append(
        ("50 genes, mean of the nearest locations: Pearson", lambda _: nearest, Expression(n_boot=0), "pearson")
    )
    leaky = [Trial.of(cohort, split) for split in random]
    held_out = [Trial.of(cohort, honest, fold=f.name) for f in honest.folds]
    same_spots = [on_the_spots_of(trial, r) for r in leaky for trial in held_out]
    print(f"{'means over patients, the same spots':58} {'patients':>9} {'random':>9} {'adds':>7}")
    for name, of, protocol, metric in cases:
        one = mean_over_patients(same_spots, of, protocol, metric)
        other = mean_over_patients(leaky, of, protocol, metric)
        adds = f"{other - one:+7.3f}" if np.isfinite(one) else "all"
        print(f"{name:58} {one:9.3f} {other:9.3f} {adds:>7}", flush=True)


if __name__ == "__main__":
    main()
