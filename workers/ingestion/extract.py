"""Text out of a file. Runs in a process of the pool: it may hang, eat memory or crash, and nothing but it is lost."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
import zipfile
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from subjects.contract import Code, Fault
from workers.ingestion import sniff

if TYPE_CHECKING:
    from kreuzberg import ExtractionResult

MAX_TEXT_BYTES = 16 << 20
MAX_ENTRIES = 10_000  # of a zip, which is what office files are
MAX_UNPACKED_BYTES = 512 << 20
MAX_SMUDGED_SHARE = 0.3  # replacement and private-use characters: fonts without a way back to letters
MAX_TITLE_CHARACTERS = 500
PAGE_BREAK = "\f"

_controls = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
_charset = re.compile(
    rb"""(?:<meta[^>]{0,200}charset|<\?xml[^>]{0,200}encoding)\s*=\s*["']?([A-Za-z0-9._:-]{1,40})""", re.IGNORECASE
)
# kreuzberg writes these as Markdown, which would stand in every quote; without the tags their text stays.
_inline = re.compile(
    rb"</?(?:a|abbr|b|cite|code|del|em|font|i|img|ins|kbd|mark|s|samp|small|span|strong|tt|u|var)(?:\s[^<>]{0,2000})?/?>",
    re.IGNORECASE,
)
_permalink = re.compile("\N{PILCROW SIGN}$", re.MULTILINE)


class Extracted(TypedDict):
    """type: by the whole content. pages: None when the format has none. title: the document's own, or empty."""

    type: str
    characters: int
    pages: int | None
    title: str


def extract(path: str, text_path: str, name: str) -> Extracted:
    """Write the file's text to text_path as UTF-8, pages separated by a form feed.

    name is the user's and only a hint between kinds of plain text. Raises Fault(INVALID) for what cannot be indexed
    (encrypted, broken, empty, images only, unknown) and Fault(TOO_LARGE) for a text over MAX_TEXT_BYTES or a zip that
    unpacks to more than MAX_UNPACKED_BYTES; each says why, in words for the owner of the file.
    """
    source = Path(path)
    found = identify(source, name)
    if found in (sniff.TEXT, sniff.MARKDOWN):
        pages, title = _plain(source.read_bytes()), ""
    elif found in (sniff.CSV, sniff.TSV):
        pages, title = [_table(source.read_bytes(), "\t" if found == sniff.TSV else ",")], ""
    else:
        pages, title = _parsed(source, found)
    pages = [clean(page) for page in pages]
    text = PAGE_BREAK.join(pages)
    _refuse_unreadable(text, found)
    data = text.encode("utf-8")
    if len(data) > MAX_TEXT_BYTES:
        raise Fault(Code.TOO_LARGE, f"the file's text is larger than {MAX_TEXT_BYTES >> 20} MiB; split the file")
    Path(text_path).write_bytes(data)
    paged = len(pages) > 1 or found == sniff.PDF
    title = " ".join(clean(title).split())[:MAX_TITLE_CHARACTERS]
    return Extracted(type=found, characters=len(text), pages=len(pages) if paged else None, title=title)


def identify(source: Path, name: str) -> str:
    """The type by the whole file. Raises Fault(INVALID) for one that this version does not read."""
    size = source.stat().st_size
    with source.open("rb") as file:
        head = file.read(sniff.HEAD_BYTES)
    found = sniff.sniff(head, name, whole=size <= len(head))
    if head.startswith(b"PK"):
        found = _zipped(source)
    elif found == sniff.OLE:
        data = source.read_bytes()
        if sniff.is_encrypted_office(data):
            raise Fault(Code.INVALID, "the file is encrypted; upload it without its password")
        found = sniff.ole(data)
    elif found == sniff.JSON and size > len(head) and sniff.sniff(source.read_bytes(), name, whole=True) != sniff.JSON:
        found = sniff.TEXT
    check_supported(found)
    return found


def check_supported(found: str) -> None:
    """Raises Fault(INVALID) that says what the file is and what to do."""
    if found in sniff.SUPPORTED:
        return
    if found == sniff.EMPTY:
        raise Fault(Code.INVALID, "the file is empty")
    kind = found.split("/", 1)[0]
    if kind in ("image", "audio", "video"):
        raise Fault(Code.INVALID, f"{kind} files ({found}) are not in this version; upload their text")
    raise Fault(Code.INVALID, f"files of type {found} cannot be indexed; PDF, office, HTML, mail and text files can")


def _zipped(source: Path) -> str:
    try:
        with zipfile.ZipFile(source) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise Fault(Code.TOO_LARGE, f"the file holds {len(entries)} parts, more than {MAX_ENTRIES}")
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED_BYTES:
                raise Fault(Code.TOO_LARGE, f"the file unpacks to more than {MAX_UNPACKED_BYTES >> 20} MiB")
            names = {entry.filename for entry in entries}
            if "mimetype" not in names:
                return sniff.zipped(names)
            with archive.open("mimetype") as declared:
                return sniff.zipped(names, declared.read(200))
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise Fault(Code.INVALID, "the file is broken: its parts cannot be listed") from error


def _plain(data: bytes) -> list[str]:
    text = sniff.read_text(data)
    if text is None:
        raise Fault(Code.INVALID, "the file begins like text and goes on as something else")
    return text.split(PAGE_BREAK)


def _table(data: bytes, delimiter: str) -> str:
    """A line for each row that says its column names: a chunk of a table must make sense alone."""
    text = "\n".join(_plain(data))
    if delimiter == "," and text.count(";", 0, sniff.HEAD_BYTES) > text.count(",", 0, sniff.HEAD_BYTES):
        delimiter = ";"
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = next(rows, [])
        lines, size = [" | ".join(header)], 0
        for row in rows:
            cells = [
                f"{name}: {cell}" if name else cell for name, cell in zip_longest(header, row, fillvalue="") if cell
            ]
            lines.append(" | ".join(cells))
            size += len(lines[-1])
            if size > MAX_TEXT_BYTES:
                break  # refused by its size
    except csv.Error as error:
        raise Fault(Code.INVALID, f"the file is broken: its table cannot be read ({error})") from error
    return "\n".join(lines)


def _parsed(source: Path, found: str) -> tuple[list[str], str]:
    """The pages (one, when the format has none) and the title of a document."""
    # Only here, in the pool's process: it is large, and what it parses is hostile.
    from kreuzberg import ConcurrencyConfig, ExtractionConfig, PageConfig, extract_bytes_sync, extract_file_sync

    config = ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,  # it rewrites the text; a quote must stand in the document
        pages=PageConfig(extract_pages=True),
        concurrency=ConcurrencyConfig(max_threads=1),
    )
    try:
        if found == sniff.HTML:
            result = extract_bytes_sync(_inline.sub(b"", _utf8(source.read_bytes())), found, config)
        elif found in (sniff.XML, sniff.JSON):
            result = extract_bytes_sync(_utf8(source.read_bytes()), found, config)
        else:
            result = extract_file_sync(source, found, config)
    except MemoryError:
        raise
    except Exception as error:  # its errors have no common type that the stubs and the library agree on
        raise _refusal(error, found) from error
    if result.metadata.get("error"):
        raise Fault(Code.INVALID, f"the file is broken: it cannot be read as {found}")
    title = result.metadata.get("title")
    return _pages(result, found), title if isinstance(title, str) else ""


def _refusal(error: Exception, found: str) -> Fault:
    """kreuzberg says in words only that a file is encrypted."""
    told = str(error).lower()
    if "password" in told or "encrypt" in told:
        return Fault(Code.INVALID, "the file is encrypted; upload it without its password")
    return Fault(Code.INVALID, f"the file is broken: it cannot be read as {found}")


def _utf8(data: bytes) -> bytes:
    """kreuzberg takes text to be UTF-8; a page that declares another charset is converted."""
    declared = _charset.search(data[:1024])
    if declared is not None and not data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        try:
            return data.decode(declared[1].decode("ascii"), "strict").encode()
        except (LookupError, UnicodeError):
            pass  # it declares what it is not: look at the bytes
    text = sniff.read_text(data)
    if text is None:
        raise Fault(Code.INVALID, "the file begins like text and goes on as something else")
    return text.encode("utf-8", "replace")


def _pages(result: ExtractionResult, found: str) -> list[str]:
    if found == sniff.PDF:
        # The pages' own text: result.content repeats a page's tables below it.
        by_number = {page["page_number"]: page["content"].replace(PAGE_BREAK, "\n") for page in result.pages or []}
        return [by_number.get(number, "") for number in range(1, max(by_number, default=0) + 1)]
    content = result.content.replace(PAGE_BREAK, "\n")
    if found == sniff.HTML:
        content = _permalink.sub("", content)
    if found in (sniff.DOCX, sniff.PPTX):
        return _bounded(content, result)
    return [content]


def _bounded(content: str, result: ExtractionResult) -> list[str]:
    """Cut at the byte offsets of the pages or slides, when they cover the text."""
    structure = result.metadata.get("pages") or {}
    boundaries = structure.get("boundaries") or []
    data = content.encode("utf-8")
    starts = [boundary["byte_start"] for boundary in boundaries]
    if len(starts) < 2 or starts[0] != 0 or starts != sorted(starts) or starts[-1] > len(data):
        return [content]
    ends = [*starts[1:], len(data)]
    return [data[start:end].decode("utf-8", "ignore").strip("\n") for start, end in zip(starts, ends, strict=True)]


def clean(text: str) -> str:
    """NFC, line ends as \\n, and no control characters except \\n, \\t and the form feed between pages."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _controls.sub("", text))


def _refuse_unreadable(text: str, found: str) -> None:
    letters: Sequence[str] = [char for char in text if not char.isspace()]
    if not letters:
        if found == sniff.PDF:
            raise Fault(Code.INVALID, "the PDF has no text: its pages are images, which this version does not read")
        raise Fault(Code.INVALID, "the file has no text")
    smudged = sum(1 for char in letters if char == "\ufffd" or "\ue000" <= char <= "\uf8ff")
    if smudged > MAX_SMUDGED_SHARE * len(letters):
        raise Fault(Code.INVALID, "the file's text cannot be read: its fonts do not say which letters they draw")
