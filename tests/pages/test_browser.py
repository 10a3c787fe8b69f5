"""`make e2e`: the pages in a real Chromium, as people use them: desktop and phone, dark and light,
by mouse and by keyboard, with a stranger's texts in them, and while a run runs.

It is Debian's Chromium, which tests/cluster/packages.txt names; nothing is fetched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from support.running import Project, ended
from support.shown_runs import swept, trained
from xrun.pages import page as pages
from xrun.run.folder import RunFolder

pytestmark = [pytest.mark.e2e, pytest.mark.once]

expect.set_options(timeout=60_000)  # a busy machine is no news
ASSETS = Path(pages.__file__).parent / "assets"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
EVIL = "</script><script>document.title='gone'</script><img src=x onerror=document.title='gone'>"
CONTRAST = """(names) => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = (colour) => rgb(colour).slice(0, 3).map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, n) => sum + each * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = (node) => { for (let each = node; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (rgb(colour)[3] === 255) return colour; }
    return 'white'; };
  return names.flatMap((name) => [...document.querySelectorAll(name)].slice(0, 3).map((node) => {
    const [one, other] = [light(getComputedStyle(node).color), light(behind(node))];
    return [name, (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05)]; }));
}"""
DRAWN = """(node) => { const canvas = node.querySelector('canvas');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size; }"""
"""How many colours a chart has: one that is drawn has many."""

STRETCHES = """(node) => { const canvas = node.querySelector('canvas');
  const [over, all] = ['.u-over', 'canvas'].map((name) =>
    node.querySelector(name).getBoundingClientRect());
  const scale = canvas.width / all.width;
  const from = Math.ceil((over.left - all.left) * scale), width = Math.floor(over.width * scale);
  const {data} = canvas.getContext('2d').getImageData(from, 0, width, canvas.height);
  const coloured = Array(width).fill(false);
  for (let n = 0; n < data.length; n += 4) {
    const rgb = [data[n], data[n + 1], data[n + 2]];
    const solid = data[n + 3] > 127;  // the colour of what is hardly there is rounded to anything
    if (solid && Math.max(...rgb) - Math.min(...rgb) > 60) coloured[(n / 4) % width] = true; }
  let count = 0, last = -99;
  coloured.forEach((each, n) => { if (each) { if (n - last > width / 20) count++; last = n; } });
  return count; }"""
"""In how many pieces the lines of a chart are drawn: axes and marks are grey."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    program = shutil.which("chromium")
    if program is None:
        what = "Chromium is not installed: apt-get install chromium (tests/cluster/packages.txt)"
        assert not os.environ.get("CI"), what
        pytest.skip(what)
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A sweep of twelve trials, and a run by itself that was preempted twice."""
    made = Project(tmp_path_factory.mktemp("shown"))
    swept(made)
    trained(made.plan("sweep=null", "train.seed=7", run="alone-1"), steps=120, lost=2, seed=50)
    assert made.xrun("page", "-o", "all.html").code == 0
    return made


class Looked:
    """A browser's window on a page; whatever goes wrong in it is kept, and every address that it
    asks for."""

    def __init__(self, chromium: Browser, **options: Any) -> None:
        self.context = chromium.new_context(**{"viewport": DESKTOP, **options})
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda each: self.wrong.append(f"{each.type}: {each.text}"))
        self.page.on("pageerror", lambda each: self.wrong.append(str(each)))
        self.page.on("dialog", lambda each: self.wrong.append(each.message))
        self.page.on("request", lambda each: self.asked.append(each.url))

    def open(self, address: str) -> Page:
        self.page.goto(address)
        return self.page


@pytest.fixture
def look(chromium: Browser) -> Iterator[Any]:
    """Opens windows; in none of them anything may go wrong."""
    windows: list[Looked] = []

    def opened(**options: Any) -> Looked:
        windows.append(Looked(chromium, **options))
        return windows[-1]

    yield opened
    for each in windows:
        each.context.close()
        assert each.wrong == []


def address(project: Project, name: str = "all.html", view: str = "") -> str:
    return f"{(project.root / name).as_uri()}{view}"


def names(page: Page) -> list[str]:
    """The runs of the list, from above."""
    return page.locator("tbody td.name a").all_inner_texts()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("view", ["list", "run", "sweep"])
def test_every_view_can_be_read(
    project: Project, look: Any, view: str, size: dict[str, int], colours: str
) -> None:
    """Nothing sticks out at the side, every text has its contrast, everything that is pressed or
    filled in has a name, charts are drawn, and nothing is asked of anybody."""
    window = look(viewport=size, color_scheme=colours)
    page = window.open(address(project))
    if view == "run":
        page.goto(address(project, view="#run/alone-1"))
    elif view == "sweep":
        page.get_by_role("link", name="tiny-s").first.click()
        page.get_by_role("heading", level=1, name="tiny-s").wait_for()  # the list is gone by then
    page.locator(".chart").first.scroll_into_view_if_needed()  # they are drawn when they are seen
    page.locator(".chart canvas").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[colours]
    texts = [
        "h1",
        "td",
        "th",
        "a",
        "small",
        ".pill",
        ".note",
        ".count",
        "dt",
        "dd",
        "button",
        "pre",
    ]
    assert [each for each in page.evaluate(CONTRAST, texts) if each[1] < 4.5] == []
    nameless = "button, input, select, [role=img], [role=region]"
    for each in page.locator(nameless).all():
        assert each.evaluate("(n) => n.labels?.[0]?.innerText || n.ariaLabel || n.innerText.trim()")
    assert page.locator(".plot").first.evaluate(DRAWN) > 8
    assert [each for each in window.asked if not each.startswith(("file:", "data:"))] == []


def test_the_list_is_sorted_filtered_and_drawn(project: Project, look: Any) -> None:
    page = look().open(address(project))
    expect(page.locator(".count[role=status]")).to_have_text("13 runs")
    page.get_by_role("button", name="Cost").click()
    head = page.get_by_role("columnheader", name="Cost")
    expect(head).to_have_attribute("aria-sort", "descending")
    downwards = names(page)
    assert downwards[0] == "alone-1"
    page.get_by_role("button", name="Cost").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    assert names(page)[-1] == "alone-1"
    page.get_by_label("Filter runs").fill("width=8 FINISHED")
    expect(page.locator(".count[role=status]")).to_contain_text(" of 13 runs")
    assert 0 < len(names(page)) < 4
    page.get_by_label("Filter runs").fill("")
    page.get_by_label("Status").select_option("stopped")
    expect(page.locator("tbody .pill").first).to_have_text("stopped")
    assert set(page.locator("tbody .pill").all_inner_texts()) == {"stopped"}
    page.get_by_label("Status").select_option("")
    page.get_by_role("button", name="Draw none").click()
    expect(page.get_by_role("heading", name="Choose runs to see their curves")).to_be_visible()
    for run in names(page)[:2]:
        page.get_by_label(f"Draw {run}").check()
    expect(page.get_by_role("heading", name="Curves of 2 runs")).to_be_visible()
    assert page.locator(".chart").first.locator(".legend button").count() == 4  # each with val


def test_everything_goes_by_keyboard(project: Project, look: Any) -> None:
    """To the filter, into a run, along its attempts, and along a curve, whose values are said."""
    page = look().open(address(project))
    page.keyboard.press("/")
    page.keyboard.type("alone")
    expect(page.locator("tbody tr")).to_have_count(1)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "alone-1":
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="alone-1")).to_be_focused()
    first = page.get_by_role("button", name="Attempt 1, ")
    first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#attempt")).to_contain_text("the machine was taken away")
    expect(page.get_by_role("button", name="Attempt 1, ")).to_be_focused()
    plot = page.locator(".plot").first
    plot.locator("canvas").wait_for()
    plot.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    said = page.locator("[aria-live=polite]")
    expect(said).to_contain_text("step 2: train/loss ")
    before = plot.screenshot()
    page.keyboard.press("+")
    page.keyboard.press("End")
    expect(said).to_contain_text("step 120: train/loss ")
    assert plot.screenshot() != before


def test_curves_are_over_steps_time_and_dollars(project: Project, look: Any) -> None:
    """The strip and the curves go by the same, and the last place is what the run has cost."""
    page = look().open(address(project, view="#run/alone-1"))
    plot = page.locator(".plot").first
    caption = page.locator("figcaption").first
    bar = page.locator(".attempt")
    expect(bar).to_have_count(3)
    for choice, said in (("Steps", "step 120"), ("Time", "after "), ("Dollars", "$0.")):
        page.get_by_role("radio", name=choice).check()
        plot.locator("canvas").wait_for()
        plot.focus()
        page.keyboard.press("End")
        expect(caption).to_contain_text(said)
        # Between attempts it waited, which is no step: there the lines of all metrics break.
        assert plot.evaluate(STRETCHES) == (1 if choice == "Steps" else 3)
        ends = bar.last.evaluate("(n) => parseFloat(n.style.left) + parseFloat(n.style.width)")
        assert ends == pytest.approx(100, abs=0.1)
    cost = RunFolder(project.home / "alone-1").report().receipt.usd
    assert cost is not None
    assert float(caption.inner_text().rpartition("$")[2]) == pytest.approx(cost, abs=0.011)
    hatched = page.locator(".again")
    expect(hatched).to_have_count(0)
    page.get_by_role("radio", name="Steps").check()
    expect(hatched).to_have_count(2)


def test_colours_can_be_chosen_and_are_remembered(project: Project, look: Any) -> None:
    page = look(color_scheme="light").open(address(project))
    page.get_by_label("Colours").select_option("dark")
    back = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(back) == "rgb(13, 17, 23)"
    page.reload()
    assert page.evaluate(back) == "rgb(13, 17, 23)"


def test_a_sweep_shows_which_values_matter(project: Project, look: Any) -> None:
    """A line for each trial, lit from its row; the best is named; what was made to matter does."""
    page = look().open(address(project))
    page.get_by_role("link", name="tiny-s").first.click()
    expect(page.locator(".parallel polyline")).to_have_count(12)
    expect(page.locator("tbody strong")).to_contain_text("best")
    rows = page.locator("tr[data-trial]")
    rows.nth(3).hover()
    expect(page.locator(".parallel polyline.lit")).to_have_count(1)
    shares = page.locator(".importance .value").all_inner_texts()
    assert sorted(shares, key=lambda each: -int(each.split()[0])) == shares
    assert int(shares[0].split()[0]) > 20
    run = rows.first.locator("a").inner_text()
    rows.first.locator("a").click()
    expect(page.get_by_role("heading", name=run)).to_be_visible()
    page.get_by_role("link", name="tiny-s").click()
    expect(page.locator(".parallel polyline")).to_have_count(12)


def test_a_page_of_a_sweep_opens_with_it(project: Project, look: Any) -> None:
    """With no way to a list of what is not there, and back from a trial."""
    (told,) = (folder.name for folder in project.home.glob("tiny-s????????"))
    assert project.xrun("page", f"runs/{told}", "-o", "sweep.html").code == 0
    page = look().open(address(project, "sweep.html"))
    expect(page.get_by_role("heading", name=told)).to_be_visible()
    page.locator("tr[data-trial] a").first.click()
    expect(page.locator("nav a")).to_have_count(1)
    page.locator("nav a").click()
    expect(page.locator(".parallel polyline")).to_have_count(12)
    expect(page.locator("nav a")).to_have_count(0)


def test_numbers_beside_an_axis_differ(project: Project, look: Any) -> None:
    """Also where all values are nearly the same, very large or very small."""
    source = (ASSETS / "page.js").read_text()
    made = source[source.index("function tickTexts") : source.index("function duration")]
    page = look().open(address(project))
    for first, step in ((0.9998, 0.00005), (12.0, 0.25), (1.2e9, 1e6), (0.0, 2e-6), (-3.0, 1.0)):
        values = [first + n * step for n in range(5)]
        texts = page.evaluate(f"(values) => {{ {made} return tickTexts(values); }}", values)
        assert [float(each.replace(",", "")) for each in texts] == pytest.approx(values, 1e-7)
        assert len(set(texts)) == 5
        assert max(map(len, texts)) < 10


def test_a_strangers_texts_are_texts(tmp_path: Path, look: Any) -> None:
    """In names, recipes and logs: they stand there, and nothing of them is obeyed, also by whoever
    would put a script into the page."""
    project = Project(tmp_path)
    name = project.plan().run
    folder = trained(project.plan(), steps=12, printed=EVIL)
    with folder.metrics.open("a") as file:
        file.write(f'{{"step": 13, "val/{EVIL}": 1.0}}\n')
    assert project.xrun("report", name, "--html", "one.html").code == 0
    window = look()
    page = window.open(address(project, "one.html"))
    page.locator(".chart canvas").first.wait_for()
    expect(page.locator("pre").last).to_contain_text(EVIL)
    expect(page.locator("figcaption", has_text=EVIL)).to_have_count(1)
    assert page.title() == name
    assert page.locator("img").count() == 0
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        "document.body.append(s)"
    )
    assert page.evaluate("window.hit") is None
    (said,) = window.wrong  # the browser says that it was refused
    assert "Content Security Policy" in said
    window.wrong.clear()


def test_a_live_page_follows_a_run(tmp_path: Path, look: Any) -> None:
    """A real run that stands still in the middle, and then goes on to its end: the page that was
    opened before it began says so by itself."""
    project = Project(tmp_path)
    project.trap("hold", call=45, committed=5)
    trained(project.plan("train.seed=9", run="other-1"), steps=12)
    server = project.start("page", "--serve")
    run = None
    try:
        assert server.stdout is not None
        where = server.stdout.readline().strip()
        window = look()
        page = window.open(where)
        expect(page.locator("tbody tr")).to_have_count(1)
        run = project.start("recipes/tiny.yaml", "--new", "--yes")
        link = page.get_by_role("link", name=project.plan().run)
        link.wait_for(timeout=120_000)
        link.click()
        expect(page.locator("h1 .pill")).to_have_text("running", timeout=120_000)
        page.locator(".chart canvas").first.wait_for()
        plot = page.locator(".plot").first
        while not (project.root / "held").exists():
            page.wait_for_timeout(100)
        plot.focus()
        (project.root / "go").touch()
        expect(page.locator("h1 .pill")).to_have_text("finished", timeout=120_000)
        for _ in range(100):  # what is drawn anew once more forgets the place, and keeps the focus
            page.keyboard.press("End")
            if "step 20" in page.locator("figcaption").first.inner_text():
                break
            page.wait_for_timeout(200)
        expect(page.locator("figcaption").first).to_contain_text("step 20")
        assert ended(run, 120).code == 0
    finally:
        for process in (server, run):
            if process is not None:
                process.kill()
                process.communicate()
    expect(page.locator("header .late")).to_contain_text("not live any more", timeout=120_000)
    window.wrong.clear()  # the browser names the request that nobody answered
