"""The Triton kernels, one operation a file, and how they are launched.

Here: kernels that decline what they cannot serve, with a reason; Triton is imported inside functions.
Not here: the choice between a kernel and its twin (`kernels.dispatch`), layers, models.
"""
