from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import children
import small
from test_models_stamp_genes import RECIPE as STAMP
from test_training_resume import RECIPE
from triglyph.configs import deep_merge
from triglyph.encoders.stamp import MASK, StampGenes
from triglyph.models.stamp_genes import StampGenesConfig, StampModel
from triglyph.objectives.bridge import bridge_losses
from triglyph.objectives.contrastive import Temperature, contrastive_loss
from triglyph.objectives.gather import gather_batch
from triglyph.objectives.masked_genes import Masked

PAIRS = {("image", "expression"): 1.0, ("image", "text"): 0.5, ("expression", "text"): 2.0}
WHO = [
    {"image": [0, 1, 3], "expression": [0, 1, 2, 3, 4], "text": []},
    {"image": [0], "expression": [0, 1], "text": [0, 1, 2]},
]
NS = [5, 3]


def part(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Embeddings before normalisation, positions and caption keys of one process; counts differ, one has no text."""
    embeddings, rows = {}, {}
    for number, (modality, positions) in enumerate(WHO[rank].items()):
        rng = np.random.default_rng([rank, number])
        embeddings[modality] = torch.from_numpy(rng.normal(size=(len(positions), 4))).float().requires_grad_()
        rows[modality] = torch.tensor(positions, dtype=torch.long)
    keys = torch.tensor([0, 1, 2, 0, 1] if rank == 0 else [2, 5, 0])
    return embeddings, rows, keys


def loss_of(
    embeddings: dict[str, Tensor], rows: dict[str, Tensor], keys: Tensor, temperature: Temperature
) -> dict[str, Tensor]:
    unit = {m: torch.nn.functional.normalize(z, dim=-1) for m, z in embeddings.items()}
    return with_bridge(unit, rows, keys, temperature)


def with_bridge(
    unit: dict[str, Tensor], rows: dict[str, Tensor], keys: Tensor, temperature: Temperature
) -> dict[str, Tensor]:
    """Images of the first process are bridged to texts of the second; no process has both ends alone."""
    losses = contrastive_loss(unit, rows, pairs=PAIRS, temperature=temperature, duplicates={"text": keys})
    bridged = bridge_losses(unit, rows, bridges={("image", "text"): "expression"}, temperature=temperature)
    return {**losses, **bridged, "total": losses["total"] + bridged["image-expression-text"]}


def one_process(rank: int, folder: Path) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    embeddings, rows, keys = part(rank)
    temperature = Temperature()
    unit = {m: torch.nn.functional.normalize(z, dim=-1) for m, z in embeddings.items()}
    if rank == 0:
        unit["text"] = torch.zeros(0, 4)  # as a model without text rows gives it: no graph behind it
    everywhere, every_row, found = gather_batch(unit, rows, {"text": keys}, n=NS[rank])
    losses = with_bridge(everywhere, every_row, found["text"], temperature)
    losses["total"].backward()
    torch.save(
        {
            "losses": {k: float(v.detach()) for k, v in losses.items()},
            # Data-parallel training averages gradients of parameters over processes.
            "grads": {m: z.grad / 2 for m, z in embeddings.items() if z.grad is not None},
            "temperature": temperature.log_scale.grad,
        },
        folder / f"{rank}.pt",
    )
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    processes = [children.CONTEXT.Process(target=one_process, args=(rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]

    parts = [part(rank) for rank in range(2)]
    whole = {m: torch.cat([p[0][m] for p in parts]) for m in WHO[0]}
    rows = {m: torch.cat([parts[0][1][m], parts[1][1][m] + NS[0]]) for m in WHO[0]}
    temperature = Temperature()
    losses = loss_of(whole, rows, torch.cat([p[2] for p in parts]), temperature)
    losses["total"].backward()
    for rank in range(2):
        assert found[rank]["losses"].keys() == losses.keys()
        for name, value in losses.items():
            assert found[rank]["losses"][name] == pytest.approx(float(value.detach()), rel=1e-6)
        torch.testing.assert_close(found[rank]["temperature"], temperature.log_scale.grad)
        for modality, grad in found[rank]["grads"].items():
            torch.testing.assert_close(grad, parts[rank][0][modality].grad, rtol=1e-5, atol=1e-8)
    assert "text" in found[1]["grads"]


def test_without_other_processes_gathering_changes_nothing() -> None:
    embeddings, rows, keys = part(0)
    out = gather_batch(embeddings, rows, {"text": keys}, n=5)
    assert out == (embeddings, rows, {"text": keys})


# ---- genes named from locations and their neighbours

LENGTHS = [[5, 3, 0, 4, 6, 2, 7, 3], [4, 5, 6, 0]]
GROUP = [[0, 0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1]]
SHARES = {
    "both have centres": (LENGTHS, GROUP),
    "one has no row": ([[*LENGTHS[0], *LENGTHS[1]], []], [[0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4], []]),
}


class NoChance(StampModel):
    """Tokens are hidden by what they are, so that it does not matter which process draws."""

    def _hidden(self, ids: Tensor) -> Masked:
        chosen = ids % 3 == 0
        return Masked(torch.where(chosen, MASK, ids), chosen)


def stamp_model(context: str) -> NoChance:
    torch.manual_seed(0)
    genes = StampGenes(dim=8, depth=1, heads=2, feedforward=8, max_tokens=8)
    genes.gene_embedding = torch.nn.Embedding(20, 8)
    tower = {"encoder": "stamp-genes", "mode": "scratch"}
    config = StampGenesConfig.model_validate({"towers": {"expression": tower}, "context": context, "intrinsic": 0.7})
    return NoChance(config, {"expression": genes}).train()


def neighbourhoods(share: str, rank: int) -> dict[str, Any]:
    """The groups of a process; the first of each is its centre, and one centre has no neighbour that has genes."""
    lengths, group = (torch.tensor(of[rank], dtype=torch.long) for of in SHARES[share])
    before = sum(sum(of) for of in SHARES[share][0][:rank])
    ids = 2 + (7 * (before + torch.arange(int(lengths.sum()))) % 18)
    first = torch.ones_like(group, dtype=torch.bool)
    first[1:] = group[1:] != group[:-1]
    made: dict[str, Any] = {"n": len(lengths), "section": torch.zeros_like(group), "group": group, "near": ~first}
    if len(lengths):
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        padded = torch.zeros(mask.shape, dtype=torch.long)
        padded[mask] = ids
        made["expression"] = {"rows": torch.arange(len(lengths)), "ids": padded, "mask": mask}
    return made


def one_stamp_process(rank: int, folder: Path, context: str, share: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = stamp_model(context)
    losses = model(neighbourhoods(share, rank)).losses
    losses["total"].backward()
    with torch.no_grad():
        evaluated = model.eval()(neighbourhoods(share, rank)).losses
    torch.save(
        {
            "losses": {k: float(v.detach()) for k, v in losses.items()},
            "evaluated": {k: float(v) for k, v in evaluated.items()},
            "grads": {n: p.grad for n, p in model.named_parameters() if p.grad is not None},
        },
        folder / f"{rank}.pt",
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("context", ["pooled", "masked_only"])
def test_genes_are_named_by_two_processes_as_by_one(tmp_path: Path, context: str, share: str) -> None:
    """With the same tokens hidden; in training each process draws its own, so that runs are alike and not the same."""
    processes = [
        children.CONTEXT.Process(target=one_stamp_process, args=(rank, tmp_path, context, share)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    model = stamp_model(context)
    losses = model(neighbourhoods("one has no row", 0)).losses
    losses["total"].backward()
    assert set(losses) == {"intrinsic", "contextual", "total"}
    for one in found:
        for said in (one["losses"], one["evaluated"]):
            assert said.keys() == losses.keys()
            assert said == {k: pytest.approx(float(v.detach()), rel=1e-6) for k, v in losses.items()}
    for name, parameter in model.named_parameters():
        # Data-parallel training averages gradients over processes.
        mean = sum(one["grads"].get(name, torch.zeros_like(parameter)) for one in found) / 2
        torch.testing.assert_close(mean, parameter.grad, rtol=1e-4, atol=1e-7)


NO_DROPOUT: dict[str, Any] = deep_merge(
    RECIPE,
    {
        "model": {
            "head": {"kind": "mlp", "dropout": 0.0},
            "towers": {
                "expression": {"options": {"dropout": 0.0, "input_dropout": 0.0}},
                "text": None,
            },
            "pairs": {"image-text": None, "expression-text": None},
        },
        "training": {"accelerator": "cpu", "epochs": 2},
    },
)


def test_training_on_two_devices_equals_training_on_one(tmp_path: Path) -> None:
    # Negatives come from both processes and a step has the same rows, so only rounding differs.
    cohort = small.cohort(tmp_path)
    two = deep_merge(NO_DROPOUT, {"training": {"devices": 2}})
    assert children.run(children.fit, NO_DROPOUT, cohort.path, tmp_path / "one") == 0
    assert children.run(children.fit, two, cohort.path, tmp_path / "two") == 0
    one_log, two_log = (
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one_log) == len(two_log) == 8
    for a, b in zip(one_log, two_log, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    assert json.loads((tmp_path / "two/manifest.json").read_text())["processes"] == 2


def test_neighbourhoods_on_two_devices_are_those_of_one_and_a_last_step_may_leave_a_device_idle(tmp_path: Path) -> None:
    # Nothing is hidden, which is drawn by each process; the other loss draws nothing. Seven of eight groups are a step.
    change = {
        "data": {"val": ["S2", "S3"]},
        "model": {"intrinsic": 0, "masked": 1e-12, "context_from": 0.0},
        "training": {"accelerator": "cpu", "batch_size": 63, "clip_norm": 0.1},
    }
    one = deep_merge(STAMP, change)
    cohort = small.cohort(tmp_path, patients=4, images=False)
    assert children.run(children.fit, one, cohort.path, tmp_path / "one") == 0
    two = deep_merge(one, {"training": {"devices": 2}})
    assert children.run(children.fit, two, cohort.path, tmp_path / "two") == 0
    logs, tables = [], []
    for name in ("one", "two"):
        logs.append([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()])
        tables.append(pd.read_csv(tmp_path / name / "metrics.csv"))
    assert len(logs[0]) == len(logs[1]) == 3 * 2
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-3)
    assert "val_contextual" in tables[0]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)
