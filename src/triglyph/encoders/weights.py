"""Weights: found in a folder or on the hub, read without executing anything, and loaded strictly.

A file is looked for in the folder a user gives, or else in the Hugging Face cache at the card's revision, or else
downloaded. Every way this can fail ends in one `WeightsError` that says what to do. Tensors are read from safetensors
or with `torch.load(weights_only=True)`. A checkpoint loads only if every tensor of the architecture is in it with the
right shape, and nothing is in it that the architecture has no place for.
"""

from __future__ import annotations

import pickle
import socket
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triglyph.encoders.base import HubCard
from triglyph.errors import WeightsError
from triglyph.settings import settings

_SHOWN = 6


def find_file(card: HubCard, candidates: Iterable[str], *, weights: Path | None) -> Path:
    """One file of an encoder.

    Parameters
    ----------
    card
        Whose hub id and revision are used if `weights` is None.
    candidates
        Paths inside the hub repository, the published one first; a local folder may hold any of them, by its whole
        path or by its name.
    weights
        Folder (or one file in it) given by the user.

    Raises
    ------
    WeightsError
        It is not there, and cannot be fetched.
    """
    wanted = list(candidates)
    if weights is not None:
        return _find_locally(card, wanted, weights)
    return _cached(card, wanted[0]) or _download(card, wanted[0])


def is_cached(card: HubCard, filename: str) -> bool:
    """Whether the hub's file of that name lies in the local cache."""
    return _cached(card, filename) is not None


def _find_locally(card: HubCard, wanted: list[str], weights: Path) -> Path:
    if not weights.exists():
        raise WeightsError(f"no weights of {card.name} there", where=weights, mend="check the path")
    if weights.is_file() and weights.suffix in {Path(w).suffix for w in wanted}:
        return weights
    folder = weights.parent if weights.is_file() else weights
    # Repositories with several models keep a model in a subfolder and its vocabulary beside it.
    places = (
        [folder / w for w in wanted] + [folder / Path(w).name for w in wanted] + [folder.parent / w for w in wanted]
    )
    for place in places:
        if place.is_file():
            return place
    names = " or ".join(dict.fromkeys(Path(w).name for w in wanted))
    raise WeightsError(f"{card.name} needs {names}", where=folder, mend=f"put it there, as in {_page(card)}")


def _cached(card: HubCard, filename: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(card.hub_id, filename, revision=card.revision or None)
    return Path(found) if isinstance(found, str) else None


def _download(card: HubCard, filename: str) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    folder = f"or pass a folder that holds {Path(filename).name} as weights"
    where = f"{_page(card)} at {card.revision[:12] or 'main'}, {filename}"
    absent = f"weights of {card.name} are not on this machine"
    if settings.offline or constants.HF_HUB_OFFLINE:
        mend = f"unset HF_HUB_OFFLINE and TRIGLYPH_OFFLINE to fetch them, {folder}"
        raise WeightsError(f"{absent}, and it is set to stay offline", where=where, mend=mend)
    unreachable = WeightsError(
        f"{absent}, and the hub cannot be reached", where=where, mend=f"connect to the network, {folder}"
    )
    if not _reachable(constants.ENDPOINT):
        raise unreachable
    try:
        return Path(hf_hub_download(card.hub_id, filename, revision=card.revision or None, etag_timeout=5))
    except GatedRepoError as error:
        raise WeightsError(
            f"weights of {card.name} are gated ({card.licence})",
            where=where,
            mend=f"accept the terms on that page, then run `hf auth login`, {folder}",
        ) from error
    except LocalEntryNotFoundError as error:
        raise unreachable from error
    except HfHubHTTPError as error:
        mend = f"check the name, or run `hf auth login`, {folder}"
        raise WeightsError(f"the hub does not give weights of {card.name}", where=where, mend=mend) from error
    except (OSError, HfHubHTTPError.__bases__[0]) as error:
        # The hub's client has changed its HTTP library more than once; its error derives from that library's own.
        raise unreachable from error


def _reachable(endpoint: str) -> bool:
    """Whether anything answers there; the hub's own client tries for half a minute before it says no."""
    url = urllib.parse.urlsplit(endpoint)
    proxy = urllib.request.getproxies().get(url.scheme)
    if proxy and url.hostname and not urllib.request.proxy_bypass(url.hostname):
        url = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=5).close()
    except OSError:
        return False
    return True


def _page(card: HubCard) -> str:
    return f"https://huggingface.co/{card.hub_id}"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from safetensors or a PyTorch file (`weights_only=True`).

    Raises
    ------
    WeightsError
        The file is damaged, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        # Memory-mapped, a file is not read twice; the format before PyTorch 1.6 is no zip and cannot be.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        first = str(error).splitlines()[0]
        raise WeightsError(
            f"the file holds more than tensors, and was not opened ({first})",
            where=path,
            mend="use safetensors, or a plain state dict",
        ) from error
    except (RuntimeError, ValueError, EOFError, OSError, _safetensors_error()) as error:
        raise WeightsError(f"not readable ({error})", where=path, mend="fetch the file again") from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not (isinstance(found, dict) and all(isinstance(v, Tensor) for v in found.values())):
        raise WeightsError("not a dictionary of tensors", where=path, mend="save `model.state_dict()` alone")
    return found


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error


def load_strict(
    module: nn.Module,
    tensors: dict[str, Tensor],
    *,
    where: Path,
    canonical: Callable[[str], str | None] = lambda name: name,
) -> None:
    """Put `tensors` into `module`: all of them, all of it.

    Parameters
    ----------
    module
        May be on the meta device: tensors are assigned, in the module's own precision, not copied over.
    tensors
        By name, as published.
    where
        Named in errors.
    canonical
        Name in a file, or in this module, to a name both share across versions of a library; None for a tensor of the
        file that the encoder does not use.

    Raises
    ------
    WeightsError
        Names missing, unexpected and mismatched tensors.
    """
    expected = module.state_dict()
    own = {canonical(name) or name: name for name in expected}
    given: dict[str, Tensor] = {}
    unexpected = []
    for name, tensor in tensors.items():
        shared = canonical(name)
        if shared is None:
            continue
        if shared in own:
            given[own[shared]] = tensor
        else:
            unexpected.append(name)
    missing = [name for name in expected if name not in given]
    shapes = [
        f"{name} {tuple(given[name].shape)} where {tuple(expected[name].shape)} is expected"
        for name in expected
        if name in given and given[name].shape != expected[name].shape
    ]
    wrong = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    if any(found for _, found in wrong):
        said = "; ".join(f"{len(found)} {kind}: {_listed(found)}" for kind, found in wrong if found)
        raise WeightsError(
            f"the weights do not fit the architecture: {said}",
            where=where,
            mend="use the published file of this model, or the encoder these weights belong to",
        )
    # One copy, detached from the file: a memory map must not follow a file that changes or goes away.
    state = {name: given[name].detach().to(expected[name].dtype, copy=True) for name in expected}
    module.load_state_dict(state, strict=True, assign=True)


def check_config(
    found: dict[str, Any], expected: dict[str, Any], *, where: Path, required: Collection[str] = ()
) -> None:
    """Compare a published `config.json` with the architecture we build: head counts and activations leave no trace
    in the shapes of tensors.

    Parameters
    ----------
    required
        Of the expected fields, those that must be there; another that is absent stands for its default.

    Raises
    ------
    WeightsError
        A field differs, or is missing.
    """
    wrong = [
        f"{k} is {found[k]!r}, not {v!r}" if k in found else f"{k} is missing"
        for k, v in expected.items()
        if (found[k] != v if k in found else k in required)
    ]
    if wrong:
        raise WeightsError(
            f"the weights are of another architecture: {'; '.join(wrong)}",
            where=where,
            mend="use the encoder these weights belong to",
        )


def _listed(found: list[str]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more
