"""How well a model answers."""

from typing import Annotated

import torch
from jaxtyping import Float, Int
from msgspec import Meta
from torch import Tensor

from consilience.component import measure
from consilience.errors import SpecError
from consilience.measures.agreement import mean_ranks


@measure(version=1, better="higher")
def accuracy(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """1 where the largest logit is the true class's, else 0. NaN where a logit is NaN."""
    right = (logits.argmax(1) == label).to(logits.dtype)
    return right.masked_fill(logits.isnan().any(1), float("nan"))


@measure(version=1, better="lower")
def negative_log_likelihood(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Minus the logarithm of the softmax probability of the true class, 0 upwards. NaN where a logit is NaN."""
    _check_label(logits, label, "negative_log_likelihood")
    return -_log_probabilities(logits).gather(1, label[:, None])[:, 0]


@measure(version=1, better="higher", paper="hanley1982meaning")
def auc(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " classes"]:
    """Area under the ROC curve of each class against all others, 0 to 1. NaN where a class is absent, or the only one.

    It is the share of pairs of an image of the class and one of another in which the first is given the larger
    probability of the class; equal ones count half. Chance is 0.5. The mean over classes is the macro average. Of
    two classes both have the same area. A logit that is NaN leaves no order: all classes are NaN then.
    """
    _check_label(logits, label, "auc")
    ranks = mean_ranks(_log_probabilities(logits).T.contiguous())
    ours = _is(label, logits)
    there, others = ours.sum(1), (~ours).sum(1)
    before = (ranks * ours).sum(1) - there * (there + 1) / 2
    return _undefined_with(logits, before / (there * others))


@measure(version=1, better="lower", paper="guo2017calibration")
def calibration_error(
    logits: Float[Tensor, "n k"], label: Int[Tensor, " n"], *, bins: Annotated[int, Meta(ge=1)] = 15
) -> Float[Tensor, ""]:
    """Mean distance of the largest softmax probability from the share of right answers, 0 to 1. NaN without images.

    Images are put into bins of equal width by their largest probability; a bin's mean probability is compared with
    its accuracy, and bins count by their images. Small sets look worse than they are: a bin of few images is off by
    chance. NaN where a logit is.

    Args:
        bins: Parts of equal width of the probabilities 0 to 1; a bin holds its upper end.
    """
    _check_label(logits, label, "calibration_error")
    sure, answer = _log_probabilities(logits).exp().max(1)
    ends = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)[1:-1]
    off = torch.zeros(bins, dtype=torch.float64, device=logits.device)
    off.index_add_(0, torch.bucketize(sure, ends), sure - (answer == label).double())
    return _undefined_with(logits, off.abs().sum() / len(label))


@measure(version=1, better="higher")
def f1_per_class(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, " classes"]:
    """Harmonic mean of each class's precision and recall, 0 to 1. NaN where a class neither occurs nor is answered.

    The mean over classes is the macro average. All are NaN where a logit is.
    """
    _check_label(logits, label, "f1_per_class")
    hits, wrong = _counts(logits, label)
    return _undefined_with(logits, 2 * hits / (2 * hits + wrong))


@measure(version=1, better="higher")
def f1_overall(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Harmonic mean of precision and recall of all classes' counts together, 0 to 1. NaN without images.

    This is the micro average. With one true class and one answer an image, as here, it is the share of right
    answers. NaN where a logit is.
    """
    _check_label(logits, label, "f1_overall")
    hits, wrong = (counts.sum() for counts in _counts(logits, label))
    return _undefined_with(logits, 2 * hits / (2 * hits + wrong))


def _log_probabilities(logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """In float64, so that answers of which the model is nearly sure keep their order."""
    below = logits.double() - logits.double().amax(1, keepdim=True)
    # summed in ascending order: equal logits of exchanged classes have equal sums to the last bit, and stay ties
    return below - below.sort(1).values.exp().sum(1, keepdim=True).log()


def _is(classes: Int[Tensor, " n"], logits: Float[Tensor, "n k"]) -> Tensor:
    """For each class, which examples are it: ``[k, n]``."""
    return classes == torch.arange(logits.shape[1], device=classes.device)[:, None]


def _counts(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"]) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Of each class: how often it was rightly answered; how often it was missed or wrongly answered."""
    true, answered = _is(label, logits), _is(logits.argmax(1), logits)
    return (true & answered).sum(1).double(), (true ^ answered).sum(1).double()


def _undefined_with(logits: Float[Tensor, "n k"], value: Tensor) -> Tensor:
    return value.masked_fill(logits.isnan().any(), torch.nan)


def _check_label(logits: Float[Tensor, "n k"], label: Int[Tensor, " n"], where: str) -> None:
    if len(label) and not 0 <= int(label.min()) <= int(label.max()) < logits.shape[1]:
        raise SpecError(
            f"{where}: expected classes from 0 to {logits.shape[1] - 1}, found {int(label.min())} to "
            f"{int(label.max())}; give the labels of the classes that the model answers for"
        )
