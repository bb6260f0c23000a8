from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest


_PAGES = """
import resource
from optuna_ext._allocator import keep_freed_memory

keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(24 * 2**20)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(pages)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library is not glibc")
@pytest.mark.parametrize("chosen", [{}, {"MALLOC_MMAP_THRESHOLD_": "131072"}])
def test_freed_memory_is_kept_unless_the_user_has_chosen(chosen: dict[str, str]) -> None:
    """What is allocated again then costs no new pages."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", _PAGES]
    found = subprocess.run(command, env=inherited | chosen, capture_output=True, check=True)
    assert (int(found.stdout) < 100) == (not chosen)
