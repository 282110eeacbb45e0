"""Links that leave docs/ work where the repository is browsed; the built site shows paths in their place."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[([^\]]*)\]\((\.\./[^)\s]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def outside(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2].split("#")[0]))
        return match[0] if target.startswith("docs/") else f"{match[1]} (`{target}`)"

    return LINK.sub(outside, markdown)
