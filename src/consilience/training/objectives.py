"""What a training step makes small."""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from consilience.component import objective
from consilience.data.examples import Batch


@objective(version=1)
def cross_entropy(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean over the batch of minus the log-probability of the true class."""
    return functional.cross_entropy(model(batch.x), batch.label)
