"""What else learns to tell two models' maps apart: each gives a margin, positive where the second model is named.

All take the rows of ``logistic``: standardised by those that are learnt from, in principal axes. Discriminants and
kernels do not change in a rotation, so what the rows cost is shared by all classifiers and labellings alike.
"""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Float, Int
from msgspec import Meta
from torch import Tensor

from consilience.errors import SpecError, unknown
from consilience.measures.logistic import ROUNDING, Problem, at_once, carrying, margins, placed, problem_of, scale_of
from consilience.tensors import slices

TOLERANCE = 1e-4  # of a support vector machine's slope; ten times finer than scikit-learn's own

Classifier = Literal["logistic", "lda", "linear_svm", "rbf_svm"]
Strength = Annotated[float, Meta(gt=0)] | Literal["cross_validated"]
Kernel = Callable[[Tensor, Tensor], Tensor]


class Learner(NamedTuple):
    """A classifier, ready to learn."""

    problem: Callable[[Sequence[Tensor], Tensor, Tensor], Problem]
    """Of rows, and of those that each split learns from."""
    margins: Callable[[Problem, Tensor, Tensor, float | Tensor], Tensor]
    """Of the problem, the answers, who of those that could be learnt from is, and the strength."""
    c: Strength


def learner(classifier: str, c: Strength) -> Learner:
    """The classifier of that name.

    Raises:
        SpecError: There is none, or it is a support vector machine and scikit-learn is not installed.
    """
    if classifier not in get_args(Classifier):
        raise SpecError(f"separability: {unknown('classifier', classifier, get_args(Classifier))}")
    if classifier == "logistic":
        return Learner(problem_of, margins, c)
    if classifier == "lda":
        return Learner(problem_of, discriminants, c)
    try:
        svc = importlib.import_module("sklearn.svm").SVC
    except ImportError:
        raise SpecError(
            f"separability.classifier: expected the package 'scikit-learn' for '{classifier}', found none; "
            "pip install consilience[svm], or choose 'logistic' or 'lda'"
        ) from None
    kernel, problem = (linear, problem_of) if classifier == "linear_svm" else (rbf, problem_with_distances)
    return Learner(problem, functools.partial(supported, kernel=kernel, svc=svc), c)


def discriminants(
    problem: Problem,
    answer: Float[Tensor, "splits labellings m"],
    used: Bool[Tensor, "splits m"],
    c: float | Float[Tensor, "splits labellings 1"],
) -> Float[Tensor, "splits labellings n"]:
    """Log odds by linear discriminant analysis, with ``1 / (c * used rows)`` added to each pixel's variance.

    The covariance within the models is that of all rows less what the means contribute (Sherman and Morrison).
    So one decomposition serves all labellings.
    """
    rows, learnt = problem.rows[..., :-1], problem.rows[:, : problem.m, :-1]
    kept = used[..., None].double()
    n, mean = kept.sum(1, keepdim=True), (learnt * kept).sum(1, keepdim=True) / kept.sum(1, keepdim=True)
    rows, learnt = rows - mean, (learnt - mean) * kept
    if bool((~used & (problem.order[:, : problem.m] < problem.n)).any()):
        length, axes = torch.linalg.eigh(learnt.mT @ learnt / n)
        rows, learnt = rows @ axes, learnt @ axes
    else:
        length = learnt.square().sum(1) / n[:, 0]  # they are in their own axes
    share = (answer * used[:, None]).sum(-1, keepdim=True) / n
    spread, prior = share * (1 - share), torch.log(share) - torch.log1p(-share)
    apart = (answer - share) @ learnt / n / spread  # the models' means, one less the other
    solved = apart / (length[:, None] + 1 / (c * n))
    between = (apart * solved).sum(-1, keepdim=True)
    weights = solved / (1 - spread * between)
    f = weights @ rows.mT - (0.5 - share) * (weights * apart).sum(-1, keepdim=True) + prior
    carries = carrying(problem.rows[:, : problem.m] * kept, answer - share)
    return placed(problem, torch.where(carries, f, prior))


def supported(
    problem: Problem,
    answer: Float[Tensor, "splits labellings m"],
    used: Bool[Tensor, "splits m"],
    c: float | Float[Tensor, "splits labellings 1"],
    kernel: Kernel,
    svc: Callable[..., Any],
) -> Float[Tensor, "splits labellings n"]:
    """Margins of support vector machines, fit by fit; all labellings of a split share its kernel.

    Exactly 0 where the rows carry nothing, as those of two identical models: any threshold would be as good.
    """
    strength = torch.as_tensor(c, dtype=answer.dtype, device=answer.device).expand_as(answer[..., :1])
    f = answer.new_zeros(*answer.shape[:2], problem.rows.shape[1])
    for split, (rows, kept) in enumerate(zip(problem.rows[..., :-1], used, strict=True)):
        learnt = rows[: problem.m][kept]
        products = kernel(rows, learnt)
        among = products[: problem.m][kept]
        labelled = answer[split][:, kept]
        gain = ((labelled - labelled.mean(1, keepdim=True)) @ among).norm(dim=1)
        given = among.cpu().numpy()
        for number in (gain > ROUNDING * among.abs().max() * len(among)).nonzero()[:, 0].tolist():
            labels = labelled[number]
            first = labels[0]  # named 0, so that a labelling and its opposite get opposite margins, to the last digit
            fit = svc(C=float(strength[split, number]), kernel="precomputed", tol=TOLERANCE)
            fit.fit(given, (labels != first).cpu().numpy())
            weights = products.new_tensor(fit.dual_coef_[0])
            supports = torch.as_tensor(fit.support_, device=rows.device).long()
            f[split, number] = (products[:, supports] @ weights + float(fit.intercept_[0])) * (1 - 2 * first)
    return placed(problem, f)


def linear(rows: Float[Tensor, "k r"], learnt: Float[Tensor, "m r"]) -> Float[Tensor, "k m"]:
    """Products of rows with those that are learnt from."""
    return rows @ learnt.T


def rbf(rows: Float[Tensor, "k r"], learnt: Float[Tensor, "m r"]) -> Float[Tensor, "k m"]:
    """``exp(-gamma * distance^2)``, ``gamma`` one over the summed variance of the pixels: scikit-learn's "scale"."""
    variance = (learnt - learnt.mean(0)).square().mean(0).sum()
    away = rows.square().sum(1)[:, None] + learnt.square().sum(1) - 2 * rows @ learnt.T
    return torch.exp(-away.clamp_(min=0) / variance.where(variance > 0, 1))


def problem_with_distances(
    rows: Sequence[Float[Tensor, "n d"]], index: Int[Tensor, "splits m"], used: Bool[Tensor, "splits m"]
) -> Problem:
    """The problem with an axis more: how far each row lies from the axes, which only span those that are learnt from.

    So all distances to rows that are learnt from are as they were; those between other rows nobody asks for.
    """
    problem = problem_of(rows, index, used)
    beyond = problem.rows.new_zeros(*problem.rows.shape[:2], 1)
    if problem.rows.shape[2] - 1 < rows[0].shape[1]:
        for split, (z, places, mine, order) in enumerate(zip(rows, index, used, problem.order, strict=True)):
            scale, asked = scale_of(z, places[mine]), order[problem.m :]
            whole = beyond.new_zeros(len(asked))
            for some in slices(z.shape[1], at_once(len(asked))):
                whole += scale.of(z, asked, some).square().sum(1)
            inside = problem.rows[split, problem.m :, :-1].square().sum(1)
            beyond[split, problem.m :, 0] = (whole - inside).clamp(min=0).sqrt()
    return problem._replace(rows=torch.cat([problem.rows[..., :-1], beyond, problem.rows[..., -1:]], 2))
