"""A SpatialWhisperer checkpoint as Lightning wrote it, made here: names, shapes and pickled configuration classes."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

WIDTH = {"transcriptome": 512, "text": 768, "image": 1536}


def block(name: str, dim_in: int, dim: int) -> dict[str, torch.Tensor]:
    """The tensors of one projection head (CLIP-Lite's MILinearBlock), by the names of its modules."""
    prefix = f"model.discriminator.{name}_block."
    return {
        f"{prefix}feature_nonlinear.0.weight": torch.randn(dim, dim_in) / dim_in**0.5,
        f"{prefix}feature_nonlinear.1.weight": torch.rand(dim) + 0.5,
        f"{prefix}feature_nonlinear.1.bias": torch.randn(dim),
        f"{prefix}feature_nonlinear.1.running_mean": torch.randn(dim),
        f"{prefix}feature_nonlinear.1.running_var": torch.rand(dim) + 0.5,
        f"{prefix}feature_nonlinear.1.num_batches_tracked": torch.tensor(14_624),
        f"{prefix}feature_nonlinear.3.weight": torch.randn(dim, dim) / dim**0.5,
        f"{prefix}feature_nonlinear.3.bias": torch.randn(dim),
        f"{prefix}feature_shortcut.weight": torch.randn(dim, dim_in) / dim_in**0.5,
        f"{prefix}feature_shortcut.bias": torch.randn(dim),
        f"{prefix}feature_block_ln.weight": torch.rand(dim) + 0.5,
        f"{prefix}feature_block_ln.bias": torch.randn(dim),
    }


def bert(hidden: int, inner: int, vocabulary: int, positions: int) -> dict[str, torch.Tensor]:
    """The tensors of a BERT of twelve layers with its pooler."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (vocabulary, hidden),
        "embeddings.position_embeddings.weight": (positions, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
    }
    square, norms = ["pooler.dense"], ["embeddings.LayerNorm"]
    for i in range(12):
        layer = f"encoder.layer.{i}"
        square += [f"{layer}.attention.{part}" for part in ("self.query", "self.key", "self.value", "output.dense")]
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
        shapes |= {f"{layer}.intermediate.dense.weight": (inner, hidden), f"{layer}.intermediate.dense.bias": (inner,)}
        shapes |= {f"{layer}.output.dense.weight": (hidden, inner), f"{layer}.output.dense.bias": (hidden,)}
    shapes |= {
        f"{name}.{part}": (hidden,) * (2 if part == "weight" else 1) for name in square for part in ("weight", "bias")
    }
    shapes |= {f"{name}.{part}": (hidden,) for name in norms for part in ("weight", "bias")}
    return {f"model.text_model.{name}": torch.randn(shape) * 0.1 for name, shape in shapes.items()}


def state_dict(
    *, dim: int = 2048, hidden: int = 768, inner: int = 3072, vocabulary: int = 28_996, positions: int = 512
) -> OrderedDict[str, torch.Tensor]:
    """All 236 tensors; at these widths those of the published file."""
    torch.manual_seed(0)
    state = OrderedDict(bert(hidden, inner, vocabulary, positions))
    for name, dim_in in {**WIDTH, "text": hidden}.items():
        state |= block(name, dim_in, dim)
    state["model.discriminator.temperature"] = torch.tensor(3.21)
    state._metadata = OrderedDict([("", {"version": 1})])  # type: ignore[attr-defined]  # as `nn.Module.state_dict`
    return state


@dataclass
class LossConfig:
    """A dataclass of the authors' package."""

    clip_lambda: float = 1.0
    sample_weighting: bool = False


class Config:
    """Stands in for their subclasses of transformers' `PretrainedConfig`: a bag of fields."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


CLASSES = {
    "TranscriptomeTextDualEncoderConfig": "cellwhisperer.jointemb.config",
    "GeneformerConfig": "cellwhisperer.jointemb.geneformer_model",
    "UNIConfig": "cellwhisperer.jointemb.uni_model",
    "LossConfig": "cellwhisperer.jointemb.loss.config",
    "BertConfig": "transformers.models.bert.configuration_bert",
}


@contextmanager
def their_modules() -> Iterator[dict[str, type]]:
    """Their classes, importable by the names they are pickled under; gone again after the block."""
    parents = {".".join(name.split(".")[:i]) for name in CLASSES.values() for i in range(1, name.count(".") + 1)}
    kept = {name: sys.modules.get(name) for name in (*parents, *CLASSES.values())}
    sys.modules.update({name: ModuleType(name) for name in parents if name not in sys.modules})
    made: dict[str, type] = {}
    for name, module in CLASSES.items():
        base = LossConfig if name == "LossConfig" else Config
        made[name] = type(name, (base,), {"__module__": module})
        sys.modules[module] = ModuleType(module)
        setattr(sys.modules[module], name, made[name])
    try:
        yield made
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def checkpoint(state: dict[str, torch.Tensor], **changes: Any) -> dict[str, Any]:
    """What Lightning saves beside the tensors; call it, and save, inside `their_modules`.

    `a__b` changes a field; `...` leaves it out.
    """
    word, position = "model.text_model.embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"
    hidden, dim = state[word].shape[1], len(state["model.discriminator.text_block.feature_block_ln.bias"])
    fields: dict[str, dict[str, Any]] = {
        "text": {
            "_name_or_path": "dmis-lab/biobert-v1.1",
            "vocab_size": state[word].shape[0],
            "hidden_size": hidden,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": len(state["model.text_model.encoder.layer.0.intermediate.dense.bias"]),
            "hidden_act": "gelu",
            "max_position_embeddings": state[f"model.text_model.{position}"].shape[0],
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "torch_dtype": torch.float32,
            "id2label": {0: "LABEL_0"},
        },
        "transcriptome": {
            "model_type": "geneformer",
            "emb_mode": "cell",
            "hidden_size": 512,
            "emb_layer": -1,
            "emb_label": ["sample_name"],
            "summary_stat": None,
        },
        "image": {
            "model_name": "vit_giant_patch14_224",
            "views": {"context": 224, "cell": 56},
            "embed_dim": 1536,
            "cell_level_model": False,
            "context_model": True,
        },
        "own": {"projection_dim": dim, "locking_mode": "LUL", "unlocked_fp16": False, "identity_projection": False},
    }
    for change, value in changes.items():
        part, _, name = change.partition("__")
        fields[part][name] = value
        if value is ...:
            del fields[part][name]
    classes = {name: getattr(sys.modules[module], name) for name, module in CLASSES.items()}
    config = classes["TranscriptomeTextDualEncoderConfig"](
        **fields["own"],
        text_config=classes["BertConfig"](**fields["text"]),
        transcriptome_config=classes["GeneformerConfig"](**fields["transcriptome"]),
        image_config=classes["UNIConfig"](**fields["image"]),
    )
    return {
        "epoch": 3,
        "global_step": 14_624,
        "pytorch-lightning_version": "2.1.0",
        "state_dict": state,
        "hparams_name": "kwargs",
        "hyper_parameters": {
            "model_config": config,
            "loss_config": classes["LossConfig"](),
            "learning_rate": 1e-5,
            "lr_warmup": 0.03,
            "frozen_warmup": None,
            "max_epochs": 4,
        },
    }


def write(path: Path, state: dict[str, torch.Tensor], **changes: Any) -> Path:
    """Save such a checkpoint."""
    with their_modules():
        torch.save(checkpoint(state, **changes), path)
    return path
