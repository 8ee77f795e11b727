"""The end of a run that failed somewhere: each reason once, with the jobs that it stopped."""

import pytest
from msgspec.structs import replace

from consilience.cli.experiments import _closing
from consilience.cli.progress import describe
from consilience.experiment.factors import trained_on, varied
from consilience.experiment.run import Failure, Outcome


@pytest.fixture
def closed(tiny, capsys):
    """The lines that are said where trainings of these seeds failed for these reasons."""

    def closed(*failed):
        failures = tuple(Failure((replace(tiny.base, init=seed),), *why) for seed, *why in failed)
        assert _closing(Outcome(0, 0, failures, 7, 0.0)) == 1
        return capsys.readouterr().err.strip().splitlines()

    return closed


def job(tiny, seed):
    spec = replace(tiny.base, init=seed)
    return f"train mlp(hidden=(8,)), init {seed}, order 0, noise 0 [{spec.digest[:12]}]"


def test_a_reason_that_many_share_is_said_once_with_the_first_of_them_and_their_number(tiny, closed):
    said = closed((0, "no", ""), (1, "never", ""), *((seed, "no", "") for seed in (2, 3, 4)))
    assert said == [
        "5 failed, 7 not tried since they rest on these:",
        "- 4 jobs: no",
        *(f"  {job(tiny, seed)}" for seed in (0, 2, 3)),
        "  and 1 more",
        f"- {job(tiny, 1)}: never",
    ]


def test_three_jobs_are_all_named(tiny, closed):
    assert closed(*((seed, "no", "") for seed in range(3)))[1:] == [
        "- 3 jobs: no",
        *(f"  {job(tiny, seed)}" for seed in range(3)),
    ]


def test_one_reason_from_two_places_keeps_both_traces(tiny, closed):
    said = closed((0, "no", "here"), (1, "no", "there"), (2, "no", "here"))
    assert said[1:] == [
        "- 2 jobs: no", f"  {job(tiny, 0)}", f"  {job(tiny, 2)}", "here", f"- {job(tiny, 1)}: no", "there",
    ]  # fmt: skip


def test_twins_on_other_parts_of_the_examples_have_other_names(tiny):
    whole = describe([tiny.base])
    assert describe([varied(tiny.base, "subset", 3)]) == f"{whole}, subset 3"
    assert describe([trained_on(tiny.base, tiny.base.data, "fold", 1, 2)]) == f"{whole}, fold 1"
