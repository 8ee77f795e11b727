"""Variance shares: planted variances, the definition by hand, what the model leaves out, and what is undefined."""

from itertools import combinations

import numpy as np
import pytest
import torch

from consilience import component
from consilience.measures.agreement import next_of_class, wrong_image
from consilience.measures.disagreement import squared_distance
from consilience.measures.variance import TOGETHER, variance_shares
from consilience.rng import Rng
from consilience.tensors import Table

N, PIXELS = 40, 30
VARIANCE = {"explainer": 0.1, "init": 0.3, "order": 0.2, "image": 0.4}


def twins(factors):
    """As ``retrain`` builds them: the base, then one twin for each further value of each factor."""
    base = dict.fromkeys(factors, 0)
    return [base, *({**base, name: value} for name, count in factors.items() for value in range(1, count))]


def tables(maps, again, members, label):
    """The three tables of a family's maps, by the measures themselves."""
    pairs = list(combinations(range(len(maps)), 2))
    differs = [tuple(name for name in members[a] if members[a][name] != members[b][name]) for a, b in pairs]

    def table(values, pairs, differs):
        return Table(*zip(*pairs, strict=True), tuple(differs), torch.arange(len(label)), label, torch.stack(values))

    wrong = [wrong_image(maps[a], maps[b], label, of=squared_distance) for a, b in pairs]
    return (
        table([squared_distance(maps[a], maps[b]) for a, b in pairs], pairs, differs),
        table([squared_distance(*again)], [(0, 1)], [("draw",)]),
        table(wrong, pairs, differs),
    )


def simulated(seed, factors, common=0.3, variance=VARIANCE):
    """Maps that are sums of normal fields; ``common`` is the share of a factor that is the same on every image."""
    chance = np.random.default_rng(seed)
    label = torch.arange(N) % 4

    def field(size, scale, n=N):
        return chance.normal(0, np.sqrt(size * scale), (n, PIXELS))

    image = chance.normal(0, 2, (4, PIXELS))[label] + field(variance["image"], 1)
    effect = {
        (name, value): field(variance[name], common, 1) + field(variance[name], 1 - common)
        for name, count in factors.items()
        for value in range(count)
    }

    def maps(member):
        part = sum(effect[name, value] for name, value in member.items())
        return torch.from_numpy(image + part + field(variance["explainer"], 1))

    members = twins(factors)
    return tables([maps(one) for one in members], [maps(members[0]) for _ in range(2)], members, label)


def rows(given, seed=0, **options):
    return {row.name: row for row in variance_shares(*given, Rng(seed, []), **{"draws": 200, **options})}


def shares(factors, variance=VARIANCE):
    names = ("explainer", *factors, "image")
    return {name: variance[name] / sum(variance[one] for one in names) for name in names}


def constant(members, distance, noise, added, n=12):
    """Tables without chance: ``distance`` and ``added`` say what each tuple of factors makes."""
    label = torch.arange(n) % 2
    one = torch.zeros(n, 1, dtype=torch.float64)
    table, floor, wrong = tables([one] * len(members), [one] * 2, members, label)
    value = torch.tensor([distance[names] for names in table.differs]).double()[:, None].expand(-1, n).clone()
    plus = torch.tensor([added[names] for names in table.differs]).double()[:, None]
    return table._replace(value=value), floor._replace(value=floor.value + noise), wrong._replace(value=value + plus)


@pytest.mark.parametrize("factors", [{"init": 4}, {"init": 4, "order": 4}], ids=["one factor", "two factors"])
def test_planted_shares_lie_in_their_intervals(factors):
    found = rows(simulated(0, factors))
    assert list(found) == ["explainer", *factors, "image", *([TOGETHER] if len(factors) > 1 else [])]
    for name, share in shares(factors).items():
        assert found[name].low < share < found[name].high
        assert found[name].estimate == pytest.approx(share, abs=0.06)
    assert sum(found[name].estimate for name in shares(factors)) == pytest.approx(1)


def test_intervals_cover_the_truth_of_families_with_several_values():
    truth, runs = shares({"init": 3, "order": 3}), 40
    hits = dict.fromkeys(truth, 0)
    for seed in range(runs):
        found = rows(simulated(seed, {"init": 3, "order": 3}), seed, draws=100)
        for name, share in truth.items():
            hits[name] += found[name].low <= share <= found[name].high
    assert all(count >= 33 for count in hits.values()), "below the 99.9 % range of a binomial with 0.95"


def test_a_factor_is_the_variance_over_its_values_and_the_image_half_of_what_the_wrong_one_adds():
    chance = np.random.default_rng(3)
    label = torch.arange(12) % 3
    maps = torch.from_numpy(chance.normal(0, 1, (5, 12, 7)))
    given = tables(list(maps), [maps[0], maps[0]], twins({"init": 5}), label)
    init = maps.numpy().var(0, ddof=1).sum(1).mean()
    other = next_of_class(label)
    image = np.mean(
        [
            float((maps[a, i] - maps[b, other[i]]).square().sum() - (maps[a, i] - maps[b, i]).square().sum()) / 2
            for a, b in combinations(range(5), 2)
            for i in range(12)
        ]
    )
    found = rows(given)
    assert found["init"].estimate == pytest.approx(init / (init + image))
    assert found["image"].estimate == pytest.approx(image / (init + image))


def test_factors_that_only_vary_together_are_one_and_all_chances_are_everything():
    for factors, name in ((("init", "order"), "init, order"), (("init", "order", "noise", "augment"), "everything")):
        members = [dict.fromkeys(factors, value) for value in range(3)]
        found = rows(constant(members, {factors: 3.0}, 1.0, {factors: 4.0}))
        assert {name: row.estimate for name, row in found.items()} == pytest.approx(
            {"explainer": 0.5 / 3.5, name: 1 / 3.5, "image": 2 / 3.5}
        )


def test_a_method_without_chance_has_no_share():
    table, floor, wrong = simulated(0, {"init": 3})
    row = rows((table, floor._replace(value=torch.zeros_like(floor.value)), wrong))["explainer"]
    assert (row.estimate, row.low, row.high) == (0, 0, 0)


def test_what_a_shared_value_does_to_one_image_and_not_to_another_is_not_the_images():
    """Two factors of variance 1, all of it differing from image to image; the image has 2, the explainer 0.5."""
    distance = {("init",): 3.0, ("order",): 3.0, ("init", "order"): 5.0}
    added = {("init",): 4.0 + 2, ("order",): 4.0 + 2, ("init", "order"): 4.0}
    found = rows(constant(twins({"init": 3, "order": 3}), distance, 1.0, added))
    estimates = {name: row.estimate for name, row in found.items()}
    assert estimates == pytest.approx(
        {"explainer": 0.5 / 4.5, "init": 1 / 4.5, "order": 1 / 4.5, "image": 2 / 4.5, TOGETHER: 1}
    )
    assert found["image"].low == pytest.approx(2 / 4.5)


def test_three_factors_are_taken_out_though_no_pair_differs_in_all():
    factors = {"init": 2, "order": 2, "noise": 2}
    added = {names: 2 * (1.0 + 0.5 * (3 - len(names))) for k in (1, 2) for names in combinations(factors, k)}
    distance = {names: 1.0 * len(names) for names in added}
    found = rows(constant(twins(factors), distance, 0.0, added))
    assert found["image"].estimate == pytest.approx(1 / 2.5)


def test_overlapping_factors_are_told_by_the_last_row():
    """Any other value of anything makes another model: two changes are no more than one."""
    distance = dict.fromkeys([("init",), ("order",), ("init", "order")], 2.0)
    found = rows(constant(twins({"init": 3, "order": 3}), distance, 0.0, dict.fromkeys(distance, 2.0)))
    assert found[TOGETHER].estimate == pytest.approx(0.5)
    assert found[TOGETHER].null == 1
    assert found[TOGETHER].pairs == 4


def test_undefined_values_are_counted_and_left_out():
    given = constant(twins({"init": 3}), {("init",): 3.0}, 1.0, {("init",): 4.0})
    whole = rows(given)
    table, floor, wrong = given
    table.value[0, 3] = torch.nan
    floor.value[0, 5] = torch.nan
    wrong.value[2, 7] = torch.nan
    found = rows((table, floor, wrong))
    assert {name: row.undefined for name, row in found.items()} == {"explainer": 1, "init": 4, "image": 2}
    assert found["init"].estimate == pytest.approx(whole["init"].estimate)
    assert found["image"].estimate == pytest.approx(whole["image"].estimate)


def test_a_cascade_does_not_tell_the_image_apart():
    members = [{"first": 0, "second": 0}, {"first": 1, "second": 0}, {"first": 0, "second": 1}]
    table, floor, wrong = constant(
        members, dict.fromkeys([("first",), ("second",), ("first", "second")], 2.0), 0.0,
        dict.fromkeys([("first",), ("second",), ("first", "second")], 2.0),
    )  # fmt: skip
    stages = [
        part._replace(**{k: getattr(part, k)[:2] for k in ("a", "b", "differs", "value")}) for part in (table, wrong)
    ]
    found = rows((stages[0], floor, stages[1]))
    assert all(np.isnan([row.estimate, row.low, row.high]).all() for row in found.values())


def test_nothing_but_undefined_values_is_undefined():
    table, floor, wrong = simulated(0, {"init": 3})
    found = rows((table._replace(value=table.value * torch.nan), floor, wrong))
    assert all(np.isnan(row.estimate) for row in found.values())


def test_there_are_no_shares_where_the_sum_is_not_positive():
    same = constant(twins({"init": 3}), {("init",): 0.0}, 0.0, {("init",): 0.0})
    assert all(np.isnan(row.estimate) for row in rows(same).values())


def test_what_is_undefined_has_no_interval():
    """Noise alone, with factors that come out below zero: there is no sum for several to be compared with."""
    noise = {"explainer": 1.0, "init": 0.0, "order": 0.0, "image": 0.0}
    found = [rows(simulated(seed, {"init": 3, "order": 3}, variance=noise))[TOGETHER] for seed in range(8)]
    undefined = [row for row in found if np.isnan(row.estimate)]
    assert undefined
    assert all(np.isnan([row.low, row.high]).all() for row in undefined)


def test_a_training_that_was_only_run_again_is_no_source():
    table, floor, wrong = simulated(0, {"init": 3})
    again = {"a": (*table.a, 0), "b": (*table.b, 9), "differs": (*table.differs, ("nothing",))}
    more = [t._replace(**again, value=torch.cat([t.value, t.value[:1]])) for t in (table, wrong)]
    assert rows((more[0], floor, more[1])) == rows((table, floor, wrong))


def test_a_factor_that_never_differs_alone_is_left_out():
    table, floor, wrong = simulated(0, {"init": 3})
    more = {"a": (*table.a, 0), "b": (*table.b, 9), "differs": (*table.differs, ("init", "augment"))}
    joined = [t._replace(**more, value=torch.cat([t.value, t.value[:1]])) for t in (table, wrong)]
    assert rows((joined[0], floor, joined[1])) == rows((table, floor, wrong))


def test_factors_that_always_differ_together_are_one():
    table, floor, wrong = simulated(0, {"init": 4})
    together = {"differs": (("init", "order"),) * len(table.a)}
    found = rows((table._replace(**together), floor, wrong._replace(**together)))
    assert list(found) == ["explainer", "init, order", "image"]
    assert found["init, order"].estimate == rows((table, floor, wrong))["init"].estimate


def test_the_interval_is_a_function_of_the_seed_and_the_level():
    given = simulated(1, {"init": 3, "order": 3})
    assert rows(given) == rows(given)
    assert rows(given, seed=1)["init"].low != rows(given)["init"].low
    assert rows(given, level=0.5)["init"].high < rows(given)["init"].high


def test_it_is_offered_for_squared_distances_alone():
    assert component.summary.get("variance_shares").of == ("squared_distance",)
