"""From any source to shards: check, scatter, shuffle, write.

``plan`` decides what goes where, ``clean`` judges values, ``scatter`` deals the jets of each input
range to buckets in work files, ``gather`` shuffles each bucket and writes it as a shard, ``run``
drives both passes over several processes and resumes them.
"""
