"""The server behind `Service.serve`: it accepts, each connection has a session, each session runs calls."""

from __future__ import annotations

from hostline.aio.serving.server import Server

__all__ = ["Server"]
