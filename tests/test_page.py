"""The page in a real browser: upload, predict, slider, wrong file; and what must not be read through it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from piip.data.sets.shapes.drawing import draw_image
from tests.engine.tiny import environment

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1300,1700",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `piip demo nano` serves, in a process of its own."""
    pytest.importorskip("gradio")
    command = "import sys; from piip.__main__ import main; sys.argv[0] = 'piip'; main()"
    folder = tmp_path_factory.mktemp("demo")
    settings = {"GRADIO_TEMP_DIR": str(folder / "uploads"), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", command, "demo", "nano"],
        env=environment() | settings,
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            break
    else:
        pytest.fail("".join(lines))
    yield found[0]
    process.terminate()
    process.wait(30)


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    if BROWSER is None or DRIVER is None:
        if os.environ.get("PIIP_REQUIRE_BROWSER") == "1":
            pytest.fail("PIIP_REQUIRE_BROWSER=1 but there is no chromium with its driver")
        pytest.skip("no chromium with its driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait(look: Callable[[], Any], seconds: float = 60) -> Any:
    """What `look` returns as soon as it is true; what it raises until then does not matter."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := look():
                return found
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def select(browser: Any, css: str) -> list[Any]:
    return browser.find_elements("css selector", css)


def upload(browser: Any, address: str, file: Path) -> None:
    browser.get(address)
    wait(lambda: select(browser, "#image input[type=file]"))[0].send_keys(str(file))


def rows(browser: Any) -> int:
    """Rows of the table whose class is known."""
    names = ("rectangle", "circle", "triangle", "star", "cross")
    return sum(line.strip() in names for line in select(browser, "#results")[0].text.splitlines())


@pytest.mark.slow
def test_a_person_uploads_predicts_and_moves_the_threshold(browser, address, tmp_path):
    draw_image(256, np.random.default_rng(6))[0].save(tmp_path / "photo.png")
    upload(browser, address, tmp_path / "photo.png")
    wait(lambda: select(browser, "#image img"))
    select(browser, "#predict")[0].click()
    wait(lambda: "backbone" in select(browser, "#times")[0].text)
    assert re.fullmatch(
        r"\d+ ms: backbone \d+ ms, neck \d+ ms, head and the rest \d+ ms", select(browser, "#times")[0].text
    )
    wait(lambda: select(browser, "#overlay img"))
    assert len(wait(lambda: select(browser, "#levels img"))) >= 3  # one for each branch
    assert wait(lambda: rows(browser)) == 7
    number = select(browser, "#threshold input[type=number]")[0]
    number.clear()
    number.send_keys("0.95\n")
    wait(lambda: rows(browser) == 4)
    if folder := os.environ.get("PIIP_SCREENSHOTS"):
        browser.save_screenshot(str(Path(folder) / "page.png"))


@pytest.mark.slow
def test_a_wrong_file_is_told_and_the_page_goes_on(browser, address, tmp_path):
    (tmp_path / "text.png").write_text("this is no image")
    upload(browser, address, tmp_path / "text.png")
    wait(lambda: select(browser, "#predict"))[0].click()
    told = wait(lambda: [toast.text for toast in select(browser, ".toast-body") if toast.text.strip()])
    assert "text.png" in told[0]
    assert str(tmp_path) not in told[0]
    assert "uploads" not in told[0]
    draw_image(256, np.random.default_rng(3))[0].save(tmp_path / "photo.png")
    upload(browser, address, tmp_path / "photo.png")
    wait(lambda: select(browser, "#image img"))
    select(browser, "#predict")[0].click()
    wait(lambda: "backbone" in select(browser, "#times")[0].text)


@pytest.mark.slow
def test_files_of_the_server_cannot_be_read(address):
    secret = Path(__file__)
    for path in (secret, "/etc/hostname", f"../../../../{secret}", "config.yaml"):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/"):
            status, kind, content = get(f"{address}{prefix}{path}")
            assert status in (403, 404) or "html" in kind, (prefix, path)  # refused, or the page itself
            assert b"must not be read through it" not in content, (prefix, path)


def get(address: str) -> tuple[int, str, bytes]:
    """Status, content type and content of an answer, whatever it is."""
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, "", error.read()
