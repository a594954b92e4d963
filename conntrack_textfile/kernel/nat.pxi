"""nat.py in C: translated entries and the source ports that they use."""

cdef enum:
    KEY_SIZE = 24
# Indexes of Translations.connections, in the order of the names.
cdef enum:
    BOTH = 0
    DNAT = 1
    SNAT = 2


cdef struct EgressRow:
    uint8_t address[16]
    uint8_t l3
    uint8_t l4
    uint8_t padding[6]
    # After the key:
    uint32_t connections
    uint32_t ports              # the most towards one destination


cdef struct DestinationRow:
    uint8_t address[16]
    uint8_t port[2]             # in network byte order, as the zone: rows are sorted by their bytes
    uint8_t zone[2]
    uint32_t egress             # number of its row
    # After the key:
    uint32_t ports
    uint32_t padding


cdef bint smaller_egress(
    const uint8_t *one, const uint8_t *other, size_t key_size, int measure
) noexcept nogil:
    """Whether a row has fewer ports than another, then connections, then a later key."""
    cdef const EgressRow *a = <const EgressRow *>one
    cdef const EgressRow *b = <const EgressRow *>other
    if a.ports != b.ports:
        return a.ports < b.ports
    if a.connections != b.connections:
        return a.connections < b.connections
    return memcmp(one, other, key_size) > 0


cdef bint smaller_destination(
    const uint8_t *one, const uint8_t *other, size_t key_size, int measure
) noexcept nogil:
    cdef uint32_t a = (<const DestinationRow *>one).ports
    cdef uint32_t b = (<const DestinationRow *>other).ports
    return a < b if a != b else memcmp(one, other, key_size) > 0


@cython.final
cdef class Translations:
    """The twin of nat.Translations."""

    cdef Plan plan
    cdef uint64_t connections[2][256][3]    # IPv4 and IPv6, by protocol
    cdef Table egress                       # of EgressRow
    cdef Table destinations                 # of DestinationRow
    cdef bint has_zones                     # other than 0
    cdef DestinationRow batch[BATCH]        # destinations that are not counted yet
    cdef uint64_t hashes[BATCH]
    cdef int batch_size

    def __cinit__(self, Plan plan not None):
        self.plan = plan
        self.egress = Table(KEY_SIZE, sizeof(EgressRow))
        self.destinations = Table(KEY_SIZE, sizeof(DestinationRow))

    cdef inline int add(self, const Entry *entry) except -1 nogil:
        cdef bint snat = entry.reply_dport != entry.sport or not same_address(
            entry.reply_dst, entry.src
        )
        cdef bint dnat = entry.reply_sport != entry.dport or not same_address(
            entry.reply_src, entry.dst
        )
        if snat or dnat:
            self.connections[entry.l3 == 6][entry.l4][(BOTH if dnat else SNAT) if snat else DNAT] += 1
            if snat:
                self.add_egress(entry)
        return 0

    cdef int add_egress(self, const Entry *entry) except -1 nogil:
        cdef EgressRow key
        cdef EgressRow *row
        cdef DestinationRow *destination
        memset(&key, 0, sizeof(key))
        memcpy(key.address, entry.reply_dst, 16)
        key.l3, key.l4 = entry.l3, entry.l4
        row = <EgressRow *>self.egress.add(<uint8_t *>&key)
        row.connections += 1
        if with_ports[entry.l4] or id_of[entry.l4]:
            if self.batch_size == BATCH:
                self.count_batch()
            destination = &self.batch[self.batch_size]
            memcpy(destination.address, entry.reply_src, 16)
            put(destination.port, 2, entry.reply_sport)
            put(destination.zone, 2, entry.reply_zone)
            destination.egress = self.egress.number_of(row)
            self.hashes[self.batch_size] = self.destinations.hash(<uint8_t *>destination)
            self.destinations.prefetch(self.hashes[self.batch_size])
            self.batch_size += 1
            self.has_zones = self.has_zones or entry.reply_zone != 0
        return 0

    cdef int count_batch(self) except -1 nogil:
        """Count the batch. If there is no memory, keep what is not counted yet."""
        cdef int i
        cdef uint8_t *row
        for i in range(self.batch_size):
            self.destinations.prefetch_row(self.hashes[i])
        while self.batch_size:
            i = self.batch_size - 1
            row = self.destinations.add_hashed(<uint8_t *>&self.batch[i], self.hashes[i])
            (<DestinationRow *>row).ports += 1
            self.batch_size = i
        return 0

    cdef inline DestinationRow *destination(self, uint32_t number) noexcept nogil:
        return <DestinationRow *>self.destinations.row(number)

    cdef inline EgressRow *egress_row(self, uint32_t number) noexcept nogil:
        return <EgressRow *>self.egress.row(number)

    cdef int merge_zones(self, Table merged) except -1 nogil:
        """Write each destination to merged, with its largest number of ports in any zone."""
        cdef DestinationRow key
        cdef DestinationRow *row
        cdef uint32_t i
        for i in range(self.destinations.count):
            key = self.destination(i)[0]
            memset(key.zone, 0, sizeof(key.zone))
            row = <DestinationRow *>merged.add(<uint8_t *>&key)
            row.ports = max(row.ports, key.ports)
        return 0

    def nat(self, uint32_t limit, uint32_t destinations):
        """See tally.Translations."""
        cdef uint32_t count = self.egress.count
        cdef uint32_t *heap = NULL              # of egress rows
        cdef uint32_t *held = NULL              # by egress row: number of its destinations
        cdef size_t *start = NULL               # by egress row: where its heap begins in heaps
        cdef uint8_t *is_kept = NULL            # by egress row
        cdef uint32_t *heaps = NULL             # of destinations, one for each egress row that is kept
        cdef uint64_t connections[256]          # of the other egress rows, by protocol
        cdef uint32_t ports[256]
        cdef uint32_t kept = 0
        cdef uint32_t i, row
        cdef size_t length = 0
        cdef EgressRow *egress
        cdef Ranking by
        cdef Table merged
        self.count_batch()
        if self.has_zones:
            merged = Table(KEY_SIZE, sizeof(DestinationRow))
            with nogil:
                self.merge_zones(merged)
            self.destinations, self.has_zones = merged, False
        try:
            heap = <uint32_t *>calloc(count + 1, sizeof(uint32_t))
            held = <uint32_t *>calloc(count + 1, sizeof(uint32_t))
            start = <size_t *>calloc(count + 1, sizeof(size_t))
            is_kept = <uint8_t *>calloc(count + 1, 1)
            if heap == NULL or held == NULL or start == NULL or is_kept == NULL:
                raise MemoryError
            memset(connections, 0, sizeof(connections))
            memset(ports, 0, sizeof(ports))
            with nogil:
                for i in range(self.destinations.count):
                    row = self.destination(i).egress
                    egress = self.egress_row(row)
                    egress.ports = max(egress.ports, self.destination(i).ports)
                    held[row] += 1
                by = ranking_of(self.egress, smaller_egress, 0)
                for i in range(count):
                    offer(&by, heap, &kept, limit if limit else count, i)
                for i in range(kept):
                    row = heap[i]
                    is_kept[row] = True
                    start[row] = length
                    length += min(held[row], destinations)
                    held[row] = 0
                for i in range(count):
                    if not is_kept[i]:
                        egress = self.egress_row(i)
                        connections[egress.l4] += egress.connections
                        ports[egress.l4] = max(ports[egress.l4], egress.ports)
            heaps = <uint32_t *>calloc(length + 1, sizeof(uint32_t))
            if heaps == NULL:
                raise MemoryError
            with nogil:
                by = ranking_of(self.destinations, smaller_destination, 0)
                if destinations:
                    for i in range(self.destinations.count):
                        row = self.destination(i).egress
                        if is_kept[row]:
                            offer(&by, heaps + start[row], &held[row], destinations, i)
            rows = [
                self.shown(self.egress_row(heap[i]), heaps + start[heap[i]], held[heap[i]])
                for i in range(kept)
            ]
        finally:
            free(heap)
            free(held)
            free(start)
            free(is_kept)
            free(heaps)
        rows.sort(key=itemgetter(0))
        return Nat(
            self.counts(),
            [shown for _, shown in rows]
            + [
                Egress(OTHER, self.plan.protocol_names[l4], connections[l4], ports[l4], [])
                for l4 in range(256)
                if connections[l4]
            ],
        )

    cdef tuple shown(self, const EgressRow *egress, const uint32_t *heap, uint32_t count):
        """A pair of the order and the Egress of a row."""
        cdef const DestinationRow *row
        cdef uint32_t i
        busiest = []
        for i in range(count):
            row = self.destination(heap[i])
            order = -<int64_t>row.ports, (<const char *>row)[:18]  # address and port
            dport = str(get(row.port, 2))
            busiest.append((order, (address_text(egress.l3, row.address), dport, row.ports)))
        busiest.sort(key=itemgetter(0))
        return (
            (egress.l3, (<const char *>egress.address)[:16], egress.l4),
            Egress(
                address_text(egress.l3, egress.address),
                self.plan.protocol_names[egress.l4],
                egress.connections,
                egress.ports,
                [shown for _, shown in busiest],
            ),
        )

    cdef dict counts(self):
        cdef int v6, l4, kind
        found = {}
        for v6 in range(2):
            for l4 in range(256):
                for kind in range(3):
                    if self.connections[v6][l4][kind]:
                        name = ("both", "dnat", "snat")[kind]
                        at = "ipv6" if v6 else "ipv4", self.plan.protocol_names[l4], name
                        found[at] = self.connections[v6][l4][kind]
        return found
