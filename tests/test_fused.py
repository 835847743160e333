"""One embedding of image and expression: which locations have it, how it is named, who may be asked for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench_fakes import FakeModel, trial
from triglyph.apply.trained import TrainedModel
from triglyph.bench.baselines import beside
from triglyph.bench.ceilings.labels import label_ceiling
from triglyph.bench.contracts import Subject
from triglyph.bench.features import Constant
from triglyph.bench.labels.linear_probe import LinearProbe
from triglyph.bench.registry import protocol
from triglyph.bench.standing import standing
from triglyph.bench.suite import applicable
from triglyph.bench.truth import Truths
from triglyph.errors import ContractError, RecipeError
from triglyph.models.fused import made_of, reads
from triglyph.models.stamp_align import StampAlign, StampAlignConfig

READ = ["linear-probe", "knn-20", "simpleshot", "clustering", "label-retrieval", "batch-effect"]
NOWHERE_NEAR = ["expression", "hest-benchmark"]


class Fusing(FakeModel):
    """The fake model, with both modalities side by side or added."""

    fusions = ("fused", "fused-concat", "fused-sum")

    def embed(self, section, modality):
        if modality not in self.fusions:
            return super().embed(section, modality)
        (a, has_a), (b, has_b) = (super(Fusing, self).embed(section, m) for m in ("image", "expression"))
        has_b = has_b & (np.arange(len(b)) % 5 > 0)
        values = a + b if modality == "fused-sum" else np.hstack([a, b])
        values[~(has_a & has_b)] = np.nan
        return values, has_a & has_b

    def pooled(self, section, modality):
        if modality in self.fusions:
            raise ContractError("nothing is fused before the shared space", mend="take features: embedding")
        return super().embed(section, modality)


SUBJECT = Subject("fusing", Fusing())


# ---- names


def test_a_fusion_is_named_and_made_of_image_and_expression():
    assert reads("fused") == reads("fused-sum") == ("image", "expression")
    assert reads("image") == ("image",)
    assert made_of("fused") == ""
    assert made_of("fused-sum") == "sum"
    for wrong in ("fused-", "fusedsum", "Fused", "image-sum"):
        with pytest.raises(ContractError, match=f"nothing is called {wrong!r}"):
            reads(wrong)


# ---- a trained model


def encoded(section, modality):
    """What the towers below give: rows 0 and 1 lack image, rows 1 and 2 expression."""
    values = np.random.default_rng(len(modality)).normal(size=(6, {"image": 16, "expression": 3}[modality]))
    present = np.ones(6, dtype=bool)
    present[[0, 1] if modality == "image" else [1, 2]] = False
    values[~present] = np.nan
    return values.astype(np.float32), present


class Place:
    """A section of six locations."""

    centres_um = np.zeros((6, 2))
    id = "S1"


@pytest.fixture
def trained(monkeypatch):
    def make(**changes) -> TrainedModel:
        from triglyph.encoders.gene_mlp import GeneMLP
        from triglyph.encoders.tile_vit import TileViT

        towers = {"image": {"encoder": "tile-vit"}, "expression": {"encoder": "gene-mlp"}}
        alone = changes.pop("alone", False)
        if alone:
            del towers["expression"]
            changes["weights"] = {"patch_spot": 0, "region_spot": 0}
        config = StampAlignConfig.model_validate({"dim": 8, "towers": towers, **changes})
        torch.manual_seed(0)
        encoders = {"image": TileViT(dim=16, depth=1, heads=2), "expression": GeneMLP(dim=3, hidden=4, genes=5)}
        model = StampAlign(config, {m: encoders[m] for m in config.towers})
        found = TrainedModel(model, {})
        monkeypatch.setattr(found, "pooled", encoded)
        return found

    return make


def test_a_location_has_a_fused_embedding_if_it_has_both(trained):
    model = trained(fusion="concat")
    values, present = model.embed(Place(), "fused")
    assert present.tolist() == [False, False, False, True, True, True]
    assert np.isnan(values[:3]).all()
    assert values.dtype == np.float32
    image, expression = (model.embed(Place(), m)[0][3:] for m in ("image", "expression"))
    np.testing.assert_allclose(values[3:], np.hstack([image, expression]) / np.sqrt(2), rtol=1e-5)


@pytest.mark.parametrize(
    ("fusion", "names"),
    [
        ("concat", ("fused", "fused-concat", "fused-sum")),
        ("sum", ("fused", "fused-sum", "fused-concat")),
        ("gated", ("fused", "fused-gated", "fused-concat", "fused-sum")),
    ],
)
def test_what_needs_no_training_is_always_there_and_a_gate_only_where_it_was_trained(trained, fusion, names):
    model = trained(fusion=fusion)
    assert model.fusions == names
    assert model.modalities == ("image", "expression")
    own = model.embed(Place(), "fused")[0]
    np.testing.assert_array_equal(own, model.embed(Place(), f"fused-{fusion}")[0])
    widths = {name: model.embed(Place(), name)[0].shape[1] for name in names[1:]}
    assert widths == {name: 16 if name == "fused-concat" else 8 for name in names[1:]}


def test_the_gate_of_a_trained_model_is_read(trained):
    model = trained(fusion="gated")
    with torch.no_grad():
        model.model.gate.gate.bias.fill_(50.0)
    np.testing.assert_allclose(
        model.embed(Place(), "fused-gated")[0][3:], model.embed(Place(), "image")[0][3:], atol=1e-5
    )
    assert not np.allclose(model.embed(Place(), "fused-sum")[0][3:], model.embed(Place(), "image")[0][3:], atol=0.01)


def test_what_a_model_cannot_fuse_is_refused_in_one_line(trained):
    with pytest.raises(ContractError, match=r"no fusion 'gated', it has sum, concat") as error:
        trained(fusion="sum").embed(Place(), "fused-gated")
    assert "\n" not in error.value.what
    model = trained(alone=True)
    assert model.fusions == ()
    with pytest.raises(ContractError, match="stamp-align makes no one embedding of image and expression") as error:
        model.embed(Place(), "fused")
    assert error.value.mend == "ask for image"
    assert "\n" not in error.value.what


def test_before_the_shared_space_nothing_is_fused(trained):
    model = trained(fusion="sum")
    with pytest.raises(ContractError, match="before the shared space nothing is fused"):
        TrainedModel.pooled(model, Place(), "fused")


# ---- the judge


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("modality", ["fused", "fused-sum"])
def test_protocols_of_labels_read_a_fused_embedding_and_their_rows_say_so(name, modality):
    rows = protocol(name, {"modality": modality}).run(SUBJECT, trial(sections_each=2))
    assert any(r.value is not None for r in rows)
    assert {r.direction.split("->")[0] for r in rows} == {modality}


def test_locations_without_both_are_not_judged():
    made = trial()
    both, image = (
        {r.n for r in LinearProbe(modality=m).run(SUBJECT, made) if r.aggregation == "per-section"}
        for m in ("fused", "image")
    )
    assert max(both) < max(image)


@pytest.mark.parametrize("name", READ)
def test_a_subject_that_cannot_fuse_is_refused_with_what_it_has(name):
    for subject in (Subject("fake", FakeModel()), Subject("features", Constant())):
        with pytest.raises(ContractError, match=f"{subject.name} has no fused") as error:
            protocol(name, {"modality": "fused"}).run(subject, trial(sections_each=2))
        assert "image" in error.value.mend
    with pytest.raises(ContractError, match="fusing has no fused-gated") as error:
        protocol(name, {"modality": "fused-gated"}).run(SUBJECT, trial(sections_each=2))
    assert "fused-sum" in error.value.mend


def test_names_that_are_none_are_refused_before_anything_is_read():
    with pytest.raises(RecipeError, match="modality: nothing is called 'fuse'"):
        protocol("linear-probe", {"modality": "fuse"})


@pytest.mark.parametrize("name", NOWHERE_NEAR)
@pytest.mark.parametrize("modality", ["fused", "fused-sum", "expression"])
def test_expression_is_never_predicted_from_what_holds_it(name, modality):
    with pytest.raises(RecipeError, match=f"modality: {modality} holds the expression that is asked for"):
        protocol(name, {"modality": modality})


def test_a_fusion_adds_no_modality_to_what_all_judges():
    made = trial()
    plain, fusing = applicable(FakeModel(), made), applicable(Fusing(), made)
    assert plain == fusing


def test_beside_a_fused_embedding_stands_what_costs_nothing_of_either_part():
    made, of = trial(), LinearProbe(modality="fused-sum")
    stain = Constant(modality="image")
    found = beside(of, made, SUBJECT, stain)
    names = {s.name for s in found}
    assert {"position", "library size", "stain-texture", "expression-pca-50"} <= names
    assert names == set(standing(of)["baselines and controls"])
    for subject in found:
        values, present = subject.embed(made.test[0], "fused-sum")
        assert len(values) == len(present) == 196
        assert {r.direction for r in of.run(subject, made)} == {"fused-sum->label"}
    fitted = next(s for s in found if s.name == "expression-pca-50")
    assert set(fitted.source.training_sections) == {s.id for s in made.train}


def test_a_ceiling_is_over_the_locations_that_have_both():
    class Known(Truths):
        def domains(self, section):
            return np.random.default_rng(0).dirichlet(np.ones(3), len(section.centres_um)), ("a", "b", "c")

    made = trial()
    rows = label_ceiling(LinearProbe(), made, Known(), Fusing(), modality="image")
    fused = label_ceiling(LinearProbe(modality="fused"), made, Known(), Fusing(), modality="fused")
    of = {"aggregation": "per-section", "metric": "balanced-accuracy"}
    n, n_fused = ({r.n for r in found if all(getattr(r, k) == v for k, v in of.items())} for found in (rows, fused))
    assert max(n_fused) < max(n)
    assert {r.direction for r in fused} == {"fused->label"}


def test_a_part_of_a_section_has_the_fused_rows_of_the_whole():
    from triglyph.bench.parts import Part

    section = trial().test[0]
    part = Part(section, np.array([0, 3, 4]))
    values, present = SUBJECT.embed(section, "fused")
    cut, there = SUBJECT.embed(part, "fused")
    np.testing.assert_array_equal(cut, values[[0, 3, 4]])
    np.testing.assert_array_equal(there, present[[0, 3, 4]])
    assert replace(SUBJECT, name="x").fusions == Fusing.fusions
