"""A model on disk: where its folder is, what its config.json says, its weights.

Here: files of a checkpoint, read without running any code of it.
Not here: layers and devices beyond the places that weights are copied to.
"""
