"""Wherever a run's jobs are done, the artifacts are the same bytes."""

import pytest
import torch
from tests.experiment.fixtures import contents

from consilience.errors import SpecError
from consilience.experiment.executors import Inline, executor
from consilience.experiment.run import run
from consilience.experiment.specs import Subject, explanation


def test_two_processes_make_the_same_bytes(tiny, made, tmp_path):
    with executor("processes:2") as pool:
        outcome = run(tiny, tmp_path, executor=pool)
    assert not outcome.failures
    assert contents(tmp_path) == contents(made)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # dask's own
def test_two_threads_of_a_dask_worker_make_the_same_bytes(tiny, made, tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None, protocol="inproc"
    )
    with cluster, executor(f"dask:{cluster.scheduler_address}") as pool:
        outcome = run(tiny, tmp_path, executor=pool)
    assert not outcome.failures
    assert contents(tmp_path) == contents(made)


@pytest.mark.filterwarnings("ignore")  # ray's own, of many kinds
def test_ray_makes_the_same_bytes(tiny, made, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        with executor("ray:") as pool:
            assert pool.workers == 2
            outcome = run(tiny, tmp_path, executor=pool)
        assert ray.is_initialized(), "a cluster that was there before is not ended"
    finally:
        ray.shutdown()
    assert not outcome.failures
    assert contents(tmp_path) == contents(made)


def test_a_run_leaves_torch_as_it_was(tiny, tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        run([tiny.base, explanation(Subject(source=tiny.base), tiny.controls[0], tiny.examples, 0)], tmp_path)
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)


def test_here_is_the_place_where_a_job_is_done_when_it_is_submitted():
    with executor("here") as place:
        assert isinstance(place, Inline)
        job = place.submit(divmod, 7, 3)
        assert job.done()
        assert job.result() == (2, 1)
        assert isinstance(place.submit(divmod, 7, 0).exception(), ZeroDivisionError)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("process:2", "did you mean 'processes'"),
        ("processes", "processes:N"),
        ("processes:0", "processes:N"),
        ("processes:two", "found 'two'"),
        ("cloud", "there are: dask, here, processes, ray"),
    ],
)
def test_a_place_that_is_none_is_refused(word, says):
    with pytest.raises(SpecError, match=says), executor(word):
        pass


def test_an_extra_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(SpecError, match=r"pip install consilience\[dask\]"), executor("dask"):
        pass
