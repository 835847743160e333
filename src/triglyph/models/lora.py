"""Low-rank adapters: an encoder that learns a little, while what it was stays as it is.

A linear map `W` becomes `W + (alpha / rank) U D` with `D` (rank, in) and `U` (out, rank); only `D` and `U` learn. `U`
starts at zero, so the first step begins from the pretrained encoder exactly. Hu et al. 2021 (LoRA, arXiv 2106.09685);
defaults are those of HESCAPE (2025): rank 8, alpha 16, dropout 0.1, the attention's maps alone.

Adapted maps keep the names of their tensors, and `lora_down.weight` and `lora_up.weight` join them: published weights
load by the same names before and after. Targets are whole names or ends of them, and linear maps only: HESCAPE's bare
`proj` also met the convolution that cuts a ViT's patches.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from triglyph.cards import Frozen
from triglyph.errors import RecipeError

ATTENTION = (
    "attn.qkv",
    "attn.proj",
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.output.dense",
)
"""The maps of attention, by the names that timm, and transformers 5 and 4, give them."""


class LoraConfig(Frozen):
    """Adapters of a tower."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    """The adapters' share is multiplied by alpha / rank."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of the adapters' input, in training."""
    targets: tuple[str, ...] = Field(default=ATTENTION, min_length=1)
    """Ends of the names of linear maps: `attn.qkv` is that of every block."""


class LoraLinear(nn.Linear):
    """A linear map that learns through adapters alone.

    Parameters
    ----------
    base
        The map, whose own tensors are taken over and no longer learn.
    config
        Rank, scale and dropout. `lora_down` is drawn from torch's random state; `lora_up` is zero.
    """

    def __init__(self, base: nn.Linear, config: LoraConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.requires_grad_(requires_grad=False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.lora_down = nn.Linear(base.in_features, config.rank, bias=False, **like)
        self.lora_up = nn.Linear(config.rank, base.out_features, bias=False, **like)
        self.dropout = nn.Dropout(config.dropout)
        self.factor = config.alpha / config.rank
        self._before_merge: Tensor | None = None
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)

    @property
    def merged(self) -> bool:
        """Whether the adapters are part of `weight`."""
        return self._before_merge is not None

    @torch.no_grad()
    def merge(self) -> None:
        """Add the adapters to `weight`, so that using them costs nothing; done already, it does nothing."""
        if self._before_merge is None:
            self._before_merge = self.weight.detach().clone()
            self.weight += self.factor * (self.lora_up.weight @ self.lora_down.weight)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the adapters out again; `weight` is bit for bit what it was."""
        # Kept and not subtracted: (w + d) - d is seldom w.
        if self._before_merge is not None:
            self.weight.copy_(self._before_merge)
            self._before_merge = None

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.weight, self.bias)
        return out if self.merged else out + self.factor * self.lora_up(self.lora_down(self.dropout(x)))


def adapt(encoder: nn.Module, config: LoraConfig, *, where: object = "") -> int:
    """Put adapters on the targets of an encoder, in place; all else stops learning.

    Returns
    -------
    Number of parameters that learn.

    Raises
    ------
    RecipeError
        No linear map, or an adapted one, has such a name.
    """
    encoder.requires_grad_(requires_grad=False)
    linear = {name: module for name, module in encoder.named_modules() if isinstance(module, nn.Linear)}
    if any(isinstance(module, LoraLinear) for module in linear.values()):
        raise RecipeError("the encoder has adapters already", where=where, mend="adapt the encoder they were put on")
    chosen = [name for name in linear if any(f".{name}".endswith(f".{target}") for target in config.targets)]
    if not chosen:
        ends = sorted({".".join(name.split(".")[-2:]) for name in linear})
        raise RecipeError(
            f"no linear map is called {' or '.join(config.targets)}",
            where=where,
            mend=f"set lora.targets to some of {', '.join(ends) or 'none: there is no linear map to adapt'}",
        )
    for name in chosen:
        parent, _, own = name.rpartition(".")
        setattr(encoder.get_submodule(parent), own, LoraLinear(linear[name], config))
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def adapters(encoder: nn.Module) -> dict[str, LoraLinear]:
    """Name -> adapted map."""
    return {name: module for name, module in encoder.named_modules() if isinstance(module, LoraLinear)}


def is_adapter(name: str) -> bool:
    """Whether a tensor of an adapted encoder's state belongs to its adapters."""
    return name.endswith((".lora_down.weight", ".lora_up.weight"))


def merge(encoder: nn.Module) -> None:
    """Merge every adapter of an encoder."""
    for module in adapters(encoder).values():
        module.merge()


def unmerge(encoder: nn.Module) -> None:
    """Undo `merge`."""
    for module in adapters(encoder).values():
        module.unmerge()
