"""weaver's Particle Transformer (arXiv 2202.03772; weaver-core 0.5.3) on packed jets.

Its own weights load, whatever its ``version``, and give its outputs and gradients, without padding:

    model = ParticleTransformer(inputs=17, classes=10, version=3)
    model.load_state_dict(weights_of_weaver)  # as weaver's ``model.state_dict()``
    logits = model.eval()(x, v, jets.packed)  # x (T, 17) features, v (T, 4) px, py, pz, E in GeV

python examples/particle_transformer.py
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from jetkern import ops, pack
from jetkern.jets import join_segments
from jetkern.packed import Packed

LEAST = 1e-8  # weaver's bound below each quantity before its logarithm


def pair_features(v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """(S, 4) ln kT, ln z, ln delta R and ln m^2 of pairs of four-momenta v (T, 4) in GeV.

    As in weaver, with rapidities and masses; the invariant mass in a form that does not cancel.
    """
    px, py, pz, energy = v.double().unbind(1)
    pt2, mt2 = px**2 + py**2, energy**2 - pz**2
    columns = (mt2 - pt2, mt2.sqrt(), pt2.sqrt())
    m2, mt, pt = (c.to(v.dtype) for c in columns)
    rapidity = 0.5 * torch.log1p(2 * pz / (energy - pz).clamp(min=1e-20))
    phi = torch.atan2(py, px)
    d_y = (rapidity[i] - rapidity[j]).to(v.dtype)
    d_phi = ((phi[i] - phi[j] + torch.pi) % (2 * torch.pi) - torch.pi).to(v.dtype)
    m2_i, mt_i, pt_i, m2_j, mt_j, pt_j = m2[i], mt[i], pt[i], m2[j], mt[j], pt[j]
    transverse, masses = pt_i * pt_j, mt_i * mt_j
    difference = (m2_i * pt_j**2 + m2_j * pt_i**2 + m2_i * m2_j) / (masses + transverse)
    mass2 = m2_i + m2_j + 2 * difference
    mass2 = mass2 + 4 * (masses * (d_y / 2).sinh() ** 2 + transverse * (d_phi / 2).sin() ** 2)
    distance, smaller = (d_y**2 + d_phi**2).sqrt(), torch.minimum(pt_i, pt_j)
    share = smaller / (pt_i + pt_j).clamp(min=LEAST)
    quantities = torch.stack([smaller * distance, share, distance, mass2], 1)
    return quantities.clamp(min=LEAST).log()


class Attention(nn.Module):
    """Multi-head attention, from version 3.5 with normed queries and keys and a gate."""

    def __init__(self, width: int, heads: int, version: float) -> None:
        super().__init__()
        self.heads, linear = heads, version < 3
        self.in_proj = nn.Linear(width, 3 * width, linear)
        self.out_proj = nn.Linear(width, width, linear)
        gated = version > 3
        self.q_norm = nn.RMSNorm(width // heads) if gated else nn.Identity()
        self.k_norm = nn.RMSNorm(width // heads) if gated else nn.Identity()
        self.gate_proj = nn.Linear(width, width, linear) if gated else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        rows: Packed,
        keys: Packed,
        bias: Tensor | None = None,
        biased: Packed | None = None,
    ) -> Tensor:
        weight, shift = self.in_proj.weight, self.in_proj.bias
        if query is key:
            q, k, v = self.in_proj(key).unflatten(1, (3, self.heads, -1)).unbind(1)
        else:
            width = query.shape[1]
            first, last = (None, None) if shift is None else (shift[:width], shift[width:])
            q = functional.linear(query, weight[:width], first).unflatten(1, (self.heads, -1))
            both = functional.linear(key, weight[width:], last)
            k, v = both.unflatten(1, (2, self.heads, -1)).unbind(1)
        q, k = self.q_norm(q), self.k_norm(k)
        out = ops.attention(q, k, v, rows, keys, bias, biased).flatten(1)
        if self.gate_proj is not None:
            out = out * self.gate_proj(query).sigmoid()
        return self.out_proj(out)


class Block(nn.Module):
    """Attention and perceptron, with the scales of version 1 or the SwiGLU of later ones."""

    def __init__(self, width: int, heads: int, version: float) -> None:
        super().__init__()
        norm, linear, first = norm_of(version), version < 3, version == 1
        self.pre_attn_norm = norm(width)
        self.attn = Attention(width, heads, version)
        self.post_attn_norm = norm(width) if first else nn.Identity()
        self.pre_fc_norm = norm(width)
        self.fc1 = nn.Linear(width, 4 * width, linear)
        self.fc1_g = None if first else nn.Linear(width, 4 * width, linear)
        self.post_fc_norm = norm(4 * width) if first else nn.Identity()
        self.fc2 = nn.Linear(4 * width, width, linear)
        self.c_attn = nn.Parameter(torch.ones(heads)) if first else None
        self.w_resid = nn.Parameter(torch.ones(width)) if first else None

    def forward(self, x: Tensor, rows: Packed, bias: Tensor, biased: Packed) -> Tensor:
        """x (T, D) attends to itself."""
        normed = self.pre_attn_norm(x)
        return self.after(x, self.attn(normed, normed, rows, rows, bias, biased))

    def attend(self, tokens: Tensor, own: Packed, x: Tensor, rows: Packed) -> Tensor:
        """tokens (B, D) attend to themselves, one in each jet, and to x (T, D)."""
        keys, both = join_segments([(tokens, own.offsets), (x, rows.offsets)])
        normed = self.pre_attn_norm(keys)
        return self.after(tokens, self.attn(tokens, normed, own, Packed.trusted(both)))

    def after(self, x: Tensor, attended: Tensor) -> Tensor:
        if self.c_attn is not None:
            attended = attended.unflatten(1, (len(self.c_attn), -1)) * self.c_attn[:, None]
            attended = attended.flatten(1)
        x = x + self.post_attn_norm(attended)
        inner = self.pre_fc_norm(x)
        if self.fc1_g is None:
            hidden = functional.gelu(self.fc1(inner))
        else:
            hidden = functional.silu(self.fc1_g(inner)) * self.fc1(inner)
        kept = x if self.w_resid is None else self.w_resid * x
        return kept + self.fc2(self.post_fc_norm(hidden))


def norm_of(version: float) -> type[nn.Module]:
    return nn.RMSNorm if version >= 3 else nn.LayerNorm


class ParticleTransformer(nn.Module):
    """Names, shapes and order of weights are weaver's. Version 1, 2, 3, 3.5 or 3.6."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        version: float = 1,
        embed: tuple[int, ...] = (128, 512, 128),
        pair: tuple[int, ...] = (64, 64, 64),
        heads: int = 8,
        layers: int = 8,
        class_layers: int = 2,
    ) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for wide, out in zip((inputs, *embed), embed, strict=False):
            modules += [nn.LayerNorm(wide), nn.Linear(wide, out), nn.GELU()]
        self.embed = nn.ModuleDict(
            {"input_bn": nn.BatchNorm1d(inputs), "embed": nn.Sequential(*modules)}
        )
        modules = [nn.BatchNorm1d(4)]
        for wide, out in zip((4, *pair), (*pair, heads), strict=True):
            modules += [nn.Conv1d(wide, out, 1, bias=version < 3), nn.BatchNorm1d(out), nn.GELU()]
        self.pair_embed = nn.ModuleDict({"embed": nn.Sequential(*modules[:-1])})
        width = embed[-1]
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(Block(width, heads, version) for _ in range(layers))
        after = 0 if version == 3.6 else class_layers  # 3.6 has the token in all layers
        self.cls_blocks = nn.ModuleList(Block(width, heads, version) for _ in range(after))
        self.norm = norm_of(version)(width)
        self.fc = nn.Sequential(nn.Linear(width, classes))

    def pair_bias(self, v: Tensor, particles: Packed) -> Tensor:
        """(heads, sum n^2), each pair computed once."""
        i, j = ops.unordered_pairs(particles.offsets, (particles.num_pairs + len(v)) // 2)
        features, modules = pair_features(v, i, j), self.pair_embed["embed"]
        assert isinstance(modules, nn.Sequential)
        if not self.training:
            layers = ops.fold_batch_norms(modules)
            return ops.pair_mlp(features, particles, layers, num_pairs=particles.num_pairs)
        y = modules(features.t()[None])[0].t()  # norms take the statistics of the batch's pairs
        return functional.embedding(
            ops.unordered_entry(particles.offsets, particles.num_pairs), y
        ).t()

    def forward(self, x: Tensor, v: Tensor, particles: Packed) -> Tensor:
        """(B, classes) logits of x (T, inputs), px, py, pz, E in v (T, 4) and their layout."""
        bias = self.pair_bias(v, particles)
        x = self.embed["embed"](self.embed["input_bn"](x))
        jets = len(particles)
        tokens = self.cls_token[0].expand(jets, -1)
        own = Packed.trusted(torch.arange(jets + 1, device=x.device))
        rows = particles
        if not self.cls_blocks:
            x, both = join_segments([(tokens, own.offsets), (x, particles.offsets)])
            rows = Packed.trusted(both)
        for block in self.blocks:
            x = block(x, rows, bias, particles)
        if not self.cls_blocks:
            tokens = x[rows.offsets[:-1]]
        for block in self.cls_blocks:
            assert isinstance(block, Block)
            tokens = block.attend(tokens, own, x, particles)
        return self.fc(self.norm(tokens))


def toy_jets(count: int, most: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Padded, as weaver has them but with particles first: x (B, N, 7), v (B, N, 4), mask (B, N).

    Pions around the axis of a jet, up to ``most`` of them.
    """
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(most) < torch.randint(1, most + 1, (count, 1), generator=g)
    pt = (1 + torch.randn(count, most, generator=g).double()).exp()
    eta, phi = 0.2 * torch.randn(2, count, most, generator=g).double()
    energy = (pt**2 * eta.cosh() ** 2 + 0.13957**2).sqrt()
    v = torch.stack([pt * phi.cos(), pt * phi.sin(), pt * eta.sinh(), energy], 2).float()
    x = torch.randn(count, most, 7, generator=g)
    return x * mask[..., None], v * mask[..., None], mask


def main() -> Tensor:
    """Logits of a few jets."""
    x, v, mask = toy_jets(8)
    (x, offsets), (v, _) = pack(x, mask), pack(v, mask)
    model = ParticleTransformer(inputs=7, classes=10, version=3).eval()
    with torch.no_grad():
        logits = model(x, v, Packed(offsets))
    print(f"{len(x)} particles in {len(logits)} jets, logits {tuple(logits.shape)}")
    return logits


if __name__ == "__main__":
    main()
