"""Building blocks of models: they hold parameters, know tensor-parallel ranks, and call kernels."""
