"""Time that has passed for what rayguard remembers of clients.

No client is known before ten minutes have passed since rayguard first saw it. A measurement need not wait for that:
between two lives of the process every moment in the file of records is put back, and the checksum is made anew.
"""

import hashlib
import struct
from pathlib import Path

# Digest; seconds and requests of the busiest window and of this one, allowance; when it changed, the window began,
# and it was first seen.
RECORD = "<Q5f3I"


def age(state, seconds, times=1, left=1):
    """Puts what is remembered in this state directory so many seconds back; how many records there are.

    All of it was used so many times over, and this part of each allowance is left: none refills meanwhile.
    """
    path = Path(state, "history")
    body = path.read_bytes()[:-32]
    begin = body.index(b"\n") + 1 + 8
    aged = bytearray(body)
    count = (len(body) - begin) // struct.calcsize(RECORD)
    for at in range(begin, len(body), struct.calcsize(RECORD)):
        digest, habit, requests, _, _, _, changed, window, since = struct.unpack_from(RECORD, body, at)
        amounts = (times * habit, times * requests, 0, 0, left * times * habit)
        struct.pack_into(RECORD, aged, at, digest, *amounts, changed, window - seconds, since - seconds)
    path.write_bytes(bytes(aged) + hashlib.sha256(aged).digest())
    return count
