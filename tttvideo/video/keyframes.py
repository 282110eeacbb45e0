"""Packets at which decoding can start and give exactly the frames that decoding from the beginning gives, by the
codec's standard. Containers' flags are not enough: they mark recovery points, and lie.
"""

from collections.abc import Iterator

# Every packet is a picture by itself.
INTRA = {"mjpeg", "prores", "huffyuv", "ffvhuff", "png", "dnxhd", "rawvideo", "utvideo"}


def starts_clean(codec: str, extradata: bytes | None, data: bytes) -> bool:
    """Whether frames from this packet on, in the order they are shown, need nothing from before it.

    H.264: an IDR picture. HEVC: any random access picture; frames decoded after but shown before it may be lost,
    and no later frame may refer to them. VP9, AV1: a key frame that is shown, which replaces all references.
    """
    if codec in INTRA:
        return True
    if codec == "h264":
        kinds = (unit[0] & 31 for unit in _units(data, extradata, 4) if unit)
        return next((kind for kind in kinds if kind in (1, 2, 5)), 0) == 5
    if codec == "hevc":
        kinds = ((unit[0] >> 1) & 63 for unit in _units(data, extradata, 21) if unit)
        return 16 <= next((kind for kind in kinds if kind < 32), 0) <= 21
    if codec == "vp9":
        return _vp9_key(data)
    if codec in ("av1", "libdav1d"):
        return _av1_key(data)
    return False


def shows_frames_only(extradata: bytes | None, data: bytes) -> bool:
    """Whether H.264 packets hold whole frames, never single fields (frame_mbs_only_flag of the first parameter set)."""
    sources = [data]
    if extradata and extradata[:1] == b"\1" and len(extradata) > 8:
        sources = [b"\0\0\1" + extradata[8:]]  # the first parameter set of an avcC record
    elif extradata:
        sources = [extradata, data]
    for source in sources:
        for unit in _units(source, None, 4):
            if unit and unit[0] & 31 == 7:
                try:
                    return _frame_mbs_only(unit)
                except IndexError:
                    return False
    return False


def _units(data: bytes, extradata: bytes | None, offset: int) -> Iterator[bytes]:
    """NAL units, by the lengths before them (MP4, Matroska; byte `offset` of the extradata gives their width) or by
    start codes."""
    if extradata and extradata[0] == 1 and len(extradata) > offset:
        width, at = (extradata[offset] & 3) + 1, 0
        while at + width < len(data):
            length = int.from_bytes(data[at : at + width], "big")
            yield data[at + width : at + width + min(length, 64)]
            at += width + length
        return
    at = data.find(b"\0\0\1")
    while at >= 0:
        following = data.find(b"\0\0\1", at + 3)
        yield data[at + 3 : at + 67]
        at = following


def _vp9_key(data: bytes) -> bool:
    if not data or data[0] >> 6 != 2:
        return False
    shift = 1 if (data[0] >> 4) & 3 == 3 else 0  # profile 3 has a bit more
    existing, inter = (data[0] >> (3 - shift)) & 1, (data[0] >> (2 - shift)) & 1
    return not existing and not inter


def _av1_key(data: bytes) -> bool:
    at = 0
    while at < len(data):
        header = data[at]
        at += 2 if header & 4 else 1
        length = len(data) - at
        if header & 2:  # leb128
            length, shift = 0, 0
            while at < len(data):
                byte = data[at]
                length, shift, at = length | (byte & 127) << shift, shift + 7, at + 1
                if byte < 128:
                    break
        if (header >> 3) & 15 in (3, 6) and at < len(data):
            existing, kind, shown = data[at] >> 7, (data[at] >> 5) & 3, (data[at] >> 4) & 1
            return not existing and kind == 0 and bool(shown)
        at += length
    return False


class _Bits:
    """Exp-Golomb codes of a parameter set."""

    def __init__(self, data: bytes):
        self.data, self.at = data.replace(b"\0\0\3", b"\0\0"), 0

    def one(self) -> int:
        byte, shift = divmod(self.at, 8)
        self.at += 1
        return (self.data[byte] >> (7 - shift)) & 1

    def many(self, n: int) -> int:
        value = 0
        for _ in range(n):
            value = value << 1 | self.one()
        return value

    def unsigned(self) -> int:
        zeros = 0
        while not self.one():
            zeros += 1
        return (1 << zeros) - 1 + self.many(zeros)

    def signed(self) -> int:
        value = self.unsigned()
        return (value + 1) // 2 if value & 1 else -(value // 2)


def _frame_mbs_only(unit: bytes) -> bool:
    """ITU-T H.264, 7.3.2.1.1. Raises IndexError if the set is longer than what there is of it."""
    bits = _Bits(unit[1:])
    profile = bits.many(8)
    bits.many(16)
    bits.unsigned()
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.unsigned()
        if chroma == 3:
            bits.one()
        bits.unsigned()
        bits.unsigned()
        bits.one()
        if bits.one():
            for i in range(12 if chroma == 3 else 8):
                if bits.one():
                    _skip_scaling_list(bits, 16 if i < 6 else 64)
    bits.unsigned()
    order = bits.unsigned()
    if order == 0:
        bits.unsigned()
    elif order == 1:
        bits.one()
        bits.signed()
        bits.signed()
        for _ in range(bits.unsigned()):
            bits.signed()
    bits.unsigned()
    bits.one()
    bits.unsigned()
    bits.unsigned()
    return bool(bits.one())


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) & 255
        last = following or last
