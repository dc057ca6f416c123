"""Reading sources: every format, every encoding, and every way a file can be unusable."""

import gzip
import hashlib
import io
import sys
import zipfile
from pathlib import Path

import pytest

from mplus_cli.data import sources
from mplus_cli.data.sources import expand, read_source, read_sources
from mplus_cli.errors import UsageError

TEXT = "Gräfin Ånderson lives in Tremmenfjord.\nShe keeps a goat named Öl.\n"


def write(folder: Path, name: str, content: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be"])
def test_unicode_encodings(tmp_path, encoding):
    assert read_source(write(tmp_path, "a.txt", TEXT.encode(encoding))).text == TEXT


def test_legacy_encoding_is_detected(tmp_path):
    text = "Où est passé le garçon? Il était à la forêt près du château, où l'été était très agréable.\n" * 20
    source = read_source(write(tmp_path, "a.txt", text.encode("cp1252")))
    assert (source.text, source.guessed_encoding) == (text, "cp1252")


def test_cyrillic_is_detected(tmp_path):
    text = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n" * 20
    source = read_source(write(tmp_path, "a.txt", text.encode("koi8-r")))
    assert (source.text, source.guessed_encoding) == (text, "koi8_r")


def test_line_ends_are_normalised(tmp_path):
    assert read_source(write(tmp_path, "a.txt", b"one\r\ntwo\rthree\n")).text == "one\ntwo\nthree\n"


def test_hash_is_of_the_bytes_and_the_same_for_gzip(tmp_path):
    plain = read_source(write(tmp_path, "a.txt", TEXT.encode()))
    packed = read_source(write(tmp_path, "a.txt.gz", gzip.compress(TEXT.encode())))
    assert plain.sha256 == packed.sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert packed.text == TEXT


def test_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    source = read_source("-")
    assert (source.name, source.text) == ("stdin", TEXT)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "empty file"),
        ("blank.txt", b" \n\n", "no text in it"),
        ("program.bin", b"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x03\x00", "binary file"),
        ("controls.txt", bytes(range(1, 9)) * 50, "binary file"),
        ("cut.txt", b"\xff\xfeA", "damaged utf-16"),
        ("cut.gz", gzip.compress(b"hello " * 500, mtime=0)[:-20], "damaged gzip"),
        ("fake.pdf", b"plain text", "not a PDF file"),
        ("broken.pdf", b"%PDF-1.7\nnothing here", "damaged PDF"),
        ("broken.epub", b"PK\x03\x04 no zip", "damaged EPUB"),
    ],
)
def test_unusable_files_are_named_with_the_reason(tmp_path, name, content, reason):
    with pytest.raises(UsageError) as caught:
        read_source(write(tmp_path, name, content))
    assert name in caught.value.message
    assert reason in caught.value.message


def test_unknown_encoding_is_refused(tmp_path, monkeypatch):
    class Nothing(list):
        def best(self):
            return None

    monkeypatch.setattr("charset_normalizer.from_bytes", lambda content: Nothing())
    with pytest.raises(UsageError, match="neither UTF-8"):
        read_source(write(tmp_path, "a.txt", b"\xc3\x28\xa0\xa1 text"))


def test_all_problems_are_said_at_once(tmp_path):
    good = write(tmp_path, "good.txt", b"fine")
    empty = write(tmp_path, "empty.txt", b"")
    with pytest.raises(UsageError) as caught:
        read_sources([good, empty, str(tmp_path / "missing.txt"), str(tmp_path / "*.nothing")])
    message = caught.value.message
    assert "3 sources" in message
    assert "empty.txt" in message and "missing.txt" in message and "*.nothing" in message
    assert "good.txt" not in message


def test_directory_is_recursive_sorted_and_leaves_out_what_is_no_text(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.txt.gz", "image.png", ".hidden/x.txt", "sub/.y.txt"):
        write(tmp_path, name, b"text")
    found = [Path(path).relative_to(tmp_path).as_posix() for path in expand(str(tmp_path))]
    assert found == ["a.md", "b.txt", "sub/c.txt.gz"]


def test_glob_and_repeated_files(tmp_path):
    write(tmp_path, "1.txt", b"one")
    write(tmp_path, "2.txt", b"two")
    found = read_sources([str(tmp_path / "*.txt"), str(tmp_path / "1.txt")])
    assert [source.text for source in found] == ["one", "two"]


def test_directory_without_texts(tmp_path):
    write(tmp_path, "image.png", b"x")
    with pytest.raises(UsageError, match="no file in this directory"):
        read_sources([str(tmp_path)])


def test_unreadable_file(tmp_path, monkeypatch):
    path = write(tmp_path, "secret.txt", b"text")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UsageError, match="permission denied"):
        read_source(path)


def test_size_limit_holds_after_decompression(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match="larger than"):
        read_source(write(tmp_path, "bomb.gz", gzip.compress(b"a" * 5000)))


def test_html(tmp_path):
    page = b"""<!DOCTYPE html><html><head><title>T</title><meta charset="utf-8"><style>p {}</style></head><body>
    <!-- no --><h1>The  <i>Chronicle</i></h1><p>Mira Tol\xc3\xa9
    lives in <b>Nar</b>keld.</p><script>x = 1</script>
    <ul><li>one</li><li>two</li></ul><pre>a\n  b</pre></body></html>"""
    text = read_source(write(tmp_path, "page.html", page)).text
    assert text == "The Chronicle\n\nMira Tolé lives in Narkeld.\n\none\n\ntwo\n\na\nb\n"


def test_pdf(tmp_path):
    assert (
        read_source(write(tmp_path, "book.pdf", _pdf("Mira Tol lives in Narkeld."))).text.strip()
        == "Mira Tol lives in Narkeld."
    )


def test_pdf_without_text_says_so(tmp_path):
    with pytest.raises(UsageError, match="scanned"):
        read_source(write(tmp_path, "scan.pdf", _pdf("")))


def test_epub_follows_the_spine(tmp_path):
    text = read_source(write(tmp_path, "book.epub", _epub())).text
    assert text.index("Chapter one") < text.index("Chapter two")
    assert "cover" not in text


def test_epub_under_drm_is_refused(tmp_path):
    with pytest.raises(UsageError, match="DRM"):
        read_source(write(tmp_path, "book.epub", _epub(encrypted="OEBPS/one%20a.xhtml")))


def test_missing_reader_gives_the_pip_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(Exception, match="pypdf") as caught:
        read_source(write(tmp_path, "book.pdf", _pdf("text")))
    assert caught.value.hint == 'pip install "mplus[readers]"'


def _pdf(text: str) -> bytes:
    """A one-page PDF by hand: catalog, pages, page, content, font."""
    content = f"BT /F1 12 Tf 50 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 6\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return out + b"trailer << /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start


def _epub(encrypted: str | None = None) -> bytes:
    page = "<html><head><title>t</title></head><body><p>{}</p></body></html>"
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf"/></rootfiles></container>',
        "OEBPS/book.opf": '<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        '<item id="b" href="two.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="a" href="one%20a.xhtml" media-type="application/xhtml+xml"/>'
        '<item id="c" href="cover.xhtml" media-type="application/xhtml+xml"/></manifest>'
        '<spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
        "OEBPS/two.xhtml": page.format("Chapter two"),
        "OEBPS/one a.xhtml": page.format("Chapter one"),
        "OEBPS/cover.xhtml": page.format("cover"),
    }
    if encrypted:
        parts["META-INF/encryption.xml"] = (
            '<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData><e:CipherData>'
            f'<e:CipherReference URI="{encrypted}"/></e:CipherData></e:EncryptedData></encryption>'
        )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content)
    return packed.getvalue()
