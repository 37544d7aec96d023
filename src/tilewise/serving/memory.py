"""What the C library does with freed memory in the server's process."""

import ctypes

# <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Above a read from a socket (256 KiB), which would cost a mapping each time.
_LARGE_BYTES = 1 << 20
_KEPT_BYTES = 4 << 20


def give_back_large_blocks() -> bool:
    """Give every block of a MiB or more back to the system when it is freed; False where the C library is not glibc.

    glibc by itself does so at first, and ends it for all blocks up to 32 MiB when the first such one is freed: what
    large bodies and pictures took would be kept after they have left.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES) and library.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
