"""Data come whole from servers that misbehave, go on after a kill at any step, and nothing wrong gets in."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from offkey.data import archives, fetch, records
from offkey.data.catalog import CATALOG, read_catalog
from offkey.data.source import open_source
from offkey.data.synthetic.years import CATALOG_FILE, YearConfig, pack_year, write_year
from offkey.data.truth import take_truth
from offkey.downloading import DownloadError, Patience
from offkey.types import OffkeyError

_location = importlib.util.spec_from_file_location("bad", Path(__file__).parents[1] / "misbehaving_server.py")
bad = importlib.util.module_from_spec(_location)
_location.loader.exec_module(bad)

MACHINES = ("bearing", "HomeCamera")
DEV, TRAIN, TEST = "dev_bearing.zip", "eval_data_HomeCamera_train.zip", "eval_data_HomeCamera_test.zip"
RECORDS = {DEV: "15097779", TRAIN: "15392814", TEST: "15519362"}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The miniature of 2025 and its site; nobody writes into them."""
    root = tmp_path_factory.mktemp("published")
    config = YearConfig(machines=MACHINES, train_source=3, train_target=1, test_per_group=1, rate=8000)
    mini = write_year(root, 2025, config)
    return SimpleNamespace(mini=mini, site=pack_year(mini, root / "site"))


class Told:
    def __init__(self):
        self.lines = []

    def start(self, what, total, done=0):
        self.lines.append(what)

    def step(self, done, note=""):
        pass

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def world(published, monkeypatch, tmp_path):
    """A server with the site, no Zenodo behind it, and a call that fetches without waiting."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = bad.Server()
    for path in published.site.rglob("*"):
        if path.is_file():
            where = "/" + path.relative_to(published.site).as_posix()
            mirror = server.serve(where, bad.whole(path.read_bytes())).removesuffix(where)
    monkeypatch.setattr(records, "ZENODO", f"{mirror}/zenodo")
    told, waits = Told(), []
    patience = Patience(tries=4, timeout=3.0, sleep=waits.append)

    def prepare(root=tmp_path / "data", name="dcase2025", **options):
        options = {"machines": MACHINES, "mirror": mirror, **options}
        return fetch.prepare(name, root, **options, progress=told, patience=patience)

    def get(root=tmp_path / "data", keep=False, **options):
        return fetch.fetch(prepare(root, **options), keep, told, patience)

    yield SimpleNamespace(
        server=server, get=get, prepare=prepare, told=told, waits=waits, root=tmp_path / "data", mirror=mirror,
        where=lambda file: f"/records/{RECORDS[file]}/files/{file}",
        body=lambda file: (published.site / "records" / RECORDS[file] / "files" / file).read_bytes(),
    )  # fmt: skip
    server.close()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != ".fetched.json"
    }


def is_right(world, published, outcome, **counts):
    assert outcome.failed == ()
    assert tree(outcome.folder) == tree(published.mini.folder)
    assert not [p for p in outcome.folder.rglob(".*") if p.name != ".fetched.json"]  # no parts, zips, locks
    assert {p.name for p in world.root.iterdir()} == {"dcase2025t2", "dcase2025t2.lock.json"}
    assert len(open_source(outcome.folder).clips) == published.mini.clips


def test_it_comes_as_the_organisers_lay_it_out(world, published):
    plan = world.prepare()
    assert not [path for path, _ in world.server.asked if path.endswith(".zip")]  # licences come before the first byte
    assert {record.licence for record in plan.records} == {"cc-by-4.0"}
    assert plan.to_download == sum(len(world.body(file)) for file in RECORDS)
    is_right(world, published, world.get())
    lock = json.loads((world.root / "dcase2025t2.lock.json").read_text())
    for file, record in RECORDS.items():
        assert lock["records"][record]["files"][file]["size"] == len(world.body(file))


def test_a_second_run_asks_for_nothing(world, published):
    world.get()
    asked = len(world.server.asked)
    outcome = world.get()
    assert len(world.server.asked) == asked
    assert ([a.file for a in outcome.present], outcome.done) == ([DEV, TRAIN, TEST], ())
    is_right(world, published, outcome)


def test_a_lost_clip_is_noticed_and_fetched_again(world, published):
    first = world.get()
    next((first.folder / "dev_data").rglob("*.wav")).unlink()
    outcome = world.get()
    assert [a.file for a in outcome.done] == [DEV]
    is_right(world, published, outcome)


def test_parts_may_come_one_after_the_other(world, published):
    for part in ("eval", "dev", "additional"):
        outcome = world.get(parts=[part])
        assert len(outcome.done) == 1
    is_right(world, published, outcome)


@pytest.mark.parametrize("file", RECORDS)
def test_a_bad_day_of_the_server(world, published, file):
    body, where = world.body(file), world.where(file)
    wrong = bytes(len(body))
    busy, late, down = bad.status(429, Retry_After=7), bad.status(504), bad.status(503)
    drops, resets, no_ranges = bad.broken(body, 5000), bad.broken(body, 3000, reset=True), bad.whole(body, ranges=False)
    world.server.serve(where, busy, drops, down, resets, late, no_ranges)
    asking = f"/api/records/{RECORDS[file]}"
    world.server.serve(asking, bad.status(503), *world.server.behaviours[asking])
    world.server.serve(f"/{file}", bad.whole(wrong))
    is_right(world, published, world.get())
    assert 7.0 in world.waits
    assert f"bytes={5000}-" in world.server.ranges(where)


def test_wrong_bytes_once_are_not_taken(world, published):
    body = world.body(DEV)
    half = len(body) // 2
    mixed = bad.whole(bytes(half) + body[half:])
    world.server.serve(world.where(DEV), bad.broken(bytes(half), half), mixed, bad.whole(body))
    # the first answer promised another length than the record: the address is given up, and the next one serves
    world.server.serve(f"/{DEV}", bad.whole(body))
    is_right(world, published, world.get())


def test_a_wrong_checksum_keeps_the_archive_out_and_the_others_come(world, published):
    wrong = bytearray(world.body(DEV))
    wrong[100] ^= 1
    world.server.serve(world.where(DEV), bad.whole(bytes(wrong)))
    outcome = world.get()
    ((archive, problem),) = outcome.failed
    assert archive.file == DEV
    assert "md5" in problem
    assert [a.file for a in outcome.done] == [TRAIN, TEST]
    assert not (outcome.folder / "dev_data").exists()
    world.server.serve(world.where(DEV), bad.whole(world.body(DEV)))
    is_right(world, published, world.get())


STEPS = {
    "unpack": (archives, "_write_member"),
    "merge": (fetch, "_merge"),
    "note": (fetch, "write_whole"),
    "survey": (fetch, "survey"),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_step_it_goes_on(world, published, monkeypatch, step, after):
    """Killed at the second call of a step, before or after its work, and at the first of the next run."""
    module, name = STEPS[step]
    real = getattr(module, name)

    def kill_at(number):
        calls = []

        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == number and not after:
                raise KeyboardInterrupt
            result = real(*args, **kwargs)
            if len(calls) == number:
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(module, name, deadly)

    for number in (2, 1):
        kill_at(number)
        with pytest.raises(KeyboardInterrupt):
            world.get()
    monkeypatch.setattr(module, name, real)
    is_right(world, published, world.get())


def test_killed_in_the_middle_of_a_move(world, published, monkeypatch):
    real, moved = Path.replace, []

    def deadly(self, target):
        if ".ready" in str(self) and str(target).endswith(".wav"):
            moved.append(target)
            if len(moved) == 5:
                raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", deadly)
    with pytest.raises(KeyboardInterrupt):
        world.get()
    monkeypatch.setattr(Path, "replace", real)
    world.server.serve(world.where(DEV), bad.status(500))  # the zip that was verified is still there
    is_right(world, published, world.get())


def changed(world, record, file, **entry):
    answer = json.loads(_answer(world, record))
    next(e for e in answer["files"] if e["key"] == file).update(entry)
    world.server.serve(f"/api/records/{record}", bad.whole(json.dumps(answer).encode()))


def _answer(world, record):
    files = [file for file, number in RECORDS.items() if number == record]
    entries = [{"key": file, "size": len(world.body(file)), "checksum": "md5:" + "0" * 32} for file in files]
    answer = {"files": entries, "metadata": {"title": "x", "license": {"id": "y"}}}
    return json.dumps(answer)


def test_what_a_kill_left_beside_files_is_removed(world, published):
    """A file that was being written when the process died has a name of its own."""
    outcome = world.get()
    left = (
        world.root / ".dcase2025t2.lock.json.abc.part",
        outcome.folder / "dev_data/raw/bearing/..fetched.json.abc.part",
        outcome.folder / ".zips/.record-15097779.json.part.json.abc.part",
        outcome.folder / ".zips/record-15097779.json.lock",
    )
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    is_right(world, published, world.get())


def test_a_record_that_changed_is_refused(world):
    world.get(parts=["dev"])
    shutil.rmtree(world.root / "dcase2025t2")
    changed(world, RECORDS[DEV], DEV)
    asked = len(world.server.asked)
    with pytest.raises(fetch.FetchError, match=f"{DEV} of record 15097779 has changed") as error:
        world.get(parts=["dev"])
    assert "the lock file" in str(error.value)
    assert not [path for path, _ in world.server.asked[asked:] if path.endswith(".zip")]


def test_the_catalogues_checksums_hold_from_the_start(world, monkeypatch):
    for record in ("7882613",):
        answer = {"files": [{"key": "dev_fan.zip", "size": 5, "checksum": "md5:" + "0" * 32}], "metadata": {}}
        world.server.serve(f"/api/records/{record}", bad.whole(json.dumps(answer).encode()))
    with pytest.raises(fetch.FetchError, match=r"changed.*catalogue"):
        world.prepare(name="dcase2023", machines=["fan"], parts=["dev"])
    world.server.serve("/api/records/7882613", bad.status(404))
    plan = world.prepare(name="dcase2023", machines=["fan"], parts=["dev"])
    assert plan.pending[0][1].md5 == CATALOG["dcase2023"].archives[3].md5 == "9348591e96fb0ad499a1e33b082562fc"
    assert "could not be asked" in plan.remarks[0]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (b"<html>please log in</html>", fetch.FetchError, "login page"),
        (b'{"files": [{"key": "dev_bearing.zip"}]}', fetch.FetchError, "not what Zenodo"),
        (b'{"files": [{"key": "dev_bearing.zip", "size": 1, "checksum": "sha1:0"}]}', fetch.FetchError, "no MD5"),
        (b'{"files": []}', fetch.FetchError, "has no dev_bearing.zip"),
        (None, DownloadError, "--from FOLDER"),
    ],
)
def test_a_record_that_cannot_be_read(world, answer, error, words):
    world.server.serve(f"/api/records/{RECORDS[DEV]}", bad.status(404) if answer is None else bad.whole(answer))
    with pytest.raises(error, match=words) as raised:
        world.prepare(parts=["dev"])
    assert "15097779" in str(raised.value)
    assert not (world.root / "dcase2025t2.lock.json").exists()


def test_a_damaged_lock_file_is_told(world):
    world.root.mkdir()
    (world.root / "dcase2025t2.lock.json").write_text("{}")
    with pytest.raises(fetch.FetchError, match=r"lock\.json cannot be read"):
        world.prepare()


def own_zips(published, folder: Path) -> Path:
    for path in published.site.rglob("*.zip"):
        if path.name in RECORDS:
            (folder / "downloads").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "downloads")
    return folder


def test_own_zips_are_verified_used_and_left_where_they_are(world, published, tmp_path):
    own = own_zips(published, tmp_path / "own")
    before = tree(own)
    is_right(world, published, world.get(source=own))
    assert tree(own) == before
    assert not [path for path, _ in world.server.asked if path.endswith(".zip")]


def test_own_zips_do_without_a_net(world, published, tmp_path):
    own = own_zips(published, tmp_path / "own")
    (own / "downloads" / TEST).unlink()
    outcome = world.get(source=own, mirror=None)  # Zenodo answers 404 here
    assert [a.file for a in outcome.done] == [DEV, TRAIN]
    assert [a.file for a, _ in outcome.failed] == [TEST]
    assert any("nobody vouches" in line for line in world.told.lines)


def test_a_wrong_zip_of_ones_own_is_refused_and_left(world, published, tmp_path):
    own = own_zips(published, tmp_path / "own")
    path = own / "downloads" / DEV
    path.write_bytes(path.read_bytes()[:-100])
    outcome = world.get(source=own)
    ((archive, problem),) = outcome.failed
    assert archive.file == DEV
    assert "bytes, not" in problem
    assert path.is_file()
    assert not (outcome.folder / "dev_data").exists()


def test_zips_are_kept_when_asked(world, published, tmp_path):
    outcome = world.get(keep=True, parts=["dev"])
    assert (outcome.folder / ".zips" / DEV).read_bytes() == world.body(DEV)
    own = own_zips(published, tmp_path / "own")
    outcome = world.get(keep=True, source=own)
    assert (outcome.folder / ".zips" / TEST).samefile(own / "downloads" / TEST)


def test_room_is_looked_for_before_the_first_byte(world, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 100_000))
    with pytest.raises(fetch.FetchError, match=r"needs about .* make room"):
        world.get()
    assert not [path for path, _ in world.server.asked if path.endswith(".zip")]


def test_a_full_disk_while_unpacking_leaves_nothing_and_goes_on_later(world, published, monkeypatch):
    real = archives._write_member

    def full(archive, zipped, member, path):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(archives, "_write_member", full)
    outcome = world.get()
    assert len(outcome.failed) == 3
    assert all("is full" in problem for _, problem in outcome.failed)
    assert not list(world.root.rglob("*.wav"))
    monkeypatch.setattr(archives, "_write_member", real)
    asked = len([path for path, _ in world.server.asked if path.endswith(".zip")])
    is_right(world, published, world.get())
    assert len([path for path, _ in world.server.asked if path.endswith(".zip")]) == asked  # the zips were kept


def test_a_clip_that_differs_is_not_overwritten(world, published):
    outcome = world.get(parts=["additional"])
    home = outcome.folder / "eval_data/raw/HomeCamera"
    (home / "test").mkdir()
    mine = home / "test" / "section_00_0001.wav"
    mine.write_bytes(b"mine")
    outcome = world.get()
    ((archive, problem),) = outcome.failed
    assert archive.file == TEST
    assert str(mine) in problem
    assert tree(home / "test") == {"section_00_0001.wav": b"mine"}
    mine.unlink()
    is_right(world, published, world.get())


def test_two_tables_of_one_machine_are_both_kept(world, published, tmp_path):
    ready, home = tmp_path / "ready", tmp_path / "home"
    for folder, text in ((ready, "new\n"), (home, "old\n")):
        folder.mkdir()
        (folder / "attributes_00.csv").write_text(text)
    fetch._merge(ready, home, CATALOG["dcase2025"].archives[-1])
    assert tree(home) == {"attributes_00.csv": b"old\n", "attributes_00_eval.csv": b"new\n"}


@pytest.mark.parametrize(
    ("name", "goes"),
    [
        ("fan/train/a.wav", "train/a.wav"),
        ("dev_data/fan/test/a.wav", "test/a.wav"),
        ("train/a.wav", "train/a.wav"),
        ("dev_fan/supplemental/a.wav", "supplemental/a.wav"),
        ("fan/attributes_00.csv", "attributes_00.csv"),
        ("attributes_00.csv", "attributes_00.csv"),
        ("valve/a/a.wav", None),
    ],
)
def test_archives_with_and_without_the_machines_folder(name, goes):
    archive = next(a for a in CATALOG["dcase2025"].archives if a.file == "dev_fan.zip")
    if goes is None:
        with pytest.raises(OffkeyError, match="right archive"):
            fetch._place(Path("x.zip"), archive, name)
    else:
        assert fetch._place(Path("x.zip"), archive, name) == goes


def test_a_missing_table_of_attributes_is_said(world, published, tmp_path, monkeypatch):
    import zipfile

    own = own_zips(published, tmp_path / "own")
    path = own / "downloads" / DEV
    with zipfile.ZipFile(path) as old:
        kept = {name: old.read(name) for name in old.namelist() if not name.endswith(".csv")}
    with zipfile.ZipFile(path, "w") as new:
        for name, content in kept.items():
            new.writestr(name, content)
    world.get(source=own, parts=["dev"], mirror=None)
    assert any(f"{DEV} has no table of attributes" in line for line in world.told.lines)


def test_catalogues_do_not_mix(world, published):
    """What came by one catalogue is never taken for what another one promises, in neither direction."""
    own = read_catalog(published.site / CATALOG_FILE)["dcase2025"]
    is_right(world, published, world.get(name=own))
    is_right(world, published, world.get(name=own))
    with pytest.raises(fetch.FetchError, match="fetched by a catalogue of somebody's own"):
        world.prepare()
    with pytest.raises(fetch.FetchError, match="fetched by a catalogue of somebody's own"):
        take_truth("dcase2025", world.root, published.mini.truth)
    assert not (world.root / "dcase2025t2" / "truth").exists()
    other = world.root.with_name("other")
    world.get(root=other)
    with pytest.raises(fetch.FetchError, match="fetched by offkey's own catalogue"):
        world.prepare(root=other, name=own)


def test_no_lock_file_overrules_the_catalogues_checksums(world, published):
    """A lock that somebody made does not make 2023's archives others than the catalogue says."""
    world.root.mkdir()
    files = {"dev_fan.zip": {"size": 5, "md5": "0" * 32}}
    record = {"number": "7882613", "title": "x", "licence": "y", "page": "", "asked": "", "files": files}
    told = {"format": 1, "dataset": "dcase2023", "records": {"7882613": record}}
    (world.root / "dcase2023t2.lock.json").write_text(json.dumps(told))
    home = world.root / "dcase2023t2/dev_data/raw/fan"
    home.mkdir(parents=True)
    (home / ".fetched.json").write_text(json.dumps({"dev_fan.zip": {"md5": "0" * 32, "files": {}}}))
    world.server.serve("/api/records/7882613", bad.status(404))
    plan = world.prepare(name="dcase2023", machines=["fan"], parts=["dev"])
    assert plan.present == ()
    assert plan.pending[0][1].md5 == CATALOG["dcase2023"].archives[3].md5


def test_a_kill_between_the_file_and_its_notes_leaves_no_notes(world, published, monkeypatch):
    """The zip stands under its own name, and what was known of its part is still beside it."""
    real = Path.replace

    def deadly(self, target):
        moved = real(self, target)
        if str(target).endswith(f".zips/{DEV}"):
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "replace", deadly)
    with pytest.raises(KeyboardInterrupt):
        world.get()
    monkeypatch.setattr(Path, "replace", real)
    is_right(world, published, world.get())
