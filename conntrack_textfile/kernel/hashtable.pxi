"""The hash table of the compiled engine, and a heap that selects the largest of its rows."""


cdef enum:
    BATCH = 16                  # rows that are looked up together: see Table.prefetch()
    MIN_CAPACITY = 256
    MAX_CAPACITY = 1 << 30


@cython.final
cdef class Table:
    """A hash table: an array of rows without gaps, and an index into it by key.

    A row begins with its key; the sizes of both are multiples of 8 bytes. The index uses
    open addressing with linear probing and is at most half full. The hash is keyed
    (os.urandom), so that addresses that collide cannot be chosen from outside. A pointer
    to a row is valid until the next add(), remove() or shrink().
    """

    cdef uint8_t *rows
    cdef uint32_t *index        # row number + 1, or 0 for an empty place
    cdef uint32_t count
    cdef uint32_t capacity      # of rows, a power of 2; the index has twice as many places
    cdef size_t key_size
    cdef size_t row_size
    cdef uint64_t secret[2]

    def __cinit__(self, size_t key_size, size_t row_size):
        assert key_size % 8 == row_size % 8 == 0 < key_size <= row_size
        self.key_size = key_size
        self.row_size = row_size
        cdef bytes random = os.urandom(sizeof(self.secret))
        memcpy(self.secret, <const char *>random, sizeof(self.secret))
        self.secret[1] |= 1
        if not self.resize(MIN_CAPACITY):
            raise MemoryError

    def __dealloc__(self):
        free(self.rows)
        free(self.index)

    cdef inline uint8_t *row(self, uint32_t number) noexcept nogil:
        return self.rows + number * self.row_size

    cdef inline uint32_t number_of(self, const void *row) noexcept nogil:
        return <uint32_t>(<size_t>(<const uint8_t *>row - self.rows) / self.row_size)

    cdef inline uint64_t hash(self, const uint8_t *key) noexcept nogil:
        cdef uint64_t word
        cdef uint64_t hashed = self.secret[0]
        cdef size_t i
        for i in range(0, self.key_size, 8):
            memcpy(&word, key + i, 8)
            hashed = ctf_mix(hashed ^ word, self.secret[1] + i)
        return hashed ^ (hashed >> 32)

    cdef inline uint32_t place(self, const uint8_t *key, uint64_t hashed) noexcept nogil:
        """The place of a key in the index, or the empty one where it is to be inserted."""
        cdef uint32_t mask = self.capacity * 2 - 1
        cdef uint32_t at = <uint32_t>hashed & mask
        while self.index[at] and memcmp(self.row(self.index[at] - 1), key, self.key_size):
            at = (at + 1) & mask
        return at

    cdef inline void prefetch(self, uint64_t hashed) noexcept nogil:
        """Load the place of a key into the cache of the processor.

        In a large table the time of a lookup is that of its cache misses. Those of a batch
        overlap: prefetch() each, then prefetch_row() each, then add_hashed() each.
        """
        prefetch(&self.index[<uint32_t>hashed & (self.capacity * 2 - 1)])

    cdef inline void prefetch_row(self, uint64_t hashed) noexcept nogil:
        cdef uint32_t number = self.index[<uint32_t>hashed & (self.capacity * 2 - 1)]
        cdef const uint8_t *row
        if number:
            row = self.row(number - 1)
            prefetch(row)
            prefetch(row + self.row_size - 1)

    cdef inline uint8_t *find(self, const uint8_t *key) noexcept nogil:
        """The row of a key, or NULL."""
        if not self.count:
            return NULL
        cdef uint32_t number = self.index[self.place(key, self.hash(key))]
        return self.row(number - 1) if number else NULL

    cdef inline uint8_t *add(self, const uint8_t *key) except NULL nogil:
        """The row of a key; a new one has zeros after the key."""
        return self.add_hashed(key, self.hash(key))

    cdef inline uint8_t *add_hashed(self, const uint8_t *key, uint64_t hashed) except NULL nogil:
        cdef uint32_t at = self.place(key, hashed)
        return self.row(self.index[at] - 1) if self.index[at] else self.insert(key, hashed, at)

    cdef uint8_t *insert(self, const uint8_t *key, uint64_t hashed, uint32_t at) except NULL nogil:
        cdef uint8_t *row
        if self.count == self.capacity:
            self.make_room()
            at = self.place(key, hashed)
        row = self.row(self.count)
        memcpy(row, key, self.key_size)
        memset(row + self.key_size, 0, self.row_size - self.key_size)
        self.count += 1
        self.index[at] = self.count
        return row

    cdef int make_room(self) except -1 nogil:
        """Grow a table that is full. After it the next add() cannot fail."""
        if self.count == self.capacity and not self.resize(self.capacity * 2):
            with gil:
                raise MemoryError
        return 0

    cdef bint resize(self, uint32_t capacity) noexcept nogil:
        """Change the capacity. Return False, with the table as it was, if there is no memory."""
        cdef uint32_t *index = NULL
        cdef uint8_t *rows = NULL
        cdef uint32_t i, at
        cdef uint32_t mask = capacity * 2 - 1
        if capacity <= MAX_CAPACITY:
            index = <uint32_t *>calloc(<size_t>capacity * 2, sizeof(uint32_t))
            if index != NULL:
                rows = <uint8_t *>realloc(self.rows, capacity * self.row_size)
        if rows == NULL:
            free(index)
            return False
        free(self.index)
        self.index, self.rows, self.capacity = index, rows, capacity
        for i in range(self.count):
            at = <uint32_t>self.hash(self.row(i)) & mask
            while index[at]:  # no two keys are equal
                at = (at + 1) & mask
            index[at] = i + 1
        return True

    cdef void remove(self, uint32_t number) noexcept nogil:
        """Remove a row. The last row moves to its place."""
        cdef uint32_t mask = self.capacity * 2 - 1
        cdef uint8_t *row = self.row(number)
        cdef uint8_t *last = self.row(self.count - 1)
        cdef uint32_t hole = self.place(row, self.hash(row))
        cdef uint32_t at = hole
        cdef uint32_t home
        # An empty place ends a search, so move up the entries that were displaced past the hole.
        while True:
            at = (at + 1) & mask
            if not self.index[at]:
                break
            home = <uint32_t>self.hash(self.row(self.index[at] - 1)) & mask
            if (at - home & mask) >= (at - hole & mask):
                self.index[hole] = self.index[at]
                hole = at
        self.index[hole] = 0
        if row != last:
            self.index[self.place(last, self.hash(last))] = number + 1
            memcpy(row, last, self.row_size)
        self.count -= 1

    cdef void shrink(self) noexcept nogil:
        """Free memory after many rows were removed."""
        while self.capacity > MIN_CAPACITY and self.count < self.capacity // 4:
            if not self.resize(self.capacity // 2):
                return

    cdef void freeze(self) noexcept nogil:
        """Free all memory but that of the rows. The table can only be iterated from then on."""
        cdef uint8_t *rows
        free(self.index)
        self.index = NULL
        rows = <uint8_t *>realloc(self.rows, max(self.count, 1) * self.row_size)
        if rows != NULL:
            self.rows = rows


ctypedef bint (*Smaller)(const uint8_t *, const uint8_t *, size_t, int) noexcept nogil


cdef struct Ranking:
    # An order of the rows of a table.
    const uint8_t *rows
    size_t row_size
    Smaller smaller             # of two rows, the size of their keys, and the measure
    size_t key_size
    int measure


cdef inline Ranking ranking_of(Table table, Smaller smaller, int measure) noexcept nogil:
    cdef Ranking by
    by.rows, by.row_size, by.key_size = table.rows, table.row_size, table.key_size
    by.smaller, by.measure = smaller, measure
    return by


cdef inline bint is_smaller(const Ranking *by, uint32_t one, uint32_t other) noexcept nogil:
    return by.smaller(
        by.rows + one * by.row_size, by.rows + other * by.row_size, by.key_size, by.measure
    )


cdef void sift_down(const Ranking *by, uint32_t *heap, uint32_t count, uint32_t at) noexcept nogil:
    cdef uint32_t row = heap[at]
    cdef uint32_t child
    while at * 2 + 1 < count:
        child = at * 2 + 1
        if child + 1 < count and is_smaller(by, heap[child + 1], heap[child]):
            child += 1
        if not is_smaller(by, heap[child], row):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = row


cdef void offer(
    const Ranking *by, uint32_t *heap, uint32_t *count, uint32_t limit, uint32_t row
) noexcept nogil:
    """Put a row number into a heap of the largest rows, which has the smallest of them as its root."""
    cdef uint32_t at
    if count[0] < limit:
        heap[count[0]] = row
        count[0] += 1
        if count[0] == limit:
            for at in range(limit, 0, -1):
                sift_down(by, heap, limit, at - 1)
    elif limit and is_smaller(by, heap[0], row):
        heap[0] = row
        sift_down(by, heap, limit, 0)
