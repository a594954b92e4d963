"""grouping.py in C: entries summed by group."""


cdef struct Total:
    # Sums: connections, and four numbers of 64 bits with their carries.
    uint64_t connections
    uint64_t low[4]
    uint32_t carry[4]


cdef inline void add_counters(
    Total *total, uint64_t connections, const uint64_t *counters
) noexcept nogil:
    cdef int i
    total.connections += connections
    for i in range(4):
        total.low[i] += counters[i]
        total.carry[i] += total.low[i] < counters[i]


cdef inline uint128_t sum_of(const Total *total, int field) noexcept nogil:
    return (<uint128_t>total.carry[field] << 64) | total.low[field]


cdef int_of(const Total *total, int field):
    """A field of Sums as a Python int."""
    if field == 0:
        return total.connections
    if total.carry[field - 1]:
        return (<object>total.carry[field - 1] << 64) | <object>total.low[field - 1]
    return total.low[field - 1]


cdef Sums_of(const Total *total):
    return Sums(*[int_of(total, field) for field in range(5)])


# Measures by which groups are ranked.
cdef enum:
    CONNECTIONS = 0
    PACKETS = 1
    BYTES = 2


cdef inline uint128_t measured(const Total *total, int measure) noexcept nogil:
    if measure == CONNECTIONS:
        return total.connections
    return sum_of(total, measure - 1) + sum_of(total, measure + 1)


cdef bint smaller_group(
    const uint8_t *one, const uint8_t *other, size_t group_size, int measure
) noexcept nogil:
    """Whether a row is smaller than another; of equal ones, the later group is smaller."""
    cdef uint128_t a = measured(<const Total *>(one + group_size), measure)
    cdef uint128_t b = measured(<const Total *>(other + group_size), measure)
    return a < b if a != b else memcmp(one, other, group_size) > 0


cdef int compare_groups(const void *one, const void *other, void *size) noexcept nogil:
    return memcmp(one, other, (<size_t *>size)[0])


cdef int compare_numbers(const void *one, const void *other) noexcept nogil:
    cdef uint32_t a = (<const uint32_t *>one)[0]
    cdef uint32_t b = (<const uint32_t *>other)[0]
    return (a > b) - (a < b)


@cython.final
cdef class Groups:
    """The twin of grouping._Groups: see tally.Groups. A row is a group and its Total."""

    cdef Plan plan
    cdef Table table
    cdef bint taken             # rows() was called

    def __cinit__(self, Plan plan not None):
        self.plan = plan
        self.table = Table(plan.group_size, plan.group_size + sizeof(Total))

    def __len__(self):
        return self.table.count

    cdef inline Total *total(self, uint32_t row) noexcept nogil:
        return <Total *>(self.table.row(row) + self.plan.group_size)

    cdef bytes group(self, uint32_t row):
        return (<const char *>self.table.row(row))[:self.plan.group_size]

    cdef const uint8_t *find(self, bytes group) except? NULL:
        """The row of a group, or NULL."""
        if self.taken:
            raise ValueError("the rows were taken")
        return self.table.find(self.checked(group))

    cdef const uint8_t *checked(self, bytes group) except NULL:
        if <size_t>len(group) != self.plan.group_size:
            raise ValueError("a key of another plan")
        return <const uint8_t *><const char *>group

    def labels(self, bytes key):
        try:
            return self.plan.labels_of(self.checked(key))
        except IndexError:
            raise ValueError("a key of another plan") from None

    def get(self, keys):
        cdef const uint8_t *row
        found = []
        for key in keys:
            row = self.find(key)
            found.append(Sums_of(<const Total *>(row + self.plan.group_size)) if row else None)
        return found

    def largest(self, uint32_t limit, by, without=()):
        cdef int measure = measure_of(by)
        cdef uint32_t count = self.table.count
        cdef uint8_t *excluded = NULL
        cdef uint32_t *heap = NULL
        cdef const uint8_t *row
        cdef uint32_t kept
        try:
            excluded = <uint8_t *>calloc(count + 1, 1)
            heap = <uint32_t *>calloc(min(limit, count) + 1, sizeof(uint32_t))
            if excluded == NULL or heap == NULL:
                raise MemoryError
            for key in without:
                row = self.find(key)
                if row != NULL:
                    excluded[self.table.number_of(row)] = True
            kept = self.select(heap, limit, measure, excluded)
            rows = [(self.group(heap[i]), Sums_of(self.total(heap[i]))) for i in range(kept)]
        finally:
            free(excluded)
            free(heap)
        rows.sort(key=partial(_descending, measure))
        return rows

    def rows(self, uint32_t limit, by):
        cdef int measure = measure_of(by)
        cdef uint32_t i, kept
        cdef uint32_t *heap
        if self.taken:
            raise ValueError("the rows were taken")
        self.taken = True  # rows move: the index of the table becomes invalid
        if 0 < limit < self.table.count:
            heap = <uint32_t *>calloc(limit, sizeof(uint32_t))
            if heap == NULL:
                raise MemoryError
            with nogil:
                kept = self.select(heap, limit, measure, NULL)
                qsort(heap, kept, sizeof(uint32_t), compare_numbers)
                for i in range(kept):  # heap[i] >= i: no row is overwritten before it has moved
                    memmove(self.table.row(i), self.table.row(heap[i]), self.table.row_size)
            free(heap)
            self.table.count = kept
        with nogil:
            self.table.freeze()
            qsort_r(
                self.table.rows,
                self.table.count,
                self.table.row_size,
                compare_groups,
                &self.table.key_size,
            )
        return Rows(_Labels(self), tuple([_Column(self, field) for field in range(5)]))

    cdef uint32_t select(
        self, uint32_t *heap, uint32_t limit, int measure, const uint8_t *excluded
    ) noexcept nogil:
        """Fill a heap with the numbers of the largest rows. Return how many there are."""
        cdef Ranking by = ranking_of(self.table, smaller_group, measure)
        cdef uint32_t count = 0
        cdef uint32_t i
        for i in range(self.table.count):
            if excluded == NULL or not excluded[i]:
                offer(&by, heap, &count, limit, i)
        return count


cdef int measure_of(by) except -1:
    return ("connections", "packets", "bytes").index(by)


def _descending(int measure, row):
    key, sums = row
    return -(sums[0] if measure == CONNECTIONS else sums[measure] + sums[measure + 2]), key


@cython.final
cdef class _Labels:
    """The labels of all rows, made when they are read."""

    cdef Groups groups

    def __init__(self, Groups groups):
        self.groups = groups

    def __len__(self):
        return self.groups.table.count

    def __getitem__(self, uint32_t i):
        if i >= self.groups.table.count:
            raise IndexError
        return self.groups.plan.labels_of(self.groups.table.row(i))

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.groups.table.count):
            yield self.groups.plan.labels_of(self.groups.table.row(i))


@cython.final
cdef class _Column:
    """One field of Sums of all rows, made when it is read."""

    cdef Groups groups
    cdef int field

    def __init__(self, Groups groups, int field):
        self.groups = groups
        self.field = field

    def __len__(self):
        return self.groups.table.count

    def __getitem__(self, uint32_t i):
        if i >= self.groups.table.count:
            raise IndexError
        return int_of(self.groups.total(i), self.field)

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.groups.table.count):
            yield int_of(self.groups.total(i), self.field)


cdef struct Addition:
    uint8_t group[MAX_GROUP]
    uint64_t hashed
    uint64_t connections
    uint64_t counters[4]


@cython.final
cdef class Grouping:
    """The twin of grouping.Grouping."""

    cdef Plan plan
    cdef Groups groups
    cdef Addition batch[BATCH]              # to the sums of groups
    cdef int batch_size
    cdef uint64_t filtered
    cdef uint64_t malformed
    cdef uint64_t uncounted
    cdef bint has_entries[2][256]               # IPv4 and IPv6, by protocol
    cdef bint has_sums[2][256]                  # not if the filters removed all its entries
    cdef Total totals[2][256]
    cdef uint64_t states[2][256][MAX_STATES]
    cdef uint64_t flags[2][256][FLAG_COUNT]
    cdef bytes first_malformed
    cdef Translations translations              # or None
    cdef bint finished

    def __cinit__(self, Plan plan not None):
        self.plan = plan
        self.groups = Groups(plan)
        self.first_malformed = b""
        self.translations = Translations(plan) if plan.nat else None

    cdef bint add(self, const Entry *entry, uint8_t *group) except -1 nogil:
        """Count an entry. Return whether it passes the filters, and write its group if so."""
        cdef int v6 = entry.l3 == 6
        cdef int i
        cdef bint passes = self.plan.passes(entry)
        if passes:
            self.plan.group_of(entry, group)
            self.add_sums(group, entry, 1, entry.counters)
        else:
            self.filtered += 1
        self.has_entries[v6][entry.l4] = True
        self.uncounted += not entry.counted
        if entry.state != NO_STATE:
            self.states[v6][entry.l4][entry.state] += 1
        for i in range(FLAG_COUNT):
            self.flags[v6][entry.l4][i] += entry.flags >> i & 1
        if self.translations is not None:
            self.translations.add(entry)
        return passes

    cdef int add_sums(
        self, const uint8_t *group, const Entry *entry, uint64_t connections, const uint64_t *counters
    ) except -1 nogil:
        """Add counters to a group and to the protocols of an entry."""
        cdef int v6 = entry.l3 == 6
        cdef Addition *addition
        self.make_room()
        addition = &self.batch[self.batch_size]
        memcpy(addition.group, group, self.plan.group_size)
        memcpy(addition.counters, counters, sizeof(addition.counters))
        addition.connections = connections
        addition.hashed = self.groups.table.hash(group)
        self.groups.table.prefetch(addition.hashed)
        self.batch_size += 1
        add_counters(&self.totals[v6][entry.l4], connections, counters)
        self.has_entries[v6][entry.l4] = self.has_sums[v6][entry.l4] = True
        return 0

    cdef inline int make_room(self) except -1 nogil:
        """Add a full batch. After it the next add_sums() cannot fail."""
        if self.batch_size == BATCH:
            self.add_batch()
        return 0

    cdef int add_batch(self) except -1 nogil:
        """Add the batch to the sums. If there is no memory, keep what is not added yet."""
        cdef const Addition *addition
        cdef uint8_t *row
        cdef int i
        for i in range(self.batch_size):
            self.groups.table.prefetch_row(self.batch[i].hashed)
        while self.batch_size:
            addition = &self.batch[self.batch_size - 1]
            row = self.groups.table.add_hashed(addition.group, addition.hashed)
            add_counters(
                <Total *>(row + self.plan.group_size), addition.connections, addition.counters
            )
            self.batch_size -= 1
        return 0

    cdef int add_malformed(self, const void *data, size_t size) except -1 nogil:
        if self.malformed == 0:
            with gil:
                self.first_malformed = (<const char *>data)[:min(size, MAX_LINE + 1)]
        self.malformed += 1
        return 0

    cdef check_open(self):
        # The tally shares the groups.
        if self.finished:
            raise ValueError("the decoder is finished")

    cdef tally(self):
        cdef int v6, l4, i
        self.add_batch()
        self.finished = True
        totals, states, flags = {}, {}, {}
        for v6 in range(2):
            l3 = "ipv6" if v6 else "ipv4"
            for l4 in range(256):
                if not self.has_entries[v6][l4]:
                    continue
                name = self.plan.protocol_names[l4]
                if self.has_sums[v6][l4]:
                    totals[l3, name] = Sums_of(&self.totals[v6][l4])
                for i, state in sorted(
                    enumerate((*uapi.STATES.get(l4, ()), uapi.UNKNOWN_STATE)), key=itemgetter(1)
                ):
                    if self.states[v6][l4][i]:
                        states[l3, name, state] = self.states[v6][l4][i]
                for i, flag in sorted(enumerate(uapi.FLAGS), key=itemgetter(1)):
                    if self.flags[v6][l4][i]:
                        flags[l3, name, flag] = self.flags[v6][l4][i]
        return Tally(
            self.groups,
            totals,
            self.filtered,
            self.malformed,
            self.first_malformed,
            self.uncounted,
            states,
            flags,
            self.translations,
        )
