"""The page in a real browser, and as a server: what goes in, what comes out, and that nothing goes elsewhere."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from opencrate.app import _gradio

GRADIO = importlib.util.find_spec("gradio") is not None
PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_gradio = pytest.mark.skipif(not GRADIO, reason="gradio is not installed (the extra `app`)")
needs_browser = pytest.mark.skipif(
    not (GRADIO and PLAYWRIGHT and CHROMIUM), reason="needs gradio, playwright and a chromium on the PATH"
)
LIMIT = 1  # MB
WAIT = 120_000  # milliseconds


def test_without_gradio_the_extra_is_named(monkeypatch, shelf):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs gradio, which is not installed; `pip install opencrate\[app\]`"):
        _gradio.load_gradio()
    from opencrate.app.server import serve

    with pytest.raises(ValueError, match="needs gradio"):
        serve(shelf)


@pytest.fixture(scope="module")
def address(shelf, tmp_path_factory):
    """A page that is running."""
    from opencrate.app.server import start

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        page = start(shelf, max_upload=LIMIT)
        yield page.local_url
        page.close()


@needs_gradio
def test_the_server_keeps_to_itself(address):
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address) as answer:
        policy, page = answer.headers["content-security-policy"], answer.read().decode()
    assert "default-src 'self'" in policy and "http" not in policy
    assert "fonts.googleapis" not in page and 'analytics_enabled":true' not in page
    for path in ("/etc/passwd", __file__):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}gradio_api/file={path}")
        assert error.value.code in (403, 404)


@needs_gradio
def test_building_the_page_writes_no_file(address):
    assert not list(Path(_gradio.__file__).parent.glob("*.pyi"))


@needs_gradio
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_a_page_that_is_ended_leaves_no_uploads(folders, tmp_path, ending):
    words = [sys.executable, "-m", "opencrate", "app", str(folders["writer"])]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    made = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert "page: http://127.0.0.1:" in made.stdout.readline()
        assert len(list(tmp_path.glob("opencrate-app-*"))) == 1
        made.send_signal(ending)
        _, errors = made.communicate(timeout=60)
    finally:
        made.kill()
    assert made.returncode == 0 and "Traceback" not in errors, errors
    assert not list(tmp_path.glob("opencrate-app-*"))


@needs_gradio
def test_a_port_that_is_taken(address, shelf):
    from opencrate.app.server import start

    with pytest.raises(ValueError, match="give another port"):
        start(shelf, port=int(address.rstrip("/").rpartition(":")[2]))


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as made:
        found = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Visit:
    """The open page, and every address that it asked for."""

    def __init__(self, browser, address, width):
        self.page = browser.new_page(viewport={"width": width, "height": 844})
        self.asked, self.errors = [], []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.get_by_role("button", name="Look inside").wait_for(timeout=WAIT)

    def upload(self, file):
        self.page.locator(".tabitem:visible input[type=file]").first.set_input_files(str(file))
        self.page.wait_for_timeout(700)

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def told(self):
        """What the newest message says, without its frame, once there is one."""
        place = self.page.locator("[data-testid=toast-body]")
        place.last.wait_for(timeout=WAIT)
        lines = [line for line in place.last.inner_text().splitlines() if line.strip() not in ("", "×", "Error")]
        return lines[-1]

    def keeps_to_itself(self):
        elsewhere = [url for url in self.asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))]
        return self.asked and not elsewhere and not self.errors


@pytest.fixture(params=[1280, 390])
def visit(browser, address, request):
    found = Visit(browser, address, request.param)
    yield found
    found.page.close()


@needs_browser
def test_a_picture(visit, picture):
    visit.upload(picture)
    visit.press("Look inside")
    visit.page.locator(".report h3", has_text="Nearest atoms").wait_for(timeout=WAIT)
    assert visit.page.locator(".report img").count() == 6
    assert visit.page.locator(".report tbody th").all_inner_texts()[0] in ("cat", "dog", "ship")
    sizes = visit.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes[0] <= sizes[1] and visit.keeps_to_itself()


@needs_browser
def test_uploads_that_are_refused_give_one_line(visit, words_as_png, tmp_path):
    visit.upload(words_as_png)
    visit.press("Look inside")
    words = visit.told()
    assert words.startswith("words.png: it is text, not a whole picture") and "/tmp" not in words
    visit.page.reload()
    visit.page.get_by_role("button", name="Look inside").wait_for(timeout=WAIT)
    (tmp_path / "big.png").write_bytes(bytes(LIMIT * (1 << 20) + 1000))
    visit.upload(tmp_path / "big.png")
    words = visit.told()
    assert "big.png" in words and "maximum allowed size of 1" in words and "/tmp" not in words
    assert visit.keeps_to_itself()


@needs_browser
def test_an_example_then_a_bad_file(browser, address, words_as_png):
    visit = Visit(browser, address, 390)
    visit.page.locator(".gallery-item").first.click()
    visit.page.locator(".tabitem:visible .image-frame img").wait_for(timeout=WAIT)
    visit.press("Look inside")
    visit.page.locator(".report h3", has_text="Nearest atoms").wait_for(timeout=WAIT)
    visit.page.get_by_label("Remove Image").first.click()
    visit.upload(words_as_png)
    visit.press("Look inside")
    assert visit.told().startswith("words.png: it is text, not a whole picture") and visit.keeps_to_itself()
    visit.page.close()


@needs_browser
def test_a_text_and_another_model(browser, address):
    visit = Visit(browser, address, 390)
    visit.page.get_by_role("tab", name="Text").click()
    visit.page.get_by_label("Text with [MASK]").fill("the [MASK] is here")
    visit.press("Fill in")
    visit.page.get_by_text("Most probable tokens").wait_for(timeout=WAIT)
    assert visit.keeps_to_itself()
    visit.page.close()


@needs_browser
def test_a_model_with_more_layers_than_the_first(browser, address, picture):
    visit = Visit(browser, address, 1280)
    visit.page.get_by_label("Model").first.click()
    visit.page.get_by_role("option", name="linear").click()
    visit.page.wait_for_timeout(1500)
    visit.upload(picture)
    visit.press("Look inside")
    visit.page.get_by_text("linear has no attention maps").wait_for(timeout=WAIT)
    assert "layer 3" in visit.page.locator(".report").inner_text() and visit.keeps_to_itself()
    visit.page.close()


@needs_browser
def test_an_uploaded_model(browser, address, folders, tmp_path):
    visit = Visit(browser, address, 390)
    visit.page.get_by_role("tab", name="Your model").click()
    visit.upload(shutil.make_archive(str(tmp_path / "pets"), "zip", folders["pets"]))
    visit.press("Analyze")
    visit.page.get_by_text("measured on 16 crops").wait_for(timeout=WAIT)
    assert visit.keeps_to_itself()
    visit.page.close()
