"""Names of services by port and protocol."""

from __future__ import annotations

from conntrack_textfile.names import check_all, checked
from conntrack_textfile.protocols import WITH_PORTS, l4protocol

UNKNOWN = "unknown"
WITHOUT_PORTS = "na"

# Service names by port, by protocol number. A protocol without a key has no ports.
Services = dict[int, dict[int, str]]

# Names of the software that listens on a port by default. Those up to elasticsearch are
# label values of existing dashboards, and never change.
_TCP_AND_UDP = {
    **dict.fromkeys((20, 21), "ftp"),
    22: "ssh",
    23: "telnet",
    **dict.fromkeys((25, 465, 587), "smtp"),
    53: "dns",
    80: "http",
    110: "pop3",
    143: "imap",
    389: "ldap",
    443: "https",
    631: "ipp",
    993: "imaps",
    995: "pop3s",
    3306: "mysql",
    5432: "postgres",
    6379: "redis",
    9200: "elasticsearch",
    49: "tacacs",
    88: "kerberos",
    111: "rpcbind",
    137: "netbios-ns",
    138: "netbios-dgm",
    464: "kpasswd",
    514: "syslog",
    853: "dns-tls",
    1194: "openvpn",
    2049: "nfs",
    3389: "rdp",
    **dict.fromkeys((3478, 5349), "stun"),
    5060: "sip",
    5061: "sips",
    **dict.fromkeys((8301, 8302), "consul"),
    8600: "consul-dns",
    11211: "memcached",
    12201: "gelf",
    24224: "fluentd",
}
_TCP = {
    43: "whois",
    119: "nntp",
    139: "netbios-ssn",
    179: "bgp",
    445: "smb",
    548: "afp",
    636: "ldaps",
    873: "rsync",
    **dict.fromkeys((989, 990), "ftps"),
    1080: "socks",
    1433: "mssql",
    1521: "oracle",
    1723: "pptp",
    1883: "mqtt",
    2003: "graphite",
    2083: "radsec",
    **dict.fromkeys((2181, 2888, 3888), "zookeeper"),
    **dict.fromkeys((2375, 2376), "docker"),
    **dict.fromkeys((2379, 2380), "etcd"),
    3000: "grafana",
    3100: "loki",
    3128: "squid",
    3260: "iscsi",
    **dict.fromkeys((3268, 3269), "global-catalog"),
    3690: "svn",
    4222: "nats",
    **dict.fromkeys((4317, 4318), "otlp"),
    5044: "beats",
    **dict.fromkeys((5222, 5269), "xmpp"),
    5601: "kibana",
    5666: "nrpe",
    5671: "amqps",
    5672: "amqp",
    **dict.fromkeys(range(5900, 5904), "vnc"),
    5984: "couchdb",
    **dict.fromkeys((5985, 5986), "winrm"),
    6000: "x11",
    6432: "pgbouncer",
    6443: "kubernetes-api",
    6514: "syslog-tls",
    6667: "irc",
    6697: "ircs",
    **dict.fromkeys((7000, 7001, 9042), "cassandra"),
    7687: "neo4j",
    8080: "http-alt",
    8086: "influxdb",
    **dict.fromkeys((8200, 8201), "vault"),
    **dict.fromkeys((8300, 8500, 8501, 8502), "consul"),
    8443: "https-alt",
    8883: "mqtts",
    9090: "prometheus",
    9091: "pushgateway",
    9092: "kafka",
    **dict.fromkeys((9093, 9094), "alertmanager"),
    9100: "node-exporter",
    9300: "elasticsearch",
    9418: "git",
    10050: "zabbix-agent",
    10051: "zabbix",
    10250: "kubelet",
    **dict.fromkeys((15672, 25672), "rabbitmq"),
    26379: "redis-sentinel",
    **dict.fromkeys((27017, 27018, 27019), "mongodb"),
}
_UDP = {
    **dict.fromkeys((67, 68), "dhcp"),
    69: "tftp",
    123: "ntp",
    161: "snmp",
    162: "snmp-trap",
    **dict.fromkeys((319, 320), "ptp"),
    500: "ike",
    520: "rip",
    **dict.fromkeys((546, 547), "dhcpv6"),
    623: "ipmi",
    1701: "l2tp",
    **dict.fromkeys((1645, 1646, 1812, 1813), "radius"),
    1900: "ssdp",
    2055: "netflow",
    2123: "gtp-c",
    2152: "gtp-u",
    3784: "bfd",
    4500: "ipsec-nat-t",
    4739: "ipfix",
    **dict.fromkeys((4789, 8472), "vxlan"),
    5353: "mdns",
    5355: "llmnr",
    6081: "geneve",
    6343: "sflow",
    8125: "statsd",
    51820: "wireguard",
}
SERVICES: Services = {
    6: {**_TCP_AND_UDP, **_TCP},
    17: {**_TCP_AND_UDP, **_UDP},
    **{number: {} for number in WITH_PORTS - {6, 17}},
}


def l7protocol(l4: int, dport: int, services: Services = SERVICES) -> str:
    """Return the service of a destination port: "na" without ports, "unknown" without a name.

    l4: the number of the transport protocol.
    """
    ports = services.get(l4)
    return WITHOUT_PORTS if ports is None else ports.get(dport, UNKNOWN)


def parse_services(text: str) -> Services:
    """Parse lines as in /etc/services (services(5)), which win over the built-in names.

    The first line of a port wins. Protocols without ports, as ddp, are ignored.
    Raises ValueError with line and reason.
    """
    found: Services = {number: {} for number in SERVICES}
    numbers = {l4protocol(number): number for number in range(256)}
    for number, line in enumerate(text.split("\n"), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        port, slash, protocol = words[1].partition("/") if len(words) > 1 else ("", "", "")
        if not slash or not (port.isascii() and port.isdigit() and len(port) <= 5):
            raise ValueError(f"line {number}: a line is a name and PORT/PROTOCOL")
        if int(port) > 65535:
            raise ValueError(f"line {number}: {port} is not a port")
        if protocol not in numbers:
            raise ValueError(f"line {number}: {protocol!r} is not a protocol")
        try:
            name = checked(words[0])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if numbers.get(protocol) in found:
            found[numbers[protocol]].setdefault(int(port), name)
    check_all(name for ports in found.values() for name in ports.values())
    return {number: {**ports, **found[number]} for number, ports in SERVICES.items()}
