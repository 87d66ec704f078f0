"""The classic numbers of vanishing and exploding gradients, reproduced live.

Prints what theory expects beside what `gradkern.measure` reads; exit status 1 if they disagree.
"""

import math
import sys

import torch
from torch import nn

from gradkern import GradClipper, measure

LAYERS, WIDTH = 10, 64


def gradient_ratio(layers: nn.Sequential, inputs: torch.Tensor) -> float:
    """How much the layers change a gradient's norm on its way from their output to their input."""
    inputs.requires_grad_()
    outputs = layers(inputs)
    outputs.retain_grad()
    outputs.backward(torch.randn_like(outputs))
    norm_in, norm_out = measure([("input", inputs), ("output", outputs)]).norm.tolist()
    return norm_in / norm_out


def sigmoid_layers() -> float:
    """Ten sigmoids, each at its steepest point: the derivative is 0.25 at 0, and smaller elsewhere."""
    layers = []
    for index in range(LAYERS):
        linear = nn.Linear(WIDTH, WIDTH)
        nn.init.eye_(linear.weight)
        nn.init.constant_(linear.bias, 0.0 if index == 0 else -0.5)  # sigmoid(0) = 0.5 comes in
        layers += [linear, nn.Sigmoid()]
    return gradient_ratio(nn.Sequential(*layers), torch.zeros(1, WIDTH))


def gain_layers(gain: float = 1.5) -> float:
    """Ten linear layers that keep directions apart (orthogonal weights) and multiply lengths by `gain`."""
    linears = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)]
    for linear in linears:
        nn.init.orthogonal_(linear.weight, gain)
    return gradient_ratio(nn.Sequential(*linears), torch.randn(1, WIDTH))


class RunningSum(nn.Module):
    """An LSTM that learns the sum of the numbers it has read."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(inputs)[0])


def train_lstm(max_norm: float, steps: int = 300) -> tuple[float, float, int]:
    """First loss, last loss (mean of the last ten), and steps until the loss is NaN or all are done."""
    torch.manual_seed(0)
    model = RunningSum()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    clipper = GradClipper(model, max_norm)
    losses: list[float] = []
    while len(losses) < steps and not (losses and math.isnan(losses[-1])):
        inputs = torch.rand(32, 20, 1)
        loss = nn.functional.mse_loss(model(inputs), inputs.cumsum(dim=1))
        optimizer.zero_grad()
        loss.backward()
        clipper.clip_()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], sum(losses[-10:]) / 10, len(losses)


def close(measured: float, factor: float) -> bool:
    """Whether ten layers of `factor` each give what was measured, up to float32's rounding."""
    return math.isclose(measured, factor**LAYERS, rel_tol=1e-5)


def main() -> int:
    torch.set_num_threads(1)  # too small to share
    torch.manual_seed(0)
    vanishing, exploding = sigmoid_layers(), gain_layers()
    start, unclipped, blew_up = train_lstm(math.inf)
    _, clipped, steps = train_lstm(1.0)
    bound = start / 4
    rows = [
        ("ten sigmoid layers, 0.25^10", f"{0.25**LAYERS:.4e}", f"{vanishing:.4e}", close(vanishing, 0.25)),
        ("ten layers of gain 1.5, 1.5^10", f"{1.5**LAYERS:.4f}", f"{exploding:.4f}", close(exploding, 1.5)),
        ("LSTM without clipping", "NaN", f"{unclipped:.3g} at step {blew_up}", math.isnan(unclipped)),
        (
            f"LSTM with clipping, from {start:.1f}",
            f"< {bound:.1f}",
            f"{clipped:.2f} at step {steps}",
            clipped < bound,
        ),
    ]
    print(f"{'':34}{'expected':>14}  {'measured':>18}")
    for what, expected, measured, reproduced in rows:
        print(f"{what:34}{expected:>14}  {measured:>18}  {'yes' if reproduced else 'NOT REPRODUCED'}")
    return 0 if all(row[3] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
