"""ctnetlink.py in C: the messages of a ctnetlink dump."""

# The highest types of attributes that are read.
cdef enum:
    MAX_ATTRIBUTE = 20          # CTA_TIMESTAMP
    MAX_PROTOCOL = 7            # CTA_PROTO_ICMPV6_ID

assert CTA_TIMESTAMP <= MAX_ATTRIBUTE
assert max(CTA_PROTO_DST_PORT, *uapi.ID_OF.values()) <= MAX_PROTOCOL


cdef struct Message:
    # A netlink message: see netlink(7).
    const uint8_t *start
    uint32_t size
    uint16_t kind
    uint16_t flags
    Span payload


cdef inline bint next_message(Span *datagram, Message *message) noexcept nogil:
    """Take the next message off a datagram. At its end, or at a message that is cut off, return False."""
    cdef const uint8_t *p = datagram.start
    cdef size_t step
    if datagram.size < NLMSG_HDRLEN:
        return False
    memcpy(&message.size, p, 4)
    memcpy(&message.kind, p + 4, 2)
    memcpy(&message.flags, p + 6, 2)
    if message.size < NLMSG_HDRLEN or message.size > datagram.size:
        return False
    message.start = p
    message.payload.start = p + NLMSG_HDRLEN
    message.payload.size = message.size - NLMSG_HDRLEN
    step = min((<size_t>message.size + 3) & ~<size_t>3, datagram.size)
    datagram.start += step
    datagram.size -= step
    return True


cdef bint attributes(Span data, int most, Span *found) noexcept nogil:
    """Collect attributes by type, up to a type. Return False if their lengths do not add up."""
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


cdef inline bint number_in(Span data, size_t size, uint64_t *value) noexcept nogil:
    """Read a number of n bytes in network byte order."""
    cdef size_t i
    if data.start == NULL or data.size != size:
        return False
    value[0] = 0
    for i in range(size):
        value[0] = value[0] << 8 | data.start[i]
    return True


cdef inline bint short_in(Span data, uint16_t *value) noexcept nogil:
    """Read a number of 16 bits in network byte order, if the attribute is present."""
    if data.start == NULL:
        return True
    if data.size != 2:
        return False
    value[0] = <uint16_t>data.start[0] << 8 | data.start[1]
    return True


cdef bint counters_in(Span data, uint64_t *values) noexcept nogil:
    cdef Span found[3]
    return (
        attributes(data, 2, found)
        and number_in(found[CTA_COUNTERS_PACKETS], 8, &values[0])
        and number_in(found[CTA_COUNTERS_BYTES], 8, &values[1])
    )


cdef bint addresses_in(Span tuple_, uint8_t l3, uint8_t *src, uint8_t *dst) noexcept nogil:
    """Read CTA_TUPLE_IP."""
    cdef Span found[5]
    cdef int kind = CTA_IP_V4_SRC if l3 == 4 else CTA_IP_V6_SRC
    cdef size_t size = 4 if l3 == 4 else 16
    if tuple_.start == NULL or not attributes(tuple_, 4, found):
        return False
    if found[kind].size != size or found[kind + 1].size != size:
        return False
    memcpy(src, found[kind].start, size)
    memcpy(dst, found[kind + 1].start, size)
    return True


cdef bint state_in(Span data, uint8_t l4, uint8_t *state) noexcept nogil:
    """Read the state in CTA_PROTOINFO, if it is present."""
    cdef Span found[4]
    cdef Span info[2]
    cdef uint64_t value
    if not attributes(data, 3, found):
        return False
    if found[states_of[l4].protoinfo].start == NULL:
        return True
    if not attributes(found[states_of[l4].protoinfo], 1, info):
        return False
    if not number_in(info[CTA_PROTOINFO_STATE], 1, &value):
        return False
    state[0] = <uint8_t>min(value, <uint64_t>states_of[l4].count)
    return True


cdef bint message_to_entry(Span message, Entry *entry) noexcept nogil:
    """Read one message after its header. Return False if the kernel would not send it."""
    cdef Span top[MAX_ATTRIBUTE + 1]
    cdef Span original[4]
    cdef Span reply[4]
    cdef Span protocol[MAX_PROTOCOL + 1]
    cdef Span reply_protocol[MAX_PROTOCOL + 1]
    cdef Span times[3]
    cdef uint64_t value
    memset(entry, 0, sizeof(Entry))
    if message.size < NFGENMSG_SIZE:
        return False
    if message.start[0] == AF_INET:
        entry.l3 = 4
    elif message.start[0] == AF_INET6:
        entry.l3 = 6
    else:
        return False
    message.start += NFGENMSG_SIZE
    message.size -= NFGENMSG_SIZE
    if not attributes(message, MAX_ATTRIBUTE, top):
        return False
    if top[CTA_TUPLE_ORIG].start == NULL or not attributes(top[CTA_TUPLE_ORIG], 3, original):
        return False
    if top[CTA_TUPLE_REPLY].start == NULL or not attributes(top[CTA_TUPLE_REPLY], 3, reply):
        return False
    if not addresses_in(original[CTA_TUPLE_IP], entry.l3, entry.src, entry.dst):
        return False
    if not addresses_in(reply[CTA_TUPLE_IP], entry.l3, entry.reply_src, entry.reply_dst):
        return False
    if original[CTA_TUPLE_PROTO].start == NULL or reply[CTA_TUPLE_PROTO].start == NULL:
        return False
    if not attributes(original[CTA_TUPLE_PROTO], MAX_PROTOCOL, protocol):
        return False
    if not attributes(reply[CTA_TUPLE_PROTO], MAX_PROTOCOL, reply_protocol):
        return False
    if not number_in(protocol[CTA_PROTO_NUM], 1, &value):
        return False
    entry.l4 = <uint8_t>value
    # GRE sends its keys in the attributes of ports.
    if with_ports[entry.l4]:
        if not (
            short_in(protocol[CTA_PROTO_SRC_PORT], &entry.sport)
            and short_in(protocol[CTA_PROTO_DST_PORT], &entry.dport)
            and short_in(reply_protocol[CTA_PROTO_SRC_PORT], &entry.reply_sport)
            and short_in(reply_protocol[CTA_PROTO_DST_PORT], &entry.reply_dport)
        ):
            return False
    elif id_of[entry.l4]:
        # An echo reply has the id of its request.
        if not (
            short_in(protocol[id_of[entry.l4]], &entry.sport)
            and short_in(reply_protocol[id_of[entry.l4]], &entry.reply_dport)
        ):
            return False
    if top[CTA_ZONE].start != NULL:
        if not number_in(top[CTA_ZONE], 2, &value):
            return False
        entry.zone = entry.reply_zone = <uint16_t>value
    if not short_in(original[CTA_TUPLE_ZONE], &entry.zone):
        return False
    if not short_in(reply[CTA_TUPLE_ZONE], &entry.reply_zone):
        return False
    if top[CTA_MARK].start != NULL:
        if not number_in(top[CTA_MARK], 4, &value):
            return False
        entry.mark = <uint32_t>value
    if top[CTA_TIMESTAMP].start != NULL:
        if not attributes(top[CTA_TIMESTAMP], 2, times):
            return False
        entry.identity[3] = times[CTA_TIMESTAMP_START]
        if entry.identity[3].start != NULL and entry.identity[3].size != 8:
            return False
    if top[CTA_TUPLE_ORIG].size > MAX_TUPLE or (top[CTA_ID].start != NULL and top[CTA_ID].size != 4):
        return False
    entry.identity[0] = top[CTA_TUPLE_ORIG]
    entry.identity[1] = top[CTA_ZONE]
    entry.identity[2] = top[CTA_ID]
    entry.counted = top[CTA_COUNTERS_ORIG].start != NULL or top[CTA_COUNTERS_REPLY].start != NULL
    if top[CTA_COUNTERS_ORIG].start != NULL:
        if not counters_in(top[CTA_COUNTERS_ORIG], &entry.counters[0]):
            return False
    if top[CTA_COUNTERS_REPLY].start != NULL:
        if not counters_in(top[CTA_COUNTERS_REPLY], &entry.counters[2]):
            return False
    entry.state = NO_STATE
    if top[CTA_PROTOINFO].start != NULL and states_of[entry.l4].protoinfo:
        if not state_in(top[CTA_PROTOINFO], entry.l4, &entry.state):
            return False
    if top[CTA_STATUS].start != NULL:
        if not number_in(top[CTA_STATUS], 4, &value):
            return False
        if not value & IPS_SEEN_REPLY:
            entry.flags = UNREPLIED
        if value & IPS_HW_OFFLOAD:
            entry.flags |= HW_OFFLOAD
        elif value & IPS_OFFLOAD:
            entry.flags |= OFFLOAD
        elif value & IPS_ASSURED:
            entry.flags |= ASSURED
    return True


cdef class Ledger


@cython.final
cdef class NetlinkDecoder:
    """The twin of ctnetlink.Decoder."""

    cdef Grouping grouping
    cdef Ledger ledger          # or None

    def __cinit__(self, Plan plan not None, Ledger ledger=None):
        self.grouping = Grouping(plan)
        self.ledger = ledger

    def feed(self, const uint8_t[::1] datagram not None):
        """Add the entries of a datagram. Return whether it ends the dump."""
        cdef int32_t error = 0
        cdef bint done = False
        self.grouping.check_open()
        if datagram.shape[0]:
            with nogil:
                done = self.split(span(&datagram[0], datagram.shape[0]), &error)
        if error:
            if not -MAX_ERRNO <= error < 0:
                error = -EPROTO
            raise OSError(-error, os.strerror(-error))
        return done

    def finish(self):
        """Return the tally."""
        self.grouping.check_open()
        return self.grouping.tally()

    cdef bint split(self, Span datagram, int32_t *error) except? -1 nogil:
        cdef Message message
        cdef Entry entry
        cdef uint8_t group[MAX_GROUP]
        while next_message(&datagram, &message):
            if message.flags & NLM_F_DUMP_INTR or message.kind == NLMSG_OVERRUN:
                error[0] = -EINTR
                return False
            if message.kind == IPCTNL_MSG_CT_NEW:
                if not message_to_entry(message.payload, &entry):
                    self.grouping.add_malformed(message.start, message.size)
                elif self.grouping.add(&entry, group) and self.ledger is not None:
                    self.ledger.observe(&entry, group)
            elif message.kind == NLMSG_DONE or message.kind == NLMSG_ERROR:
                if message.payload.size >= 4:
                    memcpy(error, message.payload.start, 4)
                if error[0] or message.kind == NLMSG_DONE:
                    return message.kind == NLMSG_DONE
        if datagram.size:
            self.grouping.add_malformed(datagram.start, datagram.size)
        return False
