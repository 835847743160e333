"""Embedding a cohort: once, whole or not at all, section by section, whatever happens to the process."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import encoder_cases as cases
import small
from triglyph.apply.embed import embed_cohort, embed_section, resolve_device
from triglyph.encoders import registry, stain_texture
from triglyph.encoders.base import Expression
from triglyph.errors import GeneError, RecipeError, ScaleError
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.section import Section
from triglyph.workflows.embed import embed


@pytest.fixture
def cohort(tmp_path) -> Cohort:
    return small.cohort(tmp_path, patients=3, side=4)


@pytest.fixture
def section(tmp_path) -> Section:
    return Section.write(small.draft(folder=tmp_path), tmp_path / "S1")


def test_image_windows_are_read_at_the_scale_of_the_card(section):
    encoder = registry.build("stain-texture")
    fingerprint, outcome = embed_section(section, encoder)
    stored = section.embeddings.read(fingerprint)
    assert outcome == "embedded"
    assert stored.present.all()
    reader = section.image()
    windows = np.stack([reader.read(c, 224.0, 320) for c in section.centres_um])
    expected = encoder.encode(encoder.prepare(windows)).pooled.numpy()
    np.testing.assert_allclose(stored.values, expected, rtol=1e-6, atol=1e-7)
    assert stored.card["name"] == "stain-texture"
    assert stored.card["encoder"]["mpp"] == 0.7


def test_a_card_without_scale_reads_level_0(section):
    encoder = registry.build("stain-texture-level0")
    fingerprint, _ = embed_section(section, encoder)
    window = section.image().read_level0(section.centres_um[7], 320)[None]
    expected = encoder.encode(encoder.prepare(window)).pooled.numpy()
    np.testing.assert_allclose(section.embeddings.read(fingerprint).values[7:8], expected, rtol=1e-6, atol=1e-7)


def test_locations_without_a_caption_are_absent_not_zero(section):
    encoder = cases.make("bert-small")
    fingerprint, _ = embed_section(section, encoder)
    stored = section.embeddings.read(fingerprint)
    missing = np.array([c == "" for c in section.captions])
    assert missing.any()
    np.testing.assert_array_equal(stored.present, ~missing)
    assert np.isnan(stored.values[missing]).all()
    rows = np.flatnonzero(~missing)
    expected = cases.pooled(encoder, [section.captions[i] for i in rows]).numpy()
    np.testing.assert_allclose(stored.values[rows], expected, rtol=1e-4, atol=1e-5)


def test_expression_is_read_by_gene(section):
    torch.manual_seed(0)
    encoder = registry.build("gene-mlp", genes=8)
    encoder.fit([Expression(*section.expression())])
    fingerprint, _ = embed_section(section, encoder.eval())
    expected = cases.pooled(encoder, Expression(*section.expression())).numpy()
    np.testing.assert_allclose(section.embeddings.read(fingerprint).values, expected, rtol=1e-4, atol=1e-5)


def test_a_section_that_holds_no_gene_of_the_encoder_is_an_error(section):
    with pytest.raises(GeneError, match="(?s)none of its 12 genes is among the 24.*EPCAM"):
        embed_section(section, cases.make("gene-mlp"))
    assert section.embeddings.names() == []


def test_embedding_twice_does_nothing(section, monkeypatch):
    encoder = registry.build("stain-texture")
    fingerprint, _ = embed_section(section, encoder)
    path = section.path / "embeddings" / fingerprint / "values.npy"
    before = path.stat().st_mtime_ns
    monkeypatch.setattr(type(encoder), "encode", lambda *_: pytest.fail("encoded again"))
    assert embed_section(section, encoder) == (fingerprint, "already")
    assert path.stat().st_mtime_ns == before


def test_the_batch_size_does_not_matter(tmp_path):
    one = Section.write(small.draft(folder=tmp_path), tmp_path / "a")
    two = Section.write(small.draft(folder=tmp_path), tmp_path / "b")
    encoder = cases.make("tile-vit")
    fingerprint, _ = embed_section(one, encoder, batch_size=5)
    embed_section(two, encoder, batch_size=64)
    np.testing.assert_allclose(
        one.embeddings.read(fingerprint).values, two.embeddings.read(fingerprint).values, rtol=1e-4, atol=1e-5
    )


def test_another_window_is_another_entry(section):
    encoder = cases.make("tile-vit")
    first, _ = embed_section(section, encoder)
    encoder.card = encoder.card.model_copy(update={"mpp": 1.0})
    second, outcome = embed_section(section, encoder)
    assert (first != second, outcome) == (True, "embedded")
    a, b = section.embeddings.read(first).values, section.embeddings.read(second).values
    assert not np.allclose(a, b, atol=1e-3)


def test_an_image_too_coarse_for_the_encoder_is_refused_and_leaves_nothing(tmp_path):
    coarse = Section.write(small.draft(folder=tmp_path, mpp=1.2), tmp_path / "S1")
    with pytest.raises(ScaleError, match="enlarge"):
        embed_section(coarse, registry.build("stain-texture"))
    assert coarse.embeddings.names() == []


def test_progress_adds_up_to_the_locations(section):
    for encoder in (registry.build("stain-texture"), cases.make("bert-small")):
        for _ in range(2):
            done = []
            embed_section(section, encoder, progress=done.append)
            assert sum(done) == section.n_locations


def test_a_failing_section_is_reported_and_the_others_go_on(cohort):
    (cohort.path.parent / "slides" / "S1.tif").write_bytes(b"not a slide any more")
    encoder = registry.build("stain-texture")
    report = embed_cohort(cohort, encoder, show=False)
    assert report.embedded == ["S0", "S2"]
    assert list(report.failed) == ["S1"]
    assert "S1.tif" in report.failed["S1"]
    assert report.exit_code == 1
    small.write_slide(cohort.path.parent / "slides" / "S1.tif", seed=1)
    again = embed_cohort(Cohort.open(cohort.path), encoder, show=False)
    assert (again.already, again.embedded, again.exit_code) == (["S0", "S2"], ["S1"], 0)


def test_sections_without_the_modality_are_no_failure(tmp_path):
    cohort = small.cohort(tmp_path, patients=2, side=3, images=False)
    report = embed_cohort(cohort, registry.build("stain-texture"), show=False)
    assert (report.absent, report.exit_code) == (["S0", "S1"], 0)
    assert cohort["S0"].embeddings.names() == []


def test_the_verb_embeds_and_says_what_it_did(cohort, capsys):
    report = embed(cohort.path, encoder="stain-texture", sections=("S0", "S2"), device="cpu")
    assert report.embedded == ["S0", "S2"]
    assert "2 embedded" in capsys.readouterr().err
    assert embed(cohort.path, encoder="stain-texture", device="cpu").already == ["S0", "S2"]
    obsm = cohort["S1"].to_anndata().obsm
    assert obsm["stain-texture"].shape == (16, 52)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"encoder": "tile-vit"}, "starts untrained"),
        ({"encoder": "stain-textur"}, "did you mean stain-texture"),
        ({"encoder": "stain-texture", "device": "abacus"}, "no device 'abacus'"),
        ({"encoder": "stain-texture", "batch_size": 0}, "batch_size is 0"),
        ({"encoder": "stain-texture", "options": {"px": 3}}, "no option 'px'"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_read(wrong, said, cohort):
    with pytest.raises(RecipeError, match=said):
        embed(cohort.path, **wrong)


def test_too_little_memory_is_said_with_its_mend(cohort, monkeypatch):
    def run_out(*_):
        raise torch.OutOfMemoryError

    encoder = registry.build("stain-texture")
    monkeypatch.setattr(type(encoder), "encode", run_out)
    report = embed_cohort(cohort, encoder, batch_size=8, show=False, sections=["S0"])
    assert "--batch-size below 8" in report.failed["S0"]


def test_auto_finds_a_device():
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


def embed_slowly(path: Path) -> None:
    """As `triglyph embed`, in a child that lives long enough to be killed in the middle of a section."""
    plain = stain_texture.window_features

    def slow(window):
        time.sleep(0.01)
        return plain(window)

    stain_texture.window_features = slow
    embed_cohort(Cohort.open(path), registry.build("stain-texture"), batch_size=4, device="cpu", show=False)


def partial(cohort: Path) -> list[Path]:
    return list(cohort.glob("sections/*/embeddings/.partial-*"))


def test_a_run_that_is_killed_again_and_again_goes_on_where_it_was(tmp_path):
    whole = small.cohort(tmp_path / "whole", patients=4, side=5)
    fingerprint = embed_cohort(whole, registry.build("stain-texture"), show=False).fingerprint
    broken = small.cohort(tmp_path / "broken", patients=4, side=5).path
    rng = np.random.default_rng(0)
    in_the_middle = 0
    for _ in range(8):
        child = multiprocessing.get_context("fork").Process(target=embed_slowly, args=(broken,))
        child.start()
        before = set(partial(broken))
        deadline = time.monotonic() + 30
        while child.is_alive() and time.monotonic() < deadline and not set(partial(broken)) - before:
            time.sleep(0.002)
            before &= set(partial(broken))
        time.sleep(float(rng.uniform(0, 0.06)))
        child.kill()
        child.join()
        in_the_middle += bool(partial(broken))
        for section in Cohort.open(broken):
            for name in section.embeddings.names():
                assert section.embeddings.read(name).present.all(), "an entry is whole or not there"
    assert in_the_middle >= 2, "the kills came too late to test anything"
    report = embed_cohort(Cohort.open(broken), registry.build("stain-texture"), show=False)
    assert sorted(report.embedded + report.already) == whole.ids
    for section in Cohort.open(broken):
        a, b = section.embeddings.read(fingerprint), whole[section.id].embeddings.read(fingerprint)
        np.testing.assert_array_equal(np.asarray(a.values), np.asarray(b.values))
    assert partial(broken) == []
