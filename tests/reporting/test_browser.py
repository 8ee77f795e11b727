"""The page in a real browser: nothing is fetched, nothing runs over, every picture decodes, it prints.

Without a browser these tests are skipped; with ``CONSILIENCE_BROWSER=required``, as in CI, they fail instead.
"""

import html
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--enable-logging=stderr", "--log-level=0",
)  # fmt: skip
# Whatever the page would fetch or run is refused, and the refusal is written to the console.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'nonce-probe'"
PROBE = """
<script nonce="probe">
addEventListener("load", () => {
  if (%s) document.querySelectorAll("details").forEach(one => one.open = true);
  const width = document.documentElement.clientWidth;
  const shown = [...document.querySelectorAll("body *")].filter(one => !one.closest(".wide > *"));
  const images = [...document.images];
  const answer = document.getElementById("answer");
  parent.postMessage(JSON.stringify({
    width,
    scroll: document.documentElement.scrollWidth,
    over: shown.filter(one => one.getBoundingClientRect().right > width + 1).map(one => one.outerHTML.slice(0, 120)),
    small: [...document.querySelectorAll("svg")].filter(one => one.clientWidth < 100).length,
    pictures: images.length,
    broken: images.filter(one => !one.complete || !one.naturalWidth).length,
    fetched: performance.getEntriesByType("resource").map(one => one.name).filter(one => !one.startsWith("data:")),
    end: answer.getBoundingClientRect().bottom,
  }), "*");
});
</script>
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Runs a browser with a profile of its own on a file, and gives back what it printed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"expected a browser named {', '.join(NAMES)}, found none; install chromium"
        if os.environ.get("CONSILIENCE_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)

    def browse(file, *words):
        profile = tmp_path_factory.mktemp("profile")
        command = [found, *OPTIONS, f"--user-data-dir={profile}", *words, file.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    return browse


@pytest.fixture(params=["written", "strained"])
def page(request, written, strained_page):
    """The page of a run, and one that strains the layout."""
    return written.page if request.param == "written" else strained_page[1]


@pytest.fixture
def probed(browser, tmp_path):
    """What a page measures of itself at a width, and what it wrote to the console."""

    def probe(page, width, unfolded):
        """Old and new headless browsers differ in how narrow a window may be, so the page lies in a frame."""
        policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        inner = page.replace("<head>", f"<head>{policy}", 1) + PROBE % json.dumps(unfolded)
        (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
        file = tmp_path / "page.html"
        file.write_text(
            "<script>onmessage = event => document.getElementById('found').textContent = event.data</script>"
            '<body style="margin:0"><pre id=found></pre>'
            f'<iframe src="inner.html" style="border:0;width:{width}px;height:800px"></iframe>',
            encoding="utf-8",
        )
        done = browser(file, f"--window-size={max(width, 800)},800", "--virtual-time-budget=5000", "--dump-dom")
        text = re.search(r"<pre id=\"found\">(.+?)</pre>", done.stdout, re.DOTALL)
        assert text, done.stderr
        return json.loads(html.unescape(text[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return probe


@pytest.mark.parametrize("unfolded", [False, True], ids=["folded", "unfolded"])
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_its_window_fetches_nothing_and_shows_its_pictures(probed, page, width, unfolded):
    found, console = probed(page, width, unfolded)
    assert found["width"] == width
    assert found["scroll"] == width
    assert found["over"] == []
    assert found["small"] == 0 or not unfolded
    assert found["pictures"] > 20
    assert found["broken"] == 0
    assert found["fetched"] == []
    assert console == []


def test_the_probe_notices_what_it_looks_for(probed):
    """A page that fetches, runs over and is broken, so that the test above cannot pass by looking away."""
    bad = (
        '<!doctype html><html><head></head><body><section id="answer"></section><div style="width:3000px">wide</div>'
        '<img src="data:image/png;base64,AAAA"><img src="there.png"><script>1</script><svg width="5"></svg>'
        "</body></html>"
    )
    found, console = probed(bad, 400, False)
    assert found["scroll"] > 2999
    assert len(found["over"]) == 1
    assert (found["pictures"], found["broken"], found["small"]) == (2, 2, 1)
    assert len(console) == 2, "the picture and the script are refused"


def test_the_opening_fits_on_one_screen(probed, written):
    assert probed(written.page, 1200, False)[0]["end"] <= 800


def test_a_screenshot_shows_ink_and_colours(browser, page, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser(tmp_path / "page.html", "--window-size=1200,5000", f"--screenshot={tmp_path / 'page.png'}")
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB")).astype(int)
    assert pixels.shape == (5000, 1200, 3)
    dark, coloured = pixels.max(2) < 90, np.ptp(pixels, axis=2) > 60
    assert 0.005 < dark.mean() < 0.5
    assert coloured.mean() > 0.005


def test_the_page_prints_on_several_sheets(browser, page, tmp_path):
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    browser(tmp_path / "page.html", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    document = (tmp_path / "page.pdf").read_bytes()
    assert document.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", document)) >= 3
