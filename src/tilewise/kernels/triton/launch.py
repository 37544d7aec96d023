"""How Triton kernels are launched: where there is Triton, and, in a decode step, one kernel into the end of another.

With programmatic dependent launch a kernel's programs start while those of the kernel before it end, and wait for that
end where it matters. As that one lets them start before its own wait, several kernels may be under way: what any kernel
writes or reads since the last one that was launched plainly is touched behind the wait alone. A decode step is hundreds
of short kernels; without this every one of them begins with an idle device.

Source: CUDA C++ programming guide, "programmatic dependent launch and synchronization".
"""

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from tilewise.kernels.optimisations import Optimisation, is_left_out

_LEAST_CAPABILITY = (9, 0)
# PERF: a decode step of 1 row takes 10.02 ms instead of 10.23, of 16 rows 11.70 instead of 11.86, but of 32 rows 13.25
# instead of 13.22 and of 64 rows 17.06 instead of 16.92 (26B, H200, 2026-11-28).
_MOST_ROWS = 16


@cache
def has_triton() -> bool:
    """Triton is installed."""
    return find_spec("triton") is not None


@cache
def can_depend(device: torch.device) -> bool:
    """Tell whether this device launches a kernel into the end of another."""
    if device.type != "cuda" or torch.version.cuda is None:  # AMD's devices are called cuda too
        return False
    return torch.cuda.get_device_capability(device) >= _LEAST_CAPABILITY


def depend(device: torch.device, num_rows: int) -> dict[str, bool]:
    """Return how a kernel that calls `await_inputs` is launched here in a step of so many rows."""
    if num_rows > _MOST_ROWS or not can_depend(device) or is_left_out(Optimisation.DEPENDENT_LAUNCHES):
        return {"IS_DEPENDENT": False}
    return {"IS_DEPENDENT": True, "launch_pdl": True}


@cache
def await_inputs() -> Any:
    """Return the device function that lets the next kernel begin, and waits until the one before has ended."""
    import triton
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    @triton.jit
    def await_inputs():
        gdc_launch_dependents()
        gdc_wait()

    return await_inputs
