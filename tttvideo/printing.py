"""Names from outside (of files, classes, columns) as text that can be shown anywhere: on a screen, in tables, Markdown
and HTML."""

import difflib
import errno
import json
import re
import reprlib
from collections.abc import Iterable
from typing import Any

_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters: a terminal obeys them
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"  # bidirectional marks, no width
    "\u2028\u2029"  # line ends
    "\ud800-\udfff]"  # halves of characters, which no file takes; bytes of a name that is not UTF-8 among them
)
_RUN = re.compile(r"(^|;)(?='*[=+\-@＝＋－＠])")
_QUOTED = re.compile(r"(^|;)'(?='*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MARKUP = re.compile(r"([\\`*_\[\]|~])")


def printable(text: str) -> str:
    """The text with escapes such as \\x1b, \\n and \\u202e where a character would act in place of being shown, and
    \\xe9 for a byte that is not UTF-8."""
    return _UNSHOWN.sub(lambda match: _escape(match[0]), text)


def cause(error: BaseException) -> str:
    """The class of a library's error and the beginning of its message, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def shortened(value: Any) -> str:
    """A value as a message can hold it: aliases of a YAML file can make it longer than the memory."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlist = 4, 200, 200, 8
    return "null" if value is None else short.repr(value)


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # how Python holds a byte of a file's name
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def is_unicode(text: str) -> bool:
    """False for a name with bytes that are not UTF-8, which neither FFmpeg nor a list file takes."""
    return not re.search("[\ud800-\udfff]", text)


def cell(value: Any) -> Any:
    """A value as CSV takes it: text is printable, and begins with ' (at each ; anew) where a spreadsheet would run it.
    Numbers stay numbers."""
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    return _RUN.sub(r"\1'", printable(value))


def from_cell(text: str) -> str:
    """The text that ``cell`` made this of, as it was printable."""
    return _QUOTED.sub(r"\1", text)


def json_text(data: Any, indent: int | None = 2) -> str:
    """JSON of exactly these values, in which nothing acts on a screen. NaN and infinite numbers raise ValueError."""
    text = json.dumps(data, indent=indent, ensure_ascii=False, allow_nan=False)
    return re.sub(
        _UNSHOWN.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"), lambda match: f"\\u{ord(match[0]):04x}", text
    )


def markdown(text: str) -> str:
    """Printable text that Markdown shows as it stands, also within a table."""
    text = _MARKUP.sub(r"\\\1", printable(text))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def markdown_code(text: str) -> str:
    """The same in the type of code; | ends a table's cell even there."""
    text = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text[:1] in ("`", "") or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def nearest(word: str, names: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The one of ``names`` that ``word`` may have been meant to be."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)), None)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """The end of a sentence on a word that is none of ``names``."""
    names = list(names)
    name = nearest(word, names)
    return f"; did you mean {name}?" if name else f"; there are: {', '.join(names)}"


def sentence(error: Exception) -> str:
    """The words of an error in one line, without a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += "; make room, or write to another disk"
    return text.removesuffix(".")
