"""The bridge between words and images: who sees what in each arm, and how its gains are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import yaml

import encoder_cases as cases
import small
from triglyph.apply.prompts import Prompts
from triglyph.bench.contracts import Trial
from triglyph.bench.labels.zero_shot import ZeroShot
from triglyph.bench.retrieval import Retrieval
from triglyph.bench.through_genes import ThroughGenes
from triglyph.cli import app
from triglyph.encoders.base import Expression
from triglyph.errors import ContractError, RecipeError
from triglyph.metrics.result import Result, read_results
from triglyph.report.transitive import gains, markdown, ratio
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.split import Fold, Split
from triglyph.training.loop import _Job
from triglyph.training.recipe import load_recipe
from triglyph.training.run import Run
from triglyph.workflows.experiment import judged
from triglyph.workflows.transitive import (
    ALL,
    ARMS,
    BETWEEN,
    BRIDGE,
    DIRECT,
    HELD_OUT,
    PAIRS,
    SHUFFLED,
    _Bench,
    _check_held_out,
    transitive,
)

TINY = [
    "model.dim=8",
    "model.towers.expression.options={dim: 8, hidden: 8, genes: 10}",
    "model.towers.text.options={dim: 8, depth: 1, heads: 1, vocabulary_size: 64}",
    "training.epochs=1",
    "training.batch_size=16",
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """P0 to P2 with images, of which two are tested, and two donors without."""
    folder = tmp_path_factory.mktemp("bridge")
    made = small.cohort(folder, patients=4)
    for d in range(2):
        made.add(small.draft(f"D{d}", patient=f"D{d}", seed=20 + d))
    fold = Fold(name="0", train=("S0", "S1", "D0", "D1"), test=("S2", "S3"))
    made.save_split(Split(name="patients", level="patient", folds=(fold,)))
    made.save_split(Split(name="no-donors", level="patient", folds=(fold.model_copy(update={"train": ("S0", "S1")}),)))
    return made.path


@pytest.fixture(scope="module")
def done(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prompts = tmp_path_factory.mktemp("words") / "held-out.yaml"
    prompts.write_text(yaml.safe_dump({"tumour": ["neoplasm"], "stroma": ["matrix"], "lymphoid": ["leucocytes"]}))
    out = prompts.parent / "out"
    return transitive(**asked(cohort), out=out, held_out_prompts=prompts)


@pytest.fixture
def bench(cohort: Path, tmp_path: Path) -> Any:
    """Of a fold and who is whom, before anything is trained."""

    def made(patients: dict[str, str] | None = None, **sides: tuple[str, ...]) -> _Bench:
        opened = Cohort.open(cohort)
        for section, patient in (patients or {}).items():
            opened.manifest.loc[section, "patient"] = patient
        fold = Fold(**{"name": "0", "train": ("S0", "S1", "D0", "D1"), "test": ("S2", "S3"), **sides})
        split = Split(name="made", level="within-patient", folds=(fold,))
        base = load_recipe("transitive", overrides=["data.split=made", *TINY])
        return _Bench(opened, Trial.of(opened, split), base, {"": None, HELD_OUT: None}, tmp_path)

    return made


@pytest.mark.parametrize(("mode", "said"), [("locked", "architecture-only"), ("scratch", "measured")])
def test_an_arm_with_an_untrained_locked_tower_says_so(mode: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SimpleNamespace(card=SimpleNamespace(weights="random"))
    towers = {"image": SimpleNamespace(weights=None)}
    locked = ["image"] if mode == "locked" else []
    model = SimpleNamespace(locked=locked, encoder=lambda _: encoder, config=SimpleNamespace(towers=towers))
    trained = SimpleNamespace(model=model, transductive=(), manifest={"training_patients": []})
    monkeypatch.setattr("triglyph.apply.trained.TrainedModel.open", lambda _: trained)
    bench = object.__new__(_Bench)
    bench.trial = Trial(train=(), test=(), patients={}, split="made")
    assert bench._subjects(DIRECT, 0, Path(), [DIRECT])[DIRECT].evidence == said


def test_a_donor_is_a_person_without_an_image_anywhere(bench: Any) -> None:
    for seen in ("S0", "S2", "S1"):
        sides = {"train": ("S0", "D0", "D1"), "val": ("S1", "D1")[:1] if seen == "S1" else ()}
        with pytest.raises(ContractError, match=rf"section D0 has no image, but is of patient P.*{seen}"):
            bench({"D0": f"P{seen[1]}"}, **sides)


def test_words_of_validated_patients_are_hidden_too(bench: Any) -> None:
    made = bench(train=("S0", "D0"), val=("S1", "D1"))
    assert made._recipe(BRIDGE, 0).data.without == {"text": ("S0", "S1")}
    assert made._recipe(ALL, 0).data.without == {}
    job = _Job(made._recipe(BRIDGE, 0), made.cohort.path, made.out, show=False)
    job.sections = lambda cohort: {"train": ("S0", "D0"), "val": ("S1", "D1")}  # type: ignore[method-assign]
    job.held_out = lambda cohort: {}  # type: ignore[method-assign]
    for side in ("train", "val"):
        rows = job.rows(made.cohort, side)
        assert not (rows.present["text"] & rows.present["image"]).any()
        assert rows.present["text"].any()
    assert "image-text" not in made._recipe(BRIDGE, 0).model.pairs
    with pytest.raises(ContractError, match="all validation sections are with an image"):
        bench(train=("S0", "D0", "D1"), val=("S1",))


def test_the_bridge_and_its_control_alone_have_the_bridge(bench: Any) -> None:
    made = bench()
    assert {arm for arm in ARMS if made._recipe(arm, 0).model.bridges} == {BRIDGE, SHUFFLED}
    assert made._recipe(BRIDGE, 0).model.bridges == made.base.model.bridges
    plain, bridge = (made._recipe(arm, 0).as_dict() for arm in (PAIRS, BRIDGE))
    assert {**plain["model"], "bridges": bridge["model"]["bridges"]} == bridge["model"]
    assert {k: plain[k] for k in ("seed", "data", "training")} == {k: bridge[k] for k in ("seed", "data", "training")}


def test_a_held_out_word_that_a_caption_has_is_refused(cohort: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "words.yaml"
    for words, said in (({"tumour": ["Stroma-tissue"]}, "'Stroma-tissue'"), ({"lymphoid": []}, "'lymphoid'")):
        prompts.write_text(yaml.safe_dump(words))
        with pytest.raises(ContractError, match=rf"{said} is in a caption of section S0"):
            transitive(**asked(cohort), out=tmp_path / "out", held_out_prompts=prompts)
    prompts.write_text(yaml.safe_dump({"tumour": ["tum", "sue sam"]}))
    sections = [Cohort.open(cohort)["S0"]]
    _check_held_out(Prompts.read(prompts), sections, where="parts of words")


def test_rows_are_read_again_for_the_same_question_alone(done: Path, cohort: Path) -> None:
    opened = Cohort.open(cohort)
    trial, folder = Trial.of(opened, opened.split("patients")), done / "cells/direct/seed-0/judged"

    def never() -> Any:
        raise AssertionError("opened")

    same: dict[str, Any] = {DIRECT: [Retrieval(), ZeroShot(calibrate=False)]}
    held_out = ZeroShot(prompts=Prompts.read(done.parent / "held-out.yaml"), calibrate=False)
    same[f"{DIRECT}: held-out words"] = [held_out]
    assert judged(folder, trial, same, never, seed=0) == read_results(folder)
    asks: list[tuple[Any, Any, Any, str]] = [
        (trial, {**same, DIRECT: [Retrieval()]}, 0, "direct, judged by"),
        (trial, same, 1, r"seed \(0 there, 1 now\)"),
        (replace(trial, identity="other/0"), same, 0, "split"),
        (replace(trial, test=trial.test[:1]), same, 0, "section S3"),
        (trial, {DIRECT: same[DIRECT]}, 0, "direct: held-out words, judged by"),
    ]
    for other, protocols, seed, said in asks:
        with pytest.raises(ContractError, match=f"something else was asked for: {said}"):
            judged(folder, other, protocols, never, seed=seed)


def test_a_patient_without_a_value_in_one_arm_is_left_out_of_all() -> None:
    def row(arm: str, patient: int, seed: int, value: float | None, metric: str = "recall@10") -> Result:
        return Result(
            task="retrieval", protocol="retrieval/1/x", metric=metric, value=value, chance=0.1, model=arm, split="s",
            role="method", level="patient", aggregation="per-patient", group=f"P{patient}", direction="image->text",
            seed=seed,
        )  # fmt: skip

    values = {(a, p, k): 0.2 + 0.1 * p + (0.1 if a == DIRECT else 0) for a in ARMS for p in range(8) for k in range(2)}
    rows = [row(*at, None if at == (BRIDGE, 3, 1) else value) for at, value in values.items()]
    told = gains(rows, arms=tuple(ARMS), reference=DIRECT)
    assert {g.left_out for g in told} == {1}
    assert all(g.patients == ("P0", "P1", "P2", "P4", "P5", "P6", "P7") for g in told)
    bridge = next(g for g in told if g.arm == BRIDGE)
    mean = np.mean([0.1 + 0.1 * p for p in (0, 1, 2, 4, 5, 6, 7)])
    assert bridge.share is not None
    assert bridge.share[0] == pytest.approx(mean / (mean + 0.1))
    text = markdown(told, reference=DIRECT)
    assert "7 held-out patients (1 more left out: undefined in some arm or seed), 2 seeds" in text
    assert "undefined in some arm for every patient: text→image recall@10, zero-shot AUROC" in text
    with pytest.raises(ContractError, match="no patient has a value in every arm and seed"):
        gains([r.model_copy(update={"value": None}) for r in rows], arms=tuple(ARMS), reference=DIRECT)


def test_rank_tokens_of_predicted_profiles_are_those_of_their_order() -> None:
    torch.manual_seed(0)
    encoder = cases.make("geneformer-12l-30m")
    profile = np.random.default_rng(0).gamma(0.5, 20.0, (3, len(cases.IDS)))
    trained = SimpleNamespace(
        model=SimpleNamespace(encoder=lambda modality: encoder), project=lambda modality, values, *_: values
    )
    genes, every = tuple(zip(cases.GENES, cases.IDS, strict=True)), np.ones(3, dtype=bool)
    through = ThroughGenes(trained, lambda s: (np.log1p(profile), every), lambda x: x, genes, ())  # type: ignore[arg-type]
    found, _ = through.embed(SimpleNamespace(id="S", centres_um=np.zeros((3, 2))), "image")
    whole = Expression(sp.csr_matrix(np.rint(profile * 1e6)), cases.GENES, cases.IDS, np.ones(len(genes), dtype=bool))
    with torch.no_grad():
        expected = encoder.encode(encoder.prepare(whole)).pooled.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def asked(cohort: Path) -> dict[str, Any]:
    return {"cohort": cohort, "split": "patients", "seeds": 1, "set": TINY, "quiet": True}


def test_the_bridge_sees_no_word_of_a_patient_and_no_image_of_a_donor(done: Path) -> None:
    rows = {arm: Run(done / "cells" / arm.replace(" ", "-") / "seed-0/run").manifest()["rows"] for arm in ARMS}
    for arm in (BRIDGE, PAIRS, SHUFFLED):
        assert "image+expression+text" not in rows[arm]
        assert rows[arm]["image+expression"] == 72
        assert rows[arm]["expression+text"] == rows[arm]["text"] > 0
    assert set(rows[DIRECT]) == {"rows", "left_out", "image", "text", "image+text"}
    assert set(rows[BETWEEN]) == {"rows", "left_out", "expression", "text", "expression+text"}
    assert rows[BETWEEN]["text"] == rows[BRIDGE]["text"] < rows[ALL]["text"]
    assert rows[ALL]["image+expression+text"] > 0


def test_every_arm_is_judged_between_image_and_text_alone(done: Path) -> None:
    rows = read_results(done)
    for arm in ARMS:
        mine = [r for r in rows if r.model == arm]
        assert {r.direction for r in mine if r.task == "retrieval"} == {"image->text", "text->image"}
        assert {r.direction for r in mine if r.task == "zero-shot"} == {"text->image"}
        assert {r.level for r in mine} == {"patient"}
        assert [r for r in rows if r.model == f"{arm}: held-out words"]
    for name in ("table.md", "figure.png", "transitive.csv"):
        assert (done / name).stat().st_size > 0


def test_predicted_profiles_are_embedded_as_expression_is(done: Path, cohort: Path) -> None:
    # Given the true profiles as predictions, images are embedded as the expression itself.
    from triglyph.apply.trained import TrainedModel
    from triglyph.metrics.expression import log1p_cp10k
    from triglyph.tissue.cohort import Cohort

    trained = TrainedModel.open(done / "cells/genes-between/seed-0/run")
    section = Cohort.open(cohort)["S2"]
    counts, symbols, ids, _ = section.expression()
    truth = log1p_cp10k(counts).toarray()
    every = np.ones(len(truth), dtype=bool)
    genes = tuple(zip(symbols, ids, strict=True))
    through = ThroughGenes(trained, lambda s: (truth, every), lambda x: x, genes, ())
    found, present = through.embed(section, "image")
    assert present.all()
    np.testing.assert_allclose(found, trained.embed(section, "expression")[0], atol=1e-4)


def test_a_bridge_without_donors_or_a_tower_is_refused(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="2 training sections with an image and 0 without"):
        transitive(**{**asked(cohort), "split": "no-donors"}, out=tmp_path / "a")
    none = ["model.bridges.image-text=null"]
    with pytest.raises(RecipeError, match="the recipe bridges nothing, and images and text are asked for"):
        transitive(**{**asked(cohort), "set": [*TINY, *none]}, out=tmp_path / "b")
    two = [*none, "model.towers.text=null", "model.pairs.expression-text=0"]
    with pytest.raises(RecipeError, match="needs an image, an expression and a text tower"):
        transitive(**{**asked(cohort), "set": [*TINY, *two]}, out=tmp_path / "b")


def test_the_share_of_a_gain_is_a_ratio_of_means_with_a_jackknife_interval() -> None:
    rng = np.random.default_rng(0)
    to = rng.normal(1.0, 0.2, 30)
    value, low, high = ratio(0.8 * to + rng.normal(0, 0.05, 30), to) or (0, 0, 0)
    assert low < 0.8 < high
    assert value == pytest.approx(0.8, abs=0.03)
    assert high - low < 0.1
    assert ratio(to, -to) is None


def test_the_verb_is_on_the_command_line() -> None:
    assert "transitive" in app


def test_images_dealt_at_test_know_nothing_of_their_place_and_are_the_same_images(done: Path, cohort: Path) -> None:
    from triglyph.apply.trained import TrainedModel
    from triglyph.tissue.cohort import Cohort
    from triglyph.workflows.transitive import _Dealt

    trained = TrainedModel.open(done / "cells/bridge/seed-0/run")
    section = Cohort.open(cohort)["S2"]
    values, _ = trained.embed(section, "image")
    dealt, _ = _Dealt(trained, 0).embed(section, "image")
    np.testing.assert_array_equal(np.sort(dealt, axis=0), np.sort(values, axis=0))
    assert (dealt != values).any(axis=1).mean() > 0.8
    np.testing.assert_array_equal(_Dealt(trained, 0).embed(section, "text")[0], trained.embed(section, "text")[0])
    names = {r.model for r in read_results(done)}
    assert {"bridge, dealt at test", "shuffled bridge, dealt at test"} <= names
    assert "bridge and genes between" in (done / "table.md").read_text()
