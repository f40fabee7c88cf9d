"""Sets from a decoder, and its training step and attention, beside plain PyTorch.

    python -m bench.generation [--rounds 3] [--only jets attention showers step]
        [--precision bf16] [--out FILE]

The model is OmniJet-alpha's (preset ``omnijet``, 8192 codes) with random weights and a bias that
ends a jet with probability 1/46 a row, so lengths are geometric, mean 45 before the cut at 128. The
peers have the same weights. *cached*: keys and values kept in a static cache, a batch padded to its
longest jet, softmax and multinomial. *published*: the whole prefix again for each of 128 rows, with
the head on each row, as the authors' code does. Attention and the training step are compared with
scaled_dot_product_attention and cross_entropy on padded batches of lengths as of JetClass (normal,
46 +- 18, 1 to 128) and of showers (100 to 1,700). Times are CPU seconds of one thread, the best of
rounds in which contenders take turns. Memory is what a step adds at its highest, gradients too.
With ``--precision bf16`` our products round their factors to bfloat16 and sum in float32, and the
peers run under PyTorch's autocast to bfloat16, or on tensors of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.machine import command, describe, memory_of, write_results
from jetkern import ops
from jetkern.model.decoder import CausalBlock, Decoder, decoder_preset
from jetkern.model.layers import set_precision
from jetkern.packed import Packed, offsets_from_counts
from jetkern.sampling import generate
from jetkern.tables import table

ENDING = 1 / 46  # probability of the end, a row
POINTS = 128  # of a jet, at most
Contenders = dict[str, Callable[[], Any]]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="(default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--jets", type=int, default=1024, help="jets that we make")
    parser.add_argument("--batch", type=int, default=128, help="jets of the cached peer")
    parser.add_argument("--published", type=int, default=8, help="jets of the published way")
    parser.add_argument("--precision", choices=("ieee", "bf16"), default="ieee")
    parser.add_argument("--out", type=Path, help="file for the results (JSON)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"command": command()}
    for part in options.only:
        torch.manual_seed(0)  # the same lengths whatever came before
        result[part] = PARTS[part](options)
        write_results(options.out, result)
        heading = [part, *next(iter(result[part].values()))]
        rows = [[name, *values.values()] for name, values in result[part].items()]
        print(table([heading, *rows]), flush=True)
    result["machine"] = describe(1, time.process_time)
    write_results(options.out, result)


def rounded(options: argparse.Namespace, peer: Callable[..., Any]) -> Callable[..., Any]:
    """The peer at the precision asked for."""

    def run(*arguments: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
            return peer(*arguments)

    return run


def model(precision: str = "ieee") -> Decoder:
    """OmniJet-alpha's decoder, which ends a set with probability ``ENDING`` a row."""
    decoder = Decoder(decoder_preset("omnijet"))
    head = cast(nn.Linear, decoder.heads[0])
    with torch.no_grad():
        nn.init.normal_(head.weight, std=0.02)
        head.weight[-1] = 0.0
        rows = decoder(torch.randint(8192, (200, 1)), Packed(torch.tensor([0, 200])))
        others = functional.linear(rows, head.weight[:-1], head.bias[:-1]).logsumexp(1).mean()
        head.bias[-1] = others + torch.tensor(ENDING / (1 - ENDING)).log()
    set_precision(decoder, precision)
    return decoder


def fastest(contenders: Contenders, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """CPU seconds of each, the best of rounds in turn, and what each returned last."""
    best: dict[str, float] = {}
    made: dict[str, Any] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            made[name] = run()
            best[name] = min(best.get(name, float("inf")), time.process_time() - start)
    return best, made


def jets(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Jets per CPU second."""
    decoder = model(options.precision)
    numbers = {"ours": options.jets, "cached": options.batch, "published": options.published}
    seconds, made = fastest(
        {
            "ours": lambda: (
                generate(
                    decoder, torch.arange(options.jets), seed=1, max_points=POINTS
                ).packed.counts
            ),
            "cached": lambda: rounded(options, cached)(decoder, options.batch),
            "published": lambda: rounded(options, published)(decoder, options.published),
        },
        options.rounds,
    )
    rate = {name: numbers[name] / seconds[name] for name in seconds}
    return {
        name: {
            "jets": numbers[name],
            "jets per CPU second": round(rate[name], 2),
            "ours over it": round(rate["ours"] / rate[name], 2),
            "mean points": round(float(made[name].double().mean()), 1),
        }
        for name in seconds
    }


def _block(module: nn.Module, x: Tensor, mix: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """A post-norm block of the preset on (B, n, D) in plain PyTorch."""
    block = cast(CausalBlock, module)
    mlp = cast(Any, block.mlp)
    heads = functional.linear(x, block.qkv_weight).unflatten(2, (3, block.heads, block.width))
    q, k, v = (t.transpose(1, 2) for t in heads.unbind(2))
    x = block.norm1(x + block.out(mix(q, k, v).transpose(1, 2).flatten(2)))
    return cast(Tensor, block.norm2(x + mlp.fc2(mlp.fc1(x).relu())))


@torch.no_grad()
def cached(decoder: Decoder, batch: int) -> Tensor:
    """(B,) points of jets from a padded loop with a static cache."""
    config = decoder.config
    shape = (2, batch, config.heads, POINTS + 1, config.dim // config.heads)
    caches = [torch.empty(shape) for _ in decoder.blocks]
    token = torch.full((batch, 1), config.classes[0])
    length = torch.full((batch,), POINTS)
    for row in range(POINTS + 1):
        x = cast(Tensor, decoder.embeddings[0](token))
        for module, cache in zip(decoder.blocks, caches, strict=True):

            def mix(q: Tensor, k: Tensor, v: Tensor, kept: Tensor = cache, at: int = row) -> Tensor:
                kept[0, :, :, at], kept[1, :, :, at] = k[:, :, 0], v[:, :, 0]
                known = kept[:, :, :, : at + 1]
                return functional.scaled_dot_product_attention(q, known[0], known[1])

            x = _block(module, x, mix)
        token = decoder.heads[0](x[:, 0]).softmax(1).multinomial(1)
        ended = (token[:, 0] == config.classes[0]) & (length == POINTS)
        length = torch.where(ended, row, length)
        if (length < POINTS).all():
            break
        token = token.clamp(max=config.classes[0] - 1)
    return length


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


@torch.no_grad()
def published(decoder: Decoder, batch: int) -> Tensor:
    """The same, each row from its whole prefix and with the head on all of it."""
    tokens = torch.full((batch, 1), decoder.config.classes[0])
    for _ in range(POINTS):
        x = cast(Tensor, decoder.embeddings[0](tokens))
        for module in decoder.blocks:
            x = _block(module, x, _causal)
        drawn = decoder.heads[0](x)[:, -1].softmax(1).multinomial(1)
        tokens = torch.cat([tokens, drawn], 1)
    ended = tokens[:, 1:] == decoder.config.classes[0]
    return torch.where(ended.any(1), ended.int().argmax(1), POINTS)


def lengths(kind: str, number: int) -> Tensor:
    """(B,) rows as of JetClass or of showers."""
    if kind == "jets":
        return (46 + 18 * torch.randn(number)).round().long().clamp(1, POINTS)
    return torch.randint(100, 1701, (number,))


def attention(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """CPU milliseconds, forward and backward, of 64 jets."""
    return _attention(options, lengths("jets", 64), {"longest": 0, "128": POINTS})


def showers(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """The same of 16 showers."""
    return _attention(options, lengths("showers", 16), {"1,700": 1700})


def _attention(
    options: argparse.Namespace, counts: Tensor, padding: dict[str, int]
) -> dict[str, dict[str, float]]:
    packed = Packed(offsets_from_counts(counts))
    q, k, v = (torch.randn(int(counts.sum()), 8, 32, requires_grad=True) for _ in range(3))
    slope = torch.randn(int(counts.sum()), 8, 32)

    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32

    def padded(n: int) -> Callable[[], Any]:
        like = [torch.randn(len(counts), 8, n, 32) for _ in range(3)]
        back = torch.randn(len(counts), 8, n, 32)
        leaves = [t.to(dtype).requires_grad_() for t in like]
        slopes = back.to(dtype)
        return lambda: torch.autograd.grad(_causal(*leaves), leaves, slopes)

    def ours() -> Any:
        out = ops.causal_attention(q, k, v, packed, precision=options.precision)
        return torch.autograd.grad(out, (q, k, v), slope)

    contenders: Contenders = {"ours": ours}
    for name, n in padding.items():
        contenders[f"padded to {name}"] = padded(n or int(counts.max()))
    seconds, _ = fastest(contenders, 2 * options.rounds)
    return {
        name: {"CPU ms": round(1e3 * s, 1), "it over ours": round(s / seconds["ours"], 2)}
        for name, s in seconds.items()
    }


def step(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """CPU milliseconds and memory of loss and gradients of 64 jets."""
    decoder, counts = model(options.precision), lengths("jets", 64)
    points, packed = (
        torch.randint(8192, (int(counts.sum()), 1)),
        Packed(offsets_from_counts(counts)),
    )
    inputs = torch.full((64, POINTS), 8192)
    targets = torch.full((64, POINTS), -100)
    for b, part in enumerate(points[:, 0].split(counts.tolist())):
        kept = part[: POINTS - 1]
        inputs[b, 1 : len(kept) + 1] = kept
        targets[b, : len(part)] = part
        if len(part) < POINTS:
            targets[b, len(part)] = 8192
    weights = list(decoder.parameters())

    def eager() -> Any:
        x = cast(Tensor, decoder.embeddings[0](inputs))
        for module in decoder.blocks:
            x = _block(module, x, _causal)
        loss = functional.cross_entropy(decoder.heads[0](x).flatten(0, 1), targets.flatten())
        return torch.autograd.grad(loss, weights)

    contenders: Contenders = {
        "ours": lambda: torch.autograd.grad(decoder.loss(points, packed), weights),
        "padded to 128, logits kept": rounded(options, eager),
    }
    memory = {name: memory_of(run) for name, run in contenders.items()}
    seconds, _ = fastest(contenders, options.rounds)
    return {
        name: {
            "CPU ms": round(1e3 * s, 1),
            "it over ours": round(s / seconds["ours"], 2),
            "peak MB": round(memory[name], 1),
            "its MB over ours": round(memory[name] / memory["ours"], 2),
        }
        for name, s in seconds.items()
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, dict[str, float]]]] = {
    "step": step, "attention": attention, "showers": showers, "jets": jets,
}  # fmt: skip

if __name__ == "__main__":
    main()
