"""What a run survives: being killed, interrupted, a full disk. What it makes is the same to the last byte."""

import random
import signal

import pytest
from tests.experiment.fixtures import contents


@pytest.fixture
def counted(order, tiny_file, tmp_path):
    """Runs the tiny experiment in a process that counts what it does to the store's files, or dies of it."""

    def counted(store, die_at=None):
        return order("run", tiny_file, "--store", store, watch=str(store), die_at=die_at)

    return counted


def test_a_run_that_is_killed_at_any_moment_goes_on_and_ends_with_the_same_bytes(counted, made, tmp_path):
    whole = counted(tmp_path / "whole")
    total = int(whole["out"].split("events")[1])
    assert contents(tmp_path / "whole") == contents(made)

    chance = random.Random(0)
    for name, moments in {
        "one": [chance.randrange(1, 40)],  # while the store itself is made
        "two": [chance.randrange(40, total)],
        "many": [chance.randrange(1, total // 3) for _ in range(4)],
    }.items():
        store = tmp_path / name
        for moment in moments:
            assert counted(store, moment)["code"] == -signal.SIGKILL, f"{name}: {moment} of {total}"
        assert counted(store)["code"] == 0
        assert contents(store) == contents(made), f"{name}: {moments} of {total}"


def test_a_run_that_is_interrupted_says_so_leaves_no_process_and_goes_on(order, tiny_file, made, tmp_path):
    words = ["run", tiny_file, "--store", tmp_path / "store"]
    stopped = order(*words, "--on", "processes:1", signal=signal.SIGINT)
    assert stopped["code"] == 130
    assert "consilience run: stopped; run the same command again to go on from here" in stopped["err"]

    again = order(*words)
    assert again["code"] == 0
    assert int(again["out"].split("found ")[1].split(",")[0]) > 0
    assert contents(tmp_path / "store") == contents(made)


def test_workers_do_not_outlive_a_run_that_was_killed(order, tiny_file, tmp_path):
    killed = order("run", tiny_file, "--store", tmp_path / "store", "--on", "processes:1", signal=signal.SIGKILL)
    assert killed["code"] == -signal.SIGKILL  # and the answer came, so nobody holds the streams


def test_a_worker_that_dies_is_one_clear_error_and_costs_only_what_it_worked_on(order, tiny_file, made, tmp_path):
    doom = tmp_path / "doom"
    doom.touch()
    words = ["run", tiny_file, "--store", tmp_path / "store", "--set", 'explain=["deadly"]']
    dead = order(*words, "--on", "processes:1", environment={"TRIALS_DEATH": str(doom)})
    assert dead["code"] == 2
    (message,) = [line for line in dead["err"].splitlines() if line.startswith("consilience run: ")]
    for word in ("worker process", "killed, or out of memory", "fewer processes", "what was complete is kept"):
        assert word in message
    kept = contents(tmp_path / "store" / "train")
    assert kept
    assert kept.items() <= contents(made / "train").items()

    doom.unlink()
    again = order(*words)
    assert again["code"] == 0
    assert int(again["out"].split("found ")[1].split(",")[0]) >= len({name.split("/")[0] for name in kept})


def test_a_full_disk_is_one_clear_error_and_costs_only_what_did_not_fit(order, tiny_file, made, tmp_path):
    store = tmp_path / "store"
    for largest, kept in ((30_000, 0), (85_000, 4)):  # bytes: less than a checkpoint, then less than a set of maps
        full = order("run", tiny_file, "--store", store, largest_file=largest)
        assert full["code"] == 2
        (message,) = [line for line in full["err"].splitlines() if line.startswith("consilience run: ")]
        for word in (str(store), "expected to write", "File too large", "what was complete is kept"):
            assert word in message
        assert "Traceback" not in full["err"]
        assert len(list(store.glob("train/*"))) == kept
    assert order("run", tiny_file, "--store", store)["code"] == 0
    assert contents(store) == contents(made)
