"""InternVL composed of layers: tower, projector, decoder.

Here: the computation, and the name of every tensor in each layout as data.
Not here: reading files, batching, sampling.
"""
