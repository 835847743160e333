"""Encoders are found by name; wrong names and options are answered with the right ones."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

from triglyph.encoders import registry
from triglyph.encoders.base import Encoder
from triglyph.errors import RecipeError
from triglyph.workflows.encoders import encoders_list, encoders_show

OURS = {
    "bert-small", "biobert", "conch", "gene-mlp", "geneformer-12l-30m",
    "phikon-v2", "stain-texture", "stain-texture-level0", "stamp-genes", "stamp-release", "tile-vit", "uni2-h",
}  # fmt: skip


def test_our_encoders_are_registered():
    assert set(registry.names()) >= OURS
    assert sorted(n for m in ("image", "expression", "text") for n in registry.names(m)) == registry.names()


@pytest.mark.parametrize(("wrong", "right"), [("uni2", "uni2-h"), ("UNI2-H", "uni2-h"), ("gene_mlp", "gene-mlp")])
def test_an_unknown_name_is_answered_with_close_ones(wrong, right):
    with pytest.raises(RecipeError, match=f"did you mean.*{right}"):
        registry.build(wrong)


def test_a_hopeless_name_is_answered_with_all():
    with pytest.raises(RecipeError, match="bert-small, biobert"):
        registry.card("§§§")


def test_an_unknown_option_is_answered_with_the_known():
    with pytest.raises(RecipeError, match="(?s)no option 'deep'.*dim, depth, heads, patch_px"):
        registry.build("tile-vit", deep=3)
    with pytest.raises(RecipeError, match="options: none"):
        registry.build("stain-texture", px=3)


def test_weights_for_an_encoder_that_takes_none_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="does not load weights"):
        registry.build("tile-vit", weights=tmp_path)
    with pytest.raises(RecipeError, match="random weights, but weights were given"):
        registry.build("conch", weights=tmp_path, random_init=True, depth=1)


def test_options_change_what_is_built():
    small, large = registry.build("tile-vit", dim=32, depth=1, heads=2), registry.build("tile-vit")
    assert small.card.dim == 32 != large.card.dim
    assert small.card.parameters < large.card.parameters
    assert registry.card("tile-vit").dim == 128, "the registered card stays as it is"
    with pytest.raises(RecipeError, match="'pooled' or 'projected'"):
        registry.build("conch", random_init=True, embedding="caption")


class Broken(Encoder):
    """Not an encoder one can build: it has no card."""

    card = None


@pytest.fixture
def entry(monkeypatch):
    """Add an entry point for the time of a test."""
    before = registry.entry_points

    def add(*entries):
        more = [EntryPoint(name, value, registry.GROUP) for name, value in entries]
        monkeypatch.setattr(registry, "entry_points", lambda group: [*before(group=group), *more])
        registry._entries.cache_clear()
        registry.encoder_class.cache_clear()

    yield add
    registry._entries.cache_clear()
    registry.encoder_class.cache_clear()


def test_an_entry_point_that_is_no_encoder_is_named(entry):
    entry(("nonsense", "json:dumps"), ("renamed", "triglyph.encoders.tile_vit:TileViT"))
    with pytest.raises(RecipeError, match="not an Encoder class"):
        registry.card("nonsense")
    with pytest.raises(RecipeError, match="card called 'tile-vit'"):
        registry.card("renamed")


def test_two_packages_with_one_name_are_refused(entry):
    entry(("tile-vit", "other.package:TileViT"))
    with pytest.raises(RecipeError, match="two packages define the encoder 'tile-vit'"):
        registry.names()


def test_reading_cards_imports_no_architecture():
    code = (
        "import sys; from triglyph.encoders import registry; [registry.card(n) for n in registry.names()]; "
        "print([m for m in ('timm', 'transformers', 'lightning', 'spatialdata') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "[]"


def test_the_verbs_are_light_to_import():
    code = (
        "import sys, typing; from triglyph.workflows import embed, encoders; "
        "[typing.get_type_hints(f) for f in (embed.embed, encoders.encoders_list, encoders.encoders_show)]; "
        "print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"


def test_list_and_show_say_licence_and_whether_weights_are_here(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert {c.name for c in encoders_list()} == set(registry.names())
    table = capsys.readouterr().out
    for name in OURS:
        assert name in table
    assert "CC-BY-NC-ND-4.0" in table
    assert [c.name for c in encoders_list(modality="text")] == registry.names("text")
    assert encoders_show("uni2-h").gated
    shown = capsys.readouterr().out
    for said in ("681,394,176", "hf auth login", "112 µm", "commercial use", "options"):
        assert said in shown
    with pytest.raises(RecipeError):
        encoders_show("unI")
