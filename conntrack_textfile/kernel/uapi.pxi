"""The numbers of uapi.py and protocols.py as C variables and tables."""

cdef size_t MAX_LINE = uapi.MAX_LINE
cdef size_t MAX_TUPLE = uapi.MAX_TUPLE

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

cdef enum:
    MAX_STATES = 12
    MAX_STATE_NAME = 20
    NO_STATE = 255


cdef struct States:
    # The states of a protocol. The number after the last name is UNKNOWN_STATE.
    int protoinfo               # CTA_PROTOINFO_TCP, _DCCP or _SCTP; 0 for a protocol without states
    int count
    char names[MAX_STATES][MAX_STATE_NAME]


# By protocol number.
cdef States states_of[256]
cdef uint8_t with_ports[256]
cdef uint8_t id_of[256]         # uapi.ID_OF; 0 for a protocol without ids

# uapi.FLAGS, in their order.
cdef enum:
    UNREPLIED = 1
    ASSURED = 2
    OFFLOAD = 4
    HW_OFFLOAD = 8
    FLAG_COUNT = 4


cdef fill_protocols():
    assert uapi.FLAGS == ("unreplied", "assured", "offload", "hw_offload")
    for l4, names in uapi.STATES.items():
        assert len(names) < MAX_STATES
        states_of[l4].protoinfo = uapi.PROTOINFO_OF[l4]
        states_of[l4].count = len(names)
        for i, name in enumerate(names):
            text = name.encode()
            assert len(text) < MAX_STATE_NAME
            memcpy(states_of[l4].names[<int>i], <const char *>text, len(text))
    for l4 in protocols.WITH_PORTS:
        with_ports[l4] = True
    for l4, kind in uapi.ID_OF.items():
        id_of[l4] = kind


fill_protocols()
