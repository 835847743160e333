"""SpatialWhisperer's published checkpoint becomes a release of ours, or is refused in one line."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel

import encoder_cases as cases
import published_checkpoint as published
import triglyph as tg
from triglyph.apply.checkpoints.plain_pickle import Global, Record, Refused, read_pickle
from triglyph.apply.checkpoints.spatialwhisperer import CONFIGS, convert_spatialwhisperer
from triglyph.apply.checkpoints.torch_file import TorchFile
from triglyph.apply.trained import TrainedModel
from triglyph.cli import main
from triglyph.encoders.biobert import BioBert
from triglyph.encoders.wordpiece import SPECIAL
from triglyph.errors import ContractError, GeneError, RecipeError, ScaleError, WeightsError
from triglyph.settings import settings
from triglyph.training.recipe import load_recipe

NARROW = {"dim": 16, "hidden": 24, "inner": 32, "vocabulary": 40, "positions": 128}
DEPTHS = ("image.options.depth=1", "expression.options.depth=2", "expression.options.max_tokens=16")


# ---- a file of the same 236 names, narrower


@pytest.fixture(scope="module")
def narrow() -> Iterator[None]:
    """BioBERT of twelve layers, 24 wide; `tests/test_spatialwhisperer.py` converts the true widths."""
    whole = BioBert.architecture
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "max_position_embeddings": 128}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BioBert, "architecture", lambda self: {**whole(self), **sizes})
        patch.setattr(BioBert, "card", BioBert.card.model_copy(update={"dim": 24}))
        yield


class Made:
    """A file, what it was made of, and what it became."""

    def __init__(self, folder: Path) -> None:
        self.state = published.state_dict(**NARROW)
        self.file = published.write(folder / "spatialwhisperer.ckpt", self.state)
        self.vocabulary = folder / "vocab.txt"
        self.vocabulary.write_text("\n".join([*SPECIAL, *"abcdefghijklmnopqrstuvwxyz", "T", "cells", *"123456", "."]))
        self.recipe = folder / "narrow.yaml"
        overrides = ["model.dim=16", *(f"model.towers.{o}" for o in DEPTHS)]
        load_recipe("spatialwhisperer", overrides=overrides).write(self.recipe)
        self.out = folder / "converted"
        self.command = ["--vocabulary", str(self.vocabulary), "--recipe", str(self.recipe)]

    def convert(self, file: Path, out: Path) -> dict[str, Any]:
        return convert_spatialwhisperer(file, out, vocabulary=self.vocabulary, recipe=self.recipe)


@pytest.fixture(scope="module")
def made(narrow: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    given = Made(tmp_path_factory.mktemp("published"))
    assert main(["convert", str(given.file), "--out", str(given.out), *given.command]) == 0
    return given


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the file does not hold: small stand-ins for UNI2-h and Geneformer, as they are published."""
    from test_encoders_weights import published as write_published

    found = {}
    for modality, name in (("image", "uni2-h"), ("expression", "geneformer-12l-30m")):
        found[modality] = tmp_path_factory.mktemp(name)
        write_published(name, cases.make(name), found[modality])
    return found


@pytest.fixture(scope="module")
def loaded(made: Made, weights: dict[str, Path]) -> Any:
    return tg.load_spatialwhisperer_model(made.out, weights=weights, device="cpu")


def their_head(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """LN(W2 ReLU(BN(W1 x)) + b2 + Ws x + bs), with the tensors of the file."""
    t = {k.removeprefix(f"model.discriminator.{name}_block."): v for k, v in state.items()}
    hidden = (x @ t["feature_nonlinear.0.weight"].T - t["feature_nonlinear.1.running_mean"]) / torch.sqrt(
        t["feature_nonlinear.1.running_var"] + 1e-5
    )
    hidden = (hidden * t["feature_nonlinear.1.weight"] + t["feature_nonlinear.1.bias"]).relu()
    out = hidden @ t["feature_nonlinear.3.weight"].T + t["feature_nonlinear.3.bias"]
    out = out + x @ t["feature_shortcut.weight"].T + t["feature_shortcut.bias"]
    out = (out - out.mean(1, keepdim=True)) / torch.sqrt(out.var(1, keepdim=True, unbiased=False) + 1e-5)
    return out * t["feature_block_ln.weight"] + t["feature_block_ln.bias"]


def their_text(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The pooler's output of transformers' own BERT with the tensors of the file."""
    sizes = {"vocab_size": 40, "hidden_size": 24, "intermediate_size": 32, "max_position_embeddings": 128}
    bert = BertModel(BertConfig(**sizes, num_attention_heads=12)).eval()
    prefix = "model.text_model."
    bert.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return bert(input_ids=ids).pooler_output


def test_every_tensor_of_the_file_arrives_and_computes_what_it_computed(made: Made, loaded: Any) -> None:
    tensors = load_file(made.out / "model" / "model.safetensors")
    assert len(made.state) == len(tensors) == 236
    assert sum(t.double().abs().sum() for t in tensors.values()) == pytest.approx(
        float(sum(t.double().abs().sum() for t in made.state.values()))
    )
    model, tokenizer, transcriptome_processor, image_processor = loaded
    features = {
        "text": tg.get_text_features(model, tokenizer(["T cells"]), normalized=False),
        "transcriptome": tg.get_transcriptome_features(
            model, transcriptome_processor(cases.expression(3)), normalized=False
        ),
        "image": tg.get_image_features(
            model, image_processor(cases.raw(model.encoder("image")), mpp=0.5), normalized=False
        ),
    }
    for name, (pooled, projected) in features.items():
        assert projected.shape == (len(pooled), 16)
        torch.testing.assert_close(projected, their_head(made.state, name, pooled), msg=lambda m, n=name: f"{n}: {m}")
    ids = tokenizer(["T cells"])["ids"]
    torch.testing.assert_close(features["text"][0], their_text(made.state, ids))
    assert model.logit_scale() == pytest.approx(float(made.state["model.discriminator.temperature"].exp()))


def test_a_converted_file_says_what_it_is_and_opens_as_a_model(made: Made, weights: dict[str, Path]) -> None:
    manifest = json.loads((made.out / "manifest.json").read_text())
    assert manifest["source"]["epoch"] == 3
    assert manifest["source"]["global_step"] == 14_624
    assert manifest["card"]["licence"] == "CC-BY-NC-4.0"
    assert [m for m, t in manifest["encoders"].items() if t["fingerprint"] is None] == ["image", "expression"]
    kept = manifest["hyper_parameters"]["model_config"]
    assert kept["class"] == "cellwhisperer.jointemb.config.TranscriptomeTextDualEncoderConfig"
    assert kept["text_config"]["torch_dtype"] == "torch.float32"
    assert manifest["hyper_parameters"]["loss_config"]["sample_weighting"] is False
    towers = json.loads((made.out / "model" / "config.json").read_text())["towers"]
    assert {m: (t["encoder"], t["saved"]) for m, t in towers.items()} == {
        "image": ("uni2-h", False),
        "expression": ("geneformer-12l-30m", False),
        "text": ("biobert", True),
    }
    assert towers["image"]["fingerprint"] is None
    assert towers["image"]["card"]["hub_id"] == "MahmoodLab/UNI2-h"
    model = TrainedModel.open(made.out, weights=weights)
    assert model.embed_text(["T cells", "cells"]).shape == (2, 16)
    assert model.training_sections == ()


# ---- the paper's functions


def test_normalized_is_asked_for_and_changes_length_alone(loaded: Any) -> None:
    inputs = loaded.tokenizer(["T cells", "plasma cells"])
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'normalized'"):
        tg.get_text_features(loaded.model, inputs)
    pooled, long = tg.get_text_features(loaded.model, inputs, normalized=False)
    same, short = tg.get_text_features(loaded.model, inputs, normalized=True)
    assert torch.equal(pooled, same)
    torch.testing.assert_close(short, long / long.norm(dim=1, keepdim=True))
    assert not long.requires_grad
    torch.testing.assert_close(short, loaded.model.embed("text", pooled))


def test_profiles_are_one_whatever_they_come_in(loaded: Any) -> None:
    given = cases.expression(3)
    dense = given.counts.toarray()
    table = ad.AnnData(dense.astype(np.float32), var=pd.DataFrame({"ensembl_id": cases.IDS}, index=list(cases.GENES)))
    cells = [{gene: int(n) for gene, n in zip(cases.IDS, row, strict=True) if n} for row in dense]
    wanted = loaded.transcriptome_processor(given)
    for profiles in (table, cells):
        for name, tensor in loaded.transcriptome_processor(profiles).items():
            assert torch.equal(tensor, wanted[name])
    with pytest.raises(ContractError, match="not a whole number"):
        loaded.transcriptome_processor([{cases.IDS[0]: 1.5}])
    with pytest.raises(GeneError, match="knows none of the 1 genes"):
        loaded.transcriptome_processor([{"Cd3e": 4}])
    with pytest.raises(ContractError, match="profile 1 has no counts"):
        loaded.transcriptome_processor([cells[0], {}])


def test_patches_say_their_scale(loaded: Any) -> None:
    patches = cases.raw(loaded.model.encoder("image"), 2)
    one = loaded.image_processor(Image.fromarray(patches[0]), mpp=0.5)["pixels"]
    assert torch.equal(one, loaded.image_processor([patches[0]], mpp=None)["pixels"])
    assert torch.equal(one, loaded.image_processor(patches, mpp=0.499)["pixels"][:1])
    with pytest.raises(ScaleError, match="0.25 µm per pixel, where uni2-h reads 0.5"):
        loaded.image_processor(patches, mpp=0.25)
    with pytest.raises(TypeError, match="mpp"):
        loaded.image_processor(patches)
    with pytest.raises(ContractError, match="several shapes"):
        loaded.image_processor([patches[0], patches[1][:100]], mpp=0.5)


def test_what_is_no_converted_model_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not converted") as caught:
        tg.load_spatialwhisperer_model(made.file)
    assert "triglyph convert" in caught.value.mend
    monkeypatch.setattr(settings, "cache_dir", tmp_path)
    monkeypatch.setattr(settings, "offline", True)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(WeightsError, match="weights of spatialwhisperer are not on this machine"):
        tg.load_spatialwhisperer_model()


# ---- refused, in one line, with nothing left behind


def refused(made: Made, file: Path, said: str) -> None:
    out = file.with_name("out")
    before = set(file.parent.iterdir())
    with pytest.raises(WeightsError) as caught:
        made.convert(file, out)
    assert re.search(said, caught.value.what), caught.value.what
    assert caught.value.what.isprintable(), "one line"
    assert len(caught.value.what) < 1000
    assert {p.name for p in set(file.parent.iterdir()) - before} <= {".out.lock"}


TEXT = "model.text_model.encoder.layer.3.output.dense.weight"
HEAD = "model.discriminator.image_block.feature_shortcut.weight"
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "missing": (lambda s: s.pop(TEXT), f"1 missing: {TEXT}$"),
    "renamed": (lambda s: s.update({"model.text.w": s.pop(TEXT)}), f"1 missing: {TEXT}; 1 left over: model.text.w$"),
    "left over": (lambda s: s.update({"\x1b[31m\n": torch.ones(1)}), r"1 left over: \\x1b\[31m\\n$"),
    "a frozen tower": (lambda s: s.update({"model.image_model.x": torch.ones(1)}), "left over: model.image_model.x"),
    "of another width": (lambda s: s.update({HEAD: torch.ones(16, 7)}), r"\(16, 7\) where float32 \(16, 1536\) is"),
    "of another type": (lambda s: s.update({HEAD: s[HEAD].half()}), "float16"),
    "turned": (lambda s: s.update({HEAD: torch.ones(1536, 16).T}), "does not lie in its storage"),
    "spread out": (lambda s: s.update({HEAD: torch.ones(1).expand(16, 1536)}), "does not lie in its storage"),
    "not finite": (lambda s: s[TEXT].fill_(torch.inf), f"{TEXT} holds values that are not finite"),
    "no tensor": (lambda s: s.update({HEAD: "words"}), "1 entries of its state_dict are no tensors"),
}


@pytest.mark.parametrize("change", TENSORS)
def test_a_file_with_other_tensors_is_refused(change: str, made: Made, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in made.state.items()}
    alter, said = TENSORS[change]
    alter(state)
    refused(made, published.write(tmp_path / "f.ckpt", state), said)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"transcriptome__emb_layer": 0}, "emb_layer is 0, not -1"),
        ({"text__num_attention_heads": 8}, "num_attention_heads is 8, not 12"),
        ({"own__locking_mode": "LLL"}, "locking_mode is 'LLL', not 'LUL'"),
        ({"own__projection_dim": 1024}, "projection_dim is 1024, not 16"),
        ({"image__cell_level_model": True}, "cell_level_model is True, not False"),
        ({"text__hidden_act": "\x1b[31m\n"}, "hidden_act is 'a str', not 'gelu'"),
        ({"own__locking_mode": ...}, "locking_mode is missing$"),
        ({"transcriptome__emb_layer": ...}, "emb_layer is missing$"),
        ({"image__embed_dim": ..., "image__context_model": ...}, "embed_dim is missing; context_model is missing$"),
        ({"text__num_attention_heads": ..., "text__vocab_size": ...}, "architecture: num_attention_heads is missing$"),
        ({"own__more": torch.ones(3)}, "hyper-parameters hold a StoredTensor"),
    ],
)
def test_a_file_of_another_configuration_is_refused(change: Any, said: str, made: Made, tmp_path: Path) -> None:
    refused(made, published.write(tmp_path / "f.ckpt", made.state, **change), said)


def rewritten(source: Path, target: Path, **changes: Any) -> Path:
    """The zip once more, with entries changed: name -> bytes, or None to leave it out."""
    compression = changes.pop("compression", zipfile.ZIP_STORED)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            data = changes.get(entry.filename.split("/", 1)[1], old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)
        for name, data in changes.get("more", {}).items():
            new.writestr(name, data)
    return target


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_damaged_and_dressed_up_files_are_refused(made: Made, tmp_path: Path) -> None:
    whole = made.file.read_bytes()
    file = tmp_path / "f.ckpt"
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        refused(made, file, "not a file of torch.save, or cut short")
    refused(made, tmp_path / "nowhere.ckpt", "there is no such file")
    torch.save([1, 2], file)
    refused(made, file, "not a Lightning checkpoint")
    torch.save(made.state, file, _use_new_zipfile_serialization=False)
    refused(made, file, "not a file of torch.save")
    refused(made, rewritten(made.file, file, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted")
    refused(made, rewritten(made.file, file, **{"data/7": None}), "the storage of .* is missing")
    refused(made, rewritten(made.file, file, **{"data/7": b"short"}), "has 5 bytes, not")
    refused(made, rewritten(made.file, file, byteorder=b"big"), "other byte order")
    with zipfile.ZipFile(made.file) as archive:
        pickled = archive.read("spatialwhisperer/data.pkl")
        entry = archive.getinfo("spatialwhisperer/data/0")
    refused(made, rewritten(made.file, file, more={"other/data.pkl": pickled}), "one data.pkl")
    refused(made, rewritten(made.file, file, more={"spatialwhisperer/data/0": b"x"}), "no name twice")
    refused(made, rewritten(made.file, file, **{"data.pkl": b"\x80\x02" + b" " * 2**24}), "is the most")
    flipped = bytearray(whole)
    flipped[entry.header_offset + entry.file_size // 2 + 200] ^= 1
    file.write_bytes(flipped)
    refused(made, file, "the bytes of .* are damaged")
    # Nothing is written outside of --out, whatever names the archive holds.
    rewritten(made.file, file, more={"../../escaped": b"x", "/tmp/escaped": b"x"})
    made.convert(file, tmp_path / "a" / "b" / "out")
    assert not list(tmp_path.rglob("escaped"))


class Bomb:
    """Calls something when it is unpickled."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.arguments


def test_a_poisoned_checkpoint_is_refused_by_name_and_executes_nothing(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentinel = tmp_path / "exploded"
    file = tmp_path / "f.ckpt"
    for bomb, name in (
        (Bomb(os.system, f"touch {sentinel}"), f"{os.system.__module__}.system"),
        (Bomb(Path.touch, sentinel), r"\w+\.\w+"),  # an object before its method: what comes first is refused
        (Bomb(eval, f"open({str(sentinel)!r}, 'w')"), "__builtin__.eval"),
        (Bomb(torch.load, sentinel), r"\w+(\.\w+)+"),
    ):
        with published.their_modules():
            torch.save({**published.checkpoint(made.state), "callbacks": {"x": bomb}}, file)
        refused(made, file, f"names {name}, which is neither a tensor nor a configuration")
    assert not sentinel.exists()
    assert main(["convert", str(file), "--out", str(tmp_path / "out"), *made.command]) == 2
    assert "not opened: the pickle names torch.serialization.load" in capsys.readouterr().err


STORAGE = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
CPU = b"X\x03\x00\x00\x00cpu"
CONFIG = b"ccellwhisperer.jointemb.config\nFooConfig\n"
POISONED = {
    "a call of a configuration class": CONFIG + b"(U\x02lstR.",
    "an instance made with arguments": CONFIG + b"K\x01\x85\x81.",
    "a call of a configuration class without arguments": CONFIG + b")R.",
    "attributes of a class": CONFIG + b"}b.",
    "attributes of a function": b"ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "attributes of a dictionary": b"}}X\x07\x00\x00\x00__len__K\x01sb.",
    "a class with slots": CONFIG + b")\x81N}X\x01\x00\x00\x00aK\x01s\x86b.",
    "a storage by path": b"(" + STORAGE + b"X\x09\x00\x00\x00../../etc" + CPU + b"K\x01tQ.",
    "a storage of negative size": b"(" + STORAGE + b"X\x01\x00\x00\x000" + CPU + b"J\xff\xff\xff\xfftQ.",
    "an instance by INST": b"(ios\nsystem\n.",
    "an instance by OBJ": b"(cos\nsystem\no.",
    "a registered extension": b"\x82\x01.",
    "a name by STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93.",
    "a name with a dot": b"ccellwhisperer.jointemb.config\nFooConfig.__init__\n.",
    "a module that only begins alike": b"ccellwhispererx.jointemb\nFooConfig\n.",
    "a class that is no configuration": b"ccellwhisperer.jointemb.model\nModel\n.",
    "a name of torch": b"ctorch\nload\n.",
    "a list that is filled as a dictionary": b"]K\x01K\x02s.",
    "a dictionary that is filled as a list": b"}K\x01a.",
    "a key that is a list": b"}]K\x02s.",
    "a hole in the memo": b"h\x07.",
    "an empty stack": b"0.",
    "nothing at all": b"",
    "no end": b"}",
    "bytes after the end": b"}.cos\nsystem\n(U\x04true\x85R.",
    "a protocol of today": pickle.dumps({}, protocol=5),
}


@pytest.mark.parametrize("name", POISONED)
def test_the_reader_of_pickles_builds_nothing_but_data(name: str) -> None:
    with pytest.raises(Refused) as caught:
        read_pickle(POISONED[name], records=CONFIGS)
    assert str(caught.value).isprintable()


def test_the_reader_of_pickles_agrees_with_pickle_on_data() -> None:
    value = {"a": [1, -1, 2**40, 1.5, None, True, "ü", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], "b": {3: {"c": []}}}
    value["again"] = value["a"]
    found = read_pickle(pickle.dumps(value, protocol=2), records=CONFIGS)
    assert found == value
    assert found["again"] is found["a"]
    with published.their_modules() as classes:
        data = pickle.dumps(classes["UNIConfig"](embed_dim=3), protocol=2)
    assert read_pickle(data, records=CONFIGS) == Record(
        Global("cellwhisperer.jointemb.uni_model", "UNIConfig"), {"embed_dim": 3}
    )


def test_no_bytes_whatever_make_the_reader_do_anything_but_read_or_refuse(made: Made) -> None:
    with zipfile.ZipFile(made.file) as archive:
        whole = archive.read("spatialwhisperer/data.pkl")
    draw = random.Random(0)
    outcomes = set()
    for _ in range(150):
        start = draw.randrange(len(whole) - 400)
        # Ends of the file, where hyper-parameters are, or any stretch of it; a few bytes at random.
        data = bytearray(whole[-draw.randrange(50, 2000) :] if draw.random() < 0.5 else whole[: start + 400])
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            read_pickle(bytes(data), records=CONFIGS)
            outcomes.add("read")
        except Refused:
            outcomes.add("refused")
    assert "refused" in outcomes


def test_hyper_parameters_without_end_are_refused(made: Made, tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    doubled: Any = "x" * 100
    for _ in range(14):
        doubled = [doubled, doubled]
    for endless in (loop, doubled):
        refused(made, published.write(tmp_path / "f.ckpt", made.state, own__more=endless), "without end")


def test_a_tensor_may_lie_inside_a_larger_storage(tmp_path: Path) -> None:
    whole = torch.arange(10.0)
    torch.save({"a": whole[2:8].reshape(2, 3), "b": whole}, tmp_path / "f")
    with TorchFile(tmp_path / "f", records=CONFIGS) as file:
        assert torch.equal(file.tensor(file.content["a"], name="a"), whole[2:8].reshape(2, 3))
        assert torch.equal(file.tensor(file.content["b"], name="b"), whole)
        beyond = file.content["a"]._replace(offset=5)
        with pytest.raises(WeightsError, match="does not lie in its storage"):
            file.tensor(beyond, name="a")


def test_the_vocabulary_is_asked_for_before_anything_is_written(made: Made, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=re.escape("biobert needs vocab.txt")):
        convert_spatialwhisperer(made.file, tmp_path / "out", vocabulary=tmp_path, recipe=made.recipe)
    assert not (tmp_path / "out").exists()
