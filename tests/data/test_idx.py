import gzip
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, lists

from consilience.data.idx import find_idx, idx_examples, mnist_like, read_idx, write_idx
from consilience.errors import DataError, SpecError

CLASSES, MEAN, SD = ("no", "yes", "perhaps"), (0.5,), (0.25,)
IMAGES = torch.arange(5 * 2 * 3, dtype=torch.uint8).reshape(5, 2, 3) * 8
LABELS = torch.tensor([2, 0, 1, 1, 0], dtype=torch.uint8)


def by_hand(array):
    """The format as its authors describe it, word for word: magic number, sizes MSB first, bytes."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + bytes(array.flatten().tolist())


@pytest.fixture
def pair(tmp_path):
    write_idx(tmp_path / "images", IMAGES)
    write_idx(tmp_path / "labels", LABELS)
    return tmp_path / "images", tmp_path / "labels"


def examples(images, labels):
    return idx_examples(images, labels, CLASSES, MEAN, SD)


@settings(deadline=None, max_examples=50)
@given(shape=lists(integers(0, 4), min_size=1, max_size=4), seed=integers(0, 2**31), packed=booleans())
def test_a_file_is_read_as_its_definition_says_gzipped_or_not(tmp_path_factory, shape, seed, packed):
    array = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    path = tmp_path_factory.mktemp("idx") / "array"
    path.write_bytes(gzip.compress(by_hand(array)) if packed else by_hand(array))
    found = read_idx(path)
    assert found.dtype == torch.uint8
    assert torch.equal(found, array)


def test_what_is_written_is_the_definition_in_gzip(tmp_path):
    write_idx(tmp_path / "array", IMAGES)
    assert gzip.decompress((tmp_path / "array").read_bytes()) == by_hand(IMAGES)


def test_a_transposed_array_is_written_as_it_is_indexed(tmp_path):
    write_idx(tmp_path / "array", IMAGES.permute(2, 0, 1))
    assert torch.equal(read_idx(tmp_path / "array"), IMAGES.permute(2, 0, 1))


def test_a_written_file_holds_neither_name_nor_time(tmp_path):
    for name in ("one", "another"):
        write_idx(tmp_path / name, IMAGES)
    one = (tmp_path / "one").read_bytes()
    assert one == (tmp_path / "another").read_bytes()
    assert one[3:8] == bytes(5)  # RFC 1952: no flag, so no name; then four bytes of time


def test_an_array_that_was_read_can_be_changed_without_the_file(tmp_path):
    write_idx(tmp_path / "array", LABELS)
    read_idx(tmp_path / "array").zero_()
    assert torch.equal(read_idx(tmp_path / "array"), LABELS)


@pytest.mark.parametrize("array", [LABELS.long(), LABELS.float(), LABELS[0]], ids=["int64", "float", "no axis"])
def test_only_bytes_with_an_axis_are_written(tmp_path, array):
    with pytest.raises(SpecError, match=r"expected a uint8 array of 1 to 32 axes, found torch\.\w+ \["):
        write_idx(tmp_path / "array", array)
    assert not (tmp_path / "array").exists()


WHOLE = by_hand(IMAGES)
FAULTS = {
    "truncated body": (WHOLE[:-1], r"expected 30 bytes after the header, which says \[5, 2, 3\], found 29"),
    "body too long": (WHOLE + b"!", "expected 30 bytes after the header, .* found 31"),
    "truncated header": (WHOLE[:9], "expected a header of 16 bytes, found 9"),
    "empty file": (b"", "expected an IDX file, .* found an empty file"),
    "web page": (b"<!DOCTYPE html><p>Not found", "expected an IDX file, .* found 3c 21 44 4f"),
    "gzipped text": (gzip.compress(b"other things"), "expected an IDX file, .* found 6f 74 68 65"),
    "no axis": (b"\0\0\x08\0\x05", "expected an IDX file, .* found 00 00 08 00"),
    "unknown element": (b"\0\0\x0a\x01", "expected an IDX file, .* found 00 00 0a 01"),
    "float elements": (b"\0\0\x0d\x01\0\0\0\x01" + bytes(4), r"type uint8 \(08\), found float32 \(0d\)"),
    "truncated gzip": (gzip.compress(WHOLE)[:-12], "expected a complete gzip file, found 'Compressed file ended"),
    "gzip header only": (gzip.compress(WHOLE)[:2], "expected a complete gzip file"),
    "damaged gzip": (gzip.compress(WHOLE)[:-8] + bytes(8), "expected a complete gzip file, found 'CRC check failed"),
    "broken stream": (gzip.compress(WHOLE)[:10] + b"\xff" * 20, "expected a complete gzip file"),
    "huge sizes": (b"\0\0\x08\x04" + b"\xff" * 16, "found 0; download"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_file_is_refused_by_its_path_with_what_is_wrong(tmp_path, fault):
    content, message = FAULTS[fault]
    (tmp_path / "file.gz").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_idx(tmp_path / "file.gz")
    assert str(caught.value).startswith(f"{tmp_path / 'file.gz'}: expected")
    assert "; " in str(caught.value)


@pytest.mark.parametrize("content", [WHOLE, gzip.compress(WHOLE)], ids=["bare", "gzipped"])
def test_no_beginning_of_a_file_passes_for_the_file(tmp_path, content):
    path = tmp_path / "array"
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError):
            read_idx(path)
    path.write_bytes(content)
    assert torch.equal(read_idx(path), IMAGES)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(DataError, match="found no such file; check the path"):
        read_idx(tmp_path / "nothing")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(DataError, match="expected a readable file, found"):
        read_idx(tmp_path)


NAME = "train-images-idx3-ubyte"
SPELLINGS = [NAME, NAME + ".gz", "train-images.idx3-ubyte", "train-images.idx3-ubyte.gz"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_is_found_under_every_name_in_use(tmp_path, spelling):
    (tmp_path / "train-labels-idx1-ubyte").touch()
    (tmp_path / spelling).touch()
    assert find_idx(tmp_path, NAME) == tmp_path / spelling


def test_a_file_that_is_not_found_is_listed_under_every_name(tmp_path):
    with pytest.raises(DataError, match="found an empty folder; give --data DIR") as caught:
        find_idx(tmp_path, NAME)
    assert all(f" {spelling}," in str(caught.value) for spelling in SPELLINGS)
    assert f"DIR/{tmp_path.name}/{NAME}.gz" in str(caught.value)


def test_a_missing_folder_is_told_from_a_folder_of_other_files(tmp_path):
    (tmp_path / "photo.png").touch()
    (tmp_path / NAME).mkdir()  # a folder of that name is not the file
    with pytest.raises(DataError, match="found other files only"):
        find_idx(tmp_path, NAME)
    with pytest.raises(DataError, match="found no such folder"):
        find_idx(tmp_path / "nowhere", NAME)


def test_examples_have_one_channel_in_0_to_1_and_their_own_label(pair):
    data = examples(*pair)
    assert (len(data), data.shape, data.classes, data.mean, data.sd) == (5, (1, 2, 3), CLASSES, MEAN, SD)
    batch = data.batch([3, 0])
    assert np.allclose(batch.x.numpy(), IMAGES[[3, 0]][:, None].numpy() / 255)
    assert batch.label.tolist() == [1, 2]
    assert torch.equal(data[3].x, batch.x[0])


def test_content_and_not_packing_makes_the_fingerprint(pair):
    packed = examples(*pair).fingerprint
    pair[0].write_bytes(by_hand(IMAGES))
    assert examples(*pair).fingerprint == packed
    write_idx(pair[1], LABELS.flip(0))
    assert examples(*pair).fingerprint != packed


def test_a_label_out_of_range_is_refused_by_the_path_of_its_file(pair):
    write_idx(pair[1], torch.tensor([0, 1, 3, 1, 9], dtype=torch.uint8))
    with pytest.raises(DataError, match=r"labels: example 2: expected a label from 0 to 2, found 3 \(2 such"):
        examples(*pair)


def test_other_many_labels_than_images_are_refused_by_both_names(pair):
    write_idx(pair[1], LABELS[:4])
    with pytest.raises(DataError, match="labels: expected a label for each of the 5 images of images, found 4"):
        examples(*pair)


def test_files_without_an_example_are_refused(pair):
    for path, array in zip(pair, (IMAGES, LABELS), strict=True):
        write_idx(path, array[:0])
    with pytest.raises(DataError, match="at least one, found 0 images"):
        examples(*pair)


def test_swapped_files_are_refused(pair):
    with pytest.raises(DataError, match=r"labels: expected the axes \[n, h, w\], found \[5\]; .* not swapped"):
        examples(pair[1], pair[0])


def test_images_in_place_of_labels_are_refused(pair):
    with pytest.raises(DataError, match=r"images: expected the axes \[n\], found \[5, 2, 3\]"):
        examples(pair[0], pair[0])


def test_an_unknown_split_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(SpecError, match="no split is named 'tset'; did you mean 'test'"):
        mnist_like(tmp_path, "tset", CLASSES, MEAN, SD)
