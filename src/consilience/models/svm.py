"""Kernel machines: solved by scikit-learn, evaluated by torch, so that they are explained as networks are."""

import itertools
import math
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from consilience.component import architecture
from consilience.errors import DataError, ModelError, SpecError
from consilience.tensors import CHUNK_BYTES, slices

Scheme = Literal["one_vs_one", "one_vs_rest"]
"""Whether there is a machine for each pair of classes, or one for each class against all others."""


class Solution(NamedTuple):
    """What scikit-learn found: decisions are sums over some training images' kernels, and a constant."""

    mean: np.ndarray
    scale: np.ndarray
    used: np.ndarray
    """Rows of the training images that are support vectors."""
    dual: np.ndarray
    """Of each decision, a coefficient for each support vector."""
    intercept: np.ndarray


class KernelMachine(nn.Module):
    """A support vector machine with a radial kernel; made by ``rbf_svm``.

    It has no parameters: ``fit`` fills its buffers, and ``load_state_dict`` takes as many support
    vectors as the saved machine has. The buffers are of the type that the module has when it is
    fitted, float32 if nothing is said; ``double()`` before ``fit`` keeps all of the solver's digits.
    """

    fitted = True
    mean: Tensor
    scale: Tensor
    support: Tensor
    dual: Tensor
    intercept: Tensor
    share: Tensor

    def __init__(
        self, shape: tuple[int, int, int], classes: int, *, c: float, gamma: float, standardise: bool, scheme: Scheme
    ) -> None:
        super().__init__()
        self.shape, self.classes = tuple(shape), classes
        self.c, self.gamma, self.standardise, self.scheme = c, gamma, standardise, scheme
        pixels, share = math.prod(shape), _shares(classes, scheme)
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("scale", torch.ones(pixels))
        self.register_buffer("support", torch.zeros(0, pixels))
        self.register_buffer("dual", torch.zeros(share.shape[1], 0))
        self.register_buffer("intercept", torch.zeros(share.shape[1]))
        self.register_buffer("share", share, persistent=False)
        self.register_load_state_dict_pre_hook(_make_room)

    def fit(self, x: Float[Tensor, "n c h w"], label: Int[Tensor, " n"]) -> None:
        """Find the support vectors among these images; the same ones whatever any seed is.

        Raises:
            ModelError: Images of another shape, or scikit-learn is not installed.
            DataError: A pixel that is not finite, or labels that are not all of the classes.
        """
        self._check_shape(x)
        pixels, labels = x.detach().flatten(1).cpu(), label.detach().cpu().numpy()
        if not pixels.isfinite().all():
            bad = int((~pixels.isfinite()).any(1).sum())
            raise DataError(f"rbf_svm: expected finite pixels, found others in {bad} images; leave those out")
        found = np.unique(labels)
        if len(labels) != len(pixels) or not np.array_equal(found, np.arange(self.classes)):
            raise DataError(
                f"rbf_svm: expected a label for each of {len(pixels)} images and each class from 0 to "
                f"{self.classes - 1} among them, found {len(labels)} labels, of the classes {found.tolist()}; "
                "fit on a larger part, or say how many classes there are"
            )
        solution = _solved(pixels.double().numpy(), labels, self.c, self.gamma, self.standardise, self.scheme)
        kind = self.mean
        self.mean, self.scale, self.dual, self.intercept = (
            torch.from_numpy(each).to(kind)
            for each in (solution.mean, solution.scale, solution.dual, solution.intercept)
        )
        # in the module's own digits, so that an image that is a support vector is at distance zero from it
        self.support = self._standardised(pixels[torch.from_numpy(solution.used)].to(kind))

    def decisions(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Each machine's decision, as scikit-learn's ``decision_function`` gives it.

        Of a pair of classes it is positive for the first; of two classes in all, for the second.

        Raises:
            ModelError: Images of another shape, or nothing was fitted or loaded.
        """
        self._check_shape(x)
        if not len(self.support):
            raise ModelError("rbf_svm: expected a fitted machine, found one without support vectors; fit or load it")
        z = self._standardised(x.flatten(1))
        rows = max(1, CHUNK_BYTES // (len(self.support) * self.support.element_size()))
        if len(z) <= rows:
            return self._decided(z)
        return torch.cat([self._decided(z[some]) for some in slices(len(z), rows)])

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        """Logits: of each class its soft votes, or its own decision where there is one for each class."""
        decisions = self.decisions(x)
        several = self.scheme == "one_vs_one" and self.classes > 2
        return (decisions.tanh() if several else decisions) @ self.share.T

    def _standardised(self, pixels: Float[Tensor, "n p"]) -> Float[Tensor, "n p"]:
        return (pixels - self.mean) / self.scale

    def _decided(self, z: Float[Tensor, "n p"]) -> Float[Tensor, "n d"]:
        """Decisions, the kernel with all support vectors taken once.

        A squared distance is a product and two squared lengths. These are small against its precision, since the
        mean of the training images was taken from both.
        """
        length = torch.linalg.vector_norm(self.support, dim=1).square()
        closeness = F.linear(z, self.support, -length / 2) - z.square().sum(1, keepdim=True) / 2
        kernel = (2 * self.gamma * closeness).exp()
        # coefficients of a machine sum to zero: what all kernels have in common only costs digits
        return F.linear(kernel - kernel.mean(1, keepdim=True), self.dual, self.intercept)

    def _check_shape(self, x: Tensor) -> None:
        if tuple(x.shape[1:]) != self.shape:
            raise ModelError(
                f"x: expected images of the shape {list(self.shape)} for which rbf_svm was made, found "
                f"{list(x.shape)}; resize them, or make one for these"
            )


@architecture(version=1, paper="watson2022agree")
def rbf_svm(
    shape: tuple[int, int, int],
    classes: int,
    *,
    c: Annotated[float, Meta(gt=0)] = 15.0,
    gamma: Annotated[float, Meta(gt=0)] = 0.001,
    standardise: bool = True,
    scheme: Scheme = "one_vs_one",
) -> nn.Module:
    """A support vector machine with a radial kernel, which is fitted and not trained; it answers nothing before.

    Its logits are smooth in the pixels, with exact slopes. scikit-learn predicts from pairs of classes by their votes,
    which have no slope; here the vote of a pair is ``tanh(decision)``, which is a whole vote well outside of the margin
    and none on the boundary, and the logit of a class is the sum of its votes (``one_vs_one``), or its one decision
    against all others (``one_vs_rest``). No chance enters: another seed changes nothing, another order of the images no
    more than the solver's tolerance.

    Args:
        c: What a training image on the wrong side of its margin costs.
        gamma: How fast the kernel falls with the squared distance: ``exp(-gamma * distance ** 2)``.
        standardise: Whether each pixel is divided by its deviation over the training images, unless that is 0.
        scheme: Whether there is a machine for each pair of classes, or one for each class against all others.

    Raises:
        SpecError: Fewer than two classes.
    """
    if classes < 2:
        raise SpecError(f"rbf_svm: expected at least 2 classes, found {classes}; there is nothing to tell apart")
    return KernelMachine(shape, classes, c=c, gamma=gamma, standardise=standardise, scheme=scheme)


def _shares(classes: int, scheme: Scheme) -> Float[Tensor, "k d"]:
    """What each decision counts in each class's logit."""
    if classes == 2:  # one decision, positive for the second class
        return torch.tensor([[-1.0], [1.0]])
    if scheme == "one_vs_rest":
        return torch.eye(classes)
    pairs = list(itertools.combinations(range(classes), 2))
    share = torch.zeros(classes, len(pairs))
    for row, (first, second) in enumerate(pairs):
        share[first, row], share[second, row] = 1, -1
    return share


def _solved(
    pixels: np.ndarray, label: np.ndarray, c: float, gamma: float, standardise: bool, scheme: Scheme
) -> Solution:
    """scikit-learn's solution.

    Raises:
        ModelError: It is not installed.
    """
    try:
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC
    except ImportError as error:
        raise ModelError(
            "rbf_svm: expected the package 'scikit-learn', found none; pip install consilience[svm]"
        ) from error
    scaler = StandardScaler(with_std=standardise).fit(pixels)
    seen = scaler.transform(pixels) if standardise else pixels

    def machine(label: np.ndarray) -> Any:
        return SVC(C=c, gamma=gamma, kernel="rbf").fit(seen, label)

    if scheme == "one_vs_one":
        used, dual, intercept = _of_pairs(machine(label))
    else:
        classes = range(1, 2) if label.max() == 1 else range(label.max() + 1)
        used, dual, intercept = _joined([machine(label == one) for one in classes])
    scale = scaler.scale_ if standardise else np.ones(pixels.shape[1])
    return Solution(scaler.mean_, scale, used, dual, intercept)


def _of_pairs(machine: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support vectors, and coefficients and constant of each pair of classes.

    libsvm lists support vectors by class, and keeps of each its coefficients against the other classes, in order.
    """
    owner = np.repeat(np.arange(len(machine.n_support_)), machine.n_support_)
    pairs = list(itertools.combinations(range(len(machine.n_support_)), 2))
    dual = np.zeros((len(pairs), len(owner)))
    for row, (first, second) in enumerate(pairs):
        for one, against in ((first, second - 1), (second, first)):
            dual[row, owner == one] = machine.dual_coef_[against, owner == one]
    return machine.support_, dual, machine.intercept_


def _joined(machines: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Support vectors of several machines together, and coefficients and constant of each."""
    used = np.unique(np.concatenate([each.support_ for each in machines]))
    dual = np.zeros((len(machines), len(used)))
    for row, each in enumerate(machines):
        dual[row, np.searchsorted(used, each.support_)] = each.dual_coef_[0]
    return used, dual, np.concatenate([each.intercept_ for each in machines])


def _make_room(module: KernelMachine, weights: dict[str, Any], prefix: str, *_: object) -> None:
    """As many rows as the saved machine has support vectors, before they are loaded."""
    saved = weights.get(f"{prefix}support")
    if saved is not None:
        module.support = module.support.new_full((len(saved), module.support.shape[1]), torch.nan)
        module.dual = module.dual.new_full((len(module.dual), len(saved)), torch.nan)
