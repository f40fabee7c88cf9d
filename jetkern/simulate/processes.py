"""What is simulated: the hard processes and decays of every kind of jet, and how jets are chosen.

The jets are *like* those of JetClass (arXiv:2202.03772), of the top-tagging reference set
(arXiv:1902.09914), of JetNet (arXiv:2106.11535) and of the flavour-tagging set that secondary
vertices are found in (arXiv:2008.02831): leading-order Pythia without matching, no
pile-up and a parametric detector, so absolute performance differs from the published sets.
"""

from __future__ import annotations

from dataclasses import dataclass

QUARKS = (1, 2, 3, 4, 5)
H, W, Z, TOP = 25, 24, 23, 6


@dataclass(frozen=True)
class Kind:
    """One kind of jet.

    Attributes:
        name: the class name in files.
        label: 0-based class index.
        settings: Pythia settings of each generator; several take turns, batch by batch.
        targets: absolute PDG codes of the particles that a jet is matched to; none for no matching.
        speed: rough jets per second of one core, to schedule the slowest first.
    """

    name: str
    label: int
    settings: tuple[tuple[str, ...], ...]
    targets: tuple[int, ...]
    speed: float


@dataclass(frozen=True)
class DataSet:
    """A family of kinds with a common collider, detector and jet selection.

    Attributes:
        matching: what of a target must lie within ``radius`` of the jet axis: "decay", the visible
            products of its decay; "decay+self", also the target itself; "hard", the outgoing
            particle of the hard process itself.
        energy: centre-of-mass energy in GeV.
        pt_hat: range of the transverse momentum of the hard process in GeV.
        mpi: whether multi-parton interactions are simulated unless asked otherwise.
        veto: whether events are dropped before the shower if no target can give a jet.
        radius: anti-kT radius and matching distance.
        jet_pt: range in GeV.
        jet_eta: upper bound of abs(eta).
        leading: whether only the hardest jet of an event counts.
        card: detector, a name in ``detector.CARDS``.
        padding: largest number of constituents kept, highest pT first.
        tracks: whether particle identity and impact parameters are stored.
        label_shift: added to the label in files, as in OmniLearned's data sets.
        flavour: whether the label is the flavour of the hadrons in the jet, and the constituents
            are its tracks (pT above 0.5 GeV, made within 300 mm of the beam) with their vertices.
    """

    name: str
    title: str
    kinds: tuple[Kind, ...]
    matching: str
    energy: float
    pt_hat: tuple[float, float]
    mpi: bool
    veto: bool
    radius: float
    jet_pt: tuple[float, float]
    jet_eta: float
    leading: bool
    card: str
    padding: int
    tracks: bool
    label_shift: int
    flavour: bool = False

    def settings(self, mpi: bool) -> tuple[str, ...]:
        """The Pythia settings that all kinds share."""
        return (
            f"Beams:eCM={self.energy:g}",
            f"PhaseSpace:pTHatMin={self.pt_hat[0]:g}",
            f"PhaseSpace:pTHatMax={self.pt_hat[1]:g}",
            f"PartonLevel:MPI={'on' if mpi else 'off'}",
        )

    @property
    def class_names(self) -> list[str]:
        return [kind.name for kind in self.kinds]


def only(particle: int, *decays: str) -> tuple[str, ...]:
    """Pythia settings that leave a particle nothing but the given decays."""
    return (f"{particle}:onMode=off", *(f"{particle}:{decay}" for decay in decays))


Z_TO_NEUTRINOS = only(Z, "onIfAny=12 14 16")
Z_TO_QUARKS = only(Z, "onIfAny=1 2 3 4 5")
W_TO_QUARKS = only(W, "onIfAny=1 2 3 4 5")
W_TO_LEPTONS = only(W, "onIfAny=11 13")
HIGGS = ("HiggsSM:ffbar2HZ=on", "25:m0=125", *Z_TO_NEUTRINOS)
TOPS = ("Top:gg2ttbar=on", "Top:qqbar2ttbar=on")
PURE_Z = "WeakZ0:gmZmode=2"


def _higgs(decay: str, *more: str) -> tuple[str, ...]:
    return (*HIGGS, *only(H, f"onIfMatch={decay}"), *more)


JETCLASS = DataSet(
    name="jetclass",
    title="JetClass-like, simulated with jetkern",
    kinds=(
        Kind(
            "QCD",
            0,
            (
                (
                    "WeakBosonAndParton:qqbar2gmZg=on",
                    "WeakBosonAndParton:qg2gmZq=on",
                    PURE_Z,
                    *Z_TO_NEUTRINOS,
                ),
            ),
            (),
            205,
        ),
        Kind("Hbb", 1, (_higgs("5 -5"),), (H,), 485),
        Kind("Hcc", 2, (_higgs("4 -4"),), (H,), 515),
        Kind("Hgg", 3, (_higgs("21 21"),), (H,), 460),
        Kind("H4q", 4, (_higgs("24 -24", *W_TO_QUARKS),), (H,), 340),
        Kind(
            "Hqql",
            5,
            tuple(
                _higgs(
                    "24 -24",
                    *only(W, f"on{quarks}IfAny=1 2 3 4 5", f"on{leptons}IfAny=11 13"),
                )
                for quarks, leptons in (("Pos", "Neg"), ("Neg", "Pos"))
            ),
            (H,),
            355,
        ),
        Kind("Zqq", 6, (("WeakDoubleBoson:ffbar2gmZgmZ=on", PURE_Z, *Z_TO_QUARKS),), (Z,), 510),
        Kind(
            "Wqq", 7, (("WeakDoubleBoson:ffbar2ZW=on", *Z_TO_NEUTRINOS, *W_TO_QUARKS),), (W,), 405
        ),
        Kind("Tbqq", 8, ((*TOPS, *W_TO_QUARKS),), (TOP,), 230),
        Kind("Tbl", 9, ((*TOPS, *W_TO_LEPTONS),), (TOP,), 235),
    ),
    matching="decay",
    energy=13000,
    pt_hat=(450, 1400),
    mpi=True,
    veto=True,
    radius=0.8,
    jet_pt=(500, 1000),
    jet_eta=2.0,
    leading=False,
    card="CMS-JetClass",
    padding=150,
    tracks=True,
    label_shift=2,
)

TOPTAG = DataSet(
    name="toptag",
    title="Top-tagging-like, simulated with jetkern",
    kinds=(
        Kind("QCD", 0, (("HardQCD:all=on",),), (), 155),
        Kind("top", 1, ((*TOPS, *W_TO_QUARKS),), (TOP,), 120),
    ),
    matching="decay+self",
    energy=14000,
    pt_hat=(530, 800),
    mpi=False,
    veto=True,
    radius=0.8,
    jet_pt=(550, 650),
    jet_eta=2.0,
    leading=True,
    card="ATLAS",
    padding=200,
    tracks=False,
    label_shift=0,
)

JETNET = DataSet(
    name="jetnet",
    title="JetNet-like, simulated with jetkern",
    kinds=(
        Kind("g", 0, (("HardQCD:gg2gg=on", "HardQCD:qqbar2gg=on"),), (21,), 110),
        Kind(
            "q",
            1,
            (("HardQCD:qq2qq=on", "HardQCD:gg2qqbar=on", "HardQCD:qqbar2qqbarNew=on"),),
            QUARKS,
            170,
        ),
        Kind("t", 2, ((*TOPS, *W_TO_QUARKS),), (TOP,), 175),
        Kind("w", 3, (("WeakDoubleBoson:ffbar2WW=on", *W_TO_QUARKS),), (W,), 205),
        Kind("z", 4, (("WeakDoubleBoson:ffbar2gmZgmZ=on", PURE_Z, *Z_TO_QUARKS),), (Z,), 225),
    ),
    matching="hard",
    energy=13000,
    pt_hat=(990, 1010),
    mpi=True,
    veto=False,
    # With 0.8, the distance to the published statistics of real JetNet jets is ten times larger.
    radius=0.4,
    jet_pt=(800, 1600),
    jet_eta=2.5,
    leading=False,
    card="CMS",
    padding=150,
    tracks=False,
    label_shift=0,
)

FLAVOUR = DataSet(
    name="flavour",
    title="Flavour-tagging-like, simulated with jetkern",
    kinds=tuple(
        Kind(name, label, ((*TOPS, *W_TO_QUARKS),), (), speed)
        for label, (name, speed) in enumerate({"light": 100, "charm": 40, "bottom": 80}.items())
    ),
    matching="",
    energy=13000,
    pt_hat=(0, 13000),
    mpi=True,
    veto=False,
    radius=0.4,
    jet_pt=(20, 1000),
    jet_eta=2.5,
    leading=False,
    card="ATLAS",
    padding=15,
    tracks=True,
    label_shift=0,
    flavour=True,
)

DATA_SETS = {data_set.name: data_set for data_set in (JETCLASS, TOPTAG, JETNET, FLAVOUR)}
