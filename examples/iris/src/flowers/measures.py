"""Four measures of a flower, in cm: sepal length, sepal width, petal length, petal width."""

from einops import rearrange
from torch import Tensor, nn


def by_organ(measures: Tensor) -> Tensor:
    """(N, 4) -> (N, 2, 2): sepal and petal, each with length and width."""
    return rearrange(measures, "flower (organ side) -> flower organ side", organ=2)


class Standardised(nn.Module):
    """Measures (N, 4) in cm -> (N, 4), with mean 0 and deviation 1 over what is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4, affine=False)

    def forward(self, measures: Tensor) -> Tensor:
        return self.norm(measures)
