"""Lend a safe listening socket to another server: here asyncio's own, in the same way aiohttp, uvicorn and gunicorn.

Prints:

    mode 0600, and a second start is refused: True
    echo: hello
"""

from __future__ import annotations

import asyncio
import os
import stat

import hostline


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"echo: " + await reader.readline())
    await writer.drain()
    writer.close()


async def main() -> None:
    with hostline.listen("./lent.sock") as listener:
        # uvicorn: --fd N; gunicorn: --bind fd://N; aiohttp: web.SockSite(runner, listener.socket)
        server = await asyncio.start_unix_server(echo, sock=listener.socket.dup())
        mode = stat.S_IMODE(os.stat("./lent.sock").st_mode)
        print(f"mode {mode:04o}, and a second start is refused: {is_second_refused()}")
        reader, writer = await asyncio.open_unix_connection("./lent.sock")
        writer.write(b"hello\n")
        print((await reader.readline()).decode(), end="")
        writer.close()
        server.close()


def is_second_refused() -> bool:
    try:
        hostline.listen("./lent.sock").close()
    except hostline.AddressInUseError:
        return True
    return False


asyncio.run(main())
