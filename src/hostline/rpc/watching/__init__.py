"""Watching a service: the fields of its log lines, its access log, and the hooks that metrics and traces hang on.

Nothing here knows Prometheus or OpenTelemetry; those are in `hostline.bridges`, and hang themselves on.
"""
