"""gRPC: `unix:` addresses, a generic handler instead of generated code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent import futures
from typing import Any

import grpc

from hostline.conformance.subjects import run_subject


def serve(path: str, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM, then stop without a grace time."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    handler = grpc.unary_unary_rpc_method_handler(lambda _request, _context: str(os.getpid()).encode())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("conformance.Probe", {"Pid": handler}),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    try:
        ready()
        server.wait_for_termination()
    finally:
        server.stop(None).wait()


def ask(path: str, timeout: float) -> str:
    """Make one call."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        answer: bytes = channel.unary_unary("/conformance.Probe/Pid")(b"", timeout=timeout)
        return answer.decode()


def connect(path: str, timeout: float) -> int | None:
    """Make one call with a deadline: channels connect by themselves."""
    ask(path, timeout)
    return None


def is_timeout(error: Any) -> bool:
    """Recognise a call that ran into its deadline."""
    return isinstance(error, grpc.RpcError) and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def name_of(error: Any) -> str:
    """Name an error by its status code."""
    return str(error.code().name) if isinstance(error, grpc.RpcError) else type(error).__name__


if __name__ == "__main__":
    sys.exit(run_subject(sys.modules[__name__], sys.argv[1:]))
