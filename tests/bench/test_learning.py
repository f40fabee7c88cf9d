"""The benchmark of learning at a toy's size, without its peer."""

import argparse
import json

from bench import learning
from tests.factories import write_toy_shards


def test_a_curve_has_a_point_for_each_turn(tmp_path):
    for seed, split in enumerate(("train", "test")):
        write_toy_shards(tmp_path / split, ["QCD", "top"], jets=64, seed=seed)
    options = argparse.Namespace(
        shards=tmp_path, peer="", size="micro", updates=5, block=2, batch=8, lr=1e-3,
        test_jets=40, seed=0, threads=1, out=tmp_path / "out.json",
    )  # fmt: skip
    result = learning.measure(options)
    (points,) = result["curves"].values()
    assert [done for done, _, _ in points] == [2, 4, 5]
    seconds = [spent for _, spent, _ in points]
    assert seconds == sorted(seconds)
    assert all(0 <= area <= 1 for _, _, area in points)
    kept = json.loads(options.out.read_text())["curves"]["jetkern"]
    assert kept == [list(point) for point in points]
    assert "| 5 " in learning.shown(result)
    learning.draw(result, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 1000
