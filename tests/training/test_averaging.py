"""Stochastic weight averaging: the mean of what a training came past, and batch norm that fits it."""

import pytest
import torch
from tests.training.conftest import planted
from torch import nn

from consilience.errors import SpecError
from consilience.models.split import normalised
from consilience.training.averaging import running_mean, settle


def test_the_weights_are_the_mean_of_those_after_the_epoch_and_every_later_one(run):
    trained = run(epochs=4, keep=[2, 3], average_from=2)
    last = run(epochs=4).weights
    for name, weight in trained.weights.items():
        several = torch.stack([trained.kept[2][name], trained.kept[3][name], last[name]])
        torch.testing.assert_close(weight, several.double().mean(0).float(), atol=1e-7, rtol=0)


def test_kept_epochs_and_losses_are_as_without(run):
    with_mean, without = run(epochs=3, keep=[1, 2], average_from=1), run(epochs=3, keep=[1, 2])
    assert with_mean.history == without.history
    for epoch in (1, 2):
        assert all(torch.equal(with_mean.kept[epoch][name], without.kept[epoch][name]) for name in without.weights)
    assert not torch.equal(with_mean.weights["fc1.weight"], without.weights["fc1.weight"])


def test_an_interrupted_training_goes_on_with_its_mean(run, same, tmp_path):
    def stop(progress):
        if progress.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(epochs=5, average_from=2, checkpoint=tmp_path, on_epoch=stop)
    assert same(run(epochs=5, average_from=2, checkpoint=tmp_path), run(epochs=5, average_from=2))


def test_batch_norm_learns_what_the_averaged_weights_make_of_the_pixels():
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    x = planted().batch(range(24)).x
    settle(model, {name: tensor.double() for name, tensor in model.state_dict().items()}, iter(x.chunk(2)))
    answers = model[1](x.flatten(1)).detach()
    means = torch.stack([part.mean(0) for part in answers.chunk(2)]).mean(0)
    torch.testing.assert_close(model[2].running_mean, means)
    assert model[2].momentum == 0.1
    assert all(module.training for module in model.modules())


def with_norm():
    layers = nn.Sequential(nn.Flatten(), nn.Linear(144, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    return normalised(layers, (0.4,), (0.3,))


def test_a_model_with_batch_norm_is_trained_and_averaged(run):
    trained = run(build=with_norm, epochs=3, batch_size=8, average_from=1)
    assert trained.weights["2.num_batches_tracked"] == 3  # of the last pass alone
    assert all(weight.isfinite().all() for weight in trained.weights.values())


def test_a_running_mean_is_the_mean():
    parts = [{"w": torch.randn(5, generator=torch.Generator().manual_seed(seed))} for seed in range(4)]
    mean = {}
    for count, part in enumerate(parts, 1):
        mean = running_mean(mean, part, count)
    torch.testing.assert_close(mean["w"], torch.stack([part["w"] for part in parts]).double().mean(0))


@pytest.mark.parametrize("epoch", [0, 3, -1])
def test_an_epoch_that_there_is_not_is_refused(run, epoch):
    with pytest.raises(SpecError, match=r"average_from: expected an epoch from 1 to 2"):
        run(epochs=2, average_from=epoch)
