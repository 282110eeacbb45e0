"""Names from outside (of files, classes, columns) as text that can be shown anywhere: on a screen, in tables, Markdown
and HTML."""

import difflib
import errno
import json
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029"  # a terminal obeys them, and ends lines
_HALVES = "\ud800-\udfff"  # of characters, which no file takes; bytes of a name that is not UTF-8 among them
# Characters without a picture of their own (Unicode's default ignorables): marks of direction, soft hyphens, spaces of
# no width, fillers, tags.
_IGNORED = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e00ff\U000e01f0-\U000e0fff"
)
# Four more kinds belong to the spelling of words, and are shown as they are where they do: joiners between letters from
# Arabic to Mongolian (Persian and Hindi words are other words without them) and between emoji (a family), selectors of
# a variant after a symbol, an ideograph or a Mongolian letter. Elsewhere, in a Latin name above all, they only hide.
_LETTERS = "\u0620-\u109f\u1780-\u17b3\u17b6-\u180a\u1810-\u18af\u1900-\u1cff\ua800-\uabff\U00010a00-\U00011fff"
_EMOJI = "\u203c\u2049\u2122-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_VARIED = "\u00a9\u00ae\u203c-\u205e\u2070-\u3163\u3165-\ud7ff\ue000-\ufaff\U0001f000-\U0001faff"
_IDEOGRAPHS = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SPELLING = (
    rf"(?<=[{_LETTERS}])[\u200c\u200d](?=[{_LETTERS}])|(?<=[{_EMOJI}])\u200d(?=[{_EMOJI}])"
    rf"|(?<=[{_EMOJI}]\ufe0f)\u200d(?=[{_EMOJI}])|(?<=[#*0-9])\ufe0f(?=\u20e3)|(?<=[{_VARIED}])[\ufe00-\ufe0f]"
    rf"|(?<=[\u1820-\u18aa])[\u180b-\u180f]|(?<=[{_IDEOGRAPHS}])[\U000e0100-\U000e01ef]"
)
_SPELLS = r"\u200c\u200d\ufe00-\ufe0f\u180b-\u180f\U000e0100-\U000e01ef"
_UNSHOWN = re.compile(rf"[{_CONTROL}{_HALVES}{_IGNORED}]|(?!{_SPELLING})[{_SPELLS}]")
_UNSHOWN_IN_JSON = re.compile(_UNSHOWN.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))  # \n: between lines
_INVISIBLE = re.compile(f"[{_IGNORED}{_SPELLS}]")
_RUN = re.compile(r"(^|;)(?='*[=+\-@＝＋－＠])")
_QUOTED = re.compile(r"(^|;)'(?='*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
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


def appearance(name: str) -> str:
    """Equal for names that look the same, or differ in case, width and spaces alone."""
    return " ".join(unicodedata.normalize("NFKC", _INVISIBLE.sub("", name)).casefold().split())


def is_unicode(text: str) -> bool:
    """False for a name with bytes that are not UTF-8, which neither FFmpeg nor a list file takes."""
    return not re.search("[\ud800-\udfff]", text)


def as_number(text: str) -> float:
    """A number as files and commands write it. Python's own float also takes 1_0, nan and the digits of all scripts.

    Raises:
        ValueError: for any other text.
    """
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return float(text)


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
    return _UNSHOWN_IN_JSON.sub(_json_escape, text)


def _json_escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\u{number:04x}" if number < 2**16 else json.dumps(match[0])[1:-1]  # two halves


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
