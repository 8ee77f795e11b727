"""A tree of files as MIMIC-CXR-JPG has them, with images that are told apart by their brightness."""

import csv
import gzip
from typing import NamedTuple

import numpy as np
from PIL import Image

from consilience.data.mimic_cxr import LABELS

HEADER = {
    "split": ("dicom_id", "study_id", "subject_id", "split"),
    "chexpert": ("subject_id", "study_id", *LABELS),
    "metadata": (
        "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
        "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ),
}  # fmt: skip
STUDIES = [  # in the order of the split file, which is not that of the patients; None: no row of labels
    (19000003, "train", 53000001, "", ["AP"]),
    (19000003, "train", 53000002, "0.0", ["PA"]),
    (19000003, "train", 53000003, "1.0", ["LATERAL", "AP"]),
    (10000032, "train", 50414267, "1.0", ["PA", "LATERAL"]),
    (10000032, "train", 53189527, "", ["PA"]),
    (10001217, "validate", 52067803, "1.0", ["AP"]),
    (10001217, "validate", 58913004, "", ["PA", "LL"]),
    (19000001, "train", 51000001, "-1.0", ["AP"]),
    (19000001, "train", 51000002, None, ["AP"]),
    (19000001, "train", 51000003, "1.0", [""]),
    (10000764, "train", 57375967, "0.0", ["AP", "LATERAL"]),
    (19000002, "test", 52000001, "0.0", ["PA", "LATERAL"]),
    (19000002, "test", 52000002, "1.0", ["AP"]),
]


class Radiograph(NamedTuple):
    """One row of the split file, and what the other files say of it."""

    dicom: str
    study: int
    subject: int
    split: str
    edema: str | None
    view: str
    grey: int

    @property
    def path(self) -> str:
        return f"files/p{str(self.subject)[:2]}/p{self.subject}/s{self.study}/{self.dicom}.jpg"


ALL = [
    Radiograph(
        "-".join([f"{10 * study + place:08x}"] * 5), study, subject, split, edema, view, (study * 7 + place * 50) % 200
    )
    for subject, split, study, edema, views in STUDIES
    for place, view in enumerate(views)
]
LOST = next(one for one in ALL if one.subject == 10000764 and one.view == "LATERAL")
"""The one whose image is not on the disk."""


def plant(root, complete=False):
    """Write the tree into a folder, the labels gzipped; one image is missing unless it is to be complete."""
    root.mkdir(parents=True, exist_ok=True)
    write(root / "mimic-cxr-2.0.0-split.csv", "split", [(one.dicom, one.study, one.subject, one.split) for one in ALL])
    write(root / "mimic-cxr-2.0.0-metadata.csv", "metadata", [
        (one.dicom, one.subject, one.study, "CHEST (PA AND LAT)", one.view, 320, 256, 21800506, 213014.531, "", "", "")
        for one in ALL
    ])  # fmt: skip
    for labels in ("chexpert", "negbio"):  # which differ in one study
        said = [(subject, study, "1.0" if labels == "negbio" and study == 57375967 else edema)
                for subject, _, study, edema, _ in STUDIES if edema is not None]  # fmt: skip
        rows = [
            (subject, study, *(edema if name == "Edema" else "" for name in LABELS)) for subject, study, edema in said
        ]
        write(root / f"mimic-cxr-2.0.0-{labels}.csv.gz", "chexpert", rows)
    for one in ALL:
        if complete or one != LOST:
            (root / one.path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels(one)).save(root / one.path, quality=95)
    return root


def pixels(one):
    """An image 320 high and 256 wide, of one grey, but for a bright stripe that the cut leaves out."""
    grey = np.full((320, 256), one.grey, np.uint8)
    grey[:8] = 255
    return grey


def write(path, table, rows):
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEADER[table], *rows])
