# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The compiled engine: the results of the pure one, without a Python object for each entry.

Each file that is included has the C of the module of the same name, which describes the
formats and rules; hashtable.pxi serves all of them. They are one extension module, so that
the C compiler sees the whole path of an entry and can inline across the files. Input is
hostile: every read is checked against the end of its buffer.
"""

cimport cython
from libc.errno cimport EAGAIN, EINTR, ENOBUFS, EPROTO
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset, strlen

import os
from functools import partial
from operator import itemgetter

from conntrack_textfile import protocols, services
from conntrack_textfile.kernel import uapi
from conntrack_textfile.plan import OTHER
from conntrack_textfile.tally import Egress, Nat, Rows, Sums, Tally

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>

    /* The 128 bits of a product, folded to 64. */
    static inline uint64_t ctf_mix(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    ctypedef uint64_t uint128_t "unsigned __int128"  # Cython knows no wider type: for C arithmetic alone
    int inet_pton(int, const char *, void *) nogil
    const char *inet_ntop(int, const void *, char *, uint32_t) nogil
    void qsort_r(
        void *, size_t, size_t, int (*)(const void *, const void *, void *) noexcept nogil, void *
    ) nogil
    uint64_t ctf_mix(uint64_t, uint64_t) nogil
    void prefetch "__builtin_prefetch" (const void *) nogil
    enum: AF_INET
    enum: AF_INET6


include "uapi.pxi"
include "hashtable.pxi"
include "plan.pxi"
include "nat.pxi"
include "grouping.pxi"
include "procfile.pxi"
include "ctnetlink.pxi"
include "ledger.pxi"
