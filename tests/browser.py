"""A headless Chromium without a network, for pages that must need none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A selenium driver; the test is skipped, with the reason, where browser, driver or selenium is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason='needs selenium: pip install "mera_torch[test]"')
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--window-size=1400,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--force-device-scale-factor=1", f"--user-data-dir={profile}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    held = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        held.execute_cdp_cmd("Network.enable", {})
        yield held
    finally:
        held.quit()


def resize(driver: Any, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def colours(driver: Any, scheme: str) -> None:
    """scheme: "light" or "dark", as the user's system would ask for."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def requests(driver: Any) -> list[str]:
    """The addresses that were asked for since the last call."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const parse = (text) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const linear = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const opaque = (element) => {
  while (element && parse(getComputedStyle(element).backgroundColor)[3] < 255) element = element.parentElement;
  return element ? getComputedStyle(element).backgroundColor : "white";
};
const found = {};
const add = (name, front, behind) => {
  const [a, b] = [light(parse(front)), light(parse(behind))].sort((x, y) => y - x);
  found[name] = (a + 0.05) / (b + 0.05);
};
for (const element of document.querySelectorAll("body *:not(script, style, svg *)")) {
  const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data.trim()).join("");
  const name = element.tagName + "." + element.className + ": " + text.slice(0, 30);
  if (text && element.checkVisibility()) add(name, getComputedStyle(element).color, opaque(element));
}
for (const text of document.querySelectorAll("#network .node text")) {
  const box = text.parentElement.querySelector("rect");
  add("node " + text.textContent, getComputedStyle(text).fill, getComputedStyle(box).fill);
}
return found;
"""


def contrasts(driver: Any) -> dict[str, float]:
    """What of the page is text -> the ratio of its luminance to that behind it (WCAG 2.2, 1.4.3)."""
    found: dict[str, float] = driver.execute_script(CONTRAST)
    return found
