import gzip
import itertools
import sys

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.radiographs import ALL, LOST, pixels, plant
from torch.nn.functional import interpolate

from consilience.component import dataset
from consilience.data.images import centre, labels_and_groups
from consilience.data.mimic_cxr import LABELS, SPLITS, VIEWS, mimic_cxr
from consilience.data.mnist10k import mnist10k
from consilience.data.views import subset
from consilience.errors import DataError, SpecError

SPLIT, CHEXPERT, NEGBIO, METADATA = (
    f"mimic-cxr-2.0.0-{name}" for name in ("split.csv", "chexpert.csv.gz", "negbio.csv.gz", "metadata.csv")
)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """The planted tree; not to be changed."""
    return plant(tmp_path_factory.mktemp("mimic_cxr"))


@pytest.fixture
def own(tmp_path):
    """A planted tree of one's own."""
    return plant(tmp_path / "mimic_cxr")


@pytest.fixture
def packed(own):
    """The tree with its images in an HDF5 file instead of files."""
    with h5py.File(own / "images.h5", "w") as file:
        for one in ALL:
            if one != LOST:
                file[f"{one.path}/img"] = np.array(Image.open(own / one.path))
    (own / "files").rename(own.parent / "files")
    return own


def wanted(split="train", uncertain="ignore", missing="zero", view="any", one_per_study=False):
    """Which radiographs with which class, one by one."""
    seen, chosen = set(), []
    for one in ALL:
        if split not in ("all", one.split) or (view != "any" and one.view not in VIEWS.get(view, view)):
            continue
        if one_per_study and one.study in seen:
            continue
        seen.add(one.study)
        label = {
            "1.0": 1, "0.0": 0, "": {"zero": 0, "ignore": None}[missing],
            "-1.0": {"ignore": None, "zero": 0, "one": 1}[uncertain], None: None,
        }[one.edema]  # fmt: skip
        if label is not None:
            chosen.append((one, label))
    return chosen


def edit(path, change):
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("uncertain", "missing", "without", "with_"),
    [("ignore", "zero", 5, 5), ("ignore", "ignore", 3, 5), ("zero", "zero", 6, 5),
     ("zero", "ignore", 4, 5), ("one", "zero", 5, 6), ("one", "ignore", 3, 6)],
)  # fmt: skip
def test_each_policy_leaves_so_many_of_each_class(tree, uncertain, missing, without, with_):
    data = mimic_cxr(tree, uncertain=uncertain, missing=missing)
    assert data.labels.bincount().tolist() == [without, with_]
    assert data.classes == ("no Edema", "Edema")


@pytest.mark.parametrize("split", [*SPLITS, "all"])
@pytest.mark.parametrize("view", ["any", "frontal", "lateral", "AP", "PA", ("LL", "")])
@pytest.mark.parametrize("one_per_study", [False, True])
def test_rows_labels_and_order_are_those_of_a_walk_through_the_split_file(tree, split, view, one_per_study):
    for uncertain, missing in itertools.product(("ignore", "zero", "one"), ("zero", "ignore")):
        options = {"split": split, "uncertain": uncertain, "missing": missing, "view": view}
        expected = wanted(**options, one_per_study=one_per_study)
        if not expected:
            with pytest.raises(DataError, match=r"found none \(0 absent, .*\); choose other options"):
                mimic_cxr(tree, **options, one_per_study=one_per_study)
            continue
        data = mimic_cxr(tree, **options, one_per_study=one_per_study)
        assert [data.path(index) for index in range(len(data))] == [one.path for one, _ in expected]
        assert data.labels.tolist() == [label for _, label in expected]


def test_the_split_file_is_followed_and_not_sorted_by_class_or_patient(tree):
    labels = mimic_cxr(tree).labels.tolist()
    assert labels not in (sorted(labels), sorted(labels, reverse=True))


def test_images_are_found_at_their_published_places(tree):
    data = mimic_cxr(tree, split="all", uncertain="zero")
    assert data.path(4) == "files/p10/p10000032/s50414267/" + "-".join([f"{504142670:08x}"] * 5) + ".jpg"
    for index, (one, label) in enumerate(wanted("all", "zero")):
        if one != LOST:
            example = data[index]
            assert example.x.shape == (3, 224, 224)
            assert (example.x * 255).unique().tolist() == pytest.approx([one.grey])
            assert example.label == label


def test_a_group_is_a_patient_whatever_is_chosen_of_them(tree):
    everybody = {one.subject for one in ALL}
    number = {subject: place for place, subject in enumerate(sorted(everybody))}
    for split in (*SPLITS, "all"):
        data = mimic_cxr(tree, split=split, view="frontal")
        assert data.groups.tolist() == [number[one.subject] for one, _ in wanted(split, view="frontal")]


def test_a_batch_holds_the_examples_in_the_order_asked_for(tree):
    data = mimic_cxr(tree, size=32)
    batch = data.batch([3, 0, 3])
    assert torch.equal(batch.x, torch.stack([data[index].x for index in (3, 0, 3)]))
    assert batch.ids.tolist() == [3, 0, 3]
    assert batch.label.tolist() == data.labels[[3, 0, 3]].tolist()
    assert batch.groups.tolist() == data.groups[[3, 0, 3]].tolist()
    assert data.batch([]).x.shape == (0, 3, 32, 32)
    with pytest.raises(IndexError, match="expected an id from 0 to 9, found 10"):
        data[10]


def test_the_other_labellers_file_is_another_set(tree):
    assert mimic_cxr(tree, labels="negbio").labels.sum() == mimic_cxr(tree).labels.sum() + 2


@pytest.mark.parametrize(("height", "width"), [(320, 256), (256, 320), (300, 300), (97, 61), (640, 200)])
@pytest.mark.parametrize("size", [224, 32, 45])
def test_an_image_is_scaled_and_cut_as_by_another_library(height, width, size):
    grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8))
    short = round(size * 256 / 224)
    shape = [int(short * side / min(height, width)) for side in (height, width)]
    scaled = interpolate(grey[None, None].float(), shape, mode="bilinear", antialias=True)[0, 0]
    top, left = (round((side - size) / 2) for side in shape)
    found = centre(Image.fromarray(grey.numpy()), size) * 255
    assert found.shape == (size, size)
    assert (found - scaled[top : top + size, left : left + size]).abs().max() < 1.01  # PIL rounds twice


def test_colours_become_grey_and_grey_is_repeated(own):
    one = wanted("validate")[0][0]
    Image.new("RGB", (256, 320), (200, 100, 50)).save(own / one.path, quality=95)
    x = mimic_cxr(own, split="validate")[0].x
    assert torch.equal(x[0], x[1])
    assert torch.equal(x[0], x[2])
    assert (x * 255).mean() == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=1.5)


def test_plain_and_gzipped_tables_are_one(own):
    before = mimic_cxr(own, view="frontal").fingerprint
    (own / CHEXPERT.removesuffix(".gz")).write_bytes(gzip.decompress((own / CHEXPERT).read_bytes()))
    (own / CHEXPERT).unlink()
    for name in (SPLIT, METADATA):
        (own / f"{name}.gz").write_bytes(gzip.compress((own / name).read_bytes()))
        (own / name).unlink()
    assert mimic_cxr(own, view="frontal").fingerprint == before


def test_the_fingerprint_tells_choices_rows_and_files_apart(own):
    choices = [{}, {"split": "test"}, {"uncertain": "one"}, {"missing": "ignore"}, {"view": "AP"}, {"size": 32},
               {"one_per_study": True}, {"label": "Pneumonia"}, {"labels": "negbio"}]  # fmt: skip
    marks = [mimic_cxr(own, **choice).fingerprint for choice in choices]
    assert len({*marks}) == len(marks)
    assert mimic_cxr(own).fingerprint == marks[0]
    Image.new("L", (300, 300), 7).save(own / wanted()[0][0].path)
    assert mimic_cxr(own).fingerprint != marks[0]
    assert mimic_cxr(own, split="test").fingerprint == marks[1]


def test_labels_and_groups_are_known_without_an_image(tree):
    labels, groups = labels_and_groups(mimic_cxr(tree))  # one of the images is not there
    assert labels.tolist() == [label for _, label in wanted()]
    assert len(groups.unique()) == 4
    some = subset(of=mnist10k, count=300)
    batch = some.batch(range(300))
    for found, expected in zip(labels_and_groups(some), (batch.label, batch.groups), strict=True):
        assert torch.equal(found, expected)


def test_an_experiment_file_names_the_options(tree):
    choice = dataset.choose({"use": "mimic_cxr", "view": ["PA", "LL"], "size": 32, "split": "validate"})
    assert len(choice.build(root=tree)()) == 2
    with pytest.raises(SpecError, match=r"mimic_cxr: Invalid enum value 'tset' - at `\$.split`"):
        dataset.choose({"use": "mimic_cxr", "split": "tset"})


@pytest.mark.parametrize(("label", "said"), [("Oedema", "did you mean 'Edema'"), ("Cat", "there are: Atelectasis, C")])
def test_a_label_outside_the_fourteen_is_refused(tree, label, said):
    assert len(LABELS) == 14
    with pytest.raises(SpecError, match=f"mimic_cxr: no label is named '{label}'; {said}"):
        mimic_cxr(tree, label=label)


def test_a_view_that_no_image_has_is_refused(tree):
    with pytest.raises(SpecError, match="no ViewPosition is named 'LATERALE'; did you mean 'LATERAL'"):
        mimic_cxr(tree, view=("AP", "LATERALE"))


@pytest.mark.parametrize(("name", "options"), [(SPLIT, {}), (CHEXPERT, {}), (METADATA, {"view": "AP"})])
def test_a_missing_table_is_named_in_both_spellings(own, name, options):
    (own / name).unlink()
    name = name.removesuffix(".gz")
    with pytest.raises(DataError, match=f"expected {name} or {name}.gz, found neither"):
        mimic_cxr(own, **options)


def test_the_metadata_are_read_for_a_view_alone(own):
    (own / METADATA).unlink()
    assert len(mimic_cxr(own)) == 10


def test_a_table_that_was_downloaded_by_half_is_named(own):
    whole = (own / CHEXPERT).read_bytes()
    (own / CHEXPERT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"{CHEXPERT}: expected a complete gzip file, found 'Compressed file ended"):
        mimic_cxr(own)
    (own / CHEXPERT).write_bytes(whole[:-30] + bytes(30))
    with pytest.raises(DataError, match=rf"{CHEXPERT}: expected a complete gzip file"):
        mimic_cxr(own)
    edit(own / SPLIT, lambda text: text[:-8])
    with pytest.raises(DataError, match=rf"{SPLIT}, line {len(ALL) + 1}: expected 4 values, found 3; a download"):
        mimic_cxr(own)


def test_a_table_that_ends_within_its_last_word_is_noticed(own):
    edit(own / SPLIT, lambda text: text[:-3])
    with pytest.raises(DataError, match=rf"{SPLIT}, row {len(ALL)}: .*, 19000002, te; download the file again"):
        mimic_cxr(own)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00garbage", b'dicom_id,study_id,subject_id,split\n"open'])
def test_what_is_no_table_is_refused(own, content):
    (own / SPLIT).write_bytes(content)
    with pytest.raises(DataError, match=f"{SPLIT}: expected a table of comma-separated text, found "):
        mimic_cxr(own)


@pytest.mark.parametrize("content", ["", "dicom_id,study_id,subject_id,split\n\n"])
def test_an_empty_table_is_refused(own, content):
    (own / SPLIT).write_text(content)
    with pytest.raises(DataError, match=f"{SPLIT}: expected "):
        mimic_cxr(own)


def test_a_table_that_was_downloaded_twice_is_refused(own):
    edit(own / SPLIT, lambda text: text + text.split("\n", 1)[1])
    with pytest.raises(DataError, match=f"{SPLIT}: expected a row for each image, found 18 images twice"):
        mimic_cxr(own)


def test_a_table_that_cannot_be_opened_is_named(own, monkeypatch):
    (own / SPLIT).unlink()
    (own / SPLIT).symlink_to("/proc/self/mem")  # a file whose first byte cannot be read
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: True)
    with pytest.raises(DataError, match=rf"{SPLIT}: expected a readable file, found 'Input/output error'"):
        mimic_cxr(own)


def test_a_missing_column_is_named(own):
    edit(own / SPLIT, lambda text: text.replace("subject_id", "patient"))
    with pytest.raises(DataError, match=rf"{SPLIT}: expected the columns dicom_id, .*, found no subject_id in 'dicom"):
        mimic_cxr(own)
    said = gzip.decompress((own / NEGBIO).read_bytes()).replace(b"Edema", b"Oedema")
    (own / NEGBIO).write_bytes(gzip.compress(said))
    edit(own / SPLIT, lambda text: text.replace("patient", "subject_id"))
    with pytest.raises(DataError, match=rf"{NEGBIO}: expected the columns study_id, Edema, found no Edema in "):
        mimic_cxr(own, labels="negbio")


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        (SPLIT, ",validate", ",dev", "row 8: expected two whole numbers .* a split of train, validate, test, found "),
        (SPLIT, ",19000003,", ",p19,", "row 1: expected two whole numbers"),
        (CHEXPERT, "-1.0", "maybe", "row 8: expected .* 1.0, 0.0, -1.0 or nothing as 'Edema', found '51000001' and 'm"),
        (METADATA, ALL[0].dicom, "another", f"each image of the split file, found none for {ALL[0].dicom} .1 such"),
    ],
)
def test_a_value_that_cannot_be_is_named(own, name, before, after, said):
    path = own / name
    text = gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text()
    path.write_text(text.replace(before, after))  # what is gzip is told by the content
    with pytest.raises(DataError, match=rf"{name}.*{said}"):
        mimic_cxr(own, view="AP")


def test_a_patient_in_two_splits_is_named(own):
    edit(own / SPLIT, lambda text: text.replace("58913004,10001217,validate", "58913004,10001217,test"))
    with pytest.raises(DataError, match=r"found subject 10001217 in validate and test \(1 such patients\)"):
        mimic_cxr(own)


def test_a_policy_that_leaves_nothing_says_what_there_was(tree):
    with pytest.raises(DataError, match=r"'Fracture' labelled.*missing ignore, found none \(0 absent, .* 11 not ment"):
        mimic_cxr(tree, label="Fracture", missing="ignore")


def test_a_missing_image_is_named_when_it_is_asked_for(tree):
    data = mimic_cxr(tree)
    (lost,) = data.missing
    assert data.path(lost) == LOST.path
    with pytest.raises(DataError, match=rf"{LOST.dicom}.jpg: expected an image, found no such file; .* check-data"):
        data.batch([0, lost])


def test_an_image_that_was_downloaded_by_half_is_named(own):
    path = own / wanted()[0][0].path
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{path.name}: expected a complete image, found '.*truncated"):
        mimic_cxr(own)[0]
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(DataError, match=rf"{path.name}: expected a complete image, found 'cannot identify"):
        mimic_cxr(own)[0]


def test_an_image_of_other_channels_is_refused(own):
    Image.new("CMYK", (256, 320)).save(own / wanted()[0][0].path)
    with pytest.raises(DataError, match="expected an image of 8 bits, grey or RGB, found the mode 'CMYK'"):
        mimic_cxr(own)[0]


def test_a_tree_without_images_is_refused(own):
    (own / "files").rename(own.parent / "files")
    with pytest.raises(DataError, match=r"a folder 'files', or in one HDF5 file .*, found no such files and no folder"):
        mimic_cxr(own)
    for name in ("a.h5", "b.hdf5"):
        (own / name).touch()
    with pytest.raises(DataError, match="found 2 such files and no folder"):
        mimic_cxr(own)


def test_images_in_an_hdf5_file_are_those_of_the_folder(packed, tree):
    one, other = (mimic_cxr(root, split="validate") for root in (packed, tree))
    assert torch.equal(one.batch(range(3)).x, other.batch(range(3)).x)
    assert one.fingerprint != other.fingerprint
    assert mimic_cxr(packed).missing == mimic_cxr(tree).missing


def test_an_hdf5_file_may_name_images_by_where_they_once_lay(packed):
    with h5py.File(packed / "images.h5", "a") as file:
        file.move("files", "/home/somebody/mimic/files")
    assert (mimic_cxr(packed)[0].x * 255).unique().tolist() == pytest.approx([ALL[0].grey])


def test_colours_in_an_hdf5_file_become_grey(packed):
    with h5py.File(packed / "images.h5", "a") as file:
        del file[ALL[0].path]
        file[f"{ALL[0].path}/img"] = np.repeat(pixels(ALL[0])[..., None], 3, 2)
    assert (mimic_cxr(packed)[0].x * 255).unique().tolist() == pytest.approx([ALL[0].grey])


def test_what_an_hdf5_file_lacks_is_named(packed):
    data = mimic_cxr(packed)
    with pytest.raises(DataError, match=rf"images.h5: expected a group '{LOST.path}' with a dataset 'img', found none"):
        data.batch(data.missing)


def test_an_hdf5_file_of_other_than_bytes_is_refused(packed):
    with h5py.File(packed / "images.h5", "a") as file:
        del file[ALL[0].path]
        file[f"{ALL[0].path}/img"] = pixels(ALL[0]) / 255
    with pytest.raises(DataError, match=r"expected bytes .*, found float64 \[320, 256\]; write decoded images"):
        mimic_cxr(packed)[0]


def test_a_damaged_hdf5_file_is_named(packed):
    whole = (packed / "images.h5").read_bytes()
    (packed / "images.h5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"images.h5: expected an HDF5 file, found '.*truncated"):
        mimic_cxr(packed)[0]


def test_without_h5py_its_extra_is_named(packed, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        DataError, match=r"expected h5py to read it with, found none; pip install 'consilience\[hdf5\]'"
    ):
        mimic_cxr(packed)[0]
