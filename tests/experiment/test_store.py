"""The store: complete or absent, and what is damaged is said to be."""

import contextlib
import errno
import json
import os
import re
import shutil

import pytest
from tests.experiment.fixtures import contents

from consilience.errors import ArtifactError, DiskError
from consilience.experiment.run import run
from consilience.experiment.specs import plan
from consilience.experiment.store import Store, writing


def altered(path, change):
    """Change a file's bytes, and its time, which a file system may keep too coarsely to show it."""
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(1, 1))


def flipped(content):
    return content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]


def of_stage(tiny, stage):
    return next(spec for spec in plan(tiny.specs()) if spec.stage == stage)


def test_an_artifact_is_its_tensors_its_spec_and_how_it_was_made(tiny, made):
    store = Store(made)
    assert all(spec in store for spec in plan(tiny.specs()))
    train = of_stage(tiny, "train")
    folder = store.folder(train)
    assert {file.name for file in folder.iterdir()} == {
        "data.safetensors", "history.json", "provenance.json", "spec.json"
    }  # fmt: skip
    assert json.loads((folder / "spec.json").read_bytes()) == json.loads(train.canonical)
    note = store.provenance(train)
    assert note["versions"].keys() == {"consilience", "torch", "numpy", "python"}
    assert note["checksums"].keys() == {"data.safetensors", "history.json"}
    assert note["seconds"] > 0
    assert store.drafts() == []
    assert not list((made / ".committed").iterdir())


def test_a_group_is_absent_until_it_is_complete(tiny, copied):
    store, pair = Store(copied), [spec for spec in plan(tiny.specs()) if spec.stage == "predict"][:2]
    kept = [shutil.move(store.folder(spec), copied.parent / spec.digest) for spec in pair]

    def fill(draft, count):
        for spec, source in list(zip(pair, kept, strict=True))[:count]:
            shutil.copy(source / "data.safetensors", draft / spec.stage / spec.digest)

    with contextlib.suppress(RuntimeError), store.draft(pair) as draft:
        fill(draft, 1)
        raise RuntimeError("half way")
    assert not any(spec in store for spec in pair)
    assert store.drafts() == [draft]
    with store.draft(pair) as again:
        assert again == draft, "the next try finds what the last one left"
        fill(again, 2)
    assert all(spec in store for spec in pair)
    with store.draft(pair) as nothing:
        assert nothing is None
    assert store.drafts() == []


def test_what_another_device_began_is_begun_anew(tiny, tmp_path):
    store, spec = Store(tmp_path), plan(tiny.specs())[0]

    def interrupted(device):
        with contextlib.suppress(RuntimeError), store.draft([spec], device) as draft:
            there = {path.name for path in (draft / spec.stage / spec.digest).iterdir()}
            (draft / spec.stage / spec.digest / device).touch()
            raise RuntimeError("half way")
        return there

    assert [interrupted(device) for device in ("cuda", "cuda", "cpu", "cpu", "cuda")] == [
        set(), {"cuda"}, set(), {"cpu"}, set()
    ]  # fmt: skip


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_commit_that_was_cut_between_its_renames_is_finished_by_whoever_opens_the_store(tiny, copied, made, moved):
    group = [spec for spec in plan(tiny.specs()) if spec.stage == "predict"][:2]
    store, committed = Store(copied), copied / ".committed" / ("0" * 32)
    for spec in group:
        (committed / spec.stage / spec.digest).mkdir(parents=True)
    for spec in group[moved:]:
        store.folder(spec).replace(committed / spec.stage / spec.digest)
    for spec in group[:moved]:
        (committed / spec.stage / spec.digest).rmdir()
    assert [spec in store for spec in group] == [position < moved for position in range(2)]
    assert all(spec in Store(copied) for spec in group)
    assert contents(copied) == contents(made)
    assert not list((copied / ".committed").iterdir())


def test_an_artifact_that_is_there_already_is_not_replaced_by_an_interrupted_commit(tiny, copied, made):
    spec = of_stage(tiny, "predict")
    late = copied / ".committed" / ("0" * 32) / spec.stage / spec.digest
    shutil.copytree(copied / spec.stage / spec.digest, late)
    (late / "data.safetensors").write_bytes(b"cut off")
    Store(copied)
    assert contents(copied) == contents(made)


@pytest.mark.parametrize("left", [(), (".drafts",), (".drafts", ".committed", ".locks", "consilience-store.json.part")])
def test_a_store_whose_making_was_cut_off_is_made(tmp_path, left):
    for name in left:
        (tmp_path / name).touch() if name.endswith("part") else (tmp_path / name).mkdir()
    Store(tmp_path)
    assert json.loads((tmp_path / "consilience-store.json").read_text()) == {"consilience-store": 1}
    assert {path.name for path in tmp_path.iterdir()} == {".committed", ".drafts", ".locks", "consilience-store.json"}


def test_a_commit_that_was_cut_leaves_no_word_of_its_progress(tiny, copied, made, monkeypatch):
    store, spec = Store(copied), of_stage(tiny, "predict")
    kept = store.folder(spec).rename(copied.parent / spec.digest)
    with monkeypatch.context() as patch:
        patch.setattr(store, "settle", lambda: 1 / 0)
        with contextlib.suppress(ZeroDivisionError), store.draft([spec]) as draft:
            store.tell([spec], 0.5)
            shutil.copy(kept / "data.safetensors", draft / spec.stage / spec.digest)
    assert spec not in store
    assert spec in Store(copied)
    assert contents(copied) == contents(made)


DAMAGES = {
    "one bit flipped": (lambda folder: altered(folder / "data.safetensors", flipped), "other bytes"),
    "cut short": (lambda folder: altered(folder / "data.safetensors", lambda c: c[: len(c) // 2]), "other bytes"),
    "empty": (lambda folder: altered(folder / "data.safetensors", lambda c: b""), "other bytes"),
    "missing": (lambda folder: (folder / "data.safetensors").unlink(), "found nothing"),
    "no provenance": (lambda folder: (folder / "provenance.json").unlink(), "provenance.json"),
    "provenance cut short": (lambda folder: altered(folder / "provenance.json", lambda c: c[:40]), "provenance.json"),
    "provenance of something else": (lambda folder: altered(folder / "provenance.json", lambda c: b"{}"), "seconds"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_one_error_that_says_where_and_what_to_do(tiny, copied, damage):
    spec, (harm, says) = of_stage(tiny, "predict"), DAMAGES[damage]
    folder = Store(copied).folder(spec)
    harm(folder)
    altered(folder / "spec.json", bytes)
    if (folder / "data.safetensors").exists():
        os.utime(folder / "data.safetensors", ns=(2, 2))
    with pytest.raises(ArtifactError) as caught:
        Store(copied).tensors(spec)
    message = str(caught.value)
    assert message.startswith(str(folder))
    for words in ("expected", "found", says, "run the experiment"):
        assert words in message


def test_a_damaged_artifact_fails_what_rests_on_it_and_heals_once_it_is_deleted(tiny, copied, made):
    store, spec = Store(copied), of_stage(tiny, "predict")
    shutil.rmtree(copied / "measure")
    shutil.rmtree(copied / "summary")
    altered(store.folder(spec) / "data.safetensors", flipped)
    outcome = run(tiny, copied)
    assert [failure.group[0].measure.use for failure in outcome.failures] == ["accuracy"]
    assert str(store.folder(spec)) in outcome.failures[0].reason

    shutil.rmtree(store.folder(spec))
    assert not run(tiny, copied).failures
    assert contents(copied) == contents(made)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ArtifactError, match=r"expected a Consilience store or an empty folder, .*--store"):
        Store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ['{"consilience-store": 2}', "{}", "not JSON", ""])
def test_a_store_of_another_version_is_refused(copied, content):
    (copied / "consilience-store.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"expected \{'consilience-store': 1\}, found .*another version.*--store"):
        Store(copied)


def test_a_digest_may_be_shortened_as_long_as_it_names_one_artifact(tiny, made):
    store, spec = Store(made), of_stage(tiny, "train")
    assert store.find(spec.digest[:12]) == store.folder(spec)
    with pytest.raises(ArtifactError, match="'' names 115 artifacts; give more of its letters"):
        store.find("")
    with pytest.raises(ArtifactError, match="no artifact is named 'xyz'"):
        store.find("xyz")


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_store_where_a_file_is_cannot_be_made(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match=re.escape(str(tmp_path / place))):
        Store(tmp_path / place)


def test_a_store_cannot_be_made_where_the_system_makes_no_folders(monkeypatch, tmp_path):
    def refuses(path, *args, **options):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuses)
    with pytest.raises(DiskError, match="expected a place where a folder can be made"):
        Store(tmp_path / "store")


def test_a_draft_that_somebody_works_on_is_not_a_left_over(tiny, tmp_path):
    group = [of_stage(tiny, "train")]
    with contextlib.suppress(RuntimeError), Store(tmp_path).draft(group) as draft:
        assert draft.is_dir()
        assert Store(tmp_path).drafts() == []
        raise RuntimeError("half way")
    assert Store(tmp_path).drafts() == [draft]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_in_a_folder_that_is_not_ours_cannot_be_made(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="Permission denied"):
        Store(tmp_path / "store")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_a_disk_refuses_is_an_error_of_the_disk(tmp_path, number):
    with pytest.raises(DiskError, match=re.escape(os.strerror(number))) as caught, writing(tmp_path):
        raise OSError(number, os.strerror(number))
    assert "what was complete is kept" in str(caught.value)


def test_an_error_that_is_not_the_disks_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path):
        (tmp_path / "absent").read_bytes()
