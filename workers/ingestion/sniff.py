"""The type of a file by what is in it. Its name only chooses between the kinds of plain text, which look alike."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Collection

HEAD_BYTES = 8192  # what is looked at; enough for every signature below

PDF, RTF, HTML, XML, EMAIL = "application/pdf", "application/rtf", "text/html", "application/xml", "message/rfc822"
TEXT, MARKDOWN, CSV, TSV = "text/plain", "text/markdown", "text/csv", "text/tab-separated-values"
JSON, ODT, EPUB = "application/json", "application/vnd.oasis.opendocument.text", "application/epub+zip"
_OPEN_XML = "application/vnd.openxmlformats-officedocument."
DOCX = _OPEN_XML + "wordprocessingml.document"
PPTX = _OPEN_XML + "presentationml.presentation"
XLSX = _OPEN_XML + "spreadsheetml.sheet"
DOC, PPT, XLS = "application/msword", "application/vnd.ms-powerpoint", "application/vnd.ms-excel"
ZIP, OLE, EMPTY, UNKNOWN = (
    "application/zip",
    "application/x-ole-storage",
    "application/x-empty",
    "application/octet-stream",
)

SUPPORTED = frozenset(
    {PDF, RTF, HTML, XML, EMAIL, TEXT, MARKDOWN, CSV, TSV, JSON, ODT, EPUB, DOCX, PPTX, XLSX, DOC, PPT, XLS}
)
CONTAINERS = frozenset({ZIP, OLE})  # the head cannot always tell what is inside: identify() reads on

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", ZIP),
    (b"PK\x05\x06", ZIP),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", OLE),
    (b"{\\rtf", RTF),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"BM", "image/bmp"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"\x1f\x8b", "application/gzip"),
    (b"7z\xbc\xaf\x27\x1c", "application/x-7z-compressed"),
    (b"Rar!\x1a\x07", "application/vnd.rar"),
    (b"\x7fELF", "application/x-executable"),
    (b"MZ", "application/x-executable"),
)
_EMAIL_FIELDS = frozenset(
    {"from", "to", "cc", "subject", "date", "received", "return-path", "message-id", "mime-version", "delivered-to"}
    | {"content-type", "reply-to", "dkim-signature", "x-mailer", "in-reply-to", "references", "sender", "list-id"}
)
_field = re.compile(r"([A-Za-z][A-Za-z0-9-]{0,76}):[ \t]?")
_html = re.compile(
    r"<(?:!doctype\s+html|html|head|body|title|meta|h[1-6]|p|div|span|table|ul|ol|article|section|main|style|script|a|b|br|img)\b",
    re.IGNORECASE,
)
_element = re.compile(r"<[A-Za-z_][\w.:-]*(?:\s[^<>]*)?/?>")
_json_start = re.compile(r'[\[{]\s*(?:["\[{\]}]|-?\d|true|false|null)')
_markdown = re.compile(r"^(?:#{1,6} \S|```|\* \S|- \S|\d+\. \S|\|.*\|$|\[[^\]]+\]\()", re.MULTILINE)
_heading = re.compile(r"^#{1,6} \S", re.MULTILINE)
BY_NAME = {".md": MARKDOWN, ".markdown": MARKDOWN, ".csv": CSV, ".tsv": TSV, ".txt": TEXT}
MAX_CONTROL_SHARE, FEW_CONTROLS = 0.02, 2  # more control characters than that, and it is no text


def sniff(head: bytes, name: str = "", *, whole: bool = False) -> str:
    """MIME type from the first HEAD_BYTES. whole says that head is the entire file."""
    if not head:
        return EMPTY
    if b"%PDF-" in head[:1024]:
        return PDF
    for signature, found in _SIGNATURES:
        if head.startswith(signature) and not (found == "image/bmp" and head[6:10] != b"\0\0\0\0"):
            return _zipped_head(head) if found == ZIP else found
    if head[:4] == b"RIFF":
        return {b"WAVE": "audio/wav", b"WEBP": "image/webp", b"AVI ": "video/x-msvideo"}.get(head[8:12], UNKNOWN)
    if head[4:8] == b"ftyp":
        return {b"M4A ": "audio/mp4", b"heic": "image/heic", b"avif": "image/avif"}.get(head[8:12], "video/mp4")
    text = read_text(head, whole=whole)
    return UNKNOWN if text is None else _text(text, name.lower(), whole)


def zipped(names: Collection[str], mimetype: bytes = b"") -> str:
    """What a zip is, from the names of its entries and the content of the one called `mimetype`."""
    declared = mimetype.strip().decode("ascii", "replace")
    if declared in (ODT, EPUB):
        return declared
    if "[Content_Types].xml" in names:
        for folder, found in (("word/", DOCX), ("ppt/", PPTX), ("xl/", XLSX)):
            if any(entry.startswith(folder) for entry in names):
                return found
    return ZIP


def ole(data: bytes) -> str:
    """What an OLE file is, from the UTF-16 names in its directory; OLE for what is encrypted or unknown."""
    for stream, found in (("WordDocument", DOC), ("PowerPoint Document", PPT), ("Workbook", XLS), ("Book", XLS)):
        if stream.encode("utf-16-le") in data and not is_encrypted_office(data):
            return found
    return OLE


def is_encrypted_office(data: bytes) -> bool:
    """Word, Excel and PowerPoint put an encrypted docx, xlsx or pptx into an OLE file under this name."""
    return "EncryptedPackage".encode("utf-16-le") in data


def read_text(data: bytes, *, whole: bool = True) -> str | None:
    """Decode text: by its byte order mark, else UTF-8, else Windows-1252. None when it is no text."""
    for mark, encoding in (
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ):
        if data.startswith(mark):
            text = data[len(mark) :].decode(encoding, "replace")
            return text if whole else text.removesuffix("\ufffd")
    if b"\0" in data:
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=whole)
    except UnicodeDecodeError:
        text = data.decode("cp1252", "replace")
    controls = sum(
        1 for char in text if (char < " " and char not in "\t\n\r\f") or "\x7f" <= char <= "\x9f" or char == "\ufffd"
    )
    return None if controls > max(FEW_CONTROLS, MAX_CONTROL_SHARE * len(text)) else text


def _zipped_head(head: bytes) -> str:
    """The name, and for `mimetype` the content, of the first entries stands in the head; the rest is in the file."""
    if head[30:38] == b"mimetype":
        for found in (ODT, EPUB):
            if head[38:].startswith(found.encode()):
                return found
    return ZIP


def _text(text: str, name: str, whole: bool) -> str:
    start = text.lstrip("\ufeff \t\r\n\f")
    if not start:
        return EMPTY if whole else TEXT
    if start.startswith("<"):
        found = _marked_up(start, name)
        if found is not None:
            return found
    if _json_start.match(start) and (_is_json(start) if whole else not name.endswith(tuple(BY_NAME))):
        return JSON
    if _is_email(start):
        return EMAIL
    return _plain(start, name)


def _marked_up(start: str, name: str) -> str | None:
    xml = start.startswith("<?xml")
    body = start[start.find("?>") + 2 :].lstrip() if xml else start
    while body.startswith("<!--"):
        end = body.find("-->")
        body = body[end + 3 :].lstrip() if end >= 0 else ""
    if _html.match(body):
        return HTML
    if xml or (name.endswith((".xml", ".svg", ".rss")) and _element.match(body)):
        return XML
    return None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _is_email(start: str) -> bool:
    """Header lines from the first line on, at least two of which only mail has."""
    known = set()
    for line in start.splitlines()[:60]:
        if not line.strip():
            break
        if line[0] in " \t":
            continue
        match = _field.match(line)
        if match is None:
            return False
        known.add(match[1].lower())
    return len(known & _EMAIL_FIELDS) >= 2 and bool(known & {"from", "received", "message-id", "return-path"})


def _plain(text: str, name: str) -> str:
    for ending, found in BY_NAME.items():
        if name.endswith(ending):
            return found
    lines = text.splitlines()[:-1][:50]
    for delimiter, found in ((",", CSV), ("\t", TSV)):
        if _is_table(lines, delimiter):
            return found
    return MARKDOWN if _heading.search(text) and len(_markdown.findall(text)) >= 3 else TEXT


def _is_table(lines: list[str], delimiter: str) -> bool:
    """At least three lines, all with the same number of cells, and that at least two."""
    try:
        widths = {len(row) for row in csv.reader(lines, delimiter=delimiter)}
    except csv.Error:
        return False
    return len(lines) >= 3 and len(widths) == 1 and widths.pop() >= 2
