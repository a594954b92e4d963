"""The exporter's own metrics, with the names of Go's promhttp."""

from __future__ import annotations

import prometheus_client

from conntrack_textfile.web.limiter import REASONS


class Metrics:
    """A registry of counts of scrapes and connections, and prometheus_client's own metrics."""

    def __init__(self) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self.registry)
        prometheus_client.PlatformCollector(registry=self.registry)
        prometheus_client.GCCollector(registry=self.registry)
        self.requests = prometheus_client.Counter(
            "promhttp_metric_handler_requests_total",
            "Scrapes by HTTP status code.",
            ["code"],
            registry=self.registry,
        )
        for code in ("200", "500", "503"):
            self.requests.labels(code)
        self.in_flight = prometheus_client.Gauge(
            "promhttp_metric_handler_requests_in_flight",
            "Scrapes that are being served.",
            registry=self.registry,
        )
        self.refused = prometheus_client.Counter(
            "conntrack_http_connections_refused_total",
            "Connections that were refused or evicted, by reason.",
            ["reason"],
            registry=self.registry,
        )
        for reason in REASONS:
            self.refused.labels(reason)
