"""Every kind of leak that the audit knows: what it catches, what it would inflate, the mend. `docs/audit.md` is this.

`fail` means that the split does not show what its level claims. `advise` means that a number will be read as more
than it is. Some kinds are raised at the lower severity where the evidence is weaker; the check says when.
"""

from __future__ import annotations

from typing import Literal

from triglyph.cards import Frozen

Severity = Literal["fail", "advise"]


class Kind(Frozen):
    """A kind of finding."""

    severity: Severity
    """The highest it is raised at."""
    catches: str
    inflates: str
    mend: str


_EVERYTHING = "every metric"
_PATIENT = "every metric that is claimed for unseen patients: their stain, depth and private expression were learnt"


def _fail(catches: str, inflates: str, mend: str) -> Kind:
    return Kind(severity="fail", catches=catches, inflates=inflates, mend=mend)


def _advise(catches: str, inflates: str, mend: str) -> Kind:
    return Kind(severity="advise", catches=catches, inflates=inflates, mend=mend)


KINDS: dict[str, Kind] = {
    # ---- who is on which side
    "unknown-section": _fail(
        "the split, or a list of what was held out, names sections that the cohort has not; two names fused by a "
        "missing comma are told apart",
        _EVERYTHING + ": what was meant to be held out was not",
        "spell the sections as sections.csv does",
    ),
    "section-on-both-sides": _fail(
        "a section trained on is tested, in a split that claims more than `within-section`",
        _EVERYTHING + ", most of all retrieval and nearest-neighbour prediction: neighbouring spots are near copies",
        "move the section to one side, or declare level: within-section with `test_locations` apart from the rest",
    ),
    "patient-on-both-sides": _fail(
        "a patient trained or chosen on is tested at level `patient`",
        _PATIENT,
        "move all sections of the patient to one side, or declare level: within-patient",
    ),
    "donor-on-both-sides": _fail(
        "column `donor`: one donor under two patient ids, on both sides at level `patient`",
        _PATIENT,
        "give all sections of a donor one patient id in sections.csv, and split anew",
    ),
    "slide-on-both-sides": _fail(
        "column `slide`, or one image file: one glass slide on both sides at level `patient`",
        "every metric that stain or batch can serve: both sides were stained and scanned as one",
        "keep a slide on one side",
    ),
    "block-on-both-sides": _fail(
        "column `block`: one tissue block under two patient ids, on both sides at level `patient`",
        _PATIENT + "; sections of one block are near copies of each other",
        "give the sections of a block one patient id in sections.csv, and split anew",
    ),
    "patient-spelt-twice": _fail(
        "two patient ids across sides that differ in case, spaces, punctuation or leading zeros alone; `fail` where "
        "counts or profiles agree too, else `advise`",
        _PATIENT,
        "spell a patient in one way in sections.csv, or say in a column `donor` that they are two people",
    ),
    "patients-unknown": _advise(
        "every section has a patient of its own name, while blocks, donors or slides repeat",
        _PATIENT,
        "find out who the patients are, and write them into sections.csv",
    ),
    "few-patients": _advise(
        "fewer than 6 patients are tested in all folds together",
        "confidence, not a metric: an interval of four patients covers 80 %, not 95 %",
        "test more patients, or print every patient's value and claim no significance",
    ),
    # ---- the same tissue twice
    "same-section-twice": _fail(
        "locations across sides that hold the very same counts or show the very same picture files (`advise` where "
        "these are fewer than 3 or 2 %), or one image read twice at the same place",
        _EVERYTHING,
        "remove the copy",
    ),
    "overlapping-tiles": _fail(
        "spots, bins or image windows of both sides that overlap in one frame",
        "every metric of image models: they have seen the test pixels",
        "leave out training locations within a window of a test location, or hold out whole sections",
    ),
    "neighbours-on-both-sides": _fail(
        "test locations next to training locations on the lattice, as in a random split of spots: `fail` where that "
        "is most of them, `advise` where it is the border of a block",
        "expression and label metrics: expression, labels and stain are smooth over a few spots",
        "hold out blocks of tissue with a margin, or whole patients",
    ),
    "near-duplicates": _fail(
        "locations of two patients across sides whose stored embeddings or expression profiles are nearer to each "
        "other than those of other patients, and almost as near as those of one section",
        _EVERYTHING + ", most of all retrieval: the test location's answer was trained on",
        "find out where the sections come from; give serial sections of one block one patient id",
    ),
    "people-alike": _advise(
        "two patients across sides whose sections differ less than half as much as those of others: one person, or "
        "a site or batch that few share",
        _PATIENT,
        "find out whether they are one person, and give them one patient id if so",
    ),
    # ---- what was fitted on the test set
    "trained-on-test": _fail(
        "the model was trained, or chosen, on sections or locations that this split tests",
        _EVERYTHING,
        "train on the training side of this split",
    ),
    "fitted-on-test": _fail(
        "genes, scaler, PCA, prompts or calibration fitted on test sections without being declared transductive",
        "the metric of whatever was fitted: expression by genes and scalers, zero-shot by prompts and calibration",
        "fit on training sections alone, or declare it in the card's `transductive`",
    ),
    "target-genes-among-inputs": _fail(
        "a model that predicts genes reads some of them, by symbol, Ensembl id or another name in the sections' tables",
        "expression metrics of those genes: the answer is an input",
        "take the target genes out of the inputs",
    ),
    "seen-by-encoder": _fail(
        "test sections that a pretrained encoder says, on its card or in a `--seen` file, it was trained on",
        "every metric of that encoder, retrieval and expression first",
        "test on other sections, or use an encoder that has not seen them",
    ),
    # ---- labels without biology
    "caption-names-label": _fail(
        "captions of test locations that name the label: `fail` where captions are inputs and labels targets, "
        "`advise` where nobody says what the inputs are",
        "linear probes, kNN and zero-shot on text: the caption is the label",
        "take the class names out of the captions, or do not judge labels from text",
    ),
    "position-tells-label": _advise(
        "a nearest-neighbour probe on section-normalised position, fitted on the training side, predicts test labels "
        "better than after random shifts of every label map",
        "label and expression metrics of models that see position or neighbours",
        "print the position baseline beside every model, or rotate sections in training",
    ),
    "depth-tells-label": _advise(
        "a nearest-neighbour probe on library size alone predicts test labels better than after random shifts of "
        "every label map",
        "label metrics from expression: sequencing depth passes for biology",
        "print the library-size baseline beside every model, or correct for depth",
    ),
    "class-on-one-side": _advise(
        "a class with labels on one side only",
        "nothing; balanced accuracy and macro AUROC then mean other classes than they name",
        "leave the class out, or move a patient who has it",
    ),
}
"""Name -> kind, in the order of the table."""
