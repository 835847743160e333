from __future__ import annotations

import numpy as np
import pytest
import torch

from triglyph.models.heads import HeadConfig, PresentBatchNorm, SpatialWhispererHead, Standardise, build_head


@pytest.mark.parametrize(("dim_in", "millions"), [(512, 6.30), (768, 7.35), (1536, 10.50)])
def test_spatialwhisperer_head_has_the_published_size(dim_in: int, millions: float) -> None:
    with torch.device("meta"):
        inner = torch.nn.Linear(dim_in, 2048, bias=False)
    head = SpatialWhispererHead(dim_in, 2048)
    assert head.inner.weight.shape == inner.weight.shape
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    assert len(head.state_dict()) == 12


def test_spatialwhisperer_head_is_its_formula() -> None:
    torch.manual_seed(0)
    head = SpatialWhispererHead(5, 7).eval()
    x = torch.randn(4, 5)
    bn = head.batch_norm
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    hidden = x @ head.inner.weight.T
    hidden = (hidden - bn.running_mean) / torch.sqrt(bn.running_var + bn.eps) * bn.weight + bn.bias
    total = hidden.clamp(min=0) @ head.outer.weight.T + head.outer.bias + x @ head.skip.weight.T + head.skip.bias
    centred = total - total.mean(1, keepdim=True)
    normed = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + head.norm.eps)
    torch.testing.assert_close(head(x), normed * head.norm.weight + head.norm.bias)


@pytest.mark.parametrize(("dim_in", "dim"), [(3, 8), (8, 3), (5, 5)])
def test_skip_path_starts_as_a_noisy_copy(dim_in: int, dim: int) -> None:
    weight = SpatialWhispererHead(dim_in, dim).skip.weight.detach()
    diagonal = torch.eye(dim, dim_in, dtype=torch.bool)
    assert (weight[diagonal] == 1).all()
    assert weight[~diagonal].abs().max() <= 0.01


def test_one_training_row_is_normalised_by_running_statistics_and_leaves_them() -> None:
    norm = PresentBatchNorm(3).train()
    norm(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)) + 5)
    before = norm.running_mean.clone(), norm.running_var.clone(), int(norm.num_batches_tracked)
    row = torch.tensor([[1.0, 2.0, 3.0]])
    out = norm(row)
    torch.testing.assert_close(out, (row - before[0]) / torch.sqrt(before[1] + norm.eps))
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    assert int(norm.num_batches_tracked) == before[2]
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("kind", ["spatialwhisperer", "mlp", "linear"])
def test_heads_accept_any_number_of_rows(kind: str) -> None:
    head = build_head(HeadConfig.model_validate({"kind": kind}), dim_in=6, dim=4).train()
    for rows in (0, 1, 5):
        assert head(torch.ones(rows, 6)).shape == (rows, 4)


def test_standardise_gives_mean_0_and_deviation_1_and_silences_constants() -> None:
    values = np.random.default_rng(0).normal([5, -100, 3], [0.01, 40, 0], size=(500, 3)).astype(np.float32)
    scaler = Standardise(3)
    scaler.fit(values)
    out = scaler(torch.from_numpy(values)).numpy()
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(out.std(0), [1, 1, 0], atol=1e-3)
