"""Keeps the memory of a CPU step in the process between steps, and frees compiled programs before they are too many.

XLA's CPU client asks malloc for a step's temporary buffers anew each time.  glibc serves requests that large with
mmap, so every step the kernel maps and clears each 4 KiB page again: 116,000 page faults and a quarter of the step's
CPU time for configs/v3_tiny.py.  Buffers kept in the heap, on huge pages where the kernel grants them, cause none.
"""

import ctypes
import functools
import gc
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # malloc.h
MADV_HUGEPAGE = 14  # sys/mman.h
HUGE_PAGE = 2 << 20
MOST_MAPPINGS = 20_000  # of the 65,530 that Linux grants a process


@functools.cache
def keep(reserve_bytes: int = 4 << 30) -> bool:
    """Makes malloc keep and reuse large blocks; call before jax starts its threads, with the first use of its devices.

    Memory that threads from before ask for is still mapped anew at each step.  Further calls do nothing.

    `reserve_bytes` of address space (not of memory) are marked for huge pages.  Returns False if the C library has no
    such settings, which only costs speed.
    """
    try:
        libc = ctypes.CDLL("libc.so.6", use_errno=True)
        settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1), (M_ARENA_MAX, 1))
        if not all(libc.mallopt(option, value) for option, value in settings):
            return False
    except (OSError, AttributeError):
        return False
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(ctypes.c_size_t(reserve_bytes))
    if block:
        start = -(-block // HUGE_PAGE) * HUGE_PAGE
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(block + reserve_bytes - start), MADV_HUGEPAGE)
        libc.free(ctypes.c_void_p(block))
    return True


def free_programs(most: int = MOST_MAPPINGS):
    """Clears jax's cache of compiled programs if the process has more than `most` memory mappings; call between runs.

    A compiled kernel takes three mappings, a training run of a small decoder 1,200, and jax keeps them.  Exceeding the
    limit, after some fifty runs, ends the process with SIGSEGV.
    """
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > most:
        import jax

        jax.clear_caches()
        gc.collect()
