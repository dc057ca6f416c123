"""Text out of HTML, PDF and EPUB documents. The readers' packages are imported when such a document is met."""

from __future__ import annotations

import io
import posixpath
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
import zipfile
import zlib
from collections.abc import Callable
from pathlib import PurePosixPath

from mplus_cli.errors import UsageError

_BLOCKS = re.compile(
    "^(address|article|aside|blockquote|br|caption|dd|details|dialog|div|dl|dt|fieldset|figcaption|figure|footer|form|h[1-6]|"
    "header|hr|li|main|nav|ol|option|p|pre|section|summary|table|tbody|td|tfoot|th|thead|title|tr|ul)$"
)
_UNSEEN = ["script", "style", "noscript", "template", "svg", "math", "iframe", "object", "head"]
_EPUB_LIMIT = 1 << 30


def document_kind(name: str, content: bytes) -> str | None:
    """`pdf`, `epub` or `html`; None for anything to be read as plain text. The content decides before the name."""
    if content.startswith(b"%PDF-"):
        return "pdf"
    suffix = PurePosixPath(name.removesuffix(".gz")).suffix.lower()
    if content.startswith(b"PK\x03\x04") and (suffix == ".epub" or b"application/epub+zip" in content[:100]):
        return "epub"
    if suffix in (".pdf", ".epub"):
        raise UsageError(f"{name}: not a {suffix[1:].upper()} file, whatever its name says")
    if suffix in (".html", ".htm", ".xhtml"):
        return "html"
    return None


def html_text(content: bytes, name: str) -> str:
    """The visible text, a line per block, blank lines between paragraphs."""
    from bs4 import BeautifulSoup, NavigableString
    from bs4.element import PreformattedString

    soup = BeautifulSoup(content, "html.parser")
    if soup.contains_replacement_characters:
        raise UsageError(f"{name}: its encoding could not be told", hint="convert it to UTF-8 first")
    for tag in soup.find_all(_UNSEEN):
        tag.decompose()
    for node in list(soup.find_all(string=True)):
        if isinstance(node, PreformattedString):
            node.extract()  # comments, doctype, CDATA
        elif node.find_parent("pre") is None:
            node.replace_with(NavigableString(re.sub(r"\s+", " ", node)))
    for tag in soup.find_all(_BLOCKS):
        tag.insert_before("\n")
        tag.insert_after("\n")
    text = re.sub(r"[ \t]*\n[ \t]*", "\n", soup.get_text())
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def pdf_text(content: bytes, name: str) -> str:
    """The text of every page, pages parted by an empty line."""
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            raise UsageError(f"{name}: protected by a password", hint="save a copy without one and inject that")
        return "\n\n".join(page.extract_text() for page in reader.pages)
    except DependencyError as error:
        raise UsageError(f"{name}: {error}", hint="pip install cryptography") from error
    except (PyPdfError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{name}: damaged PDF ({error})") from error


def epub_text(content: bytes, name: str) -> str:
    """The text of the book's spine, in reading order."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as book:
            if sum(entry.file_size for entry in book.infolist()) > _EPUB_LIMIT:
                raise UsageError(f"{name}: more than 1 GiB when unpacked")
            parts = _spine(book)
            protected = _encrypted_parts(book)
            if protected.intersection(parts):
                raise UsageError(f"{name}: protected by DRM, its text cannot be read")
            return "\n\n".join(html_text(book.read(part), f"{name}:{part}") for part in parts)
    except (zipfile.BadZipFile, KeyError, ElementTree.ParseError, zlib.error, EOFError) as error:
        raise UsageError(f"{name}: damaged EPUB ({error})") from error


def _spine(book: zipfile.ZipFile) -> list[str]:
    """Names of the (X)HTML parts of an EPUB in reading order: container.xml -> package file -> manifest and spine."""
    container = ElementTree.fromstring(book.read("META-INF/container.xml"))
    rootfile = container.find(".//{*}rootfile")
    if rootfile is None:
        raise KeyError("no package file is named in META-INF/container.xml")
    package_name = rootfile.attrib["full-path"]
    package = ElementTree.fromstring(book.read(package_name))
    manifest = {item.attrib["id"]: item.attrib for item in package.iterfind(".//{*}manifest/{*}item")}
    folder = posixpath.dirname(package_name)
    parts = []
    for reference in package.iterfind(".//{*}spine/{*}itemref"):
        item = manifest[reference.attrib["idref"]]
        if "html" in item.get("media-type", ""):
            parts.append(posixpath.normpath(posixpath.join(folder, urllib.parse.unquote(item["href"]))))
    return parts


def _encrypted_parts(book: zipfile.ZipFile) -> set[str]:
    """Parts listed in encryption.xml; fonts are often there in books that are free to read."""
    if "META-INF/encryption.xml" not in book.namelist():
        return set()
    root = ElementTree.fromstring(book.read("META-INF/encryption.xml"))
    return {urllib.parse.unquote(node.attrib["URI"]) for node in root.iterfind(".//{*}CipherReference")}


DOCUMENT_READERS: dict[str, Callable[[bytes, str], str]] = {"html": html_text, "pdf": pdf_text, "epub": epub_text}
