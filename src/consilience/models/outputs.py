"""One tensor of logits from models that return several things."""

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from consilience.errors import ModelError


class OutputOf(nn.Module):
    """A model that returns one of another's outputs; made by ``output_of``."""

    def __init__(self, model: nn.Module, which: str | int) -> None:
        super().__init__()
        self.model, self.which = model, which
        self.training = model.training

    def forward(self, x: Float[Tensor, "n c h w"]) -> Any:
        """The output that was named.

        Raises:
            ModelError: The model returns nothing of that name.
        """
        outputs = self.model(x)
        try:
            if isinstance(self.which, str) and not isinstance(outputs, dict) and hasattr(outputs, self.which):
                return getattr(outputs, self.which)  # of a named tuple, or of a record
            return outputs[self.which]
        except (KeyError, IndexError, TypeError):
            names = list(outputs) if isinstance(outputs, dict) else f"{len(outputs)} outputs"
            raise ModelError(f"output_of: expected an output {self.which!r}, found {names}; name one of them") from None


def output_of(model: nn.Module, which: str | int) -> nn.Module:
    """The model, giving only the output of that name, key or position, for models that return a tuple or a dict."""
    return OutputOf(model, which)
