"""Prometheus metrics from the Linux connection tracking table."""

__version__ = "0.1.0"
