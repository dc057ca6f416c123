"""From bytes to text without guessing wrong in silence: a known encoding, a confident detection, or a refusal."""

from __future__ import annotations

import codecs

from mplus_cli.errors import UsageError

_MARKS = (  # UTF-32 first: its little-endian mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SAMPLE = 1 << 16
_TEXT_CONTROLS = frozenset(b"\t\n\r\f\v\b\x1a\x1b\x85")


def decode(content: bytes, name: str) -> tuple[str, str | None]:
    """Decode the bytes of a text file.

    Tried in this order: a byte order mark, UTF-8, UTF-16 without a mark, then detection by charset-normalizer.

    Returns:
        The text, and the name of its encoding where that is a guess.

    Raises:
        UsageError: the bytes are not text, or their encoding cannot be told.
        ImportError: detection is needed and charset-normalizer is not installed.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _strict(content, encoding, name), None
    if not _is_binary(content[:_SAMPLE]):
        try:
            return content.decode("utf-8"), None
        except UnicodeDecodeError:
            return _detect(content, name)
    unmarked = _utf16_without_mark(content[:_SAMPLE])
    if unmarked is None:
        raise UsageError(f"{name}: binary file, not text")
    return _strict(content, unmarked, name), None


def _strict(content: bytes, encoding: str, name: str) -> str:
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: damaged {encoding} text at byte {error.start}") from error


def _is_binary(sample: bytes) -> bool:
    """NUL bytes, or more than a few per cent of control characters that no text has."""
    if b"\0" in sample:
        return True
    controls = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in sample)
    return controls > len(sample) * 0.03


def _utf16_without_mark(sample: bytes) -> str | None:
    """Latin text in UTF-16 has a NUL in nearly every even (big-endian) or odd (little-endian) byte."""
    pairs = len(sample) // 2
    if pairs == 0:
        return None
    for encoding, zeros, other in (
        ("utf-16-le", sample[1::2], sample[0::2]),
        ("utf-16-be", sample[0::2], sample[1::2]),
    ):
        if zeros.count(0) > 0.7 * pairs and other.count(0) == 0 and not _is_binary(other):
            return encoding
    return None


def _detect(content: bytes, name: str) -> tuple[str, str]:
    from charset_normalizer import from_bytes

    matches = from_bytes(content[: 1 << 20])
    best = matches.best()
    if best is None:
        raise UsageError(f"{name}: neither UTF-8 nor any other encoding that could be told", hint=_CONVERT)
    # The library breaks ties by the alphabet; Western files are far more common than any other that looks equally good.
    equal = [m.encoding for m in matches if (m.chaos, m.coherence) == (best.chaos, best.coherence)]
    encoding = "cp1252" if "cp1252" in equal else best.encoding
    try:
        return content.decode(encoding), encoding
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: looked like {encoding}, but byte {error.start} is not", hint=_CONVERT) from error


_CONVERT = "convert it first, as in: iconv -f LATIN1 -t UTF-8 IN > OUT"
