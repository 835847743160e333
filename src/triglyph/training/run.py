"""The run folder: what a run is, how far it has come, what it logged.

    recipe.yaml            as given, every default written out
    data.json              digests of the split and of the sections it is trained on; resuming on others is refused
    towers.json            what encoders learnt from the training sections before the first step
    checkpoints/last.ckpt  resume; holds tensors and plain values alone
    log.jsonl              one line per step
    metrics.csv            one line per epoch
    model/                 the release, once finished
    manifest.json          once finished
    reference/<modality>/, calibrations/<name>.json    what `triglyph annotate` learnt of the training sections

A checkpoint states how long the logs were when it was made. Resuming cuts them there, so no line is lost or doubled,
whenever the process was killed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from triglyph.errors import RecipeError, StorageError
from triglyph.storage import atomic_file, read_json, write_json
from triglyph.training.recipe import HARMLESS, Recipe, differences, load_recipe

FORMAT = 1


class Run:
    """A run folder.

    Parameters
    ----------
    path
        The folder; made when the run starts.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.recipe_path = self.path / "recipe.yaml"
        self.towers_path = self.path / "towers.json"
        self.checkpoint_path = self.path / "checkpoints" / "last.ckpt"
        self.log_path = self.path / "log.jsonl"
        self.metrics_path = self.path / "metrics.csv"
        self.model_path = self.path / "model"
        self.manifest_path = self.path / "manifest.json"

    @property
    def finished(self) -> bool:
        """Whether training is done and the release is written."""
        return self.manifest_path.is_file()

    def manifest(self) -> dict[str, Any]:
        """What was trained on what.

        Raises
        ------
        StorageError
            The run is not finished, or this is no run folder.
        """
        if not self.finished:
            started = self.recipe_path.is_file()
            raise StorageError(
                "the run is not finished" if started else "not a run: it has no manifest.json",
                where=self.path,
                mend="run the same `triglyph train` command again" if started else "give the --out of `triglyph train`",
            )
        found: dict[str, Any] = read_json(self.manifest_path)
        return found

    def start(self, recipe: Recipe, data: Mapping[str, Any]) -> None:
        """Begin, or go on with, a run of `recipe` on the training data described by `data`.

        Raises
        ------
        RecipeError
            The folder holds a run of another recipe or of other data.
        StorageError
            The folder holds something else.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        data_path = self.path / "data.json"
        if not self.recipe_path.is_file():
            strange = sorted(p.name for p in self.path.iterdir() if not p.name.startswith(".") and p != data_path)
            if strange:
                raise StorageError(
                    f"the folder holds other things ({', '.join(strange[:5])})",
                    where=self.path,
                    mend="give a new or empty --out",
                )
            write_json(data_path, dict(data))
            recipe.write(self.recipe_path)
            return
        old = load_recipe(self.recipe_path)
        changed = {k: v for k, v in differences(old.as_dict(), recipe.as_dict()).items() if k not in HARMLESS}
        changed |= differences(read_json(data_path), dict(data), prefix="cohort.")
        if changed:
            said = "; ".join(f"{key}: {a!r} there, {b!r} now" for key, (a, b) in changed.items())
            raise RecipeError(
                f"another recipe was started in this folder ({said})",
                where=self.path,
                mend="give another --out, or the recipe it was started with",
            )

    # ---- logs

    def log_step(self, record: Mapping[str, Any]) -> None:
        """Append one line to `log.jsonl`."""
        _append(self.log_path, json.dumps(record) + "\n")

    def log_epoch(self, record: Mapping[str, Any]) -> None:
        """Append one line to `metrics.csv`, with a header before the first."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(record), lineterminator="\n")
        if not self.metrics_path.is_file() or self.metrics_path.stat().st_size == 0:
            writer.writeheader()
        writer.writerow(record)
        _append(self.metrics_path, text.getvalue())

    def steps_of(self, epoch: int) -> list[dict[str, Any]]:
        """Lines of `log.jsonl` of an epoch."""
        with self.log_path.open(encoding="utf-8") as stream:
            records = [json.loads(line) for line in stream]
        return [record for record in records if record["epoch"] == epoch]

    def _log_lengths(self) -> dict[str, int]:
        lengths = {}
        for path in (self.log_path, self.metrics_path):
            if path.is_file():
                with path.open("rb+") as stream:
                    os.fsync(stream.fileno())
                lengths[path.name] = path.stat().st_size
            else:
                lengths[path.name] = 0
        return lengths

    def _cut_logs(self, lengths: Mapping[str, int]) -> None:
        for path in (self.log_path, self.metrics_path):
            length, size = lengths.get(path.name, 0), path.stat().st_size if path.is_file() else 0
            if size < length:
                raise StorageError(
                    f"{length - size} bytes are missing that were there at the last checkpoint",
                    where=path,
                    mend="restore the file, or start again in another --out",
                )
            if size > length:
                os.truncate(path, length)

    # ---- checkpoints

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write `last.ckpt`, atomically, with the present length of the logs."""
        with atomic_file(self.checkpoint_path) as partial:
            torch.save({"format": FORMAT, "logs": self._log_lengths(), **state}, partial)

    def resume(self) -> dict[str, Any] | None:
        """The last checkpoint, with the logs cut to it; None where there is none yet.

        Raises
        ------
        StorageError
            The file is damaged, holds more than tensors, or is of another format.
        """
        if not self.checkpoint_path.is_file():
            self._cut_logs({})
            return None
        mend = "remove it to start again from the beginning"
        try:
            state = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise StorageError(
                f"the checkpoint does not load ({error})", where=self.checkpoint_path, mend=mend
            ) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise StorageError("a checkpoint of another format", where=self.checkpoint_path, mend=mend)
        self._cut_logs(state["logs"])
        return state


def _append(path: Path, text: str) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(text)
