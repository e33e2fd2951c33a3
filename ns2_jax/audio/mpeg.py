"""How long an MP3 is by its own frames, where it has no header that says so (ISO/IEC 11172-3 and 13818-3; Xing's header is a custom).

libsndfile guesses the length of such a file from its first frame. Of one with a variable bit rate it then reads up to half too
little, or says up to three times too much, and neither shows.
"""

from __future__ import annotations

import mmap
import os

RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by the version's two bits: MPEG 1, 2, 2.5
KBITS = {True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320), False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}
LAYER_3 = 1


def _frame(header: bytes) -> tuple[int, int, int] | None:
    """(bytes, samples, Hz) of a layer III frame; None for anything else, a free bit rate included."""
    bits = int.from_bytes(header, "big")
    version, layer, rate, speed = bits >> 19 & 3, bits >> 17 & 3, bits >> 10 & 3, bits >> 12 & 15
    if len(header) < 4 or bits >> 21 != 0x7FF or version == 1 or layer != LAYER_3 or rate == 3 or speed in (0, 15):
        return None
    hz, samples = RATES[version][rate], 1152 if version == 3 else 576
    return samples // 8 * KBITS[version == 3][speed - 1] * 1000 // hz + (bits >> 9 & 1), samples, hz


def samples(path: str | os.PathLike) -> tuple[int, int] | None:
    """(samples of a channel in all layer III frames, samples of one); None where a header of the file says it (Xing or Info) or
    there are no two frames one behind the other. What is damaged is passed over up to the next frame of the same rate."""
    if not os.path.getsize(path):
        return None
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        if data[:3] == b"ID3":  # version, flags, length in four times seven bits
            at = 10 + sum((byte & 127) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0)))
        count, first = 0, None
        while 0 <= at < len(data) - 3:
            frame = _frame(data[at : at + 4])
            follows = frame and (at + frame[0] >= len(data) - 3 or data[at + frame[0] : at + frame[0] + 3] in (b"TAG", b"APE") or _frame(data[at + frame[0] : at + frame[0] + 4]))
            if not follows or first and frame[1:] != first[1:]:
                at = data.find(b"\xff", at + 1)
                continue
            if not count:
                first = frame
                if any(name in data[at : at + frame[0]] for name in (b"Xing", b"Info")):
                    return None
            count += 1
            at += frame[0]
        return (count * first[1], first[1]) if first else None
