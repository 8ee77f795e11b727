"""What the paper has in its tables, and which of its rows are of which experiment file."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

NONE = "\u2013"


class Row(NamedTuple):
    """A row of the table of consistency, and what the paper has in it: alpha, C and its columns, accuracy."""

    name: str
    file: str
    method: str
    alpha: int | None = None
    c: float | None = None
    columns: Mapping[str, float] = MappingProxyType({})
    accuracy: float | None = None
    family: str = "twins"


SHAP, IG, BLACK, KERNEL, MEAN = "SHAP", "IG", "IG, black", "Kernel SHAP", "IG, black, mean of the maps"
METHODS = {  # component and baseline; the paper's integrated gradients start from the zero of normalised space
    SHAP: ("gradient_shap", None), IG: ("integrated_gradients", "mean"), BLACK: ("integrated_gradients", 0.0),
    KERNEL: ("kernel_shap", 0.0), MEAN: ("mean_over_models", None),
}  # fmt: skip
MIMIC, ENSEMBLES = "mimic_cxr", "averaging ensembles"
TABLE = [
    Row("MLP", "mlp", SHAP, 6, 0.0668, {"order": 0.062, "init": 0.066, "dropout_rate": 0.0687}, 98.125),
    Row("SVM (RBF)", "rbf_svm", KERNEL, 10, 0.9444, {"subset": 0.96, "init": 0.94}, 94.0556),
    Row("Small-CNN", "small_cnn", SHAP, 6, 0.0252, {"order": 0.018, "init": 0.06, "dropout_rate": 0.034}, 98.349),
    Row("GaborNet, fixed", "gabornet_frozen", SHAP, 12, 0.0, {"order": 0, "init": 0, "dropout_rate": 0}, 95.04),
    Row("ResNet-18", "resnet18", SHAP, 10, 0.0, {"order": 0, "init": 0}, 99.425),
    Row("ADP ensemble of ten", "adaptive_diversity_ridge", SHAP, 6, 0.2193, {"order": 0.192, "init": 0.233}, 99.083),
    Row("CNN", "cnn", SHAP, 12, 0.0652, {"order": 0.052, "init": 0.0564, "dropout_rate": 0.0914}, 98.9976),
    Row("DenseNet-121, MIMIC-CXR", MIMIC, SHAP, 6, 0.3329, {"init": 0.3329}, 75.6723),
    Row("DenseNet-121 ensemble, MIMIC-CXR", MIMIC, SHAP, 4, 0.3367, {"init": 0.3667}, 80.8, ENSEMBLES),
    Row("CNN", "cnn", IG, 12, 0.0, {"order": 0, "init": 0, "dropout_rate": 0}, 98.9976),
    Row("Hyper-batch ensemble", "hyper_batch_ensemble", IG, 2, 0.0, {"init": 0}, 99.32),
    Row("DenseNet-121, MIMIC-CXR", MIMIC, IG, 6, 0.168, {"order": 0.115, "init": 0.2033}, 75.6723),
]  # fmt: skip
UNPUBLISHED = [
    "linear", "gabornet", "rbf_svm", "mlp", "small_cnn", "cnn", "adaptive_diversity", "hyper_batch_ensemble",
    "hyper_deep_ensemble", "resnet18",
]  # fmt: skip
REMEDIES = ["small_cnn", "no_dropout", "swa", "ensemble", "explanation_agreement", "hyper_deep_ensemble"]
FACTORS = ["init", "order", "noise", "dropout_rate", "subset", "everything", "members", "nothing"]
DISTANCES = {  # of seeds: JSD, KS, Wilcoxon, accuracy of the logistic regression
    ("1", "1"): (0, 0, 0, 0.5), ("1", "12303"): (0.8062, 0.9744, 7.877e9, 0.973),
    ("1", "15135"): (0.8012, 0.9690, 1.738e10, 0.978), ("1", "16959"): (0.7346, 0.8890, 2.464e11, 0.975),
    ("12303", "12303"): (0, 0, 0, 0.5), ("12303", "15135"): (0.8228, 0.9913, 4.350e8, 0.979),
    ("12303", "16959"): (0.7900, 0.9567, 3.316e10, 0.974), ("15135", "15135"): (0, 0, 0, 0.5),
    ("15135", "16959"): (0.8122, 0.9810, 6.611e9, 0.975),
}  # fmt: skip
