"""Its client: only the address differs. What tcp: cannot do is refused in words.

Prints:

    9.0
    address 'tcp:.../payments.tcp': tcp: is for services and their clients...
"""

from __future__ import annotations

import hostline

with hostline.connect("tcp:payments") as line:
    print(line.call("charge", 2, 4.5, returns=float))

try:
    hostline.connect_socket("tcp:payments")
except hostline.AddressError as error:
    print(error)
