"""Writes a trained classifier for other programs, as ONNX or a program of torch.export.

jetkern export runs/top --out top.onnx

The file takes padded jets, particles (B, N, 4) and mask (B, N), with pid, tracks and condition
where the model embeds them, and gives logits (B, classes), for any B and N. Neither this package
nor, for ONNX, PyTorch is needed to run it. What it says of some jets is compared with the model
first.
"""

from __future__ import annotations

from pathlib import Path

from jetkern.cli import command
from jetkern.cli.parser import Parser
from jetkern.io import user_path


def parser() -> Parser:
    """The command line."""
    p = Parser("export", __doc__)
    run = "run, checkpoint folder or published checkpoint"
    p.add_argument("run", type=Path, metavar="RUN", help=run)
    out = "ends with .onnx, or .pt2 for torch.export"
    p.add_argument("--out", type=user_path, required=True, metavar="FILE", help=out)
    return p


@command
def main(arguments: list[str]) -> None:
    """Runs the command line."""
    options = parser().parse_args(arguments)
    from jetkern import __version__
    from jetkern.evaluation.classify import load_part
    from jetkern.interop.padded import FORMATS, write
    from jetkern.io import printable
    from jetkern.training.weights import load_weights, model_config

    weights = load_weights(options.run)
    model_config(weights)  # a Point-Edge Transformer
    facts = {
        "jetkern": __version__,
        "checkpoint_sha256": weights.sha256,
        "step": weights.step,
        "classes": weights.data.get("classes", []),
        "columns": weights.data.get("fields", {}),
    }
    error = write(load_part(options.run, "classifier"), options.out, facts)
    what = FORMATS[options.out.suffix]
    print(
        f"{printable(options.out)}: {what}, step {weights.step:,}; largest difference from the "
        f"model's outputs {error:.1g} of the largest"
    )
