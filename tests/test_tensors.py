"""What several rooms do with tensors."""

import pytest
import torch
from scipy.stats import rankdata
from torch import nn

from consilience.errors import ModelError, SpecError
from consilience.tensors import CHUNK_BYTES, check_batch, join_channels, prepare, rows_per_chunk, slices, start_of

MAPS = torch.tensor([[[[1.0, -2.0]], [[-3.0, 1.0]]]])


@pytest.mark.parametrize(("how", "joined"), [("sum", [-2.0, -1.0]), ("sum_abs", [4.0, 3.0]), ("max_abs", [3.0, 2.0])])
def test_channels_are_joined_as_asked(how, joined):
    assert join_channels(MAPS, how).tolist() == [[joined]]


def test_channels_may_stay():
    assert join_channels(MAPS, "keep") is MAPS


def test_maps_are_joined_then_scaled_then_pooled():
    maps = torch.tensor([[[[3.0, 1.0], [0.0, 0.0]], [[0.0, -1.0], [4.0, 0.0]]]])
    scaled = torch.tensor([[[0.6, 0.0], [0.8, 0.0]]])
    torch.testing.assert_close(prepare(maps, "sum", "l2", None), scaled)
    torch.testing.assert_close(prepare(maps, "sum", "l2", 1), scaled.mean((1, 2), keepdim=True))


@pytest.mark.parametrize("normalise", ["l2", "l1"])
def test_a_map_of_zeros_cannot_be_scaled_to_one(normalise):
    assert prepare(torch.zeros(1, 1, 2, 2), "sum", normalise, None).isnan().all()


def test_maps_of_sum_one_keep_their_signs():
    maps = torch.tensor([[[[3.0, -1.0], [0.0, 4.0]]]])
    assert prepare(maps, "sum", "l1", None).tolist() == [[[0.375, -0.125], [0.0, 0.5]]]


def test_ranks_are_those_of_scipy_as_shares_of_the_map():
    maps = torch.randint(-3, 3, (4, 1, 5, 6), generator=torch.Generator().manual_seed(0)).float()
    found = prepare(maps, "sum", "rank", None)
    expected = torch.as_tensor(rankdata(maps.flatten(1).numpy(), axis=1) / 30).float().view(4, 5, 6)
    torch.testing.assert_close(found, expected)
    kept = prepare(maps.view(4, 2, 3, 5), "keep", "rank", None)
    torch.testing.assert_close(kept.flatten(1), expected.flatten(1))


def test_signs_are_all_that_is_left():
    assert prepare(torch.tensor([[[[3.0, -1e-9, 0.0]]]]), "sum", "sign", None).tolist() == [[[1.0, -1.0, 0.0]]]


@pytest.mark.parametrize("normalise", ["none", "l2", "l1", "rank", "sign"])
def test_an_undefined_pixel_makes_its_map_undefined_and_no_other(normalise):
    maps = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    spoilt = maps.clone()
    spoilt[1, 0, 2, 2] = torch.nan
    found = prepare(spoilt, "sum", normalise, None)
    assert found[1].isnan().all() or normalise == "none"
    torch.testing.assert_close(found[[0, 2]], prepare(maps, "sum", normalise, None)[[0, 2]])


@pytest.mark.parametrize("normalise", ["l2", "l1", "rank", "sign"])
def test_another_scale_is_not_seen_in_normalised_maps(normalise):
    maps = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(*(prepare(scaled, "sum", normalise, 2) for scaled in (maps, 5 * maps)))


def test_a_baseline_is_a_value_or_the_model_s_mean():
    x, model = torch.rand(2, 3, 4, 4), nn.Identity()
    assert (start_of(x, 0.25, model) == 0.25).all()
    with pytest.raises(ModelError, match="baseline 'mean'"):
        start_of(x, "mean", model)
    model.register_buffer("pixel_mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
    assert torch.equal(start_of(x, "mean", model)[1, :, 0, 0], torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize(
    ("x", "target"),
    [
        (torch.rand(2, 4, 4), torch.tensor([0, 1])),
        (torch.randint(0, 255, (2, 1, 4, 4)), torch.tensor([0, 1])),
        (torch.rand(2, 1, 4, 4), torch.tensor([0])),
        (torch.rand(2, 1, 4, 4), torch.tensor([0.0, 1.0])),
        (torch.rand(2, 1, 4, 4), torch.tensor([True, False])),
    ],
)
def test_what_cannot_be_explained_is_refused(x, target):
    with pytest.raises(SpecError, match="expected"):
        check_batch(nn.Identity(), x, target)


def test_a_chunk_keeps_to_the_memory_budget():
    class Wide(nn.Module):
        def forward(self, x):
            return (x.flatten(1).repeat(1, 1000) ** 2).sum(1, keepdim=True)

    x = torch.rand(3, 1, 16, 16)
    rows = rows_per_chunk(Wide(), x)
    assert 0.4 * CHUNK_BYTES < rows * 256 * 1000 * 4 <= CHUNK_BYTES
    assert rows_per_chunk(nn.Flatten(), x) == 1024
    assert rows_per_chunk(nn.Flatten(), x[:0]) == 1


def test_slices_cover_everything_once():
    assert [list(range(7))[s] for s in slices(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(slices(0, 3)) == []
