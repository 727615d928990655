"""The pages of reports and comparisons: self-contained, well-formed, and quick with many rows."""

import csv
import dataclasses
import json
import re
import shutil
import time
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest
from scores_standin import write_run

from caphuman_jax.evaluation import comparison
from caphuman_jax.evaluation.page import tables, write
from caphuman_jax.evaluation.scored_run import MeasureSummary, read_run

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
EVIL = "</script><script>alert(1)</script> \"x\" & <img src='http://evil/' onerror=alert(2)>"
VOID = {"meta", "img", "input", "link", "br"}


class Page(HTMLParser):
    """Elements, texts and attributes; raises where end tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.data = [], [], [], {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id")))

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, text):
        key = self.open[-1] if self.open else None
        self.data[key] = self.data.get(key, "") + text


def pages(tmp_path, **options):
    """The pages of a run and of a comparison, with what they hold."""
    runs = [
        read_run(write_run(tmp_path / name, yaw=yaw, **options))
        for name, yaw in (("A<i>", 0.5), ("B", 0.0))
    ]
    written = [write.write_report(runs[0])]
    written.append(write.write_comparison(comparison.compare(runs), tmp_path / "out"))
    return [path.read_text() for path in written]


def test_pages_are_well_formed_and_need_nothing_else(tmp_path):
    for text in pages(tmp_path):
        page = Page(text)
        assert text.startswith("<!doctype html>") and page.tags.count("script") == 2
        assert not re.search(r"https?:|//cdn|@import|url\(", text)
        links = [value for _, name, value in page.attributes if name in ("src", "href")]
        assert all(not re.match(r"\w+:", link) for link in links)
        data = json.loads(page.data["script", "data"])
        assert data["rows"] == 48 and len(data["words"]["person"]) == 12
        names = [one["name"] for one in data["measures"]]
        assert names == ["face-found", "identity", "yaw-median", "brightness"]
        assert data["index"]["yaw-mean"] == 2 and data["measures"][2]["title"] == "Yaw error"
        assert all(link.startswith("data:image/webp") for link in data["pictures"].values())
        assert data["values"][0][1][10] is None and data["values"][0][0][10] == 0.0


def test_a_report_begins_with_its_key_figures(tmp_path):
    run = read_run(write_run(tmp_path / "run", yaw=0.5))
    (face,) = [one for one in run.measures if one.name == "face-found"]
    numbers = {"identity-first-of-50-dlib": 0.9, "yaw-changed-median": float("nan")}
    more = [dataclasses.replace(face, name=name, value=n) for name, n in numbers.items()]
    page = write.write_report(dataclasses.replace(run, measures=(*run.measures, *more)))
    figures = re.search(r'<ul class="figures".*?</ul>', page.read_text())[0]
    # What has no value is left out, and identity comes first.
    assert re.findall("<b>([^<]+)</b>", figures)[0].startswith("90") and figures.count("<li>") == 2
    assert tables.key_figures([]) == ""


def anonymous(text):
    """What a page says, which shows and names no person and needs nothing else."""
    page = Page(text)
    assert not re.search(r"data:\w+/|\.(jpe?g|png|webp|tiff?)\b", text, re.IGNORECASE)
    assert not re.search(r"https?:|@import|url\(|/home/|/root/|/tmp/|/work/", text)
    assert not {"img", "picture", "image", "object", "iframe"} & set(page.tags)
    assert "img-src" not in text  # the browser refuses every picture, of whatever script
    links = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert links and all(link.startswith("#") for link in links)
    data = json.loads(page.data["script", "data"])
    assert not data["illustrated"] and not data["pictures"]
    assert not any(map(any, (data["references"], data["heads"], *data["files"])))
    assert all(re.fullmatch(r"person-\d+", name) for name in data["words"]["person"])
    assert len(text) < 300_000
    return data


def test_a_page_without_pictures_shows_and_names_nobody(tmp_path):
    names = ["Zoë Example.JPG", "me/at home.png", *(f"{i:03d}.jpeg" for i in range(10))]
    runs = [
        read_run(write_run(tmp_path / name, yaw=yaw, names=names, model=f"/home/zoe/{name}.jpg/m"))
        for name, yaw in (("A", 0.5), ("B", 0.0))
    ]
    found, out = comparison.compare(runs), tmp_path / "out"
    alone = anonymous(write.write_report(runs[0], pictures=False).read_text())
    both = anonymous(write.write_comparison(found, out, pictures=False).read_text())
    shown = json.loads(Page(write.write_comparison(found, out).read_text()).data["script", "data"])
    assert shown["illustrated"] and shown["values"] == both["values"]
    assert both["words"]["person"] == alone["words"]["person"]
    assert both["words"]["person"][::11] == ["person-01", "person-12"]
    write.write_comparison(found, out, pictures=False)
    for path in out.iterdir():
        text = path.read_text()
        assert "Zoë" not in text and "zoe" not in text and str(tmp_path) not in text


def test_the_published_comparison_shows_and_names_nobody():
    text = Path(__file__).parents[2].joinpath("docs/mini_comparison.html").read_text("utf-8")
    data = anonymous(text)
    assert [run["name"] for run in data["runs"]] == ["before", "new weights"]
    assert len(data["words"]["person"]) == 88 and data["rows"] == 264


def test_hostile_prompts_and_names_stay_text(tmp_path):
    names = [EVIL, *(f"{i}.jpg" for i in range(11))]
    for text in pages(tmp_path, prompts=(EVIL, "=1+1"), names=names):
        page = Page(text)
        assert page.tags.count("script") == 2 and "img" not in page.tags
        data = json.loads(page.data["script", "data"])
        assert data["words"]["prompt"][0] == EVIL == data["words"]["person"][0]
    with open(tmp_path / "A<i>" / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 48 and rows[0]["prompt"] == EVIL and rows[10]["identity"] == ""
    assert rows[0]["asked_yaw"] == "-30.0" and float(rows[0]["yaw-median"]) > 1


def test_links_lead_to_existing_files_only(tmp_path):
    folder = write_run(tmp_path / "50% off #1")
    (folder / "pictures" / "00001.png").unlink()
    (folder / "pictures" / "00002.png").write_bytes(b"damaged")
    run = read_run(folder)
    text = write.write_comparison(comparison.compare([run, run]), tmp_path / "out").read_text()
    data = json.loads(Page(text).data["script", "data"])
    assert data["files"][0][0] == "../50%25%20off%20%231/pictures/00000.png"
    assert data["files"][0][1] == "" and data["files"][0][2] not in data["pictures"]


def test_a_perfect_value_stands_at_the_better_end():
    best = MeasureSummary("found", "face found", "share", "up", floor=1.0, value=1.0)
    for measure, at in ((best, 96), (dataclasses.replace(best, direction="down"), 4)):
        assert f'class="dot" style="left:{at:.1f}%"' in tables.summary([measure])
    same = dataclasses.replace(best, unit="", copy=1.0)
    assert 'class="dot" style="left:50.0%"' in tables.summary([same])


def test_the_page_has_the_studios_colors():
    studio = files("caphuman_jax.studio").joinpath("page/style.css").read_text()
    own = files("caphuman_jax.evaluation").joinpath("page/page.css").read_text()
    for name in ("paper", "card", "ink", "soft", "line", "accent", "good", "bad"):
        values = re.findall(rf"--{name}: (#\w+);", studio)
        assert re.findall(rf"--{name}: (#\w+);", own)[:2] == values[:2], name


IN_A_BROWSER = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium is installed (Debian: apt-get install chromium)"
)


@pytest.mark.slow
@IN_A_BROWSER
def test_a_comparison_fits_whatever_its_names(tmp_path):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    long = ("learning_rate_4e-4_" * 6, "a mean of all weights " * 6, "third")
    runs = [
        read_run(write_run(tmp_path / name[:9], yaw=yaw, prompts=("a_photo" * 30, "b")), name)
        for name, yaw in zip(long, (0.5, 0.0, 0.1))
    ]
    path = write.write_comparison(comparison.compare(runs), tmp_path / "out", pictures=False)
    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text))
        page.on(
            "request", lambda request: request.url == path.as_uri() or problems.append(request.url)
        )
        for width, scheme in ((1200, "light"), (400, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)
            page.goto(path.as_uri())
            page.wait_for_selector("body[data-ready] .item")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            cut = """() => [...document.querySelectorAll("main *")].filter(one =>
              one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX === "auto")
              .map(one => one.outerHTML.slice(0, 80))"""
            assert page.evaluate(cut) == []
            found = Axe().run(page).response["violations"]
            assert not [(one["id"], one["nodes"][0]["html"]) for one in found]
        assert page.locator("img, .frame").count() == 0
        assert page.inner_text(".verdict p >> nth=0").count("better at 1 of 4 measures") == 1
        page.locator(".case").first.click()
        assert "person-" in page.inner_text("#viewer")
        browser.close()
    assert not problems


@pytest.mark.alone
@pytest.mark.slow
@IN_A_BROWSER
def test_ten_thousand_rows_in_a_browser(tmp_path):
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    names = [EVIL, *(f"{i:04d}.jpg" for i in range(249))]
    folder = write_run(
        tmp_path / "run", 250, 40, names=names, prompts=(EVIL, "plain"), pictures=False
    )
    path, problems = write.write_report(read_run(folder)), []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text))
        page.on(
            "request", lambda request: request.url == path.as_uri() or problems.append(request.url)
        )
        start = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready] .item")
        shown = time.perf_counter() - start
        assert page.inner_text("#count") == "10,000 pictures"
        assert page.locator(".item").count() < 40

        start = time.perf_counter()
        page.fill("#search", "0123.jpg yaw-median<1.5")
        page.wait_for_function("document.getElementById('count').innerText.includes(' of ')")
        searched = time.perf_counter() - start
        count = int(page.inner_text("#count").split()[0])
        lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        mine = [line for line in lines if line["person"] == "0123.jpg"]
        assert count == sum((line["scores"]["yaw-median"] or 9) < 1.5 for line in mine) > 0
        page.click("#clear")
        page.select_option("#order", "worst")
        page.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
        page.wait_for_selector("[aria-posinset='10000']")
        page.locator(".cell").first.click()
        assert "of 10,000" in page.inner_text("#count")
        page.locator(".case").first.click()
        assert page.locator("#viewer").is_visible()
        page.keyboard.press("Escape")
        for width in (390, 1440):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            found = Axe().run(page).response["violations"]
            assert not [(one["id"], one["nodes"][0]["html"]) for one in found]
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(34, 30, 26)"
        assert "Yaw error" in page.inner_text("main") and not page.locator("#list").is_visible()
        assert b"/Font" in page.pdf(print_background=True)  # text, and no picture of it
        browser.close()
    assert not problems
    assert shown < 2 and searched < 2
