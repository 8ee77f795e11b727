"""Files written row by row."""

import pytest
import torch
from hypothesis import given
from hypothesis.strategies import integers
from safetensors.torch import load_file

from consilience.errors import ArtifactError
from consilience.experiment.files import RowWriter, read_metadata, read_tensors, write_tensors

ROWS = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def written(path, rows=ROWS, name="maps", total=5, step=2):
    """Append what is missing, after whatever is there."""
    with RowWriter(path, name, total) as writer:
        done = writer.done
        writer.keep(done)
        for start in range(done, len(rows), step):
            writer.append(rows[start : start + step])
    return path


def test_what_is_written_row_by_row_is_what_safetensors_reads(tmp_path):
    path = written(tmp_path / "maps.safetensors")
    assert torch.equal(load_file(path)["maps"], ROWS)
    assert torch.equal(read_tensors(path)["maps"], ROWS)
    assert list(tmp_path.iterdir()) == [path]


@given(cut=integers(0, 600), step=integers(1, 5))
def test_a_file_that_was_cut_at_any_byte_goes_on_and_ends_with_the_same_bytes(tmp_path_factory, cut, step):
    path = tmp_path_factory.mktemp("rows") / "maps.safetensors"
    whole = written(path).read_bytes()
    path.write_bytes(whole[:cut])
    assert RowWriter(path, "maps", 5).done <= cut // (4 * 2 * 3 * 3)
    assert written(path, step=step).read_bytes() == whole


def test_a_file_of_other_many_rows_begins_anew(tmp_path):
    path = written(tmp_path / "maps.safetensors", ROWS[:4], total=4)
    assert RowWriter(path, "maps", 5).done == 0
    assert torch.equal(load_file(written(path))["maps"], ROWS)


def test_rows_of_another_shape_are_refused(tmp_path):
    writer = RowWriter(tmp_path / "maps.safetensors", "maps", 5)
    writer.append(ROWS[:2])
    with pytest.raises(ArtifactError, match=r"expected rows \[2, 3, 3\] as before, found \[1, 3, 3\]"):
        writer.append(ROWS[2:, :1])
    assert writer.done == 2


def test_rows_are_kept_as_single_precision(tmp_path):
    path = written(tmp_path / "maps.safetensors", ROWS.double())
    assert torch.equal(load_file(path)["maps"], ROWS)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 100, None])
def test_a_file_that_is_no_safetensors_file_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    for read in (read_tensors, read_metadata):
        with pytest.raises(ArtifactError, match="expected a complete safetensors file, found") as caught:
            read(path)
        assert str(caught.value).startswith(str(path))


def test_tensors_that_are_no_whole_are_written_as_they_look(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"a": ROWS.transpose(0, 1)}, {"note": "text"})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"], ROWS.transpose(0, 1))
    assert read_metadata(tmp_path / "a.safetensors") == {"note": "text"}


def test_equal_tensors_and_notes_are_equal_files(tmp_path):
    notes = [(letter, letter) for letter in "abcdefgh"]
    for name, order in (("one", notes), ("two", notes[::-1])):
        write_tensors(tmp_path / name, {"a": ROWS}, dict(order))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_metadata(tmp_path / "one") == dict(notes)
