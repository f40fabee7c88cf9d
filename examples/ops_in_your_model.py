"""The ops in a model of your own: a packed set transformer for jets, trained for a few steps.

python examples/ops_in_your_model.py
"""

import torch
from torch import Tensor, nn

from jetkern import Jets, ops
from jetkern.jets import segment_index


class SetTransformer(nn.Module):
    """Two blocks of attention with a pair bias, mean over the particles, two classes."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Sequential(nn.Linear(4, width), nn.GELU(), nn.Linear(width, width))
        self.pair = nn.ModuleList([nn.Linear(3, width), nn.Linear(width, heads)])
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(2)])
        self.mix = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.out = nn.Linear(width, 2)

    def forward(self, jets: Jets) -> Tensor:
        """(B, 2) logits."""
        first, last = self.pair
        weights = ops.MLPParameters(first.weight, first.bias, None, None, last.weight, last.bias)
        bias = ops.pair_bias(jets.particles, jets.offsets, weights)  # (heads, sum n^2)
        x = self.embed(jets.particles)
        for qkv, mix in zip(self.qkv, self.mix, strict=True):
            q, k, v = qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
            attended = ops.attention(q, k, v, jets.offsets, jets.offsets, bias, jets.offsets)
            x = x + torch.nn.functional.gelu(mix(attended.flatten(1)))
        jet = segment_index(jets.offsets, len(x))
        total = x.new_zeros(len(jets), x.shape[1]).index_add(0, jet, x)
        return self.out(total / jets.counts.clamp(min=1)[:, None])


def toy_jets(count: int, seed: int) -> tuple[Jets, Tensor]:
    """Narrow and wide sprays of 1 to 40 particles, padded as arrays may be, and their class."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (count,), generator=generator)
    x = torch.randn(count, 40, 4, generator=generator)
    x[..., :2] *= (0.1 + 0.2 * label)[:, None, None]
    x[..., 2] += 0.5 * label[:, None]
    mask = torch.arange(40) < torch.randint(1, 41, (count, 1), generator=generator)
    return Jets.from_padded(x, mask, label=label), label


def main(steps: int = 30) -> float:
    """Trains; returns the accuracy on jets that were not trained on."""
    torch.manual_seed(0)
    model = SetTransformer()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        jets, label = toy_jets(128, seed=step)
        loss = torch.nn.functional.cross_entropy(model(jets), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    jets, label = toy_jets(512, seed=steps)
    with torch.no_grad():
        accuracy = (model(jets).argmax(1) == label).double().mean().item()
    print(f"accuracy {accuracy:.3f} after {steps} steps")
    return accuracy


if __name__ == "__main__":
    main()
