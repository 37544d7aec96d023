"""Pictures from anywhere to 8-bit RGB and a grid: policy, fetching, decoding, tiling.

Here: every byte that strangers send as a picture, and the limits that hold it.
Not here: words (`inputs.text`), tiles as tensors (`kernels`), HTTP routes, torch.
"""
