"""Mutated tars: each is read as `tarfile` reads it, or refused or counted, quickly and in memory.

PYTHONPATH=tests python -m fuzz.tars --count=2000
"""

import argparse
import gzip
import logging
import os
import resource
import signal
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from tars import archive, entry, found_by_tarfile, sample

from vlrep_jax.data.sources import Tar

LIMIT_S = 5  # of the processor
HUNG_S = 120  # by the clock, on a machine that has much else to do
LIMIT_KIB = 128 << 10  # that reading may add to the process's largest size
FORMATS = (0, 1, 2)  # ustar, gnu, pax, as tarfile numbers them
NUMBERS = (
    b"77777777777\0",
    b"00000000000\0",
    b"-0000000001\0",
    b"            ",
    b"\0" * 12,
    b"99999999999\0",
    b"0x100000000\0",
    b"1_000      \0",
    b"\xff" * 12,
    b"\x80" + b"\xff" * 11,
    b"\x80" + bytes(10) + b"\x07",
    b"\x80" + bytes(3) + b"\x7f" + bytes(7),
)
NAMES = (
    b"../../up.png",
    b"/etc/passwd.png",
    b"a/../b.txt",
    b"",
    b".",
    b"..",
    b"k.png",
    b"\xff.txt",
)
RECORDS = (
    b"0 path=x\n",
    b"-9 path=x\n",
    b"99999999 path=x\n",
    b"13 path=x.png\n",
    b"19 path=../../x.png\n",
    b"11 size=-1\n",
    b"11 size=99\n",
    b"29 size=999999999999999999999\n",
    b"10 size=x\n",
    b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
    b"no record at all",
    b"12 comment=\n",
    b"",
)


def header(kind, size=b"00000000000\0", name=b"k.png", prefix=b""):
    """A header of any content, with its checksum."""
    block = bytearray(512)
    block[: len(name[:100])] = name[:100]
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:148] = size + b"00000000000\0"
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[345 : 345 + len(prefix)] = prefix
    return summed(block)


def summed(block):
    """A header with the right checksum."""
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def octal(number):
    return b"%011o\0" % number


def extra(kind, payload):
    """A header that describes the next one, with its payload."""
    padding = bytes(-len(payload) % 512)
    return header(kind, octal(len(payload)), b"././@LongLink") + payload + padding


def sound(rng):
    """Bytes of a sound archive of some samples."""
    entries = []
    for number in range(int(rng.integers(3, 16))):
        key = f"{number}" + "n" * int(rng.choice([0, 0, 5, 120, 300]))
        entries += sample(key, number)
        if rng.random() < 0.2:
            entries.append(entry(f"{key}.cls", b""))
    form = int(rng.choice(FORMATS))
    return archive([e for e in entries if form != 0 or len(e[0].name) < 90], form)


def flips(rng, data):
    data = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 30))):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def cut(rng, data):
    return data[: rng.integers(1, len(data))]


def swapped(rng, data):
    blocks = [data[i : i + 512] for i in range(0, len(data), 512)]
    one, other = rng.integers(0, len(blocks), 2)
    blocks[one], blocks[other] = blocks[other], blocks[one]
    return b"".join(blocks)


def fields(rng, data):
    """Fields of headers changed, with checksums that are right."""
    blocks = [bytearray(data[i : i + 512]) for i in range(0, len(data), 512)]
    heads = [i for i, block in enumerate(blocks) if block[257:262] == b"ustar"]
    for at in rng.choice(heads, min(len(heads), int(rng.integers(1, 4))), replace=False):
        block = blocks[at]
        what = rng.integers(5)
        if what == 0:
            block[124:136] = NUMBERS[rng.integers(len(NUMBERS))]
        elif what == 1:
            block[156] = rng.choice(list(b"\0001234567LKSxgXVMDNA~"))
        elif what == 2:
            name = NAMES[rng.integers(len(NAMES))]
            block[:100] = name + bytes(100 - len(name))
        elif what == 3:
            block[345:500] = (b"../" * 60)[:155] if rng.random() < 0.5 else rng.bytes(155)
        else:
            block[124:136] = octal(int(rng.integers(0, 1 << int(rng.integers(1, 33)))))
        blocks[at] = bytearray(summed(block))
    return b"".join(map(bytes, blocks))


def inserted(rng, data):
    """Headers of all kinds put before the members, or between them."""
    kind = rng.integers(8)
    body = RECORDS[rng.integers(len(RECORDS))]
    if kind == 0:
        new = extra(b"x", body) * int(rng.choice([1, 2, 15, 17, 500]))
    elif kind == 1:
        new = extra(b"g", body)
    elif kind == 2:
        new = extra(b"L", b"n" * int(rng.choice([0, 101, 1 << 20, (1 << 20) + 1, 3 << 20])))
    elif kind == 3:
        new = header(bytes([rng.choice(list(b"123456"))]), octal(512), b"link.png")
    elif kind == 4:
        new = header(b"x", NUMBERS[rng.integers(len(NUMBERS))])
    elif kind == 5:
        new = extra(b"L", b"long/" * 40 + b"k.png\0") + extra(b"x", body)
    elif kind == 6:
        sparse = bytearray(header(b"S", octal(512)))
        sparse[482] = rng.integers(2)
        new = summed(sparse) + b"\x01" * (512 * int(rng.integers(1, 40)))
    else:
        new = bytes(512)
    place = 512 * int(rng.choice([0, rng.integers(0, len(data) // 512)]))
    return data[:place] + new + data[place:]


def foreign(rng, data):
    """No tar at all."""
    which = rng.integers(4)
    return (rng.bytes(len(data)), gzip.compress(data), b"", bytes(len(data)))[which]


MUTATIONS = (flips, cut, swapped, fields, fields, inserted, inserted, foreign)


def mutated(seed):
    """(bytes, names of what was done to them), a function of the seed."""
    rng = np.random.default_rng(seed)
    data, done = sound(rng), []
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        mutation = MUTATIONS[rng.integers(len(MUTATIONS))]
        if len(data) > 512:
            data = mutation(rng, data)
            done.append(mutation.__name__)
    return data, done


class TooSlow(Exception):
    """Not caught by anything that is read here."""


def _late(number, frame):
    raise TooSlow


def check(data, folder):
    """What became of an archive: `read`, `refused`, ...

    Raises:
        AssertionError: other bytes were read than `tarfile` finds, something was lost without
            being counted, or a file was written.
        TooSlow: it took more than two minutes by the clock.
    """
    folder = Path(folder)
    (folder / "a.tar").write_bytes(data)
    previous = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, HUNG_S)
    source, samples, lost = None, [], ""
    try:
        source = Tar(folder / "a.tar", index_dir=str(folder / "index"))
        samples = source.__getitems__(range(len(source)))
    except ValueError as error:
        lost = str(error)
        assert "no whole sample" in lost or "is compressed" in lost, error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert sorted(os.listdir(folder)) == ["a.tar", "index"], "a file was written"
    assert len(os.listdir(folder / "index")) <= 1
    if source is None:
        assert "left out: {}" not in lost or not _pictures(data), "lost without a count"
        return "refused"
    return _compared(data, source, samples)


def _compared(data, source, samples):
    """Holds what was read against `tarfile`."""
    members = {offset: (_text(name), body) for name, offset, body in found_by_tarfile(data)}
    end = max(members, default=-1)
    further = 0
    for found, row in zip(samples, source._index.rows, strict=True):
        if found.problem:
            assert found.problem == "not_utf8", found
            continue
        for block, body in ((row["image"], found.image), (row["text"], found.captions[0].encode())):
            offset = int(block) * 512
            if offset > end:  # tarfile stopped sooner, at a field that no reader needs
                assert body == data[offset : offset + len(body)]
                block = data[offset - 512 : offset]
                assert tarfile.nti(block[148:156]) in tarfile.calc_chksums(block), "no header"
                further += 1
                continue
            name, wanted = members[offset]
            slash = name.rfind("/") + 1
            assert found.key == f"a.tar/{name[: name.index('.', slash)]}"
            assert body == wanted
    if not source.skipped:
        assert len(_pictures(data)) == len(samples), "lost without a count"
    return "read further than tarfile" if further else "read"


def _pictures(data):
    """Names of the pictures that `tarfile` finds."""
    names = [name for name, _, _ in found_by_tarfile(data)]
    return [name for name in names if name.rpartition("/")[2].partition(".")[2] == "png"]


def _text(name):
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def fuzz(seeds, progress=lambda done, outcomes: None):
    """Counter of outcomes over seeds.

    Raises:
        AssertionError: as `check`, with the seed that shows it.
    """
    outcomes, before = Counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest_s = 0.0
    for seed in seeds:
        data, done = mutated(seed)
        with tempfile.TemporaryDirectory(prefix="vlrep_fuzz_") as folder:
            (Path(folder) / "index").mkdir()
            started = time.process_time()
            try:
                outcomes[check(data, folder)] += 1
            except BaseException as error:
                error.add_note(f"seed {seed}: {done}")
                raise
            slowest_s = max(slowest_s, time.process_time() - started)
        progress(sum(outcomes.values()), outcomes)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < LIMIT_KIB, f"{grown >> 10} MiB more memory"
    return outcomes, slowest_s, grown


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    args = parser.parse_args()
    logging.disable(logging.WARNING)

    def progress(done, outcomes):
        if done % 200 == 0:
            print(f"{done}: {dict(outcomes)}", flush=True)

    outcomes, slowest_s, grown = fuzz(range(args.first, args.first + args.count), progress)
    print(f"{args.count} archives: {dict(outcomes)}; slowest {slowest_s:.2f} s; +{grown >> 10} MiB")


if __name__ == "__main__":
    main()
