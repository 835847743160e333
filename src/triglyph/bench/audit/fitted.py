"""What a model, a protocol or a pretrained encoder was fitted on, held against what is tested; from records alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from triglyph.bench.audit.case import Case, Sides, plain
from triglyph.bench.audit.findings import Sheet, listed
from triglyph.bench.audit.subject import Exposure, gene_of
from triglyph.genes.ids import Gene, genes_of

_SUBJECT = ("trained-on-test", "fitted-on-test", "target-genes-among-inputs", "seen-by-encoder")
_DENIED = re.compile(r"\b(?:never|not|no|without|but)\b[^,;:]*")
_WIDER = re.compile(
    r"\btest(?:ed|ing)?\b|\bheld[- ]out\b|\b(?:all|every|each|whole|entire|both)\b(?!\s+(?:of\s+)?(?:the\s+)?training)",
    re.IGNORECASE,
)
_SOURCE_COLUMNS = ("source", "source_id", "accession", "sample")


def check_subject(case: Case, sheet: Sheet) -> None:
    """`trained-on-test`, `fitted-on-test`, `target-genes-among-inputs`, `seen-by-encoder`."""
    if case.subject is None:
        for name in _SUBJECT:
            sheet.unchecked(name, "no run and no encoder was named")
        return
    _check_training(case, sheet)
    _check_fitted(case, sheet)
    _check_genes(case, sheet)
    _check_encoders(case, sheet, case.subject.encoders)


def _check_training(case: Case, sheet: Sheet) -> None:
    subject = case.subject
    assert subject is not None
    if not subject.training_sections:
        sheet.unchecked("trained-on-test", f"{subject.name} records no section that it was trained on")
        return
    sheet.checked("trained-on-test")
    for sides in case.sides:
        whole = []
        for section in sides.test:
            if section not in subject.training_sections:
                continue
            held_out = (sides.fold.test_locations or {}).get(section)
            if held_out is None or subject.held_out_locations.get(section, 0) < len(held_out):
                whole.append(section)
        if whole:
            message = f"{subject.name} was trained or chosen on sections tested here"
            what = f"{message}: {listed(whole)}"
            sheet.find("trained-on-test", what, message=message, sections=whole, fold=sides.name)


def _check_fitted(case: Case, sheet: Sheet) -> None:
    subject = case.subject
    assert subject is not None
    if not subject.fitted:
        why = f"{subject.name} records no sections under `fitted` for its genes, scalers, PCA, prompts or calibration"
        sheet.unchecked("fitted-on-test", why)
    if not subject.protocols:
        sheet.unchecked("fitted-on-test", "no protocol's card was given")
    if subject.fitted or subject.protocols:
        sheet.checked("fitted-on-test")
    for sides in case.sides:
        for fitted in subject.fitted:
            both = sorted(set(fitted.sections) & _held_out_whole(sides))
            if both and not fitted.declared:
                message = f"{fitted.what} of {subject.name} fitted on test sections"
                what = f"{message}: {listed(both)}"
                sheet.find("fitted-on-test", what, message=message, sections=both, fold=sides.name)
    for card in subject.protocols:
        for what in undeclared(card):
            sheet.find("fitted-on-test", f"protocol {card.get('name')}: {what}")


def undeclared(card: Mapping[str, Any]) -> list[str]:
    """What a protocol's card says was fitted on more than training data, and its `transductive` does not name.

    The first clause of each entry of `fitted` says on what; what comes after a colon or semicolon is detail. An entry
    is declared where `transductive` shares one of its words.
    """
    found: Mapping[str, str] = card.get("fitted") or {}
    said = _words(" ".join(map(str, card.get("transductive") or ())))
    return [
        f"{what} fitted on {on!r}"
        for what, on in found.items()
        if _WIDER.search(_DENIED.sub("", re.split(r"[:;]", on, maxsplit=1)[0])) and not _words(what) & said
    ]


def _words(text: str) -> set[str]:
    """Words of four letters and more, without plural s."""
    return {w.removesuffix("s") for w in re.findall(r"[^\W\d_]{4,}", text.casefold())}


def _held_out_whole(sides: Sides) -> set[str]:
    """Tested sections no location of which may be fitted on."""
    return set(sides.test) - set(sides.fold.test_locations or {})


# ---- genes


def _check_genes(case: Case, sheet: Sheet) -> None:
    subject = case.subject
    assert subject is not None
    name = "target-genes-among-inputs"
    if not (subject.input_genes and subject.target_genes):
        lacking = [w for w, of in (("input", subject.input_genes), ("target", subject.target_genes)) if not of]
        sheet.unchecked(name, f"{subject.name} records no {' and no '.join(lacking)} genes")
        return
    if case.uncounted:
        sheet.unchecked(name, f"{case.uncounted}; genes were compared as written")
    sheet.checked(name)
    sections = () if case.uncounted else case.sections
    names = _Names(g for s in sections for g in genes_of(*case.cohort[s].expression()[1:3]))
    read = {n for g in subject.input_genes for n in names.of(g)}
    if both := [g for g in subject.target_genes if names.of(g) & read]:
        what = f"{len(both)} of {len(subject.target_genes)} target genes of {subject.name} are inputs: {listed(both)}"
        sheet.find(name, what)


class _Names:
    """What one gene is called, over all sections.

    A symbol stands for every gene that is called so, and an id for one gene: two ids that share a symbol stay two.
    """

    def __init__(self, genes: Iterable[Gene]) -> None:
        self._ids: dict[str, set[str]] = {}
        self._symbols: dict[str, set[str]] = {}
        for gene in set(genes):
            if gene.ensembl_id:
                self._ids.setdefault(gene.symbol, set()).add(gene.ensembl_id)
                self._symbols.setdefault(gene.ensembl_id, set()).add(gene.symbol)

    def of(self, name: str) -> set[str]:
        """All ids that `name` may stand for, and the symbols that are theirs alone."""
        gene = gene_of(name)
        ids = {gene.ensembl_id} if gene.ensembl_id else self._ids.get(gene.symbol, set())
        symbols = {s for i in ids for s in self._symbols.get(i, ()) if len(self._ids[s]) == 1}
        return {*ids, *symbols, *([gene.symbol] if gene.symbol else [])}


# ---- pretrained encoders


def _check_encoders(case: Case, sheet: Sheet, encoders: Iterable[Exposure]) -> None:
    name = "seen-by-encoder"
    some = False
    for encoder in encoders:
        some = True
        if encoder.weights != "hub" and not encoder.seen and encoder.all_but is None:
            sheet.checked(name)
            continue
        if not (encoder.seen or encoder.pretrained_on or encoder.all_but is not None):
            sheet.unchecked(name, f"{encoder.encoder} does not say what it was trained on")
            continue
        sheet.checked(name)
        if not encoder.seen and encoder.all_but is None:
            why = f"{encoder.encoder} names datasets ({listed(encoder.pretrained_on)}), not sections"
            sheet.unchecked(name, why)
        for sides in case.sides:
            if both := [s for s in sides.test if _has_seen(encoder, case, s)]:
                message = f"{encoder.encoder} was trained on sections tested here"
                sheet.find(name, f"{message}: {listed(both)}", message=message, sections=both, fold=sides.name)
    if not some:
        sheet.unchecked(name, "no encoder is named")


def _has_seen(encoder: Exposure, case: Case, section: str) -> bool:
    if encoder.all_but is not None and section not in encoder.all_but:
        return True
    names, datasets, stated = _called(case, section)
    for entry in (*encoder.seen, *(f"{d}:*" for d in encoder.pretrained_on), *encoder.pretrained_on):
        dataset, colon, one = entry.rpartition(":")
        if one == "*":
            if plain(dataset) in datasets:
                return True
        elif plain(one) in names and not (colon and stated and plain(dataset) not in datasets):
            return True
    return False


_DATASETS = {"hest": "HEST-1k", "census": "CELLxGENE Census", "archs4": "ARCHS4", "quilt": "Quilt-1M"}
"""Reader -> the dataset that it reads."""


def _called(case: Case, section: str) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]], bool]:
    """Names of a section, names of its dataset, and whether the manifest states the dataset."""
    names, datasets = {section}, set()
    for column in _SOURCE_COLUMNS:
        names |= {v for s, v in (case.column(column) or {}).items() if s == section}
    dataset = (case.column("dataset") or {}).get(section, "")
    source: Mapping[str, Any] = getattr(case.info(section), "source", None) or {}
    # A section that was renamed on reading keeps the name of its file.
    files = (f.get("path", "") for role, f in (source.get("files") or {}).items() if role in ("table", "image"))
    names |= {PurePosixPath(path).name.split(".")[0] for path in files}
    title = (source.get("metadata") or {}).get("dataset_title", "")
    platform = str(source.get("platform") or getattr(case.info(section), "platform", ""))
    datasets |= {dataset, platform, str(title or ""), _DATASETS.get(platform, "")}
    return {plain(n) for n in names if n}, {plain(d) for d in datasets if d}, bool(dataset)
