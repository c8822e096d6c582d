"""The members of a tar archive, from its headers alone: ustar, GNU and pax, as untrusted input.

Nothing is extracted and no link is followed. Members are found as Python's `tarfile` finds them,
but with bounds on memory and time that hold for hostile archives, and many times faster.
"""

import re
import struct
from zlib import adler32

BLOCK = 512
# Why a member cannot be used, by the type byte of its header.
_UNUSABLE = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "device"}
_FILES = (b"0", b"\0", b"7")
_BODILESS = b"123456"  # these have no data, whatever their size field says
_DIRECTORY, _LONG_NAME, _LONG_LINK, _SPARSE, _GLOBAL = b"5", b"L", b"K", b"S", b"g"
_PAX = (b"x", b"X")
_EXTRAS = (_LONG_NAME, _LONG_LINK, _GLOBAL, *_PAX)
# Of the headers that only describe the next one. A name of a megabyte or a chain of hundreds is
# an attack: the whole archive could be one.
_MAX_EXTRA_BYTES = 1 << 20
_MAX_EXTRAS = 16
_MAX_SPARSE_BLOCKS = 4096
# name, size, checksum, type, prefix
_FIELDS = struct.Struct("100s 24x 12s 12x 8s c 188x 155s 12x")
_ENDS = (0, 32)  # what ends a number: NUL or a space
_OCTAL = re.compile(rb"[ ]*([0-7]*)[ ]*(\0.*)?", re.DOTALL)
_ZEROS = bytes(BLOCK)
_RECORD = 20 * BLOCK  # archives are padded with zeros to a multiple of this
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}


class Damaged(ValueError):
    """A header cannot be followed; `reason` is one short word for counting."""

    def __init__(self, reason):
        super().__init__(reason)
        self.reason = reason


def members(read, *, least=4096, most=1 << 18, start=0):
    """Every member of an archive, in order.

    Args:
        read: (offset, length) -> bytes, fewer only at the end of the file.
        least, most: bytes to read at once; doubled from the one to the other while headers lie
            close together.
        start: where a member begins; its extra headers are looked at first.

    Yields:
        (start, data, size, name, problem): offset of the member's first header, offset and length
        of its data, its name as bytes, and why it cannot be used: '' for a file, `directory`,
        `link`, `device`, `sparse`, `long_name` or `other_type`.

    Raises:
        Damaged: with reason `truncated` or `bad_header`, behind the last sound member, or
            `behind_end`: after the end mark there is something, such as another archive.
    """
    unpack, fields = _FIELDS.unpack_from, _FIELDS.size
    buffer, first, ahead, offset = b"", 0, least, start
    extras, found_at = None, start
    while True:
        place = offset - first
        if place < 0 or place + fields > len(buffer):
            ahead = min(2 * ahead, most) if place <= len(buffer) + BLOCK else least
            buffer, first, place = read(offset, ahead), offset, 0
            if len(buffer) < fields:
                if buffer or extras is not None:
                    raise Damaged("truncated")
                return  # without an end mark, as a writer leaves it that was stopped
        name, size, checksum, kind, prefix = unpack(buffer, place)
        # adler32 begins with the sum of the bytes modulo 65521, ten times faster than sum() finds
        # it; half a header cannot reach that. The field itself counts as spaces.
        middle = place + 256
        total = (adler32(buffer[place:middle]) & 0xFFFF) + 254 - sum(checksum)
        total += adler32(buffer[middle : middle + 256]) & 0xFFFF
        # Six digits and an end are how every writer puts it.
        digits = checksum[:6]
        sound = checksum[6] in _ENDS and digits.isdigit() and digits == b"%06o" % total
        if not sound and not _is_sound(buffer[place : place + BLOCK], checksum, total):
            if buffer[place : place + BLOCK] != _ZEROS:
                raise Damaged("bad_header")
            if extras is not None:
                raise Damaged("bad_header")
            if read(offset, _RECORD).strip(b"\0"):
                raise Damaged("behind_end")
            return
        # Eleven digits and an end are how every writer puts sizes below 8 GB.
        plain = size[11] in _ENDS and size[:11].isdigit()
        try:
            size = int(size[:11], 8) if plain else _number(size)
        except ValueError:
            raise Damaged("bad_header") from None
        name = name.partition(b"\0")[0]
        data = offset + BLOCK
        if kind in _EXTRAS:
            extras = _merged(extras, kind, size, read, data)
            offset = data + -(-size // BLOCK) * BLOCK
            continue
        problem = "" if kind in _FILES else "other_type"
        if kind == b"\0" and name.endswith(b"/"):
            kind = _DIRECTORY
        if prefix[0] and kind != _SPARSE:
            name = prefix.partition(b"\0")[0] + b"/" + name
        if kind == _SPARSE:
            problem, data = "sparse", _after_sparse_map(buffer, place, read, data)
        if extras is not None:
            name, size = extras.get("path", name), extras.get("size", size)
            problem = extras.get("problem", problem)
        if kind in _BODILESS:
            size = 0
            problem = "directory" if kind == _DIRECTORY else _UNUSABLE.get(kind, problem)
        yield found_at, data, size, name, problem
        offset = found_at = data + -(-size // BLOCK) * BLOCK
        extras = None


def _is_sound(header, checksum, total):
    """Whether a header's bytes add up to its checksum field, however that is written."""
    try:
        wanted = _number(checksum)
    except ValueError:
        return False
    # Some old writers added signed bytes.
    return wanted in (total, total - 256 * sum(b > 127 for b in header[:148] + header[156:]))


def _number(field):
    """A number field: octal digits, or base 256 where the first bit is set."""
    if field[0] == 0o200:
        return int.from_bytes(field[1:], "big")
    match = _OCTAL.fullmatch(field)
    if match is None:  # other than digits, or negative in base 256
        raise ValueError(field)
    return int(match[1] or b"0", 8)


def _merged(extras, kind, size, read, data):
    """What is known of the next member after one more of the headers that describe it."""
    extras = extras or {"count": 0}
    extras["count"] += 1
    if extras["count"] > _MAX_EXTRAS:
        raise Damaged("bad_header")
    if size > _MAX_EXTRA_BYTES:
        extras["problem"] = "long_name"
        return extras
    if kind == _LONG_LINK:
        return extras
    payload = read(data, size)
    if len(payload) < size:
        raise Damaged("truncated")
    if kind == _LONG_NAME:
        extras.setdefault("path", payload.partition(b"\0")[0])
        return extras
    records = _pax_records(payload)
    sparse = any(key.startswith(b"GNU.sparse.") for key in records)
    if kind == _GLOBAL:
        # A name or a size for every member that follows is nothing a sane writer leaves.
        if sparse or records.keys() & {b"path", b"size"}:
            raise Damaged("bad_header")
        return extras
    if sparse:
        extras["problem"] = "sparse"
    if b"path" in records:
        extras.setdefault("path", records[b"path"].rstrip(b"/"))
    if b"size" in records:
        if not records[b"size"].isdigit() or len(records[b"size"]) > 19:
            raise Damaged("bad_header")
        extras.setdefault("size", int(records[b"size"]))
    return extras


def _pax_records(payload):
    """{keyword: value} of `length keyword=value` lines, whose length counts the line itself."""
    records, place = {}, 0
    while place < len(payload) and payload[place]:
        digits, space, _ = payload[place : place + 8].partition(b" ")
        if not space or not digits.isdigit():
            raise Damaged("bad_header")
        end = place + int(digits)
        keyword, equals, value = payload[place + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or payload[end - 1 : end] != b"\n":
            raise Damaged("bad_header")
        records[keyword] = value
        place = end
    return records


def _after_sparse_map(buffer, place, read, data):
    """Where the data of an old GNU sparse member begin: its map may go on in more blocks."""
    more = buffer[place + 482]
    for _ in range(_MAX_SPARSE_BLOCKS):
        if not more:
            return data
        block = read(data, BLOCK)
        if len(block) < BLOCK:
            raise Damaged("truncated")
        more, data = block[504], data + BLOCK
    raise Damaged("bad_header")
