"""Files are moved by verdicts and back: nothing is overwritten or lost, and nothing outside the folder is touched."""

import csv
import os
from pathlib import Path
from typing import Any

import pytest

from lightning_anomaly.__main__ import main
from lightning_anomaly.outliers import moves
from lightning_anomaly.outliers.moves import log_of, plan_moves

FILES = ["cats/1.png", "cats/2.png", "dogs/1.png", "dogs/a b/3.png", "Zwei Wörter/-ä.png", "CATS/x.png", "cats/.h.png"]


def state(folder: Path) -> dict[str, Any]:
    """All files and folders, with bytes and times of files."""
    found = {path.relative_to(folder): path for path in folder.rglob("*")}
    return {str(n): (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else None for n, p in found.items()}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place, name in enumerate(FILES):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
        os.utime(file, ns=(10**18, 10**18 + 123_456_789 * place))
    return tmp_path / "photos"


def save(photos: Path, *rows: dict[str, Any]) -> Path:
    """Write the verdicts as a page does; paths are those of the names."""
    file = photos.parent / "verdicts.csv"
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened:
        writer = csv.DictWriter(opened, ["path", "name", "verdict", "move_to", "bytes", "modified"])
        writer.writeheader()
        writer.writerows({"path": str(photos / row.get("name", "")), **row} for row in rows)
    return file


def aside(name: str) -> dict[str, Any]:
    return {"name": name, "verdict": "ticked"}


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["move", *map(str, arguments)])
    return 0 if ended.value.code is None else ended.value.code  # type: ignore[return-value]


def test_files_go_where_the_verdicts_say_and_come_back_as_they_were(photos, capsys):
    move = {"name": "cats/2.png", "verdict": "move", "move_to": str(photos / "dogs" / "2.png")}
    verdicts = save(photos, *map(aside, FILES[3:]), move, {"name": "cats/1.png", "verdict": "right"})
    before = state(photos.parent)
    assert run(verdicts, "--dry-run") == 0
    assert state(photos.parent) == before
    assert run(verdicts) == 0
    said = capsys.readouterr().out
    assert f"In {photos}: 4 set aside in {photos}_set_aside, 1 to dogs." in said
    after = state(photos.parent)
    moved = {f"photos/{name}": f"photos_set_aside/{name}" for name in FILES[3:]} | {
        "photos/cats/2.png": "photos/dogs/2.png"
    }
    for old, new in moved.items():
        assert old not in after
        assert after[new] == before[old]
    assert run(verdicts) == 0  # again: there is nothing left to do
    assert "nothing to move (5 moved before)" in capsys.readouterr().out
    assert run(verdicts, "--undo") == 0
    assert state(photos.parent) == before
    assert run(verdicts, "--undo").startswith("error: ")


def test_names_with_formulas_and_bytes_that_are_no_utf_8_are_found(photos):
    name = os.fsdecode(b"cats/caf\xe9.png")
    (photos / name).touch()
    (photos / "=1.png").touch()
    verdicts = save(photos, aside(name), {"path": str(photos / "=1.png"), "name": "./=1.png", "verdict": "ticked"})
    assert run(verdicts) == 0
    assert (photos.with_name("photos_set_aside") / name).exists()
    assert (photos.with_name("photos_set_aside") / "=1.png").exists()


def test_what_cannot_be_moved_is_named_and_the_rest_is_moved(photos, capsys):
    exists = {"name": "dogs/1.png", "verdict": "move", "move_to": str(photos / "cats" / "1.png")}
    found = (photos / "cats/2.png").stat()
    changed = {**aside("cats/2.png"), "bytes": found.st_size, "modified": found.st_mtime + 5}
    same = {**aside("cats/1.png"), "bytes": found.st_size, "modified": str((photos / "cats/1.png").stat().st_mtime)}
    other = {**aside("dogs/a b/3.png"), "modified": "1.7E+09 s"}
    # As a spreadsheet with decimal commas rounds it.
    rounded = {**aside("CATS/x.png"), "modified": f"{(photos / 'CATS/x.png').stat().st_mtime:.1f}".replace(".", ",")}
    verdicts = save(photos, exists, changed, aside("cats/gone.png"), same, other, rounded)
    before = state(photos)
    assert run(verdicts) == 1
    text = capsys.readouterr().err
    for name, why in {
        "dogs/1.png": "exists",
        "cats/2.png": "changed",
        "cats/gone.png": "no longer there",
        "dogs/a b/3.png": "no number",
    }.items():
        assert f"{photos / name}: " in text
        assert why in text
    lost = before.keys() - state(photos).keys()
    assert lost == {"cats/1.png", "CATS/x.png"}


def test_two_files_with_one_target_do_not_overwrite_each_other(photos):
    target = str(photos / "CATS" / "1.png")
    rows = [{"name": name, "verdict": "move", "move_to": target} for name in ("cats/1.png", "dogs/1.png")]
    assert run(save(photos, *rows)) == 1
    assert Path(target).read_text() == "cats/1.png"
    assert (photos / "dogs/1.png").read_text() == "dogs/1.png"


def test_nothing_outside_the_folder_and_the_one_set_aside_is_touched(photos, tmp_path, capsys):
    secret, inside = tmp_path / "secret.txt", photos / "cats/1.png"
    secret.write_text("secret")
    (photos / "link").symlink_to(tmp_path)
    (photos / "cats" / "link.png").symlink_to(secret)
    rows = [
        {"name": "secret.txt", "path": str(secret), "verdict": "ticked"},
        {"name": "../secret.txt", "path": f"{photos}/../secret.txt", "verdict": "ticked"},
        {"name": "link/secret.txt", "verdict": "ticked"},
        {"name": "cats/link.png", "verdict": "ticked"},
        {"name": "../../outside.png", "path": str(inside), "verdict": "ticked"},
        {"name": "cats/1.png", "verdict": "move", "move_to": str(tmp_path / "elsewhere" / "1.png")},
        {"name": "cats/1.png", "verdict": "move", "move_to": f"{photos}/cats/../../1.png"},
        {"name": "cats/1.png", "verdict": "move", "move_to": str(photos / "link" / "1.png")},
        {"name": "cats/1.png", "verdict": "move", "move_to": ""},
    ]
    verdicts = save(photos, *rows, aside("cats/2.png"), aside("dogs/1.png"))
    before = state(tmp_path)
    assert run(verdicts, "--folder", photos) == 1
    assert capsys.readouterr().err.count("not moved: ") == len(rows)
    gone = before.keys() - state(tmp_path).keys()
    assert gone == {"photos/cats/2.png", "photos/dogs/1.png"}


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_run_that_was_interrupted_can_be_run_again_or_undone(photos, monkeypatch, moved):
    verdicts, before = save(photos, *map(aside, FILES[:4])), state(photos)
    rename, count = moves._rename, [0]

    def interrupted(old: str, new: str) -> None:
        if count[0] == moved:
            raise KeyboardInterrupt
        count[0] += 1
        rename(old, new)

    with monkeypatch.context() as patched:
        patched.setattr(moves, "_rename", interrupted)
        assert run(verdicts) == 130
    assert len(log_of(verdicts).read_text().splitlines()) == moved + 1
    log = log_of(verdicts).read_text()
    with log_of(verdicts).open("a") as file:
        file.write('{"old": ')  # as the disk was full
    assert run(verdicts, "--undo") == 0
    assert state(photos) == before
    log_of(verdicts).write_text(log + '{"old": ')
    assert run(verdicts) == 0
    assert len(plan_moves(verdicts).moves) == 0
    assert run(verdicts, "--undo") == 0
    assert state(photos) == before


def test_a_file_that_came_back_meanwhile_is_not_overwritten_by_undoing(photos, capsys):
    verdicts = save(photos, aside("cats/1.png"), aside("cats/2.png"))
    assert run(verdicts) == 0
    (photos / "cats/1.png").write_text("new")
    assert run(verdicts, "--undo") == 1
    assert "there is a file at" in capsys.readouterr().err
    assert (photos / "cats/1.png").read_text() == "new"
    assert (photos / "cats/2.png").exists()
    (photos / "cats/1.png").unlink()
    assert run(verdicts, "--undo") == 0
    assert (photos / "cats/1.png").read_text() == "cats/1.png"
    assert not photos.with_name("photos_set_aside").exists()
