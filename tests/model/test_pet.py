"""Properties of the model: what it must not depend on, and what it must."""

import copy
import subprocess
import sys

import pytest
import torch
from test_jets import make

from jetkern import PET, Jets, PETConfig, model_preset
from jetkern.jets import offsets_from_counts
from jetkern.objectives import Objective


def build(parts=("classifier", "generator", "mpm"), **changes):
    torch.manual_seed(0)
    config = model_preset("micro", parts, use_pid=False, use_tracks=False, **changes)
    return PET(config).double().eval()


def jets_of(counts, seed=0):
    jets = make(counts, seed)
    return jets.replace(particles=jets.particles.double() * 0.4, pid=None)


def test_a_jet_does_not_see_its_batch():
    model, jets = build(), jets_of([3, 0, 17, 1, 40])
    together = model.classify(jets)
    for b in range(len(jets)):
        alone = model.classify(jets.select(slice(b, b + 1)))
        torch.testing.assert_close(together[b : b + 1], alone)


def test_classification_ignores_the_order_of_particles():
    model, jets = build(), jets_of([25])
    order = torch.randperm(25)
    shuffled = jets.replace(particles=jets.particles[order])
    torch.testing.assert_close(model.classify(shuffled), model.classify(jets))
    time = torch.tensor([0.3], dtype=torch.float64)
    torch.testing.assert_close(model.velocity(shuffled, time), model.velocity(jets, time)[order])


def test_time_and_type_matter_to_the_velocity():
    model, jets = build(), jets_of([25])
    time = torch.tensor([0.3], dtype=torch.float64)
    velocity = model.velocity(jets, time)
    assert (model.velocity(jets, time + 0.1) - velocity).abs().max() > 1e-4
    other = jets.replace(label=(jets.label + 1) % 10)
    assert (model.velocity(other, time) - velocity).abs().max() > 1e-4


def test_one_type_needs_no_label():
    model, jets = build(["generator"], num_classes=1), jets_of([5, 2])
    assert model.generator.type_embed is None
    velocity = model.velocity(jets.replace(label=None), torch.rand(2, dtype=torch.float64))
    assert velocity.shape == (7, 4)


def test_more_than_65535_jets():
    count = 70_000
    torch.manual_seed(0)
    particles = torch.randn(count, 4)
    jets = Jets(particles=particles, offsets=offsets_from_counts(torch.ones(count)))
    model = PET(
        PETConfig(dim=8, layers=1, heads=1, neighbours=2, use_pid=False, use_tracks=False)
    ).eval()
    with torch.no_grad():
        logits = model.classify(jets)
        torch.testing.assert_close(logits[-2:], model.classify(jets.select(slice(-2, None))))


def test_a_training_step_changes_every_weight():
    model = build(["classifier"])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.classify(jets_of([20, 9, 30])).square().sum().backward()
    optimizer.step()
    still = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert not still


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ()}, "at least one part"),
        ({"heads": 5}, "5 heads do not divide the width 32"),
    ],
)
def test_impossible_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        model_preset("micro", **{"parts": ("mpm",), **changes})


def test_hooks_and_data_parallel_see_a_call_of_the_model(tmp_path):
    model, jets = build(["classifier"]).eval(), jets_of([4, 7])
    seen = []
    model.register_forward_hook(lambda module, inputs, output: seen.append(output))
    logits = model(jets)
    assert seen[0] is logits
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        torch.testing.assert_close(parallel(jets), logits)
        parallel(jets).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(p.grad is not None for p in model.parameters())


def test_an_unknown_size():
    with pytest.raises(ValueError, match="unknown model size 'tiny': choose one of micro"):
        model_preset("tiny")


def test_parts_that_a_model_lacks():
    model, jets = build(["mpm"]), jets_of([4])
    with pytest.raises(ValueError, match="no classifier"):
        model.classify(jets)
    with pytest.raises(ValueError, match="no generator"):
        model.velocity(jets, torch.zeros(1))
    with pytest.raises(ValueError, match="no masked-particle head"):
        build(["classifier"]).fill_masked(jets, torch.ones(4, dtype=torch.bool))


def test_model_and_ops_need_nothing_but_torch_and_numpy():
    blocked = ("webdataset", "tqdm", "matplotlib", "h5py", "scipy", "ot", "hdf5plugin")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "import torch, jetkern, jetkern.ops, jetkern.objectives, jetkern.interop.omnilearned\n"
        "jetkern.PET(jetkern.model_preset('micro'))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.bfloat16, 2e-2), (torch.float16, 2e-3), (torch.float64, 1e-5)]
)
def test_a_model_in_another_precision_takes_the_same_jets(dtype, error):
    model, jets = build(), jets_of([1, 12, 25])
    want = Objective(model)(jets)
    other = copy.deepcopy(model).to(dtype)
    logits = other.classify(jets)
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.double(), model.classify(jets).double(), rtol=0, atol=error)
    have = Objective(other)(jets)
    for name, value in want.items():
        torch.testing.assert_close(have[name].double(), value.double(), rtol=error, atol=error)
    have["loss"].backward()
    assert all(p.grad.isfinite().all() for p in other.parameters() if p.grad is not None)


def test_autocast_is_near_float32():
    model, jets = build().float(), jets_of([1, 12, 25])
    jets = jets.replace(particles=jets.particles.float())
    with torch.autocast("cpu", torch.bfloat16):
        have = model.classify(jets)
    torch.testing.assert_close(have.float(), model.classify(jets), rtol=0, atol=2e-2)


COLD = """
import sys, torch
from jetkern import PET, Jets, model_preset
from jetkern.jets import offsets_from_counts

class Plain(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, particles, offsets):
        return self.model.classify(Jets(particles=particles, offsets=offsets))

def batch(*counts):
    offsets = offsets_from_counts(torch.tensor(counts))
    return torch.randn(int(offsets[-1]), 4), offsets

torch.manual_seed(0)
plain = Plain(PET(model_preset("micro", ["classifier"], use_pid=False, use_tracks=False)).eval())
first, second = batch(3, 1, 20, 7), batch(5, 30, 1, 2, 9, 16)
if sys.argv[1] == "compile":
    made = torch.compile(plain, fullgraph=True, backend="eager")
else:
    particles, jets = torch.export.Dim("T"), torch.export.Dim("B", min=3)
    shapes = ({0: particles}, {0: jets})
    strict = sys.argv[1] == "strict"
    made = torch.export.export(plain, first, dynamic_shapes=shapes, strict=strict).module()
with torch.no_grad():
    for inputs in (first, second):
        torch.testing.assert_close(made(*inputs), plain(*inputs))
"""


@pytest.mark.parametrize("how", ["compile", "strict", "non-strict"])
def test_the_whole_model_is_one_graph_for_any_number_of_jets(how):
    """In a process of its own, in which no op has run before."""
    done = subprocess.run([sys.executable, "-c", COLD, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
