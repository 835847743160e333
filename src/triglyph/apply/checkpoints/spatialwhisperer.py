"""SpatialWhisperer's published checkpoint (ICML 2026) as a release of ours.

The file is of Lightning: a `state_dict` of 236 tensors (the trained BioBERT, three heads, one temperature) and
`hyper_parameters`, instances of configuration classes of the authors' package and of transformers. Tensors are mapped
by `PREFIXES`, each to one of our model's; one that is missing, left over or of another shape or type ends the
conversion before a byte of it is read. The configurations become plain values: they are compared with the architecture
that is built here, and kept in the manifest. UNI2-h and Geneformer are not in the file and are only named.

    OUT/model/          the release: safetensors and JSON
    OUT/manifest.json   where it is from, what it was trained on, its licence, its hyper-parameters
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import triglyph
from triglyph.apply.checkpoints.plain_pickle import Global, Record, Storage, StoredTensor
from triglyph.apply.checkpoints.torch_file import TorchFile
from triglyph.encoders import registry
from triglyph.encoders.base import HubCard
from triglyph.encoders.biobert import BioBert
from triglyph.encoders.weights import check_config, find_file
from triglyph.errors import RecipeError, WeightsError
from triglyph.models.alignment import Alignment, AlignmentConfig
from triglyph.storage import atomic_folder, file_digest, write_json
from triglyph.training.recipe import load_recipe
from triglyph.training.release import save_model

if TYPE_CHECKING:
    from torch import Tensor

CARD = HubCard(
    name="spatialwhisperer",
    summary="Image, expression and text in one space; image-expression and expression-text were trained, seed 0.",
    licence="CC-BY-NC-4.0",
    commercial_use=False,
    citation="Schaefer et al., Transitive Representation Learning Enhances Histopathology Annotation, ICML 2026",
    homepage="https://huggingface.co/Good-Lab/spatialwhisperer",
    hub_id="Good-Lab/spatialwhisperer",
)
FILE = "spatialwhisperer.ckpt"
TRAINED_ON = ("HEST-1k", "CELLxGENE Census", "ARCHS4")
"""Datasets of the published model (of the first its 384 human Visium sections), which the audit looks for. Its
validation rows are neighbours of its training rows."""

PREFIXES = {
    "encoders.text.bert.": "model.text_model.",
    **{
        f"heads.{modality}.{layer}": f"model.discriminator.{block}_block.{theirs}"
        for modality, block in (("image", "image"), ("expression", "transcriptome"), ("text", "text"))
        for layer, theirs in (
            ("inner.", "feature_nonlinear.0."),
            ("batch_norm.", "feature_nonlinear.1."),
            ("outer.", "feature_nonlinear.3."),
            ("skip.", "feature_shortcut."),
            ("norm.", "feature_block_ln."),
        )
    },
    "temperature.log_scale": "model.discriminator.temperature",
}
"""Our names -> theirs, from the beginning of a name to where the two agree."""

CONFIGS = re.compile(r"(cellwhisperer|spatialwhisperer|transformers)(\.\w+)+\.[A-Z]\w*Config", re.ASCII)
"""Classes that become records: configurations of the authors' package, under both its names, and of transformers."""
UNSEEN = frozenset({"num_attention_heads", "hidden_act", "layer_norm_eps"})
"""Fields of BERT that leave no trace in the shapes of tensors; the others may be left out."""
_MOST, _DEEPEST = 2**20, 20
"""Values and characters of the hyper-parameters, and levels: a pickle may hold one list many times, or in itself."""
_SHOWN = 4


def convert_spatialwhisperer(
    path: Path, out: Path, *, vocabulary: Path | None = None, recipe: str | Path = "spatialwhisperer"
) -> dict[str, Any]:
    """Turn the Lightning file into a release, whole or not at all.

    Parameters
    ----------
    path
        `spatialwhisperer.ckpt`. Nothing in it is executed.
    out
        New folder, which `TrainedModel.open` and `load_spatialwhisperer_model` read.
    vocabulary
        BioBERT's `vocab.txt` or its folder, which the file does not hold; None takes it from the hub or its cache.
    recipe
        The model it is: name or file. Checkpoints of the authors' code with a space of another width need one.

    Returns
    -------
    The manifest.

    Raises
    ------
    WeightsError
        The file is damaged, is of another model, or holds anything but tensors and configurations; or BioBERT's
        vocabulary is nowhere.
    StorageError
        `out` exists, or cannot be written.
    """
    path, config = Path(path), load_recipe(recipe).model
    if not isinstance(config, AlignmentConfig):
        raise RecipeError("not a recipe of the method alignment", where=recipe, mend="give that of the checkpoint")
    with TorchFile(path, records=CONFIGS) as file, atomic_folder(Path(out)) as partial:
        state, hyper_parameters = _parts(file.content, where=path)
        model = _empty_model(config)
        _check_architecture(hyper_parameters, model, where=path)
        matched = _matched(state, model, where=path)
        # What is cheap to find missing is looked for before half a gigabyte is read.
        text = model.encoder("text")
        assert isinstance(text, BioBert)
        text.read_extra({"vocabulary": find_file(text.card, text.extra_files["vocabulary"], weights=vocabulary)})
        model.load_state_dict(_read(file, matched, model), strict=False, assign=True)
        manifest = _manifest(file.content, hyper_parameters, model, path)
        save_model(model, partial / "model")
        write_json(partial / "manifest.json", manifest)
    return manifest


def _empty_model(config: AlignmentConfig) -> Alignment:
    """The architecture without a number in it."""
    with torch.device("meta"):
        towers = config.towers.items()
        return Alignment(config, {m: registry.build(t.encoder, random_init=True, **t.options) for m, t in towers})


# ---- what the file says


def _parts(content: Any, *, where: Path) -> tuple[dict[str, StoredTensor], Mapping[str, Any]]:
    parts = content if isinstance(content, dict) else {}
    state, hyper_parameters = parts.get("state_dict"), parts.get("hyper_parameters")
    if not isinstance(state, dict) or not isinstance(hyper_parameters, dict):
        raise _wrong("not a Lightning checkpoint: it has no state_dict and hyper_parameters", where)
    if strange := [name for name, t in state.items() if not (isinstance(name, str) and isinstance(t, StoredTensor))]:
        raise _wrong(f"{len(strange)} entries of its state_dict are no tensors: {_listed(strange)}", where)
    return state, hyper_parameters


def _check_architecture(hyper_parameters: Mapping[str, Any], model: Alignment, *, where: Path) -> None:
    """Compare the configurations with what is built here: shapes of tensors do not tell pooling or activations."""
    found = _fields(hyper_parameters.get("model_config"), "TranscriptomeTextDualEncoderConfig", where=where)
    text = model.encoder("text")
    assert isinstance(text, BioBert)
    expected: dict[str, tuple[str, dict[str, Any]]] = {
        "transcriptome_config": (
            "GeneformerConfig",
            {"hidden_size": model.encoder("expression").card.dim, "emb_layer": -1, "emb_mode": "cell"},
        ),
        "text_config": ("BertConfig", text.architecture()),
        "image_config": (
            "UNIConfig",
            {
                "model_name": "vit_giant_patch14_224",
                "embed_dim": model.encoder("image").card.dim,
                "context_model": True,
                "cell_level_model": False,
            },
        ),
    }
    own = {
        "projection_dim": model.config.dim,
        # Expression locked, text trained, image locked.
        "locking_mode": "LUL",
        "identity_projection": False,
        "unlocked_fp16": False,
    }
    check_config(_plain_fields(found), own, where=where, required=own)
    for name, (kind, fields) in expected.items():
        given = _plain_fields(_fields(found.get(name), kind, where=where))
        check_config(given, fields, where=where, required=UNSEEN if kind == "BertConfig" else fields)


def _fields(value: Any, kind: str, *, where: Path) -> dict[str, Any]:
    if not isinstance(value, Record) or value.kind.name != kind:
        said = str(value.kind) if isinstance(value, Record) else f"a {type(value).__name__}"
        raise _wrong(f"the configuration of another model: {said} where {kind} is expected", where)
    return value.fields


def _plain_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and short words, which are what is compared; whatever else a file puts there differs, and is unsaid."""
    return {
        name: value if isinstance(value, int | float | None) or _is_word(value) else f"a {type(value).__name__}"
        for name, value in fields.items()
    }


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 80 and value.isprintable()


# ---- its tensors


def _matched(
    state: Mapping[str, StoredTensor], model: Alignment, *, where: Path
) -> dict[str, tuple[str, StoredTensor]]:
    """Our name -> their name and tensor, for every tensor on both sides."""
    expected = model.learnable()
    theirs = {name: _their_name(name) for name in expected}
    missing = [t for t in theirs.values() if t not in state]
    extra = sorted(set(state) - set(theirs.values()))
    unfit = []
    for ours, name in theirs.items():
        if name in state:
            # Theirs is a scalar, ours one of possibly several.
            shape = () if ours == "temperature.log_scale" else tuple(expected[ours].shape)
            dtype = str(expected[ours].dtype).removeprefix("torch.")
            given = state[name]
            if (given.shape, given.storage.dtype) != (shape, dtype):
                unfit.append(f"{name} {given.storage.dtype} {given.shape} where {dtype} {shape} is expected")
    wrong = {"missing": missing, "left over": extra, "of another shape or type": unfit}
    if any(wrong.values()):
        said = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in wrong.items() if names)
        raise _wrong(f"its tensors are not those of SpatialWhisperer: {said}", where)
    return {ours: (name, state[name]) for ours, name in theirs.items()}


def _their_name(ours: str) -> str:
    prefix = next(prefix for prefix in PREFIXES if ours.startswith(prefix))
    return PREFIXES[prefix] + ours.removeprefix(prefix)


def _read(file: TorchFile, matched: Mapping[str, tuple[str, StoredTensor]], model: Alignment) -> dict[str, Tensor]:
    expected = model.learnable()
    tensors = {}
    for ours, (name, stored) in matched.items():
        tensor = file.tensor(stored, name=name)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise _wrong(f"{name} holds values that are not finite", file.path)
        tensors[ours] = tensor.reshape(expected[ours].shape)
    return tensors


# ---- what is kept of it


def _manifest(
    content: Mapping[str, Any], hyper_parameters: Mapping[str, Any], model: Alignment, path: Path
) -> dict[str, Any]:
    cards = {m: model.encoder(m).card for m in model.modalities}
    return {
        "format": 1,
        "kind": "convert",
        "triglyph": triglyph.__version__,
        "method": "alignment",
        "recipe": CARD.name,
        "card": CARD.model_dump(mode="json"),
        "source": {
            "file": path.name,
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
            **{key: content[key] for key in ("epoch", "global_step") if type(content.get(key)) is int},
        },
        "trained_on": list(TRAINED_ON),
        "encoders": {
            m: {
                "encoder": card.name,
                "mode": model.config.towers[m].mode,
                "fingerprint": None if m in model.locked else model.encoder(m).fingerprint(),
                "licence": card.licence,
                "commercial_use": card.commercial_use,
            }
            for m, card in cards.items()
        },
        "tensors": len(model.learnable()),
        "hyper_parameters": _Plain(path).of(hyper_parameters),
    }


class _Plain:
    """Values of the pickle as JSON; a record becomes its fields and the name of its class."""

    def __init__(self, where: Path) -> None:
        self.where, self.left = where, _MOST

    def of(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1 + (len(value) if isinstance(value, str) else 0)
        if self.left < 0 or depth > _DEEPEST:
            raise _wrong("its hyper-parameters are without end", self.where)
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                # A pickle can hold halves of characters, which no file of text can.
                return value.encode("utf-8", "replace").decode()
            case Global():
                return str(value)
            case Record():
                return {"class": str(value.kind), **self.of(value.fields, depth)}
            case dict():
                return {self.of(str(k)): self.of(v, depth + 1) for k, v in value.items()}
            case list() | tuple() if not isinstance(value, Storage | StoredTensor):
                return [self.of(v, depth + 1) for v in value]
        raise _wrong(f"its hyper-parameters hold a {type(value).__name__}", self.where)


def _wrong(what: str, where: Path) -> WeightsError:
    return WeightsError(what, where=where, mend=f"give {FILE} as it is published on {CARD.homepage}")


def _listed(names: list[Any]) -> str:
    """The first few, as the file spells them but without what could upset a terminal."""
    shown = ", ".join(ascii(str(name))[1:-1][:120] for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
