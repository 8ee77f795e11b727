"""The command line: words to function calls, results to words and exit codes."""

import json
import re
import signal
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
import torch
from tests.elsewhere import elsewhere
from torch import nn

from consilience.attribution.path import integrated_gradients
from consilience.cli import main as command
from consilience.cli.progress import left_words
from consilience.component import architecture, dataset
from consilience.experiment.desk import Place, labels, load_examples, loaded, untrained
from consilience.experiment.files import read_metadata, read_tensors
from consilience.experiment.specs import plan
from consilience.experiment.store import Store

DIGITS = '{use = "subset", of = "mnist10k", count = 60}'
MODEL = '{use = "mlp", hidden = [8]}'


@pytest.fixture
def call(capfd):
    """A verb and its words to the exit code and what was said."""

    def call(*words):
        try:
            code = command.call(str(words[0]), [str(word) for word in words[1:]])
        except SystemExit as leaving:
            code = leaving.code
        said = capfd.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return call


@pytest.fixture
def weights(call, tmp_path):
    """A file of trained weights."""
    out = tmp_path / "weights.safetensors"
    assert call("train", MODEL, DIGITS, "--out", out, "--epochs", 2, "--batch-size", 20).code == 0
    return out


def test_help_and_version_are_quick_since_they_import_no_torch():
    program = f"""
import contextlib, io, sys
from consilience.cli.main import main
words = [["--help"], [], ["--version"], *([verb, "--help"] for verb in {list(command.VERBS)})]
for given in words:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            main(given)
        except SystemExit as leaving:
            assert leaving.code == 0, given
    print(given, len(said.getvalue()) > 3)
print("torch" in sys.modules)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(said) == 3 + len(command.VERBS) + 1
    assert all(line.endswith("True") for line in said[:-1])
    assert said[-1] == "False"


def test_the_package_is_a_command():
    said = subprocess.run(
        [sys.executable, "-m", "consilience", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"{version('consilience')}\n"


@pytest.mark.parametrize("verb", command.VERBS)
def test_the_help_of_a_verb_says_what_it_does_and_describes_every_option(call, verb):
    said = call(verb, "--help")
    assert said.code == 0
    assert f"usage: consilience {verb}" in said.out
    assert "(required)" in said.out or "default" in said.out


def test_an_unknown_verb_suggests_the_nearest(call):
    said = call("raport")
    assert said.code == 2
    assert said.err == "consilience: no verb is named 'raport'; did you mean 'report'?\n"
    assert (
        "there are: check-data, explain, fetch, list, plan, preflight, prune, report, run, show, train"
        in call("frobnicate").err
    )


@pytest.mark.parametrize(
    "words", [["run"], ["run", "a.toml", "--epochs", "3"], ["train", "mlp", "mnist10k"], ["show"], ["explain", "x"]]
)
def test_words_that_are_missing_or_unknown_are_the_callers_mistake(call, words):
    assert call(*words).code == 2


def test_what_we_refuse_is_one_line_and_exit_code_two(call, tmp_path):
    said = call("run", tmp_path / "absent.toml")
    assert said.code == 2
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"consilience run: {tmp_path / 'absent.toml'}: expected an experiment file")


def test_run_makes_everything_and_says_so_and_then_finds_it(call, tiny_file, tmp_path):
    words = ["run", tiny_file, "--store", tmp_path / "store", "--set", "explain=['gradient']", "--set", "controls=[]"]
    first, second = call(*words), call(*words)
    made = int(first.out.split("made ")[1].split(",")[0])
    assert (first.code, second.code) == (0, 0)
    assert f"made {made}, found 0, in " in first.out
    assert f"made 0, found {made}, in " in second.out
    lines = first.err.splitlines()
    total = len(lines)
    assert [line.split("]")[0] for line in lines] == [f"[{done}/{total}" for done in range(1, total + 1)]
    assert "train mlp(hidden=(8,)), init 0, order 0, noise 0, time left unknown" in lines[0]
    assert lines[-1].endswith(", 0 s left")


def test_a_job_that_fails_is_listed_with_its_reason_and_the_exit_code_is_one(call, tiny_file, tmp_path):
    said = call("run", tiny_file, "--store", tmp_path / "store", "--set", "train.optimizer={use='sgd', lr=1e30}")
    assert said.code == 1
    assert "made 0, found 0" in said.out
    assert "4 failed, 111 not tried since they rest on these:" in said.err
    reasons = [line for line in said.err.splitlines() if line.startswith("- train mlp")]
    assert len(reasons) == 4
    assert all("smaller learning rate" in reason for reason in reasons)
    assert "Traceback" not in said.err


def test_plan_counts_what_is_there_and_makes_no_store(call, tiny_file, made, tmp_path):
    said = call("plan", tiny_file, "--store", tmp_path / "absent")
    assert said.code == 0
    for stage, count in (("train", 4), ("explain", 13), ("summary", 6)):
        row = next(line for line in said.out.splitlines() if stage in line)
        assert [cell.strip() for cell in row.split("│")[1:6]] == [stage, "0", str(count), str(count), "-"]
    assert not (tmp_path / "absent").exists()
    row = next(line for line in call("plan", tiny_file, "--store", made).out.splitlines() if "train" in line)
    assert [cell.strip() for cell in row.split("│")[1:5]] == ["train", "4", "0", "0"]


def test_plan_says_how_small_a_separability_the_examples_can_show(call, tiny_file, tmp_path):
    said = call("plan", tiny_file, "--store", tmp_path / "absent", "--set", 'compare=["cosine"]')
    assert "smallest detectable" not in said.out
    said = call("plan", tiny_file, "--store", tmp_path / "absent", "--set", 'compare=["separability"]')
    assert re.search(r"^smallest detectable S: 0\.\d\d by all 30 images, ", said.out, re.MULTILINE)
    assert re.search(r", none \(too few images\) by the [1-4] of the smallest class$", said.out, re.MULTILINE)


def test_report_writes_a_page_and_its_twin(call, tiny_file, made, tmp_path):
    said = call("report", tiny_file, "--store", made, "--out", tmp_path / "page.html")
    assert said.code == 0
    assert said.out == f"{tmp_path / 'page.html'}\n"
    assert "Twins of a tiny network" in (tmp_path / "page.html").read_text()
    assert json.loads((tmp_path / "page.json").read_text())["missing"] == 0


@pytest.mark.parametrize("verb", ["report", "prune"])
def test_a_store_that_is_not_there_is_said_to_be_none_and_not_made(call, tiny_file, tmp_path, verb):
    said = call(verb, tiny_file, "--store", tmp_path / "absent")
    assert said.code == 2
    assert f"{tmp_path / 'absent'}: expected a store, found none" in said.err
    assert not (tmp_path / "absent").exists()


def test_list_names_every_component_or_those_of_one_kind(call):
    said = call("list")
    for name in ("integrated_gradients", "mnist10k", "small_cnn", "cosine", "calibrated_similarity"):
        assert name in said.out
    assert "cosine" not in call("list", "dataset").out
    wrong = call("list", "atribution")
    assert (wrong.code, wrong.err) == (
        2, "consilience list: no kind is named 'atribution'; did you mean 'attribution'?\n"
    )  # fmt: skip


def test_show_describes_a_component(call):
    said = call("show", "integrated_gradients").out
    for words in ("attribution integrated_gradients, version", "steps = 50", "of = gradient", "  x: ", "Source: "):
        assert words in said
    assert "count = (must be given)" in call("show", "subset").out


def test_show_prints_an_artifact_by_the_first_letters_of_its_digest(call, tiny, made):
    said = call("show", tiny.base.digest[:10], "--store", made).out
    for words in (str(made / "train" / tiny.base.digest), "data.safetensors\n(", '"kind": "train"', '"seconds"'):
        assert words in said
    unknown = call("show", "gradeint", "--store", made)
    assert (unknown.code, "no artifact is named 'gradeint'" in unknown.err) == (2, True)


def test_show_without_a_store_suggests_components(call, tmp_path):
    said = call("show", "gradeint", "--store", tmp_path / "absent")
    assert said.code == 2
    assert "did you mean 'gradient'?" in said.err
    assert not (tmp_path / "absent").exists()


def test_prune_removes_what_no_file_needs_and_only_when_told_to(call, tiny, tiny_file, copied):
    tiny_file.write_text(tiny_file.read_text().replace('compare = ["cosine", "spearman"]', 'compare = ["cosine"]'))
    (copied / ".drafts" / "begun").mkdir()
    before = set(Store(copied).artifacts())
    said = call("prune", tiny_file, "--store", copied)
    assert (said.code, set(Store(copied).artifacts())) == (0, before)
    assert "would go; add --yes to remove" in said.out

    assert call("prune", tiny_file, "--store", copied, "--yes").code == 0
    gone = before - set(Store(copied).artifacts())
    assert gone == {Store(copied).folder(spec) for spec in plan(tiny.specs()) if "spearman" in spec.canonical.decode()}
    assert said.out.startswith(f"{len(gone) + 1} artifacts and drafts, ")
    assert Store(copied).drafts() == []
    assert "found " in call("run", tiny_file, "--store", copied).out
    assert set(Store(copied).artifacts()) == before - gone


def test_prune_without_a_file_removes_nothing(call, copied):
    before = set(Store(copied).artifacts())
    said = call("prune", "--store", copied, "--yes")
    assert said.code == 2
    assert set(Store(copied).artifacts()) == before


def test_maps_of_trained_weights_are_those_of_the_method_itself(call, weights, tmp_path):
    out = tmp_path / "new" / "maps.safetensors"
    method = '{use = "integrated_gradients", steps = 3}'
    said = call("explain", method, weights, '{use = "mnist10k", split = "test"}', "--count", 5, "--out", out)
    assert (said.code, said.out) == (0, f"{out}\n")

    choice = dataset.choose({"use": "subset", "of": {"use": "mnist10k", "split": "test"}, "count": 5})
    examples = load_examples(choice, Place())
    model = untrained(architecture.choose({"use": "mlp", "hidden": [8]}), examples)
    loaded(model, read_tensors(weights), "weights")
    expected = integrated_gradients(model, examples.batch(range(5)).x, labels(examples), steps=3)
    found = read_tensors(out)
    torch.testing.assert_close(found["maps"], expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(found["target"], labels(examples))
    assert read_metadata(out) == {"method": "integrated_gradients(steps=3)", "examples": choice.label}
    assert [path.name for path in out.parent.iterdir()] == ["maps.safetensors"]


def test_the_class_that_is_explained_may_be_chosen(call, weights, tmp_path):
    out = tmp_path / "maps.safetensors"
    words = ["explain", "gradient", weights, "mnist10k", "--count", 4, "--out", out]
    assert call(*words, "--target", 7).code == 0
    assert read_tensors(out)["target"].tolist() == [7] * 4
    assert call(*words, "--target", "predicted").code == 0
    predicted = read_tensors(out)["target"]
    examples = load_examples(dataset.choose({"use": "subset", "count": 4}), Place())
    model = untrained(architecture.choose({"use": "mlp", "hidden": [8]}), examples)
    loaded(model, read_tensors(weights), "weights")
    assert torch.equal(predicted, model(examples.batch(range(4)).x).argmax(1))
    for wrong in ("10", "-1", "seven"):
        said = call(*words, f"--target={wrong}")
        assert (said.code, f"--target {wrong}: expected label, predicted or a class" in said.err) == (2, True)


def test_a_method_that_needs_a_background_is_given_one(call, weights, tmp_path):
    words = ["explain", "{use = 'expected_gradients', samples = 2}", weights, "mnist10k", "--count", 3]
    words += ["--out", tmp_path / "maps.safetensors"]
    said = call(*words)
    assert (said.code, "expected a background, found none; add --background DATA" in said.err) == (2, True)
    assert call(*words, "--background", "{use = 'subset', of = 'mnist10k', count = 5}").code == 0
    assert read_tensors(tmp_path / "maps.safetensors")["maps"].shape == (3, 1, 28, 28)


def test_preflight_prints_a_table_and_tells_by_its_code_what_it_found(call, weights):
    said = call("preflight", "{use = 'integrated_gradients', steps = 200}", weights, "mnist10k")
    assert said.code == 0
    for word in ("modes", "finite", "deterministic", "batch invariant", "complete", "not the gradient", "8 examples"):
        assert word in said.out
    wrong = call("preflight", "{use = 'integrated_gradients', steps = 1, nodes = 'right'}", weights, "mnist10k")
    assert (wrong.code, "wrong" in wrong.out) == (1, True)
    refused = call("preflight", "guided_backprop", weights, "mnist10k", "--architecture", "linear")
    assert refused.code == 2


def test_draws_go_by_the_seed(call, weights, tmp_path):
    def drawn(seed):
        out = tmp_path / f"{seed}.safetensors"
        assert call("explain", "random_map", weights, "mnist10k", "--count", 3, "--seed", seed, "--out", out).code == 0
        return read_tensors(out)["maps"]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["explain", "gradeint", "{weights}", "mnist10k"], "did you mean 'gradient'?"),
        (["explain", "gradient", "{weights}", "mnist10"], "did you mean 'mnist10k'?"),
        (["explain", "gradient", "absent.safetensors", "mnist10k"], "absent.safetensors: expected a complete"),
        (["explain", "gradient", "{weights}", "mnist10k", "--architecture", "linear"], "expected the weights of this"),
        (["explain", "gradient", "{weights}", "mnist10k", "--count", "0"], ">= 1"),
        (["explain", "{{use = 3", "{weights}", "mnist10k"], "found no TOML"),
        (["train", "mlp", "mnist10k", "--epochs", "-1"], "expected epochs >= 0"),
        (["train", "mlp", "mnist"], "give --data DIR"),
        (["train", "{{use = 'mlp', hiden = [3]}}", "mnist10k"], "did you mean 'hidden'?"),
    ],
)
def test_what_train_and_explain_refuse_is_said(call, weights, tmp_path, monkeypatch, words, says):
    monkeypatch.delenv("CONSILIENCE_DATA", raising=False)
    said = call(*(word.format(weights=weights) for word in words), "--out", tmp_path / "out.safetensors")
    assert said.code == 2
    assert says in said.err
    assert said.err.strip().count("\n") == 0
    assert not (tmp_path / "out.safetensors").exists()


@pytest.fixture(params=["train", "explain", "preflight"])
def words(request, weights, tmp_path):
    """A verb's words, up to its device."""
    out = ["--out", tmp_path / "out.safetensors"]
    return {
        "train": ["train", MODEL, DIGITS, "--epochs", 1, *out],
        "explain": ["explain", "gradient", weights, DIGITS, "--count", 3, *out],
        "preflight": ["preflight", "gradient", weights, DIGITS],
    }[request.param]


def test_a_verb_computes_where_it_is_told_to_and_finds_the_same(call, words, tmp_path, monkeypatch):
    computed = []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda layer, x: (computed.append(x.device.type), forward(layer, x))[1])
    here = call(*words, "--device", "cpu")
    assert (here.code, set(computed)) == (0, {"cpu"})
    made = {file: read_tensors(file) for file in tmp_path.glob("out.safetensors")}
    computed.clear()
    with elsewhere() as device:
        there = call(*words, "--device", device)
    assert (there.code, there.out, set(computed)) == (0, here.out, {device})
    for file, tensors in made.items():
        torch.testing.assert_close(read_tensors(file), tensors, atol=1e-6, rtol=1e-5)


def test_a_verb_refuses_a_device_that_is_not_there(call, words, tmp_path):
    said = call(*words, "--device", "cuda:99")
    assert said.code == 2
    assert "--device cuda:99: expected a device that torch" in said.err
    assert said.err.strip().count("\n") == 0
    assert not (tmp_path / "out.safetensors").exists()


def test_an_interrupted_training_goes_on_and_ends_with_the_same_bytes(call, weights, tmp_path, monkeypatch):
    out = tmp_path / "again.safetensors"
    words = ["train", MODEL, DIGITS, "--out", out, "--epochs", 2, "--batch-size", 20]
    with monkeypatch.context() as patch:
        patch.setattr("builtins.print", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):  # the command's own message is interrupted like the first epoch's
            call(*words)
    assert not out.exists()
    assert (tmp_path / "again.safetensors.checkpoint").exists()
    said = call(*words)
    assert said.code == 0
    assert "epoch 2/2" in said.err
    assert "epoch 1/2" not in said.err
    assert out.read_bytes() == weights.read_bytes()
    assert not (tmp_path / "again.safetensors.checkpoint").exists()


def test_a_disk_that_refuses_is_one_error_of_train_and_explain(call, weights, tmp_path):
    (tmp_path / "file").touch()
    for words in (["train", MODEL, DIGITS], ["explain", "gradient", weights, DIGITS]):
        said = call(*words, "--out", tmp_path / "file" / "out.safetensors")
        assert said.code == 2
        assert f"{tmp_path / 'file'}" in said.err
        assert "expected to write" in said.err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "time left unknown"),
        (0.0, "0 s left"),
        (89.4, "89 s left"),
        (90.1, "2 min left"),
        (7200.0, "120 min left"),
    ],
)
def test_the_time_left_is_told_in_seconds_then_in_minutes(seconds, words):
    assert left_words(seconds) == words
