"""The report of a study: what a browser without a network shows of it, and studies that lack something."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import look_at, needs_browser
from examples import study_of
from hand_made import EVERY, STORIES, evaluation, open_ledger, open_run, png

from gpm_tune.analysis.report import render
from gpm_tune.analysis.study_data import read_data
from gpm_tune.cli.reports import report
from gpm_tune.errors import UserError
from gpm_tune.study.accounts.trial_manager import TrialManager
from gpm_tune.study.storage.home import Home
from gpm_tune.study.storage.locks import only_once

FLAGS = (
    "--window-size=1280,1000",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--proxy-server=127.0.0.1:9",
    "--enable-logging=stderr",
    "--virtual-time-budget=10000",
)
# Writes down what each figure holds and draws, and whatever the page asked a network for.
PROBE = """
addEventListener("load", () => setTimeout(() => {
  const found = { plots: {}, requests: performance.getEntriesByType("resource").map((entry) => entry.name) };
  for (const canvas of document.querySelectorAll(".canvas")) {
    const key = canvas.closest("section").id;
    (found.plots[key] ??= []).push({
      traces: canvas._fullData.map(({ name, x, y }) => ({ name, x: [...x], y: [...y] })),
      points: canvas.querySelectorAll(".scatterlayer .point").length,
      width: canvas.querySelector(".main-svg").clientWidth,
      alt: canvas.getAttribute("aria-label"),
    });
  }
  found.image = document.querySelector("img").naturalWidth;
  const report = document.createElement("pre");
  report.id = "probe";
  report.textContent = JSON.stringify(found);
  document.body.append(report);
}, 500));
"""


class Page(HTMLParser):
    """What a page's elements are called, and where they point."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]


def page_of(home: Home, name: str) -> str:
    return render(read_data(home, name))


@pytest.fixture(scope="module")
def page(told: Home) -> str:
    return page_of(told, "told")


def words(page: str) -> str:
    """The page's text without its scripts and style."""
    bare = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", bare)))


@pytest.mark.slow
@needs_browser
def test_a_browser_without_a_network_shows_the_studys_values(page: str, told: Home, tmp_path: Path) -> None:
    found, messages = probe(page, tmp_path)
    assert found["requests"] == []
    assert not [line for line in messages.splitlines() if "CONSOLE" in line], messages
    plots = found["plots"]
    curves = {tuple(trace["y"]) for trace in plots["curves"][0]["traces"] if len(trace["y"]) > 1}
    assert curves == {
        tuple(values[: 2 if n == 5 else 3]) for n, (values, _) in enumerate(STORIES) if len(values) > 1
    }
    best = next(trace for trace in plots["best"][0]["traces"] if trace["name"] == "best so far")
    assert (best["x"], best["y"]) == ([1, 2, 3, 4, 5, 6], [50, 40, 40, 30, 30, 30])
    record = read_data(told, "told").record
    eta = {trial.values["model.eta"]: trial.value for trial in record.trials if trial.scores}
    assert points_of(plots["slices"][0]) == pytest.approx(eta)
    assert [plot["points"] for plot in plots["slices"]] == [5, 5, 5], "a mark per measured trial is drawn"
    front = next(trace for trace in plots["nfe"][0]["traces"] if trace["name"] == "front")
    assert dict(zip(front["x"], front["y"], strict=True)) == {1: 60, 3: 30}
    assert sum(plots["budget"][0]["traces"][0]["x"]) * 60 == pytest.approx(11 * EVERY * 0.5)
    assert len(plots["importance"][0]["traces"][0]["x"]) == 3
    assert all(plot["alt"] and plot["width"] > 200 for group in plots.values() for plot in group)
    assert found["image"] == 4, "the picture of samples"


def probe(page: str, folder: Path) -> tuple[dict[str, Any], str]:
    """What the probe found in a real browser, and what the browser said."""
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    probed = probed.replace("</body>", f"<script>{PROBE}</script></body>")
    file = folder / "report.html"
    file.write_text(probed, encoding="utf-8")
    done = look_at(file.as_uri(), folder / "profile", *FLAGS)
    match = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.S)
    assert match, done.stderr
    found: dict[str, Any] = json.loads(html.unescape(match[1]))
    return found, done.stderr


def points_of(plot: dict[str, Any]) -> dict[float, float]:
    return {x: y for trace in plot["traces"] for x, y in zip(trace["x"], trace["y"], strict=True)}


def test_the_page_is_complete_in_itself(page: str) -> None:
    found = Page(page)
    assert all(target.startswith("data:") for target in found.targets)
    assert not {"link", "iframe", "object", "embed", "base"} & set(found.tags)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert html.unescape(policy[1]).startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy[1]
    assert page.count("plotly.js v") == 1


def test_the_page_says_what_its_numbers_depend_on(page: str) -> None:
    text = words(page)
    assert "2 complete, 2 fail, 2 pruned" in text
    assert "not running" in text
    assert "FID (small features, 20 samples, validation split)" in text
    assert "loss was nan at step 9" in text
    assert "CUDA is out of memory" in text
    assert re.search(r"fingerprint [0-9a-f]{16}", text)
    assert re.search(r"git commit [0-9a-f]{40}|git commit unknown", text)
    assert "gradient_penalty" in text, "the resolved YAML"
    assert base64.b64encode(png(3)).decode() in page, "the samples of the best trial"


def empty_home(folder: Path) -> Home:
    return Home(folder, f"sqlite:///{folder / 'mlflow.db'}")


def small_ledger(home: Home, **changes: Any) -> TrialManager:
    return open_ledger(home, study_of(**changes))


def test_an_empty_study_has_a_report(tmp_path: Path) -> None:
    home = empty_home(tmp_path)
    small_ledger(home)
    text = words(page_of(home, "small"))
    assert "no trials" in text
    assert "No trial has a result yet." in text
    assert "unknown" in text, "the versions"


def test_a_running_study_has_a_report(tmp_path: Path) -> None:
    home = empty_home(tmp_path)
    manager = small_ledger(home)
    with only_once("it", home.study("small")):
        assert manager.next()
        assert "still running" in words(page_of(home, "small"))
        manager.report(0, EVERY, evaluation(EVERY, 1.5, 4, "sliced_wasserstein"))
        text = words(page_of(home, "small"))
    assert "1 running" in text
    assert "Trial 0 (running), measured at step 4" in text
    assert "Its samples are gone" in text


def test_a_study_whose_trials_all_failed_tells_why_and_reasons_stay_text(tmp_path: Path) -> None:
    home = empty_home(tmp_path)
    reason = "</script><script>alert('&')</script><img src=x onerror=alert(1)>"
    manager = small_ledger(home, budget={"trials": 2})
    while spec := manager.next():
        if spec.number:  # with a curve, whose marks name the reason's trial
            manager.report(spec.number, EVERY, evaluation(EVERY, 1.5, 4, "sliced_wasserstein"))
        manager.fail(spec.number, reason)
    page = page_of(home, "small")
    assert "alert('" not in page
    assert "img" not in Page(page).tags
    assert Page(page).tags.count("script") == page.count('<script type="application/json">') + 2
    assert f"trial 0 failed: {reason}" in html.unescape(page)


def test_what_was_deleted_is_missed_and_the_rest_is_shown(tmp_path: Path) -> None:
    home = empty_home(tmp_path)
    manager = small_ledger(home, budget={"trials": 1})
    picture = measure(home, manager)
    picture.write_bytes(png(0))
    manager.complete(0)
    whole = page_of(home, "small")
    assert base64.b64encode(png(0)).decode() in whole
    shutil.rmtree(home.study("small"))
    picture.unlink()
    rest = page_of(home, "small")
    assert "Its samples are gone" in words(rest)
    assert "The study's file study.yaml is gone" in words(rest)
    assert rest.count('class="canvas"') == whole.count('class="canvas"') > 6


def test_no_file_from_elsewhere_is_in_the_page(tmp_path: Path) -> None:
    planted = tmp_path / "elsewhere" / "planted.png"
    planted.parent.mkdir()
    planted.write_bytes(b"planted: a secret file")
    home = empty_home(tmp_path / "home")
    manager = small_ledger(home, budget={"trials": 1})
    picture = measure(home, manager)
    (home.study("small") / "study.yaml").unlink()
    (home.study("small") / "study.yaml").symlink_to(planted)
    picture.symlink_to(planted)
    refuse_planted(home, planted)
    shutil.rmtree(picture.parent)
    picture.parent.symlink_to(planted.parent)
    planted.rename(planted.with_name(picture.name))
    refuse_planted(home, planted.with_name(picture.name))
    run = picture.parents[1]
    outside = run.rename(tmp_path / run.name)
    manager.keep_run(0, f"../../{outside.name}")
    (outside / "samples").unlink()
    (outside / "samples").mkdir()
    (outside / "samples" / picture.name).write_bytes(b"planted: a secret file")
    refuse_planted(home, outside / "samples" / picture.name)


def measure(home: Home, manager: TrialManager) -> Path:
    """Let the one trial be measured; the place of its picture, in a folder of nothing."""
    spec = manager.next()
    assert spec
    manager.report(0, EVERY, evaluation(EVERY, 1.5, 4, "sliced_wasserstein"))
    run = open_run(home, spec)
    manager.keep_run(0, run.name)
    picture = Path(run.picture(EVERY, spec.experiment.judge()))
    picture.parent.mkdir()
    return picture


def refuse_planted(home: Home, planted: Path) -> None:
    page = page_of(home, "small")
    assert base64.b64encode(planted.read_bytes()).decode() not in page
    assert "planted" not in page
    assert "Its samples are gone" in words(page)


def test_the_command_writes_the_page_and_refuses_bad_input(told: Home, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    report("told", file, told.root)
    assert file.read_text(encoding="utf-8").lstrip().startswith("<!DOCTYPE html>")
    with pytest.raises(UserError, match="no study is named 'tolt'; did you mean 'told'"):
        report("tolt", file, told.root)
    with pytest.raises(UserError, match="there is no folder"):
        report("told", tmp_path / "no" / "page.html", told.root)
    with pytest.raises(UserError, match="a report is a page"):
        report("told", tmp_path / "page.pdf", told.root)
