"""The type of a file comes from its content; its name only chooses between kinds of plain text."""

from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.ingestion import sniff

EML = b"From: a@example.org\r\nTo: b@example.org\r\nSubject: Report\r\nMIME-Version: 1.0\r\n\r\nThe number is 4711.\r\n"
MD = b"# Title\n\n- one\n- two\n\n## Part\n\n```\ncode\n```\n"


def zip_of(*names: str, mimetype: str | None = None) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        if mimetype is not None:
            archive.writestr("mimetype", mimetype)
        for name in names:
            archive.writestr(name, "x")
    return target.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", sniff.EMPTY),
        (b" \n\t ", sniff.EMPTY),
        (b"%PDF-1.7\n", sniff.PDF),
        (b"junk before the mark\n%PDF-1.4", sniff.PDF),
        (b"{\\rtf1 hello}", sniff.RTF),
        (b"\x89PNG\r\n\x1a\n....", "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"RIFF\x00\x00\x00\x00WAVEfmt ", "audio/wav"),
        (b"\x00\x00\x00\x18ftypmp42", "video/mp4"),
        (b"\x7fELF\x02\x01", "application/x-executable"),
        (b"\x00\x01\x02\x03binary", sniff.UNKNOWN),
        (b"<!DOCTYPE html><html></html>", sniff.HTML),
        (b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"/>', sniff.HTML),
        (b"<!-- note --><p>fragment</p>", sniff.HTML),
        (b'<?xml version="1.0"?><feed/>', sniff.XML),
        (b'{"a": [1, 2]}', sniff.JSON),
        (b"[1, 2, 3]", sniff.JSON),
        (b"[not json] but prose", sniff.TEXT),
        (b"{broken json", sniff.TEXT),
        (EML, sniff.EMAIL),
        (b"Note: this is prose.\nDate: none.\n", sniff.TEXT),
        (b"a,b,c\n1,2,3\n4,5,6\n7,8,9\n", sniff.CSV),
        (b"a\tb\n1\t2\n3\t4\n5\t6\n", sniff.TSV),
        (b"Once upon a time, there was\na king, and he\nhad, as it happens, three\nsons.\n", sniff.TEXT),
        (MD, sniff.MARKDOWN),
        ("Grüße".encode(), sniff.TEXT),
        ("Grüße".encode("latin-1"), sniff.TEXT),
        ("Grüße".encode("utf-16"), sniff.TEXT),
        (b"\xef\xbb\xbfwith a mark", sniff.TEXT),
        (zip_of("readme.txt"), sniff.ZIP),
        (zip_of("META-INF/container.xml", mimetype=sniff.EPUB), sniff.EPUB),
        (zip_of("content.xml", mimetype=sniff.ODT), sniff.ODT),
    ],
)
def test_the_type_is_found_from_the_content(content: bytes, expected: str) -> None:
    assert sniff.sniff(content, whole=True) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("[Content_Types].xml", "word/document.xml"), sniff.DOCX),
        (("[Content_Types].xml", "ppt/presentation.xml"), sniff.PPTX),
        (("[Content_Types].xml", "xl/workbook.xml"), sniff.XLSX),
        (("word/document.xml",), sniff.ZIP),
        ((), sniff.ZIP),
    ],
)
def test_a_zip_is_what_its_entries_say(names: tuple[str, ...], expected: str) -> None:
    assert sniff.zipped(names) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.md", sniff.MARKDOWN),
        ("A.CSV", sniff.CSV),
        ("x.tsv", sniff.TSV),
        ("x.txt", sniff.TEXT),
        ("x.pdf", sniff.TEXT),
    ],
)
def test_a_name_chooses_only_between_kinds_of_plain_text(name: str, expected: str) -> None:
    assert sniff.sniff(b"just some words", name, whole=True) == expected
    assert sniff.sniff(b"%PDF-1.4", name, whole=True) == sniff.PDF
    assert sniff.sniff(b"\x7fELF", name, whole=True) == "application/x-executable"


def test_text_cut_in_the_middle_of_a_character_is_text() -> None:
    text = ("ä" * 5000).encode()
    assert sniff.sniff(text[: sniff.HEAD_BYTES - 1], "a.txt") == sniff.TEXT


@given(st.binary(max_size=2000), st.text(max_size=30), st.booleans())
def test_any_bytes_under_any_name_have_a_type(content: bytes, name: str, whole: bool) -> None:
    assert "/" in sniff.sniff(content, name, whole=whole)


@given(st.text(max_size=500).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_reading_text_never_raises(content: bytes) -> None:
    sniff.read_text(content)
    sniff.read_text(content, whole=False)
