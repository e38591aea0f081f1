"""Weights in a file: what an official checkpoint or its safetensors conversion holds."""

from __future__ import annotations

import json
import math
import os
import pickle  # for the name of its error: torch.load reads weights only
import re
import secrets
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from offkey.encoders.catalog import WeightsError
from offkey.files import new_file_mode, sha256

__all__ = ["FORMAT", "Checkpoint", "WeightsError", "convert", "file_kind", "read_checkpoint", "write_checkpoint"]

FORMAT = "offkey-weights-1"
_BESIDE_THE_WEIGHTS = {"label_dict"}  # fine-tuned BEATs files name AudioSet's classes


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the architecture that the file tells ({} where it tells none).

    `source_sha256` is, for a conversion, the hash of the file that it was made from.
    """

    path: Path
    architecture: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    source_sha256: str | None = None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of weights; its tensors are mapped from the disk, not copied.

    Three forms are known: an official `{"cfg": …, "model": …}` (of what stands beside the two only the class names of
    fine-tuned BEATs files are known, and left out), a plain state dict, and safetensors, with or without the
    architecture that `convert` writes. No code in a file is ever run.

    Raises WeightsError where the file is absent, empty, damaged, of another form, or would need code to be run.
    """
    return _read_safetensors(path) if file_kind(path) == "safetensors" else _read_torch(path)


def convert(path: Path, out: Path) -> Path:
    """Write the safetensors form of a file of weights to `out`, whole or not at all.

    Raises WeightsError as `read_checkpoint` does, OSError where `out` cannot be written.
    """
    checkpoint = read_checkpoint(path)
    return write_checkpoint(checkpoint, out, checkpoint.source_sha256 or sha256(path))


def write_checkpoint(checkpoint: Checkpoint, out: Path, source_sha256: str) -> Path:
    """Write tensors and architecture as safetensors; `source_sha256` is the hash of the file they came from."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    told = {
        "format": FORMAT,
        "architecture": json.dumps(checkpoint.architecture, sort_keys=True),
        "source_sha256": source_sha256,
    }
    try:
        save_file(_apart(checkpoint.tensors), temporary, metadata=told)
        temporary.chmod(new_file_mode())  # the library makes it private; a folder of weights may be shared
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(out)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(f"{out} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return out


def file_kind(path: Path) -> Literal["torch", "safetensors"]:
    """What a file of weights is by its first bytes; raises WeightsError where it is none."""
    try:
        if path.is_dir():
            raise WeightsError(f"{path} is a folder, not a file of weights")
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise WeightsError(
            f"{path} is not there; `offkey weights list` names the weights that can be fetched"
        ) from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if not head:
        raise WeightsError(f"{path} is empty; copy or fetch it again")
    if head[:4] == b"PK\x03\x04":
        return "torch"
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} only points to weights (a Git LFS pointer); fetch the file itself")
    if head.lstrip().startswith(b"<"):
        raise WeightsError(f"{path} is a web page, not weights: the address led to a page about them")
    if head[:1] == b"\x80":
        return "torch"  # how torch saved before 2020
    raise WeightsError(f"{path} is no file of weights: neither torch nor safetensors, or its beginning is damaged")


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            form = told.get("format", "")
            if form.startswith("offkey-weights-") and form != FORMAT:
                raise WeightsError(f"{path} was written by a newer offkey ({form}); this one reads {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        architecture = json.loads(told["architecture"]) if form == FORMAT else {}
        if not isinstance(architecture, dict):
            raise ValueError("the architecture is no table")
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        raise WeightsError(f"{path} is damaged, or no safetensors file: {error}") from error
    if not tensors:
        raise WeightsError(f"{path} holds no weights")
    return Checkpoint(path, architecture, tensors, told.get("source_sha256") if form == FORMAT else None)


def _read_torch(path: Path) -> Checkpoint:
    zipped = zipfile.is_zipfile(path)
    with path.open("rb") as file:
        broken = not zipped and file.read(4) == b"PK\x03\x04"  # the index at the end is missing
    if broken:
        raise WeightsError(f"{path} is cut short; copy or fetch it again")
    if zipped:
        _look_into(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickles; what they need is refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # torch's own words are not passed on: they advise to open the file all the same
        if not re.search(r"GLOBAL|[Uu]nsupported|unrecognized|not allowed", str(error)):
            raise WeightsError(f"{path} is damaged, or no file of weights; copy or fetch it again") from error
        wanted = re.search(r"GLOBAL ([\w.]+[\w])", str(error))
        raise WeightsError(
            # an archive's sums were right, so that it is not damage that looks like code
            f"{path} {'' if zipped else 'is damaged, or '}wants to run code when it is opened"
            f"{f' ({wanted[1]})' if wanted else ''}; it is not trusted and was not opened. Weights alone need no code: "
            "save them again as a state dict, or as safetensors"
        ) from error
    except (RuntimeError, ValueError, EOFError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise WeightsError(f"{path} is damaged, or no file of weights: {_first_line(error)}") from error
    return _understood(path, content)


def _look_into(path: Path) -> None:
    """Refuse archives with programs in them, and those of which a part was changed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any("/code/" in entry.filename for entry in entries):
                raise WeightsError(
                    f"{path} holds a program (TorchScript), which is not run; save its state dict instead"
                )
            # torch can be told to leave the sums out, and then all of them are wrong
            wrong = {entry.filename for entry in entries if not _sum_is_right(archive, entry)}
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, EOFError) as error:
        raise WeightsError(f"{path} is damaged: {_first_line(error)}; copy or fetch it again") from error
    if 0 < len(wrong) < len(entries):
        raise WeightsError(f"{path} is damaged: {sorted(wrong)[0]} in it has changed; copy or fetch it again")


def _sum_is_right(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(entry) as file:
            while file.read(1 << 20):
                pass
    except zipfile.BadZipFile as error:
        if "CRC" not in str(error):
            raise
        return False
    return True


def _understood(path: Path, content: object) -> Checkpoint:
    known = "known are {'cfg', 'model'} and plain state dicts"
    if not isinstance(content, dict) or not content:
        raise WeightsError(f"{path} holds no weights by name but {type(content).__name__}; {known}")
    architecture: Mapping[str, Any] = {}
    weights: Any = content
    if isinstance(content.get("model"), Mapping):
        extra = [str(key) for key in content if key not in {"cfg", "model", *_BESIDE_THE_WEIGHTS}]
        if extra:
            raise WeightsError(f"{path} holds more than 'cfg' and 'model': {', '.join(extra[:5])}; {known}")
        weights = content["model"]
        cfg = content.get("cfg", {})
        if not isinstance(cfg, Mapping):
            raise WeightsError(f"{path}: 'cfg' is {type(cfg).__name__}, not a table of names and values")
        architecture = {str(key): _plain(path, f"cfg.{key}", value) for key, value in cfg.items()}
    if not weights:
        raise WeightsError(f"{path} holds no weights")
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"{path}: {name!r} is {type(value).__name__}, not a tensor with a name; {known}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise WeightsError(f"{path}: {name!r} is no plain tensor ({value.layout}, {value.dtype})")
        tensors[name] = value.detach()
    return Checkpoint(path, architecture, tensors)


def _plain(path: Path, name: str, value: object) -> Any:
    """A value as JSON has it: tuples become lists; what JSON lacks is refused."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        return [_plain(path, f"{name}.{number}", entry) for number, entry in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(key): _plain(path, f"{name}.{key}", entry) for key, entry in value.items()}
    raise WeightsError(f"{path}: {name} is {value!r:.60}, which is no plain value")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share no memory, which safetensors wants; only those that do are copied."""
    taken: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in taken
        # .contiguous() alone would hand back the shared memory itself where it is contiguous already
        apart[name] = tensor if alone and tensor.is_contiguous() else tensor.contiguous().clone()
        taken.add(storage.data_ptr())
    return apart


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0][:200] or type(error).__name__
