"""Weights on disk: found by name or path, verified, converted once, refused where they are not what they should be."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import pickle
import shutil
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from offkey import files
from offkey.downloading import DownloadError, Patience
from offkey.encoders import ENCODERS, encoder_class, weights
from offkey.encoders.catalog import CATALOG, Published, published
from offkey.encoders.checkpoint import convert, read_checkpoint
from offkey.encoders.weights import WeightsError, at_hand, check, fetch, find, open_weights, take, weights_dir

_location = importlib.util.spec_from_file_location("bad", Path(__file__).parents[1] / "misbehaving_server.py")
bad = importlib.util.module_from_spec(_location)
_location.loader.exec_module(bad)

CFG = {"encoder_layers": 2, "encoder_embed_dim": 8, "dropout": 0.1, "deep_norm": True, "activation_fn": "gelu"}


def state() -> dict[str, torch.Tensor]:
    """A state dict with what official ones have: memory shared between layers, whole numbers, views, halves."""
    torch.manual_seed(0)
    bias = torch.randn(32, 4)
    return OrderedDict(
        {
            "layers.0.relative_attention_bias.weight": bias,
            "layers.1.relative_attention_bias.weight": bias,
            "patch_embedding.weight": torch.randn(8, 1, 4, 4),
            "fc.weight": torch.randn(6, 5).t(),
            "part": torch.arange(20.0)[5:9],
            "half": torch.randn(3).half(),
            "bn.num_batches_tracked": torch.tensor(7),
            "bn.running_mean": torch.zeros(4),
        }
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "weights"
    monkeypatch.setenv("OFFKEY_WEIGHTS", str(place))
    return place


@pytest.fixture
def official(tmp_path: Path) -> Path:
    path = tmp_path / "official.pt"
    torch.save({"cfg": CFG, "model": state()}, path)
    return path


@pytest.fixture
def tiny(official: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A published file of a few kilobytes, under the name `Tiny`."""
    entry = Published(
        "Tiny", "beats", "Tiny.pt", official.stat().st_size, files.sha256(official), "MIT", "here", ("http://x/",), ""
    )
    monkeypatch.setitem(CATALOG, "Tiny", entry)
    return entry


@pytest.fixture
def placed(tiny: Published, official: Path, folder: Path) -> Path:
    """The published file where it belongs."""
    folder.mkdir()
    return Path(shutil.copy(official, folder / tiny.file))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = bad.Server()
    yield running
    running.close()


def same(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)


# ---- the catalogue


def test_the_catalogue_is_that_of_the_facts(shared_data: Path) -> None:
    facts = json.loads((shared_data.parent / "facts" / "beats_checkpoints.json").read_text())
    beats = {entry.file: entry for entry in CATALOG.values() if entry.encoder == "beats"}
    assert {name: (entry.size, entry.sha256) for name, entry in beats.items()} == {
        name: (fact["size"], fact["sha256"]) for name, fact in facts.items()
    }


def test_every_entry_can_be_fetched_and_told_apart() -> None:
    assert len({entry.sha256 for entry in CATALOG.values()}) == len(CATALOG) == 16
    for name, entry in CATALOG.items():
        assert name == entry.name
        assert entry.urls
        assert all(url.startswith("https://") and url.endswith(entry.file) for url in entry.urls)
        assert entry.encoder in {"beats", "efficientat"}


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("BEATs_iter3", "BEATs_iter3"), ("beats_ITER3", "BEATs_iter3"), ("BEATs_iter3.pt", "BEATs_iter3"),
        ("BEATs_iter3.safetensors", "BEATs_iter3"), ("MN04_AS", "mn04_as"),
        ("mn04_as_mAP_432.pt", "mn04_as"), ("BEATs_iter3+_AS2M", "BEATs_iter3_plus_AS2M"),
    ],
)  # fmt: skip
def test_names_are_known_in_many_spellings(asked: str, name: str) -> None:
    assert published(asked).name == name


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_encoder_stands_for_its_usual_weights(encoder: str) -> None:
    assert published(encoder).name == encoder_class(encoder).usual_weights
    assert published(encoder).encoder == encoder


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    with pytest.raises(WeightsError, match=r"'BEATs_iter4'.*did you mean BEATs_iter"):
        find("BEATs_iter4")
    with pytest.raises(WeightsError, match="`offkey weights list` names all"):
        find("zzz")


# ---- where weights lie


def test_the_folder_is_told_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OFFKEY_WEIGHTS", str(tmp_path / "own"))
    assert weights_dir() == tmp_path / "own"
    monkeypatch.delenv("OFFKEY_WEIGHTS")
    monkeypatch.setenv("OFFKEY_CACHE", str(tmp_path / "cache"))
    assert weights_dir() == tmp_path / "cache" / "weights"


def test_absent_weights_say_how_to_get_them(folder: Path) -> None:
    with pytest.raises(WeightsError) as raised:
        open_weights("beats_iter3")
    entry, text = CATALOG["BEATs_iter3"], str(raised.value)
    ways = ["offkey weights fetch BEATs_iter3", "--set encoder.weights=PATH", "--set encoder.name=none"]
    for word in [*ways, *entry.urls, entry.file, str(entry.size), entry.sha256, str(folder), "361.5 MB"]:
        assert word in text


def test_a_path_wins_where_it_looks_like_one(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(state(), "BEATs_iter3.pt")
    torch.save(state(), "mn04_as")
    assert find("BEATs_iter3.pt") == Path("BEATs_iter3.pt")
    with pytest.raises(WeightsError, match="are not here"):
        find("mn04_as")
    assert find("./mn04_as") == find(Path("mn04_as"))
    for absent in ("no/such/file", Path("nothing.pt"), Path("mn04_as_")):
        with pytest.raises(WeightsError, match="is not there"):
            find(absent)


# ---- what can be read


def test_the_official_form_is_read(official: Path) -> None:
    checkpoint = read_checkpoint(official)
    assert checkpoint.architecture == CFG
    assert checkpoint.source_sha256 is None
    same(checkpoint.tensors, state())


def test_class_names_beside_the_weights_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "tuned.pt"
    torch.save({"cfg": CFG, "model": state(), "label_dict": {0: "/m/09x0r"}}, path)
    same(read_checkpoint(path).tensors, state())
    torch.save({"cfg": CFG, "model": state(), "optimizer": {}}, path)
    with pytest.raises(WeightsError, match="optimizer"):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_state_dicts_of_both_ages_are_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "plain.bin"
    torch.save(state(), path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert checkpoint.architecture == {}
    same(checkpoint.tensors, state())


def test_safetensors_of_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"a": torch.arange(3.0)}, path, metadata={"format": "pt"})
    checkpoint = read_checkpoint(path)
    assert (checkpoint.architecture, checkpoint.source_sha256) == ({}, None)
    same(checkpoint.tensors, {"a": torch.arange(3.0)})


def test_a_conversion_says_the_same(official: Path, tmp_path: Path) -> None:
    out = convert(official, tmp_path / "new" / "out.safetensors")
    checkpoint = read_checkpoint(out)
    assert checkpoint.architecture == CFG
    assert checkpoint.source_sha256 == files.sha256(official)
    same(checkpoint.tensors, state())
    again = convert(out, tmp_path / "again.safetensors")
    assert read_checkpoint(again).source_sha256 == checkpoint.source_sha256
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_tuples_become_lists(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"cfg": {"sizes": (1, (2, None))}, "model": state()}, path)
    assert read_checkpoint(path).architecture == {"sizes": [1, [2, None]]}


# ---- what is refused


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle", "cfg", "folded"])
def test_code_in_a_file_is_not_run(folder: Path, tmp_path: Path, kind: str) -> None:
    mark, path = tmp_path / "mark", tmp_path / "bomb.pt"
    content = {"cfg": Bomb(mark), "model": state()} if kind == "cfg" else {"model": state(), "more": [Bomb(mark)]}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(mark)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old")
    with pytest.raises(WeightsError, match=r"wants to run code.*not trusted") as raised:
        open_weights(path)
    assert "weights_only" not in str(raised.value)  # torch's advice would open the door
    assert check(str(path)).problem is not None
    assert not mark.exists()
    torch.load(path, weights_only=False) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()  # the bomb was a real one


def test_a_class_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"cfg": argparse.Namespace(a=1), "model": state()}, path)
    with pytest.raises(WeightsError, match=r"argparse\.Namespace"):
        read_checkpoint(path)


def test_a_program_is_refused(tmp_path: Path, official: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(official) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
        new.writestr("official/code/__torch__.py", "boom")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "Git LFS pointer"),
        (b"RIFF....WAVEfmt ", "is no file of weights"),
        (b"\x80\x02}q\x00", "damaged"),
        (b"PK\x03\x04 and no more", "cut short"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00{not a header...", "damaged, or no safetensors"),
    ],
)
def test_what_is_no_weights_is_named_for_what_it_is(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=words) as raised:
        read_checkpoint(path)
    assert str(path) in str(raised.value)


def test_folders_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        read_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="is not there"):
        read_checkpoint(tmp_path / "no")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "no weights by name"), ({}, "no weights by name"), ({"cfg": CFG, "model": {}}, "holds no weights"),
        ({"a": torch.zeros(2), "b": 3}, "'b' is int"), ({"model": {"a": "text"}}, "'a' is str"),
        ({"model": {3: torch.zeros(2)}}, "3 is Tensor"), ({"a": {"b": torch.zeros(2)}}, "'a' is dict"),
        ({"cfg": 3, "model": {"a": torch.zeros(2)}}, "'cfg' is int"),
        ({"cfg": {"x": [1, float("nan")]}, "model": {"a": torch.zeros(2)}}, r"cfg\.x\.1 is nan"),
        ({"cfg": {"x": {"y": torch.zeros(2)}}, "model": {"a": torch.zeros(2)}}, r"cfg\.x\.y is tensor"),
        ({"a": torch.eye(3).to_sparse()}, "no plain tensor"),
    ],
)  # fmt: skip
def test_other_structures_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=words):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("form", ["official", "old", "safetensors"])
def test_cut_files_are_refused(official: Path, tmp_path: Path, share: float, form: str) -> None:
    path = official
    if form == "old":
        torch.save(state(), path := tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    elif form == "safetensors":
        path = convert(official, tmp_path / "x.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[: max(20, int(len(content) * share))])
    with pytest.raises(WeightsError):
        read_checkpoint(path)


def test_one_changed_number_in_an_official_file_is_noticed(official: Path) -> None:
    content = bytearray(official.read_bytes())
    place = bytes(content).index(state()["patch_embedding.weight"].numpy().tobytes())
    content[place + 2] ^= 1
    official.write_bytes(content)
    with pytest.raises(WeightsError, match="has changed"):
        read_checkpoint(official)


def test_archives_without_sums_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), path)
    finally:
        torch.serialization.set_crc32_options(before)
    same(read_checkpoint(path).tensors, state())


def test_a_conversion_from_the_future_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(
        {"a": torch.zeros(1)}, path, metadata={"format": "offkey-weights-2", "architecture": "{}", "source_sha256": ""}
    )
    with pytest.raises(WeightsError, match="newer offkey"):
        read_checkpoint(path)


@pytest.mark.parametrize("architecture", ["{", "[]"])
def test_a_damaged_architecture_is_refused(tmp_path: Path, architecture: str) -> None:
    path = tmp_path / "x.safetensors"
    facts = {"format": "offkey-weights-1", "architecture": architecture, "source_sha256": ""}
    save_file({"a": torch.zeros(1)}, path, metadata=facts)
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(path)


# ---- opening: verified, converted once


def test_published_weights_are_verified_and_converted_once(
    placed: Path, tiny: Published, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same(open_weights("tiny").tensors, state())
    conversion = folder / "Tiny.safetensors"
    assert find("tiny") == conversion
    promise = json.loads((folder / "Tiny.safetensors.json").read_text())
    assert promise == {"sha256": files.sha256(conversion), "source_sha256": tiny.sha256}
    assert conversion.stat().st_mode & 0o777 == files.new_file_mode()  # a folder of weights may be shared
    written = conversion.stat().st_mtime_ns
    checkpoint = open_weights("tiny")
    assert (checkpoint.path, checkpoint.architecture) == (conversion, CFG)
    assert conversion.stat().st_mtime_ns == written
    placed.unlink()  # the conversion stands on its own
    same(open_weights("tiny").tensors, state())
    assert {path.name for path in folder.iterdir()} - {"seen"} == {"Tiny.safetensors", "Tiny.safetensors.json"}


def test_unchanged_files_are_hashed_once(placed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_weights("tiny")
    hashed: list[Path] = []
    real = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, *rest: hashed.append(Path(file.name)) or real(file, *rest))
    monkeypatch.setattr(weights, "_TICK", -(10**18))  # the files of this test are young
    conversion = folder / "Tiny.safetensors"
    open_weights("tiny")
    open_weights("tiny")
    open_weights("tiny")
    assert hashed == [conversion]
    os.utime(conversion)
    open_weights("tiny")
    assert hashed == [conversion] * 2
    assert check("tiny").problem is None  # looks anew
    assert hashed == [conversion] * 3


@pytest.mark.parametrize("harm", ["one bit", "old times", "another", "no promise", "broken promise", "other source"])
def test_a_tampered_conversion_is_refused(
    placed: Path, tiny: Published, folder: Path, tmp_path: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if harm == "old times":  # what was hashed is remembered, however young
        monkeypatch.setattr(weights, "_TICK", -(10**18))
    open_weights("tiny")
    open_weights("tiny")
    conversion, promise = folder / "Tiny.safetensors", folder / "Tiny.safetensors.json"
    if harm in {"one bit", "old times"}:
        times = conversion.stat()
        time.sleep(0.02)  # longer than the clock of the file system takes for a tick
        content = bytearray(conversion.read_bytes())
        content[-3] ^= 4
        conversion.write_bytes(content)
        if harm == "old times":
            os.utime(conversion, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif harm == "another":
        other = tmp_path / "other.pt"
        torch.save({"cfg": {}, "model": {"a": torch.zeros(3)}}, other)
        convert(other, conversion)
    elif harm == "no promise":
        promise.unlink()
    elif harm == "broken promise":
        promise.write_text("{")
    else:  # somebody wrote a whole pair, of other weights
        other = tmp_path / "other.pt"
        torch.save(state(), other)
        convert(other, conversion)
        promise.write_text(json.dumps({"sha256": files.sha256(conversion), "source_sha256": files.sha256(other)}))
    with pytest.raises(WeightsError, match=r"Tiny\.safetensors .*remove it") as raised:
        open_weights("tiny")
    assert str(conversion) in str(raised.value)
    assert check("tiny").problem is not None
    conversion.unlink()
    same(open_weights("tiny").tensors, state())  # the advice is good


def test_a_promise_without_conversion_is_made_good(placed: Path, folder: Path) -> None:
    (folder / "Tiny.safetensors.json").write_text('{"sha256": "of a process that died", "source_sha256": ""}')
    same(open_weights("tiny").tensors, state())
    same(open_weights("tiny").tensors, state())


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda b: b[:-100], "cut short"), (lambda b: b + b"x", "bytes, not"), (lambda b: b[:-1] + b"x", "its sha256 is")],
)
def test_an_original_that_is_not_the_published_one_is_refused(
    placed: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    placed.write_bytes(change(placed.read_bytes()))
    with pytest.raises(WeightsError, match=words) as raised:
        open_weights("tiny")
    assert "offkey weights fetch Tiny" in str(raised.value)
    assert check("tiny").problem == str(raised.value)


def test_own_files_are_converted_once_and_by_content(folder: Path, official: Path, tmp_path: Path) -> None:
    same(open_weights(official).tensors, state())
    first = official.read_bytes()
    conversion = folder / "converted" / f"{files.sha256(official)}.safetensors"
    assert open_weights(str(official)).path == conversion
    torch.save({"cfg": {}, "model": {"a": torch.ones(3)}}, official)  # trained on, under the same name
    same(open_weights(official).tensors, {"a": torch.ones(3)})
    assert len(list((folder / "converted").glob("*.safetensors"))) == 2
    conversion.write_bytes(conversion.read_bytes()[:-1] + b"\x01")
    official.write_bytes(first)
    with pytest.raises(WeightsError, match="changed after it was written"):
        open_weights(official)


def test_naming_a_published_file_does_not_put_it_at_hand(tiny: Published, official: Path, folder: Path) -> None:
    assert open_weights(official).path == folder / "converted" / f"{tiny.sha256}.safetensors"
    assert at_hand(tiny) is None  # or `auto` would choose otherwise after another system was given a path
    take("tiny", official)
    assert open_weights(official).path == folder / "Tiny.safetensors"  # one is enough
    same(open_weights("tiny").tensors, state())


def test_own_safetensors_are_read_where_they_lie(folder: Path, official: Path, tmp_path: Path) -> None:
    own = convert(official, tmp_path / "own.safetensors")
    checkpoint = open_weights(own)
    assert (checkpoint.path, checkpoint.architecture) == (own, CFG)
    assert not folder.exists()


def test_where_nothing_can_be_written_it_goes_on_without(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OFFKEY_WEIGHTS", str(tmp_path / "file" / "weights"))
    checkpoint = open_weights(official)
    assert checkpoint.path == official
    same(checkpoint.tensors, state())


def test_a_full_disk_leaves_no_half_conversion(placed: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(_: object, path: Path, **__: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("offkey.encoders.checkpoint.save_file", full)
    assert open_weights("tiny").path == placed
    assert sorted(path.name for path in folder.iterdir()) in (["Tiny.pt"], ["Tiny.pt", "seen"])


def test_many_may_convert_at_once(official: Path, folder: Path) -> None:
    together = threading.Barrier(4)

    def work(_: int) -> int:
        together.wait(10)
        return len(open_weights(official).tensors)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [len(state())] * 4
    assert len(list((folder / "converted").glob("*"))) == 2  # one conversion and its promise


# ---- getting them


def test_fetched_weights_are_verified_and_converted(server: Any, tiny: Published, official: Path, folder: Path) -> None:
    body = official.read_bytes()
    urls = server.serve("/a", bad.status(404)), server.serve("/b", bad.broken(body, 1000), bad.whole(body))
    patience = Patience(sleep=lambda _: None)
    assert fetch("TINY", urls=urls, patience=patience) == folder / "Tiny.safetensors"
    assert server.ranges("/b") == [None, "bytes=1000-"]
    same(open_weights("tiny").tensors, state())
    (folder / "Tiny.pt").unlink()
    fetch("tiny", urls=urls, patience=patience)  # the conversion is enough
    assert len(server.asked) == 3


def test_wrong_weights_do_not_arrive(server: Any, tiny: Published, folder: Path) -> None:
    url = server.serve("/a", bad.whole(b"x" * tiny.size))
    with pytest.raises(DownloadError, match="it sent another file"):
        fetch("tiny", urls=(url,), patience=Patience(sleep=lambda _: None))
    assert at_hand(tiny) is None


def test_a_copy_got_by_hand_is_taken(tiny: Published, official: Path, folder: Path, tmp_path: Path) -> None:
    assert take("tiny", official) == folder / "Tiny.safetensors"
    assert (folder / "Tiny.pt").read_bytes() == official.read_bytes()
    assert take("tiny", folder) == folder / "Tiny.safetensors"  # a folder; here even the place itself
    with pytest.raises(WeightsError, match="is not there"):
        take("tiny", tmp_path / "absent.pt")


def test_a_wrong_copy_is_not_taken(tiny: Published, official: Path, folder: Path) -> None:
    official.write_bytes(official.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match="not the published Tiny"):
        take("tiny", official)
    assert not (folder / "Tiny.pt").exists()


def test_check_tells_what_is_in_a_file(placed: Path) -> None:
    finding = check("tiny")
    assert (finding.name, finding.problem, finding.architecture) == ("Tiny", None, CFG)
    assert finding.tensors == len(state())
    assert finding.parameters == 2 * 32 * 4 + 8 * 16 + 30 + 4 + 3  # neither counters nor running statistics


def test_the_published_weights_of_mn04(shared_data: Path, folder: Path) -> None:
    entry = CATALOG["mn04_as"]
    path = shared_data / "weights" / entry.file
    assert path.stat().st_size == entry.size
    assert files.sha256(path) == entry.sha256
    assert take("mn04_as", path.parent) == folder / "mn04_as_mAP_432.safetensors"
    finding = check("mn04_as")
    assert finding.problem is None
    assert 0.97e6 < finding.parameters < 0.99e6
    same(open_weights("mn04_as").tensors, dict(read_checkpoint(path).tensors))
