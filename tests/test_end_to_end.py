"""The whole chain on a small release: files, scores, a valid submission, a report; then nothing left to do."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from kit.base import metrics
from kit.pipeline.command import main
from kit.run.block import Block
from kit.run.directory import Run
from kit.submission.files import validate_submission
from tests import browser
from tests.conftest import SETS, SMALL


def test_submission_and_report(finished):
    _, run_dir = finished
    posts = Run.open(run_dir).posts()
    assert validate_submission(run_dir / "submission.csv", posts) == 30
    assert validate_submission(run_dir / "submission.json", posts) == 30
    external = json.loads((run_dir / "submission.json").read_text())["external_data"]
    assert external == {"used": "false", "details": ""}  # the tiny CLIP was trained on these very posts
    page = (run_dir / "report.html").read_text()
    assert "data:image/png;base64," in page and "http://" not in page and "https://" not in page
    scores = pd.read_csv(run_dir / "tables" / "blend_scores.csv")
    assert scores["scheme"].unique().tolist() == ["user", "matched", "time"]
    decides = pd.read_csv(run_dir / "tables" / "schemes.csv").query("decides").iloc[0]
    assert decides["scheme"] == "user" and "of the test posts are by authors" in decides["why"]
    assert f"folds by {decides['scheme']}: {decides['why']}" in page
    scores = scores[scores["scheme"] == "user"]
    assert f"{scores['src'].mean():.4f}" in page and f"{scores['mae'].mean():.4f}" in page
    assert "synthetic" not in page


def test_scores_are_those_of_the_stored_predictions(finished):
    _, run_dir = finished
    posts = Run.open(run_dir).posts()
    scores = pd.read_csv(run_dir / "tables" / "scores.csv").set_index(["scheme", "features", "model", "fold"])
    table_1 = pd.read_csv(run_dir / "tables" / "table_1.csv").set_index(["scheme", "features"])
    for scheme in ("user", "matched"):
        table = pd.read_parquet(run_dir / f"predictions_{scheme}.parquet")
        assert table["Pid"].tolist() == posts["Pid"].tolist()
        for name in table.columns[2:]:
            features, model = name.split("/")
            errors = []
            for fold in (0, 1):
                rows = (table["fold"] == fold).to_numpy()
                row = scores.loc[(scheme, features, model, fold)]
                errors.append(metrics.mae(posts["label"][rows], table[name][rows]))
                assert row["n"] == rows.sum() and row["mae"] == pytest.approx(errors[-1], abs=1e-9)
                assert row["src"] == pytest.approx(metrics.src(posts["label"][rows], table[name][rows]), abs=1e-9)
            assert table_1.loc[(scheme, features), f"{model}_mae"] == pytest.approx(np.mean(errors), abs=1e-9)
        test = (table["fold"] == -1).to_numpy()
        assert table.loc[test].notna().all(axis=None) == (scheme == "user")


def test_table_1_says_what_could_not_be_run_and_stands_beside_the_paper(finished):
    _, run_dir = finished
    table = pd.read_csv(run_dir / "tables" / "table_1.csv").query("scheme == 'user'").set_index("features")
    assert table.index.tolist() == SETS
    assert table.loc["statistic+blip", "note"].startswith("not run: blip: needs config.json")
    assert table.loc["statistic+clip_ft", "paper_fusion_src"] == 0.7330
    page = (run_dir / "report.html").read_text()
    assert "inputs/weights/blip-itm-base-coco" in page and f"{table.loc['statistic', 'fusion_mae']:.4f}" in page
    gains = pd.read_csv(run_dir / "tables" / "table_1_gains.csv").query(
        "scheme == 'user' and features == 'statistic+clip_ft'"
    )
    assert gains["against"].tolist() == ["statistic", "statistic+behaviour"]


def test_the_experiments_are_in_the_report(finished):
    _, run_dir = finished
    page = (run_dir / "report.html").read_text()
    for reading in pd.read_csv(run_dir / "tables" / "readings.csv")["reading"]:
        assert reading[:60] in page
    for name in ("figure_1", "figure_3", "figure_4a", "figure_4b", "table_1", "table_1_gains"):
        assert (run_dir / "figures" / f"{name}.png").is_file(), name
    assert len(pd.read_csv(run_dir / "tables" / "selection.csv")) == 1 + 3 + 2
    assert len(pd.read_csv(run_dir / "tables" / "oversampling.csv")) == 1 + 1 + 1 + 1


@pytest.mark.skipif(not browser.CHROMIUM, reason=browser.WHY_NOT)
@pytest.mark.parametrize("width", [1300, 400])
def test_the_report_renders_and_the_console_has_nothing_to_say(finished, tmp_path, width):
    ready = "document.querySelectorAll('h2').length > 3"
    with browser.opened(finished[1] / "report.html", tmp_path, width, ready) as page:
        assert page.run("[...document.images].every(image => image.naturalWidth > 0)")
        assert page.errors == []


def test_shuffled_labels_leave_nothing_to_find(tmp_path):
    """No feature set, booster, taught column or fusion finds anything where there is nothing: no label leaks anywhere."""
    from tests.conftest import Release

    release = Release(tmp_path / "data", n_train=320, n_test=20, images=True)
    labels = release.parts["train"]["label"]
    release.parts["train"]["label"] = np.random.default_rng(0).permutation(labels).tolist()
    settings = [*SMALL, "--set=05.ratios=1", "--set=07.method=convex"]  # stacking may rightly answer with a constant
    assert main(["--data", str(release.write()), "--out", str(tmp_path / "run"), *settings]) == 0
    posts = Run.open(tmp_path / "run").posts()
    for scheme in ("user", "matched"):
        table = pd.read_parquet(tmp_path / "run" / f"predictions_{scheme}.parquet")
        rows = (table["fold"] >= 0).to_numpy()
        for name in table.columns[2:]:
            assert abs(metrics.src(posts["label"][rows], table[name][rows])) < 4 / np.sqrt(rows.sum()), (scheme, name)
    scores = pd.read_csv(tmp_path / "run" / "tables" / "blend_scores.csv").query("scheme == 'user'")
    assert abs(scores["src"].mean()) < 4 / np.sqrt(320)


def test_an_idea_becomes_a_row_of_table_1(finished, tmp_path):
    """As README shows: a block from a notebook, named in 06.sets."""
    arguments, run_dir = finished[0].copy(), shutil.copytree(finished[1], tmp_path / "run", symlinks=True)
    arguments[arguments.index("--out") + 1] = str(run_dir)
    run = Run.open(run_dir, write=True)
    asks = run.posts()["Title"].str.contains("dog").to_numpy(np.float32)
    run.write_block(Block("mine", asks[:, None], ["title_dog"], source="my idea"))
    assert main([*arguments, "--only", "06", "--set=06.sets=statistic,statistic+mine"]) == 0
    rows = pd.read_csv(run_dir / "tables" / "table_1.csv").query("scheme == 'user'").set_index("features")
    assert rows.loc["statistic+mine", ["fusion_src", "fusion_mae"]].notna().all()
    gains = pd.read_csv(run_dir / "tables" / "table_1_gains.csv")
    assert "statistic+mine" in set(gains["features"])


def test_learns_something(finished):
    """The labels of the small release follow the subcategory: a chain that learns beats the median."""
    _, run_dir = finished
    labels = Run.open(run_dir).posts()["label"].dropna()
    median_error = np.abs(labels - labels.median()).mean()
    scores = pd.read_csv(run_dir / "tables" / "blend_scores.csv").query("scheme == 'user'")
    assert scores["mae"].mean() < 0.98 * median_error and scores["src"].mean() > 0.4  # of 45 posts a fold


def test_second_call_skips_everything(finished, capsys):
    arguments, run_dir = finished
    files = [path for path in run_dir.rglob("*") if path.is_file() and not path.name.startswith(".lock")]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "running" not in said and said.count("up to date") >= 4
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_executed_notebooks_are_complete(finished):
    _, run_dir = finished
    for path in sorted((run_dir / "notebooks").glob("*.ipynb")):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in cells), path.name
        assert (
            any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
            or path.name[:2] in ("04", "08")  # tables and cards
        )


def test_no_test_part_no_submission(finished, capsys, tmp_path):
    """An older submission in the folder must not survive a release that has nothing to submit."""
    from tests.conftest import Release

    arguments, run_dir = finished
    data = Release(tmp_path / "data", n_train=90, n_test=0).write()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "submission.csv").write_text("old")
    assert main(["--data", str(data), "--out", str(folder), *SMALL, "--set=06.schemes=auto"]) == 0
    said = capsys.readouterr().out
    assert "submission  none: this release has no test part" in said
    plain = " ".join(said.split())
    assert "02_prototypes LEFT OUT: none of the 90 image files" in plain and "03_clip_ft LEFT OUT" in plain
    assert not (folder / "submission.csv").exists()
    page = (folder / "report.html").read_text()
    assert "no test part" in page and "02_prototypes was left out" in page


def test_a_broken_release_leaves_no_artefact(release, capsys, tmp_path):
    root = release.write()
    release.path("test", "text").write_text("[{")
    assert main(["--data", str(root), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "test_text.json is not valid JSON" in error and "Traceback" not in error
    left = [path.relative_to(tmp_path / "run").parts[0] for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert set(left) <= {"logs", "notebooks", ".lock", ".lock.json"}
