"""The rate of a dropout that a fused operation applies."""

from torch import Tensor, nn

from macaron.ops._dropout import dropout_reference


class Dropout(nn.Module):
    """Holds a dropout probability and says when it is active: in training, or always for Monte-Carlo dropout.

    Args:
        p: probability to zero an entry, in [0, 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"dropout={p} is not a probability in [0, 1); 0 switches it off")
        self.p = float(p)
        self.apply_during_inference = False

    def rate(self) -> float:
        """The probability in force now: `p` when active, else 0."""
        return self.p if self.training or self.apply_during_inference else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return dropout_reference(x, self.rate())

    def extra_repr(self) -> str:
        return f"p={self.p}"
