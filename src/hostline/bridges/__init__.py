"""Bridges to what others watch with: Prometheus, OpenTelemetry, JSON log lines.

Each module needs its own extra and is imported by whoever uses it; nothing else in hostline imports them.
"""
