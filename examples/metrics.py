"""Serve metrics for Prometheus on a Unix socket beside the service's own, with one of the program's own counters.

`curl --unix-socket ./metrics.sock http://localhost/metrics` reads the same page.

Prints:

    shop_cups_total{drink="tea"} 2.0
    hostline_open_connections{service="shop"} 1.0
    hostline_calls_finished_total{service="shop"} 2.0
    hostline_method_results_total{method="brew",service="shop"} 2.0
    hostline_call_duration_seconds_count{method="brew",outcome="ok",service="shop"} 2.0
"""

from __future__ import annotations

import asyncio

from prometheus_client import Counter

import hostline
from hostline.bridges.prometheus import serve_metrics

shop = hostline.Service("shop")
cups = Counter("shop_cups", "Cups brewed.", ["drink"])


@shop.method
def brew(drink: str) -> str:
    cups.labels(drink).inc()
    return f"a cup of {drink}"


async def scrape() -> str:
    """Do what an agent does every few seconds."""
    reader, writer = await asyncio.open_unix_connection("./metrics.sock")
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    return page


async def main() -> None:
    async with shop.serve("./shop.sock") as server:
        with serve_metrics(server, "./metrics.sock"):
            async with hostline.aio.connect("./shop.sock") as line:
                await line.call("brew", "tea")
                await line.call("brew", "tea")
                page = await scrape()
    shown = ("shop_cups_total", "hostline_open", "hostline_calls_fin", "hostline_method", "hostline_call_duration")
    for name in page.splitlines():
        if name.startswith(shown) and "_bucket" not in name and "_sum" not in name and "_created" not in name:
            print(name)


asyncio.run(main())
