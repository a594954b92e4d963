/* Allocations that fail, for the code of one library: with LD_PRELOAD and glibc.
   See tests/kernel/test_speedups.py. */

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);

uintptr_t failing_start, failing_end; /* addresses of the library */
long failing_after = -1;              /* calls until the first that fails; -1 for none */
long failing_count;                   /* calls that fail in a row */
long failed;                          /* calls that have failed */

static int fails(const void *caller) {
    uintptr_t at = (uintptr_t)caller;
    if (failing_after < 0 || at < failing_start || at >= failing_end)
        return 0;
    if (failing_after > 0) {
        failing_after--;
        return 0;
    }
    if (failing_count <= 0)
        return 0;
    failing_count--;
    failed++;
    errno = ENOMEM;
    return 1;
}

void *calloc(size_t count, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size);
}
