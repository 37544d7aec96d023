"""InternVL composed of layers: tower, projector, decoder.

Here: the computation, and the official name of every tensor as data.
Not here: reading files, batching, sampling.
"""
