"""Memory that a process keeps."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TOUCHED = """
import resource
import numpy as np
from jaxcell.training.allocator import keep_freed_memory
if {keep}:
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(50_000_000, np.uint8)
before = faults()
np.ones(50_000_000, np.uint8)
print(faults() - before)
"""


def page_faults(keep: bool) -> int:
    """Pages that the kernel hands out for an array as large as one that was just freed."""
    said = subprocess.run([sys.executable, "-c", TOUCHED.format(keep=keep)], capture_output=True, text=True, check=True)
    return int(said.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library, which is left as it is")
def test_freed_memory_is_used_again():
    assert page_faults(keep=True) < 100 < page_faults(keep=False)
