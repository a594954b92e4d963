"""ledger.py in C: the counters of each connection as last seen, and the traffic since."""

cdef extern from *:
    """
    #include <errno.h>
    #include <linux/netlink.h>
    #include <sys/socket.h>
    #include <sys/uio.h>

    /* The buffers of one recvmmsg(2). An event is one datagram of some hundred bytes. */
    typedef struct {
        struct mmsghdr headers[128];
        struct iovec vectors[128];
        struct sockaddr_nl senders[128];
        unsigned char data[128][4096];
    } ctf_datagrams;

    /* Receive up to 128 datagrams without waiting. Return their number or a negative errno. */
    static int ctf_receive(int fd, ctf_datagrams *to) {
        for (int i = 0; i < 128; i++) {
            struct msghdr *header = &to->headers[i].msg_hdr;
            to->vectors[i] = (struct iovec){to->data[i], sizeof to->data[i]};
            *header = (struct msghdr){.msg_name = &to->senders[i],
                                      .msg_namelen = sizeof to->senders[i],
                                      .msg_iov = &to->vectors[i],
                                      .msg_iovlen = 1};
        }
        int received = recvmmsg(fd, to->headers, 128, MSG_DONTWAIT, NULL);
        return received < 0 ? -errno : received;
    }

    /* The size of a datagram from the kernel, which has port 0; 0 for any other sender. */
    static size_t ctf_size(const ctf_datagrams *of, int i) {
        return of->senders[i].nl_pid == 0 ? of->headers[i].msg_len : 0;
    }
    """
    ctypedef struct ctf_datagrams:
        unsigned char data[128][4096]
    int ctf_receive(int, ctf_datagrams *) nogil
    size_t ctf_size(const ctf_datagrams *, int) nogil

cdef enum:
    MAX_IDENTITY = 512          # bytes, a multiple of 8
    SAVED_SIZE = 52             # of ledger.CONNECTION: a row without its dump
    MAX_BATCHES = 4096          # of events in one call of drain()


# Four parts with a byte for the length of each: the tuple, zone, id and start.
assert MAX_TUPLE + 2 + 4 + 8 + 4 <= MAX_IDENTITY


cdef struct Connection:
    # A row of a table of connections.
    uint64_t identity[2]        # the key
    uint64_t counters[4]
    uint32_t dump               # number of the last dump that had it
    uint32_t absent             # seconds: since when no dump shows it, or when it ended; 0 while it is shown


cdef Table new_connections():
    return Table(16, sizeof(Connection))


cdef inline Connection *find_connection(Table table, const uint64_t *identity) noexcept nogil:
    return <Connection *>table.find(<const uint8_t *>identity)


cdef inline Connection *put_connection(
    Table table, const uint64_t *identity, const uint64_t *counters, uint32_t absent
) except NULL nogil:
    """Add or replace a connection."""
    cdef Connection *row = <Connection *>table.add(<const uint8_t *>identity)
    memcpy(row.counters, counters, sizeof(row.counters))
    row.absent = absent
    return row


cdef void write_connections(Table table, uint8_t *to) noexcept nogil:
    """Write all rows in the format of ledger.CONNECTION."""
    cdef const Connection *row
    cdef uint32_t i
    for i in range(table.count):
        row = <const Connection *>table.row(i)
        memcpy(to, row, SAVED_SIZE - 4)
        memcpy(to + SAVED_SIZE - 4, &row.absent, 4)
        to += SAVED_SIZE


cdef int read_connections(Table table, const char *p, uint32_t count) except -1:
    """Add saved rows; the first of several with the same identity."""
    cdef Connection *row
    cdef uint64_t identity[2]
    cdef uint32_t i, before
    for i in range(count):
        memcpy(identity, p, 16)  # it may be unaligned
        before = table.count
        row = <Connection *>table.add(<const uint8_t *>identity)
        if table.count > before:
            memcpy(row.counters, p + 16, 32)
            memcpy(&row.absent, p + SAVED_SIZE - 4, 4)
        p += SAVED_SIZE
    return 0


@cython.final
cdef class Ledger:
    """The twin of ledger.Ledger."""

    cdef Plan plan
    cdef Grouping sums
    cdef Table connections
    cdef Table ended                    # recently
    cdef Table ended_before
    # In seconds, signed: a saved state may have times that are later than now.
    cdef int64_t ended_since
    cdef int64_t ended_last
    cdef int64_t duplicate_at
    cdef int64_t now
    cdef int64_t dump_since
    cdef uint32_t dump
    cdef bint in_dump
    cdef public bint baseline
    cdef public bint duplicates
    cdef bytes secret
    cdef uint64_t keys[4]
    cdef uint64_t received, duplicate, zeroed, ended_unseen, ended_uncounted, malformed
    cdef ctf_datagrams *datagrams
    cdef int datagram_count             # that were received together
    cdef int datagrams_taken            # of them
    cdef object twin
    cdef uint32_t remember_seconds
    cdef uint32_t max_remembered
    cdef uint32_t absent_seconds

    def __cinit__(self, Plan plan not None, bytes saved=b""):
        self.plan = plan
        self.duplicates = True
        self.sums = Grouping(plan)
        self.connections = new_connections()
        self.ended = new_connections()
        self.ended_before = new_connections()
        # Imported here: only a ledger needs a module of the pure engine.
        from conntrack_textfile.kernel import ledger as twin

        self.twin = twin
        self.remember_seconds = twin.REMEMBER_SECONDS
        self.max_remembered = twin.MAX_REMEMBERED
        self.absent_seconds = twin.ABSENT_SECONDS
        self.secret = os.urandom(twin.SECRET_SIZE)
        if saved:
            self.load(saved)
        memcpy(self.keys, <const char *>self.secret, sizeof(self.keys))
        for i in range(4):
            self.keys[i] |= 1
        self.datagrams = <ctf_datagrams *>calloc(1, sizeof(ctf_datagrams))
        if self.datagrams == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.datagrams)

    def __len__(self):
        return self.connections.count

    @property
    def statistics(self):
        numbers = (
            self.received,
            self.duplicate,
            self.zeroed,
            self.ended_unseen,
            self.ended_uncounted,
            self.malformed,
        )
        return dict(zip(self.twin.STATISTICS, numbers, strict=True))

    def begin_dump(self):
        """Begin a dump, also one that is repeated."""
        self.dump += 1
        self.dump_since = self.now
        self.in_dump = True

    def abandon_dump(self):
        """Note that a dump was not read to its end."""
        self.in_dump = False

    def end_dump(self, uint32_t now, *, bint events):
        """Note that a dump was read to its end, as were the events of connections that ended meanwhile."""
        cdef Connection *row
        cdef uint32_t i = 0
        self.in_dump = False
        with nogil:
            while i < self.connections.count:
                row = <Connection *>self.connections.row(i)
                if row.dump == self.dump:
                    row.absent = 0
                elif not row.absent:
                    row.absent = now
                elif not events or <int64_t>now - row.absent > self.absent_seconds:
                    self.connections.remove(i)
                    self.ended_unseen += 1
                    continue
                i += 1
            self.connections.shrink()

    cdef int observe(self, const Entry *entry, const uint8_t *group) except -1 nogil:
        """Take an entry of a dump."""
        cdef uint64_t identity[2]
        cdef Connection *row
        # If there is no memory, nothing has changed and a later dump has the entry again.
        self.sums.make_room()
        self.identify(entry, identity)
        if self.is_stale(find_connection(self.ended, identity)) or self.is_stale(
            find_connection(self.ended_before, identity)
        ):
            return 0
        row = find_connection(self.connections, identity)
        if row == NULL:
            row = put_connection(self.connections, identity, entry.counters, 0)
            if not self.baseline:
                self.sums.add_sums(group, entry, 1, entry.counters)
        else:
            self.add_difference(row, entry, group)
            memcpy(row.counters, entry.counters, sizeof(row.counters))
        row.dump = self.dump
        return 0

    def destroy(self, const uint8_t[::1] datagram not None, uint32_t now):
        """Take a datagram of DESTROY events."""
        with nogil:
            self.forget(now)
            if datagram.shape[0]:
                self.destroy_all(span(&datagram[0], datagram.shape[0]))

    def drain(self, int descriptor, uint32_t now):
        """Read the events that a socket has received. Raises OSError, but not for lost events."""
        cdef int error
        with nogil:
            self.forget(now)
            error = self.receive(descriptor)
        if error:
            raise OSError(error, os.strerror(error))

    def remember(self, const uint8_t[::1] datagram not None, uint32_t now):
        """Take a datagram of a dump of the dying list. Return whether it ends the dump."""
        cdef bint last = False
        if datagram.shape[0]:
            with nogil:
                last = self.remember_all(span(&datagram[0], datagram.shape[0]), now)
        return last

    cdef bint remember_all(self, Span datagram, uint32_t now) except? -1 nogil:
        cdef Message message
        cdef Entry entry
        cdef const Connection *before
        cdef uint64_t identity[2]
        while next_message(&datagram, &message):
            if message.kind == NLMSG_DONE or message.kind == NLMSG_ERROR:
                return True
            if message_to_entry(message.payload, &entry):
                self.identify(&entry, identity)
                before = find_connection(self.ended_before, identity)
                if find_connection(self.ended, identity) == NULL:
                    if before != NULL:
                        put_connection(self.ended, identity, before.counters, before.absent)
                    elif self.baseline:
                        put_connection(self.ended, identity, entry.counters, now)
                self.ended_last = now
        return False

    cdef int receive(self, int descriptor) except -1 nogil:
        """Read events until there are none, or MAX_BATCHES. Return 0 or an errno."""
        cdef int received
        self.destroy_received()  # what an earlier call had no memory for
        for _ in range(MAX_BATCHES):
            received = ctf_receive(descriptor, self.datagrams)
            if received == -EAGAIN:
                return 0
            if received < 0 and received != -ENOBUFS and received != -EINTR:
                return -received
            self.datagrams_taken, self.datagram_count = 0, max(received, 0)
            self.destroy_received()
        return 0

    cdef int destroy_received(self) except -1 nogil:
        """Take the received datagrams. If there is no memory, keep those that are not taken yet."""
        cdef int i
        while self.datagrams_taken < self.datagram_count:
            i = self.datagrams_taken
            self.destroy_all(span(self.datagrams.data[i], ctf_size(self.datagrams, i)))
            self.datagrams_taken = i + 1
        return 0

    cdef int destroy_all(self, Span datagram) except -1 nogil:
        cdef Message message
        while next_message(&datagram, &message):
            if message.kind == IPCTNL_MSG_CT_DELETE:
                self.end(message.payload)
                self.received += 1
        if datagram.size:  # cut off: larger than the buffer
            self.malformed += 1
        return 0

    cdef int end(self, Span message) except -1 nogil:
        """Take one DESTROY event."""
        cdef Entry entry
        cdef Connection *row
        cdef uint64_t identity[2]
        cdef uint8_t group[MAX_GROUP]
        if not message_to_entry(message, &entry):
            self.malformed += 1
            return 0
        if not self.plan.passes(&entry):
            return 0
        # If there is no memory, nothing has changed and the event can be taken again.
        self.sums.make_room()
        self.ended.make_room()
        self.identify(&entry, identity)
        self.plan.group_of(&entry, group)
        row = find_connection(self.connections, identity)
        if row != NULL:
            self.add_difference(row, &entry, group)
            self.connections.remove(self.connections.number_of(row))
        else:
            if self.duplicates and (
                self.is_duplicate(find_connection(self.ended, identity), &entry)
                or self.is_duplicate(find_connection(self.ended_before, identity), &entry)
            ):
                self.duplicate += 1
                self.duplicate_at = self.now
                return 0
            if not self.baseline:
                self.sums.add_sums(group, &entry, 1, entry.counters)
        self.ended_uncounted += not entry.counted
        put_connection(self.ended, identity, entry.counters, <uint32_t>self.now)
        self.ended_last = self.now
        return 0

    cdef inline bint is_stale(self, const Connection *ended) noexcept nogil:
        return ended != NULL and <int64_t>ended.absent + self.remember_seconds >= self.dump_since

    cdef inline bint is_repeated(self) noexcept nogil:
        return self.duplicate_at > 0 and self.now - self.duplicate_at <= self.remember_seconds

    cdef inline bint is_duplicate(self, const Connection *ended, const Entry *entry) noexcept nogil:
        return ended != NULL and memcmp(ended.counters, entry.counters, 32) == 0

    cdef int add_difference(
        self, const Connection *row, const Entry *entry, const uint8_t *group
    ) except -1 nogil:
        cdef uint64_t difference[4]
        cdef bint zeroed = False
        cdef bint any_difference = False
        cdef int i
        for i in range(4):
            zeroed = zeroed or entry.counters[i] < row.counters[i]
        self.zeroed += zeroed
        for i in range(4):
            difference[i] = entry.counters[i] - (0 if zeroed else row.counters[i])
            any_difference = any_difference or difference[i] != 0
        if any_difference:
            self.sums.add_sums(group, entry, 0, difference)
        return 0

    cdef int forget(self, int64_t now) except -1 nogil:
        """Forget ended connections, except while a dump may still show them."""
        self.now = now
        if not self.ended_since:
            self.ended_since = now
        if self.in_dump or now - self.ended_since < self.remember_seconds:
            return 0
        if not self.is_repeated() or self.ended.count >= self.max_remembered:
            with gil:
                recent = new_connections()
                old = now - self.ended_last > self.remember_seconds
                self.ended_before = new_connections() if old else self.ended
                self.ended = recent
        self.ended_since = now
        return 0

    cdef void identify(self, const Entry *entry, uint64_t *identity) noexcept nogil:
        """Write a keyed hash of 128 bits of what identifies a connection."""
        cdef uint8_t data[MAX_IDENTITY]
        cdef size_t size = 0
        cdef uint64_t word
        cdef int i
        for i in range(4):
            data[size] = <uint8_t>(entry.identity[i].size & 255)
            if entry.identity[i].size:
                memcpy(data + size + 1, entry.identity[i].start, entry.identity[i].size)
            size += 1 + entry.identity[i].size
        memset(data + size, 0, 8 - (size & 7) if size & 7 else 0)
        cdef uint64_t one = self.keys[0] ^ size
        cdef uint64_t two = self.keys[1] + size
        cdef size_t at
        for at in range(0, size, 8):
            memcpy(&word, data + at, 8)
            one = ctf_mix(one ^ word, self.keys[2])
            two = ctf_mix(two ^ word, self.keys[3])
        identity[0] = ctf_mix(one, self.keys[3])
        identity[1] = ctf_mix(two, self.keys[2])

    def traffic(self):
        """Return the traffic since the last call; connections are those first seen since then."""
        following = Grouping(self.plan)
        tally = self.sums.tally()
        self.sums = following  # last: without memory the next call has the same traffic
        return tally

    def save(self):
        """Return the ledger for the next run, without statistics."""
        cdef Table before = self.ended_before if self.is_repeated() else new_connections()
        cdef Py_ssize_t at = self.twin.HEADER.size
        live, ended = self.connections.count, self.ended.count + before.count
        saved = bytearray(at + self.twin.CONNECTION.size * (live + ended))
        saved[:at] = self.twin.HEADER.pack(self.secret, live, ended)
        cdef uint8_t[::1] view = saved
        cdef Table table
        for table in (self.connections, self.ended, before):
            if table.count:
                write_connections(table, &view[at])
                at += table.count * SAVED_SIZE
        return saved

    cdef load(self, bytes saved):
        cdef Py_ssize_t head = self.twin.HEADER.size
        cdef const char *p = saved
        if len(saved) < head:
            raise ValueError("a ledger that is cut off")
        self.secret, live, ended = self.twin.HEADER.unpack_from(saved)
        if len(saved) != head + (live + ended) * self.twin.CONNECTION.size:
            raise ValueError("a ledger of the wrong size")
        read_connections(self.connections, p + head, live)
        read_connections(self.ended_before, p + head + <Py_ssize_t>live * SAVED_SIZE, ended)
