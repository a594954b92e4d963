"""procfile.py in C: the lines of /proc/net/nf_conntrack."""


cdef inline const char *find(const char *start, const char *end, const char *what, size_t size) noexcept nogil:
    """The first occurrence of a text that begins with a space, or NULL."""
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
    """Read a number of 1 to n digits. Return its end, or NULL."""
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
    """Read an IPv4 address with the rules of inet_pton(3): no leading zeros."""
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
    if end - p == 39:  # all 8 groups with 4 digits (%pI6 in the kernel)
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
    """Skip one or more spaces. Return NULL if there is none."""
    if p == end or p[0] != c' ':
        return NULL
    while p < end and p[0] == c' ':
        p += 1
    return p


cdef uint8_t state_of(const char *p, const char *end, uint8_t l4) noexcept nogil:
    """The number of the state, which is the last column of the text after the fourth column."""
    cdef const States *states = &states_of[l4]
    cdef const char *start = end
    cdef const char *name
    cdef int i
    while start > p and (start - 1)[0] != c' ':
        start -= 1
    if start == p or start == end or c'0' <= start[0] <= c'9':
        return NO_STATE
    cdef size_t size = end - start
    for i in range(states.count):
        name = states.names[i]
        # Names are padded with zeros, and hostile input may hold zeros.
        if size < MAX_STATE_NAME and memcmp(name, start, size) == 0 and strlen(name) == size:
            return i
    return states.count


cdef inline uint8_t flag_of(const char *p, const char *end) noexcept nogil:
    """The flag of a token in brackets, or 0."""
    cdef size_t size = end - p
    if size == 9 and memcmp(p, b"[ASSURED]", 9) == 0:
        return ASSURED
    if size == 9 and memcmp(p, b"[OFFLOAD]", 9) == 0:
        return OFFLOAD
    if size == 12 and memcmp(p, b"[HW_OFFLOAD]", 12) == 0:
        return HW_OFFLOAD
    return 0


cdef inline bint head(const char *p, const char *end, Entry *entry) noexcept nogil:
    """Read what precedes the original tuple: four columns of layer 3 and 4, timeout, state."""
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
    entry.state = state_of(p, end, entry.l4) if states_of[l4].protoinfo else NO_STATE
    return True


cdef inline const char *pair(const char *p, const char *end, uint64_t *values) noexcept nogil:
    """Read packets, " bytes=" and bytes. Return their end, at a space or the end, or NULL."""
    p = number(p, end, 20, &values[0])
    if p == NULL or end - p < 7 or memcmp(p, b" bytes=", 7):
        return NULL
    p = number(p + 7, end, 20, &values[1])
    return p if p != NULL and (p == end or p[0] == c' ') else NULL


cdef inline bint address(const char *p, const char *end, uint8_t l3, uint8_t *packed) noexcept nogil:
    return is_ipv4(p, end, packed) if l3 == 4 else is_ipv6(p, end, packed)


cdef inline bint begins(const char *p, const char *end, const char *what, size_t size) noexcept nogil:
    return <size_t>(end - p) >= size and memcmp(p, what, size) == 0


cdef inline const char *addresses(const char *p, const char *end, uint8_t l3, uint8_t *src, uint8_t *dst) noexcept nogil:
    """Read an address, " dst=" and another. Return the end of that, or NULL."""
    cdef const char *q = token_end(p, end)
    if not address(p, q, l3, src) or not begins(q, end, b" dst=", 5):
        return NULL
    p = q + 5
    q = token_end(p, end)
    return q if address(p, q, l3, dst) else NULL


cdef inline bint whole_number(const char *p, const char *end, int digits, uint64_t most, uint64_t *value) noexcept nogil:
    """Read a token that is a number up to a maximum of n digits."""
    return number(p, end, digits, value) == end and value[0] <= most


cdef inline bint short_number(const char *p, const char *end, uint16_t *to) noexcept nogil:
    """Read a token that is a number of 16 bits."""
    cdef uint64_t value = 0
    if not whole_number(p, end, 5, 65535, &value):
        return False
    to[0] = <uint16_t>value
    return True


cdef bint line_to_entry(const char *line, const char *end, Entry *entry) noexcept nogil:
    """Read one line, token by token. Return False if the kernel would not write it."""
    cdef const char *p = find(line, end, b" src=", 5)
    cdef const char *q
    cdef uint64_t value = 0
    cdef bint has_sent = False, has_zone = False, has_dport = False, has_reply = False
    cdef bint has_mark = False, has_flag = False, has_sport = False, one_zone = False
    cdef bint has_reply_sport = False, has_reply_dport = False, has_reply_zone = False
    # ICMP has an id in place of ports.
    cdef const char *source = b"sport="
    cdef const char *reply_destination = b"dport="
    cdef size_t source_size = 6
    memset(entry, 0, sizeof(Entry))
    if p == NULL or not head(line, p, entry):
        return False
    if id_of[entry.l4]:
        source = reply_destination = b"id="
        source_size = 3
    q = addresses(p + 5, end, entry.l3, entry.src, entry.dst)
    if q == NULL:
        return False
    while True:  # q is at the space before a token
        if q == end:
            return False
        p = q + 1
        q = token_end(p, end)
        if begins(p, q, b"src=", 4):
            break
        entry.flags = UNREPLIED if q - p == 11 and memcmp(p, b"[UNREPLIED]", 11) == 0 else 0
        if has_sent:
            continue
        if begins(p, q, b"packets=", 8):
            has_sent = True
            q = pair(p + 8, end, &entry.counters[0])
            if q == NULL:
                return False
        elif not has_zone and begins(p, q, b"zone-orig=", 10):
            has_zone = True
            if not short_number(p + 10, q, &entry.zone):
                return False
        elif not has_zone and not has_dport and begins(p, q, b"dport=", 6):
            has_dport = True
            if not short_number(p + 6, q, &entry.dport):
                return False
        elif not has_zone and not has_sport and begins(p, q, source, source_size):
            has_sport = True
            if not short_number(p + source_size, q, &entry.sport):
                return False
    q = addresses(p + 4, end, entry.l3, entry.reply_src, entry.reply_dst)
    if q == NULL:
        return False
    while q != end:
        p = q + 1
        q = token_end(p, end)
        if not has_reply and begins(p, q, b"packets=", 8):
            has_reply = True
            q = pair(p + 8, end, &entry.counters[2])
            if q == NULL:
                return False
        elif not has_flag and p < q and p[0] == c'[':
            has_flag = True
            entry.flags |= flag_of(p, q)
        elif not has_mark and begins(p, q, b"mark=", 5):
            has_mark = True
            if not whole_number(p + 5, q, 10, 0xFFFFFFFFu, &value):
                return False
            entry.mark = <uint32_t>value
        elif not has_zone and begins(p, q, b"zone=", 5):
            has_zone = one_zone = True
            if not short_number(p + 5, q, &entry.zone):
                return False
        elif not has_reply_zone and begins(p, q, b"zone-reply=", 11):
            has_reply_zone = True
            if not short_number(p + 11, q, &entry.reply_zone):
                return False
        elif not has_reply_sport and begins(p, q, b"sport=", 6):
            has_reply_sport = True
            if not short_number(p + 6, q, &entry.reply_sport):
                return False
        elif not has_reply_dport and begins(p, q, reply_destination, source_size):
            has_reply_dport = True
            if not short_number(p + source_size, q, &entry.reply_dport):
                return False
    if one_zone and not has_reply_zone:
        entry.reply_zone = entry.zone
    entry.counted = has_sent or has_reply
    return True


@cython.final
cdef class TextDecoder:
    """The twin of procfile.Decoder."""

    cdef Grouping grouping
    cdef char *tail             # an incomplete line, up to MAX_LINE + 1 bytes
    cdef size_t kept
    cdef bint skipping

    def __cinit__(self, Plan plan not None):
        self.grouping = Grouping(plan)
        self.tail = <char *>calloc(MAX_LINE + 1, 1)
        if self.tail == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.tail)

    def feed(self, const uint8_t[::1] block not None):
        """Add the lines that end in this block; keep the rest for the next one."""
        self.grouping.check_open()
        if block.shape[0]:
            with nogil:
                self.split(<const char *>&block[0], <const char *>&block[0] + block.shape[0])

    def finish(self):
        """Return the tally. The last line needs no newline."""
        self.grouping.check_open()
        self.add(self.tail, self.tail + self.kept)
        return self.grouping.tally()

    cdef int split(self, const char *p, const char *end) except -1 nogil:
        cdef const char *newline
        cdef size_t size
        while True:
            newline = <const char *>memchr(p, c'\n', end - p) if p < end else NULL
            size = (end if newline == NULL else newline) - p
            if self.skipping:
                pass
            elif self.kept + size > MAX_LINE:
                memcpy(self.tail + self.kept, p, MAX_LINE + 1 - self.kept)
                self.grouping.add_malformed(self.tail, MAX_LINE + 1)
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
        cdef Entry entry
        cdef uint8_t group[MAX_GROUP]
        if line == end:
            return 0
        if line_to_entry(line, end, &entry):
            self.grouping.add(&entry, group)
        else:
            self.grouping.add_malformed(line, end - line)
        return 0
