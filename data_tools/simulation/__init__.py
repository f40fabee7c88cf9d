"""Jets of the kinds in the public data sets, made here: Pythia 8, a parametric detector, FastJet.

processes   the data sets: Pythia settings, kinds of jets, selection
generator   Pythia events as flat arrays, with a veto on the hard process
truth       what a jet must contain to be labelled signal
detector    tracks, towers and particle flow of a CMS- or ATLAS-like detector
jets        clustering and the features of the constituents
shard       one unit of work: jets of one kind, from its seed to its file
run         all units over several processes, with progress and resumption
plots       the sanity sheet and its table
"""
