"""The build's page says what the counts say, escapes every name and needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines import quality, report
from data_pipelines.assemble import write_shards
from data_pipelines.report import write_report
from data_pipelines.report_parts import brief, extent, interval, picture, share
from data_pipelines.series import Series
from data_pipelines.shards import no_counts

NUMBERS = {
    "series_read": 4321, "series_kept": 3210, "variates_read": 9876, "variates_kept": 8765,
    "series_rejected": {"too_short": 1101, "constant": 10}, "variates_dropped": {"too_short": 1101, "flat": 13},
    "points_impossible": 77_001, "groups_split": 12, "variates_rated": 31,
    "table_rows": {"duplicate": 41, "out_of_order": 42, "gap": 43_000},
    "lengths": {"64-127": 2001, "1024-2047": 1209}, "intervals": {"60": 3001, "3600": 209},
}  # fmt: skip
SETTINGS = {"source": "parquet", "quality": {"min_length": 64, "max_magnitude": 1e30, "max_flat": 0.995}}
EVIL = "<script>alert('&\")</script>"


def example(source="web", item="a", variate="cpu", detail="why", values=(1.0, None, 2.0)):
    return SimpleNamespace(source=source, item_id=item, variate=variate, detail=detail, values=list(values))


def counted(numbers=NUMBERS, examples=None, kept=()):
    """What the page needs of quality.Counts."""
    return SimpleNamespace(as_dict=lambda: numbers, examples=examples or {}, kept_examples=list(kept))


def source(points=1000, series=3, **fields):
    histograms = {"domains": {"general": 3}, "licences": {"MIT": 3}, "intervals": {"60": 3}, "variate_counts": {"1": 3}}
    return {"series": series, "variates": 5, "points": points, "missing": 10, **histograms, **fields}


def manifest(sources, config=SETTINGS):
    total = no_counts() | {"licences": {"MIT": 1}, "intervals": {"60": 1}, "variate_counts": {"1": 7, "3": 1, "4": 2}}
    for key in ("series", "variates", "points", "missing"):
        total[key] = sum(s[key] for s in sources.values())
    shards = [
        {"name": f"s-{k:06d}.tar", "source": name, "series": 3, "bytes": 10**6 * (k + 1)}
        for k, name in enumerate(sources)
    ]
    return {"schema": 1, **total, "sources": sources, "shards": shards, "config": config}


def page(tmp_path, *args, title="mine"):
    return write_report(tmp_path / "report.html", *args, title).read_text()


class Text(HTMLParser):
    """The page's rows of text, tags in order, and whether every tag is closed."""

    VOID = ("meta", "rect", "path")

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def row_of(html, name):
    """Texts of the cells of the table row that begins with a name."""
    row = next(r for r in re.findall(r"<tr[^>]*>(.*?)</tr>", html) if re.match(rf"<th[^>]*>{name}</th>", r))
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]


def test_numbers_are_those_of_the_counts_and_the_manifest(tmp_path):
    sources = {"web": source(123_456, 7), "db": source(7_890, 8, domains={"observability": 3})}
    html = page(tmp_path, manifest(sources), counted())
    text = " ".join(Text(html).words)
    assert "15 series with 131,346 observed points from 2 sources: 74% of the 4,321 series that came in." in text
    assert "3,210 of 4,321, then 12 wide ones were split" in text
    assert "8,765 of 9,876" in text
    assert row_of(html, "too_short")[:4] == ["too_short", "1,101", "1,101", "–"]
    assert row_of(html, "too_short")[-1] == "quality.min_length=64"
    assert row_of(html, "constant")[:4] == ["constant", "10", "–", "–"]
    assert row_of(html, "flat")[:4] == ["flat", "–", "13", "–"]
    assert row_of(html, "impossible")[:4] == ["impossible", "–", "–", "77,001"]
    assert row_of(html, "all") == ["all", "1,111", "1,114", "77,001", "", ""]
    assert row_of(html, "web") == [
        "web",
        "general",
        "7",
        "5",
        "123,456",
        "",
        "&lt;0.1%",
        "1 min",
        "MIT",
    ]
    for label, n in (("empty slots", "43,000"), ("rows out of order", "42"), ("variates rated", "31")):
        assert re.search(rf"<dt>{label}[^<]*</dt><dd>{n}</dd>", html)
    titles = {attrs.get("title") for tag, attrs in Text(html).tags if tag == "li"}
    assert {"64-127 steps: 2,001", "1024-2047 steps: 1,209", "60 s: 3,001", "3600 s: 209"} <= titles
    assert {"1 variate: 7", "2 variates: 0", "3–4 variates: 3"} <= titles
    assert re.search(r"<dt>shards</dt><dd>2</dd>.*<dt>bytes</dt><dd>3,000,000</dd>", html)
    assert "<dt>quality.max_magnitude</dt><dd>1e+30</dd>" in html


def test_real_counts_of_a_real_build(tmp_path):
    rules, counts = quality.Rules(), quality.Counts()
    wave = np.sin(np.arange(500) / 9).astype(np.float32)
    rows = np.stack([wave, np.full(500, 3, np.float32)])
    given = [
        Series(rows, 60.0, "web", "good", variate_names=("wave", "still")),
        Series(wave[None, :20], 60.0, "web", "brief"),
        Series(np.full((1, 500), np.nan, np.float32), 60.0, "db", "empty"),
    ]
    kept = [fit for s in given if (fit := quality.clean(s, rules, counts)) is not None]
    made = write_shards(tmp_path / "set", kept, {"quality": vars(rules)})
    html = page(tmp_path, made, counts)
    Text(html)
    assert row_of(html, "too_short")[1:3] == ["1", "1"]
    assert row_of(html, "all_missing")[1:3] == ["1", "1"]
    assert row_of(html, "constant")[1:3] == ["–", "1"]
    shown = sum(map(len, counts.examples.values())) + len(counts.kept_examples)
    assert shown == 4
    assert html.count("<svg") == shown
    assert "no value" in html


def test_every_name_is_escaped(tmp_path):
    evil = example(EVIL, EVIL, EVIL, EVIL)
    sources = {EVIL: source(domains={EVIL: 1}, licences={EVIL: 1})}
    numbers = NUMBERS | {"series_rejected": {EVIL: 2}, "table_rows": {EVIL: 3}, EVIL: 4}
    config = {EVIL: EVIL, "quality": {"min_length": EVIL}}
    html = page(tmp_path, manifest(sources, config), counted(numbers, {EVIL: [evil]}, [evil]), title=EVIL)
    parsed = Text(html)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert parsed.words.count(EVIL) > 10


def test_the_page_refers_to_nothing_outside(tmp_path):
    sources = {"web": source(licences={"see http://example.com/licence": 1})}
    html = page(tmp_path, manifest(sources), counted(kept=[example()]))
    for tag, attrs in Text(html).tags:
        assert tag not in ("link", "script", "img", "iframe", "a")
        assert not {"src", "href", "xlink:href"} & set(attrs)
    style = html[html.index("<style>") : html.index("</style>")]
    assert not re.search(r"url\(|@import|http", style)
    assert "prefers-color-scheme: dark" in style


def test_nothing_at_all_still_makes_a_page(tmp_path):
    none = {k: {} if isinstance(v, dict) else 0 for k, v in NUMBERS.items()}
    html = page(tmp_path, {"schema": 1, **no_counts(), "sources": {}, "shards": [], "config": {}}, counted(none))
    assert "0 series with 0 observed points from 0 sources." in " ".join(Text(html).words)
    assert "nan" not in html.lower().replace("name", "")


def test_hundreds_of_sources_stay_small(tmp_path):
    sources = {f"source{k:03d}" + "x" * 40: source(1000 * (k + 1)) for k in range(500)}
    values = np.random.default_rng(0).standard_normal(240).tolist()
    many = [example(item=f"item{k}", values=values) for k in range(300)]
    counts = counted(examples={f"rule{r}": many for r in range(12)}, kept=many)
    big = manifest(sources, {f"key{k}": "v" * 10_000 for k in range(400)})
    html = page(tmp_path, big, counts)
    Text(html)
    assert len(html) < 1_500_000
    assert html.count("<svg") == report.MOST_KEPT + 12 * report.MOST_REJECTED
    words = Text(html).words
    assert "and 250 more sources " in words
    assert any(w.startswith("and 486 more sources with ") for w in words)
    assert "source499" in html
    assert "source000" not in html


def test_the_page_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("before")
    with pytest.raises(KeyError):
        write_report(path, {}, counted(), "mine")
    assert path.read_text() == "before"
    write_report(str(path), manifest({"web": source()}), counted(), "odd \udcff name")
    assert path.read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def paths(svg):
    return re.findall(r'd="([^"]*)"', svg)[0]


def test_gaps_break_lines():
    line = paths(picture([1.0, 2.0, None, 3.0, None, None, 4.0, 5.0]))
    assert line.count("M") == 3
    assert line.count("L") == 2
    assert line.count("h0") == 1  # a lone point is still seen
    svg = picture([1.0, 2.0, None, 3.0, None, None, 4.0, 5.0])
    assert svg.count("<rect") == 2
    widths = [float(w) for w in re.findall(r'<rect x="[^"]*" y="0" width="([^"]*)"', svg)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [None],
        [None] * 5,
        [1.0],
        [2.0] * 9,
        [1e308, -1e308, 0.0],
        [float("nan"), float("inf"), 1.0, -0.0],
        [5e-324, 0.0],
    ],
)
def test_pictures_of_odd_series_stay_inside(values):
    svg = picture(values)
    assert "nan" not in svg
    assert "inf" not in svg
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", paths(svg)):
        assert 0 <= float(x) <= 240
        assert 0 <= float(y) <= 64
    assert ("no value" in svg) == (not any(v is not None and np.isfinite(v) for v in values))


def test_numbers_read_well():
    steps = [0.004, 1, 10, 60, 90, 300, 3600, 86400, 7 * 86400, 30.4375 * 86400, 91.3125 * 86400, 365.25 * 86400, 12.5]
    assert [interval(s) for s in steps] == [
        "4 ms", "1 s", "10 s", "1 min", "90 s", "5 min", "1 h", "1 d", "1 w", "1 mo", "1 qtr", "1 yr", "12.5 s",
    ]  # fmt: skip
    assert [brief(n) for n in (0, 9999, 10_000, 123_456, 999_600, 1_234_567, 99_960_000, 5 * 10**12)] == [
        "0", "9,999", "10.0k", "123k", "1.00M", "1.23M", "100M", "5.00T",
    ]  # fmt: skip
    assert [share(x) for x in (0, 1e-5, 0.012, 0.5, 0.996, 0.9999, 1)] == [
        "0%", "&lt;0.1%", "1.2%", "50%", "99.6%", "&gt;99.9%", "100%",
    ]  # fmt: skip
    assert [extent(v) for v in ([None], [2.0, 2.0], [-0.5, None, 1_440_000.0])] == ["", "2", "−0.5 to 1.44M"]
