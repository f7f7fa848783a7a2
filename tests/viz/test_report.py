"""The report shows what is in the run, escaped, with what every step was really made with."""

import pandas as pd
import pytest

from kit.base.errors import InputError
from kit.base.files import write_json
from kit.run.marks import RECORD_KEYS, STAMP_KEYS, done_path
from kit.viz.report import write_report
from tests import browser

FACTS = {"n_train": 1234, "n_test": 5, "synthetic": False}


@pytest.fixture
def run_dir(tmp_path):
    write_json(tmp_path / "release.json", FACTS)
    return tmp_path


def _mark(run_dir, step, made_with, **changes):
    mark = dict.fromkeys(RECORD_KEYS | STAMP_KEYS, {}) | {
        "step": step, "seconds": 7.4, "peak_mb": 1500, "finished": "2026-01-02", "by_hand": False,
        "parameters": {"n": 5, "name": "<b>"}, "packages": {"numpy": "9.9"}, "made_with": made_with,
    }  # fmt: skip
    write_json(done_path(run_dir, step), mark | changes)


def test_an_empty_run_still_has_a_page(run_dir):
    page = write_report(run_dir).read_text()
    assert "1,234</b><span>train posts" in page and "no test part" in page and "synthetic" not in page
    assert "<h2" not in page and 'href="#' not in page and "Undefined" not in page
    with pytest.raises(InputError, match="nothing to report"):
        write_report(run_dir / "..")


def test_versions_and_parameters_are_those_of_the_steps(run_dir):
    """Not those of the environment that writes the page; what was accepted says so at the top."""
    own = {"parameters": {"n": 5, "name": "<b>"}, "packages": {"numpy": "1.0"}, "kit": "0.1.0"}
    _mark(run_dir, "01_eda", own)
    _mark(run_dir, "02_prototypes", own | {"parameters": {"n": 3, "name": "<b>"}})
    _mark(run_dir, "03_clip_ft", {"parameters": None, "packages": {"numpy": "2.0"}}, by_hand=True)
    page = write_report(run_dir).read_text()
    assert "<p>01_eda, 02_prototypes: kit 0.1.0, numpy 1.0</p>" in page and "<p>03_clip_ft: numpy 2.0</p>" in page
    assert "<b>02_prototypes was accepted as it is:</b> made with n = 3." in page
    assert "<b>03_clip_ft was accepted as it is:</b> made by hand, with parameters that are not known." in page
    assert "01_eda was accepted" not in page
    assert "&#39;&lt;b&gt;&#39;" in page and "1,500</td>" in page and 'href="notebooks/01_eda.ipynb"' in page


def test_texts_of_a_run_are_escaped(run_dir):
    (run_dir / "tables").mkdir()
    pd.DataFrame({"what": ["<script>"], "train": [1]}).to_csv(run_dir / "tables" / "quality.csv", index=False)
    write_json(run_dir / "done" / "02_x.left_out.json", {"step": "02_x", "reason": "no <weights>"})
    page = write_report(run_dir).read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page and "no &lt;weights&gt;" in page


def test_what_posts_share_is_a_table_of_its_own(run_dir):
    (run_dir / "tables").mkdir()
    shared = {"shared": ["author", "title"], "test": [816, 5], "test (%)": [40.44, 0.25], "train": [4301, 10]}
    worth = {"train (%)": [71.07, 0.17], "src": [0.6433, float("nan")], "mae": [1.60, 2.46], "mae_median": [2.21, 1.96]}
    pd.DataFrame(shared | worth).to_csv(run_dir / "tables" / "shared_posts.csv", index=False)
    page = write_report(run_dir).read_text()
    assert "<td>816 (40.4 %)</td>" in page and "<td>4,301 (71.1 %)</td>" in page and "<td>0.643</td>" in page


def test_the_fusion_stands_at_the_top(run_dir):
    (run_dir / "tables").mkdir()
    scores = pd.DataFrame({"scheme": ["user", "user"], "src": [0.5, 0.7], "mae": [1.0, 2.0], "n": [10, 20]})
    scores.to_csv(run_dir / "tables" / "blend_scores.csv", index=False)
    schemes = pd.DataFrame(
        {"scheme": ["user", "matched"], "decides": [False, True], "why": ["", "40% are by known authors"]}
    )
    schemes.to_csv(run_dir / "tables" / "schemes.csv", index=False)
    ranges = {"scheme": "user", "authors": ["all", "known"], "n": [30, 12]}
    worth = {"inside": [0.8012, 0.75], "width": [3.0, 2.5], "pinball": [0.31, 0.29]}
    pd.DataFrame(ranges | worth | {f"same_{name}": [0.5, 0.25] for name in worth}).to_csv(
        run_dir / "tables" / "coverage.csv", index=False
    )
    (run_dir / "figures").mkdir()
    (run_dir / "figures" / "figure_1.png").write_bytes(b"picture")
    page = write_report(run_dir).read_text()
    assert "like the test part are folds by matched: 40% are by known authors." in page
    assert "0.6000</b><span>SRC of the fusion, ± 0.1414 over folds" in page and "2 by user" in page
    row = "<td>12</td><td>75.0%</td><td>25.0%</td><td>2.50</td><td>0.25</td><td>0.290</td><td>0.250</td>"
    assert "<td>80.1%</td>" in page and row in "".join(line.strip() for line in page.splitlines())
    assert page.count('src="data:image/png;base64,cGljdHVyZQ=="') == 1 and "Words per title" in page


@pytest.mark.parametrize("width", [1300, 400])
@pytest.mark.skipif(not browser.CHROMIUM, reason=browser.WHY_NOT)
def test_in_a_browser_nothing_fails_and_only_tables_scroll_sideways(finished, tmp_path, width):
    with browser.opened(finished[1] / "report.html", tmp_path, width) as page:
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
        broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.alt)"
        assert [alt for alt in page.run(broken) if alt != "no picture"] == []
        anchors = (
            "[...document.querySelectorAll('nav a')].map(one => !!document.querySelector(one.getAttribute('href')))"
        )
        assert all(page.run(anchors)) and len(page.run(anchors)) >= 8
        assert page.run("document.querySelectorAll('#explained ~ .kx .big, .kx .big').length") == 5
        cells = "[...document.querySelectorAll('.wide td')].filter(one => one.cellIndex)"
        assert page.run(f"{cells}.filter(one => getComputedStyle(one).whiteSpace !== 'nowrap').length") == 0
        column = """(() => {
            const head = [...document.querySelectorAll('.wide th')].find(one => one.textContent === 'peak MB');
            head.click();
            return [...head.closest('table').tBodies[0].rows].map(row => +row.cells[3].textContent.replace(',', ''));
        })()"""
        seconds = page.run(column)
        assert seconds == sorted(seconds) and page.run(column) == sorted(seconds, reverse=True)
        assert page.errors == []


def test_gallery_and_explained_posts_are_in_the_page(finished):
    page = (finished[1] / "report.html").read_text()
    assert page.count('class="post"') == 18 and page.count('class="big"') == 5
    assert "Predicted too high" in page and "for any post" in page
