"""The run: what is missing is made, what fails stops what rests on it, and what is left is told."""

import json
from concurrent.futures import Future

import pytest
import torch
from msgspec.structs import replace

from consilience import report
from consilience.component import attribution, optimizer
from consilience.errors import ModelError
from consilience.experiment import stages
from consilience.experiment.config import load
from consilience.experiment.families import Retrain
from consilience.experiment.files import write_tensors
from consilience.experiment.forecast import forecast
from consilience.experiment.run import _State, run
from consilience.experiment.specs import Explain, Measure, Predict, Summary, Train, groups, plan
from consilience.experiment.store import Store


def page(experiment, store, tmp_path):
    return json.loads(report(experiment, store, tmp_path / "page.html").with_suffix(".json").read_text())


@pytest.fixture
def small(tiny):
    """A part of the tiny experiment."""
    families = (Retrain(values={"init": [0, 1], "order": [0, 1]}), tiny.floor)
    return replace(tiny, methods=tiny.methods[:1], compare=tiny.compare[:1], judge=tiny.judge[:1], families=families)


def test_a_second_run_finds_everything_and_makes_nothing(tiny, made):
    events = []
    outcome = run(tiny, made, on_event=events.append)
    assert (outcome.found, outcome.made, outcome.failures, outcome.resting) == (115, 0, (), 0)
    assert events == []


def test_a_run_makes_what_is_missing_and_what_it_needs(tiny, copied):
    store = Store(copied)
    summary = next(spec for spec in plan(tiny.specs()) if isinstance(spec, Summary))
    for spec in (summary, summary.table[0].measure, summary.table[0].measure.of):
        store.folder(spec).rename(copied.parent / spec.digest)
    assert [[spec.stage for spec in group] for group in groups(plan(tiny.specs(), store))] == [
        ["explain"], ["measure"], ["summary"]
    ]  # fmt: skip
    assert run(tiny, store).made == 3


def test_specs_may_be_run_without_an_experiment(tiny, tmp_path):
    assert run([tiny.base], tmp_path).made == 1
    assert tiny.base in Store(tmp_path)


@pytest.fixture
def one_twin_fails(monkeypatch):
    def fails(group, *rest, train=stages.STAGES[Train]):
        if group[0].order == 1:
            raise ModelError("order 1: expected a finite loss, found nan; try a smaller learning rate")
        train(group, *rest)

    monkeypatch.setitem(stages.STAGES, Train, fails)


def test_a_failed_job_stops_what_rests_on_it_and_nothing_else(small, tmp_path, one_twin_fails):
    events = []
    outcome = run(small, tmp_path / "store", on_event=events.append)
    (failure,) = outcome.failures
    assert failure.group[0].order == 1
    assert failure.reason == "order 1: expected a finite loss, found nan; try a smaller learning rate"
    assert failure.trace == ""  # what we refuse ourselves needs none

    def rests(spec):
        return spec.digest == failure.group[0].digest or any(rests(needed) for needed in spec.inputs)

    store, specs = Store(tmp_path / "store"), plan(small.specs())
    assert all((spec in store) != rests(spec) for spec in specs)
    assert outcome.resting == sum(map(rests, specs)) - 1
    assert outcome.made == sum(not rests(spec) for spec in specs)
    assert [event.what for event in events].count("failed") == 1
    assert (events[-1].done, events[-1].total) == (len(groups(plan(specs))), len(groups(plan(specs))))


def test_the_report_of_a_failed_run_says_how_much_is_missing(small, tmp_path, one_twin_fails):
    run(small, tmp_path / "store")
    found = page(small, tmp_path / "store", tmp_path)
    assert found["missing"] == sum(goal.spec not in Store(tmp_path / "store") for goal in small.goals()) > 0
    assert {line["member"] for line in found["judged"]} == {"base", "init 1"}


def test_a_second_run_tries_the_failed_job_again(small, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setitem(stages.STAGES, Train, lambda *_: 1 / 0)
        outcome = run(small, tmp_path)
    assert len(outcome.failures) == 3
    assert outcome.failures[0].reason == "ZeroDivisionError: division by zero"
    assert "Traceback" in outcome.failures[0].trace
    assert (outcome.made, outcome.resting) == (0, len(plan(small.specs())) - 3)
    assert not run(small, tmp_path).failures


def test_a_training_that_diverges_fails_with_its_reason(small, tmp_path):
    diverging = replace(small, base=replace(small.base, optimizer=optimizer.choose({"use": "sgd", "lr": 1e30})))
    outcome = run(diverging, tmp_path / "store")
    assert len(outcome.failures) == 3
    assert all(
        "expected" in failure.reason and "smaller learning rate" in failure.reason for failure in outcome.failures
    )
    assert page(diverging, tmp_path / "store", tmp_path)["missing"] == len(diverging.goals())


def test_weights_that_are_not_finite_are_refused_where_they_are_used(small, tmp_path):
    store = Store(tmp_path)
    run([small.base], store)
    weights = {name: tensor * torch.nan for name, tensor in store.tensors(small.base).items()}
    store.folder(small.base).rename(tmp_path.parent / "finite")
    with store.draft([small.base]) as draft:
        write_tensors(draft / "train" / small.base.digest / "data.safetensors", weights)
    outcome = run(small, store)
    (reason,) = {failure.reason for failure in outcome.failures}
    assert f"train {small.base.digest[:12]}: expected finite weights" in reason
    assert {type(spec) for failure in outcome.failures for spec in failure.group} == {Predict, Explain}


@pytest.mark.parametrize("pixel", ["nan", "1.5", "-0.1"])
@pytest.mark.parametrize("where", ["train", "examples"])
def test_a_pixel_that_is_none_is_one_clear_error(tiny_file, tmp_path, trials, where, pixel):
    data = f'data = {{ use = "damaged", pixel = "{pixel}", count = 30 }}'
    before = {
        "train": '{ use = "subset", of = "mnist10k", count = 60 }',
        "examples": '{ use = "mnist10k", split = "test" }',
    }
    tiny_file.write_text(tiny_file.read_text().replace(f"data = {before[where]}", data))
    outcome = run(load(tiny_file, changes=["explain=['gradient']", "controls=[]"]), tmp_path / "store")
    (reason,) = {failure.reason for failure in outcome.failures}
    for word in ("example 5", "expected pixels", "found"):
        assert word in reason
    failed = {type(spec) for failure in outcome.failures for spec in failure.group}
    assert failed == ({Train} if where == "train" else {Predict, Explain})


def test_a_map_with_a_number_that_is_none_is_undefined_as_a_whole_and_counted(tiny, tmp_path, trials):
    experiment = replace(tiny, methods=(attribution.choose("half_undefined"),), judge=())
    store = Store(tmp_path / "store")
    assert not run(experiment, store).failures
    specs = plan(experiment.specs())
    even = torch.arange(30) % 10 % 2 == 0  # the classes take turns
    explained = [spec for spec in specs if isinstance(spec, Explain) and spec.method.use == "half_undefined"]
    for spec in explained:
        maps = store.tensors(spec)["maps"]
        assert maps[even].isnan().all()
        assert maps[~even].isfinite().all()
    measures = [spec for spec in specs if isinstance(spec, Measure) and spec.of in explained]
    assert len(measures) == 2 * (6 + 6 + 1)
    for spec in measures:
        assert torch.equal(store.tensors(spec)["value"].isnan(), even)
    lines = [line for line in page(experiment, store, tmp_path)["lines"] if line["method"] == "half_undefined"]
    assert {(line["examples"], line["undefined"]) for line in lines if line["column"] == "init"} == {(30, 15)}


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("undefined", "expected maps of finite numbers, found none in 30 examples"),
        ("misshapen", "expected maps for images [30, 1, 28, 28], found [30]"),
        ("erroneous", "IndexError"),
    ],
)
def test_a_method_that_returns_nothing_of_use_fails_with_the_reason(tiny, tmp_path, trials, method, says):
    experiment = replace(tiny, methods=(attribution.choose(method),), families=tiny.families[1:])
    outcome = run(experiment, tmp_path)
    (reason,) = {failure.reason for failure in outcome.failures}
    assert says in reason
    assert (tmp_path / "predict").exists()


def test_an_interruption_while_a_run_tells_its_events_keeps_what_is_complete(small, tmp_path):
    def interrupt(event):
        if event.what == "done" and event.done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, tmp_path, on_event=interrupt)
    outcome = run(small, tmp_path)
    assert outcome.found == 3
    assert outcome.found + outcome.made == len(plan(small.specs()))


def test_events_tell_every_group_when_it_begins_and_when_it_is_done(small, tmp_path):
    events = []
    run(small, tmp_path, on_event=events.append)
    total = len(groups(plan(small.specs())))
    assert [event.done for event in events if event.what == "start"] == list(range(total))
    assert [event.done for event in events if event.what == "done"] == list(range(1, total + 1))
    assert {event.total for event in events} == {total}
    assert events[0].seconds_left is None
    assert events[-1].seconds_left == 0


@pytest.fixture
def state(tiny, tmp_path):
    return _State(tiny.specs(), Store(tmp_path), workers=2)


def test_the_time_left_is_unknown_until_a_group_of_every_kind_was_timed(state):
    assert state.event("start", state.waiting[0]).seconds_left is None
    stages_left = {group[0].stage for group in state.waiting}
    for stage in sorted(stages_left)[1:]:
        state.spent[stage] = [1.0]
    assert state.event("start", state.waiting[0]).seconds_left is None


def test_the_time_left_is_that_of_all_artifacts_shared_by_the_workers(state):
    state.spent = {stage: [1.0, 3.0] for stage in ("train", "predict", "explain", "measure", "summary", "spread")}
    assert state.event("start", state.waiting[0]).seconds_left == pytest.approx(115 * 2 / 2)
    state.choose(1)
    assert state.event("start", state.chosen[0]).seconds_left == pytest.approx(115 * 2 / 2)
    assert state.event("start", state.chosen[0]).done == 0


def test_a_running_group_goes_by_its_own_pace_and_a_queued_one_counts_in_full(state, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("consilience.experiment.run.time.perf_counter", lambda: clock[0])
    state.choose(2)
    state.waiting, (first, second) = [], state.chosen
    state.chosen, jobs = [], [Future(), Future()]
    state.running = dict(zip(jobs, (first, second), strict=True))
    jobs[0].set_running_or_notify_cancel()
    state.store.tell(first, 0.5)  # by an earlier run, that was stopped

    def left():
        return state.event("working", first).seconds_left

    assert left() is None  # nothing was ever timed
    state.spent["train"] = [40.0]
    assert left() == pytest.approx((0.5 * 40 + 40) / 2)
    clock[0] += 5
    assert left() == pytest.approx((0.5 * 40 - 5 + 40) / 2)
    state.store.tell(first, 0.75)
    assert left() == pytest.approx((0.25 * 5 / 0.25 + 40) / 2)
    clock[0] += 1000
    state.store.tell(first, 0.5)
    assert left() == pytest.approx((0 + 40) / 2)  # never less than none


def test_a_forecast_counts_what_is_there_and_knows_costs_from_what_was_made(tiny, made, copied, tmp_path):
    nothing = forecast(tiny, tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    assert [(row.stage, row.there) for row in nothing] == [
        ("train", 0), ("predict", 0), ("measure", 0), ("explain", 0), ("summary", 0), ("spread", 0)
    ]  # fmt: skip
    assert sum(row.lacking for row in nothing) == 115
    assert sum(row.jobs for row in nothing) == len(groups(plan(tiny.specs())))
    assert {(row.seconds, row.bytes) for row in nothing} == {(None, None)}

    everything = forecast(tiny, made)
    assert sum(row.there for row in everything) == 115
    assert {(row.lacking, row.jobs, row.seconds, row.bytes) for row in everything} == {(0, 0, 0, 0)}

    maps = next(spec for spec in plan(tiny.specs()) if isinstance(spec, Explain))
    spec = next(goal.spec for goal in tiny.goals() if isinstance(goal.spec, Measure) and maps in goal.spec.inputs)
    Store(copied).folder(maps).rename(tmp_path / "maps")
    Store(copied).folder(spec).rename(tmp_path / "measure")
    row = next(row for row in forecast(tiny, copied) if row.stage == "explain")
    assert (row.lacking, row.jobs) == (1, 1)
    assert row.seconds > 0
    assert row.bytes > 30 * 28 * 28 * 4
