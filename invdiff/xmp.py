"""XMP packets (ISO 16684-1) put into PNG, JPEG and TIFF files and taken out again, without touching a pixel."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from mmap import mmap
from xml.etree import ElementTree
from xml.sax.saxutils import escape

__all__ = ["SPACES", "extract", "insert", "packet", "properties"]

# Ours has no domain of its own, so it is a random UUID: unique, and nothing that anybody could look up.
SPACES = {
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "invdiff": "urn:uuid:6c3a1a52-7d0e-4c6f-9b57-1f0f5b6c2a90#",
}
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
# What XML 1.0 cannot hold, even escaped: control characters, lone surrogates and two code points of no character.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KEYWORD = b"XML:com.adobe.xmp\x00"
_PNG_MOST = 2**24  # no packet is longer, and compressed ones may inflate to anything
_JPEG = b"\xff\xd8"
_JPEG_HEAD = b"http://ns.adobe.com/xap/1.0/\x00"
_JPEG_MOST = 65533 - len(_JPEG_HEAD)
_TIFF_TAG = 700


def packet(values: Mapping[str, str]) -> bytes:
    """The packet that holds these properties, as UTF-8.

    Args:
        values: by name with its prefix, one of `SPACES`; `dc:description` is written as the language alternative that
            it is. Characters that XML cannot hold become U+FFFD.

    >>> properties(packet({"xmp:CreatorTool": "a < b & c"}))
    {'xmp:CreatorTool': 'a < b & c'}
    """
    lines = []
    for name, value in values.items():
        text = escape(_ILLEGAL.sub("\ufffd", value))
        if name == "dc:description":
            text = f'<rdf:Alt><rdf:li xml:lang="x-default">{text}</rdf:li></rdf:Alt>'
        lines.append(f"   <{name}>{text}</{name}>\n")
    spaces = "".join(f'\n    xmlns:{prefix}="{uri}"' for prefix, uri in SPACES.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{_RDF}">\n  <rdf:Description rdf:about=""{spaces}>\n'
        f'{"".join(lines)}  </rdf:Description>\n </rdf:RDF>\n</x:xmpmeta>\n<?xpacket end="r"?>'
    ).encode()


def properties(packet: bytes) -> dict[str, str]:
    """The plain properties of a packet whose prefix is in `SPACES`, written as elements or as attributes.

    Raises:
        ValueError: it is no XML, or has a document type (perhaps with entities), which no packet needs.
    """
    if b"<!DOCTYPE" in packet.replace(b"\x00", b""):  # in UTF-16 too
        raise ValueError("its XMP declares a document type, which is not read")
    try:
        root = ElementTree.fromstring(packet.strip(b"\x00 \r\n\t"))
    except ElementTree.ParseError as error:
        raise ValueError(f"its XMP is no XML ({error})") from error
    prefixes = {uri: prefix for prefix, uri in SPACES.items()}
    found = {}
    for description in root.iter(f"{{{_RDF}}}Description"):
        inner = {child.tag: "".join(child.itertext()).strip() for child in description}
        for tag, text in (description.attrib | inner).items():
            uri, _, name = tag.removeprefix("{").partition("}")
            if uri in prefixes:
                found[f"{prefixes[uri]}:{name}"] = text
    return found


def insert(data: bytes, packet: bytes) -> bytes:
    """The bytes of a PNG, JPEG or TIFF file with this packet in place of the one that it may have.

    Raises:
        ValueError: another kind of file, one that is cut short, or too long a packet.
    """
    if _has(data, _PNG):
        return _insert_png(data, packet)
    if _has(data, _JPEG):
        return _insert_jpeg(data, packet)
    if _is_tiff(data):
        return _insert_tiff(data, packet)
    raise ValueError("it is neither PNG, JPEG nor TIFF")


def extract(data: bytes | mmap) -> bytes | None:
    """The packet in the bytes of a PNG, JPEG or TIFF file; None where there is none.

    Raises:
        ValueError: another kind of file, or one that is cut short.
    """
    if _has(data, _PNG):
        for kind, start, end in _png_chunks(data):
            if kind == b"iTXt" and _has(data, _PNG_KEYWORD, start + 8):
                return _png_text(data[start + 8 + len(_PNG_KEYWORD) : end - 4])
        return None
    if _has(data, _JPEG):
        for start, end in _jpeg_packets(data):
            return data[start + 4 + len(_JPEG_HEAD) : end]
        return None
    if _is_tiff(data):
        tiff = _Tiff(data)
        for tag, _, count, value in tiff.entries:
            if tag == _TIFF_TAG:
                width = tiff.offset_width
                start = struct.unpack(tiff.order + tiff.offset, value)[0]
                return value[:count] if count <= width else data[start : start + count]
        return None
    raise ValueError("it is neither PNG, JPEG nor TIFF")


def _has(data: bytes | mmap, what: bytes, at: int = 0) -> bool:
    return data[at : at + len(what)] == what


def _png_chunks(data: bytes | mmap) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of every chunk."""
    at = len(_PNG)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            break
        yield kind, at, end
        if kind == b"IEND":
            return
        at = end
    raise ValueError("it is cut short")


def _png_text(body: bytes) -> bytes:
    """The text of an iTXt chunk after its keyword: a flag of compression, a method, two strings, the text."""
    parts = body[2:].split(b"\x00", 2)
    if len(parts) < 3:
        raise ValueError("its XMP is cut short")
    if body[:1] != b"\x01":
        return parts[2]
    try:
        return zlib.decompressobj().decompress(parts[2], _PNG_MOST)
    except zlib.error as error:
        raise ValueError(f"its XMP is damaged ({error})") from error


def _insert_png(data: bytes, packet: bytes) -> bytes:
    body = b"iTXt" + _PNG_KEYWORD + bytes(4) + packet
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    parts = [_PNG]
    for kind, start, end in _png_chunks(data):
        if not (kind == b"iTXt" and _has(data, _PNG_KEYWORD, start + 8)):
            parts.append(data[start:end])
        if kind == b"IHDR":  # readers that stop at the pixels find it
            parts.append(chunk)
    return b"".join(parts)


def _jpeg_segments(data: bytes | mmap) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment before the pixels."""
    at = len(_JPEG)
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
            continue
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        if end > len(data):
            break
        yield marker, at, end
        if marker == 0xDA:
            return
        at = end
    raise ValueError("it is cut short")


def _jpeg_packets(data: bytes | mmap) -> Iterator[tuple[int, int]]:
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and _has(data, _JPEG_HEAD, start + 4):
            yield start, end


def _insert_jpeg(data: bytes, packet: bytes) -> bytes:
    if len(packet) > _JPEG_MOST:
        raise ValueError(f"its XMP would have {len(packet)} bytes, and JPEG holds {_JPEG_MOST}")
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(_JPEG_HEAD) + len(packet)) + _JPEG_HEAD + packet
    for start, end in reversed(list(_jpeg_packets(data))):
        data = data[:start] + data[end:]
    # JFIF and Exif each want to come first, so it stands after both.
    place = len(_JPEG)
    for marker, _, end in _jpeg_segments(data):
        if marker not in (0xE0, 0xE1):
            break
        place = end
    return data[:place] + segment + data[place:]


def _is_tiff(data: bytes | mmap) -> bool:
    return data[:4] in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


class _Tiff:
    """The first directory of a TIFF or BigTIFF file: its entries (tag, type, count, value or offset)."""

    def __init__(self, data: bytes | mmap) -> None:
        self.order = "<" if data[:2] == b"II" else ">"
        self.big = 43 in data[2:4]
        self.offset, self.count = ("Q", "Q") if self.big else ("I", "H")
        self.offset_width = struct.calcsize(self.offset)
        self.pointer = 8 if self.big else 4
        form = self.order + "HH" + self.offset
        try:
            (at,) = struct.unpack_from(self.order + self.offset, data, self.pointer)
            (number,) = struct.unpack_from(self.order + self.count, data, at)
            at += struct.calcsize(self.count)
            step = struct.calcsize(form) + self.offset_width
            self.entries: list[tuple[int, int, int, bytes]] = []
            for start in range(at, at + number * step, step):
                tag, kind, count = struct.unpack_from(form, data, start)
                self.entries.append((tag, kind, count, data[start + step - self.offset_width : start + step]))
            (self.following,) = struct.unpack_from(self.order + self.offset, data, at + number * step)
        except (struct.error, OverflowError) as error:  # counts and places may be anything
            raise ValueError("it is cut short") from error


def _insert_tiff(data: bytes, packet: bytes) -> bytes:
    """A directory with one entry more goes to the end of the file, and the header points to it."""
    tiff = _Tiff(data)
    order, width = tiff.order, tiff.offset_width
    head = data + bytes(-len(data) % width)
    if not tiff.big and len(head) + len(packet) + 12 * len(tiff.entries) + 32 > 2**32:
        raise ValueError("it has no room left in its 4 GB")
    value = struct.pack(order + tiff.offset, len(head))
    entries = [entry for entry in tiff.entries if entry[0] != _TIFF_TAG]
    entries = sorted([*entries, (_TIFF_TAG, 1, len(packet), value)], key=lambda entry: entry[0])
    body = packet + bytes(-len(packet) % width)
    table = struct.pack(order + tiff.count, len(entries))
    for tag, kind, count, inside in entries:
        table += struct.pack(order + "HH" + tiff.offset, tag, kind, count) + inside
    table += struct.pack(order + tiff.offset, tiff.following)
    place = struct.pack(order + tiff.offset, len(head) + len(body))
    return head[: tiff.pointer] + place + head[tiff.pointer + width :] + body + table
