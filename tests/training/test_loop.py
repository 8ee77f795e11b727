"""The loop: the same result every time, four chances apart, and nothing left behind."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from consilience.errors import DataError, ModelError, SpecError
from consilience.rng import permutation
from consilience.training.loop import Chances, Progress
from consilience.training.objectives import cross_entropy
from consilience.training.optimizers import adam, sgd


class Notes:
    """An objective that writes down what it sees."""

    def __init__(self):
        self.ids, self.pixels, self.start = [], {}, None

    def __call__(self, model, batch):
        self.start = self.start or {name: weight.clone() for name, weight in model.state_dict().items()}
        self.ids.append(batch.ids.tolist())
        self.pixels |= {(len(self.ids) > 3, int(i)): x.clone() for i, x in zip(batch.ids, batch.x, strict=True)}
        return cross_entropy(model, batch)


def noted(run, **changed):
    notes = Notes()
    return notes, run(objective=notes, **changed)


def brighter(x, rng):
    return x * (1 - 0.1 * rng.uniform(1, 1, 1))


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_two_trainings_are_equal_bit_for_bit(run, same):
    assert same(run(keep=[0, 1]), run(keep=[0, 1]))


def test_the_number_of_threads_of_the_caller_changes_nothing(run, same):
    threads = torch.get_num_threads()
    one = run()
    try:
        torch.set_num_threads(threads + 1)
        assert same(one, run())
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)


def test_the_random_state_of_the_caller_changes_nothing_and_is_not_changed(run, same):
    first = run()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert same(first, run())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_drawn_while_progress_is_told_changes_nothing(run, same):
    assert same(run(), run(on_epoch=lambda _: torch.rand(3)))


def test_init_alone_changes_only_the_weights_at_the_start(run):
    (a, one), (b, two) = noted(run), noted(run, chances=Chances(init=1))
    assert not equal(a.start, b.start)
    assert a.ids == b.ids
    assert equal(a.pixels, b.pixels)
    assert not equal(one.weights, two.weights)


def test_order_alone_changes_only_the_order(run, without_dropout):
    (a, one), (b, two) = (noted(run, build=without_dropout, chances=Chances(order=seed)) for seed in (0, 1))
    assert equal(a.start, b.start)
    assert a.ids != b.ids
    assert equal(a.pixels, b.pixels)
    assert not equal(one.weights, two.weights)


def test_every_example_is_seen_once_in_an_epoch_and_in_another_order_in_the_next(run):
    ids = noted(run)[0].ids
    assert [len(step) for step in ids] == [10, 10, 4, 10, 10, 4]
    first, second = sum(ids[:3], []), sum(ids[3:], [])  # noqa: RUF017  (six short lists)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first == permutation(24, "order", 0, 0).tolist()


def test_noise_alone_changes_only_dropout(run, without_dropout):
    (a, one), (b, two) = noted(run), noted(run, chances=Chances(noise=1))
    assert equal(a.start, b.start)
    assert a.ids == b.ids
    assert equal(a.pixels, b.pixels)
    assert not equal(one.weights, two.weights)
    assert equal(*(run(build=without_dropout, chances=Chances(noise=seed)).weights for seed in (0, 1)))


def test_dropout_depends_on_noise_epoch_and_step_and_not_on_the_draws_before(run):
    masks = []

    def greedy(draws, model, batch):
        masks.append(nn.functional.dropout(torch.ones(50)))
        torch.rand(draws)
        return cross_entropy(model, batch)

    for draws in (0, 7):
        run(objective=functools.partial(greedy, draws))
    assert torch.equal(torch.stack(masks[:6]), torch.stack(masks[6:]))
    assert len({tuple(mask.tolist()) for mask in masks}) == 6


def test_augment_alone_changes_only_the_augmented_pixels(run):
    (a, one), (b, two) = (noted(run, augmentation=brighter, chances=Chances(augment=seed)) for seed in (0, 1))
    assert equal(a.start, b.start)
    assert a.ids == b.ids
    assert not any(torch.equal(a.pixels[key], b.pixels[key]) for key in a.pixels)
    assert not equal(one.weights, two.weights)
    assert equal(*(run(chances=Chances(augment=seed)).weights for seed in (0, 1)))


def test_an_example_is_augmented_alike_in_any_order_and_anew_in_every_epoch(run):
    pixels, reordered = (
        noted(run, augmentation=brighter, chances=Chances(order=seed), batch_size=size)[0].pixels
        for seed, size in [(0, 10), (1, 8)]
    )
    assert all(torch.equal(pixels[key], reordered[key]) for key in pixels)
    assert not any(torch.equal(pixels[False, i], pixels[True, i]) for i in range(24))


def test_an_objective_that_asks_for_rng_gets_draws_keyed_by_the_noise(run):
    drawn = []

    def asking(model, batch, rng):
        drawn.append(dict(zip(batch.ids.tolist(), rng.uniform().tolist(), strict=True)))
        return cross_entropy(model, batch)

    for chances in (Chances(), Chances(order=1), Chances(noise=1)):
        run(objective=asking, chances=chances, epochs=1, batch_size=24)
    assert drawn[0] == drawn[1]
    assert not set(drawn[0].values()) & set(drawn[2].values())


def test_the_rate_of_each_epoch_is_the_schedule_s_and_is_remembered(run):
    history = run(epochs=3).history
    assert [epoch["rate"] for epoch in history] == [1.0, 0.7, 1.0 * 0.7**2]
    assert [set(epoch) for epoch in history] == [{"loss", "rate"}] * 3


def test_the_optimizer_steps_at_the_rate_of_the_epoch(run):
    descend = functools.partial(sgd, lr=0.5, momentum=0.0, milestones=(1,))
    downhill = run(objective=lambda model, _: model.model.fc1.bias.sum(), optimizer=descend, batch_size=24, keep=[0, 1])
    start, middle, end = (w["fc1.bias"] for w in (downhill.kept[0], downhill.kept[1], downhill.weights))
    torch.testing.assert_close(start - middle, torch.full((2,), 0.5))
    torch.testing.assert_close(middle - end, torch.full((2,), 0.05))


def test_the_loss_of_an_epoch_is_the_mean_over_its_examples(run):
    values = iter(range(6))
    frozen = run(objective=lambda model, _: next(values) + 0 * model(torch.rand(1, 1, 12, 12)).sum())
    expected = [(10 * a + 10 * b + 4 * c) / 24 for a, b, c in [(0, 1, 2), (3, 4, 5)]]
    assert [epoch["loss"] for epoch in frozen.history] == pytest.approx(expected)


def test_kept_epochs_are_those_of_shorter_trainings(run):
    long = run(epochs=3, keep=[0, 1, 3])
    assert list(long.kept) == [0, 1, 3]
    assert equal(long.kept[0], run(epochs=0).weights)
    assert equal(long.kept[1], run(epochs=1).weights)
    assert equal(long.kept[3], long.weights)


def test_weights_that_come_out_are_plain_and_nobody_else_s(run):
    built = []

    def build(make=run.__defaults__[0]):
        built.append(make())
        return built[0]

    weights = run(build=build).weights
    before = {name: weight.clone() for name, weight in weights.items()}
    with torch.no_grad():
        for parameter in built[0].parameters():
            parameter.add_(1)
    assert equal(weights, before)
    assert not any(weight.requires_grad for weight in weights.values())


def test_progress_is_told_after_every_epoch(run):
    told = []
    history = run(epochs=3, on_epoch=told.append).history
    assert [(p.epoch, p.epochs, p.loss) for p in told] == [(i, 3, e["loss"]) for i, e in enumerate(history, start=1)]
    assert all(isinstance(p, Progress) and p.seconds > 0 for p in told)


def test_inside_there_are_one_thread_deterministic_kernels_and_gradients(run):
    seen = set()

    def looking(model, batch):
        seen.add((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), model.training))
        return cross_entropy(model, batch)

    with torch.no_grad():
        run(objective=looking)
        assert not torch.is_grad_enabled()
    assert seen == {(1, True, True)}


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ZeroDivisionError])
def test_all_settings_are_restored_also_after_failure(run, error):
    def failing(model, batch):
        if error and 3 in batch.ids:
            raise error
        return cross_entropy(model, batch)

    def settings():
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.get_rng_state().tolist(),
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    before = settings()
    try:
        if error:
            with pytest.raises(error):
                run(objective=failing)
        else:
            run(objective=failing)
        assert settings() == before
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_epoch_step_and_the_last_finite_one(run, value):
    losses = iter([0.5, 0.25, 0.125, 0.75, value])

    def objective(model, batch):
        return next(losses) + 0 * cross_entropy(model, batch)

    message = (
        rf"epoch 2, step 2: expected a finite loss, found {value} \(the last finite loss .* 0\.75\); try a smaller"
    )
    with pytest.raises(ModelError, match=message):
        run(objective=objective)


def test_weights_that_turn_nan_under_a_finite_loss_are_named(run):
    def objective(model, batch):
        return cross_entropy(model, batch) + (0 * model.model.fc1.bias).sum().sqrt()  # its slope is 0 times infinity

    with pytest.raises(ModelError, match=r"finite weights, found NaN or infinity in 'model\.fc1\.bias'"):
        run(objective=objective, batch_size=24)


@pytest.mark.parametrize("value", [float("nan"), -0.5, 3.0])
def test_pixels_that_are_none_are_refused_with_the_example(run, examples, value):
    def damaged(ids, whole=examples.batch):
        batch = whole(ids)
        batch.x[batch.ids == 7, 0, 2, 3] = value
        return batch

    examples.batch = damaged
    with pytest.raises(DataError, match=rf"example 7: expected pixels from 0 to 1, found {value:.4g}; divide"):
        run()


@pytest.mark.parametrize("wrong", [{"epochs": -1}, {"batch_size": 0}, {"keep": [3]}, {"keep": [-1]}])
def test_a_recipe_that_cannot_be_is_refused(run, wrong):
    with pytest.raises(SpecError, match="expected epochs"):
        run(**wrong)


@pytest.mark.parametrize("optimizer", [adam, functools.partial(sgd, lr=0.02)])
def test_every_optimizer_trains(run, optimizer):
    history = run(optimizer=optimizer, epochs=5).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_an_easy_problem_is_learnt_completely(run, examples):
    build = run.__defaults__[0]
    model = build()
    model.load_state_dict(run(epochs=3, batch_size=4).weights)
    batch = examples.batch(range(len(examples)))
    assert torch.equal(model.eval()(batch.x).argmax(1), batch.label)


def test_a_training_does_not_use_numpy_s_global_generator(run):
    np.random.seed(3)
    state = np.random.get_state()[1].tolist()
    run(epochs=1)
    assert np.random.get_state()[1].tolist() == state


def test_without_shuffling_every_epoch_has_the_order_of_the_data(run):
    notes, trained = noted(run, shuffle=False)
    assert [i for ids in notes.ids for i in ids] == [*range(24), *range(24)]
    assert equal(trained.weights, run(shuffle=False, chances=Chances(order=5)).weights)
