"""Draws that depend on the seed, the example and the node, and on nothing else."""

import functools

import pytest
import torch

from consilience.rng import Rng, generator, keyed, number, permutation, takes_rng


def test_a_row_depends_on_its_example_alone():
    together = Rng(0, [5, 7, 9]).normal(3, 4)
    alone = torch.cat([Rng(0, [i]).normal(3, 4) for i in (5, 7, 9)])
    assert torch.equal(together, alone)
    assert torch.equal(together[[2, 0]], Rng(0, [9, 5]).normal(3, 4))


def test_seed_example_and_node_all_change_a_row():
    rows = [Rng(0, [1]), Rng(1, [1]), Rng(0, [2]), Rng(0, [1]).at(0), Rng(0, [1]).at(1), Rng(0, [1]).at("0")]
    rows += [Rng(0, [1]).at(0).at(1), Rng(0, [1]).at(1).at(0)]
    drawn = torch.cat([rng.normal(2) for rng in rows])
    assert len(drawn.unique(dim=0)) == len(rows)


def test_the_same_node_draws_the_same_again():
    rng = Rng(3, [1, 2]).at(4)
    assert torch.equal(rng.uniform(5), rng.uniform(5))


def test_rows_are_taken_by_position_and_may_stand_several_times():
    rng = Rng(0, [5, 7])
    assert torch.equal(rng.rows([1, 1, 0]).normal(2), rng.normal(2)[[1, 1, 0]])


def test_no_global_generator_is_touched():
    before = torch.get_rng_state()
    Rng(0, [1, 2]).normal(10)
    assert torch.equal(before, torch.get_rng_state())


def test_normal_and_uniform_are_what_they_say():
    rng = Rng(0, range(200))
    normal, uniform, whole = rng.normal(100), rng.at(1).uniform(100), rng.at(2).integers(3, 100)
    assert abs(float(normal.mean())) < 0.03
    assert abs(float(normal.std()) - 1) < 0.03
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert abs(float(uniform.mean()) - 0.5) < 0.01
    assert sorted(whole.unique().tolist()) == [0, 1, 2]


@pytest.mark.parametrize("draw", [Rng.normal, Rng.uniform])
def test_an_empty_batch_keeps_shape_and_type(draw):
    drawn = draw(Rng(0, []), 3, 4)
    assert drawn.shape == (0, 3, 4)
    assert drawn.dtype == torch.float32


def test_streams_are_the_same_on_every_machine():
    assert number("noise", 0, 1) == 5109899978712744302
    assert generator("order", 0).bit_generator.random_raw(2).tolist() == [5800482618416882893, 12471203031894802410]
    assert permutation(3, "order", 0).tolist() == [0, 1, 2]
    assert sorted(permutation(50, "order", 1).tolist()) == list(range(50))


def test_only_what_draws_is_keyed():
    def draws(x, rng):
        return rng.normal(1)

    def plain(x):
        return x

    assert takes_rng(draws)
    assert takes_rng(functools.partial(draws, 3))
    assert keyed(plain, Rng(0, [1])) is plain
    assert keyed(draws, None) is draws
    assert torch.equal(keyed(draws, Rng(0, [1]))(3), Rng(0, [1]).normal(1))
