"""Take an open file from open_file.py, and give it some.

Prints:

    received a regular file: sold 3
    it has 2 lines
    may.txt
    refused: descriptor of kind directory is not allowed
    refused: ...june.txt...
"""

from __future__ import annotations

import os

import hostline

with hostline.connect("./archive.sock", wait=5) as line:
    # What is received is ours: `with` closes it, and so does Python when nobody holds it.
    with line.call("open_report", "may.txt", returns=hostline.Fd) as report:
        print(f"received a {report.kind} file:", os.pread(report.fileno(), 6, 0).decode())

        # What is sent stays ours. An Fd, a file object or a socket will do: whatever has a fileno().
        print("it has", line.call("count_lines", report), "lines")

    with hostline.Fd(os.open("reports", os.O_RDONLY)) as directory:
        print(*line.call("list_files", directory))
        try:
            line.call("count_lines", directory)
        except hostline.InvalidArgumentError as error:
            print("refused:", str(error).partition("decoded: ")[2].partition(":")[0])

    try:
        line.call("open_report", "june.txt", returns=hostline.Fd, raises=[FileNotFoundError])
    except FileNotFoundError as error:
        print("refused:", error)
