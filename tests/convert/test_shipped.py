"""Descriptions that come with jetkern, on small files of the public layouts, against values
computed by hand.

Layouts: branches and types of NanoAOD 15 as CMS documents them (FatJetPFCand, PFCand: "constituents
of AK8 puppi jets with |eta| <= 2.5"); AspenOpenJets as its record at the University of Hamburg
describes it (doi 10.25592/uhhfdm.16505, arXiv 2412.10504); EDM4hep as edm4hep.yaml and the FCC's
files of winter 2023 have it.
"""

from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pytest
from test_readers import everything, run

uproot = pytest.importorskip("uproot")
LN = np.log


def converted(tmp_path, source, form, *more):
    assert run(source, "--from", form, "--out", tmp_path / "out", "--tracks", "raw", *more) == 0
    return everything(tmp_path / "out")


def lists(rows, dtype="f4"):
    return ak.values_astype(ak.Array(rows), np.dtype(dtype))


def agree(jets, particles, pid, tracks=None):
    """Particles: jets of (delta eta, delta phi, ln pT, ln E); tracks likewise."""
    assert jets.counts.tolist() == [len(jet) for jet in particles]
    np.testing.assert_allclose(jets.particles, np.concatenate(particles), atol=2e-6)
    assert jets.pid.tolist() == pid
    if tracks is not None:
        np.testing.assert_allclose(jets.tracks, tracks, rtol=1e-6, atol=1e-9)


def test_nanoaod(tmp_path):
    columns = {
        "run": np.array([1, 1, 1], "u4"),
        "FatJet_pt": lists([[300, 200], [], [250]]),
        "FatJet_eta": lists([[0.5, -3], [], [-2.5]]),  # beyond 2.5 without candidates
        "FatJet_phi": lists([[3, 1], [], [0]]),
        "FatJet_mass": lists([[80, 9], [], [40]]),
        "FatJet_hadronFlavour": lists([[5, 0], [], [4]], "u1"),
        "FatJetPFCand_jetIdx": lists([[0, 0], [], [0, 0, 0]], "i4"),
        "FatJetPFCand_pfCandIdx": lists([[2, 0], [], [1, 2, 0]], "i4"),
        "PFCand_pt": lists([[3, 7, 12], [], [8, 15, 1]]),
        "PFCand_eta": lists([[0, 0, 0], [], [0, 0, -2]]),
        "PFCand_phi": lists([[-3, 1, 2.5], [], [0.25, -0.5, 0]]),
        "PFCand_mass": lists([[4, 0, 5], [], [6, 8, 0]]),
        "PFCand_pdgId": lists([[-211, 22, 130], [], [11, 211, 1]], "i4"),
    }
    with uproot.recreate(tmp_path / "nano.root") as file:
        file.mktree("Events", columns)
    jets = converted(tmp_path, tmp_path / "nano.root", "nanoaod")
    jets = jets.select(jets.condition[:, 0].argsort(descending=True))
    agree(
        jets,
        [
            [[-0.5, -0.5, LN(12), LN(13)], [-0.5, 2 * np.pi - 6, LN(3), LN(5)]],
            [
                [2.5, -0.5, LN(15), LN(17)],
                [2.5, 0.25, LN(8), LN(10)],
                [0.5, 0, 0, LN(np.cosh(2))],
            ],
        ],
        [7, 1, 8, 4, 7],
    )
    assert jets.label.tolist() == [2, 1]
    expected = [[300, 0.5, 3, 80, 0.02], [250, -2.5, 0, 40, 0.03]]
    np.testing.assert_allclose(jets.condition, expected, rtol=1e-6)


def aspen(path):
    candidates = np.zeros((2, 150, 11), "f4")  # px py pz E d0 error dz error charge PDG weight
    candidates[0, :3] = [
        [3, 4, 0, 13, 0.01, 0.002, -0.03, 0.004, 1, 211, 1],
        [6, -8, 0, 10, -1, -1, -1, -1, 0, 22, 0.5],
        [3, 4, 0, 5, -1, 0.5, 0.02, 0.1, -1, 11, 1],  # d0 of -1 with an error is one
    ]
    candidates[1, :1] = [[0, 1, 0, 1, -1, -1, -1, -1, 0, 130, 1]]
    with h5py.File(path, "w") as file:
        file.create_dataset("PFCands", data=candidates, chunks=(1, 150, 11), compression="gzip")
        file["jet_kinematics"] = np.array([[310, 0.1, 0.2, 60], [305, -1, 3, 20]], "f4")
        file["event_info"] = np.array([[278820, 1, 7], [278820, 1, 8]])
        file["jet_tagging"] = np.zeros((2, 13), "f4")
    return path


def test_aspen(tmp_path):
    aspen(tmp_path / "RunG.h5")
    jets = converted(tmp_path, tmp_path / "RunG.h5", "aspen")
    jets = jets.select(jets.condition[:, 0].argsort(descending=True))
    phi = np.arctan2(4, 3)  # the sum has px = 12, py = 0, pz = 0
    agree(
        jets,
        [
            [
                [0, -phi, LN(10), LN(10)],
                [0, phi, LN(5), LN(13)],
                [0, phi, LN(5), LN(5)],
            ],
            [[0, 0, 0, 0]],
        ],
        [6, 8, 4, 7],
        [[0, 0, 0, 0], [0.1, 0.02, -0.3, 0.04], [-10, 5, 0.2, 1], [0, 0, 0, 0]],
    )
    expected = [[310, 0.1, 0.2, 60, 0.03], [305, -1, 3, 20, 0.01]]
    np.testing.assert_allclose(jets.condition, expected, rtol=1e-6)


def test_the_sign_of_d0_can_be_turned(tmp_path):
    """As Delphes has it, the opposite of CMS (docs/data.md)."""
    text = (Path(__file__).parents[2] / "docs/data.md").read_text().split("```toml\n")[2]
    text = text.split("```")[0].replace("pfnano", "aspen").replace("PFCands_d0", "`PFCands[4]`")
    (tmp_path / "mine.toml").write_text(text)
    command = [aspen(tmp_path / "RunG.h5"), "--schema", tmp_path / "mine.toml"]
    assert run(*command, "--out", tmp_path / "out", "--tracks", "raw") == 0
    jets = everything(tmp_path / "out")
    jets = jets.select(jets.condition[:, 0].argsort(descending=True))
    np.testing.assert_allclose(jets.tracks[:, 0], [0, -0.1, 10, 0], rtol=1e-6)
    np.testing.assert_allclose(jets.tracks[:, 2], [0, -0.3, 0.2, 0], rtol=1e-6)


def fcc():
    """Two events: two jets, of which particles 1 and 3 have tracks 1 and 0; one jet, no track."""
    covariance = np.zeros((3, 21), "f4")
    covariance[:, 0], covariance[:, 9] = [0.04, 0.25, 9], [0.01, 1, 16]
    columns = {
        "ReconstructedParticles.type": lists([[22, 0, 130, 0], [22]], "i4"),
        "ReconstructedParticles.energy": lists([[5, 13, 10, 17], [2]]),
        "ReconstructedParticles.momentum.x": lists([[3, 3, 6, 8], [1]]),
        "ReconstructedParticles.momentum.y": lists([[4, 4, 8, 15], [0]]),
        "ReconstructedParticles.momentum.z": lists([[0, 0, 0, 0], [0]]),
        "ReconstructedParticles.charge": lists([[0, -1, 0, 1], [0]]),
        "ReconstructedParticles.tracks_begin": lists([[0, 0, 1, 1], [0]], "u4"),
        "ReconstructedParticles.tracks_end": lists([[0, 1, 1, 2], [0]], "u4"),
        "ReconstructedParticles#1.index": lists([[1, 0], []], "i4"),
        "EFlowTrack.trackStates_begin": lists([[0, 2], []], "u4"),
        "EFlowTrack_1.D0": lists([[0.1, 7, -0.2], []]),
        "EFlowTrack_1.Z0": lists([[1.5, 7, 2.5], []]),
        "EFlowTrack_1.covMatrix": ak.unflatten(ak.Array(covariance), [3, 0]),
        "Jet.momentum.x": lists([[6, 14], [1]]),
        "Jet.momentum.y": lists([[8, 23], [0]]),
        "Jet.mass": lists([[3, 4], [0]]),
        "Jet.particles_begin": lists([[0, 2], [0]], "u4"),
        "Jet.particles_end": lists([[2, 4], [1]], "u4"),
        "Jet#2.index": lists([[0, 1, 3, 2], [0]], "i4"),
    }
    return columns


def write(path, columns):
    """As an RNTuple of records: uproot cannot write lists of arrays of 21 into a tree."""
    collections = {}
    for name, values in columns.items():
        collection, *members, last = name.split(".")
        inside = collections.setdefault(collection, {})
        for member in members:
            inside = inside.setdefault(member, {})
        inside[last] = values

    def record(members):
        depth = {n: record(m) if isinstance(m, dict) else m for n, m in members.items()}
        return ak.zip(depth, depth_limit=2)

    with uproot.recreate(path) as file:
        file.mkrntuple("events", {name: record(members) for name, members in collections.items()})
    return path


def test_edm4hep_and_its_tracks(tmp_path, capsys):
    source = write(tmp_path / "fcc.root", fcc())
    jets = converted(tmp_path, source, "edm4hep", "--jets-per-read", 2)
    assert "particles without a track: 3" in capsys.readouterr().out
    jets = jets.select(jets.condition[:, 0].argsort())
    turn = [np.arctan2(y, x) - np.arctan2(23, 14) for x, y in ((8, 15), (6, 8))]
    agree(
        jets,
        [
            [[0, 0, 0, LN(2)]],
            [[0, 0, LN(5), LN(5)], [0, 0, LN(5), LN(13)]],
            [[0, turn[0], LN(17), LN(17)], [0, turn[1], LN(10), LN(10)]],
        ],
        [6, 6, 1, 8, 7],
        [[0] * 4, [0] * 4, [-0.2, 3, 2.5, 4], [0.1, 0.2, 1.5, 0.1], [0] * 4],
    )
    np.testing.assert_allclose(jets.condition[:, 1], [0, 3, 4])


@pytest.mark.parametrize(
    ("column", "value", "says"),
    [
        ("ReconstructedParticles#1.index", 9, ["row 0", "trackStates_begin has 2 entries, 9 is"]),
        ("EFlowTrack.trackStates_begin", 5, ["row 0", "EFlowTrack_1.D0 has 3 entries, 5 is taken"]),
    ],
)
def test_tracks_that_are_not_there(tmp_path, capsys, column, value, says):
    columns = fcc()
    columns[column] = columns[column] * 0 + value
    source = write(tmp_path / "fcc.root", columns)
    assert run(source, "--from", "edm4hep", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for part in ["fcc.root", *says]:
        assert part in error


def test_a_track_that_an_index_below_0_names_is_none(tmp_path):
    columns = fcc()
    columns["ReconstructedParticles#1.index"] = lists([[-1, 0], []], "i4")
    jets = converted(tmp_path, write(tmp_path / "fcc.root", columns), "edm4hep")
    assert int((jets.tracks != 0).any(dim=1).sum()) == 1


def test_btag(tmp_path):
    columns = {
        "trk_pt": lists([[12, 3], [8]]),
        "trk_eta": lists([[0.5, 0.1], [-1]]),
        "trk_phi": lists([[3, -3], [0.5]]),
        "trk_d0": lists([[0.1, -0.2], [0.3]]),
        "trk_d0err": lists([[0.01, 0.02], [0.03]]),
        "trk_z0": lists([[1, 2], [-3]]),
        "trk_z0err": lists([[0.1, 0.2], [0.3]]),
        "trk_pdg_id": lists([[-211, 11], [13]], "i4"),
        "trk_vtx_index": lists([[0, 3], [-1]], "i4"),
        "trk_prod_z": lists([[0, 1.5], [-2]]),
        "hadron_z": lists([[1.5, 0.7, 1.5], []]),
        "hadron_pdgid": lists([[-511, 421, 4122], []], "i4"),
        "jet_pt": np.array([30, 20], "f4"),
        "jet_eta": np.array([0.25, -1], "f4"),
        "jet_phi": np.array([3, 0], "f4"),
        "jet_M": np.array([5, 4], "f4"),
        "jet_flav": np.array([5, 0], "i4"),
    }
    with uproot.recreate(tmp_path / "btag.root") as file:
        file.mktree("tree", columns)
    jets = converted(tmp_path, tmp_path / "btag.root", "btag")
    jets = jets.select(jets.condition[:, 0].argsort(descending=True))
    energies = [12 * np.cosh(0.5), 3 * np.cosh(0.1), 8 * np.cosh(1)]
    agree(
        jets,
        [
            [[0.25, 0, LN(12), LN(energies[0])], [-0.15, 2 * np.pi - 6, LN(3), LN(energies[1])]],
            [[0, 0.5, LN(8), LN(energies[2])]],
        ],
        [1, 4, 5],
        [[0.1, 0.01, 1, 0.1], [-0.2, 0.02, 2, 0.2], [0.3, 0.03, -3, 0.3]],
    )
    assert jets.label.tolist() == [2, 0]
    assert jets.vertex.tolist() == [0, 3, 255]
    assert jets.origin.tolist() == [0, 2, 3]


def test_rodem(tmp_path):
    for name, pt in (("QCD_jj_pt_450_1200_01.h5", 500), ("ttbar_allhad_pt_450_1200_01.h5", 600)):
        particles = np.zeros((1, 5, 3), "f4")
        particles[0, :2] = [[pt / 2, 0.1, 1], [pt / 4, -0.2, 1.5]]
        with h5py.File(tmp_path / name, "w") as file:
            file["objects/jets/jet1_cnsts"] = particles
            file["objects/jets/jet1_obs"] = np.array([[pt, 0, 1.25, 80, 0.1, 0.2]], "f4")
    jets = converted(tmp_path, tmp_path, "rodem")
    jets = jets.select(jets.condition[:, 0].argsort())
    expected = [
        row
        for pt in (500, 600)
        for row in (
            [0.1, -0.25, LN(pt / 2), LN(pt / 2 * np.cosh(0.1))],
            [-0.2, 0.25, LN(pt / 4), LN(pt / 4 * np.cosh(0.2))],
        )
    ]
    np.testing.assert_allclose(jets.particles, expected, atol=2e-6)
    assert jets.counts.tolist() == [2, 2]
    assert jets.label.tolist() == [0, 1]
    assert jets.pid is None
    np.testing.assert_allclose(jets.condition[:, :3], [[500, 0, 80], [600, 0, 80]])
