"""What every HTML page of ours must be."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from toto_train.evaluation import page as pages


class Markup(HTMLParser):
    """Collects ids and requires every element to close in order."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.ids += [v for k, v in attrs if k == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(page: str) -> None:
    """Loads nothing, runs only the sorting of tables, closes what it opens, has colours of its own style sheet alone,
    which knows dark and light."""
    assert "http" not in page
    assert not re.search(r"<link|<img|@import|src=", page)
    assert not re.search(r"url\((?!#)", page)
    assert set(re.findall(r"<script[^>]*>([^<]*)", page)) <= {pages._SORT}
    markup = Markup()
    markup.feed(page)
    assert markup.open == []
    assert len(markup.ids) == len(set(markup.ids))
    for reference in re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page):
        assert "".join(reference) in markup.ids
    assert "prefers-color-scheme: dark" in page
    assert not re.findall(r"#[0-9a-f]{6}\b", page[page.index("</style>") :])
