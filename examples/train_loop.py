"""The smallest complete training loop with GradClipper."""

import torch
from torch import nn

from gradkern import GradClipper

torch.manual_seed(0)
inputs = torch.randn(512, 8)
targets = inputs.prod(dim=1, keepdim=True).sign()

model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
clipper = GradClipper(model, max_norm=1.0)

for step in range(1, 201):
    loss = nn.functional.mse_loss(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    stats = clipper.clip_()  # between backward() and step(); all it measures is from before clipping
    optimizer.step()
    if step % 50 == 0:
        print(
            f"step {step:3}  loss {loss.item():.4f}  grad norm {stats.total_norm.item():.3f}"
            f"  clipped: {'yes' if stats.clip_coef.item() < 1 else 'no'}"
        )

print(stats.by_layer())  # the last step, one row a layer
