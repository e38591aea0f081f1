"""Weights by name or path: where they lie, how they come there, and that they are what they are said to be.

A published file is verified by size and SHA-256 and converted to safetensors once; the conversion is trusted by the
hash that was recorded when it was written. Hashes are taken again only when a file has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offkey import files
from offkey.audio.cache import default_cache_dir
from offkey.downloading import PATIENT, Patience, download, megabytes, one_at_a_time
from offkey.encoders.catalog import CATALOG, Published, WeightsError, published
from offkey.progress import Progress

if TYPE_CHECKING:  # torch is loaded where tensors are
    from offkey.encoders.checkpoint import Checkpoint

__all__ = [
    "CATALOG",
    "Finding",
    "Published",
    "WeightsError",
    "at_hand",
    "check",
    "fetch",
    "find",
    "open_weights",
    "published",
    "take",
    "weights_dir",
]

_TICK = 50_000_000  # nanoseconds; a file changed this short ago could change again without showing another time


def weights_dir() -> Path:
    """Where weights are kept: `$OFFKEY_WEIGHTS`, else `weights` in the cache folder (`$OFFKEY_CACHE` and so on)."""
    own = os.environ.get("OFFKEY_WEIGHTS")
    return Path(own).expanduser() if own else default_cache_dir() / "weights"


def find(name_or_path: str | Path) -> Path:
    """The file of weights: an existing path, or the conversion or else the original of a published name.

    Raises WeightsError where it is not at hand; the message says how to get it.
    """
    return _locate(name_or_path)[1]


def open_weights(name_or_path: str | Path) -> Checkpoint:
    """Architecture and tensors of published weights, or of any file in a known form.

    A file that is no safetensors is converted once, into `weights_dir()`; where nothing can be written there it is
    read as it is. Raises WeightsError where the file is not at hand, damaged, changed, or not to be trusted.
    """
    entry, path = _locate(name_or_path)
    if entry is None:
        return _open_own(path)
    target = weights_dir() / entry.conversion
    if path == target:
        return _open_conversion(path, entry.sha256)
    _verify(path, entry)
    return _converted(path, entry.sha256, target)


def at_hand(entry: Published) -> Path | None:
    """The file of published weights in `weights_dir()` (not verified here), None where there is none."""
    for name in (entry.conversion, entry.file):
        path = weights_dir() / name
        if path.is_file():
            return path
    return None


def fetch(
    name: str,
    *,
    urls: tuple[str, ...] = (),
    progress: Progress | None = None,
    patience: Patience = PATIENT,
) -> Path:
    """Download published weights from `urls`, else from their mirrors; verify and convert them; returns the file.

    Raises DownloadError where that fails, WeightsError for an unknown name.
    """
    entry = published(name)
    folder = weights_dir()
    if not (folder / entry.conversion).is_file():
        download(
            urls or entry.urls,
            folder / entry.file,
            size=entry.size,
            digest=f"sha256:{entry.sha256}",
            progress=progress,
            patience=patience,
        )
    open_weights(entry.name)
    return find(entry.name)


def take(name: str, source: Path) -> Path:
    """Copy a file that was fetched by hand to where it belongs, if it is the published one; returns the file.

    Raises WeightsError where it is not.
    """
    entry = published(name)
    if source.is_dir():
        source = source / entry.file
    if not source.is_file():
        raise WeightsError(f"{source} is not there")
    _verify(source, entry, remembered=False)
    folder = weights_dir()
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / entry.file
    if not (place.exists() and place.samefile(source)):
        temporary = folder / f".{entry.file}.{os.getpid()}.part"
        try:
            shutil.copyfile(source, temporary)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
    open_weights(entry.name)
    return find(entry.name)


@dataclass(frozen=True, slots=True)
class Finding:
    """What `check` says of one file: `problem` is None where it is good.

    `parameters` counts numbers in floating-point tensors but for the running statistics of batch norm.
    """

    name: str
    path: Path | None
    problem: str | None
    parameters: int = 0
    tensors: int = 0
    architecture: dict[str, Any] = field(default_factory=dict)


def check(name_or_path: str | Path) -> Finding:
    """Hash a file anew, load it, and say what is in it."""
    name, path = str(name_or_path), None
    try:
        entry, path = _locate(name_or_path)
        name = entry.name if entry is not None else name
        with suppress(OSError):
            _record_of(path).unlink(missing_ok=True)
        checkpoint = open_weights(name_or_path)
    except WeightsError as error:
        return Finding(name, path, str(error))
    learnt = [
        tensor
        for key, tensor in checkpoint.tensors.items()
        if tensor.is_floating_point() and not key.endswith(("running_mean", "running_var"))
    ]
    return Finding(
        name,
        path,
        None,
        sum(tensor.numel() for tensor in learnt),
        len(checkpoint.tensors),
        dict(checkpoint.architecture),
    )


def _locate(name_or_path: str | Path) -> tuple[Published | None, Path]:
    text = str(name_or_path)
    path = Path(name_or_path).expanduser()
    is_path = isinstance(name_or_path, Path) or len(path.parts) > 1 or bool(path.suffix)
    if is_path and path.exists():
        return None, path
    if isinstance(name_or_path, Path) or len(path.parts) > 1:
        raise WeightsError(f"{path} is not there; `offkey weights list` names the weights that can be fetched")
    try:
        entry = published(text)
    except WeightsError:
        if path.exists():
            return None, path
        raise
    found = at_hand(entry)
    if found is None:
        raise WeightsError(_absent(entry))
    return entry, found


def _absent(entry: Published) -> str:
    return (
        f"the weights {entry.name} are not here: no {entry.file} ({megabytes(entry.size)}) in {weights_dir()}\n"
        f"    fetch them: offkey weights fetch {entry.name}\n"
        f"    by hand: get {entry.file} ({entry.size} bytes, sha256 {entry.sha256}) and put it into that folder, or\n"
        f"        offkey weights fetch {entry.name} --from FILE; it is at\n"
        + "".join(f"        {url}\n" for url in entry.urls)
        + "    or use a file of your own: --set encoder.weights=PATH\n"
        + ("" if entry.encoder == "efficientat" else "    or a light encoder: --set encoder.name=efficientat\n")
        + "    or do without: --set encoder.name=none"
    )


def _verify(path: Path, entry: Published, *, remembered: bool = True) -> None:
    """Raise WeightsError where a file is not the published one."""
    size = path.stat().st_size
    if size < entry.size:
        problem = f"it is cut short: {size} of {entry.size} bytes"
    elif size > entry.size:
        problem = f"it has {size} bytes, not {entry.size}"
    else:
        found = _sha256(path, remembered=remembered)
        if found == entry.sha256:
            return
        problem = f"its sha256 is {found}, not {entry.sha256}"
    raise WeightsError(
        f"{path} is not the published {entry.name}: {problem}. Remove it and fetch it again "
        f"(`offkey weights fetch {entry.name}`); --set encoder.weights=PATH takes a file of your own as it is"
    )


def _open_own(path: Path) -> Checkpoint:
    from offkey.encoders.checkpoint import file_kind, read_checkpoint

    if file_kind(path) == "safetensors":
        return _open_conversion(path, None) if _promise_of(path).is_file() else read_checkpoint(path)
    source = _sha256(path)
    own = weights_dir() / f"converted/{source}.safetensors"
    fetched = (weights_dir() / entry.conversion for entry in CATALOG.values() if entry.sha256 == source)
    # never made under a published name: naming a file once would put it at hand, and `auto` would choose otherwise
    return _converted(path, source, next((there for there in fetched if there.is_file()), own))


def _converted(original: Path, source: str, target: Path) -> Checkpoint:
    """The conversion of `original`, whose hash is `source`; made first where it is not there."""
    from offkey.encoders.checkpoint import read_checkpoint, write_checkpoint

    if not target.is_file():
        checkpoint = read_checkpoint(original)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(target):
                if not target.is_file():
                    fresh = target.with_name(f".{target.name}.{os.getpid()}.new")
                    try:
                        write_checkpoint(checkpoint, fresh, source)
                        promise = {"sha256": files.sha256(fresh), "source_sha256": source}
                        # before the rename: a conversion without its promise would not be trusted
                        files.write_whole(_promise_of(target), json.dumps(promise, indent=1) + "\n")
                        fresh.replace(target)
                    finally:
                        fresh.unlink(missing_ok=True)
        except OSError:  # no room, or the folder is not ours: slower, and no less right
            return checkpoint
    return _open_conversion(target, source)


def _open_conversion(path: Path, source: str | None) -> Checkpoint:
    """A conversion whose bytes are those that were written; made from the file of hash `source`, if that is given."""
    from offkey.encoders.checkpoint import read_checkpoint

    advice = "remove it, and it is made again from the original"
    try:
        promise = json.loads(_promise_of(path).read_text(encoding="utf-8"))
        expected, made_from = promise["sha256"], promise["source_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not trusted: nothing beside it says what was written into it; {advice}"
        ) from error
    if _sha256(path) != expected:
        raise WeightsError(f"{path} was changed after it was written, or is damaged; {advice}")
    checkpoint = read_checkpoint(path)
    if checkpoint.source_sha256 != made_from or (source is not None and made_from != source):
        raise WeightsError(f"{path} was not made from the weights that its name promises; {advice}")
    return checkpoint


def _promise_of(conversion: Path) -> Path:
    return conversion.with_name(conversion.name + ".json")


def _record_of(path: Path) -> Path:
    key = hashlib.blake2b(str(path.resolve()).encode(), digest_size=16).hexdigest()
    return weights_dir() / "seen" / f"{key}.json"


def _sha256(path: Path, *, remembered: bool = True) -> str:
    """The hash of a file; taken from the last time where neither its size nor its times have changed since."""
    facts = path.stat()
    state = {"path": str(path.resolve()), "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
    state["ctime_ns"] = facts.st_ctime_ns  # nobody sets this one back
    record = _record_of(path)
    if remembered:
        with suppress(OSError, ValueError, AttributeError):
            last = json.loads(record.read_text(encoding="utf-8"))
            found = last.pop("sha256", None)
            if last == state and isinstance(found, str):
                return found
    digest = files.sha256(path)
    if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) > _TICK:
        with suppress(OSError):
            files.write_whole(record, json.dumps(state | {"sha256": digest}) + "\n")
    return digest
