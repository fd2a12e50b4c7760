"""What the C library does with memory that a step has given back."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

MMAP_MAX, TRIM_THRESHOLD, ARENA_MAX = -4, -1, -8    # of mallopt(3)


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for its next allocations.

    A training step on a CPU takes and frees hundreds of megabytes. glibc gives such pieces back to the kernel, which hands them
    out again page by page, each cleared: an eighth of a step's time (benchmarks/README.md). For a process whose every step needs
    the same; its memory never shrinks.

    Returns:
      Whether the C library took the setting; others than glibc have none and need none.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    return all([set_option(MMAP_MAX, 0), set_option(TRIM_THRESHOLD, -1), set_option(ARENA_MAX, 1)])
