"""The kernel's numbers under the kernel's names, for both engines.

From include/uapi/linux/netlink.h, netfilter/nfnetlink.h,
netfilter/nfnetlink_conntrack.h and netfilter/nf_conntrack_common.h.
"""

from __future__ import annotations

NETLINK_NETFILTER = 12

# struct nlmsghdr: length, type, flags, sequence, port.
NLMSG_HDRLEN = 16
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSG_OVERRUN = 4
NLM_F_REQUEST = 0x01
NLM_F_DUMP_INTR = 0x10  # the table changed under the dump, which may miss entries
NLM_F_DUMP = 0x300
MAX_ERRNO = 4095

NFGENMSG_SIZE = 4  # struct nfgenmsg: family, version, resource
NFNL_SUBSYS_CTNETLINK = 1
IPCTNL_MSG_CT_NEW = NFNL_SUBSYS_CTNETLINK << 8 | 0
IPCTNL_MSG_CT_GET = NFNL_SUBSYS_CTNETLINK << 8 | 1
IPCTNL_MSG_CT_DELETE = NFNL_SUBSYS_CTNETLINK << 8 | 2
IPCTNL_MSG_CT_GET_STATS_CPU = NFNL_SUBSYS_CTNETLINK << 8 | 4
IPCTNL_MSG_CT_GET_STATS = NFNL_SUBSYS_CTNETLINK << 8 | 5
IPCTNL_MSG_CT_GET_DYING = NFNL_SUBSYS_CTNETLINK << 8 | 6
NFNLGRP_CONNTRACK_DESTROY = 3

# struct nlattr: length, type.
NLA_HDRLEN = 4
NLA_TYPE_MASK = 0x3FFF

# enum ctattr_type
CTA_TUPLE_ORIG = 1
CTA_TUPLE_REPLY = 2
CTA_STATUS = 3
CTA_PROTOINFO = 4
CTA_MARK = 8
CTA_COUNTERS_ORIG = 9
CTA_COUNTERS_REPLY = 10
CTA_ID = 12
CTA_ZONE = 18
CTA_TIMESTAMP = 20

# enum ctattr_tuple
CTA_TUPLE_IP = 1
CTA_TUPLE_PROTO = 2
CTA_TUPLE_ZONE = 3

# enum ctattr_ip
CTA_IP_V4_SRC = 1
CTA_IP_V4_DST = 2
CTA_IP_V6_SRC = 3
CTA_IP_V6_DST = 4

# enum ctattr_l4proto
CTA_PROTO_NUM = 1
CTA_PROTO_SRC_PORT = 2
CTA_PROTO_DST_PORT = 3
CTA_PROTO_ICMP_ID = 4
CTA_PROTO_ICMPV6_ID = 7

# enum ctattr_counters
CTA_COUNTERS_PACKETS = 1
CTA_COUNTERS_BYTES = 2

# enum ctattr_tstamp
CTA_TIMESTAMP_START = 1

# enum ctattr_stats_global
CTA_STATS_GLOBAL_ENTRIES = 1
CTA_STATS_GLOBAL_MAX_ENTRIES = 2

# enum ctattr_protoinfo, and the state in each of its three
CTA_PROTOINFO_TCP = 1
CTA_PROTOINFO_DCCP = 2
CTA_PROTOINFO_SCTP = 3
CTA_PROTOINFO_STATE = 1  # CTA_PROTOINFO_{TCP,DCCP,SCTP}_STATE

# enum ctattr_stats_cpu, of struct ip_conntrack_stat: numbers of 32 bits. The kernel no
# longer counts the others.
CTA_STATS = {
    "found": 2,
    "invalid": 4,
    "insert": 8,
    "insert_failed": 9,
    "drop": 10,
    "early_drop": 11,
    "error": 12,
    "search_restart": 13,
    "clash_resolve": 14,
    "chain_toolong": 15,
}

# enum ip_conntrack_status
IPS_SEEN_REPLY = 1 << 1
IPS_ASSURED = 1 << 2
IPS_OFFLOAD = 1 << 14
IPS_HW_OFFLOAD = 1 << 15

IPPROTO_ICMP = 1
IPPROTO_TCP = 6
IPPROTO_DCCP = 33
IPPROTO_ICMPV6 = 58
IPPROTO_SCTP = 132

# The attribute of the id, of protocols with an id in place of ports.
ID_OF = {IPPROTO_ICMP: CTA_PROTO_ICMP_ID, IPPROTO_ICMPV6: CTA_PROTO_ICMPV6_ID}

# Protocols whose entries have a state, and the names of these in the order of
# their numbers: tcp_conntrack_names, dccp_state_names and sctp_conntrack_names
# in net/netfilter/nf_conntrack_proto_*.c.
STATES = {
    IPPROTO_TCP: (
        *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT", "LAST_ACK"),
        *("TIME_WAIT", "CLOSE", "SYN_SENT2"),
    ),
    IPPROTO_DCCP: (
        *("NONE", "REQUEST", "RESPOND", "PARTOPEN", "OPEN", "CLOSEREQ", "CLOSING", "TIMEWAIT"),
        *("IGNORE", "INVALID"),
    ),
    IPPROTO_SCTP: (
        *("NONE", "CLOSED", "COOKIE_WAIT", "COOKIE_ECHOED", "ESTABLISHED", "SHUTDOWN_SENT"),
        *("SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT", "HEARTBEAT_SENT", "HEARTBEAT_ACKED"),
    ),
}
UNKNOWN_STATE = "unknown"  # a state of a newer kernel

PROTOINFO_OF = {
    IPPROTO_TCP: CTA_PROTOINFO_TCP,
    IPPROTO_DCCP: CTA_PROTOINFO_DCCP,
    IPPROTO_SCTP: CTA_PROTOINFO_SCTP,
}

# Flags of an entry. Of the last three it has at most one, as in the proc file: an
# offloaded entry is not shown as assured.
FLAGS = ("unreplied", "assured", "offload", "hw_offload")

# Bytes. The lines of the kernel are much shorter: the longest part is a security context.
# It bounds the memory for an incomplete line.
MAX_LINE = 16384

# Bytes of CTA_TUPLE_ORIG. The kernel sends less than 100.
MAX_TUPLE = 480
