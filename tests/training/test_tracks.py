"""The tasks of tracks: losses against their formulas, reports on known answers, runs end to end."""

import json

import numpy as np
import pytest
import torch

from jetkern.cli import evaluate, finetune
from jetkern.data.shards import make_fields
from jetkern.evaluation.tracks import origin_report, vertex_report, vertex_table
from jetkern.jets import Jets, particle_pairs
from jetkern.metrics.partitions import pairs
from jetkern.model.pet import PET
from jetkern.model.presets import model_preset
from jetkern.objectives import Objective
from jetkern.objectives.views import View, clean
from jetkern.tasks import find_task
from jetkern.tasks.tracks import ORIGIN_WEIGHTS, OriginLoss, VertexLoss
from tests.factories import write_folder


def jets_of(counts, seed=0, known=True):
    rng = np.random.default_rng(seed)
    total = int(np.sum(counts))
    vertex = torch.from_numpy(rng.integers(0, 3, total))
    origin = torch.from_numpy(rng.integers(0, 4, total))
    if not known:
        gone = torch.from_numpy(rng.random(total) < 0.3)
        vertex[gone], origin[gone] = 255, 255
    return Jets(
        particles=torch.from_numpy(rng.normal(size=(total, 4))).float(),
        offsets=torch.tensor([0, *np.cumsum(counts, dtype=int)]),
        pid=torch.from_numpy(rng.integers(0, 9, total)),
        tracks=torch.from_numpy(rng.random((total, 4))).float(),
        vertex=vertex,
        origin=origin,
        label=torch.zeros(len(counts), dtype=torch.int64),
    )


@pytest.mark.parametrize("counts", [[], [0, 1, 0], [3, 0, 1, 2, 15], [150]])
def test_pairs_of_batches_are_those_of_the_metrics(counts):
    first, second = particle_pairs(jets_of(counts))
    expected = pairs(counts)
    np.testing.assert_array_equal(first, expected[0])
    np.testing.assert_array_equal(second, expected[1])


def test_origin_loss_is_the_weighted_smoothed_cross_entropy_of_known_tracks():
    jets = jets_of([4, 0, 3], known=False)
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.0
    for row, origin in zip(logits.double().log_softmax(1), jets.origin.tolist(), strict=True):
        if origin < 255:
            weights = torch.tensor(ORIGIN_WEIGHTS, dtype=torch.float64)
            smooth = -(weights * row).sum() * 0.1 / 4
            expected += -0.9 * weights[origin] * row[origin] + smooth
    loss = OriginLoss()
    assert float(loss.sum(logits, View(jets, jets))) == pytest.approx(float(expected), rel=1e-5)
    assert int(loss.weight(jets)) == int((jets.origin < 255).sum())


def test_vertex_loss_is_the_focal_loss_of_pairs_whose_vertices_are_known():
    jets = jets_of([4, 1, 3], known=False)
    first, second = particle_pairs(jets)
    logits = torch.randn(len(first), generator=torch.Generator().manual_seed(0))
    expected, number = 0.0, 0
    for i, j, logit in zip(first, second, logits.double(), strict=True):
        if jets.vertex[i] == 255 or jets.vertex[j] == 255:
            continue
        same = bool(jets.vertex[i] == jets.vertex[j])
        p = torch.sigmoid(logit if same else -logit)
        expected += -(0.778 if same else 1.0) * (1 - p) ** 3 * p.log()
        number += 1
    loss = VertexLoss()
    assert float(loss.sum(logits, View(jets, jets))) == pytest.approx(float(expected), rel=1e-5)
    assert int(loss.weight(jets)) == number
    assert number > 0


@pytest.mark.parametrize("task", ["origin", "vertices"])
def test_parts_of_a_batch_add_up_and_gradients_are_finite(task):
    torch.manual_seed(0)
    model = PET(model_preset("micro", (task,), layers=1, dim=16, heads=2))
    loss = {"origin": OriginLoss, "vertices": VertexLoss}[task]()
    objective = Objective(model, losses=[loss]).eval()
    jets = jets_of([5, 0, 1, 8, 2], known=False)
    with torch.no_grad():
        whole, weights, _ = objective.sums(jets)
        parts = [objective.sums(jets.select(slice(*s))) for s in ((0, 2), (2, 4), (4, 5))]
    assert float(whole[task]) == pytest.approx(sum(float(p.sums[task]) for p in parts), rel=1e-4)
    assert float(weights[0]) == sum(float(p.weights[0]) for p in parts)
    objective(jets)["loss"].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    empty = jets_of([0, 1])
    assert torch.isfinite(objective(empty)["loss"])
    with pytest.raises(ValueError, match="do not say where their tracks come from"):
        objective(jets.replace(vertex=None, origin=None))


def test_swapping_tracks_swaps_pairs():
    torch.manual_seed(0)
    model = PET(model_preset("micro", ("vertices",), layers=1, dim=16, heads=2)).eval()
    jets = jets_of([6])
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = jets.replace(
        **{n: getattr(jets, n)[order] for n in ("particles", "pid", "tracks", "vertex", "origin")}
    )
    first, second = particle_pairs(jets)

    def matrix(batch):
        out = torch.zeros(6, 6)
        out[first, second] = model.vertices(*model.body(batch), batch).detach()
        return out + out.T

    torch.testing.assert_close(matrix(moved), matrix(jets)[order][:, order], atol=1e-5, rtol=1e-4)
    assert clean(jets, None, 0).whole is jets


def test_origin_report_on_known_answers():
    origin = np.array([0, 0, 0, 1, 2, 255])
    report = origin_report(np.array([0, 0, 1, 1, 0, 3]), origin, np.array([4, 0, 2]))
    assert report.tracks == 5
    assert report.accuracy.value == pytest.approx(3 / 5)
    assert report.recall[:3] == pytest.approx((2 / 3, 1, 0))
    assert np.isnan(report.recall[3])
    assert report.balanced.value == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert report.balanced.error > 0
    with pytest.raises(ValueError, match="no track's origin is known"):
        origin_report(np.array([0]), np.array([255]), np.array([1]))


def test_vertex_report_on_known_answers():
    counts = np.array([3, 1, 2, 2])
    vertex = np.array([0, 1, 1, 0, 0, 0, 255, 0])
    right = vertex[pairs(counts)[0]] == vertex[pairs(counts)[1]]
    report = vertex_report(right, vertex, counts)
    assert report.jets == 2  # not the one of one track, nor the one of a track without truth
    assert report.all.perfect.value == 1
    assert set(report.by_secondaries) == {"0", "1"}
    assert report.trivial["all together"].perfect.value == 0.5
    assert "all together" in vertex_table({"run": report})
    with pytest.raises(ValueError, match="no jet has two tracks"):
        vertex_report(np.zeros(0, bool), np.array([0]), np.array([1]))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Jets whose origin can be read off the first impact parameter, and vertices likewise."""
    folder = tmp_path_factory.mktemp("tracks")
    for number, split in enumerate(("train", "val", "test")):
        jets = jets_of(np.random.default_rng(number).integers(1, 6, 96), seed=number)
        jets.tracks[:, 0] = jets.origin - 1.5
        jets.vertex.copy_(jets.origin)
        values = {n: getattr(jets, n).numpy() for n in ("particles", "pid", "tracks", "vertex",
                                                        "origin", "label")}  # fmt: skip
        block = {"offsets": jets.offsets.numpy(), **values}
        fields = make_fields(pid=True, tracks=True, vertices=True)
        write_folder(folder / split, [[block]], fields, ("light",))
    return folder


@pytest.mark.parametrize("task", ["origin", "vertices"])
def test_train_continue_and_judge(shards, tmp_path, capsys, task):
    flags = f"--data {shards} --preset micro --batch-size 32 --warmup-steps 0 --lr 3e-3 --threads 1"
    one = f"{task} --out {tmp_path}/one --steps 80 --val-every 40 {flags}"
    assert finetune.main(one.split()) == 0
    out = tmp_path / "results"
    assert evaluate.main(f"{tmp_path}/one --data {shards} --out {out} --threads 1".split()) == 0
    report = json.loads((out / "report.json").read_text())["models"]["one"]
    if task == "origin":
        assert report["tracks"] > 0
        assert report["balanced"]["value"] > 0.3  # a quarter is guessing
    else:
        assert (
            report["all"]["adjusted"]["value"]
            > report["trivial"]["all together"]["adjusted"]["value"]
        )
    assert "model" in (out / "table.md").read_text()
    capsys.readouterr()


def test_jets_without_truth_are_refused(tmp_path, capsys):
    jets = jets_of([2, 3])
    block = {"offsets": jets.offsets.numpy(), "particles": jets.particles.numpy(),
             "label": jets.label.numpy()}  # fmt: skip
    for split in ("train", "val"):
        write_folder(tmp_path / split, [[block]], make_fields(), ("light",))
    assert finetune.main(f"vertices --data {tmp_path} --out {tmp_path}/run".split()) == 1
    error = capsys.readouterr().err
    assert error.endswith("has no field vertex: where tracks come from is not known\n")
    assert find_task("origin").name == "origin"
