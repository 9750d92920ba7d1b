"""XMP in PNG, JPEG and TIFF: read back by us, by Pillow and by tifffile, and the pixels untouched."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from invdiff import xmp

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
PIXELS = np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8)
PACKET = xmp.packet({"dc:description": "a & <b>", "invdiff:prior": "natural"})


def _pillow(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def _tiff(**options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, PIXELS, photometric="rgb", **options)
    return file.getvalue()


FILES = {
    "png": _pillow("png"),
    "jpeg": _pillow("jpeg"),
    "jpeg with exif": _pillow("jpeg", exif=Image.Exif()),
    "tiff": _pillow("tiff"),
    "big-endian tiff": _tiff(byteorder=">"),
    "bigtiff": _tiff(bigtiff=True, compression="zlib"),
    "big-endian bigtiff": _tiff(bigtiff=True, byteorder=">"),
}


def _pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("name", FILES)
def test_a_packet_comes_back_and_the_pixels_stay(name):
    before = FILES[name]
    assert xmp.extract(before) is None
    after = xmp.insert(before, PACKET)
    assert xmp.extract(after) == PACKET
    if "big" in name:
        with tifffile.TiffFile(io.BytesIO(after)) as file:
            assert file.pages[0].tags[700].value == PACKET
            assert (file.asarray() == PIXELS).all()
            assert len(file.pages) == 1
    else:
        image = Image.open(io.BytesIO(after))
        found = image.tag_v2[700] if image.format == "TIFF" else image.info["xmp"]
        assert found == PACKET
        assert (_pixels(after) == _pixels(before)).all()


@pytest.mark.parametrize("name", FILES)
def test_a_second_packet_takes_the_place_of_the_first(name):
    once = xmp.insert(FILES[name], PACKET)
    twice = xmp.insert(xmp.insert(FILES[name], b"<earlier/>"), PACKET)
    assert xmp.extract(twice) == PACKET
    if "tiff" not in name:  # a TIFF keeps the first as dead bytes, as no offset may move
        assert twice == once


def test_later_pages_of_a_stack_stay():
    file = io.BytesIO()
    tifffile.imwrite(file, np.stack([PIXELS, 255 - PIXELS]), photometric="rgb")
    with tifffile.TiffFile(io.BytesIO(xmp.insert(file.getvalue(), PACKET))) as stack:
        assert [
            (page.asarray() == wanted).all() for page, wanted in zip(stack.pages, (PIXELS, 255 - PIXELS), strict=True)
        ]
        assert len(stack.pages) == 2


def test_the_packet_is_rdf_as_the_standard_wants_it():
    assert PACKET.startswith('<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'.encode())
    assert PACKET.endswith(b'<?xpacket end="r"?>')
    root = ElementTree.fromstring(PACKET)
    assert root.tag == "{adobe:ns:meta/}xmpmeta"
    (rdf,) = root
    assert rdf.tag == f"{RDF}RDF"
    (description,) = rdf
    assert description.tag == f"{RDF}Description"
    assert description.attrib == {f"{RDF}about": ""}
    prior, text = (
        description.find(f"{{{xmp.SPACES['invdiff']}}}prior"),
        description.find(f"{{{xmp.SPACES['dc']}}}description"),
    )
    assert prior is not None
    assert prior.text == "natural"
    assert text is not None
    (alternatives,) = text
    assert alternatives.tag == f"{RDF}Alt"
    (item,) = alternatives
    assert item.attrib == {"{http://www.w3.org/XML/1998/namespace}lang": "x-default"}
    assert item.text == "a & <b>"


@settings(max_examples=50)
@given(st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff")))
def test_any_text_can_be_held(text):
    found = xmp.properties(xmp.packet({"invdiff:prior": text}))
    assert found == {"invdiff:prior": text.strip()}  # space around a value means nothing


@pytest.mark.parametrize("odd", ["\x00", "\x1b", "\ud800", "\uffff"])
def test_characters_that_xml_cannot_hold_are_shown_as_such(odd):
    assert xmp.properties(xmp.packet({"invdiff:prior": f"a{odd}b\tc"})) == {"invdiff:prior": "a\ufffdb\tc"}


def test_properties_written_as_attributes_are_read_too():
    spaces = f"xmlns:rdf='{RDF[1:-1]}' xmlns:other='{xmp.SPACES['invdiff']}' xmlns:x='urn:else#'"
    text = f"<rdf:RDF {spaces}><rdf:Description other:prior='tv' x:prior='no'/></rdf:RDF>"
    assert xmp.properties(text.encode()) == {"invdiff:prior": "tv"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused(encoding):
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb">]><a>&b;</a>'
    with pytest.raises(ValueError, match="its XMP declares a document type, which is not read"):
        xmp.properties(bomb.encode(encoding))


def test_what_is_no_xml_is_refused():
    with pytest.raises(ValueError, match="its XMP is no XML"):
        xmp.properties(b"<a>")


def test_compressed_text_of_png_is_read():
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", PACKET.decode(), zip=True)
    assert xmp.extract(_pillow("png", pnginfo=info)) == PACKET


@pytest.mark.parametrize(
    ("body", "message"), [(b"\x01\x00\x00\x00junk", "its XMP is damaged"), (b"\x00", "its XMP is cut")]
)
def test_damaged_text_of_png_is_refused(body, message):
    chunk = b"iTXtXML:com.adobe.xmp\x00" + body
    whole = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = FILES["png"][:33] + whole + FILES["png"][33:]
    with pytest.raises(ValueError, match=message):
        xmp.extract(data)


@pytest.mark.parametrize("name", ["png", "jpeg", "tiff", "bigtiff"])
def test_files_that_are_cut_short_are_refused(name):
    end = {"png": 60, "jpeg": 30, "tiff": 20, "bigtiff": 20}[name]
    with pytest.raises(ValueError, match="it is cut short"):
        xmp.insert(FILES[name][:end], PACKET)


def test_another_kind_of_file_is_refused():
    for call in (xmp.extract, lambda data: xmp.insert(data, PACKET)):
        with pytest.raises(ValueError, match="it is neither PNG, JPEG nor TIFF"):
            call(b"GIF89a")


def test_jpeg_says_how_much_it_holds():
    assert xmp.extract(xmp.insert(FILES["jpeg"], bytes(65504))) == bytes(65504)
    with pytest.raises(ValueError, match="its XMP would have 65505 bytes, and JPEG holds 65504"):
        xmp.insert(FILES["jpeg"], bytes(65505))


@settings(max_examples=300)
@given(st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), min_size=1))
def test_damage_is_refused_and_nothing_worse(name, damage):
    data = bytearray(xmp.insert(FILES[name], PACKET))
    start = struct.unpack_from("<Q", data, 8)[0] if name == "bigtiff" else 0  # its directory stands at the end
    for place, value in damage:
        data[(start + place) % len(data)] = value
    with contextlib.suppress(ValueError):
        xmp.properties(xmp.extract(bytes(data)) or PACKET)
    # Where nobody looks, or nothing changed, the packet is taken; anything but a ValueError fails.
    with contextlib.suppress(ValueError):
        xmp.insert(bytes(data), PACKET)


def test_a_count_of_entries_beyond_the_file_is_refused():
    data = bytearray(FILES["bigtiff"])
    (place,) = struct.unpack_from("<Q", data, 8)
    data[place : place + 8] = b"\xff" * 8
    with pytest.raises(ValueError, match="it is cut short"):
        xmp.extract(bytes(data))
    data[8:16] = b"\xff" * 8
    with pytest.raises(ValueError, match="it is cut short"):
        xmp.extract(bytes(data))
