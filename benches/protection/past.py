"""Time that has passed for what rayguard remembers of clients.

Nobody is known before ten minutes have passed since rayguard first saw it. A measurement need not wait for that: between
two lives of the process every moment in the file of records is put back, and the checksum is made anew.
"""

import hashlib
import struct
from pathlib import Path

RECORD = "<Q5f3I"  # digest; seconds and requests of the busiest hour and of this one, allowance; changed, hour, first seen


def age(state, seconds):
    """Puts what is remembered in this state directory so many seconds back; how many records there are."""
    path = Path(state, "history")
    body = path.read_bytes()[:-32]
    begin = body.index(b"\n") + 1 + 8
    aged = bytearray(body)
    count = (len(body) - begin) // struct.calcsize(RECORD)
    for at in range(begin, len(body), struct.calcsize(RECORD)):
        digest, *amounts, changed, _, since = struct.unpack_from(RECORD, body, at)
        changed -= seconds
        struct.pack_into(RECORD, aged, at, digest, *amounts, changed, changed // 3600, since - seconds)
    path.write_bytes(bytes(aged) + hashlib.sha256(aged).digest())
    return count
