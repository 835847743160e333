"""The simulator's words: shares of what is missing, wrong or of the section; words held out are never carried."""

from __future__ import annotations

import re

import numpy as np
import pytest

from triglyph.tissue.simulate.fields import sample
from triglyph.tissue.simulate.knobs.names import CELL_TYPES, DOMAINS
from triglyph.tissue.simulate.knobs.people import Language
from triglyph.tissue.simulate.language import (
    AMOUNT_PHRASES,
    CLASS_PROMPTS,
    DOMAIN_PHRASES,
    GROUPS,
    HELD_OUT,
    HELD_OUT_AMOUNT_PHRASES,
    HELD_OUT_CLASS_PROMPTS,
    HELD_OUT_DENSITY_PHRASES,
    HELD_OUT_DOMAIN_PHRASES,
    HELD_OUT_EXTENT_PHRASES,
    HELD_OUT_GROUP_PHRASES,
    KINDS,
    SEEN,
    Captions,
    Vocabulary,
    density_class,
    domain_captions,
    extent_class,
    held_out_captions,
    section_caption,
    write_captions,
)
from triglyph.tissue.simulate.locations import area_mm2
from triglyph.tissue.simulate.presets import preset
from triglyph.tissue.simulate.specimen import Specimen

TINY = preset("tiny")
N = 4000


def write(knobs: Language, *, n: int = N, one_domain: bool = False, seed: int = 0) -> tuple[Captions, np.ndarray]:
    """Captions of n locations in turn of each domain, and the domains' indices."""
    top = np.zeros(n, dtype=int) if one_domain else np.arange(n) % len(DOMAINS)
    mixture = np.tile(np.eye(len(CELL_TYPES))[2], (n, 1))
    lots = np.random.default_rng(seed + 1).random(n)
    made = write_captions(
        knobs, np.eye(len(DOMAINS))[top], mixture, np.full(n, 3000.0), np.random.default_rng(seed), lots=lots,
        section_text="the section",
    )  # fmt: skip
    return made, top


def named_domains(text: str, words: Vocabulary = SEEN) -> set[str]:
    return {d for d, phrases in words.domains.items() if any(said(p, text) for p in phrases)}


def said(phrase: str, text: str) -> bool:
    """Whether whole words of `text` are `phrase`."""
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None


def all_phrases(words: Vocabulary) -> list[str]:
    tables = (words.domains, words.densities, words.amounts, words.groups, words.extents)
    phrases = [p for table in tables for group in table.values() for p in group]
    # The fixed parts of templates that have at least two words of their own.
    templates = [*words.openings, *words.borders, *words.of_domain, *words.of_section, words.cells]
    parts = [part.strip(" ,;:") for template in templates for part in re.split(r"\{\w+\}", template)]
    return phrases + [part for part in parts if len(part.split()) > 1]


@pytest.fixture(scope="module")
def specimen() -> Specimen:
    return Specimen(TINY, 0, 0)


# ---- what is done to captions


def test_each_knob_is_a_share_of_all_locations():
    knobs = Language(missing=0.1, wrong=0.25, section_level=0.3)
    (texts, kinds), _ = write(knobs)
    share = {kind: kinds.count(kind) / N for kind in KINDS}
    assert share["missing"] == pytest.approx(0.10, abs=0.02)
    assert share["wrong"] == pytest.approx(0.25, abs=0.02)
    assert share["section"] == pytest.approx(0.30, abs=0.02)
    assert {t for t, k in zip(texts, kinds, strict=True) if k == "missing"} == {""}
    assert {t for t, k in zip(texts, kinds, strict=True) if k == "section"} == {"the section"}


def test_at_zero_every_location_carries_its_own():
    (texts, kinds), top = write(Language(missing=0.0))
    assert set(kinds) == {"own"}
    assert all(DOMAINS[d] in named_domains(text) for text, d in zip(texts, top, strict=True))


def test_a_wrong_caption_is_one_of_another_domain_of_the_section():
    (plain, _), _ = write(Language(missing=0.0))
    (texts, kinds), top = write(Language(missing=0.0, wrong=0.3))
    wrong = [i for i, kind in enumerate(kinds) if kind == "wrong"]
    assert wrong
    assert {texts[i] for i in wrong} <= set(plain)
    assert not any(DOMAINS[top[i]] in named_domains(texts[i]) for i in wrong)
    # Not always the same one.
    assert len({texts[i] for i in wrong}) > 50


def test_a_knob_changes_nothing_where_it_does_not_strike():
    (plain, _), _ = write(Language(missing=0.0))
    (one, kinds_one), _ = write(Language(missing=0.1, wrong=0.2))
    (two, kinds_two), _ = write(Language(missing=0.3, wrong=0.2))
    for text, kind, own in zip(one, kinds_one, plain, strict=True):
        assert kind != "own" or text == own
    assert [k == "wrong" for k in kinds_one] == [k == "wrong" for k in kinds_two]
    assert [t for t, k in zip(one, kinds_one, strict=True) if k == "wrong"] == [
        t for t, k in zip(two, kinds_two, strict=True) if k == "wrong"
    ]


def test_where_there_is_one_domain_the_wrong_caption_is_still_anothers_and_alone_it_is_its_own():
    (plain, _), _ = write(Language(missing=0.0), n=50, one_domain=True)
    (texts, kinds), _ = write(Language(missing=0.0, wrong=1.0), n=50, one_domain=True)
    assert set(kinds) == {"wrong"}
    assert set(texts) <= set(plain)
    assert sum(a != b for a, b in zip(texts, plain, strict=True)) > 30
    (_, kinds), _ = write(Language(missing=0.0, wrong=1.0), n=1)
    assert kinds == ["own"]


def test_shares_that_add_up_to_more_than_all_are_refused():
    with pytest.raises(ValueError, match="more than 1"):
        Language(missing=0.5, wrong=0.4, section_level=0.2)
    Language(missing=0.4, wrong=0.4, section_level=0.2)


def test_the_table_says_what_was_done_to_each_caption():
    language = TINY.language.model_copy(update={"missing": 0.2, "wrong": 0.2, "section_level": 0.2})
    made = Specimen(TINY.model_copy(update={"language": language}), 0, 0)
    obs = made.table.obs
    assert set(obs["truth_caption"]) == set(KINDS)
    assert set(obs["caption"][obs["truth_caption"] == "section"]) == {section_caption(made)}
    assert ((obs["caption"] == "") == (obs["truth_caption"] == "missing")).all()
    top = np.array(DOMAINS)[made.domain_shares.argmax(1)]
    for caption, kind, domain in zip(obs["caption"], obs["truth_caption"], top, strict=True):
        if kind in ("own", "wrong"):
            # The domain comes first; what it borders on may be any other.
            head = re.split(r" at the border of | next to | adjoining ", caption)[0]
            assert (domain in named_domains(head)) == (kind == "own")


# ---- words held out


def test_every_idea_has_words_that_are_held_out():
    assert set(HELD_OUT_DOMAIN_PHRASES) == set(DOMAINS) == set(DOMAIN_PHRASES)
    assert min(map(len, HELD_OUT_DOMAIN_PHRASES.values())) >= 2
    assert set(HELD_OUT_GROUP_PHRASES) == set(GROUPS)
    for seen, held in (
        (SEEN.densities, HELD_OUT_DENSITY_PHRASES),
        (SEEN.amounts, HELD_OUT_AMOUNT_PHRASES),
        (SEEN.extents, HELD_OUT_EXTENT_PHRASES),
    ):
        assert set(seen) == set(held)
        assert min(map(len, held.values())) >= 2
    assert len(HELD_OUT.openings) >= 2
    assert not set(HELD_OUT.openings) & set(SEEN.openings)


@pytest.mark.parametrize(("words", "others"), [(SEEN, HELD_OUT), (HELD_OUT, SEEN)], ids=["seen", "held out"])
def test_no_phrase_of_one_vocabulary_is_said_in_the_other(words, others):
    texts = []
    for patient, section in ((0, 0), (1, 0)):
        made = Specimen(TINY, patient, section)
        texts += [section_caption(made, words=words), *domain_captions(made, words=words).values()]
        texts += list(made.table.obs["caption" if words is SEEN else "caption_held_out"])
    prompts = CLASS_PROMPTS if words is SEEN else HELD_OUT_CLASS_PROMPTS
    texts += [prompt for group in prompts.values() for prompt in group] + all_phrases(words)
    assert len(set(texts)) > 100
    for phrase in all_phrases(others):
        assert not [text for text in texts if said(phrase, text)], phrase


def test_held_out_captions_say_the_same_as_the_locations_own(specimen):
    knobs, n = TINY.language, len(specimen.centres_um)
    number = specimen.cells_by_type.sum(1)
    mixture = specimen.cells_by_type / np.maximum(number, 1)[:, None]
    content = (knobs, specimen.domain_shares, mixture, number / area_mm2(TINY.spots))
    held_out = held_out_captions(*content, np.random.default_rng(0))
    own, kinds = write_captions(*content, np.random.default_rng(0), lots=np.full(n, 0.99))
    assert set(kinds) == {"own"}
    assert list(specimen.table.obs["caption_held_out"]) != held_out  # other lots, same content

    def content_of(text: str, words: Vocabulary) -> tuple[set[str], ...]:
        amounts = {
            (group, amount)
            for group, names in words.groups.items()
            for amount, phrases in words.amounts.items()
            if any(said(f"{phrase} {name}", text) for phrase in phrases for name in names)
        }
        density = {d for d, phrases in words.densities.items() if any(said(p, text) for p in phrases)}
        return named_domains(text, words), density, amounts

    for one, other in zip(own, held_out, strict=True):
        domains, density, amounts = content_of(one, SEEN)
        assert len(density) == 1
        assert content_of(other, HELD_OUT) == (domains, density, amounts)


def test_prompts_of_every_label_in_either_words():
    assert CLASS_PROMPTS["adipose tissue"] == [
        "adipose tissue", "fat", "mature adipose tissue", "H&E of adipose tissue", "H&E of fat",
        "H&E of mature adipose tissue", "tissue showing adipose tissue",
    ]  # fmt: skip
    assert set(HELD_OUT_CLASS_PROMPTS) == set(CLASS_PROMPTS) == set(DOMAINS)
    prompts = [p for texts in HELD_OUT_CLASS_PROMPTS.values() for p in texts]
    assert len(prompts) == len(set(prompts))
    for domain, texts in HELD_OUT_CLASS_PROMPTS.items():
        assert all(named_domains(text, HELD_OUT) == {domain} for text in texts)


# ---- domains and sections


def test_a_sections_caption_names_its_domains_from_the_largest_down(specimen):
    tissue = specimen.tissue
    shares = (tissue.domains * tissue.cover).sum((1, 2)) / tissue.cover.sum()
    expected = [DOMAINS[d] for d in np.argsort(-shares) if shares[d] >= 0.02]
    for words in (SEEN, HELD_OUT):
        text = section_caption(specimen, words=words)
        places = {
            d: max(
                text.find(f"{e} {p}") for e in words.extents[extent_class(shares[DOMAINS.index(d)])] for p in phrases
            )
            for d, phrases in words.domains.items()
            if d in expected
        }
        assert min(places.values()) >= 0
        assert sorted(places, key=places.__getitem__) == expected
        assert named_domains(text, words) == set(expected)
        density = density_class(TINY.language, len(tissue.cells) / (tissue.cover.sum() * tissue.step_um**2 * 1e-6))
        assert any(said(p, text) for p in words.densities[density])


def test_every_domain_that_a_section_has_is_described_by_its_own_cells(specimen):
    tissue, found = specimen.tissue, domain_captions(specimen)
    top = np.where(tissue.cover > 0.5, tissue.domains.argmax(0), -1)
    share = np.bincount(top[top >= 0], minlength=len(DOMAINS)) / (top >= 0).sum()
    assert set(found) == {d for d, s in zip(DOMAINS, share, strict=True) if s >= 0.02}
    here = sample(top.astype(np.float32), tissue.cells.xy_um, tissue.step_um)
    for domain, text in found.items():
        assert named_domains(text) == {domain}
        kinds = tissue.cells.kind[here == DOMAINS.index(domain)]
        for group, types in GROUPS.items():
            part = np.isin(kinds, [CELL_TYPES.index(t) for t in types]).mean()
            if any(said(f"{p} {group}", text) for p in AMOUNT_PHRASES["many"]):
                assert part >= TINY.language.many
            if any(said(f"{p} {group}", text) for p in AMOUNT_PHRASES["some"]):
                assert TINY.language.some <= part < TINY.language.many


def test_words_of_sections_repeat_and_differ_between_sections(specimen):
    assert section_caption(specimen) == section_caption(Specimen(TINY, 0, 0))
    assert domain_captions(specimen) == domain_captions(Specimen(TINY, 0, 0))
    assert section_caption(specimen) != section_caption(Specimen(TINY, 1, 0))
