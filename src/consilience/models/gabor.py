"""A network whose first filters are Gabor functions, each known by a frequency, an angle, a width and a phase."""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from msgspec import Meta
from torch import Tensor, nn
from torch.nn import functional as F

from consilience.component import architecture
from consilience.errors import SpecError
from consilience.models.split import SplitModel

WIDEN = 1e-3  # added to a width, as published, so that no filter is divided by nothing


class GaborBank(nn.Module):
    """A convolution whose filters are calculated from four numbers for each pair of channels, which learn.

    A bank that is frozen keeps the numbers it starts with: no gradient reaches them, whatever is asked of its
    parameters. They are in the state dict all the same, and an edit draws them anew.
    """

    def __init__(self, before: int, after: int, size: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.size, self.frozen = size, frozen
        self.freq = nn.Parameter(torch.empty(after, before), requires_grad=not frozen)
        self.theta = nn.Parameter(torch.empty(after, before), requires_grad=not frozen)
        self.sigma = nn.Parameter(torch.empty(after, before), requires_grad=not frozen)
        self.psi = nn.Parameter(torch.empty(after, before), requires_grad=not frozen)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw five scales, eight angles and any phase, as a bank for faces has them."""
        with torch.no_grad():
            self.freq.copy_(math.pi / 2 * math.sqrt(2) ** -torch.randint(0, 5, self.freq.shape))
            self.theta.copy_(math.pi / 8 * torch.randint(0, 8, self.theta.shape))
            self.sigma.copy_(math.pi / self.freq)
            self.psi.uniform_(0, math.pi)

    def kernel(self) -> Float[Tensor, "d c size size"]:
        """The filters: a wave along a turned axis, under a Gaussian.

        Three pixels lie at -1, 0.5 and 2 as published, so the Gaussian's middle is beside the filter's. So is all
        else, where a width is above 0.001; below, the published filter has a pole and its slope is no number.
        """
        reach = math.ceil(self.size / 2)
        at = torch.linspace(1 - reach, reach, self.size, dtype=self.freq.dtype, device=self.freq.device)
        freq, theta, sigma, psi = (each[..., None, None] for each in (self.freq, self.theta, self.sigma, self.psi))
        along = at * theta.cos() + at[:, None] * theta.sin()
        across = at[:, None] * theta.cos() - at * theta.sin()
        bell = torch.exp(-(along.square() + across.square()) / (2 * (sigma.abs() + WIDEN).square()))
        area = 2 * math.pi * sigma.square().clamp(min=WIDEN**2)
        return bell * torch.cos(freq * along + psi) / area

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d i j"]:
        """Maps that are as much smaller as the filter reaches over the edge."""
        kernel = self.kernel()
        return F.conv2d(x, kernel.detach() if self.frozen else kernel)

    def extra_repr(self) -> str:
        """What is printed of it."""
        after, before = self.freq.shape
        return f"{before}, {after}, {self.size}, frozen={self.frozen}"


@architecture(version=1, paper="alekseev2019gabornet")
def gabornet(
    shape: tuple[int, int, int],
    classes: int,
    *,
    frozen: bool = False,
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.25,
) -> nn.Module:
    """A bank of 32 Gabor filters and one linear layer; 54,090 parameters on MNIST and the bank's 128.

    Args:
        frozen: Whether the bank stays as it was drawn. It does in the published results: there the filters are
            written where no gradient reaches their frequency, angle, width and phase.
        dropout: Share of whole maps that a training step leaves out, after the pooling.

    Raises:
        SpecError: Nothing would be left of the image.
    """
    channels, height, width = shape
    if min(height, width) < 4:
        raise SpecError(
            f"gabornet: expected images of at least 4 x 4 pixels, found {height} x {width}; enlarge them, or "
            "choose 'mlp'"
        )
    return SplitModel(
        features={
            "gabor": GaborBank(channels, 32, 3, frozen=frozen),
            "relu1": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "dropout1": nn.Dropout2d(dropout),
        },
        head={"flatten": nn.Flatten(), "fc1": nn.Linear(32 * ((height - 2) // 2) * ((width - 2) // 2), classes)},
    )
