"""Published weights: the true architectures, loaded strictly through the code users run, or refused in plain words."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

import encoder_cases as cases
from triglyph.encoders import registry, weights
from triglyph.encoders.wordpiece import SPECIAL
from triglyph.errors import WeightsError
from triglyph.settings import settings

COUNTS = {
    "uni2-h": 681_394_176,
    "phikon-v2": 303_351_808,
    "conch": 87_829_248,
    "biobert": 108_310_272,
    "geneformer-12l-30m": 39_302_144,
    "stamp-release": 36_418_048,
}


def count(name: str) -> int:
    with torch.device("meta"):
        encoder = registry.build(name, random_init=True)
    return sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_the_architecture_has_the_published_number_of_parameters(name):
    assert count(name) == COUNTS[name] == registry.card(name).parameters


def test_every_hub_encoder_is_counted():
    assert {n for n in registry.names() if registry.card(n).weights == "hub"} == set(COUNTS)


def test_geneformer_has_the_size_of_the_published_file():
    # 158,467,410 bytes on the hub; it holds the language-modelling head too.
    from transformers import BertForMaskedLM

    encoder = cases.shared("geneformer-12l-30m")
    with torch.device("meta"):
        config = registry.build("geneformer-12l-30m", random_init=True).bert.config
        whole = BertForMaskedLM(config)
    assert encoder.bert.config.num_attention_heads == 8
    extra = 2048 * 8  # its positions were saved as a buffer of 64-bit integers
    size = 4 * sum(p.numel() for p in whole.parameters()) + extra
    assert abs(size - 158_467_410) < 120_000, "less than the names of the tensors"


# ---- files as they are published


def published(name: str, encoder, folder: Path) -> dict[str, torch.Tensor]:
    """Write an encoder's weights as its authors did; returns the tensors of the file."""
    state = {k: v.detach().clone() for k, v in encoder.tower().state_dict().items()}
    if name == "uni2-h":
        torch.save(state, folder / "pytorch_model.bin")
    elif name == "phikon-v2":
        renamed = {}
        for key, value in state.items():
            old = key.replace(".attention.o_proj.", ".attention.output.dense.")
            for part in ("query", "key", "value"):
                old = old.replace(f".attention.{part[0]}_proj.", f".attention.attention.{part}.")
            renamed[old] = value
        state = renamed
        save_file(state, folder / "model.safetensors")
        write_config(encoder, folder / "config.json")
    elif name == "conch":
        state = {f"visual.{k}": v for k, v in state.items()}
        state |= {
            "logit_scale": torch.ones(()),
            "text.token_embedding.weight": torch.ones(3, 4),
            "text_decoder.ln.bias": torch.ones(4),
            "visual.attn_pool_caption.query": torch.ones(256, 768),
            "visual.ln_caption.bias": torch.ones(768),
        }
        torch.save(state, folder / "pytorch_model.bin")
    elif name == "biobert":
        state = {old_bert_name(k): v for k, v in state.items()}
        state |= {"cls.predictions.bias": torch.ones(5), "bert.embeddings.position_ids": torch.arange(512)[None]}
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
        write_config(encoder, folder / "config.json")
        unused = [f"[unused{i}]" for i in range(28_996 - len(SPECIAL) - 4)]
        words = [*SPECIAL, *unused, "Tumour", "cells", "##s", "c"]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    elif name == "geneformer-12l-30m":
        state = {f"bert.{k}": v for k, v in state.items()} | {"cls.predictions.bias": torch.ones(25_426)}
        model, code = folder / "geneformer-12L-30M", folder / "geneformer"
        model.mkdir()
        code.mkdir()
        torch.save(state, model / "pytorch_model.bin")
        write_config(encoder, model / "config.json")
        assets = cases.fitted_assets(encoder)
        tokens = {"<pad>": 0, "<mask>": 1} | assets["tokens"]
        medians = {k: np.float64(v) for k, v in assets["scales"].items()}
        (code / "token_dictionary.pkl").write_bytes(pickle.dumps(tokens))
        (code / "gene_median_dictionary.pkl").write_bytes(pickle.dumps(medians, protocol=2))
    elif name == "stamp-release":
        state = {f"spot_backbone.{k}": v for k, v in state.items()} | {"logit_scale": torch.ones(())}
        torch.save({"state_dict": state}, folder / "pytorch_model.bin")
        write_vocabulary(folder)
    return state


def write_vocabulary(folder: Path) -> list[str]:
    """Stamp's: 20,310 genes that begin with those of the cases, and means of which some are NaN; returns the genes."""
    genes = [*cases.IDS, *(f"ENSG9{i:010d}" for i in range(20_310 - len(cases.IDS)))]
    anndata.AnnData(np.zeros((1, len(genes)), dtype=np.float32), var=pd.DataFrame(index=genes)).write_h5ad(
        folder / "model.h5ad"
    )
    means = 1 + np.random.default_rng(0).gamma(1.0, 2.0, len(genes))
    means[::97] = np.nan
    np.save(folder / "Visium_mean.npy", means)
    return genes


def old_bert_name(key: str) -> str:
    key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
    return f"bert.{key}"


def write_config(encoder, path: Path) -> None:
    config = {**encoder.architecture(), "torch_dtype": "float32", "model_type": "bert"}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", COUNTS)
def test_weights_saved_as_published_come_back_whole_through_the_real_loading_code(name, tmp_path):
    source = cases.make(name, seed=1, depth=2)
    published(name, source, tmp_path)
    loaded = registry.build(name, weights=tmp_path, **source.options())
    assert not loaded.training
    if name not in ("biobert", "stamp-release"):  # whose published vocabulary is larger than that of the cases
        assert loaded.fingerprint() == source.fingerprint()
    else:
        source.load_assets(loaded.assets())
        assert loaded.fingerprint() == source.fingerprint()
    given = cases.raw(source, 2)
    assert torch.equal(cases.pooled(loaded, given), cases.pooled(source, given))
    loaded.to("cpu", torch.float64)  # nothing was left on the meta device


def test_a_subfolder_or_the_file_itself_may_be_given_too(tmp_path):
    source = cases.make("geneformer-12l-30m")
    published("geneformer-12l-30m", source, tmp_path)
    for place in (tmp_path / "geneformer-12L-30M", tmp_path / "geneformer-12L-30M" / "pytorch_model.bin"):
        loaded = registry.build("geneformer-12l-30m", weights=place, **source.options())
        assert loaded.fingerprint() == source.fingerprint()


def test_half_precision_files_are_loaded_in_full_precision(tmp_path):
    source = cases.make("uni2-h")
    torch.save({k: v.half() for k, v in source.tower().state_dict().items()}, tmp_path / "pytorch_model.bin")
    loaded = registry.build("uni2-h", weights=tmp_path, depth=1)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_loaded_weights_do_not_follow_their_file(tmp_path):
    source = cases.make("conch")
    published("conch", source, tmp_path)
    loaded = registry.build("conch", weights=tmp_path, depth=1)
    before = loaded.fingerprint()
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(b"\x01" * path.stat().st_size)
    assert loaded.fingerprint() == before


# ---- what is refused, and how it is said


@pytest.fixture
def conch(tmp_path):
    """A folder of small CONCH weights, and what to put into it."""
    source = cases.make("conch")
    state = published("conch", source, tmp_path)

    def load(changed):
        torch.save(changed, tmp_path / "pytorch_model.bin")
        return registry.build("conch", weights=tmp_path, depth=1)

    return state, load


def test_missing_unexpected_and_mismatched_tensors_are_named(conch):
    state, load = conch
    with pytest.raises(WeightsError, match=r"1 missing: trunk\.norm\.bias"):
        load({k: v for k, v in state.items() if k != "visual.trunk.norm.bias"})
    with pytest.raises(WeightsError, match=r"1 unexpected: visual\.head\.weight"):
        load(state | {"visual.head.weight": torch.ones(2)})
    with pytest.raises(WeightsError, match=r"ln_contrast\.bias \(7,\) where \(512,\) is expected"):
        load(state | {"visual.ln_contrast.bias": torch.ones(7)})
    with pytest.raises(WeightsError, match="do not fit the architecture") as caught:
        load({k: v for k, v in state.items() if "blocks" not in k})
    assert "and 6 more" in str(caught.value)


def test_weights_of_a_deeper_model_are_not_cut_silently(tmp_path):
    published("conch", cases.make("conch", depth=2), tmp_path)
    with pytest.raises(WeightsError, match=r"unexpected: visual\.trunk\.blocks\.1"):
        registry.build("conch", weights=tmp_path, depth=1)


def test_a_head_count_that_shapes_cannot_show_is_caught_by_the_config(tmp_path):
    source = cases.make("geneformer-12l-30m")
    published("geneformer-12l-30m", source, tmp_path)
    config = tmp_path / "geneformer-12L-30M" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_attention_heads": 4}))
    with pytest.raises(WeightsError, match="num_attention_heads is 4, not 8"):
        registry.build("geneformer-12l-30m", weights=tmp_path, **source.options())


def test_a_file_that_would_execute_code_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"state_dict": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="more than tensors"):
        registry.build("uni2-h", weights=tmp_path, depth=1)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_damaged_file_is_an_error_that_names_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\x03\x04 not really" * 9)
    with pytest.raises(WeightsError, match=f"(?s)not readable.*{name}"):
        registry.build("uni2-h", weights=tmp_path, depth=1)
    torch.save([torch.ones(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="not a dictionary of tensors"):
        registry.build("uni2-h", weights=tmp_path / "pytorch_model.bin", depth=1)


def test_a_truncated_file_is_an_error_that_names_it(tmp_path):
    published("conch", cases.make("conch"), tmp_path)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match="not readable"):
        registry.build("conch", weights=tmp_path, depth=1)


def test_a_folder_without_the_files_says_which(tmp_path):
    with pytest.raises(WeightsError, match=r"uni2-h needs pytorch_model\.bin or model\.safetensors"):
        registry.build("uni2-h", weights=tmp_path)
    with pytest.raises(WeightsError, match=r"biobert needs vocab\.txt"):
        registry.build("biobert", weights=tmp_path, depth=1)
    with pytest.raises(WeightsError, match="no weights of uni2-h there"):
        registry.build("uni2-h", weights=tmp_path / "nowhere", depth=1)


def test_the_dictionaries_of_another_geneformer_are_refused(tmp_path):
    source = cases.make("geneformer-12l-30m")
    published("geneformer-12l-30m", source, tmp_path)
    tokens = {g: i + 25_400 for i, g in enumerate(cases.IDS)}
    (tmp_path / "geneformer" / "token_dictionary.pkl").write_bytes(pickle.dumps(tokens))
    with pytest.raises(WeightsError, match="token ids up to 25439"):
        registry.build("geneformer-12l-30m", weights=tmp_path, **source.options())


# ---- the hub


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)


def test_offline_says_at_once_what_to_do(no_cache, monkeypatch):
    monkeypatch.setattr(settings, "offline", True)
    start = time.perf_counter()
    with pytest.raises(WeightsError, match="set to stay offline") as caught:
        registry.build("uni2-h", depth=1)
    assert time.perf_counter() - start < 60, "no retries"
    assert "pass a folder" in caught.value.mend


def test_an_unreachable_hub_says_at_once_what_to_do(no_cache, monkeypatch):
    monkeypatch.setattr(settings, "offline", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_reachable", lambda _: False)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("tried all the same"))
    with pytest.raises(WeightsError, match="hub cannot be reached") as caught:
        registry.build("biobert", depth=1)
    assert "093e9f52838b" in caught.value.where
    assert "\n" not in caught.value.mend


def test_a_port_where_nothing_answers_is_not_reachable(monkeypatch):
    monkeypatch.setattr("urllib.request.getproxies", dict)
    assert not weights._reachable("http://127.0.0.1:9")
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"http": "http://127.0.0.1:9"})
    assert not weights._reachable("http://example.invalid")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("GatedRepoError", "hf auth login"),
        ("RepositoryNotFoundError", "does not give weights"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("OSError", "cannot be reached"),
    ],
)
def test_what_the_hub_answers_becomes_one_line_of_advice(error, said, no_cache, monkeypatch):
    from huggingface_hub import errors

    monkeypatch.setattr(settings, "offline", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_reachable", lambda _: True)
    kind = getattr(errors, error, OSError)

    def refuse(*_, **__):
        raise kind.__new__(kind)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(WeightsError, match=said) as caught:
        registry.build("uni2-h", depth=1)
    assert "\n" not in caught.value.mend
    assert "MahmoodLab/UNI2-h" in caught.value.where


def test_the_pinned_revision_is_what_is_fetched(no_cache, monkeypatch):
    source = registry.card("biobert")
    asked = []

    def remember(repository, filename, *, revision, etag_timeout):
        asked.append((repository, filename, revision))
        raise OSError

    monkeypatch.setattr(settings, "offline", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "_reachable", lambda _: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", remember)
    with pytest.raises(WeightsError):
        registry.build("biobert", depth=1)
    assert source.revision
    assert asked == [("dmis-lab/biobert-v1.1", "config.json", source.revision)]


def test_files_in_the_cache_are_used_without_asking_the_hub(tmp_path, monkeypatch):
    source = cases.make("conch")
    published("conch", source, tmp_path)
    monkeypatch.setattr(settings, "offline", True)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda repository, filename, **_: str(tmp_path / filename)
    )
    assert registry.build("conch", depth=1).fingerprint() == source.fingerprint()
    assert registry.availability("conch") == "cached"


@pytest.mark.slow
def test_the_whole_of_uni2h_is_saved_and_loaded(tmp_path):
    """681 M parameters: about 6 GB of memory and 3 GB of disk, a minute."""
    torch.manual_seed(0)
    source = registry.build("uni2-h", random_init=True)
    torch.save(source.tower().state_dict(), tmp_path / "pytorch_model.bin")
    fingerprint = source.fingerprint()
    given = cases.raw(source, 1)
    expected = cases.pooled(source, given)
    del source
    loaded = registry.build("uni2-h", weights=tmp_path)
    assert sum(p.numel() for p in loaded.parameters()) == 681_394_176
    assert loaded.fingerprint() == fingerprint
    assert torch.equal(cases.pooled(loaded, given), expected)
