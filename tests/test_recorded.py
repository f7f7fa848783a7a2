"""README quotes what was recorded, and the demo still measures it. ./run_all.sh first, or the comparison is skipped."""

import pytest

from kit.base.files import read_json
from kit.base.paths import PROJECT_ROOT, shown
from tests import record

DEMO_RUN = PROJECT_ROOT / "outputs" / "demo"
KEYS = ["scheme", "features", "n", "folds"]


def test_readme_quotes_the_recorded_files():
    text = record.README.read_text(encoding="utf-8")
    assert text == record.with_results(text), "README's results are not those of tests/recorded: python -m tests.record"
    assert list(record.RECORDED.glob("*.json")) and "synthetic" in text


def test_a_changed_number_changes_readme(monkeypatch, tmp_path):
    known = read_json(record.RECORDED / "demo.json")
    known["scores"][0]["src"] = 0.123
    record.write_json(tmp_path / "demo.json", known)
    monkeypatch.setattr(record, "RECORDED", tmp_path)
    text = record.README.read_text(encoding="utf-8")
    assert "| 0.123 ± " in record.with_results(text) and "| 0.123 ± " not in text


def test_the_demo_measures_what_was_recorded():
    """Within the tolerance that stands in the file: training the tiny CLIP depends on machine and threads."""
    if not (DEMO_RUN / "tables" / "blend_scores.csv").is_file():
        pytest.skip(f"no finished run in {shown(DEMO_RUN)}; ./run_all.sh makes it")
    _, steps = record._called(DEMO_RUN)
    if old := [f"{step.name}: {reason}" for step in steps if (reason := record.why_old(DEMO_RUN, step))]:
        pytest.skip(f"{shown(DEMO_RUN)} was not made by this code ({old[0]}); ./run_all.sh makes it anew")
    known = read_json(record.RECORDED / "demo.json")
    found = record.scores(DEMO_RUN)
    assert [[row[key] for key in KEYS] for row in found] == [[row[key] for key in KEYS] for row in known["scores"]]
    most = max(row["n"] for row in found)  # scores of fewer posts move more: with the root of their number
    far = [f"{row['features']} by {row['scheme']}: {metric} {row[metric]} recorded, {now[metric]} now"
           for row, now in zip(known["scores"], found, strict=True)
           for metric, tolerance in known["tolerance"].items()
           if abs(row[metric] - now[metric]) > tolerance * (most / row["n"]) ** 0.5]  # fmt: skip
    assert not far, "\n".join(
        ["the demo's scores have moved; if they should have: python -m tests.record outputs/demo", *far]
    )


def test_a_run_that_is_not_finished_is_not_recorded(tmp_path, capsys):
    assert record.main([str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
