"""The layers that models are made of: linear, attention, norms, rotary angles, embeddings, MLPs.

Here: modules that hold parameters, know where a checkpoint's tensors go, and call `kernels`.
Not here: whole models, caches, files.
"""
