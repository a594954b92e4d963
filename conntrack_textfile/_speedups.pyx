# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled engine: what procfile.py and ctnetlink.py do, without an object per entry.

Those two say what is right; this says the same in C. Hostile input is the
normal case: every read is checked against the end of what was fed, and the
hash is keyed, so that nobody can choose addresses that collide.
"""

import os
from itertools import product

from libc.errno cimport EINTR, EPROTO
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, qsort, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

from conntrack_textfile.tally import FLAGS, STATES, UNKNOWN_STATE, Sums, Tally

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <stdint.h>
    #include <string.h>

    static inline uint64_t ctf_mix(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    int inet_pton(int, const char *, void *) nogil
    uint64_t ctf_mix(uint64_t, uint64_t) nogil
    enum: AF_INET
    enum: AF_INET6

# Must be procfile.MAX_LINE.
DEF MAX_LINE = 16384
DEF KEY = 36
DEF FLAG_COUNT = 4
DEF STATE_COUNT = 12        # one more than any protocol has names
DEF NAME_SIZE = 20

MAX_LINE_BYTES = MAX_LINE

# tally.STATES and tally.FLAGS as numbers: the protocols with states are 1, 2 and
# 3, and the states of each have the kernel's numbers. The last is UNKNOWN_STATE.
cdef uint8_t stateful[256]
cdef uint8_t state_numbers[4]           # how many states it has
cdef char state_names[4][STATE_COUNT][NAME_SIZE]
DEF NO_STATE = 255
DEF UNREPLIED = 1
DEF ASSURED = 2
DEF OFFLOAD = 4
DEF HW_OFFLOAD = 8


cdef fill_states():
    cdef int i, j
    assert FLAGS == ("unreplied", "assured", "offload", "hw_offload")
    for i, (l4, names) in enumerate(STATES.items(), 1):
        assert len(names) < STATE_COUNT and len(STATES) < 4
        stateful[l4] = i
        state_numbers[i] = len(names)
        for j, name in enumerate(names):
            text = name.encode()
            assert len(text) < NAME_SIZE
            memcpy(state_names[i][j], <const char *>text, len(text))


fill_states()

cdef struct Marks:
    # What is counted of an entry besides its sums.
    bint counted                # it has packet and byte counters
    uint8_t state
    uint8_t flags


cdef struct Row:
    # The key, in the order by which keys are sorted.
    uint8_t l3                  # 4 or 6
    uint8_t src[16]             # an IPv4 address is followed by zeros
    uint8_t dst[16]
    uint8_t l4
    uint8_t dport[2]            # network order
    # The sums: connections, and four numbers of 64 bits with what they carry.
    uint32_t carry[4]
    uint64_t low[4]
    uint64_t connections


cdef int compare(const void *one, const void *other) noexcept nogil:
    return memcmp(one, other, KEY)


cdef class _Table:
    """Rows by key: a dense array, and an index of open addressing into it."""

    cdef Row *rows
    cdef uint32_t *index        # row number + 1, or 0 for an empty place
    cdef uint32_t count
    cdef uint32_t capacity      # of rows
    cdef uint32_t mask          # places in the index - 1
    cdef uint64_t secret[2]
    cdef uint64_t malformed
    cdef uint64_t uncounted
    cdef uint64_t states[2][4][STATE_COUNT]     # IPv4 and IPv6
    cdef uint64_t flags[2][256][FLAG_COUNT]

    def __cinit__(self):
        self.capacity = 256
        self.mask = 1023
        self.rows = <Row *>calloc(self.capacity, sizeof(Row))
        self.index = <uint32_t *>calloc(self.mask + 1, sizeof(uint32_t))
        if self.rows == NULL or self.index == NULL:
            raise MemoryError
        cdef bytes random = os.urandom(16)
        memcpy(self.secret, <const char *>random, 16)
        self.secret[1] |= 1

    def __dealloc__(self):
        free(self.rows)
        free(self.index)

    cdef inline uint32_t place(self, const Row *key) noexcept nogil:
        """The place of a key in the index: its own, or the empty one where it belongs."""
        cdef uint64_t words[5]
        cdef uint64_t hashed = self.secret[0]
        cdef int i
        words[4] = 0
        memcpy(words, key, KEY)
        for i in range(5):
            hashed = ctf_mix(hashed ^ words[i], self.secret[1] + <uint64_t>i * 2)
        cdef uint32_t at = <uint32_t>(hashed ^ (hashed >> 32)) & self.mask
        while self.index[at] and memcmp(&self.rows[self.index[at] - 1], key, KEY):
            at = (at + 1) & self.mask
        return at

    cdef int grow(self) except -1 nogil:
        cdef uint32_t *index
        cdef Row *rows
        cdef uint32_t i
        if self.count == self.capacity:
            if self.capacity >= 1u << 30:
                with gil:
                    raise MemoryError
            rows = <Row *>realloc(self.rows, <size_t>self.capacity * 2 * sizeof(Row))
            if rows == NULL:
                with gil:
                    raise MemoryError
            self.rows = rows
            self.capacity *= 2
        if self.count * 2 > self.mask:
            index = <uint32_t *>calloc((<size_t>self.mask + 1) * 2, sizeof(uint32_t))
            if index == NULL:
                with gil:
                    raise MemoryError
            free(self.index)
            self.index = index
            self.mask = self.mask * 2 + 1
            for i in range(self.count):
                self.index[self.place(&self.rows[i])] = i + 1
        return 0

    cdef Row *row(self, const Row *key) except NULL nogil:
        """The row of a key, new where it has none."""
        cdef uint32_t at = self.place(key)
        cdef Row *row
        if not self.index[at]:
            if self.count == self.capacity or self.count * 2 > self.mask:
                self.grow()
                at = self.place(key)
            row = &self.rows[self.count]
            memset(row, 0, sizeof(Row))
            memcpy(row, key, KEY)
            self.count += 1
            self.index[at] = self.count
        return &self.rows[self.index[at] - 1]

    cdef int add(self, const Row *entry, const Marks *marks) except -1 nogil:
        """Add one entry: a row of one connection, its counters in low."""
        cdef Row *row = self.row(entry)
        cdef int i
        row.connections += 1
        for i in range(4):
            row.low[i] += entry.low[i]
            if row.low[i] < entry.low[i]:
                row.carry[i] += 1
        cdef int v6 = entry.l3 == 6
        self.uncounted += not marks.counted
        if marks.state != NO_STATE:
            self.states[v6][stateful[entry.l4]][marks.state] += 1
        for i in range(FLAG_COUNT):
            self.flags[v6][entry.l4][i] += marks.flags >> i & 1
        return 0

    cdef check_open(self):
        if self.index == NULL:
            raise ValueError("fed after it was finished")

    cdef tally(self):
        """The tally. Sorts the rows, so that nothing can be added after it."""
        free(self.index)
        self.index = NULL
        with nogil:
            qsort(self.rows, self.count, sizeof(Row), compare)
        return Tally(
            _Keys(self),
            tuple([_Column(self, field) for field in range(5)]),
            self.subtotals(),
            self.malformed,
            self.uncounted,
            self.state_counts(),
            self.flag_counts(),
        )

    cdef subtotals(self):
        cdef _Table sums = _Table()
        cdef Row at
        cdef Row *row
        cdef uint32_t i
        cdef int field
        memset(&at, 0, sizeof(Row))
        for i in range(self.count):
            at.l3, at.l4 = self.rows[i].l3, self.rows[i].l4
            row = sums.row(&at)
            row.connections += self.rows[i].connections
            for field in range(4):
                row.low[field] += self.rows[i].low[field]
                row.carry[field] += self.rows[i].carry[field]
                if row.low[field] < self.rows[i].low[field]:
                    row.carry[field] += 1
        qsort(sums.rows, sums.count, sizeof(Row), compare)
        columns = [_Column(sums, field) for field in range(5)]
        return {
            (4 if sums.rows[i].l3 == 4 else 6, sums.rows[i].l4): Sums(*[column[i] for column in columns])
            for i in range(sums.count)
        }

    cdef state_counts(self):
        counts = {}
        for v6, l4 in product(range(2), STATES):
            for i, name in enumerate((*STATES[l4], UNKNOWN_STATE)):
                if self.states[v6][stateful[l4]][i]:
                    counts[6 if v6 else 4, l4, name] = self.states[v6][stateful[l4]][i]
        return dict(sorted(counts.items()))

    cdef flag_counts(self):
        counts = {}
        for v6, l4 in product(range(2), range(256)):
            for i, name in enumerate(FLAGS):
                if self.flags[v6][l4][i]:
                    counts[6 if v6 else 4, l4, name] = self.flags[v6][l4][i]
        return dict(sorted(counts.items()))


cdef class _Keys:
    """The keys of a table, made as they are asked for."""

    cdef _Table table

    def __init__(self, _Table table):
        self.table = table

    def __len__(self):
        return self.table.count

    def __getitem__(self, uint32_t i):
        if i >= self.table.count:
            raise IndexError
        return self.key(i)

    cdef key(self, uint32_t i):
        cdef Row *row = &self.table.rows[i]
        cdef int size = 4 if row.l3 == 4 else 16
        return (
            (<char *>row.src)[:size],
            (<char *>row.dst)[:size],
            row.l4,
            row.dport[0] << 8 | row.dport[1],
        )

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.table.count):
            yield self.key(i)


cdef class _Column:
    """One number for each key of a table, made as they are asked for."""

    cdef _Table table
    cdef int field

    def __init__(self, _Table table, int field):
        self.table = table
        self.field = field - 1  # of low and carry

    def __len__(self):
        return self.table.count

    def __getitem__(self, uint32_t i):
        if i >= self.table.count:
            raise IndexError
        return self.number(i)

    cdef number(self, uint32_t i):
        cdef Row *row = &self.table.rows[i]
        if self.field < 0:
            return row.connections
        if row.carry[self.field]:
            return (<object>row.carry[self.field] << 64) | <object>row.low[self.field]
        return row.low[self.field]

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.table.count):
            yield self.number(i)


# The text of the proc file: see procfile.py.


cdef inline const char *find(const char *start, const char *end, const char *what, size_t size) noexcept nogil:
    """Where a text that begins with a space first stands, or NULL."""
    while True:
        start = <const char *>memchr(start, c' ', end - start)
        if start == NULL or <size_t>(end - start) < size:
            return NULL
        if memcmp(start, what, size) == 0:
            return start
        start += 1


cdef inline const char *token_end(const char *start, const char *end) noexcept nogil:
    cdef const char *space = <const char *>memchr(start, c' ', end - start)
    return end if space == NULL else space


cdef inline const char *number(const char *p, const char *end, int digits, uint64_t *value) noexcept nogil:
    """Read 1 to so many ASCII digits; where they end, or NULL."""
    cdef const char *start = p
    cdef uint64_t n = 0
    cdef uint8_t digit
    while p < end and c'0' <= p[0] <= c'9':
        digit = p[0] - c'0'
        if p - start == digits or n > 1844674407370955161u or (n == 1844674407370955161u and digit > 5):
            return NULL
        n = n * 10 + digit
        p += 1
    if p == start:
        return NULL
    value[0] = n
    return p


cdef inline bint is_ipv4(const char *p, const char *end, uint8_t *packed) noexcept nogil:
    """Four numbers up to 255 without leading zeros, as inet_pton(3) takes them."""
    cdef int i, value
    cdef const char *start
    for i in range(4):
        if i:
            if p == end or p[0] != c'.':
                return False
            p += 1
        start = p
        value = 0
        while p < end and c'0' <= p[0] <= c'9':
            if p > start and value == 0:
                return False
            value = value * 10 + (p[0] - c'0')
            if value > 255:
                return False
            p += 1
        if p == start:
            return False
        packed[i] = <uint8_t>value
    return p == end


cdef inline int nibble(char c) noexcept nogil:
    if c'0' <= c <= c'9':
        return c - c'0'
    if c'a' <= c <= c'f':
        return c - c'a' + 10
    return -1


cdef inline bint is_ipv6(const char *p, const char *end, uint8_t *packed) noexcept nogil:
    cdef char text[46]
    cdef int group, high, low, i
    if end - p == 39:  # in full, as the kernel writes it
        for group in range(8):
            if group and p[group * 5 - 1] != c':':
                break
            for i in range(2):
                high = nibble(p[group * 5 + i * 2])
                low = nibble(p[group * 5 + i * 2 + 1])
                if high < 0 or low < 0:
                    break
                packed[group * 2 + i] = <uint8_t>(high << 4 | low)
            else:
                continue
            break
        else:
            return True
    if end - p >= 46 or memchr(p, 0, end - p) != NULL:
        return False
    memcpy(text, p, end - p)
    text[end - p] = 0
    return inet_pton(AF_INET6, text, packed) == 1


cdef inline const char *skip_spaces(const char *p, const char *end) noexcept nogil:
    """Pass over one or more spaces; NULL where there is none."""
    if p == end or p[0] != c' ':
        return NULL
    while p < end and p[0] == c' ':
        p += 1
    return p


cdef uint8_t state_of(const char *p, const char *end, uint8_t l4) noexcept nogil:
    """The number of the state that ends a text, which begins after the fourth column."""
    cdef const char *start = end
    cdef int i
    while start > p and start[-1] != c' ':
        start -= 1
    if start == p or start == end or c'0' <= start[0] <= c'9':
        return NO_STATE
    cdef const char *name
    cdef size_t size = end - start
    cdef int protocol = stateful[l4]
    for i in range(state_numbers[protocol]):
        name = state_names[protocol][i]
        # A name is followed by zeros, and what is compared may hold some.
        if size < NAME_SIZE and memcmp(name, start, size) == 0 and strlen(name) == size:
            return i
    return state_numbers[protocol]


cdef uint8_t flags_of(const char *first, const char *second, const char *end) noexcept nogil:
    """The flags in the two halves of a line."""
    cdef uint8_t flags = 0
    if second - first >= 12 and memcmp(second - 12, b" [UNREPLIED]", 12) == 0:
        flags = UNREPLIED
    cdef const char *p = second
    while True:
        p = <const char *>memchr(p, c'[', end - p)
        if p == NULL:
            return flags
        if p[-1] == c' ':
            break
        p += 1
    cdef size_t size = token_end(p, end) - p
    if size == 9 and memcmp(p, b"[ASSURED]", 9) == 0:
        flags |= ASSURED
    elif size == 9 and memcmp(p, b"[OFFLOAD]", 9) == 0:
        flags |= OFFLOAD
    elif size == 12 and memcmp(p, b"[HW_OFFLOAD]", 12) == 0:
        flags |= HW_OFFLOAD
    return flags


cdef inline bint head(const char *p, const char *end, Row *entry, Marks *marks) noexcept nogil:
    """What precedes the original tuple: four columns of layer 3 and 4, timeout, state."""
    cdef uint64_t l4
    if end - p < 4:
        return False
    if memcmp(p, b"ipv4", 4) == 0:
        entry.l3 = 4
    elif memcmp(p, b"ipv6", 4) == 0:
        entry.l3 = 6
    else:
        return False
    p = skip_spaces(p + 4, end)
    if p == NULL:
        return False
    if entry.l3 == 4:
        if p == end or p[0] != c'2':
            return False
        p += 1
    else:
        if end - p < 2 or p[0] != c'1' or p[1] != c'0':
            return False
        p += 2
    p = skip_spaces(p, end)
    if p == NULL or p == end:
        return False
    p = skip_spaces(token_end(p, end), end)
    if p == NULL:
        return False
    p = number(p, end, 3, &l4)
    if p == NULL or (p < end and p[0] != c' ') or l4 > 255:
        return False
    entry.l4 = <uint8_t>l4
    marks.state = state_of(p, end, entry.l4) if stateful[l4] else NO_STATE
    return True


cdef inline bint pair(const char *p, const char *end, uint64_t *values) noexcept nogil:
    """Packets, " bytes=", bytes, and then a space or the end."""
    p = number(p, end, 20, &values[0])
    if p == NULL or end - p < 7 or memcmp(p, b" bytes=", 7):
        return False
    p = number(p + 7, end, 20, &values[1])
    return p != NULL and (p == end or p[0] == c' ')


cdef inline bint line_to_entry(const char *line, const char *end, Row *entry, Marks *marks) noexcept nogil:
    """One line as a row and its marks; whether it is what the kernel writes."""
    cdef const char *original = find(line, end, b" src=", 5)
    cdef const char *reply
    cdef const char *p
    cdef const char *q
    cdef uint64_t port
    if original == NULL:
        return False
    reply = find(original + 5, end, b" src=", 5)
    if reply == NULL or not head(line, original, entry, marks):
        return False
    original += 5
    marks.flags = flags_of(original, reply, end)
    marks.counted = False
    memset(entry.low, 0, sizeof(entry.low))
    p = find(reply + 5, end, b" packets=", 9)
    if p != NULL:
        marks.counted = True
        if not pair(p + 9, end, &entry.low[2]):
            return False
    end = reply
    p = find(original, end, b" packets=", 9)
    if p != NULL:
        marks.counted = True
        if not pair(p + 9, end, &entry.low[0]):
            return False
        end = p

    # " src=" was found: from here on, end is that of the original tuple.
    p = find(original, end, b" dst=", 5)
    if p == NULL:
        return False
    memset(entry.src, 0, 32)
    q = find(p + 5, end, b" dport=", 7)
    entry.dport[0] = entry.dport[1] = 0
    if q != NULL:
        end = token_end(q + 7, end)
        if number(q + 7, end, 5, &port) != end or port > 65535:
            return False
        entry.dport[0] = <uint8_t>(port >> 8)
        entry.dport[1] = <uint8_t>(port & 255)
        end = q
    end = token_end(p + 5, end)
    if entry.l3 == 4:
        return is_ipv4(original, p, entry.src) and is_ipv4(p + 5, end, entry.dst)
    return is_ipv6(original, p, entry.src) and is_ipv6(p + 5, end, entry.dst)


cdef class TextCounter:
    """The twin of procfile.Counter."""

    cdef _Table table
    cdef char tail[MAX_LINE]
    cdef size_t kept
    cdef bint skipping

    def __init__(self):
        self.table = _Table()
        self.kept = 0
        self.skipping = False

    def feed(self, const uint8_t[::1] block not None):
        """Count the lines that end in this block of the file, and keep the rest for the next."""
        if block.shape[0]:
            self.table.check_open()
            with nogil:
                self.count(<const char *>&block[0], <const char *>&block[0] + block.shape[0])

    def finish(self):
        """The tally of all that was fed. A last line needs no newline."""
        self.add(self.tail, self.tail + self.kept)
        self.kept = 0
        return self.table.tally()

    cdef int count(self, const char *p, const char *end) except -1 nogil:
        cdef const char *newline
        cdef size_t size
        while True:
            newline = <const char *>memchr(p, c'\n', end - p) if p < end else NULL
            size = (end if newline == NULL else newline) - p
            if self.skipping:
                pass
            elif self.kept + size > MAX_LINE:
                self.table.malformed += 1
                self.skipping = True
                self.kept = 0
            elif newline == NULL or self.kept:
                memcpy(self.tail + self.kept, p, size)
                self.kept += size
            if newline == NULL:
                return 0
            if self.skipping:
                self.skipping = False
            elif self.kept:
                self.add(self.tail, self.tail + self.kept)
            else:
                self.add(p, newline)
            self.kept = 0
            p = newline + 1

    cdef int add(self, const char *line, const char *end) except -1 nogil:
        cdef Row entry
        cdef Marks marks
        if line == end:
            return 0
        if line_to_entry(line, end, &entry, &marks):
            self.table.add(&entry, &marks)
        else:
            self.table.malformed += 1
        return 0


# The messages of a ctnetlink dump: see ctnetlink.py.

DEF NLMSG_ERROR = 2
DEF NLMSG_DONE = 3
DEF NLMSG_OVERRUN = 4
DEF IPCTNL_MSG_CT_NEW = 0x100
DEF NLM_F_DUMP_INTR = 0x10
DEF NLMSG_HDRLEN = 16
DEF NFGENMSG = 4
DEF NLA_HDRLEN = 4
DEF NLA_TYPE_MASK = 0x3FFF
DEF MAX_ERRNO = 4095
DEF IPS_SEEN_REPLY = 1 << 1
DEF IPS_ASSURED = 1 << 2
DEF IPS_OFFLOAD = 1 << 14
DEF IPS_HW_OFFLOAD = 1 << 15

cdef struct Span:
    const uint8_t *start        # NULL where there is no such attribute
    size_t size


cdef bint attributes(Span data, uint16_t most, Span *found) noexcept nogil:
    """Attributes up to a type, by type; whether their lengths add up."""
    cdef uint16_t length, kind
    cdef size_t step
    memset(found, 0, (<size_t>most + 1) * sizeof(Span))
    while data.size:
        if data.size < NLA_HDRLEN:
            return False
        memcpy(&length, data.start, 2)
        memcpy(&kind, data.start + 2, 2)
        if length < NLA_HDRLEN or length > data.size:
            return False
        kind &= NLA_TYPE_MASK
        if kind <= most:
            found[kind].start = data.start + NLA_HDRLEN
            found[kind].size = length - NLA_HDRLEN
        step = (<size_t>length + 3) & ~<size_t>3
        if step >= data.size:
            break
        data.start += step
        data.size -= step
    return True


cdef bint counters(Span data, uint64_t *values) noexcept nogil:
    """CTA_COUNTERS_PACKETS and CTA_COUNTERS_BYTES."""
    cdef Span found[3]
    cdef int i, byte
    if not attributes(data, 2, found):
        return False
    for i in range(2):
        if found[i + 1].size != 8:
            return False
        values[i] = 0
        for byte in range(8):
            values[i] = values[i] << 8 | found[i + 1].start[byte]
    return True


cdef bint state_in(Span data, uint8_t protocol, uint8_t *state) noexcept nogil:
    """CTA_PROTOINFO_TCP_STATE and its like; whether the attributes are well formed."""
    cdef Span found[4]
    cdef Span info[2]
    cdef uint8_t kind = 1 if protocol == 6 else 2 if protocol == 33 else 3
    if not attributes(data, 3, found):
        return False
    if found[kind].start == NULL:
        return True
    if not attributes(found[kind], 1, info) or info[1].size != 1:
        return False
    state[0] = min(info[1].start[0], state_numbers[stateful[protocol]])
    return True


cdef bint message_to_entry(Span message, Row *entry, Marks *marks) noexcept nogil:
    """One message as a row and its marks; whether it is what the kernel sends."""
    cdef Span top[11]
    cdef Span tuple_[3]
    cdef Span address[5]
    cdef Span protocol[4]
    cdef int src, size
    cdef uint16_t status
    if message.size < NFGENMSG:
        return False
    if message.start[0] == AF_INET:
        entry.l3, src, size = 4, 1, 4
    elif message.start[0] == AF_INET6:
        entry.l3, src, size = 6, 3, 16
    else:
        return False
    message.start += NFGENMSG
    message.size -= NFGENMSG
    if not attributes(message, 10, top) or top[1].start == NULL:
        return False
    memset(entry.low, 0, sizeof(entry.low))
    marks.counted = top[9].start != NULL or top[10].start != NULL
    if top[9].start != NULL and not counters(top[9], &entry.low[0]):
        return False
    if top[10].start != NULL and not counters(top[10], &entry.low[2]):
        return False
    if not attributes(top[1], 2, tuple_) or tuple_[1].start == NULL or tuple_[2].start == NULL:
        return False
    if not attributes(tuple_[1], 4, address) or not attributes(tuple_[2], 3, protocol):
        return False
    if address[src].size != size or address[src + 1].size != size or protocol[1].size != 1:
        return False
    memset(entry.src, 0, 32)
    memcpy(entry.src, address[src].start, size)
    memcpy(entry.dst, address[src + 1].start, size)
    entry.l4 = protocol[1].start[0]
    entry.dport[0] = entry.dport[1] = 0
    if protocol[3].start != NULL and entry.l4 in (6, 17, 33, 132, 136):
        if protocol[3].size != 2:
            return False
        memcpy(entry.dport, protocol[3].start, 2)
    marks.state = NO_STATE
    if top[4].start != NULL and stateful[entry.l4] and not state_in(top[4], entry.l4, &marks.state):
        return False
    marks.flags = 0
    if top[3].start != NULL:
        if top[3].size != 4:
            return False
        status = top[3].start[2] << 8 | top[3].start[3]
        if not status & IPS_SEEN_REPLY:
            marks.flags = UNREPLIED
        if status & IPS_HW_OFFLOAD:
            marks.flags |= HW_OFFLOAD
        elif status & IPS_OFFLOAD:
            marks.flags |= OFFLOAD
        elif status & IPS_ASSURED:
            marks.flags |= ASSURED
    return True


cdef class NetlinkCounter:
    """The twin of ctnetlink.Counter."""

    cdef _Table table

    def __init__(self):
        self.table = _Table()

    def feed(self, const uint8_t[::1] datagram not None):
        """Count the entries of a datagram; whether the dump ends with it."""
        cdef int32_t error = 0
        cdef bint done = False
        if datagram.shape[0]:
            self.table.check_open()
            with nogil:
                done = self.count(&datagram[0], datagram.shape[0], &error)
        if error:
            if not -MAX_ERRNO <= error < 0:
                error = -EPROTO
            raise OSError(-error, os.strerror(-error))
        return done

    def finish(self):
        """The tally of all that was fed."""
        return self.table.tally()

    cdef bint count(self, const uint8_t *p, size_t size, int32_t *error) except? -1 nogil:
        cdef Span message
        cdef Row entry
        cdef Marks marks
        cdef uint32_t length
        cdef uint16_t kind, flags
        cdef size_t step
        while size:
            if size >= NLMSG_HDRLEN:
                memcpy(&length, p, 4)
                memcpy(&kind, p + 4, 2)
                memcpy(&flags, p + 6, 2)
            if size < NLMSG_HDRLEN or length < NLMSG_HDRLEN or length > size:
                self.table.malformed += 1
                return False
            message.start = p + NLMSG_HDRLEN
            message.size = length - NLMSG_HDRLEN
            if flags & NLM_F_DUMP_INTR or kind == NLMSG_OVERRUN:
                error[0] = -EINTR
                return False
            if kind == IPCTNL_MSG_CT_NEW:
                if message_to_entry(message, &entry, &marks):
                    self.table.add(&entry, &marks)
                else:
                    self.table.malformed += 1
            elif kind == NLMSG_DONE or kind == NLMSG_ERROR:
                if message.size >= 4:
                    memcpy(error, message.start, 4)
                if error[0] or kind == NLMSG_DONE:
                    return kind == NLMSG_DONE
            step = (<size_t>length + 3) & ~<size_t>3
            if step >= size:
                break
            p += step
            size -= step
        return False
