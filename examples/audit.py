"""Two models that you already have, and one page: do they explain the same digits alike? Takes under a minute."""

import argparse
from pathlib import Path

import torch
from torch import nn

from consilience import audit
from consilience.data.mnist10k import mnist10k


def trained(seed: int, steps: int) -> nn.Module:
    """Any module that gives logits for pixels in [0, 1]; here one that a plain loop of yours has trained."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 144, 10))
    optimizer, digits = torch.optim.Adam(model.parameters(), 2e-3), mnist10k()
    for _ in range(steps):
        batch = digits.batch(torch.randint(len(digits), (64,)).tolist())
        loss = nn.functional.cross_entropy(model(batch.x), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main() -> None:
    """Train two models from different seeds, and compare how they explain held-out digits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--count", type=int, default=100, help="digits that are explained")
    parser.add_argument("--out", type=Path, default=Path("audit.html"))
    chosen = parser.parse_args()
    models = {"seed 1": trained(1, chosen.steps), "seed 2": trained(2, chosen.steps)}
    held_out = mnist10k(split="test").batch(range(chosen.count))
    examples = held_out.x, held_out.label
    print(audit(models, examples, methods=["gradient", "integrated_gradients"], out=chosen.out).resolve())


if __name__ == "__main__":
    main()
