"""One step on one rank: batch, forward, sample.

Here: a step plan as tensors, run eagerly or from captured graphs.
Not here: which tokens go into a step (`scheduling`), sockets, threads.
"""
