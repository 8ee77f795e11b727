"""Experiment files: what is wrong with one is said in one sentence that names the place."""

import pytest
from tests.experiment.fixtures import TINY

from consilience.component import attribution
from consilience.errors import DataError, SpecError
from consilience.experiment.config import load
from consilience.experiment.desk import Desk, Place
from consilience.experiment.specs import Data, Explain, Given, Subject
from consilience.experiment.store import Store

MODEL = 'model = { use = "mlp", hidden = [8] }'
FAMILY = """
[[family]]
type = "retrain"
values = { init = [0, 1] }
"""

FAULTS = {  # what stands there, what is written instead, what the message must say
    "unknown method": ('"gradient",', '"gradeint",', ["no attribution is named 'gradeint'", "mean 'gradient'?"]),
    "unknown measure": ('"cosine"', '"cosinus"', ["no measure is named 'cosinus'", "'cosine'"]),
    "unknown architecture": ('use = "mlp"', 'use = "mpl"', ["no architecture", "'mlp'"]),
    "unknown option": ("steps = 4", "step = 4", ["explain[1].integrated_gradients", "option", "'step'", "'steps'"]),
    "option of another type": ("steps = 4", 'steps = "4"', ["explain[1].integrated_gradients", "int", "str", "steps"]),
    "option out of range": ("steps = 4", "steps = 0", ["explain[1].integrated_gradients", ">= 1", "$.steps"]),
    "option of a nested component": (
        "steps = 4", 'of = { use = "gradient", scor = 1 }',
        ["explain[1].integrated_gradients.of.gradient", "'scor'", "'score'"],
    ),
    "required option": (", count = 60", "", ["train.data.subset", "count"]),
    "unknown key": ("epochs = 1", "epoch = 1", ["`epoch`", "did you mean 'epochs'?", "$.train"]),
    "unknown key at the top": ("controls =", "control =", ["`control`", "'controls'"]),
    "missing key": ("epochs = 1", "", ["`epochs`", "$.train"]),
    "value of another type": ("epochs = 1", 'epochs = "one"', ["Expected `int`, got `str`", "$.train.epochs"]),
    "value that is a fraction": ("epochs = 1", "epochs = 1.5", ["Expected `int`, got `float`", "$.train.epochs"]),
    "value out of range": ("batch_size = 20", "batch_size = 0", [">= 1", "$.train.batch_size"]),
    "list that is none": ('["cosine", "spearman"]', '"cosine"', ["array", "$.compare"]),
    "component that is a number": ('controls = ["random_map"]', "controls = [3]", ["controls[0]", "found 3"]),
    "component without a name": ('use = "mlp", ', "", ["train.model", "use = '...'"]),
    "compare that judges": ('compare = ["cosine"', 'compare = ["accuracy"', ["compare[0].accuracy", "'judge'"]),
    "method that needs patterns": (
        'controls = ["random_map"]',
        'controls = [{ use = "smooth_grad", of = "pattern_net" }]',
        ["controls[0].smooth_grad", "smooth_grad(of=pattern_net) needs patterns, which no stage fits yet"],
    ),
    "judge that compares": ('judge = ["accuracy"', 'judge = ["cosine"', ["judge[0].cosine", "'compare'"]),
    "unknown family": ('"retrain"', '"retrian"', ["did you mean 'retrain'?", "$.family[0].type"]),
    "unknown factor": ("init = [0, 1]", "inti = [0, 1]", ["did you mean 'init'?", "$.family[0].values"]),
    "family of one": ("init = [0, 1]", "init = [0]", ["family 'twins'", "two or more different values"]),
    "families of one name": ("\n[[family]]", FAMILY + "\n[[family]]", ["family", "different names", "'twins'"]),
    "epoch that cannot be kept": (
        "epochs = 1", "epochs = 2\nkeep = [2]", ["train.keep", "from 1 to 1, found [2]", "leave the others out"],
    ),
    "epoch before the first": ("epochs = 1", "epochs = 4\nkeep = [0]", ["train.keep", "from 1 to 3, found [0]"]),
    "epoch kept twice": ("epochs = 1", "epochs = 4\nkeep = [2, 1, 1]", ["different epochs", "found [2, 1, 1]"]),
    "epoch kept of one": ("epochs = 1", "epochs = 1\nkeep = [1]", ["train.keep: expected none where", "found [1]"]),
    "word that is none of a few": (
        "[train]", 'conditions = ["both"]\n[train]', ["$.conditions[0]", "there are: all, both_agree, both_right"],
    ),
    "word near one of a few": ("[train]", 'channels = "sumabs"\n[train]', ["$.channels", "did you mean 'sum_abs'?"]),
    "word of a family": (
        "[[family]]", '[[family]]\ntype = "randomised"\norder = "topdown"\n[[family]]',
        ["$.family[0].order", "did you mean 'top_down'?"],
    ),
    "key of a family": ("values =", "vaules =", ["`vaules`", "did you mean 'values'?"]),
    "preparation that is none": (
        '"spearman"]', '{ use = "spearman", normalise = "l3" }]', ["compare[1]", "there are: l1, l2, none, rank, sign"],
    ),
    "no TOML": ("epochs = 1", "epochs = ", ["expected TOML", "line"]),
}  # fmt: skip


def tiny_with(tmp_path, before="", after=""):
    assert before in TINY
    file = tmp_path / "changed.toml"
    file.write_text(TINY.replace(before, after, 1) if before else TINY)
    return file


def test_a_job_refuses_a_method_that_needs_patterns_too(tmp_path):
    """What did not come from a file was not checked there."""
    subject = Subject(source=Given(weights="", module="", answers=""))
    spec = Explain(subject=subject, method=attribution.choose("pattern_net"), data=Data(fingerprint=""))
    with pytest.raises(SpecError, match=r"pattern_net: .* needs patterns, which no stage fits yet"):
        Desk(Store(tmp_path), Place()).method(spec)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_error_that_names_the_file_and_the_place(tmp_path, fault):
    before, after, words = FAULTS[fault]
    file = tiny_with(tmp_path, before, after)
    with pytest.raises(SpecError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("count = 30", "count = 2001", ["examples.data", "from 1 to 2000", "found 2001"]),
        ("count = 60", "count = 8001", ["train.data", "from 1 to 8000", "found 8001"]),
        ('of = "mnist10k"', 'of = "mnist"', ["train.data", "mnist", "--data DIR", "CONSILIENCE_DATA"]),
    ],
)
def test_data_that_are_not_there_are_an_error_that_names_the_place(tmp_path, before, after, words):
    file = tiny_with(tmp_path, before, after)
    with pytest.raises(DataError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    for word in words:
        assert word in message


def test_a_data_folder_without_the_data_set_is_named(tmp_path):
    file = tiny_with(tmp_path, 'of = "mnist10k"', 'of = "mnist"')
    with pytest.raises(DataError, match=f"{tmp_path}: expected a folder 'mnist', found none"):
        load(file, data=tmp_path)


@pytest.mark.parametrize(("name", "says"), [("absent.toml", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, says):
    with pytest.raises(SpecError, match=says) as caught:
        load(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "picture.toml"
    file.write_bytes(b"\x89PNG\xff")
    with pytest.raises(SpecError, match="expected TOML, found something else"):
        load(file)


def test_a_profile_is_laid_over_the_file_and_single_values_over_all(tiny_file):
    tiny_file.write_text(tiny_file.read_text() + "\n[profile.long]\ntrain = { epochs = 9, batch_size = 5 }\n")
    assert load(tiny_file).base.epochs == 1
    assert load(tiny_file, profile="long").base.epochs == 9
    experiment = load(tiny_file, profile="long", changes=["train.epochs=3", "name=New", "train.model.dropout=0.5"])
    assert (experiment.base.epochs, experiment.base.batch_size, experiment.name) == (3, 5, "New")
    assert experiment.base.model.label == "mlp(dropout=0.5, hidden=(8,))"


def test_a_table_that_names_another_component_replaces_the_one_below(tiny_file):
    changes = ["train.model={use='linear'}", "family=[]"]
    assert load(tiny_file, changes=changes).base.model.label == "linear"


def test_an_option_may_be_set_of_a_component_that_stands_there_as_a_name(tiny_file):
    tiny_file.write_text(tiny_file.read_text().replace(MODEL, 'model = "mlp"'))
    assert load(tiny_file, changes=["train.model.dropout=0.5"]).base.model.label == "mlp(dropout=0.5)"


@pytest.mark.parametrize(
    ("profile", "changes", "words"),
    [
        ("smok", [], ["no profile is named 'smok'", "did you mean 'smoke'?"]),
        (None, ["train.epochs"], ["--set train.epochs", "key=value"]),
        (None, ["=1"], ["--set =1", "key=value"]),
        (None, ["train.epoch=1"], ["`epoch`", "'epochs'"]),
        (None, ["train.epochs=many"], ["$.train.epochs"]),
        (None, ["train.model.droput=0.5"], ["train.model.mlp", "'droput'", "'dropout'"]),
    ],
)
def test_a_change_that_cannot_be_made_is_named(tiny_file, profile, changes, words):
    tiny_file.write_text(tiny_file.read_text() + "\n[profile.smoke]\ntrain = { epochs = 1 }\n")
    with pytest.raises(SpecError) as caught:
        load(tiny_file, profile=profile, changes=changes)
    for word in words:
        assert word in str(caught.value)


def test_a_file_is_laid_over_the_one_that_it_extends(tiny_file):
    above = tiny_file.with_name("above.toml")
    above.write_text('extends = "tiny.toml"\nname = "Above"\ntrain.epochs = 2\ncompare = ["cosine"]\n')
    below, found = load(tiny_file), load(above)
    assert (found.name, found.base.epochs, len(found.compare)) == ("Above", 2, 1)
    assert (found.base.model, found.methods, found.families) == (below.base.model, below.methods, below.families)


@pytest.mark.parametrize("base", ['"above.toml"', '"nothing.toml"', "3"])
def test_a_file_that_extends_itself_or_nothing_is_refused(tiny_file, base):
    above = tiny_file.with_name("above.toml")
    above.write_text(f'extends = {base}\nname = "Above"\n')
    with pytest.raises(SpecError, match=r"expected 'extends' to name|expected an experiment file"):
        load(above)


def test_the_order_in_which_epochs_are_kept_is_no_difference(tiny_file):
    kept = [load(tiny_file, changes=["train.epochs=4", f"train.keep={keep}"]).base for keep in ("[1, 3]", "[3, 1]")]
    assert kept[0].digest == kept[1].digest
    assert kept[1].keep == (1, 3)
