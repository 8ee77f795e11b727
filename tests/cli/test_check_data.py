"""The verb that looks into a data set: what it counts, what it finds wrong, and that it writes nothing."""

import csv
import errno
import re
from types import SimpleNamespace

import pytest
import torch
from tests.data.radiographs import ALL, LOST, plant

from consilience.cli import check
from consilience.cli import main as command
from consilience.component import dataset
from consilience.data.examples import Arrays
from consilience.data.idx import write_idx
from consilience.data.images import ImageFiles
from consilience.data.inspection import SAMPLE, look_into
from consilience.data.mimic_cxr import mimic_cxr
from consilience.data.mnist10k import mnist10k
from consilience.data.views import random_subset, subset

WHOLE = "{use = 'mimic_cxr', split = 'all', size = 32}"


@pytest.fixture
def call(capfd, monkeypatch):
    """A verb's words to the exit code and what was said: a line of the table as two words."""
    monkeypatch.delenv("CONSILIENCE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "600")

    def call(*words):
        try:
            code = command.call("check-data", [str(word) for word in words])
        except SystemExit as leaving:
            code = leaving.code
        said = capfd.readouterr()
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.out.splitlines() if "│" in line]
        found, last = {}, ""
        for _, what, text in cells:
            last = what or last
            found[last] = [*found.get(last, []), text]
        return SimpleNamespace(
            code=code, err=said.err, found={what: "\n".join(lines) for what, lines in found.items()},
            wrong={what for verdict, what, _ in cells if verdict == "wrong"},
        )  # fmt: skip

    return call


@pytest.fixture
def data(tmp_path):
    """A data folder with radiographs, all there."""
    plant(tmp_path / "mimic_cxr", complete=True)
    return tmp_path


def files(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def test_radiographs_that_are_all_there_are_counted_and_nothing_is_written(call, data):
    before = files(data)
    said = call(WHOLE, "--data", data)
    assert (said.code, said.wrong, said.err) == (0, set(), "")
    assert said.found == {
        "examples": "16 of shape [3, 32, 32]",
        "examples of each of 2 classes": "no Edema: 9, Edema: 7",
        "groups, which no split may separate": "6",
        "images there": "16, missing 0",
        "rows of the split file": "18 (as published: 377,110)",
        "patients of the splits, which are disjoint": "4 train, 1 validate, 1 test",
        "images by what their report says of Edema":
            "5 absent, 7 present, 1 uncertain, 4 not mentioned, 1 without a row of labels",
        "uncertain ignore, missing zero": "9 no Edema, 7 Edema",
        "uncertain ignore, missing ignore": "5 no Edema, 7 Edema",
        "uncertain zero, missing zero": "10 no Edema, 7 Edema",
        "uncertain zero, missing ignore": "6 no Edema, 7 Edema",
        "uncertain one, missing zero": "9 no Edema, 8 Edema",
        "uncertain one, missing ignore": "5 no Edema, 8 Edema",
        "examples that can be read": "16 of 16 (all), pixels from 0 to 1",
        "fingerprint": mimic_cxr(data / "mimic_cxr", split="all", size=32).fingerprint,
    }  # fmt: skip
    assert files(data) == before


def test_what_each_policy_is_said_to_leave_is_what_it_leaves(call, data):
    said = call("{use = 'mimic_cxr', view = 'frontal', one_per_study = true}", "--data", data)
    for uncertain in ("ignore", "zero", "one"):
        for missing in ("zero", "ignore"):
            left = mimic_cxr(
                data / "mimic_cxr", view="frontal", one_per_study=True, uncertain=uncertain, missing=missing
            )
            without, with_ = left.labels.bincount().tolist()
            line = f"{without} no Edema, {with_} Edema"
            assert said.found[f"uncertain {uncertain}, missing {missing}"] == line


def test_missing_and_damaged_images_are_counted_and_named(call, data):
    root = data / "mimic_cxr"
    (root / LOST.path).unlink()
    (root / ALL[0].path).write_bytes((root / ALL[0].path).read_bytes()[:-300])
    said = call(WHOLE, "--data", data)
    assert said.code == 1
    assert said.wrong == {"images there", "examples that can be read"}
    assert said.found["images there"] == f"15, missing 1:\n{LOST.path}"
    read = said.found["examples that can be read"]
    assert read.startswith("14 of 16 (all), pixels from 0 to 1, refused 2:\n")
    assert f"{ALL[0].dicom}.jpg: expected a complete image" in read
    assert f"{LOST.dicom}.jpg: expected an image, found no such file" in read


def test_in_a_narrow_window_no_name_is_cut(call, data, monkeypatch):
    """Cells go on in the next line, so that put together they are what was to be told."""
    (data / "mimic_cxr" / LOST.path).unlink()
    wide = call(WHOLE, "--data", data).found
    monkeypatch.setenv("COLUMNS", "60")
    said = call(WHOLE, "--data", data)
    told = {re.sub(r"\s", "", what): re.sub(r"\s", "", found) for what, found in wide.items()}
    narrow = re.sub(r"\s", "", "".join(said.found.values()))
    assert LOST.path in narrow
    assert all(found in narrow for found in told.values())
    assert "…" not in narrow


def written(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def row(number, one):
    ids = {"subject_id": str(one.subject), "study_id": str(one.study), "dicom_id": one.dicom, "split": one.split}
    return {"example": str(number), **ids}


def test_the_images_that_are_used_are_written_down(call, data, tmp_path):
    """Those of the split file with a label, in its order; in all parts, and in one."""
    labelled = [one for one in ALL if one.edema in ("0.0", "1.0", "")]
    assert call(WHOLE, "--data", data, "--ids", tmp_path / "used.csv").code == 0
    assert written(tmp_path / "used.csv") == [row(number, one) for number, one in enumerate(labelled)]
    call("{use = 'mimic_cxr', split = 'test'}", "--data", data, "--ids", tmp_path / "used.csv")  # replaced
    of_test = [one for one in labelled if one.split == "test"]
    assert written(tmp_path / "used.csv") == [row(number, one) for number, one in enumerate(of_test)]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["used.csv"]


def test_of_a_view_the_images_that_are_left_are_written_down(call, data, tmp_path):
    half = "{use = 'random_subset', share = 0.5, of = {use = 'subset', count = 13, of = " + WHOLE + "}}"
    call(half, "--data", data, "--ids", tmp_path / "used.csv")
    labelled = [one for one in ALL if one.edema in ("0.0", "1.0", "")]
    left = random_subset(of=lambda: subset(of=lambda: mimic_cxr(data / "mimic_cxr", split="all"), count=13), share=0.5)
    kept = left.ids.tolist()
    assert kept != list(range(len(kept)))
    assert written(tmp_path / "used.csv") == [row(number, labelled[id_]) for number, id_ in enumerate(kept)]


def test_no_half_of_the_ids_is_left_where_writing_fails(call, data, tmp_path, monkeypatch):
    call(WHOLE, "--data", data, "--ids", tmp_path / "used.csv")
    before = (tmp_path / "used.csv").read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("consilience.experiment.files.os.fsync", full)
    said = call("{use = 'mimic_cxr', split = 'test'}", "--data", data, "--ids", tmp_path / "used.csv")
    assert said.code == 2
    assert f"{tmp_path}: expected to write, found 'No space left on device'" in said.err
    assert (tmp_path / "used.csv").read_bytes() == before


def test_a_folder_for_the_ids_must_be_there(call, data, tmp_path):
    said = call(WHOLE, "--data", data, "--ids", tmp_path / "none" / "used.csv")
    assert said.err.endswith("used.csv: expected a folder to write into, found none; make it or name another\n")


def test_images_without_ids_are_a_wrong_call(call, tmp_path):
    said = call("mnist10k", "--ids", tmp_path / "used.csv")
    assert (said.code, list(tmp_path.iterdir())) == (2, [])
    assert "--ids: expected images with ids of their own, as of mimic_cxr, found none; leave --ids out" in said.err


def test_of_many_missing_images_some_are_named(call, data):
    for one in ALL[:6]:
        (data / "mimic_cxr" / one.path).unlink()
    found = call(WHOLE, "--data", data).found
    assert re.fullmatch(r"10, missing 6:\nfiles/\S+\nfiles/\S+\nfiles/\S+\n\.\.\.", found["images there"])
    assert found["examples that can be read"].count("no such file") == 3


def test_of_many_images_a_sample_is_read_unless_all_are_asked_for(call, data, monkeypatch):
    monkeypatch.setattr("consilience.data.inspection.SAMPLE", 5)
    sample = call(WHOLE, "--data", data).found["examples that can be read"]
    assert sample == "5 of 5 (a sample of 5 of the 16), pixels from 0 to 1"
    assert call(WHOLE, "--data", data, "--all").found["examples that can be read"].startswith("16 of 16 (all)")
    assert SAMPLE == 100


def test_a_sample_lies_anywhere_in_the_data():
    asked = []

    class Source:
        def image(self, path):
            asked.append(int(path))
            raise IndexError

        def contents(self, paths):
            return b""

        def missing(self, paths):
            return []

    zeros = torch.zeros(5000, dtype=torch.long)
    many = ImageFiles(Source(), str, zeros, zeros, ("a",), 8, [])
    with pytest.raises(IndexError):
        look_into(many, every=False)
    assert asked[0] > 5


@pytest.mark.parametrize("words", ["{use = 'subset', of = {use = 'mimic_cxr', size = 32}, count = 7}"])
def test_a_view_of_radiographs_is_looked_into(call, data, words):
    found = call(words, "--data", data).found
    assert found["examples"] == "7 of shape [3, 32, 32]"
    assert found["examples of each of 2 classes"] == "no Edema: 3, Edema: 4"
    assert found["images there"] == "10, missing 0"
    assert found["examples that can be read"] == "7 of 7 (all), pixels from 0 to 1"


def test_digits_that_come_with_the_package_are_all_read(call):
    said = call("{use = 'mnist10k', split = 'test'}")
    assert said.code == 0
    assert said.found == {
        "examples": "2,000 of shape [1, 28, 28]",
        "examples of each of 10 classes": ", ".join(f"{digit}: 200" for digit in range(10)),
        "groups, which no split may separate": "2,000",
        "examples that can be read": "2,000 of 2,000 (all), pixels from 0 to 1",
        "fingerprint": mnist10k(split="test").fingerprint,
    }


def test_digits_in_files_are_all_read(call, tmp_path):
    (tmp_path / "mnist").mkdir()
    images = torch.zeros(30, 28, 28, dtype=torch.uint8)
    write_idx(tmp_path / "mnist" / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte.gz", torch.arange(30, dtype=torch.uint8) % 10)
    said = call("mnist", "--data", tmp_path)
    assert (said.code, said.found["examples"]) == (0, "30 of shape [1, 28, 28]")


@pytest.mark.parametrize("name", sorted({*dataset.names()} - {"mnist10k"}))
def test_every_data_set_is_looked_into_or_says_what_it_lacks(call, tmp_path, name):
    """A folder without files is wrong data; a view without an option it must have is a wrong call."""
    roles = dataset.get(name).roles
    (tmp_path / name).mkdir()
    said = call(name, "--data", tmp_path)
    if "root" in roles:
        assert said.code == 1
        assert said.err.startswith(f"consilience check-data: {tmp_path / name}: expected ")
    elif name == "subset":
        assert said.code == 2
    else:
        assert (said.code, said.wrong) == (0, set())


def test_pixels_out_of_range_are_wrong():
    x = torch.full((200, 1, 2, 2), 0.5)
    x[[3, 150]] = 2.0
    findings = look_into(Arrays(x, torch.zeros(200, dtype=torch.long), ("a", "b"), (0.5,), (0.5,)), every=False)
    (wrong,) = (finding for finding in findings if finding.wrong)
    assert wrong.found.startswith("198 of 200 (all), pixels from 0 to 1, refused 2:\nexample 3: expected pixels from 0")
    assert ("examples of each of 2 classes", "a: 200, b: 0", False) in findings


def test_many_classes_are_told_by_their_extremes():
    names = tuple(f"class {k}" for k in range(21))
    labels = torch.cat([torch.arange(21), torch.zeros(4, dtype=torch.long)])
    findings = look_into(Arrays(torch.zeros(25, 1, 1, 1), labels, names, (0.0,), (1.0,)), every=False)
    assert ("examples of each of 21 classes", "1 to 5", False) in findings


def test_views_of_arrays_are_read_like_any_other():
    for view in (subset(of=mnist10k, count=70), random_subset(of=mnist10k, share=0.01)):
        shares = []
        findings = look_into(view, every=False, tell=shares.append)
        assert shares[-1] == 1
        assert ("examples that can be read", f"{len(view)} of {len(view)} (all), pixels from 0 to 1", False) in findings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mimic"], "no dataset is named 'mimic'; did you mean 'mimic_cxr'?"),
        (["mimic_cxr"], "mimic_cxr: expected a folder with data, found none; give --data DIR"),
        (["mimic_cxr", "--data", "/nowhere"], "/nowhere: expected a folder 'mimic_cxr', found none"),
        (["{use = 'mimic_cxr', label = 'Oedema'}", "--data", "DATA"], "no label is named 'Oedema'; did you mean 'E"),
        (["{use = 'mimic_cxr', split = 'dev'}", "--data", "DATA"], "mimic_cxr: Invalid enum value 'dev'"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_two(call, data, words, said):
    refused = call(*(data if word == "DATA" else word for word in words))
    assert refused.code == 2
    assert said in refused.err
    assert refused.err.count("\n") == 1


def test_tables_that_are_wrong_are_one_line_and_code_one(call, data):
    path = data / "mimic_cxr" / "mimic-cxr-2.0.0-split.csv"
    path.write_text(path.read_text().replace("58913004,10001217,validate", "58913004,10001217,train"))
    said = call("mimic_cxr", "--data", data)
    assert said.code == 1
    assert re.fullmatch(r"consilience check-data: .* found subject 10001217 in train and validate .*\n", said.err)


def test_in_a_terminal_the_share_that_was_read_is_shown(capsys):
    check._show(0.5)
    check._show(1.0)
    assert capsys.readouterr().err == "\r50%\r100%\r"
