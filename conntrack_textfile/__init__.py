"""Prometheus metrics from the Linux connection tracking table."""

__version__ = "1.0.0"
