"""The size of an ordinary JPEG, in a tenth of the time that Pillow takes to open one."""

import struct

_SEGMENT, _FRAME = struct.Struct(">BBH"), struct.Struct(">BHHB")
_START, _MARK = b"\xff\xd8", 0xFF
_FRAMES = (0xC0, 0xC1)  # of one pass over the pixels; all others are progressive or rare
_SCAN, _MANY_PICTURES = 0xDA, b"MPF\0"
# Tables, comments and applications' blocks but the first kind, which may turn the picture (EXIF).
_PASSED_OVER = frozenset([0xC4, 0xDB, 0xDD, 0xFE, 0xE0, *range(0xE2, 0xF0)])


def ordinary_size(data):
    """(height, width) of an ordinary JPEG: grey or three channels, of 8 bits, not progressive.

    Args:
        data: bytes of a file of any kind.

    Returns:
        None for every other file, also one that is only unusual, such as with an EXIF block.
    """
    if data[:2] != _START:
        return None
    at, size = len(_START), None
    try:
        while True:
            mark, kind, length = _SEGMENT.unpack_from(data, at)
            if mark != _MARK or length < 2:
                return None
            if kind == _SCAN:
                return size
            if kind in _FRAMES:
                bits, height, width, channels = _FRAME.unpack_from(data, at + _SEGMENT.size)
                if size or bits != 8 or channels not in (1, 3) or length != 8 + 3 * channels:
                    return None
                size = height, width
            elif kind not in _PASSED_OVER or data.startswith(_MANY_PICTURES, at + _SEGMENT.size):
                return None
            at += 2 + length
    except struct.error:  # it ends here
        return None
