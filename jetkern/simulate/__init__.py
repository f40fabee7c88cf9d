"""Jets of the kinds in the public data sets, made here: Pythia 8, a parametric detector, FastJet.

processes: the data sets, their Pythia settings, kinds of jets and selection.
events: events as flat arrays. generator: Pythia, with a veto on the hard process.
truth: what a jet must contain to be labelled signal.
detector: tracks, towers and particle flow of a CMS- or ATLAS-like detector.
jets: clustering and the features of the constituents.
shard: one unit of work, the jets of one kind from a seed to a file.
run: all units over several processes, with progress and resumption.
files: files that appear whole or not at all. plots: the sanity sheet and its table.

Pythia and FastJet are under the GNU GPL; only generator, jets and plots import them.
"""


class SimulationError(Exception):
    """Something that the user can mend; its message is one line."""
