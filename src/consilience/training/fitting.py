"""Models that are fitted at once rather than trained step by step: kernel machines."""

from collections.abc import Callable

from torch import Tensor

from consilience.data.examples import Examples, checked
from consilience.devices import steady
from consilience.models.split import Normalised
from consilience.rng import permutation
from consilience.training.checkpoint import weights
from consilience.training.loop import begun


def fit(build: Callable[[], Normalised], examples: Examples, order: int) -> dict[str, Tensor]:
    """What a model learnt from all examples at once, handed over in the order of this seed.

    Raises:
        DataError: The examples cannot be learnt from, or one holds what is no pixel.
    """
    batch = checked(examples.batch(permutation(len(examples), "order", order, 0).tolist()))
    with steady():
        model = begun(build, 0)
        model.model.fit(model.normalise(batch.x), batch.label)
    return weights(model)
