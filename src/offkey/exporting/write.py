"""A detector to a folder of ONNX files: written beside its place, checked there, and only then put into it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offkey.detector import Detector
from offkey.exporting.check import LARGEST_SHIFT, Check, check_export
from offkey.exporting.graph import INPUTS, OUTPUTS, DetectorGraph, graphs_of
from offkey.exporting.problem import ExportError
from offkey.exporting.quantise import quantise
from offkey.exporting.scorers import calibration_pools
from offkey.exporting.trace import LARGEST, onnx_bytes, require, tidy
from offkey.files import write_whole
from offkey.manifest import MANIFEST, write_manifest
from offkey.runtime.exported import DESCRIPTION, FORMAT, KIND, Exported, is_exported
from offkey.types import ClipMeta

__all__ = ["Export", "export_detector"]


@dataclass(frozen=True)
class Export:
    """What was written: the `folder`, `megabytes` of ONNX files in it, and the `check` against the detector.

    With 8-bit weights the float32 form was checked first: `exact`.
    """

    folder: Path
    megabytes: float
    check: Check
    exact: Check


def export_detector(
    detector: Detector,
    folder: Path,
    *,
    int8: bool = False,
    clips: Sequence[ClipMeta] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Export:
    """Write `detector` as ONNX into `folder` and check it; an older export there is replaced when all is well.

    `clips` are recordings to check with besides made-up ones; where their condition is known, the AUC is told. Raises
    ExportError where a part of the detector cannot be exported, a package is missing, the folder holds something else,
    or the check fails, and then writes nothing.
    """
    for package in ("onnx", "onnxruntime"):
        require(package)
    if folder.exists() and not (folder.is_dir() and (is_exported(folder) or not any(folder.iterdir()))):
        raise ExportError(f"{folder} is there already and holds no exported detector; choose another folder")
    graphs = graphs_of(detector)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent) as made:
        place = Path(made) / "export"
        place.mkdir()
        for stem, graph in graphs.items():
            say(f"writing {stem}.onnx")
            content = onnx_bytes(graph)
            if len(content) > LARGEST:
                raise ExportError(
                    f"the detector takes {len(content) / 1e9:.1f} GB and an ONNX file at most 2 GB; fewer reference "
                    "clips, fewer members, or an exact scorer with fewer clips (mahalanobis) make it smaller"
                )
            tidy(content, place / f"{stem}.onnx", _metadata(detector, graph, int8))
        _describe(detector, graphs, place, False, None)
        spared: Sequence[str] = ()
        say("checking against the detector")
        exact = check = check_export(detector, Exported.load(place), clips)
        if not exact.passed:
            raise ExportError(
                f"the exported detector does not give the detector's scores, so it was deleted: {exact.told()}"
            )
        if int8:
            whole = Path(made) / "exact"
            place.rename(whole)
            place.mkdir()
            check, spared = _in_bytes(detector, graphs, whole, place, clips, say)
            if not check.passed:
                raise ExportError(
                    f"8-bit weights change this detector's scores too much, so it was deleted: {check.told()}; "
                    "export it without --int8"
                )
        _describe(detector, graphs, place, int8, check, spared)
        if folder.exists():
            for path in folder.iterdir():  # what people put beside the older export is theirs
                if path.is_dir():
                    shutil.copytree(path, place / path.name, symlinks=True)
                elif path.suffix != ".onnx" and path.name not in (DESCRIPTION, MANIFEST):
                    shutil.copy2(path, place / path.name)
            shutil.rmtree(folder)
        place.rename(folder)
    size = sum((folder / f"{stem}.onnx").stat().st_size for stem in graphs)
    return Export(folder, size / 1e6, check, exact)


def _in_bytes(
    detector: Detector,
    graphs: dict[str, DetectorGraph],
    whole: Path,
    place: Path,
    clips: Sequence[ClipMeta],
    say: Callable[[str], None],
) -> tuple[Check, Sequence[str]]:
    """Write the files of `whole` with 8-bit weights into `place`; what was found, and which members stay exact.

    Those are the members that would not pass the check by themselves, as long as others have weights to keep small.
    """
    names = detector.config.scoring.names
    members = next(iter(graphs.values())).members
    networks = {name for name, member in zip(names, members, strict=False) if member.network is not None}
    spared: list[str] = []
    while True:
        for stem in graphs:
            quantise(whole / f"{stem}.onnx", place / f"{stem}.onnx", [names.index(name) for name in spared])
        _describe(detector, graphs, place, True, None, spared)
        check = check_export(detector, Exported.load(place), clips, int8=True)
        moved = [name for name, change in check.members.items() if change > LARGEST_SHIFT]
        if spared or not moved or not set(moved) < networks:
            return check, spared
        spared = moved
        say(f"8-bit weights change {', '.join(moved)} too much: exact weights there")


def _metadata(detector: Detector, graph: DetectorGraph, int8: bool) -> dict[str, str]:
    """What a file tells of itself, for those who carry it without `export.json`."""
    from offkey import __version__

    known = {name: detector.machines[name] for name in graph.machines}
    return {
        "offkey.version": __version__,
        "offkey.format": str(FORMAT),
        "offkey.system": detector.config.system,
        "offkey.rate": str(graph.audio.rate),
        "offkey.level_dbfs": json.dumps(graph.audio.level_dbfs),
        "offkey.min_samples": str(graph.shortest),
        "offkey.max_samples": json.dumps(graph.longest),
        "offkey.machines": json.dumps(list(graph.machines), ensure_ascii=False),
        "offkey.thresholds": json.dumps([_finite(machine.calibration.threshold()) for machine in known.values()]),
        "offkey.scorers": json.dumps(detector.config.scoring.names),
        "offkey.weights": "int8" if int8 else "float32",
    }


def _describe(
    detector: Detector,
    graphs: dict[str, DetectorGraph],
    folder: Path,
    int8: bool,
    check: Check | None,
    spared: Sequence[str] = (),
) -> None:
    """Write `export.json` and the manifest."""
    from offkey import __version__

    parts = list(graphs.values())
    audio = parts[0].audio  # the files differ in machines and networks alone
    machines: dict[str, Any] = {}
    for stem, graph in graphs.items():
        for index, name in enumerate(graph.machines):
            calibration = detector.machines[name].calibration
            machines[name] = {
                "file": f"{stem}.onnx",
                "index": index,
                "threshold": _finite(calibration.threshold()),
                "method": calibration.method,
                "false_alarm_rate": calibration.alpha,
                "calibration": {domain: pool.tolist() for domain, pool in calibration_pools(calibration).items()},
            }
            if calibration.session is not None:
                names = calibration_pools(calibration)
                weights = zip(names, calibration.weights(), strict=True)
                machines[name]["calibration_weights"] = {domain: own.tolist() for domain, own in weights}
    told = {
        "format": FORMAT,
        "offkey": __version__,
        "system": detector.config.system,
        "weights": "int8" if int8 else "float32",
        "exact_members": list(spared),
        "rate": audio.rate,
        "channel": audio.channel,
        "level_dbfs": audio.level_dbfs,
        "min_seconds": audio.min_seconds,
        "min_samples": max(graph.shortest for graph in parts),
        "max_samples": parts[0].longest,
        "one_by_one": parts[0].separates,
        "inputs": list(INPUTS),
        "outputs": list(OUTPUTS),
        "scorers": list(detector.config.scoring.names),
        "machines": {name: machines[name] for name in detector.machines},
        "check": None if check is None else check.to_dict(),
    }
    write_whole(folder / DESCRIPTION, json.dumps(told, indent=1, ensure_ascii=False))
    write_manifest(folder, [DESCRIPTION, *(f"{stem}.onnx" for stem in graphs)], KIND)


def _finite(value: float) -> float | None:
    """None, which JSON knows, for an infinite threshold."""
    return value if abs(value) != float("inf") else None
