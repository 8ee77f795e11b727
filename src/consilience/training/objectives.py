"""What a training step makes small."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from consilience.component import objective
from consilience.data.examples import Batch
from consilience.errors import DataError, ModelError


@objective(version=1)
def cross_entropy(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean over the batch of minus the log-probability of the true class."""
    return functional.cross_entropy(model(batch.x), batch.label)


@objective(version=1)
def binary_cross_entropy(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean over the batch of minus the log-probability of the true class, of a model with one logit for class 1.

    Raises:
        ModelError: The model has other many logits.
        DataError: There is a class besides 0 and 1.
    """
    logits = model(batch.x)
    if logits.shape[1] != 1:
        raise ModelError(
            f"binary_cross_entropy: expected a model with one logit, found {logits.shape[1]}; choose cross_entropy"
        )
    if ((batch.label < 0) | (batch.label > 1)).any():
        raise DataError(
            f"binary_cross_entropy: expected classes 0 and 1, found {sorted({*batch.label.tolist()})}; "
            "choose cross_entropy and a model with a logit for each class"
        )
    return functional.binary_cross_entropy_with_logits(logits[:, 0], batch.label.to(logits))
