"""Mutated and crafted pictures, and the process that feeds them to the decoders.

Run by `test_fuzz_pictures.py`: `python tests/hostile_pictures.py COUNT SEED`. For every picture it
prints its number before it begins, and at the end a line of JSON.
"""

import collections
import json
import resource
import struct
import sys
import time
import warnings
import zlib
from pathlib import Path

import numpy as np
from emoji_data import encoded, noise
from PIL import Image

from vlrep_jax.data.decoding import FORMATS, BadImage, decode
from vlrep_jax.data.picture import Picture

MAX_PIXELS = 4_000_000
REASONS = {"empty", "format", "too_large", "too_small", "truncated", "corrupt", "not_finite"}


def seeds():
    """Valid files of every format and of the kinds that decoders treat apart."""
    image, small = noise(48, 64), Image.fromarray(noise(24, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([image, np.full(image.shape[:2], 99, np.uint8)])
    files = [encoded(image, name) for name in FORMATS]
    files += [
        encoded(image, "JPEG", progressive=True, quality=95, exif=exif),
        encoded(image, "JPEG", subsampling=0, restart_marker_blocks=2),
        encoded(Image.fromarray(image).convert("CMYK"), "JPEG"),
        encoded(Image.fromarray(image).convert("L"), "JPEG"),
        encoded(Image.fromarray(image).convert("P"), "PNG"),
        encoded(rgba, "PNG"),
        encoded(rgba, "WEBP", lossless=True),
        encoded(small, "GIF", save_all=True, append_images=[small.rotate(9 * i) for i in range(4)]),
        encoded(small, "WEBP", save_all=True, append_images=[small.rotate(90)]),
        encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99), "PNG"),
        encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"),
    ]
    for how in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "tiff_adobe_deflate"):
        files.append(encoded(image, "TIFF", compression=how))
    return files


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *chunks, bits=8, color=2, data=b"\0"):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    body = b"".join([*chunks, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + header + body


def tiff(*entries, next_ifd=0):
    """A little-endian TIFF of one directory; entries are (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", next_ifd)


def crafted():
    """Bombs: little files that ask for much."""
    zeros = bytes(50_000_000)
    packed = zlib.compress(zeros, 9)
    jpeg = encoded(noise(64, 64), "JPEG", progressive=True)
    scan = jpeg.index(b"\xff\xda")
    one_scan = jpeg[scan : jpeg.index(b"\xff", scan + 16)]
    size = jpeg.index(b"\xff\xc2") + 5
    gif = encoded(Image.new("P", (8, 8)), "GIF")
    webp = bytearray(encoded(noise(16, 16), "WEBP", lossless=True))
    sizes = [(256, 3, 1, 60000), (257, 3, 1, 60000), (258, 3, 1, 8), (259, 3, 1, 1)]
    strips = [(262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 60000)]
    return [
        b"",
        png(20_000, 20_000, data=zeros[:9000]),
        png(2**31 - 1, 2**31 - 1),
        png(2000, 2000, data=zeros),
        png(8, 8, chunk(b"zTXt", b"a\0\0" + packed)),
        png(8, 8, chunk(b"iCCP", b"a\0\0" + packed)),
        png(8, 8, chunk(b"iTXt", b"a\0\1\0\0\0" + packed)),
        png(8, 8, *[chunk(b"tEXt", b"k%d\0" % i + b"v" * 999) for i in range(5000)]),
        jpeg[:scan] + one_scan * 3000 + jpeg[scan:],
        jpeg[:size] + struct.pack(">HH", 65000, 65000) + jpeg[size + 4 :],
        jpeg[:size] + struct.pack(">HH", 1990, 1990) + jpeg[size + 4 :],
        jpeg[:2] + b"\xff\xe1\xff\xff" * 5000,
        gif[:-1] + gif[13:-1] * 3000 + b";",
        gif[:6] + struct.pack("<HH", 65535, 65535) + gif[10:],
        bytes(webp[:21]) + struct.pack("<I", 0x0FFFFFFF) + bytes(webp[25:]),
        tiff(*sizes, *strips),
        tiff(*sizes[:3], (330, 4, 1, 8), next_ifd=8),
        tiff(*[(tag, 4, 2**31, 8) for tag in range(256, 900)]),
        tiff((256, 4, 1, 100), (257, 4, 1, 100), (258, 3, 2**30, 8), (273, 4, 2**30, 8)),
        b"P6 " + b"9" * 4000,
        b"P6 60000 60000 255 x",
        b"P3 1000 1000 255 " + b"1 " * 50_000,
        b"BM"
        + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 2**30, -(2**30), 1, 24, 0, 0, 0, 0, 0, 0),
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 1900, 1900, 1, 8, 1, 0, 0, 0, 0, 0),
    ]


def mutated(files, rng):
    """One of the files, damaged in one to three ways."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 4)):
        way, end = rng.integers(7), max(len(data), 1)
        at = int(rng.integers(end) if rng.random() < 0.8 else rng.integers(min(end, 64)))
        if way == 0:  # bits flip
            for place in rng.integers(0, end, rng.integers(1, 9)):
                data[place : place + 1] = bytes([rng.integers(256)])
        elif way == 1:  # cut
            del data[at:]
        elif way == 2:  # a part goes missing
            del data[at : at + int(rng.integers(1, 40))]
        elif way == 3:  # spliced with another file
            data[at:] = files[rng.integers(len(files))][at:]
        elif way == 4:  # a part comes again
            data[at:at] = data[at : at + int(rng.integers(1, 200))] * int(rng.integers(1, 30))
        elif way == 5:  # sizes that are extreme
            big = rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1999])
            packed = struct.pack(rng.choice(["<I", ">I"]), int(big))
            data[at : at + 4] = packed if rng.random() < 0.5 else packed[-2:]
        else:  # zeros
            data[at : at + int(rng.integers(1, 64))] = bytes(16)
    return bytes(data)


def feed(data):
    """The outcomes of one file: reasons, or 'decoded'."""

    def outcome(make):
        try:
            pixels = make()
        except BadImage as error:
            assert error.reason in REASONS, error.reason
            return error.reason
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert 0 < pixels.size <= 3 * MAX_PIXELS
        return "decoded"

    found = [outcome(lambda: decode(data, MAX_PIXELS))]
    for decoder in ("opencv", "pillow"):
        found.append(outcome(lambda d=decoder: Picture(data, d, MAX_PIXELS).pixels()))
        found.append(outcome(lambda d=decoder: Picture(data, d, MAX_PIXELS).resampled(16, 16)))
    return found


def most_memory_mb():
    """The most that was resident so far; `getrusage` would begin with the parent's."""
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) / 1024


def main(count, seed):
    warnings.simplefilter("ignore")
    files, rng = seeds(), np.random.default_rng(seed)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # to write a file ends this process
    for data in files:
        assert feed(data) == ["decoded"] * 5
    before = most_memory_mb()
    bombs = crafted() if seed == 0 else []
    outcomes, slowest, disagreed = collections.Counter(), (0.0, -1), 0
    for number in range(count + len(bombs)):
        print(number, flush=True)
        data = bombs[number] if number < len(bombs) else mutated(files, rng)
        started = time.process_time()
        found = feed(data)
        slowest = max(slowest, (time.process_time() - started, number))
        outcomes[found[0]] += 1
        disagreed += len(set(found)) > 1
    grown = most_memory_mb() - before
    report = {"outcomes": outcomes, "slowest_s": slowest, "disagreed": disagreed}
    print(json.dumps(report | {"grown_mb": grown, "pictures": number + 1}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
