from __future__ import annotations

import json
import pathlib
import random
import subprocess
import sys
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from disk_cases import full_disk

from alohas2r.errors import ArtifactError
from alohas2r.learning.run.checkpoint import Checkpoint


class Tree(NamedTuple):
    params: dict[str, Any]
    rows: np.ndarray
    key: Any
    number: Any


def make_tree(seed: int, size: int = 20) -> Tree:
    draw = np.random.default_rng(seed)
    return Tree(
        params={"b": jnp.asarray(draw.normal(size=(size, 3)), jnp.float32), "a": jnp.int32(seed)},
        rows=draw.normal(size=(4, 7)) * 10.0 ** draw.integers(-300, 300, (4, 7)),  # float64
        key=jnp.asarray(draw.integers(0, 2**32, 2), jnp.uint32),
        number=jnp.float32(draw.normal()),
    )


def assert_same(found: Tree, expected: Tree) -> None:
    for one, other in zip(
        (found.params["a"], found.params["b"], *found[1:]),
        (expected.params["a"], expected.params["b"], *expected[1:]),
        strict=True,
    ):
        assert type(one) is type(other)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def saved(tmp_path: pathlib.Path) -> Checkpoint:
    checkpoint = Checkpoint(tmp_path / "run" / "checkpoint")
    assert not checkpoint.exists()
    checkpoint.save(make_tree(0), {"updates": 3, "wall_s": 1.5})
    return checkpoint


def test_every_bit_comes_back(saved: Checkpoint) -> None:
    assert saved.exists()
    found, extra = saved.load(make_tree(1))
    assert_same(found, make_tree(0))
    assert extra == {"updates": 3, "wall_s": 1.5}


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_aside(saved: Checkpoint) -> None:
    saved.save(make_tree(2), {"updates": 4})
    found, extra = saved.load(make_tree(1))
    assert_same(found, make_tree(2))
    assert extra == {"updates": 4}
    assert [path.name for path in saved.folder.parent.iterdir()] == ["checkpoint"]


def test_nothing_to_resume_says_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ArtifactError, match="holds no checkpoint yet"):
        Checkpoint(tmp_path / "checkpoint").load(make_tree(0))


def test_another_structure_is_another_configuration(saved: Checkpoint) -> None:
    tree = make_tree(1)
    others = [
        make_tree(1, size=21),
        tree._replace(number=jnp.int32(1)),
        tree._replace(rows=np.zeros(tree.rows.shape, np.float32)),
        tree._replace(number=(tree.number, tree.number)),
        tree._replace(params={"a": tree.params["a"]}),
    ]
    for other in others:
        with pytest.raises(ArtifactError, match="checkpoint"):
            saved.load(other)


def test_damage_is_named(saved: Checkpoint) -> None:
    files = [path for path in saved.folder.rglob("*") if path.is_file()]
    assert len(files) > 2
    complaints = []
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        try:
            found, _ = saved.load(make_tree(1))
        except ArtifactError as error:
            complaints.append(str(error))
        else:
            assert_same(found, make_tree(0))  # a file that nothing depends on
        path.write_bytes(content)
    assert len(complaints) >= 2
    for complaint in complaints:
        assert str(saved.folder) in complaint
        assert "\n" not in complaint
    (saved.folder / "extra.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        saved.load(make_tree(1))


@pytest.mark.parametrize("largest", [0, 2000])
def test_a_full_disk_leaves_the_earlier_checkpoint(saved: Checkpoint, largest: int) -> None:
    big = make_tree(5, size=20_000)
    with full_disk(largest), pytest.raises(ArtifactError, match="could not be written") as caught:
        saved.save(big, {"updates": 9})
    assert "intact" in str(caught.value)
    found, extra = saved.load(make_tree(1))
    assert_same(found, make_tree(0))
    assert extra["updates"] == 3
    assert [path.name for path in saved.folder.parent.iterdir()] == ["checkpoint"]
    saved.save(big, {"updates": 9})  # there is room again
    assert saved.load(make_tree(1, size=20_000))[1] == {"updates": 9}


def test_a_kill_between_the_renames_loses_nothing(saved: Checkpoint) -> None:
    """The new folder had not yet taken the place of the earlier one."""
    saved.folder.rename(saved.folder.with_name(".checkpoint.earlier"))
    again = Checkpoint(saved.folder)
    assert again.exists()
    assert_same(again.load(make_tree(1))[0], make_tree(0))


def test_what_a_killed_run_left_aside_is_cleared_away_by_the_owner_alone(saved: Checkpoint) -> None:
    left = saved.folder.with_name(".checkpoint.123.456.part")
    (left / "arrays").mkdir(parents=True)
    (left / "arrays" / "half").write_bytes(bytes(10))
    assert saved.exists()
    assert left.is_dir()  # it may be what another process is writing just now
    saved.tidy()
    assert [path.name for path in saved.folder.parent.iterdir()] == ["checkpoint"]


def test_asking_for_a_checkpoint_does_not_disturb_its_writer(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "run" / "checkpoint"
    script = (
        "import sys; from alohas2r.learning.run.checkpoint import Checkpoint\n"
        "print('begun', flush=True)\n"
        "while True: Checkpoint(sys.argv[1]).exists()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        for number in range(15):
            Checkpoint(folder).save(make_tree(number, size=3000), {"updates": number})
    finally:
        other.kill()
        other.communicate()
    assert Checkpoint(folder).load(make_tree(0, size=3000))[1] == {"updates": 14}


def test_flipped_bits_are_found(saved: Checkpoint) -> None:
    draw = random.Random(0)
    files = [path for path in saved.folder.rglob("*") if path.is_file() and path.stat().st_size]
    complaints = []
    for _ in range(100):
        path = draw.choice(files)
        content = bytearray(path.read_bytes())
        at = draw.randrange(len(content))
        content[at] ^= 1 << draw.randrange(8)
        before = path.read_bytes()
        path.write_bytes(bytes(content))
        try:
            tree, extra = saved.load(make_tree(1))
        except ArtifactError as error:
            complaints.append(str(error))
        else:  # a byte that nothing depends on
            assert_same(tree, make_tree(0))
            assert extra == {"updates": 3, "wall_s": 1.5}
        path.write_bytes(before)
    assert len(complaints) > 5
    assert not [complaint for complaint in complaints if "\n" in complaint]


def test_a_checkpoint_from_before_there_were_digests_is_read(saved: Checkpoint) -> None:
    (saved.folder / "extra.json").write_text(json.dumps({"updates": 3, "wall_s": 1.5}))
    tree, extra = saved.load(make_tree(1))
    assert_same(tree, make_tree(0))
    assert extra == {"updates": 3, "wall_s": 1.5}


def test_a_checkpoint_of_a_newer_version_says_so(saved: Checkpoint) -> None:
    path = saved.folder / "extra.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ArtifactError, match="newer version"):
        saved.load(make_tree(1))


def kept(checkpoint: Checkpoint) -> list[str]:
    return sorted(path.name for path in checkpoint.folder.parent.glob("checkpoint-*"))


def test_the_last_states_are_kept_and_share_their_files(saved: Checkpoint) -> None:
    for number in range(3, 8):
        saved.save(make_tree(number), {"updates": number})
        saved.keep(number, 3)
    assert kept(saved) == ["checkpoint-00005", "checkpoint-00006", "checkpoint-00007"]
    tree, values = Checkpoint(saved.numbered(5)).load(make_tree(0))
    assert_same(tree, make_tree(5))
    assert values == {"updates": 5}
    files = [path for path in saved.numbered(7).rglob("*") if path.is_file()]
    assert files
    assert all(path.stat().st_nlink == 2 for path in files)
    # Somebody went back to the fifth: what came after it is another run's.
    saved.save(make_tree(6), {"updates": 6})
    saved.keep(6, 3)
    assert kept(saved) == ["checkpoint-00005", "checkpoint-00006"]
    saved.forget()
    assert kept(saved) == []
    assert saved.exists()


def test_where_there_are_no_second_names_states_are_copied(
    saved: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refused)
    saved.keep(3, 2)
    assert_same(Checkpoint(saved.numbered(3)).load(make_tree(0))[0], make_tree(0))
    monkeypatch.setattr(
        "shutil.copy2", refused
    )  # nor room for a copy: the checkpoint itself is as it was
    saved.save(make_tree(1), {"updates": 4})
    saved.keep(4, 2)
    saved.tidy()
    assert kept(saved) == ["checkpoint-00003"]
    assert_same(saved.load(make_tree(0))[0], make_tree(1))


def test_the_first_leaves_are_read_alone(saved: Checkpoint) -> None:
    assert_same(make_tree(0)._replace(params=saved.load_first(make_tree(1).params)), make_tree(0))
    with pytest.raises(ArtifactError, match="another configuration"):
        saved.load_first((make_tree(0), make_tree(0)))
    with pytest.raises(ArtifactError, match="another configuration"):
        saved.load_first(make_tree(0, size=21).params)
