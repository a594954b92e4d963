"""A plan.Plan in C: filters, and the key of an entry's group (grouping.py has its layout)."""


cdef struct Span:
    const uint8_t *start        # NULL for an attribute that is missing
    size_t size


cdef inline Span span(const uint8_t *start, size_t size) noexcept nogil:
    cdef Span made
    made.start, made.size = start, size
    return made


cdef struct Entry:
    # grouping.Entry. An IPv4 address is followed by zeros.
    uint8_t l3                  # 4 or 6
    uint8_t l4
    uint8_t state
    uint8_t flags
    uint16_t sport
    uint16_t dport
    uint16_t reply_sport
    uint16_t reply_dport
    uint16_t zone
    uint16_t reply_zone
    uint32_t mark
    bint counted                # whether it has packet and byte counters
    uint8_t src[16]
    uint8_t dst[16]
    uint8_t reply_src[16]
    uint8_t reply_dst[16]
    uint64_t counters[4]
    Span identity[4]            # ctnetlink.identity_parts(): points into the datagram


cdef struct Network:
    uint8_t l3                  # 4 or 6; 0 for any address
    uint8_t length
    uint8_t prefix[16]


cdef struct Filter:
    # filters.Filter.
    uint8_t l3                  # 0 for any
    int l4                      # -1 for any
    int first_port              # -1 for any
    int last_port
    int zone                    # -1 for any
    uint32_t mark
    uint32_t mark_mask          # 0 for any
    Network src
    Network dst
    Network egress
    Network backend


cdef enum:
    HOST = 255                  # Name.length of a host


cdef struct Name:
    # A row of the table of networks and hosts with names. All but the index is the key.
    uint8_t prefix[16]
    uint32_t l3
    uint32_t length             # of the prefix, or HOST
    uint64_t index              # in Plan.address_names


cdef struct Field:
    uint8_t kind
    uint8_t offset
    uint8_t prefix4             # lengths of prefixes
    uint8_t prefix6


cdef enum:
    SRC
    DST
    L3PROTOCOL
    L4PROTOCOL
    L7PROTOCOL
    DPORT
    ZONE
    FWMARK
    EGRESS
    BACKEND

cdef dict KINDS = {
    "src": SRC,
    "dst": DST,
    "l3protocol": L3PROTOCOL,
    "l4protocol": L4PROTOCOL,
    "l7protocol": L7PROTOCOL,
    "dport": DPORT,
    "zone": ZONE,
    "mark": FWMARK,
    "egress": EGRESS,
    "backend": BACKEND,
}
cdef uint8_t[10] SIZES = [17, 17, 1, 1, 3, 3, 2, 4, 17, 17]

cdef enum:
    MAX_FIELDS = 10
    MAX_GROUP = 88              # bytes, a multiple of 8
    OTHER_PORT = 65536

# The first byte of an address in a group.
cdef enum:
    NONE = 0
    IPV4 = 1
    IPV6 = 2
    NAMED = 3


cdef uint8_t masks[129][16]     # by the length of a prefix


cdef fill_masks():
    cdef int length, i
    for length in range(129):
        for i in range(length):
            masks[length][i >> 3] |= 0x80 >> (i & 7)


fill_masks()


cdef inline void copy_masked(uint8_t *to, const uint8_t *address, const uint8_t *mask) noexcept nogil:
    cdef uint64_t a[2]
    cdef uint64_t b[2]
    memcpy(a, address, 16)
    memcpy(b, mask, 16)
    a[0] &= b[0]
    a[1] &= b[1]
    memcpy(to, a, 16)


cdef inline bint holds(const Network *network, uint8_t l3, const uint8_t *address) noexcept nogil:
    cdef uint8_t masked[16]
    if network.l3 != l3:
        return network.l3 == 0
    copy_masked(masked, address, masks[network.length])
    return memcmp(masked, network.prefix, 16) == 0


cdef inline bint same_address(const uint8_t *one, const uint8_t *other) noexcept nogil:
    return memcmp(one, other, 16) == 0


cdef inline void put(uint8_t *to, int size, uint32_t number) noexcept nogil:
    """Write a number in network byte order."""
    while size:
        size -= 1
        to[size] = number & 255
        number >>= 8


cdef inline uint32_t get(const uint8_t *at, int size) noexcept nogil:
    """Read a number in network byte order."""
    cdef uint32_t number = 0
    cdef int i
    for i in range(size):
        number = number << 8 | at[i]
    return number


cdef address_text(uint8_t l3, const uint8_t *packed):
    cdef char text[50]
    inet_ntop(AF_INET6 if l3 == 6 else AF_INET, packed, text, sizeof(text))
    return text[:strlen(text)].decode("ascii")


cdef Network network_of(network):
    """The C form of a networks.Network or None."""
    cdef Network made
    memset(&made, 0, sizeof(made))
    if network is not None:
        made.l3 = 4 if network.size == 4 else 6
        made.length = network.length
        packed = network.packed
        memcpy(made.prefix, <const char *>packed, network.size)
    return made


@cython.final
cdef class Plan:
    """A plan.Plan in C, shared by all decoders of that plan."""

    cdef Field fields[MAX_FIELDS]
    cdef int field_count
    cdef size_t group_size                  # bytes, a multiple of 8
    cdef Filter *included
    cdef Filter *excluded
    cdef int included_count
    cdef int excluded_count
    cdef Table names                        # of networks and hosts: rows are Name
    cdef uint8_t lengths[2][129]            # of the prefixes of named networks, longest first
    cdef int length_count[2]
    cdef bint has_hosts[2]
    cdef uint32_t *services[256]            # index of the name + 1 by port; NULL for protocols without ports
    cdef uint32_t no_ports
    cdef uint32_t unknown
    cdef bint known_ports
    cdef uint32_t mark_mask
    cdef bint nat
    cdef list address_names
    cdef list service_names
    cdef list protocol_names

    def __cinit__(self, plan):
        cdef int offset = 0
        cdef Field *field
        assert len(plan.labels) <= MAX_FIELDS
        for name in plan.labels:
            field = &self.fields[self.field_count]
            field.kind = KINDS[name]
            field.offset = offset
            prefix = {"src": plan.src_prefix, "dst": plan.dst_prefix}.get(name, (32, 128))
            field.prefix4, field.prefix6 = prefix
            offset += SIZES[field.kind]
            self.field_count += 1
        self.group_size = max(8, (offset + 7) & ~7)
        assert self.group_size <= MAX_GROUP
        included, excluded = plan[:2]  # "include" is a keyword of Cython
        self.included_count = len(included)
        self.excluded_count = len(excluded)
        self.included = self.filters(included)
        self.excluded = self.filters(excluded)
        self.known_ports = plan.known_ports
        self.mark_mask = plan.mark_mask
        self.nat = plan.nat
        self.protocol_names = [protocols.l4protocol(number) for number in range(256)]
        self.fill_services(plan)
        self.fill_names(plan)

    def __dealloc__(self):
        free(self.included)
        free(self.excluded)
        for i in range(256):
            free(self.services[i])

    cdef Filter *filters(self, rules) except? NULL:
        cdef Filter *made
        cdef int i
        if not rules:
            return NULL
        made = <Filter *>calloc(len(rules), sizeof(Filter))
        if made == NULL:
            raise MemoryError
        for i, rule in enumerate(rules):
            made[i].l3 = rule.l3protocol or 0
            made[i].l4 = -1 if rule.l4protocol is None else rule.l4protocol
            made[i].first_port = -1 if rule.dport is None else rule.dport.start
            made[i].last_port = -1 if rule.dport is None else rule.dport.stop - 1
            made[i].zone = -1 if rule.zone is None else rule.zone
            if rule.mark is not None:
                made[i].mark, made[i].mark_mask = rule.mark
            made[i].src = network_of(rule.src)
            made[i].dst = network_of(rule.dst)
            made[i].egress = network_of(rule.egress)
            made[i].backend = network_of(rule.backend)
        return made

    cdef fill_services(self, plan):
        cdef uint32_t *ports
        cdef int port
        self.service_names = plan.service_names
        index = {name: i for i, name in enumerate(self.service_names)}
        self.no_ports = index[services.WITHOUT_PORTS]
        self.unknown = index[services.UNKNOWN]
        for l4, names in plan.services.items():
            ports = <uint32_t *>calloc(65536, sizeof(uint32_t))
            if ports == NULL:
                raise MemoryError
            self.services[l4] = ports
            for port, name in names.items():
                ports[port] = index[name] + 1

    cdef fill_names(self, plan):
        self.names = Table(sizeof(Name) - sizeof(uint64_t), sizeof(Name))
        self.address_names = plan.address_names
        index = {name: i for i, name in enumerate(self.address_names)}
        for size, length, names in plan.networks:
            v6 = size == 16
            self.lengths[<int>v6][self.length_count[<int>v6]] = length
            self.length_count[<int>v6] += 1
            for prefix, name in names.items():
                packed = (prefix << (size * 8 - length)).to_bytes(size, "big")
                self.add_name(packed, length, index[name])
        for packed, name in plan.hosts.items():
            self.has_hosts[len(packed) == 16] = True
            self.add_name(packed, HOST, index[name])

    cdef int add_name(self, bytes packed, uint32_t length, uint32_t index) except -1:
        cdef Name key
        memset(&key, 0, sizeof(key))
        key.l3 = 4 if len(packed) == 4 else 6
        key.length = length
        memcpy(key.prefix, <const char *>packed, len(packed))
        (<Name *>self.names.add(<uint8_t *>&key)).index = index
        return 0

    cdef inline int64_t name_of(self, uint8_t l3, const uint8_t *address, bint whole) noexcept nogil:
        """The index of the name of a host, else of the smallest named network that holds it, or -1.

        It costs a probe for hosts, if the label has whole addresses, and a probe for each
        length of prefix that has names, however many names there are.
        """
        cdef Name key
        cdef const Name *found
        cdef int v6 = l3 == 6
        cdef int i
        key.l3 = l3
        if whole and self.has_hosts[v6]:
            key.length = HOST
            memcpy(key.prefix, address, 16)
            found = <const Name *>self.names.find(<const uint8_t *>&key)
            if found != NULL:
                return <int64_t>found.index
        for i in range(self.length_count[v6]):
            key.length = self.lengths[v6][i]
            copy_masked(key.prefix, address, masks[key.length])
            found = <const Name *>self.names.find(<const uint8_t *>&key)
            if found != NULL:
                return <int64_t>found.index
        return -1

    cdef inline bint matches(self, const Filter *rule, const Entry *entry) noexcept nogil:
        return (
            (rule.l3 == 0 or rule.l3 == entry.l3)
            and (rule.l4 < 0 or rule.l4 == entry.l4)
            and (rule.first_port < 0 or rule.first_port <= entry.dport <= rule.last_port)
            and (rule.zone < 0 or rule.zone == entry.zone)
            and (entry.mark & rule.mark_mask) == rule.mark
            and holds(&rule.src, entry.l3, entry.src)
            and holds(&rule.dst, entry.l3, entry.dst)
            and (rule.egress.l3 == 0 or (
                not same_address(entry.src, entry.reply_dst)
                and holds(&rule.egress, entry.l3, entry.reply_dst)
            ))
            and (rule.backend.l3 == 0 or (
                not same_address(entry.dst, entry.reply_src)
                and holds(&rule.backend, entry.l3, entry.reply_src)
            ))
        )

    cdef bint passes(self, const Entry *entry) noexcept nogil:
        cdef int i
        for i in range(self.excluded_count):
            if self.matches(&self.excluded[i], entry):
                return False
        for i in range(self.included_count):
            if self.matches(&self.included[i], entry):
                return True
        return self.included_count == 0

    cdef inline void put_address(
        self, uint8_t *at, const Field *field, uint8_t l3, const uint8_t *address
    ) noexcept nogil:
        cdef int64_t name
        cdef bint whole = field.prefix6 == 128 if l3 == 6 else field.prefix4 == 32
        if self.length_count[l3 == 6] or (whole and self.has_hosts[l3 == 6]):
            name = self.name_of(l3, address, whole)
            if name >= 0:
                at[0] = NAMED
                put(at + 1, 4, <uint32_t>name)
                return
        at[0] = IPV6 if l3 == 6 else IPV4
        copy_masked(at + 1, address, masks[field.prefix6 if l3 == 6 else field.prefix4])

    cdef inline uint32_t service_of(self, const Entry *entry) noexcept nogil:
        cdef const uint32_t *ports = self.services[entry.l4]
        if ports == NULL:
            return self.no_ports
        return ports[entry.dport] - 1 if ports[entry.dport] else self.unknown

    cdef void group_of(self, const Entry *entry, uint8_t *group) noexcept nogil:
        """Write the key of an entry's group."""
        cdef const Field *field
        cdef uint8_t *at
        cdef uint32_t port
        cdef int i
        memset(group, 0, self.group_size)
        for i in range(self.field_count):
            field = &self.fields[i]
            at = group + field.offset
            if field.kind == SRC:
                self.put_address(at, field, entry.l3, entry.src)
            elif field.kind == DST:
                self.put_address(at, field, entry.l3, entry.dst)
            elif field.kind == L3PROTOCOL:
                at[0] = entry.l3
            elif field.kind == L4PROTOCOL:
                at[0] = entry.l4
            elif field.kind == L7PROTOCOL:
                put(at, 3, self.service_of(entry))
            elif field.kind == DPORT:
                port = entry.dport
                if self.known_ports and self.service_of(entry) == self.unknown:
                    port = OTHER_PORT
                put(at, 3, port)
            elif field.kind == ZONE:
                put(at, 2, entry.zone)
            elif field.kind == FWMARK:
                put(at, 4, entry.mark & self.mark_mask)
            elif field.kind == EGRESS:
                if not same_address(entry.src, entry.reply_dst):
                    self.put_address(at, field, entry.l3, entry.reply_dst)
            elif not same_address(entry.dst, entry.reply_src):
                self.put_address(at, field, entry.l3, entry.reply_src)

    @cython.boundscheck(True)
    cdef address_value(self, const Field *field, const uint8_t *at):
        if at[0] == NONE:
            return ""
        if at[0] == NAMED:
            return self.address_names[get(at + 1, 4)]
        length = field.prefix6 if at[0] == IPV6 else field.prefix4
        whole = 128 if at[0] == IPV6 else 32
        text = address_text(6 if at[0] == IPV6 else 4, at + 1)
        return text if length == whole else f"{text}/{length}"

    @cython.boundscheck(True)
    cdef tuple labels_of(self, const uint8_t *group):
        """The label values of a group. Raises IndexError for the group of another plan."""
        cdef const Field *field
        cdef const uint8_t *at
        cdef int i
        values = []
        for i in range(self.field_count):
            field = &self.fields[i]
            at = group + field.offset
            if field.kind == L3PROTOCOL:
                value = "ipv4" if at[0] == 4 else "ipv6"
            elif field.kind == L4PROTOCOL:
                value = self.protocol_names[at[0]]
            elif field.kind == L7PROTOCOL:
                value = self.service_names[get(at, 3)]
            elif field.kind == DPORT:
                value = OTHER if at[0] else str(get(at, 3))
            elif field.kind == ZONE:
                value = str(get(at, 2))
            elif field.kind == FWMARK:
                value = str(get(at, 4))
            else:
                value = self.address_value(field, at)
            values.append(value)
        return tuple(values)
