"""The training loop, on Lightning Fabric.

A step is a pure function of (recipe, step, weights): its batch, learning rate, frozen towers and random state are
computed from the step's number, so a checkpoint holds weights, optimizer and a number. A run killed at any moment and
started again by the same command ends bit for bit where an uninterrupted one does (on a CPU). That is why the loop is
ours on Fabric, which brings devices, precision and data-parallel processes, and not a Trainer with a state of its own.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

import triglyph
from triglyph.encoders.base import Encoder
from triglyph.errors import ContractError
from triglyph.models.base import Batch
from triglyph.storage import write_json
from triglyph.tissue.cohort import Cohort
from triglyph.tissue.lazy_sections import LazySections
from triglyph.training.augment import augment
from triglyph.training.batches import Batches
from triglyph.training.dataset import Locations, Rows, Visit, check_without, training_rows
from triglyph.training.neighbourhood_batches import NeighbourhoodBatches
from triglyph.training.progress import bar, cpu_seconds
from triglyph.training.recipe import Recipe, load_recipe
from triglyph.training.release import save_model
from triglyph.training.run import Run
from triglyph.training.schedule import Schedule, clip_gradients, parameter_groups, reproducible, seed_step
from triglyph.training.towers import build_encoders, build_model, encode_locked, initial_fingerprints
from triglyph.training.workers import START_METHOD, leave_with_parent

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from triglyph.tissue.section import Section


def fit(
    recipe: Recipe | str | Path,
    *,
    cohort: Cohort | Path,
    out: Path,
    overrides: list[str] | None = None,
    show: bool = True,
) -> Path:
    """Train a model and write its run folder.

    Run again after it was stopped, however that was, it goes on from the last checkpoint; run again after it has
    finished, it does nothing.

    Parameters
    ----------
    recipe
        A `Recipe`, or the path or shipped name of one.
    cohort
        Sections, patients and splits.
    out
        The run folder; see `triglyph.training.run`.
    overrides
        `a.b=value`, for a recipe given by path or name.
    show
        Draw progress bars.

    Returns
    -------
    `out`.

    Raises
    ------
    RecipeError
        The recipe is not understood, or `out` holds a run of another one.
    ContractError
        The data hold nothing to learn from, or the loss is no longer finite.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides=overrides or ())
    cohort = cohort if isinstance(cohort, Cohort) else Cohort.open(Path(cohort))
    run, begun = Run(Path(out)), cpu_seconds()
    job = _Job(recipe, cohort.path.absolute(), run.path.absolute(), show=show)
    run.start(recipe, job.data_identity(cohort))
    if run.finished:
        return run.path
    fabric = _fabric(recipe)
    with reproducible(on_cpu=fabric.device.type == "cpu"):
        # What every process needs is made once, before there are several.
        sections = [cohort[s] for s in (*job.sections(cohort)["train"], *job.sections(cohort)["val"])]
        rows = job.rows(cohort, "train")
        encoders = build_encoders(recipe, rows, run)
        encode_locked(sections, recipe, encoders, initial_fingerprints(run), device=fabric.device, show=show)
        if recipe.training.devices * recipe.training.nodes > 1:
            fabric.launch(_one_of_many, job)
        else:
            _Training(fabric, job, cohort, rows, encoders, begun=begun).run()
    return run.path


class _Job:
    """What a process must be told to take part; picklable."""

    # Not a dataclass: Fabric goes through those it launches with, looking for modules, and refuses frozen ones.
    def __init__(self, recipe: Recipe, cohort: Path, out: Path, *, show: bool) -> None:
        self.recipe, self.cohort, self.out, self.show = recipe, cohort, out, show

    def sections(self, cohort: Cohort) -> dict[str, tuple[str, ...]]:
        data = self.recipe.data
        if data.split is None:
            return {"train": data.train, "val": data.val}
        fold = cohort.split(data.split).fold(data.fold)
        return {"train": fold.train, "val": fold.val}

    def held_out(self, cohort: Cohort) -> dict[str, tuple[str, ...]]:
        data = self.recipe.data
        return {} if data.split is None else cohort.split(data.split).fold(data.fold).withheld

    def rows(self, cohort: Cohort, side: str) -> Rows:
        model = self.recipe.model
        data, at_once = self.recipe.data, self.recipe.training.sections_at_once
        wanted = self.sections(cohort)[side]
        sections: Sequence[Section] = tuple(cohort[s] for s in wanted)
        if at_once is not None:
            # Two windows may be in use at a time.
            sections = LazySections(cohort, wanted, keep=2 * at_once)
        rows = training_rows(
            sections, model.modalities, model.needs, held_out=self.held_out(cohort), without=data.without
        )
        if side != "train":
            return rows
        both = [cohort[s] for side in self.sections(cohort).values() for s in side]
        check_without(data.without, both, model.modalities)
        return rows.shuffled(data.shuffled, seed=self.recipe.seed)

    def data_identity(self, cohort: Cohort) -> dict[str, Any]:
        """What must be the same when the run is resumed; only what is trained on, so that a cohort may grow."""
        data = self.recipe.data
        sides = self.sections(cohort)
        return {
            "split": None if data.split is None else cohort.split(data.split).digest(),
            "sections": {
                s: [cohort[s].info.table, cohort[s].info.locations, *(i.sha256 for i in cohort[s].info.images)]
                for s in sorted({*sides["train"], *sides["val"]})
            },
        }


def _fabric(recipe: Recipe) -> Fabric:
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    config = recipe.training
    strategy: Any = "auto"
    if config.devices * config.nodes > 1:
        # Started from outside (SLURM, torchrun), processes are there already; else they are started afresh, since a
        # forked process cannot use a GPU that its parent has touched.
        outside = (
            config.nodes > 1 or "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
        )
        if not outside:
            # Imported once, in the server that the others are forked from.
            multiprocessing.set_forkserver_preload(["lightning.fabric", "triglyph.training.loop"])
        # A batch may lack a modality, and its tower then has no gradient.
        strategy = DDPStrategy(
            start_method="popen" if outside else "spawn" if sys.platform == "win32" else "forkserver",
            find_unused_parameters=True,
        )
    return Fabric(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.nodes,
        precision=config.precision,
        strategy=strategy,
    )


Order = Batches | NeighbourhoodBatches
SAMPLE = 20_000
"""Rows that a method is shown before the first step and after the last."""


class _Plan(Sampler[Visit]):
    """What every step sees, from `start` on, over all epochs, so that loader workers never stop to wait."""

    def __init__(self, batches: Order, *, start: int, total: int) -> None:
        self.batches, self.start, self.total = batches, start, total

    def __len__(self) -> int:
        return self.total - self.start

    def __iter__(self) -> Iterator[Visit]:
        for number in range(self.start, self.total):
            epoch, step = divmod(number, self.batches.steps_per_epoch)
            yield Visit(epoch, self.batches.batch(epoch, step))


def _one_of_many(fabric: Fabric, job: _Job) -> None:
    """Train as one of several processes."""
    with reproducible(on_cpu=fabric.device.type == "cpu"):
        cohort = Cohort.open(job.cohort)
        rows = job.rows(cohort, "train")
        _Training(fabric, job, cohort, rows, build_encoders(job.recipe, rows, Run(job.out))).run()


class _Training:
    """The state of a run in one process."""

    def __init__(
        self,
        fabric: Fabric,
        job: _Job,
        cohort: Cohort,
        rows: Rows,
        encoders: dict[str, Encoder],
        *,
        begun: float = 0.0,
    ) -> None:
        self.fabric, self.job, self.recipe = fabric, job, job.recipe
        self.folder = Run(job.out)
        self.cohort, self.encoders = cohort, encoders
        prints = initial_fingerprints(self.folder)
        self.cached: dict[str, str] = {m: prints[m] for m in self.recipe.model.cached}
        self.data = self._locations(rows)
        self.model = build_model(self.recipe, self.encoders, self.data)
        config = self.recipe.training
        self.batches = self._batches(rows)
        self.model.eval().start(self._sample())
        self.total = config.epochs * self.batches.steps_per_epoch
        self.schedule = Schedule.of(config, total=self.total)
        optimizer = torch.optim.AdamW(parameter_groups(self.model, config), lr=config.lr, betas=config.betas)
        self.step = 0
        self.cpu_seconds_before, self.starts = -begun, 1
        self.module, self.optimizer = fabric.setup(self.model, optimizer)
        # After the set-up: only now are parameters where they stay, and the optimiser's state follows them there.
        if (state := self._resume()) is not None:
            self._restore(state, optimizer)
        self.validation = self._validation_batches()

    def run(self) -> None:
        """Train to the end, then write the release and the manifest."""
        loader = DataLoader(
            self.data,
            sampler=_Plan(self.batches, start=self.step, total=self.total),
            batch_size=None,
            num_workers=self.recipe.training.workers,
            worker_init_fn=leave_with_parent,
            multiprocessing_context=START_METHOD if self.recipe.training.workers else None,
            pin_memory=self.fabric.device.type == "cuda",
        )
        per_epoch, every = self.batches.steps_per_epoch, self.recipe.training.checkpoint_every
        show = self.job.show and self.fabric.is_global_zero
        with bar(f"train: {self.recipe.name}", self.total, show=show, done=self.step, unit="steps") as advance:
            for batch in loader:
                epoch = self.step // per_epoch
                record = self._train_step(self.fabric.to_device(batch), epoch)
                self.step += 1
                ends = self.step % per_epoch == 0
                self._log(record)
                if ends:
                    self._end_epoch(epoch, record)
                if ends or self.step % every == 0:
                    self._save()
                advance(1, note=f"epoch {epoch + 1}/{self.recipe.training.epochs}  loss {record['loss']['total']:.3f}")
        self.fabric.barrier()
        if self.fabric.is_global_zero:
            self._finish()
        self.fabric.barrier()

    # ---- one step

    def _train_step(self, batch: Batch, epoch: int) -> dict[str, Any]:
        seed_step(self.recipe.seed, self.step, self.fabric.global_rank)
        self.model.heads_only = self.schedule.heads_only(self.step)
        self.model.progress = self.step / self.total
        self.module.train()
        factor = self.schedule.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.training.lr * group["scale"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.module(augment(batch, self.recipe.training.augment)).losses
        total = losses["total"]
        if not torch.isfinite(total):
            raise ContractError(
                f"the loss is {float(total)} at step {self.step}",
                where=self.folder.path,
                mend="lower training.lr, set training.clip_norm=1, or train in 32-bit precision",
            )
        self.fabric.backward(total)
        norm = clip_gradients(self.model, self.recipe.training.clip_norm)
        self.optimizer.step()
        return {
            "step": self.step,
            "epoch": epoch,
            "lr": self.recipe.training.lr * factor,
            "loss": {name: float(value.detach()) for name, value in losses.items()},
            "grad_norm": float(norm),
            **self.model.scalars(),
        }

    # ---- a sample

    def _sample(self) -> Iterator[Batch]:
        """Whole batches from all over an epoch, about `SAMPLE` rows; the same in every process."""
        order = self._batches(self.data.rows, alone=True)
        wanted = -(-SAMPLE // self.recipe.training.batch_size)
        for step in np.unique(np.linspace(0, order.steps_per_epoch - 1, wanted).astype(int)):
            yield self.fabric.to_device(self.data[Visit(0, order.batch(0, int(step)))])

    # ---- validation

    def _validation_batches(self) -> tuple[Locations, Order] | None:
        if not self.job.sections(self.cohort)["val"]:
            return None
        rows = self.job.rows(self.cohort, "val")
        return self._locations(rows), self._batches(rows, plain=True)

    def _locations(self, rows: Rows) -> Locations:
        return Locations(rows, self.encoders, cached=self.cached, wider=self.recipe.model.wider)

    def _batches(self, rows: Rows, *, plain: bool = False, alone: bool = False) -> Order:
        """The order that the method and the recipe ask for.

        Parameters
        ----------
        plain
            As rows come, in batches that they fill.
        alone
            Whole batches, not this process's part of them.
        """
        recipe, config = self.recipe, self.recipe.training
        process = {"rank": self.fabric.global_rank, "world_size": self.fabric.world_size}
        if alone:
            process = {"rank": 0, "world_size": 1}
        if (groups := recipe.model.groups) is not None:
            return NeighbourhoodBatches(
                rows.offsets,
                places=rows.places,
                batch_size=config.batch_size,
                seed=recipe.seed,
                size=groups.size,
                reach=groups.reach,
                sections_at_once=config.sections_at_once,
                **process,
            )
        if plain:
            return Batches(rows.groups, batch_size=min(config.batch_size, len(rows)), seed=recipe.seed, **process)
        return Batches(
            rows.groups,
            batch_size=config.batch_size,
            seed=recipe.seed,
            weights=config.mixing,
            sections=rows.section,
            sections_per_batch=config.sections_per_batch,
            **process,
        )

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean losses over the same batches every time."""
        if self.validation is None:
            return {}
        data, batches = self.validation
        self.module.eval()
        sums: dict[str, list[float]] = {}
        for step in range(batches.steps_per_epoch):
            losses: dict[str, Tensor] = self.module(
                self.fabric.to_device(data[Visit(0, batches.batch(0, step))])
            ).losses
            for name, value in losses.items():
                sums.setdefault(name, []).append(float(value))
        return {name: sum(values) / len(values) for name, values in sums.items()}

    # ---- what is written

    def _log(self, record: dict[str, Any]) -> None:
        if self.fabric.is_global_zero:
            self.folder.log_step(record)

    def _end_epoch(self, epoch: int, last: dict[str, Any]) -> None:
        validation = self._validate()
        if not self.fabric.is_global_zero:
            return
        # Means come from the log: it is cut and completed exactly on resuming, so nothing else needs saving.
        steps = [record["loss"] for record in self.folder.steps_of(epoch)]
        names = [*self.model.loss_names, "total"]
        row: dict[str, Any] = {"epoch": epoch, "steps": last["step"] + 1, "lr": last["lr"]}
        for name in names:
            values = [loss[name] for loss in steps if name in loss]
            row[f"train_{name}"] = sum(values) / len(values) if values else ""
        if self.validation is not None:
            row.update({f"val_{name}": validation.get(name, "") for name in names})
        for what in self.model.scalars():
            row.update({f"{what}_{name}": value for name, value in last[what].items()})
        self.folder.log_epoch(row)

    def _resume(self) -> dict[str, Any] | None:
        # The first process cuts the logs; the others only read.
        state = self.folder.resume() if self.fabric.is_global_zero else None
        self.fabric.barrier()
        return state if self.fabric.is_global_zero else self.folder.resume()

    def _restore(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        self.batches.load_state_dict(state["batches"])
        expected = set(self.model.learnable())
        if expected != set(state["model"]):
            raise ContractError(
                "the checkpoint is of another model", where=self.folder.checkpoint_path, mend="give another --out"
            )
        self.model.load_state_dict(state["model"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.cpu_seconds_before += state["cpu_seconds"]
        self.starts = state["starts"] + 1

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            epoch, within = divmod(self.step, self.batches.steps_per_epoch)
            self.folder.save_checkpoint(
                {
                    "step": self.step,
                    "batches": {**self.batches.state_dict(), "epoch": epoch, "step": within},
                    "model": self.model.learnable(),
                    "optimizer": self.optimizer.state_dict(),
                    "cpu_seconds": self._cpu_seconds(),
                    "starts": self.starts,
                }
            )
        self.fabric.barrier()

    def _cpu_seconds(self) -> float:
        """Of this run, in this process and those it started; whatever the process did before it is not counted."""
        return self.cpu_seconds_before + cpu_seconds()

    def _finish(self) -> None:
        if not self.folder.model_path.exists():
            self.model.eval().finish(self._sample())
            save_model(self.model, self.folder.model_path)
        write_json(self.folder.manifest_path, self._manifest())

    def _manifest(self) -> dict[str, Any]:
        recipe, sides = self.recipe, self.job.sections(self.cohort)
        split = None if recipe.data.split is None else self.cohort.split(recipe.data.split)
        return {
            "format": 1,
            "kind": "train",
            "triglyph": triglyph.__version__,
            "method": recipe.method,
            "recipe": recipe.name,
            "recipe_digest": recipe.digest(),
            "seed": recipe.seed,
            "tries": recipe.tries,
            "cohort": {"name": self.cohort.name, "digest": self.cohort.digest()},
            "split": None
            if split is None
            else {"name": split.name, "digest": split.digest(), "level": split.level, "fold": recipe.data.fold},
            "training_sections": list(sides["train"]),
            "validation_sections": list(sides["val"]),
            "training_patients": sorted({self.cohort.patients[s] for s in sides["train"]}),
            "held_out_locations": {s: len(b) for s, b in self.job.held_out(self.cohort).items()},
            "rows": self.data.rows.counts(),
            "steps": self.total,
            "encoders": {
                m: {
                    "encoder": self.model.encoder(m).card.name,
                    "mode": recipe.model.towers[m].mode,
                    "fingerprint": self.model.encoder(m).fingerprint(),
                    "licence": self.model.encoder(m).card.licence,
                    "commercial_use": self.model.encoder(m).card.commercial_use,
                }
                for m in self.model.modalities
            },
            "parameters": {
                "all": sum(p.numel() for p in self.model.parameters()),
                "learnt": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            },
            "device": self.fabric.device.type,
            "processes": self.fabric.world_size,
            "versions": {
                "python": platform.python_version(),
                **{
                    p: version(p)
                    for p in ("torch", "lightning", "numpy", "timm", "transformers", "anndata", "spatialdata")
                },
            },
            "cpu_minutes": round(self._cpu_seconds() / 60, 3),
            "starts": self.starts,
        }
