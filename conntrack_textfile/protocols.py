"""Names of network and transport protocols."""

from __future__ import annotations

# Protocols whose entries have ports: tcp, udp, dccp, sctp, udplite.
WITH_PORTS = frozenset({6, 17, 33, 132, 136})

_L3 = {"ipv4": 4, "ipv6": 6}

# Kernel name of each protocol that it names itself (l4proto_name() in
# net/netfilter/nf_conntrack_standalone.c). All others it prints as "unknown".
_KERNEL = {
    1: "icmp",
    6: "tcp",
    17: "udp",
    33: "dccp",
    47: "gre",
    58: "icmpv6",
    132: "sctp",
    136: "udplite",
}

# Keywords of the IANA registry "Assigned Internet Protocol Numbers" in lower
# case, by number; a dash where the registry has no keyword. 89 is "ospf", not
# IANA's OSPFIGP.
_IANA = """
    hopopt icmp igmp ggp ipv4 st tcp cbt egp igp bbn-rcc-mon nvp-ii pup argus
    emcon xnet chaos udp mux dcn-meas hmp prm xns-idp trunk-1 trunk-2 leaf-1
    leaf-2 rdp irtp iso-tp4 netblt mfe-nsp merit-inp dccp 3pc idpr xtp ddp
    idpr-cmtp tp++ il ipv6 sdrp ipv6-route ipv6-frag idrp rsvp gre dsr bna esp
    ah i-nlsp swipe narp min-ipv4 tlsp skip ipv6-icmp ipv6-nonxt ipv6-opts -
    cftp - sat-expak kryptolan rvd ippc - sat-mon visa ipcv cpnx cphb wsn pvp
    br-sat-mon sun-nd wb-mon wb-expak iso-ip vmtp secure-vmtp vines iptm
    nsfnet-igp dgp tcf eigrp ospf sprite-rpc larp mtp ax.25 ipip micp scc-sp
    etherip encap - gmtp ifmp pnni pim aris scps qnx a/n ipcomp snp compaq-peer
    ipx-in-ip vrrp pgm - l2tp ddx iatp stp srp uti smp sm ptp isis fire crtp
    crudp sscopmce iplt sps pipe sctp fc rsvp-e2e-ignore - udplite mpls-in-ip
    manet hip shim6 wesp rohc ethernet aggfrag nsh homa bit-emu
""".split()

_PROTOCOLS = {
    **{number: keyword for number, keyword in enumerate(_IANA) if keyword != "-"},
    **_KERNEL,
}


def l3protocol(number: int) -> str:
    """Return the kernel's name of IP version 4 or 6."""
    return "ipv4" if number == 4 else "ipv6"


def l4protocol(number: int) -> str:
    """Return the kernel's name of an IP protocol number, else IANA's keyword, else the number."""
    return _PROTOCOLS.get(number) or str(number)


def parse_l3protocol(text: str) -> int:
    """Return 4 for ipv4, 6 for ipv6, in any case. Raises ValueError."""
    if text.lower() not in _L3:
        raise ValueError("it is ipv4 or ipv6")
    return _L3[text.lower()]


def parse_l4protocol(text: str) -> int:
    """Return the number of an IP protocol by name, in any case, or number. Raises ValueError."""
    for number in range(256):
        if text.lower() in (l4protocol(number), str(number)):
            return number
    raise ValueError("no protocol has this name or number")
