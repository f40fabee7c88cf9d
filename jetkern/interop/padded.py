"""Classifiers as one plain PyTorch module on padded jets, for other programs to run.

``PaddedClassifier`` computes what ``PET.classify`` does, with the weights of a ``PET``, by
PyTorch's own operators and without sizes that depend on values: what ``torch.export`` and ONNX
take. ``write`` makes a file of it (``jetkern export``) and compares what the file says with the
model. Of particles at equal distances those may count as neighbours that ``PET`` leaves out.
"""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from jetkern.io import write_atomically
from jetkern.jets import Jets
from jetkern.model.heads import AttentionProbe, Classifier, Probe
from jetkern.model.layers import AttentionBlock, TokenBlock
from jetkern.model.pet import PET
from jetkern.ops.dynamic_tanh.reference import dynamic_tanh
from jetkern.ops.mlp.reference import mlp
from jetkern.ops.pair_features.reference import pair_features

FORMATS = {".onnx": "ONNX", ".pt2": "a program of torch.export"}
OPSET = 20
CHECKED = (0, 1, 3, 17, 40)  # particles of the jets that a file is compared on
TOLERANCE = 1e-4  # of the largest output


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None, heads: int
) -> Tensor:
    """Softmax attention of padded rows q (..., Nq, D), k and v (..., Nk, D) to keys with mask
    (..., Nk), with a bias (..., H, Nq, Nk) or None; 0 where there are no keys."""
    split = [t.unflatten(-1, (heads, -1)).transpose(-3, -2) for t in (q, k, v)]  # (..., H, N, d)
    scores = split[0] @ split[1].transpose(-1, -2) * split[0].shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias
    real = mask[..., None, None, :]
    weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(-1) * real
    return (weights @ split[2]).transpose(-3, -2).flatten(-2)


def block_rows(
    block: AttentionBlock, x: Tensor, mask: Tensor, bias: Tensor | None = None
) -> Tensor:
    """A block on padded rows x (..., N, D)."""
    p = block.weights
    q, k, v = (dynamic_tanh(x, p.alpha1, p.gamma1) @ p.qkv_weight.t()).chunk(3, -1)
    x = x + attend(q, k, v, mask, bias, block.heads) @ p.out_weight.t()
    return x + mlp(dynamic_tanh(x, p.alpha2, p.gamma2), p.mlp)


def token_rows(block: TokenBlock, tokens: Tensor, rows: Tensor, mask: Tensor) -> Tensor:
    """Tokens (B, G, D) that attend to rows (B, N, D)."""
    dim = tokens.shape[-1]
    k, v = (rows @ block.qkv_weight[dim:].t()).chunk(2, -1)
    q = tokens @ block.qkv_weight[:dim].t()
    tokens = tokens + attend(q, k, v, mask, None, block.heads) @ block.out_weight.t()
    return tokens + mlp(
        dynamic_tanh(tokens, block.norm.alpha, block.norm.weight), block.mlp.weights
    )


class PaddedClassifier(nn.Module):
    """The logits of a classifier on padded jets.

    Attributes:
        inputs: names of the arguments of ``forward``, in order.

    Args:
        model: whose weights it has.

    Raises:
        ValueError: if the model has no classifier.
    """

    def __init__(self, model: PET) -> None:
        super().__init__()
        if model.classifier is None:
            raise ValueError("this model has no classifier, and only classifiers are exported")
        self.config, self.body, self.head = model.config, model.body, model.classifier
        conditional = ("condition",) if model.config.condition_dim else ()
        self.inputs = ("particles", "mask", *model.config.fields, *conditional)

    def forward(self, particles: Tensor, mask: Tensor, *fields: Tensor) -> Tensor:
        """(B, num_classes) logits.

        Args:
            particles: (B, N, 4) as in ``Jets``; mask: (B, N) bool, true where there is one.
                What stands elsewhere does not matter.
            fields: pid (B, N) int64, tracks (B, N, 4) and condition (B, C), those that the model
                embeds, in this order.
        """
        given = dict(zip(self.inputs[2:], fields, strict=True))
        particles = torch.where(mask[..., None], particles, 0.0)
        x, prefix = self.embed(particles, mask, given), self.prefix(particles, given)
        number = prefix.shape[1]
        before = number - self.body.tokens.shape[0]  # conditions, behind the global tokens
        bias = self.bias(particles, number)
        x = torch.cat([prefix, x], 1)
        everything = torch.cat([mask.new_ones(()).expand(mask.shape[0], number), mask], 1)
        for block in self.body.blocks:
            assert isinstance(block, AttentionBlock)
            x = block_rows(block, x, everything, bias)
        x = dynamic_tanh(x, self.body.norm.alpha, self.body.norm.weight)
        return self.read(x, everything, number - before)

    def neighbours(self, particles: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Places (B, N, K) of the nearest ones, and whether they exist."""
        k = self.config.neighbours
        apart = particles[:, :, None, :2] - particles[:, None, :, :2]
        squares = apart.square().sum(-1)
        itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        squares = squares.masked_fill(~mask[:, None] | itself, torch.inf)
        # Behind the last particle there are K that are infinitely far: jets may be short.
        distance, place = pad(squares, (0, k), value=torch.inf).topk(k, -1, largest=False)
        return place, distance < torch.inf

    def embed(self, particles: Tensor, mask: Tensor, given: dict[str, Tensor]) -> Tensor:
        """(B, N, D), as ``Body.embed_particles``."""
        body, dtype = self.body, self.body.tokens.dtype
        x = mlp(
            dynamic_tanh(particles, body.embed_norm.alpha, body.embed_norm.weight).to(dtype),
            body.embed.weights,
        )
        place, exists = self.neighbours(particles, mask)
        padded = pad(particles, (0, 0, 0, place.shape[2]))
        flat = place.flatten(1)[..., None].expand(-1, -1, particles.shape[2])
        second = padded.gather(1, flat).unflatten(1, (-1, place.shape[2]))
        first = particles[:, :, None].expand_as(second)
        features = torch.cat([first - second, pair_features(first, second)], -1)
        local = mlp(features.to(dtype), body.local.embed.weights)
        for block in body.local.blocks:
            assert isinstance(block, AttentionBlock)
            local = block_rows(block, local, exists)
        share = exists.to(dtype).sum(-1, keepdim=True).clamp(min=1)
        x = x + (local * exists[..., None]).sum(2) / share
        if body.pid_embed is not None:
            x = x + body.pid_embed(torch.where(mask, given["pid"], 0))
        if body.track_embed is not None:
            tracks = torch.where(mask[..., None], given["tracks"], 0.0)
            x = x + mlp(tracks.to(dtype), body.track_embed.weights)
        return x

    def prefix(self, particles: Tensor, given: dict[str, Tensor]) -> Tensor:
        """(B, G, D) of tokens before the particles."""
        body = self.body
        rows = body.tokens.expand(particles.shape[0], -1, -1)
        if body.condition_embed is None:
            return rows
        condition = given["condition"]
        if self.config.condition_scale is not None:
            condition = condition / torch.tensor(self.config.condition_scale).to(condition)
        token = mlp(condition.to(rows.dtype), body.condition_embed.weights)
        return torch.cat([rows, token[:, None]], 1)

    def bias(self, particles: Tensor, prefix: int) -> Tensor:
        """(B, H, N', N') of all rows; 0 for those of the prefix."""
        first, second = particles[:, :, None], particles[:, None]
        first, second = torch.broadcast_tensors(first, second)
        features = pair_features(first, second).to(self.body.tokens.dtype)
        bias = mlp(features, self.body.pair_bias.weights).permute(0, 3, 1, 2)
        return pad(bias, (prefix, 0, prefix, 0))

    def read(self, x: Tensor, mask: Tensor, tokens: int) -> Tensor:
        """Logits from the rows of the body."""
        head = self.head
        rest, real = x[:, tokens:], mask[:, tokens:]
        if isinstance(head, Classifier):
            own = x[:, :tokens]
            for block in head.blocks:
                assert isinstance(block, TokenBlock)
                own = token_rows(block, own, rest, real)
            return head.out(mlp(own.flatten(1), head.fc.weights))
        if isinstance(head, AttentionProbe):
            rows = head.narrow(x)
            query = head.query.expand(x.shape[0], -1, -1)
            for block in head.attend:
                assert isinstance(block, TokenBlock)
                query = token_rows(block, query, rows, mask)
            return head.out(query.flatten(1))
        assert isinstance(head, Probe)
        if head.pool == "token":
            return head.out(x[:, :tokens].flatten(1))
        count = real.sum(1).clamp(min=1)[:, None]
        return head.out((rest * real[..., None]).sum(1) / count.to(x.dtype))


def drawn(model: PET, counts: Sequence[int] = CHECKED) -> Jets:
    """Jets of any numbers, with the fields that a model embeds."""
    source = torch.Generator().manual_seed(0)
    config, total = model.config, sum(counts)
    particles = torch.randn(total, 4, generator=source) * torch.tensor([0.3, 0.3, 1.0, 1.0])
    offsets = torch.tensor([0, *counts]).cumsum(0)
    condition = 1 + torch.rand(len(counts), max(config.condition_dim, 1), generator=source)
    return Jets(
        particles=particles + torch.tensor([0.0, 0.0, 2.0, 3.0]),
        offsets=offsets,
        pid=torch.randint(9, (total,), generator=source) if config.use_pid else None,
        tracks=torch.randn(total, 4, generator=source).tanh() if config.use_tracks else None,
        condition=condition if config.condition_dim else None,
    )


def padded_inputs(jets: Jets, inputs: Sequence[str]) -> tuple[Tensor, ...]:
    """What ``PaddedClassifier`` takes, of the names ``inputs``."""
    particles, mask = jets.to_padded()
    found: dict[str, Tensor] = {"particles": particles, "mask": mask}
    for name in inputs[2:]:
        value = getattr(jets, name)
        if name != "condition":
            full = value.new_zeros(*mask.shape, *value.shape[1:])
            full[mask] = value
            value = full
        found[name] = value
    return tuple(found[name] for name in inputs)


def write(model: PET, path: Path, facts: dict[str, Any]) -> float:
    """Writes a classifier to a file that other programs run.

    Args:
        model: in float32. path: ends with one of ``FORMATS``. facts: kept with it, as JSON.

    Returns:
        the largest difference of its outputs from the model's, over the largest output.

    Raises:
        ValueError: for another ending, a model without a classifier, or a file that does not say
            what the model says.
        ImportError: for ONNX without the packages of the extra "export".
    """
    if path.suffix not in FORMATS:
        raise ValueError(f"{path}: the ending must be one of {', '.join(FORMATS)}")
    if path.suffix == ".onnx":  # before the work, not after it
        for package in ("onnx", "onnxruntime", "onnxscript"):
            importlib.import_module(package)
    plain = PaddedClassifier(model).eval()
    inputs = padded_inputs(drawn(model), plain.inputs)
    jets, particles = torch.export.Dim("jets"), torch.export.Dim("particles")
    sizes = {name: {0: jets, 1: particles} for name in plain.inputs} | (
        {"condition": {0: jets}} if "condition" in plain.inputs else {}
    )
    dynamic = (sizes["particles"], sizes["mask"], tuple(sizes[n] for n in plain.inputs[2:]))
    with torch.no_grad():
        program = torch.export.export(plain, inputs, dynamic_shapes=dynamic, strict=False)
        expected = model.eval().classify(drawn(model))
    facts = {**facts, "inputs": list(plain.inputs), "output": "logits"}
    target = io.BytesIO()
    if path.suffix == ".pt2":
        torch.export.save(program, target, extra_files={"jetkern.json": json.dumps(facts)})
        with torch.no_grad():
            found = program.module()(*inputs)
    else:
        found = _onnx(program, plain.inputs, inputs, facts, target)
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error < TOLERANCE:
        raise ValueError(f"{path}: the exported program differs from the model by {error:.2g}")
    write_atomically(path, target.getvalue())
    return error


def _onnx(
    program: Any, names: Sequence[str], inputs: tuple[Tensor, ...], facts: Any, target: io.BytesIO
) -> Tensor:
    """Fills ``target`` with the program as ONNX; what it says of the inputs."""
    import onnx
    import onnxruntime

    made = torch.onnx.export(
        program, (), input_names=list(names), output_names=["logits"], opset_version=OPSET,
        dynamo=True, verbose=False,
    )  # fmt: skip
    assert made is not None
    proto = made.model_proto
    for key, value in facts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(proto)
    target.write(proto.SerializeToString())
    session = onnxruntime.InferenceSession(target.getvalue(), providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(["logits"], given)[0])
