"""Blocks from one machine to another: joined by hashed ids, refused where posts or content differ, kept by steps."""

import json
import zipfile

import numpy as np
import pytest

from kit.base.errors import InputError, StepLeftOut
from kit.run.block import Block
from kit.run.directory import Run
from kit.run.exchange import export_blocks, import_blocks
from tests.tiny import tiny_posts


@pytest.fixture
def sender(tmp_path):
    run = Run.open(tmp_path / "sender", write=True)
    run.write_posts(tiny_posts())
    values = np.arange(520, dtype=np.float16).reshape(260, 2)
    run.write_block(Block("mine", values, ["a", "b_code"], ["b_code"], "an idea", "weights of X"))
    run.write_block(Block("other", values[:, :1].astype(np.float32), ["c"]))
    return run


def receiver(tmp_path, posts):
    run = Run.open(tmp_path / "receiver", write=True)
    run.write_posts(posts)
    return run


def test_rows_find_their_posts(sender, tmp_path):
    export_blocks(sender, tmp_path / "blocks.zip", ["mine"])
    mixed = tiny_posts().sample(frac=0.5, random_state=1).reset_index(drop=True)
    run = receiver(tmp_path, mixed)
    assert import_blocks(run, tmp_path / "blocks.zip") == ["mine"] == run.block_names()
    block, there = run.read_block("mine"), sender.read_block("mine")
    rows = {pid: row for row, pid in enumerate(tiny_posts()["Pid"])}
    assert np.array_equal(block.values, there.values[[rows[pid] for pid in mixed["Pid"]]])
    assert (block.columns, block.categorical, block.external) == (there.columns, there.categorical, "weights of X")
    assert block.values.dtype == np.float16


def test_the_file_names_no_post_and_no_author(sender, tmp_path):
    export_blocks(sender, tmp_path / "blocks.zip")
    with zipfile.ZipFile(tmp_path / "blocks.zip") as archive:
        assert len(archive.namelist()) == 5
        content = b"".join(archive.read(name) for name in archive.namelist())
    posts = sender.posts()
    assert not [word for word in {*posts["Uid"], *posts["Pid"]} if word.encode() in content]


def test_other_posts_a_damaged_file_and_a_block_of_its_own_are_refused(sender, tmp_path):
    path = tmp_path / "blocks.zip"
    export_blocks(sender, path)
    posts = tiny_posts()
    run = receiver(tmp_path, posts.assign(Pid=["new", *posts["Pid"][1:]]))
    with pytest.raises(InputError, match="1 of the 260 posts"):
        import_blocks(run, path)
    with pytest.raises(InputError, match="blocks of its own named mine, other"):
        import_blocks(sender, path)
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["other/values.npy"] = parts["other/values.npy"][:-1] + b"x"
    run = receiver(tmp_path, posts)
    for content, told in ((parts, "not those that were exported"), ({"a": b""}, "is no file of exported blocks")):
        with zipfile.ZipFile(path, "w") as archive:
            for name, value in content.items():
                archive.writestr(name, value)
        with pytest.raises(InputError, match=told):
            import_blocks(run, path)
        assert not run.block_names()
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match="is no file of exported blocks"):
        import_blocks(run, path)
    with pytest.raises(InputError, match="no block 'none'"):
        export_blocks(sender, path, ["none"])


def test_a_step_that_cannot_make_it_keeps_an_imported_block_and_one_that_can_replaces_it(sender, tmp_path, monkeypatch):
    export_blocks(sender, tmp_path / "blocks.zip", ["mine"])
    run = receiver(tmp_path, tiny_posts())
    import_blocks(run, tmp_path / "blocks.zip")
    monkeypatch.setenv("KIT_PIPELINE", "1")
    step = Run(run.dir, "03_clip_ft", write=True)
    with pytest.raises(StepLeftOut):
        step.leave_out("no weights", blocks=["mine"])
    assert run.is_imported("mine")
    step.write_block(Block("mine", np.ones((260, 1), np.float32), ["d"]))
    assert not run.is_imported("mine") and run.read_block("mine").columns == ["d"]
    step.drop_block("mine", "no weights")
    assert not run.has_block("mine") and json.loads((run.dir / "blocks/mine/absent.json").read_text())["reason"]
