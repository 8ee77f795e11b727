"""MIMIC-CXR-JPG: chest radiographs with labels from their reports, as PhysioNet publishes them."""

import itertools
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from consilience.component import dataset
from consilience.data.examples import Examples
from consilience.data.images import Folder, Hdf5, ImageFiles, Source
from consilience.data.tables import columns_of, find_table
from consilience.errors import DataError, SpecError, unknown

LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
SPLITS = ("train", "validate", "test")
VIEWS = {"frontal": ("AP", "PA"), "lateral": ("LATERAL", "LL"), "AP": ("AP",), "PA": ("PA",)}
PREFIX = "mimic-cxr-2.0.0-"
PUBLISHED = 377_110  # images

WORDS = ("absent", "present", "uncertain", "not mentioned", "without a row of labels")
SPELLED = {"0.0": 0, "1.0": 1, "-1.0": 2, "": 3, "0": 0, "1": 1, "-1": 2}
UNLABELLED, OUT = 4, -1
UNCERTAIN, MISSING = {"ignore": OUT, "zero": 0, "one": 1}, {"zero": 0, "ignore": OUT}


class Images(NamedTuple):
    """Every row of the split file."""

    dicom: NDArray[np.bytes_]
    study: NDArray[np.int64]
    subject: NDArray[np.int64]
    split: NDArray[np.int8]

    def of(self, rows: NDArray[np.int64]) -> "Images":
        """Some of them."""
        return Images._make(column[rows] for column in self)


class Published:
    """Where images lie below the data set's folder, and what the split file says of them."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __call__(self, row: int) -> str:
        """The image's path."""
        ids = self.ids(row)
        subject = ids["subject_id"]
        return f"files/p{subject[:2]}/p{subject}/s{ids['study_id']}/{ids['dicom_id']}.jpg"

    def ids(self, row: int) -> dict[str, str]:
        """The image's row of the split file."""
        dicom, study, subject, split = (column[row] for column in self.images)
        return {
            "subject_id": str(subject), "study_id": str(study), "dicom_id": dicom.decode(), "split": SPLITS[split],
        }  # fmt: skip


@dataset(version=1, paper="johnson2019mimic")
def mimic_cxr(
    root: Path,
    *,
    split: Literal["train", "validate", "test", "all"] = "train",
    label: str = "Edema",
    uncertain: Literal["ignore", "zero", "one"] = "ignore",
    missing: Literal["zero", "ignore"] = "zero",
    view: Literal["any", "frontal", "lateral", "AP", "PA"] | tuple[str, ...] = "any",
    one_per_study: bool = False,
    size: Annotated[int, Meta(ge=1)] = 224,
    labels: Literal["chexpert", "negbio"] = "chexpert",
) -> Examples:
    """Chest radiographs, decoded when they are asked for, in two classes: without a label and with it.

    Examples stand in the order of the split file, and what a split may not separate is the patient. The label is the
    report's, so all images of a study have it. An image is turned grey, scaled, its middle cut out, the same every
    time, and repeated on three channels; mean and deviation are ImageNet's. The fingerprint holds the rows, their
    labels and each image file's size in bytes, not its content. Needs ``mimic-cxr-2.0.0-split.csv`` (or ``.csv.gz``),
    the file of labels, the metadata where a view is chosen, and ``files/``, or in its place one HDF5 file.

    Args:
        split: Which of the published parts; ``"all"`` is the three together.
        label: Which of the fourteen.
        uncertain: What becomes of a report that is uncertain: left out, taken for the first class, or for the second.
        missing: What becomes of a report that does not mention the label: taken for the first class, or left out.
        view: Only images of this view, by the metadata's ViewPosition: ``"frontal"`` is AP and PA, ``"lateral"`` is
            LATERAL and LL; or a list of its values.
        one_per_study: Of each study only the first image in this view.
        size: Pixels of a side; of the short side before the middle is cut out, 8/7 of it: 256 for 224.
        labels: Which labeller's file.
    """
    if label not in LABELS:
        raise SpecError(f"mimic_cxr: {unknown('label', label, LABELS)}")
    source = _source(root)
    table = find_table(root, f"{PREFIX}split")
    every = _images(table)
    patients = _patients(table, every)
    pool = np.ones(len(every.study), bool) if split == "all" else every.split == SPLITS.index(split)
    pool &= _in_view(root, every, view)
    rows = np.flatnonzero(pool)
    if one_per_study:  # the label is the study's, so that it does not matter whether it was asked for before
        rows = rows[np.sort(np.unique(every.study[rows], return_index=True)[1])]
    said = _said(find_table(root, f"{PREFIX}{labels}"), label, every.study[rows])
    counts = np.bincount(said, minlength=len(WORDS))
    decided = _decided(uncertain, missing)[said]
    rows, decided = rows[decided != OUT], decided[decided != OUT]
    if len(rows) == 0:
        found = ", ".join(f"{count} {word}" for count, word in zip(counts, WORDS, strict=True))
        raise DataError(
            f"{root}: expected images with split {split}, view {view}, '{label}' labelled, uncertain {uncertain} and "
            f"missing {missing}, found none ({found}); choose other options"
        )
    chosen = every.of(rows)
    policy = (label, split, uncertain, missing, view, one_per_study, labels)
    return ImageFiles(
        source,
        Published(chosen),
        torch.from_numpy(decided.astype(np.int64)),
        torch.from_numpy(patients[rows]),
        (f"no {label}", label),
        size,
        [repr(policy).encode(), *(column.tobytes() for column in chosen), decided.tobytes()],
        _notes(every, label, counts),
    )


def _source(root: Path) -> Source:
    """Where the images are: below ``files/``, or in the one HDF5 file."""
    if (root / "files").is_dir():
        return Folder(root)
    found = sorted(file for file in root.glob("*") if file.suffix in (".h5", ".hdf5"))
    if len(found) == 1:
        return Hdf5(found[0])
    raise DataError(
        f"{root}: expected the images in a folder 'files', or in one HDF5 file (.h5, .hdf5), found "
        f"{len(found) or 'no'} such files and no folder; give --data DIR, where DIR/{root.name}/ holds either"
    )


def _images(path: Path) -> Images:
    """The split file.

    Raises:
        DataError: It cannot be read, or a row names no known split or holds an id that is no number.
    """
    dicom: list[bytes] = []
    numbers: list[tuple[int, int, int]] = []
    for row in columns_of(path, ("dicom_id", "study_id", "subject_id", "split")):
        try:
            numbers.append((int(row[1]), int(row[2]), SPLITS.index(row[3])))
        except ValueError:
            raise DataError(
                f"{path}, row {len(dicom) + 1}: expected two whole numbers as study_id and subject_id and a split of "
                f"{', '.join(SPLITS)}, found {', '.join(row[1:])}; download the file again"
            ) from None
        dicom.append(row[0].encode())
    if not dicom or len({*dicom}) < len(dicom):
        found = f"{len(dicom) - len({*dicom}):,} images twice" if dicom else "none"
        raise DataError(f"{path}: expected a row for each image, found {found}; download the file again")
    study, subject, split = np.array(numbers, np.int64).T
    return Images(np.array(dicom), study.copy(), subject.copy(), split.astype(np.int8))


def _patients(path: Path, images: Images) -> NDArray[np.int64]:
    """Of each image its patient, counted from 0 by subject_id, the same whatever is chosen of them.

    Raises:
        DataError: A patient is in two splits.
    """
    names, patients = np.unique(images.subject, return_inverse=True)
    pairs = np.unique(patients * len(SPLITS) + images.split)
    if len(pairs) > len(names):
        twice = np.flatnonzero(np.bincount(pairs // len(SPLITS)) > 1)
        where = [SPLITS[pair % len(SPLITS)] for pair in pairs if pair // len(SPLITS) == twice[0]]
        raise DataError(
            f"{path}: expected every patient in one split, found subject {names[twice[0]]} in {' and '.join(where)} "
            f"({len(twice)} such patients); take the file as it is published"
        )
    return patients.reshape(-1)  # NumPy 2.0 shapes it otherwise


def _in_view(root: Path, images: Images, view: str | tuple[str, ...]) -> NDArray[np.bool_]:
    """Of each image whether its view was asked for.

    Raises:
        DataError: The metadata lack an image.
        SpecError: No image has such a view.
    """
    if view == "any":
        return np.ones(len(images.dicom), bool)
    wanted = VIEWS[view] if isinstance(view, str) else view
    path = find_table(root, f"{PREFIX}metadata")
    positions = {row[0]: row[1] for row in columns_of(path, ("dicom_id", "ViewPosition"))}
    lacking = [name for name in map(bytes.decode, images.dicom.tolist()) if name not in positions]
    if lacking:
        raise DataError(
            f"{path}: expected a row for each image of the split file, found none for {lacking[0]} "
            f"({len(lacking)} such images); download the file again"
        )
    known = set(positions.values())
    for name in wanted if isinstance(view, tuple) else ():
        if name not in known:
            raise SpecError(f"mimic_cxr: {unknown('ViewPosition', name, known)}")
    return np.array([positions[name.decode()] in wanted for name in images.dicom.tolist()])


def _said(path: Path, label: str, studies: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of each study what its report says of the label, as a place in ``WORDS``.

    Raises:
        DataError: The file cannot be read, or holds something else than 1.0, 0.0, -1.0 or nothing.
    """
    said: dict[int, int] = {}
    for row, (study, value) in enumerate(columns_of(path, ("study_id", label)), 1):
        try:
            said[int(study)] = SPELLED[value]
        except (ValueError, KeyError):
            raise DataError(
                f"{path}, row {row}: expected a whole number as study_id and 1.0, 0.0, -1.0 or nothing as '{label}', "
                f"found '{study}' and '{value}'; download the file again"
            ) from None
    return np.array([said.get(study, UNLABELLED) for study in studies.tolist()], np.int64)


def _decided(uncertain: str, missing: str) -> NDArray[np.int64]:
    """Of each of ``WORDS`` the class that it becomes, or that it is left out."""
    return np.array([0, 1, UNCERTAIN[uncertain], MISSING[missing], OUT])


def _notes(images: Images, label: str, counts: NDArray[np.int64]) -> list[tuple[str, str]]:
    """For people: the whole split file, and what each policy would make of the images that were asked for."""
    each = [len(np.unique(images.subject[images.split == place])) for place in range(len(SPLITS))]
    patients = ", ".join(f"{count:,} {name}" for count, name in zip(each, SPLITS, strict=True))
    said = ", ".join(f"{count:,} {word}" for count, word in zip(counts, WORDS, strict=True))
    notes = [
        ("rows of the split file", f"{len(images.dicom):,} (as published: {PUBLISHED:,})"),
        ("patients of the splits, which are disjoint", patients),
        (f"images by what their report says of {label}", said),
    ]
    for uncertain, missing in itertools.product(UNCERTAIN, MISSING):
        decided = _decided(uncertain, missing)
        without, with_ = (int(counts[decided == one].sum()) for one in (0, 1))
        notes.append((f"uncertain {uncertain}, missing {missing}", f"{without:,} no {label}, {with_:,} {label}"))
    return notes
