# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, auto_pickle=False
"""The compiled engine: grouping.py, nat.py, procfile.py, ctnetlink.py and ledger.py in C.

Those say what is right; this says the same without an object per entry. Hostile input is the
normal case: every read is checked against the end of what was fed, and the
hash of the groups is keyed, so that nobody can choose addresses that collide.
"""

import os

from libc.errno cimport EAGAIN, EINTR, ENOBUFS, EPROTO
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

from conntrack_textfile import protocols, services
from conntrack_textfile.kernel import uapi
from conntrack_textfile.plan import OTHER
from conntrack_textfile.tally import Egress, Nat, Rows, Sums, Tally

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <linux/netlink.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/uio.h>

    static inline uint64_t ctf_mix(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }

    /* Datagrams of one recvmmsg(2). An event is one datagram of some hundred bytes. */
    typedef struct {
        struct mmsghdr headers[128];
        struct iovec vectors[128];
        struct sockaddr_nl senders[128];
        unsigned char data[128][4096];
    } ctf_datagrams;

    /* Receive what waits, up to 128 datagrams: how many, or the negative errno. */
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

    /* The size of a datagram; 0 where it does not come from the kernel. */
    static size_t ctf_size(const ctf_datagrams *of, int i) {
        return of->senders[i].nl_pid == 0 ? of->headers[i].msg_len : 0;
    }
    """
    ctypedef struct ctf_datagrams:
        unsigned char data[128][4096]
    int ctf_receive(int, ctf_datagrams *) nogil
    size_t ctf_size(const ctf_datagrams *, int) nogil
    ctypedef uint64_t uint128_t "unsigned __int128"  # no more than C arithmetic is done with it
    int inet_pton(int, const char *, void *) nogil
    const char *inet_ntop(int, const void *, char *, uint32_t) nogil
    void qsort_r(
        void *, size_t, size_t, int (*)(const void *, const void *, void *) noexcept nogil, void *
    ) nogil
    uint64_t ctf_mix(uint64_t, uint64_t) nogil
    void prefetch "__builtin_prefetch" (const void *) nogil
    enum: AF_INET
    enum: AF_INET6


# The kernel's numbers, from uapi.py.

cdef size_t MAX_LINE = uapi.MAX_LINE

cdef uint16_t NLMSG_ERROR = uapi.NLMSG_ERROR
cdef uint16_t NLMSG_DONE = uapi.NLMSG_DONE
cdef uint16_t NLMSG_OVERRUN = uapi.NLMSG_OVERRUN
cdef uint16_t NLM_F_DUMP_INTR = uapi.NLM_F_DUMP_INTR
cdef size_t NLMSG_HDRLEN = uapi.NLMSG_HDRLEN
cdef size_t NFGENMSG_SIZE = uapi.NFGENMSG_SIZE
cdef uint16_t IPCTNL_MSG_CT_NEW = uapi.IPCTNL_MSG_CT_NEW
cdef uint16_t IPCTNL_MSG_CT_DELETE = uapi.IPCTNL_MSG_CT_DELETE
cdef uint16_t NLA_HDRLEN = uapi.NLA_HDRLEN
cdef uint16_t NLA_TYPE_MASK = uapi.NLA_TYPE_MASK
cdef int32_t MAX_ERRNO = uapi.MAX_ERRNO

cdef int CTA_TUPLE_ORIG = uapi.CTA_TUPLE_ORIG
cdef int CTA_TUPLE_REPLY = uapi.CTA_TUPLE_REPLY
cdef int CTA_STATUS = uapi.CTA_STATUS
cdef int CTA_PROTOINFO = uapi.CTA_PROTOINFO
cdef int CTA_MARK = uapi.CTA_MARK
cdef int CTA_COUNTERS_ORIG = uapi.CTA_COUNTERS_ORIG
cdef int CTA_COUNTERS_REPLY = uapi.CTA_COUNTERS_REPLY
cdef int CTA_ID = uapi.CTA_ID
cdef int CTA_ZONE = uapi.CTA_ZONE
cdef int CTA_TIMESTAMP = uapi.CTA_TIMESTAMP
cdef int CTA_TIMESTAMP_START = uapi.CTA_TIMESTAMP_START
cdef int CTA_TUPLE_IP = uapi.CTA_TUPLE_IP
cdef int CTA_TUPLE_PROTO = uapi.CTA_TUPLE_PROTO
cdef int CTA_TUPLE_ZONE = uapi.CTA_TUPLE_ZONE
cdef int CTA_IP_V4_SRC = uapi.CTA_IP_V4_SRC
cdef int CTA_IP_V6_SRC = uapi.CTA_IP_V6_SRC  # the destination is one more in both
cdef int CTA_PROTO_NUM = uapi.CTA_PROTO_NUM
cdef int CTA_PROTO_SRC_PORT = uapi.CTA_PROTO_SRC_PORT
cdef int CTA_PROTO_DST_PORT = uapi.CTA_PROTO_DST_PORT
cdef int CTA_COUNTERS_PACKETS = uapi.CTA_COUNTERS_PACKETS
cdef int CTA_COUNTERS_BYTES = uapi.CTA_COUNTERS_BYTES
cdef int CTA_PROTOINFO_STATE = uapi.CTA_PROTOINFO_STATE

cdef uint32_t IPS_SEEN_REPLY = uapi.IPS_SEEN_REPLY
cdef uint32_t IPS_ASSURED = uapi.IPS_ASSURED
cdef uint32_t IPS_OFFLOAD = uapi.IPS_OFFLOAD
cdef uint32_t IPS_HW_OFFLOAD = uapi.IPS_HW_OFFLOAD

# uapi.STATES by protocol number. The number after the last name is UNKNOWN_STATE.
DEF MAX_STATES = 12
DEF MAX_STATE_NAME = 20
DEF NO_STATE = 255
DEF FLAG_COUNT = 4

cdef struct Stateful:
    int protoinfo               # CTA_PROTOINFO_TCP and its like; 0 where it has no states
    int count
    char names[MAX_STATES][MAX_STATE_NAME]

cdef Stateful stateful[256]
cdef uint8_t with_ports[256]
cdef uint8_t id_of[256]         # uapi.ID_OF; 0 where it has none

# uapi.FLAGS as bits in their order.
cdef enum:
    UNREPLIED = 1
    ASSURED = 2
    OFFLOAD = 4
    HW_OFFLOAD = 8


cdef fill_protocols():
    assert uapi.FLAGS == ("unreplied", "assured", "offload", "hw_offload")
    for l4, names in uapi.STATES.items():
        assert len(names) < MAX_STATES
        stateful[l4].protoinfo = uapi.PROTOINFO_OF[l4]
        stateful[l4].count = len(names)
        for i, name in enumerate(names):
            text = name.encode()
            assert len(text) < MAX_STATE_NAME
            memcpy(stateful[l4].names[<int>i], <const char *>text, len(text))
    for l4 in protocols.WITH_PORTS:
        with_ports[l4] = True
    for l4, kind in uapi.ID_OF.items():
        id_of[l4] = kind


fill_protocols()


cdef struct Span:
    const uint8_t *start        # NULL where there is no such attribute
    size_t size


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
    bint counted                # it has packet and byte counters
    uint8_t src[16]
    uint8_t dst[16]
    uint8_t reply_src[16]
    uint8_t reply_dst[16]
    uint64_t counters[4]
    Span identity[4]            # ctnetlink.identity_parts(), in the datagram


cdef struct Total:
    # Sums: four numbers of 64 bits with what they carry.
    uint64_t connections
    uint64_t low[4]
    uint32_t carry[4]


cdef inline void add_row(Total *total, uint64_t connections, const uint64_t *counters) noexcept nogil:
    cdef int i
    total.connections += connections
    for i in range(4):
        total.low[i] += counters[i]
        total.carry[i] += total.low[i] < counters[i]


cdef inline uint128_t sum_of(const Total *total, int field) noexcept nogil:
    return (<uint128_t>total.carry[field] << 64) | total.low[field]


cdef number_of(const Total *total, int field):
    """A field of Sums as a Python number."""
    if field == 0:
        return total.connections
    if total.carry[field - 1]:
        return (<object>total.carry[field - 1] << 64) | <object>total.low[field - 1]
    return total.low[field - 1]


# The plan: see plan.py.

cdef struct Network:
    uint8_t l3                  # 4 or 6, or 0 for any
    uint8_t length
    uint8_t prefix[16]


cdef struct Condition:
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


cdef struct Slot:
    # Of the hash of named networks and hosts. length is 0 where it is empty.
    uint8_t length              # of the prefix, plus 1; or HOST
    uint8_t l3
    uint8_t prefix[16]
    uint32_t index              # of the name


cdef struct Field:
    uint8_t kind
    uint8_t offset
    uint8_t prefix4             # lengths
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

DEF MAX_FIELDS = 10
DEF HOST = 255                  # in place of the length of a prefix
DEF MAX_GROUP = 88              # bytes, a multiple of 8
DEF OTHER_PORT = 65536
DEF NONE = 0                    # what the first byte of an address says
DEF IPV4 = 1
DEF IPV6 = 2
DEF NAMED = 3


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


cdef inline bint same(const uint8_t *one, const uint8_t *other) noexcept nogil:
    return memcmp(one, other, 16) == 0


cdef Network network_of(network):
    """A C network of a networks.Network, or of None."""
    cdef Network made
    memset(&made, 0, sizeof(made))
    if network is not None:
        made.l3 = 4 if network.size == 4 else 6
        made.length = network.length
        packed = network.packed
        memcpy(made.prefix, <const char *>packed, network.size)
    return made


cdef class Plan:
    """A plan.Plan in C. Many decoders can use it."""

    cdef Field fields[MAX_FIELDS]
    cdef int field_count
    cdef int group_size         # bytes, a multiple of 8
    cdef Condition *included
    cdef Condition *excluded
    cdef int included_count
    cdef int excluded_count
    cdef Slot *slots            # named networks and hosts: open addressing, at most half full
    cdef uint32_t slot_mask
    cdef uint8_t lengths[2][129]            # of prefixes with names, longest first
    cdef int length_count[2]
    cdef bint has_hosts[2]
    cdef uint32_t *services[256]            # by port, NULL for protocols without ports
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
        included, excluded = plan[:2]  # "include" is a keyword here
        self.included_count = len(included)
        self.excluded_count = len(excluded)
        self.included = self.conditions(included)
        self.excluded = self.conditions(excluded)
        self.known_ports = plan.known_ports
        self.mark_mask = plan.mark_mask
        self.nat = plan.nat
        self.protocol_names = [protocols.l4protocol(number) for number in range(256)]
        self.fill_services(plan)
        self.fill_networks(plan)

    def __dealloc__(self):
        free(self.included)
        free(self.excluded)
        free(self.slots)
        for i in range(256):
            free(self.services[i])

    cdef Condition *conditions(self, rules) except? NULL:
        cdef Condition *made
        cdef int i
        if not rules:
            return NULL
        made = <Condition *>calloc(len(rules), sizeof(Condition))
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

    cdef fill_networks(self, plan):
        cdef Slot slot
        cdef uint32_t at
        self.address_names = plan.address_names
        index = {name: i for i, name in enumerate(self.address_names)}
        count = len(plan.hosts) + sum(len(names) for *_, names in plan.networks)
        self.slot_mask = max(1, (1 << (2 * count).bit_length()) - 1)
        self.slots = <Slot *>calloc(<size_t>self.slot_mask + 1, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError
        for size, length, names in plan.networks:
            v6 = size == 16
            self.lengths[<int>v6][self.length_count[<int>v6]] = length
            self.length_count[<int>v6] += 1
            for prefix, name in names.items():
                memset(&slot, 0, sizeof(slot))
                slot.length = length + 1
                slot.l3 = 6 if v6 else 4
                packed = (prefix << (size * 8 - length)).to_bytes(size, "big")
                memcpy(slot.prefix, <const char *>packed, size)
                slot.index = index[name]
                at = self.find_slot(&slot)
                self.slots[at] = slot
        for packed, name in plan.hosts.items():
            memset(&slot, 0, sizeof(slot))
            slot.length = HOST
            slot.l3 = 4 if len(packed) == 4 else 6
            self.has_hosts[slot.l3 == 6] = True
            memcpy(slot.prefix, <const char *>packed, len(packed))
            slot.index = index[name]
            at = self.find_slot(&slot)
            self.slots[at] = slot

    cdef inline uint32_t find_slot(self, const Slot *wanted) noexcept nogil:
        """The slot of a named network or host, or the empty one where it belongs."""
        cdef uint64_t words[2]
        memcpy(words, wanted.prefix, 16)
        cdef uint64_t hashed = ctf_mix(words[0] ^ 0x9E3779B97F4A7C15u, words[1] ^ 0xBF58476D1CE4E5B9u)
        hashed = ctf_mix(hashed + wanted.length, 0x94D049BB133111EBu)
        cdef uint32_t at = <uint32_t>hashed & self.slot_mask
        while self.slots[at].length:
            if (
                self.slots[at].length == wanted.length
                and self.slots[at].l3 == wanted.l3
                and same(self.slots[at].prefix, wanted.prefix)
            ):
                break
            at = (at + 1) & self.slot_mask
        return at

    cdef inline int name_of(self, uint8_t l3, const uint8_t *address, bint whole) noexcept nogil:
        """The index of a host's name, or of that of the smallest network that holds it, or -1.

        One probe for hosts, where the address is kept whole, and one for each length of
        prefix that has names, however many these are.
        """
        cdef Slot wanted
        cdef int v6 = l3 == 6
        cdef int i
        cdef uint32_t at
        wanted.l3 = l3
        if whole and self.has_hosts[v6]:
            wanted.length = HOST
            copy_masked(wanted.prefix, address, masks[128 if v6 else 32])
            at = self.find_slot(&wanted)
            if self.slots[at].length:
                return self.slots[at].index
        for i in range(self.length_count[v6]):
            wanted.length = self.lengths[v6][i] + 1
            copy_masked(wanted.prefix, address, masks[self.lengths[v6][i]])
            at = self.find_slot(&wanted)
            if self.slots[at].length:
                return self.slots[at].index
        return -1

    cdef inline bint matches(self, const Condition *rule, const Entry *entry) noexcept nogil:
        return (
            (rule.l3 == 0 or rule.l3 == entry.l3)
            and (rule.l4 < 0 or rule.l4 == entry.l4)
            and (rule.first_port < 0 or rule.first_port <= entry.dport <= rule.last_port)
            and (rule.zone < 0 or rule.zone == entry.zone)
            and (entry.mark & rule.mark_mask) == rule.mark
            and holds(&rule.src, entry.l3, entry.src)
            and holds(&rule.dst, entry.l3, entry.dst)
            and (rule.egress.l3 == 0 or (
                not same(entry.src, entry.reply_dst)
                and holds(&rule.egress, entry.l3, entry.reply_dst)
            ))
            and (rule.backend.l3 == 0 or (
                not same(entry.dst, entry.reply_src)
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
        cdef int name
        cdef bint whole = field.prefix6 == 128 if l3 == 6 else field.prefix4 == 32
        if self.length_count[l3 == 6] or (whole and self.has_hosts[l3 == 6]):
            name = self.name_of(l3, address, whole)
            if name >= 0:
                at[0] = NAMED
                at[1], at[2], at[3], at[4] = name >> 24 & 255, name >> 16 & 255, name >> 8 & 255, name & 255
                return
        at[0] = IPV6 if l3 == 6 else IPV4
        copy_masked(at + 1, address, masks[field.prefix6 if l3 == 6 else field.prefix4])

    cdef inline uint32_t service_of(self, const Entry *entry) noexcept nogil:
        cdef const uint32_t *ports = self.services[entry.l4]
        if ports == NULL:
            return self.no_ports
        return ports[entry.dport] - 1 if ports[entry.dport] else self.unknown

    cdef void group_of(self, const Entry *entry, uint8_t *group) noexcept nogil:
        """The bytes of an entry's group: see grouping.py."""
        cdef const Field *field
        cdef uint8_t *at
        cdef uint32_t number
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
                number = self.service_of(entry)
                at[0], at[1], at[2] = number >> 16 & 255, number >> 8 & 255, number & 255
            elif field.kind == DPORT:
                number = entry.dport
                if self.known_ports and self.service_of(entry) == self.unknown:
                    number = OTHER_PORT
                at[0], at[1], at[2] = number >> 16 & 255, number >> 8 & 255, number & 255
            elif field.kind == ZONE:
                at[0], at[1] = entry.zone >> 8, entry.zone & 255
            elif field.kind == FWMARK:
                number = entry.mark & self.mark_mask
                at[0], at[1], at[2], at[3] = number >> 24, number >> 16 & 255, number >> 8 & 255, number & 255
            elif field.kind == EGRESS:
                if not same(entry.src, entry.reply_dst):
                    self.put_address(at, field, entry.l3, entry.reply_dst)
            elif not same(entry.dst, entry.reply_src):
                self.put_address(at, field, entry.l3, entry.reply_src)

    cdef address_text(self, const Field *field, const uint8_t *at):
        cdef char text[50]
        if at[0] == NONE:
            return ""
        if at[0] == NAMED:
            return self.address_names[at[1] << 24 | at[2] << 16 | at[3] << 8 | at[4]]
        inet_ntop(AF_INET6 if at[0] == IPV6 else AF_INET, at + 1, text, sizeof(text))
        length = field.prefix6 if at[0] == IPV6 else field.prefix4
        whole = 128 if at[0] == IPV6 else 32
        address = text[:strlen(text)].decode("ascii")
        return address if length == whole else f"{address}/{length}"

    cdef tuple labels_of(self, const uint8_t *group):
        """The values of the labels of a group."""
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
                value = self.service_names[at[0] << 16 | at[1] << 8 | at[2]]
            elif field.kind == DPORT:
                value = OTHER if at[0] else str(at[1] << 8 | at[2])
            elif field.kind == ZONE:
                value = str(at[0] << 8 | at[1])
            elif field.kind == FWMARK:
                value = str(<uint32_t>at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3])
            else:
                value = self.address_text(field, at)
            values.append(value)
        return tuple(values)


# The sums: see grouping.py.


cdef int compare(const void *one, const void *other, void *size) noexcept nogil:
    return memcmp(one, other, (<size_t *>size)[0])


cdef class Groups:
    """Sums by group: a dense array of rows, and an index of open addressing into it.

    A row is the bytes of a group and a Total. See tally.Groups.
    """

    cdef Plan plan
    cdef uint8_t *data
    cdef uint32_t *index        # row number + 1, or 0 for an empty place
    cdef size_t group_size
    cdef size_t row_size
    cdef uint32_t count
    cdef uint32_t capacity      # of rows
    cdef uint32_t mask          # places in the index - 1
    cdef uint64_t secret[2]

    def __cinit__(self, Plan plan not None):
        self.plan = plan
        self.group_size = plan.group_size
        self.row_size = self.group_size + sizeof(Total)
        self.capacity = 256
        self.mask = 1023
        self.data = <uint8_t *>calloc(self.capacity, self.row_size)
        self.index = <uint32_t *>calloc(self.mask + 1, sizeof(uint32_t))
        if self.data == NULL or self.index == NULL:
            raise MemoryError
        cdef bytes random = os.urandom(16)
        memcpy(self.secret, <const char *>random, 16)
        self.secret[1] |= 1

    def __dealloc__(self):
        free(self.data)
        free(self.index)

    def __len__(self):
        return self.count

    cdef inline uint8_t *group(self, uint32_t row) noexcept nogil:
        return self.data + row * self.row_size

    cdef inline Total *total(self, uint32_t row) noexcept nogil:
        return <Total *>(self.data + row * self.row_size + self.group_size)

    cdef inline uint32_t place(self, const uint8_t *group) noexcept nogil:
        """The place of a group in the index: its own, or the empty one where it belongs."""
        cdef uint64_t word
        cdef uint64_t hashed = self.secret[0]
        cdef size_t i
        for i in range(0, self.group_size, 8):
            memcpy(&word, group + i, 8)
            hashed = ctf_mix(hashed ^ word, self.secret[1] + i)
        cdef uint32_t at = <uint32_t>(hashed ^ (hashed >> 32)) & self.mask
        while self.index[at] and memcmp(self.group(self.index[at] - 1), group, self.group_size):
            at = (at + 1) & self.mask
        return at

    cdef int grow(self) except -1 nogil:
        cdef uint32_t *index
        cdef uint8_t *data
        cdef uint32_t i
        if self.count == self.capacity:
            if self.capacity >= 1u << 30:
                with gil:
                    raise MemoryError
            data = <uint8_t *>realloc(self.data, <size_t>self.capacity * 2 * self.row_size)
            if data == NULL:
                with gil:
                    raise MemoryError
            self.data = data
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
                self.index[self.place(self.group(i))] = i + 1
        return 0

    cdef Total *of(self, const uint8_t *group) except NULL nogil:
        """The sums of a group, new where it has none."""
        cdef uint32_t at = self.place(group)
        if not self.index[at]:
            if self.count == self.capacity or self.count * 2 > self.mask:
                self.grow()
                at = self.place(group)
            memset(self.group(self.count), 0, self.row_size)
            memcpy(self.group(self.count), group, self.group_size)
            self.count += 1
            self.index[at] = self.count
        return self.total(self.index[at] - 1)

    cdef sums(self, uint32_t row):
        return Sums(*[number_of(self.total(row), field) for field in range(5)])

    cdef const uint8_t *key(self, bytes key) except NULL:
        if <size_t>len(key) != self.group_size:
            raise ValueError("a key of another plan")
        return <const uint8_t *><const char *>key

    def labels(self, bytes key):
        return self.plan.labels_of(self.key(key))

    def get(self, keys):
        cdef uint32_t at
        found = []
        for key in keys:
            at = self.index[self.place(self.key(key))]
            found.append(self.sums(at - 1) if at else None)
        return found

    def largest(self, uint32_t limit, by, without=()):
        cdef int measure = ("connections", "packets", "bytes").index(by)
        cdef uint8_t *hidden = <uint8_t *>calloc(self.count + 1, 1)
        cdef uint32_t *heap = NULL
        cdef uint32_t at, kept
        if hidden == NULL:
            raise MemoryError
        try:
            for key in without:
                at = self.index[self.place(self.key(key))]
                hidden[at] = 1  # the first stands for those that are not there
            heap = <uint32_t *>calloc(min(limit, self.count) + 1, sizeof(uint32_t))
            if heap == NULL:
                raise MemoryError
            with nogil:
                kept = self.fill_heap(heap, limit, measure, hidden)
            rows = [
                ((<const char *>self.group(heap[at]))[:self.group_size], self.sums(heap[at]))
                for at in range(kept)
            ]
        finally:
            free(hidden)
            free(heap)
        field = ((0, 0), (1, 3), (2, 4))[measure]
        rows.sort(key=lambda row: (-row[1][field[0]] - (row[1][field[1]] if measure else 0), row[0]))
        return rows

    def rows(self, uint32_t limit, by):
        cdef int measure = ("connections", "packets", "bytes").index(by)
        if self.index == NULL:
            raise ValueError("the rows were taken")
        free(self.index)  # nothing is looked up or added any more
        self.index = NULL
        with nogil:
            if 0 < limit < self.count:
                self.keep_largest(limit, measure)
            qsort_r(self.data, self.count, self.row_size, compare, &self.group_size)
        return Rows(_Labels(self), tuple([_Column(self, field) for field in range(5)]))

    cdef inline uint128_t size(self, uint32_t row, int measure) noexcept nogil:
        cdef const Total *total = self.total(row)
        if measure == 0:
            return total.connections
        return sum_of(total, measure - 1) + sum_of(total, measure + 1)

    cdef inline bint smaller(self, uint32_t one, uint32_t other, int measure) noexcept nogil:
        """Whether a row is to go before another: it is smaller, or equal and later in order."""
        cdef uint128_t a = self.size(one, measure)
        cdef uint128_t b = self.size(other, measure)
        if a != b:
            return a < b
        return memcmp(self.group(one), self.group(other), self.group_size) > 0

    cdef void sink(self, uint32_t *heap, uint32_t count, uint32_t at, int measure) noexcept nogil:
        cdef uint32_t child
        cdef uint32_t row = heap[at]
        while True:
            child = at * 2 + 1
            if child >= count:
                break
            if child + 1 < count and self.smaller(heap[child + 1], heap[child], measure):
                child += 1
            if not self.smaller(heap[child], row, measure):
                break
            heap[at] = heap[child]
            at = child
        heap[at] = row

    cdef uint32_t fill_heap(
        self, uint32_t *heap, uint32_t limit, int measure, const uint8_t *hidden
    ) noexcept nogil:
        """Fill a heap with the largest rows, the smallest of them at its root; how many."""
        cdef uint32_t count = 0
        cdef uint32_t i, at
        for i in range(self.count):
            if hidden != NULL and hidden[i + 1]:
                continue
            if count < limit:
                heap[count] = i
                count += 1
                if count == limit:
                    for at in range(count, 0, -1):
                        self.sink(heap, count, at - 1, measure)
            elif limit and self.smaller(heap[0], i, measure):
                heap[0] = i
                self.sink(heap, count, 0, measure)
        return count

    cdef int keep_largest(self, uint32_t limit, int measure) except -1 nogil:
        """Drop all rows but the largest."""
        cdef uint32_t *heap = <uint32_t *>calloc(limit, sizeof(uint32_t))
        cdef uint8_t *kept = <uint8_t *>calloc(limit, self.row_size)
        cdef uint32_t i
        if heap == NULL or kept == NULL:
            free(heap)
            free(kept)
            with gil:
                raise MemoryError
        self.fill_heap(heap, limit, measure, NULL)
        for i in range(limit):
            memcpy(kept + i * self.row_size, self.group(heap[i]), self.row_size)
        free(heap)
        free(self.data)
        self.data = kept
        self.count = self.capacity = limit
        return 0


cdef class _Labels:
    """The groups of rows, made as they are asked for."""

    cdef Groups groups

    def __init__(self, Groups groups):
        self.groups = groups

    def __len__(self):
        return self.groups.count

    def __getitem__(self, uint32_t i):
        if i >= self.groups.count:
            raise IndexError
        return self.groups.plan.labels_of(self.groups.group(i))

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.groups.count):
            yield self.groups.plan.labels_of(self.groups.group(i))


cdef class _Column:
    """One number for each row, made as they are asked for."""

    cdef Groups groups
    cdef int field

    def __init__(self, Groups groups, int field):
        self.groups = groups
        self.field = field

    def __len__(self):
        return self.groups.count

    def __getitem__(self, uint32_t i):
        if i >= self.groups.count:
            raise IndexError
        return number_of(self.groups.total(i), self.field)

    def __iter__(self):
        cdef uint32_t i
        for i in range(self.groups.count):
            yield number_of(self.groups.total(i), self.field)


# The translations: see nat.py.

DEF WAITING = 16
DEF SNAT = 2                    # in the order of the names
DEF DNAT = 1
DEF BOTH = 0


cdef struct Count:
    uint8_t key[24]
    uint32_t count


cdef class Counts:
    """Numbers by key: a dense array of rows, and an index of open addressing into it."""

    cdef Count *rows
    cdef uint32_t *index        # row number + 1, or 0 for an empty place
    cdef uint32_t count
    cdef uint32_t capacity      # a power of 2; the index has twice as many places
    cdef uint64_t secret[2]
    cdef uint8_t waiting[WAITING][24]
    cdef uint64_t hashes[WAITING]
    cdef int waiting_count

    def __cinit__(self):
        cdef bytes random = os.urandom(16)
        memcpy(self.secret, <const char *>random, 16)
        self.secret[1] |= 1
        self.resize(64)

    def __dealloc__(self):
        free(self.rows)
        free(self.index)

    cdef int resize(self, uint32_t capacity) except -1 nogil:
        cdef uint32_t *index
        cdef Count *rows
        cdef uint32_t i
        if capacity > 1u << 30:
            with gil:
                raise MemoryError
        index = <uint32_t *>calloc(<size_t>capacity * 2, sizeof(uint32_t))
        if index == NULL:
            with gil:
                raise MemoryError
        rows = <Count *>realloc(self.rows, <size_t>capacity * sizeof(Count))
        if rows == NULL:
            free(index)
            with gil:
                raise MemoryError
        free(self.index)
        self.index = index
        self.rows = rows
        self.capacity = capacity
        cdef uint32_t at
        for i in range(self.count):
            at = <uint32_t>self.hash(rows[i].key) & (capacity * 2 - 1)
            while index[at]:  # no two are equal
                at = (at + 1) & (capacity * 2 - 1)
            index[at] = i + 1
        return 0

    cdef inline uint64_t hash(self, const uint8_t *key) noexcept nogil:
        cdef uint64_t words[3]
        memcpy(words, key, 24)
        cdef uint64_t hashed = ctf_mix(self.secret[0] ^ words[0], self.secret[1])
        hashed = ctf_mix(hashed ^ words[1], self.secret[1] + 8)
        hashed = ctf_mix(hashed ^ words[2], self.secret[1] + 16)
        return hashed ^ (hashed >> 32)

    cdef inline uint32_t place(self, const uint8_t *key, uint64_t hashed) noexcept nogil:
        """The place of a key in the index: its own, or the empty one where it belongs."""
        cdef uint32_t mask = self.capacity * 2 - 1
        cdef uint32_t at = <uint32_t>hashed & mask
        while self.index[at] and memcmp(self.rows[self.index[at] - 1].key, key, 24):
            at = (at + 1) & mask
        return at

    cdef inline Count *of(self, const uint8_t *key) except NULL nogil:
        """The row of a key, new with 0 where it has none. The next call may move it."""
        return self.of_hashed(key, self.hash(key))

    cdef int count_soon(self, const uint8_t *key) except -1 nogil:
        """Add 1 to a key, after settle() at the latest.

        In a large table nearly each key costs the time of the memory, unless its place
        was asked for before.
        """
        cdef uint64_t hashed = self.hash(key)
        prefetch(&self.index[<uint32_t>hashed & (self.capacity * 2 - 1)])
        memcpy(self.waiting[self.waiting_count], key, 24)
        self.hashes[self.waiting_count] = hashed
        self.waiting_count += 1
        if self.waiting_count == WAITING:
            self.settle()
        return 0

    cdef int settle(self) except -1 nogil:
        """Count all that waits."""
        cdef int i
        for i in range(self.waiting_count):
            self.of_hashed(self.waiting[i], self.hashes[i]).count += 1
        self.waiting_count = 0
        return 0

    cdef Count *of_hashed(self, const uint8_t *key, uint64_t hashed) except NULL nogil:
        cdef uint32_t at = self.place(key, hashed)
        if not self.index[at]:
            if self.count == self.capacity:
                self.resize(self.capacity * 2)
                at = self.place(key, hashed)
            memcpy(self.rows[self.count].key, key, 24)
            self.rows[self.count].count = 0
            self.count += 1
            self.index[at] = self.count
        return &self.rows[self.index[at] - 1]


cdef struct Ranked:
    # Rows in the order in which the largest are kept.
    const Count *rows
    const uint32_t *most        # what they are compared by first, or NULL


cdef inline bint goes_before(const Ranked *of, uint32_t one, uint32_t other) noexcept nogil:
    """Whether a row is to go before another: it is smaller, or equal and later in order."""
    if of.most != NULL and of.most[one] != of.most[other]:
        return of.most[one] < of.most[other]
    if of.rows[one].count != of.rows[other].count:
        return of.rows[one].count < of.rows[other].count
    return memcmp(of.rows[one].key, of.rows[other].key, 24) > 0


cdef void sift(const Ranked *of, uint32_t *heap, uint32_t count, uint32_t at) noexcept nogil:
    cdef uint32_t row = heap[at]
    cdef uint32_t child
    while at * 2 + 1 < count:
        child = at * 2 + 1
        if child + 1 < count and goes_before(of, heap[child + 1], heap[child]):
            child += 1
        if not goes_before(of, heap[child], row):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = row


cdef void offer(
    const Ranked *of, uint32_t *heap, uint32_t *count, uint32_t limit, uint32_t row
) noexcept nogil:
    """Put a row into a heap of the largest, which has the smallest of them at its root."""
    cdef uint32_t at
    if count[0] < limit:
        heap[count[0]] = row
        count[0] += 1
        if count[0] == limit:
            for at in range(limit, 0, -1):
                sift(of, heap, limit, at - 1)
    elif limit and goes_before(of, heap[0], row):
        heap[0] = row
        sift(of, heap, limit, 0)


cdef class Translations:
    """The twin of nat.Translations."""

    cdef Plan plan
    cdef uint64_t connections[2][256][3]        # IPv4 and IPv6, by protocol
    cdef Counts egress          # by address, layer 3 and 4: connections
    cdef Counts ports           # by address, port and zone of the destination, and row of egress
    cdef bint zoned

    def __cinit__(self, Plan plan not None):
        self.plan = plan
        self.egress = Counts()
        self.ports = Counts()

    cdef inline int add(self, const Entry *entry) except -1 nogil:
        cdef bint snat = entry.reply_dport != entry.sport or not same(entry.reply_dst, entry.src)
        cdef bint dnat = entry.reply_sport != entry.dport or not same(entry.reply_src, entry.dst)
        if snat or dnat:
            self.connections[entry.l3 == 6][entry.l4][(BOTH if dnat else SNAT) if snat else DNAT] += 1
            if snat:
                self.add_egress(entry)
        return 0

    cdef int add_egress(self, const Entry *entry) except -1 nogil:
        cdef uint8_t key[24]
        cdef uint32_t row
        cdef Count *found
        memset(key, 0, 24)
        memcpy(key, entry.reply_dst, 16)
        key[16], key[17] = entry.l3, entry.l4
        found = self.egress.of(key)
        found.count += 1
        if with_ports[entry.l4] or id_of[entry.l4]:
            row = <uint32_t>(found - self.egress.rows)
            memcpy(key, entry.reply_src, 16)
            key[16], key[17] = entry.reply_sport >> 8, entry.reply_sport & 255
            key[18], key[19] = entry.reply_zone >> 8, entry.reply_zone & 255
            memcpy(key + 20, &row, 4)
            self.ports.count_soon(key)
            self.zoned = self.zoned or entry.reply_zone != 0
        return 0

    cdef int put_without_zones(self, Counts merged) except -1 nogil:
        """Of destinations that are in several zones keep the number of the fullest."""
        cdef Count *found
        cdef uint8_t key[24]
        cdef uint32_t i
        for i in range(self.ports.count):
            memcpy(key, self.ports.rows[i].key, 24)
            key[18] = key[19] = 0
            found = merged.of(key)
            found.count = max(found.count, self.ports.rows[i].count)
        return 0

    cdef inline uint32_t egress_of(self, uint32_t row) noexcept nogil:
        """The row of the egress address of a destination."""
        cdef uint32_t found
        memcpy(&found, self.ports.rows[row].key + 20, 4)
        return found

    def nat(self, uint32_t limit, uint32_t destinations):
        """See tally.Translations."""
        cdef uint32_t count = self.egress.count
        cdef uint32_t *most = <uint32_t *>calloc(count + 1, sizeof(uint32_t))
        cdef uint32_t *held = <uint32_t *>calloc(count + 1, sizeof(uint32_t))  # destinations
        cdef uint32_t *heap = <uint32_t *>calloc(count + 1, sizeof(uint32_t))
        # Of an egress address that is kept, where its heap of destinations begins.
        cdef size_t *start = <size_t *>calloc(count + 1, sizeof(size_t))
        cdef uint8_t *is_kept = <uint8_t *>calloc(count + 1, 1)
        cdef uint32_t *heaps = NULL
        cdef uint64_t connections[256]
        cdef uint32_t ports[256]
        cdef uint32_t kept = 0
        cdef uint32_t i, row, size
        cdef size_t length = 0
        cdef Ranked ranked
        cdef Counts merged
        self.ports.settle()
        if self.zoned:
            merged = Counts()
            with nogil:
                self.put_without_zones(merged)
            self.ports, self.zoned = merged, False
        try:
            if most == NULL or held == NULL or heap == NULL or start == NULL or is_kept == NULL:
                raise MemoryError
            memset(connections, 0, sizeof(connections))
            memset(ports, 0, sizeof(ports))
            with nogil:
                for i in range(self.ports.count):
                    row = self.egress_of(i)
                    most[row] = max(most[row], self.ports.rows[i].count)
                    held[row] += 1
                ranked.rows, ranked.most = self.egress.rows, most
                for i in range(count):
                    offer(&ranked, heap, &kept, limit if limit else count, i)
                for i in range(kept):
                    row = heap[i]
                    is_kept[row] = True
                    start[row] = length
                    length += min(held[row], destinations)
                    held[row] = 0
                for i in range(count):
                    if not is_kept[i]:
                        row = self.egress.rows[i].key[17]
                        connections[row] += self.egress.rows[i].count
                        ports[row] = max(ports[row], most[i])
            heaps = <uint32_t *>calloc(length + 1, sizeof(uint32_t))
            if heaps == NULL:
                raise MemoryError
            with nogil:
                ranked.rows, ranked.most = self.ports.rows, NULL
                if destinations:
                    for i in range(self.ports.count):
                        row = self.egress_of(i)
                        if is_kept[row]:
                            offer(&ranked, heaps + start[row], &held[row], destinations, i)
            rows = [
                self.egress_row(heap[i], most[heap[i]], heaps + start[heap[i]], held[heap[i]])
                for i in range(kept)
            ]
        finally:
            free(most)
            free(held)
            free(heap)
            free(start)
            free(is_kept)
            free(heaps)
        rows.sort(key=_first)
        return Nat(
            self.counts(),
            [shown for _, shown in rows]
            + [
                Egress(OTHER, self.plan.protocol_names[l4], connections[l4], ports[l4], [])
                for l4 in range(256)
                if connections[l4]
            ],
        )

    cdef tuple egress_row(self, uint32_t row, uint32_t most, const uint32_t *heap, uint32_t count):
        """What it is sorted by, and an Egress."""
        cdef const Count *found = &self.egress.rows[row]
        cdef const Count *destination
        cdef uint32_t i
        cdef uint8_t l3 = found.key[16]
        busiest = []
        for i in range(count):
            destination = &self.ports.rows[heap[i]]
            order = -<int64_t>destination.count, (<const char *>destination.key)[:18]
            dport = destination.key[16] << 8 | destination.key[17]
            busiest.append(
                (order, (text_of(l3, destination.key), str(dport), destination.count))
            )
        busiest.sort(key=_first)
        return (
            (l3, (<const char *>found.key)[:16], found.key[17]),
            Egress(
                text_of(l3, found.key),
                self.plan.protocol_names[found.key[17]],
                found.count,
                most,
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


cdef text_of(uint8_t l3, const uint8_t *address):
    cdef char text[50]
    inet_ntop(AF_INET6 if l3 == 6 else AF_INET, address, text, sizeof(text))
    return text[:strlen(text)].decode("ascii")


def _first(pair):
    return pair[0]


cdef class Grouping:
    """Sums entries by group. The twin of grouping.Grouping."""

    cdef Plan plan
    cdef Groups groups
    cdef uint64_t filtered
    cdef uint64_t malformed
    cdef uint64_t uncounted
    cdef bint seen[2][256]                      # IPv4 and IPv6, by protocol: has entries
    cdef bint touched[2][256]                   # has sums
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
        """Count an entry; whether it passes the filters, and its group then."""
        cdef int v6 = entry.l3 == 6
        cdef int i
        cdef bint passes = self.plan.passes(entry)
        if passes:
            self.plan.group_of(entry, group)
            self.add_sums(group, entry, 1, entry.counters)
        else:
            self.filtered += 1
        self.seen[v6][entry.l4] = True
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
        """Add to the sums of a group, and of the protocols of an entry."""
        cdef int v6 = entry.l3 == 6
        add_row(self.groups.of(group), connections, counters)
        add_row(&self.totals[v6][entry.l4], connections, counters)
        self.seen[v6][entry.l4] = self.touched[v6][entry.l4] = True
        return 0

    cdef int add_malformed(self, const void *data, size_t size) except -1 nogil:
        if self.malformed == 0:
            with gil:
                self.first_malformed = (<const char *>data)[:min(size, MAX_LINE + 1)]
        self.malformed += 1
        return 0

    cdef check_open(self):
        # The groups are in the hands of who has the tally.
        if self.finished:
            raise ValueError("the decoder is finished")

    cdef tally(self):
        cdef int v6, l4, i
        self.finished = True
        totals, states, flags = {}, {}, {}
        for v6 in range(2):
            l3 = "ipv6" if v6 else "ipv4"
            for l4 in range(256):
                if not self.seen[v6][l4]:
                    continue
                name = self.plan.protocol_names[l4]
                if self.touched[v6][l4]:
                    totals[l3, name] = Sums(
                        *[number_of(&self.totals[v6][l4], i) for i in range(5)]
                    )
                for i, state in sorted(
                    enumerate((*uapi.STATES.get(l4, ()), uapi.UNKNOWN_STATE)), key=_by_name
                ):
                    if self.states[v6][l4][i]:
                        states[l3, name, state] = self.states[v6][l4][i]
                for i, flag in sorted(enumerate(uapi.FLAGS), key=_by_name):
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


def _by_name(item):
    return item[1]


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
    cdef const Stateful *states = &stateful[l4]
    cdef const char *start = end
    cdef const char *name
    cdef int i
    while start > p and start[-1] != c' ':
        start -= 1
    if start == p or start == end or c'0' <= start[0] <= c'9':
        return NO_STATE
    cdef size_t size = end - start
    for i in range(states.count):
        name = states.names[i]
        # A name is followed by zeros, and what is compared may hold some.
        if size < MAX_STATE_NAME and memcmp(name, start, size) == 0 and strlen(name) == size:
            return i
    return states.count


cdef inline uint8_t flag_of(const char *p, const char *end) noexcept nogil:
    """The flag that is a token in brackets."""
    cdef size_t size = end - p
    if size == 9 and memcmp(p, b"[ASSURED]", 9) == 0:
        return ASSURED
    if size == 9 and memcmp(p, b"[OFFLOAD]", 9) == 0:
        return OFFLOAD
    if size == 12 and memcmp(p, b"[HW_OFFLOAD]", 12) == 0:
        return HW_OFFLOAD
    return 0


cdef inline bint head(const char *p, const char *end, Entry *entry) noexcept nogil:
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
    entry.state = state_of(p, end, entry.l4) if stateful[l4].protoinfo else NO_STATE
    return True


cdef inline const char *pair(const char *p, const char *end, uint64_t *values) noexcept nogil:
    """Read packets, " bytes=" and bytes; where they end, before a space or at the end, or NULL."""
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
    """Read an address, " dst=" and another; where that ends, or NULL."""
    cdef const char *q = token_end(p, end)
    if not address(p, q, l3, src) or not begins(q, end, b" dst=", 5):
        return NULL
    p = q + 5
    q = token_end(p, end)
    return q if address(p, q, l3, dst) else NULL


cdef inline bint whole_number(const char *p, const char *end, int digits, uint64_t most, uint64_t *value) noexcept nogil:
    """Read a token that is a number."""
    return number(p, end, digits, value) == end and value[0] <= most


cdef bint line_to_entry(const char *line, const char *end, Entry *entry) noexcept nogil:
    """Read one line, token by token; whether it is what the kernel writes."""
    cdef const char *p = find(line, end, b" src=", 5)
    cdef const char *q
    cdef uint64_t value
    cdef bint sent = False, zoned = False, ported = False, received = False
    cdef bint marked = False, flagged = False, sported = False, both_zoned = False
    cdef bint reply_sported = False, reply_dported = False, reply_zoned = False
    # What is called the source's port in either tuple. The id of ICMP stands for it.
    cdef const char *source = b"sport="
    cdef const char *reply_destination = b"dport="
    cdef size_t named = 6
    memset(entry, 0, sizeof(Entry))
    if p == NULL or not head(line, p, entry):
        return False
    if id_of[entry.l4]:
        source = reply_destination = b"id="
        named = 3
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
        if sent:
            continue
        if begins(p, q, b"packets=", 8):
            sent = True
            q = pair(p + 8, end, &entry.counters[0])
            if q == NULL:
                return False
        elif not zoned and begins(p, q, b"zone-orig=", 10):
            zoned = True
            if not whole_number(p + 10, q, 5, 65535, &value):
                return False
            entry.zone = <uint16_t>value
        elif not zoned and not ported and begins(p, q, b"dport=", 6):
            ported = True
            if not whole_number(p + 6, q, 5, 65535, &value):
                return False
            entry.dport = <uint16_t>value
        elif not zoned and not sported and begins(p, q, source, named):
            sported = True
            if not whole_number(p + named, q, 5, 65535, &value):
                return False
            entry.sport = <uint16_t>value
    q = addresses(p + 4, end, entry.l3, entry.reply_src, entry.reply_dst)
    if q == NULL:
        return False
    while q != end:
        p = q + 1
        q = token_end(p, end)
        if not received and begins(p, q, b"packets=", 8):
            received = True
            q = pair(p + 8, end, &entry.counters[2])
            if q == NULL:
                return False
        elif not flagged and p < q and p[0] == c'[':
            flagged = True
            entry.flags |= flag_of(p, q)
        elif not marked and begins(p, q, b"mark=", 5):
            marked = True
            if not whole_number(p + 5, q, 10, 0xFFFFFFFFu, &value):
                return False
            entry.mark = <uint32_t>value
        elif not zoned and begins(p, q, b"zone=", 5):
            zoned = both_zoned = True
            if not whole_number(p + 5, q, 5, 65535, &value):
                return False
            entry.zone = <uint16_t>value
        elif not reply_zoned and begins(p, q, b"zone-reply=", 11):
            reply_zoned = True
            if not whole_number(p + 11, q, 5, 65535, &value):
                return False
            entry.reply_zone = <uint16_t>value
        elif not reply_sported and begins(p, q, b"sport=", 6):
            reply_sported = True
            if not whole_number(p + 6, q, 5, 65535, &value):
                return False
            entry.reply_sport = <uint16_t>value
        elif not reply_dported and begins(p, q, reply_destination, named):
            reply_dported = True
            if not whole_number(p + named, q, 5, 65535, &value):
                return False
            entry.reply_dport = <uint16_t>value
    if both_zoned and not reply_zoned:
        entry.reply_zone = entry.zone
    entry.counted = sent or received
    return True


cdef class TextDecoder:
    """The twin of procfile.Decoder."""

    cdef Grouping grouping
    cdef char *tail             # the beginning of a line, up to one byte more than the longest
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
        """Take in the lines that end in this block of the file, and keep the rest for the next."""
        self.grouping.check_open()
        if block.shape[0]:
            with nogil:
                self.split(<const char *>&block[0], <const char *>&block[0] + block.shape[0])

    def finish(self):
        """The tally of all that was fed. A last line needs no newline."""
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


# The messages of a ctnetlink dump: see ctnetlink.py.

DEF MAX_ATTRIBUTE = 20          # the highest type that is read: CTA_TIMESTAMP
DEF MAX_PROTOCOL = 7            # and in CTA_TUPLE_PROTO: CTA_PROTO_ICMPV6_ID

assert CTA_TIMESTAMP <= MAX_ATTRIBUTE
assert max(CTA_PROTO_DST_PORT, *uapi.ID_OF.values()) <= MAX_PROTOCOL


cdef bint attributes(Span data, int most, Span *found) noexcept nogil:
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


cdef inline bint number_in(Span data, size_t size, uint64_t *value) noexcept nogil:
    """Read a number of so many bytes in network order."""
    cdef size_t i
    if data.start == NULL or data.size != size:
        return False
    value[0] = 0
    for i in range(size):
        value[0] = value[0] << 8 | data.start[i]
    return True


cdef inline bint short_in(Span data, uint16_t *value) noexcept nogil:
    """Read a number of 16 bits in network order, where it is there."""
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
    """Read CTA_PROTOINFO_TCP_STATE and its like, where it is there."""
    cdef Span found[4]
    cdef Span info[2]
    cdef uint64_t value
    if not attributes(data, 3, found):
        return False
    if found[stateful[l4].protoinfo].start == NULL:
        return True
    if not attributes(found[stateful[l4].protoinfo], 1, info):
        return False
    if not number_in(info[CTA_PROTOINFO_STATE], 1, &value):
        return False
    state[0] = <uint8_t>min(value, <uint64_t>stateful[l4].count)
    return True


cdef bint message_to_entry(Span message, Entry *entry) noexcept nogil:
    """Read one message after its header; whether it is what the kernel sends."""
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
    # GRE sends the keys of the tunnel in place of ports.
    if with_ports[entry.l4]:
        if not (
            short_in(protocol[CTA_PROTO_SRC_PORT], &entry.sport)
            and short_in(protocol[CTA_PROTO_DST_PORT], &entry.dport)
            and short_in(reply_protocol[CTA_PROTO_SRC_PORT], &entry.reply_sport)
            and short_in(reply_protocol[CTA_PROTO_DST_PORT], &entry.reply_dport)
        ):
            return False
    elif id_of[entry.l4]:
        # Replies have the id of what they answer.
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
    if top[CTA_PROTOINFO].start != NULL and stateful[entry.l4].protoinfo:
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


# The ledger: see ledger.py.

DEF MAX_IDENTITY = 512
DEF SAVED_SIZE = 52             # of ledger.CONNECTION: a row without its dump
DEF MAX_BATCHES = 4096          # of events in one call of drain()


cdef struct Connection:
    uint64_t identity[2]
    uint64_t counters[4]
    uint32_t dump               # the last that it was in
    uint32_t absent             # since when it is in none, in seconds; 0 while it is; or when it ended


cdef class Connections:
    """Connections by identity: a dense array, and an index of open addressing into it."""

    cdef Connection *rows
    cdef uint32_t *index        # row number + 1, or 0 for an empty place
    cdef uint32_t count
    cdef uint32_t capacity      # a power of 2; the index has twice as many places

    def __cinit__(self):
        self.resize(256)

    def __dealloc__(self):
        free(self.rows)
        free(self.index)

    cdef int resize(self, uint32_t capacity) except -1 nogil:
        cdef uint32_t *index
        cdef Connection *rows
        cdef uint32_t i
        if capacity > 1u << 30:
            with gil:
                raise MemoryError
        index = <uint32_t *>calloc(<size_t>capacity * 2, sizeof(uint32_t))
        if index == NULL:
            with gil:
                raise MemoryError
        rows = <Connection *>realloc(self.rows, <size_t>capacity * sizeof(Connection))
        if rows == NULL:
            free(index)
            with gil:
                raise MemoryError
        free(self.index)
        self.index = index
        self.rows = rows
        self.capacity = capacity
        for i in range(self.count):
            index[self.place(rows[i].identity)] = i + 1
        return 0

    cdef inline uint32_t place(self, const uint64_t *identity) noexcept nogil:
        """The place of a connection in the index: its own, or the empty one where it belongs."""
        cdef uint32_t mask = self.capacity * 2 - 1
        cdef uint32_t at = <uint32_t>identity[0] & mask
        cdef Connection *row
        while self.index[at]:
            row = &self.rows[self.index[at] - 1]
            if row.identity[0] == identity[0] and row.identity[1] == identity[1]:
                break
            at = (at + 1) & mask
        return at

    cdef inline Connection *find(self, const uint64_t *identity) noexcept nogil:
        """A connection, or NULL."""
        cdef uint32_t row = self.index[self.place(identity)]
        return &self.rows[row - 1] if row else NULL

    cdef Connection *add(self, const uint64_t *identity) except NULL nogil:
        """A connection that is not there yet, or that it is to be replaced."""
        cdef uint32_t at = self.place(identity)
        cdef Connection *row
        if not self.index[at]:
            if self.count == self.capacity:
                self.resize(self.capacity * 2)
                at = self.place(identity)
            self.rows[self.count].identity[0] = identity[0]
            self.rows[self.count].identity[1] = identity[1]
            self.count += 1
            self.index[at] = self.count
        row = &self.rows[self.index[at] - 1]
        row.absent = 0
        return row

    cdef void remove(self, uint32_t row) noexcept nogil:
        """Remove a row. The last row takes its place."""
        cdef uint32_t mask = self.capacity * 2 - 1
        cdef uint32_t hole = self.place(self.rows[row].identity)
        cdef uint32_t at = hole
        cdef uint32_t home
        while True:  # close the hole, so that nothing behind it is lost
            at = (at + 1) & mask
            if not self.index[at]:
                break
            home = <uint32_t>self.rows[self.index[at] - 1].identity[0] & mask
            if (at - home & mask) >= (at - hole & mask):
                self.index[hole] = self.index[at]
                hole = at
        self.index[hole] = 0
        self.count -= 1
        if row != self.count:
            self.index[self.place(self.rows[self.count].identity)] = row + 1
            self.rows[row] = self.rows[self.count]

    cdef void write(self, uint8_t *to) noexcept nogil:
        """All rows, as they are saved."""
        cdef uint32_t i
        for i in range(self.count):
            memcpy(to, &self.rows[i], SAVED_SIZE - 4)
            memcpy(to + SAVED_SIZE - 4, &self.rows[i].absent, 4)
            to += SAVED_SIZE

    cdef int read(self, const char *p, uint32_t count) except -1:
        """Add rows that were saved, the first of those with the same identity."""
        cdef uint64_t identity[2]
        cdef Connection *row
        cdef uint32_t i
        for i in range(count):
            memcpy(identity, p, 16)
            if self.find(identity) == NULL:
                row = self.add(identity)
                row.dump = 0
                memcpy(row.counters, p + 16, 32)
                memcpy(&row.absent, p + SAVED_SIZE - 4, 4)
            p += SAVED_SIZE
        return 0

    cdef int shrink(self) except -1 nogil:
        """Give back memory after many connections have ended."""
        while self.capacity > 256 and self.count < self.capacity // 4:
            self.resize(self.capacity // 2)
        return 0


cdef class Ledger:
    """The twin of ledger.Ledger."""

    cdef Plan plan
    cdef Grouping sums
    cdef Connections connections
    cdef Connections ended              # of late
    cdef Connections ended_before
    cdef uint32_t ended_since
    cdef uint32_t ended_last
    cdef uint32_t duplicate_at
    cdef uint32_t now
    cdef uint32_t dump
    cdef uint32_t dump_since
    cdef bint in_dump
    cdef public bint baseline
    cdef public bint duplicates
    cdef bytes secret
    cdef uint64_t keys[4]
    cdef uint64_t received, duplicate, zeroed, ended_unseen, ended_uncounted, malformed
    cdef ctf_datagrams *datagrams
    cdef object twin
    cdef uint32_t remember_seconds
    cdef uint32_t max_remembered
    cdef uint32_t absent_seconds

    def __cinit__(self, Plan plan not None, bytes saved=b""):
        self.plan = plan
        self.duplicates = True
        self.sums = Grouping(plan)
        self.connections = Connections()
        self.ended = Connections()
        self.ended_before = Connections()
        # Imported here: without a ledger there is no need of the pure engine.
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
        """A dump begins, or begins again."""
        self.dump += 1
        self.dump_since = self.now
        self.in_dump = True

    def abandon_dump(self):
        """A dump was not read to its end."""
        self.in_dump = False

    def end_dump(self, uint32_t now, *, bint events):
        """A dump was read to its end, and all events of connections that ended meanwhile."""
        cdef Connection *row
        cdef uint32_t i = 0
        self.in_dump = False
        with nogil:
            while i < self.connections.count:
                row = &self.connections.rows[i]
                if row.dump == self.dump:
                    row.absent = 0
                elif not row.absent:
                    row.absent = now
                elif not events or now - row.absent > self.absent_seconds:
                    self.connections.remove(i)
                    self.ended_unseen += 1
                    continue
                i += 1
            self.connections.shrink()

    cdef int observe(self, const Entry *entry, const uint8_t *group) except -1 nogil:
        """An entry in a dump."""
        cdef uint64_t identity[2]
        cdef Connection *row
        if not self.identify(entry, identity):
            return 0
        if self.is_stale(self.ended.find(identity)) or self.is_stale(
            self.ended_before.find(identity)
        ):
            return 0
        row = self.connections.find(identity)
        if row == NULL:
            row = self.connections.add(identity)
            if not self.baseline:
                self.sums.add_sums(group, entry, 1, entry.counters)
        else:
            self.add_difference(row, entry, group)
        memcpy(row.counters, entry.counters, sizeof(row.counters))
        row.dump = self.dump
        return 0

    def destroy(self, const uint8_t[::1] datagram not None, uint32_t now):
        """A datagram of DESTROY events."""
        with nogil:
            self.forget(now)
            if datagram.shape[0]:
                self.destroy_all(&datagram[0], datagram.shape[0])

    def drain(self, int descriptor, uint32_t now):
        """Read the events that wait on a socket. Raises OSError, not for lost events."""
        cdef int error
        with nogil:
            self.forget(now)
            error = self.receive(descriptor)
        if error:
            raise OSError(error, os.strerror(error))

    def remember(self, const uint8_t[::1] datagram not None, uint32_t now):
        """A datagram of the kernel's dying list; whether it is the last."""
        cdef bint last = False
        if datagram.shape[0]:
            with nogil:
                last = self.remember_all(&datagram[0], datagram.shape[0], now)
        return last

    cdef bint remember_all(self, const uint8_t *p, size_t size, uint32_t now) except? -1 nogil:
        cdef uint32_t length
        cdef uint16_t kind
        cdef size_t step
        cdef Entry entry
        cdef Span message
        cdef Connection *row
        cdef Connection *before
        cdef uint64_t identity[2]
        while size >= NLMSG_HDRLEN:
            memcpy(&length, p, 4)
            memcpy(&kind, p + 4, 2)
            if length < NLMSG_HDRLEN or length > size:
                return False
            if kind == NLMSG_DONE or kind == NLMSG_ERROR:
                return True
            message.start, message.size = p + NLMSG_HDRLEN, length - NLMSG_HDRLEN
            if message_to_entry(message, &entry) and self.identify(&entry, identity):
                before = self.ended_before.find(identity)
                if self.ended.find(identity) == NULL and (before != NULL or self.baseline):
                    row = self.ended.add(identity)
                    if before == NULL:
                        row.absent = now
                        memcpy(row.counters, entry.counters, sizeof(row.counters))
                    else:
                        row.absent = before.absent
                        memcpy(row.counters, before.counters, sizeof(row.counters))
                self.ended_last = now
            step = (<size_t>length + 3) & ~<size_t>3
            if step >= size:
                return False
            p += step
            size -= step
        return False

    cdef int receive(self, int descriptor) except -1 nogil:
        """Read events until there is none, or for a bounded time; 0 or an errno."""
        cdef int received, i
        for _ in range(MAX_BATCHES):
            received = ctf_receive(descriptor, self.datagrams)
            if received == -EAGAIN:
                return 0
            if received < 0 and received != -ENOBUFS and received != -EINTR:
                return -received
            for i in range(received):
                self.destroy_all(self.datagrams.data[i], ctf_size(self.datagrams, i))
        return 0

    cdef int destroy_all(self, const uint8_t *p, size_t size) except -1 nogil:
        cdef uint32_t length
        cdef uint16_t kind
        cdef size_t step
        while size >= NLMSG_HDRLEN:
            memcpy(&length, p, 4)
            memcpy(&kind, p + 4, 2)
            if length < NLMSG_HDRLEN or length > size:
                return 0
            if kind == IPCTNL_MSG_CT_DELETE:
                self.received += 1
                self.end(p + NLMSG_HDRLEN, length - NLMSG_HDRLEN)
            step = (<size_t>length + 3) & ~<size_t>3
            if step >= size:
                return 0
            p += step
            size -= step
        return 0

    cdef int end(self, const uint8_t *p, size_t size) except -1 nogil:
        """One DESTROY event."""
        cdef Entry entry
        cdef Span message
        cdef Connection *row
        cdef uint64_t identity[2]
        cdef uint8_t group[MAX_GROUP]
        message.start, message.size = p, size
        if not message_to_entry(message, &entry) or not self.identify(&entry, identity):
            self.malformed += 1
            return 0
        if not self.plan.passes(&entry):
            return 0
        self.plan.group_of(&entry, group)
        row = self.connections.find(identity)
        if row != NULL:
            self.add_difference(row, &entry, group)
            self.connections.remove(<uint32_t>(row - self.connections.rows))
        else:
            if self.duplicates and (
                self.is_duplicate(self.ended.find(identity), &entry)
                or self.is_duplicate(self.ended_before.find(identity), &entry)
            ):
                self.duplicate += 1
                self.duplicate_at = self.now
                return 0
            if not self.baseline:
                self.sums.add_sums(group, &entry, 1, entry.counters)
        self.ended_uncounted += not entry.counted
        row = self.ended.add(identity)
        memcpy(row.counters, entry.counters, sizeof(row.counters))
        row.absent = self.now
        self.ended_last = self.now
        return 0

    cdef inline bint is_stale(self, const Connection *ended) noexcept nogil:
        return ended != NULL and ended.absent + self.remember_seconds >= self.dump_since

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

    cdef int forget(self, uint32_t now) except -1 nogil:
        """Forget ended connections, not while a dump may still show them."""
        self.now = now
        if not self.ended_since:
            self.ended_since = now
        if self.in_dump or now - self.ended_since < self.remember_seconds:
            return 0
        if not self.is_repeated() or self.ended.count >= self.max_remembered:
            with gil:
                old = now - self.ended_last > self.remember_seconds
                self.ended_before = Connections() if old else self.ended
                self.ended = Connections()
        self.ended_since = now
        return 0

    cdef bint identify(self, const Entry *entry, uint64_t *identity) noexcept nogil:
        """A keyed hash of 128 bits of what tells a connection from all others."""
        cdef uint8_t data[MAX_IDENTITY]
        cdef size_t size = 0
        cdef uint64_t word
        cdef int i
        for i in range(4):
            if entry.identity[i].size > MAX_IDENTITY - 8 - size:
                return False
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
        return True

    def traffic(self):
        """The traffic since the last call. Its connections are those first seen since."""
        sums = self.sums
        self.sums = Grouping(self.plan)
        return sums.tally()

    def save(self):
        """All that is to be known after a restart, but for the statistics."""
        cdef Connections before = self.ended_before if self.is_repeated() else Connections()
        cdef Py_ssize_t at = self.twin.HEADER.size
        live, ended = self.connections.count, self.ended.count + before.count
        saved = bytearray(at + self.twin.CONNECTION.size * (live + ended))
        saved[:at] = self.twin.HEADER.pack(self.secret, live, ended)
        cdef uint8_t[::1] view = saved
        cdef Connections of
        for of in (self.connections, self.ended, before):
            if of.count:
                of.write(&view[at])
                at += of.count * SAVED_SIZE
        return saved

    cdef load(self, bytes saved):
        cdef Py_ssize_t head = self.twin.HEADER.size
        cdef const char *p = saved
        if len(saved) < head:
            raise ValueError("a ledger that is cut off")
        self.secret, live, ended = self.twin.HEADER.unpack_from(saved)
        if len(saved) != head + (live + ended) * self.twin.CONNECTION.size:
            raise ValueError("a ledger of the wrong size")
        self.connections.read(p + head, live)
        self.ended_before.read(p + head + <Py_ssize_t>live * SAVED_SIZE, ended)


cdef class NetlinkDecoder:
    """The twin of ctnetlink.Decoder."""

    cdef Grouping grouping
    cdef Ledger ledger          # or None

    def __cinit__(self, Plan plan not None, Ledger ledger=None):
        self.grouping = Grouping(plan)
        self.ledger = ledger

    def feed(self, const uint8_t[::1] datagram not None):
        """Take in the entries of a datagram; whether the dump ends with it."""
        cdef int32_t error = 0
        cdef bint done = False
        self.grouping.check_open()
        if datagram.shape[0]:
            with nogil:
                done = self.split(&datagram[0], datagram.shape[0], &error)
        if error:
            if not -MAX_ERRNO <= error < 0:
                error = -EPROTO
            raise OSError(-error, os.strerror(-error))
        return done

    def finish(self):
        """The tally of all that was fed."""
        self.grouping.check_open()
        return self.grouping.tally()

    cdef bint split(self, const uint8_t *p, size_t size, int32_t *error) except? -1 nogil:
        cdef Span message
        cdef Entry entry
        cdef uint8_t group[MAX_GROUP]
        cdef uint32_t length
        cdef uint16_t kind, flags
        cdef size_t step
        while size:
            if size >= NLMSG_HDRLEN:
                memcpy(&length, p, 4)
                memcpy(&kind, p + 4, 2)
                memcpy(&flags, p + 6, 2)
            if size < NLMSG_HDRLEN or length < NLMSG_HDRLEN or length > size:
                self.grouping.add_malformed(p, size)
                return False
            message.start = p + NLMSG_HDRLEN
            message.size = length - NLMSG_HDRLEN
            if flags & NLM_F_DUMP_INTR or kind == NLMSG_OVERRUN:
                error[0] = -EINTR
                return False
            if kind == IPCTNL_MSG_CT_NEW:
                if message_to_entry(message, &entry):
                    if self.grouping.add(&entry, group) and self.ledger is not None:
                        self.ledger.observe(&entry, group)
                else:
                    self.grouping.add_malformed(p, length)
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
