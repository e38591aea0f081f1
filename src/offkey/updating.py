"""Normal clips that come later, or that were called false alarms, added to a detector without training.

Their embeddings join the reference, the scorers are fitted on all of it, and the calibration is made anew with
cross-fitted scores (`offkey.references.fit_reference`, the one way). Networks stay as they are.
"""

from __future__ import annotations

import datetime
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel
from offkey.data.dcase import parse_name
from offkey.data.loader import Failure, load_batches
from offkey.detector import Detector, MachineDetector
from offkey.ensemble import Ensemble
from offkey.explaining import ProfileBuilder
from offkey.explaining.joining import join_profiles
from offkey.manifest import MANIFEST
from offkey.progress import Progress, Quiet
from offkey.references import fit_reference
from offkey.types import ClipMeta, Condition, Domain, OffkeyError
from offkey.views import Views

__all__ = ["UpdateError", "replace_folder", "update"]

Reason = Literal["normal", "false-alarm"]
_BATCH = 16
_FAULTY = {"anomaly", "anomalies", "anomalous", "abnormal", "faulty", "broken", "defective"}
_FAULTY_FOLDERS = _FAULTY | {"fault", "faults", "ng", "bad"}  # a file named bad_weather.wav is no verdict
_KEPT = ("training",)


class UpdateError(OffkeyError):
    """Clips cannot be added to a detector."""


def update(
    detector: Detector,
    clips: Sequence[str | Path | ClipMeta],
    *,
    machine: str | None = None,
    domain: Domain | None = None,
    reason: Reason = "normal",
    workers: int = 2,
    progress: Progress | None = None,
    failures: list[Failure] | None = None,
) -> Detector:
    """A new detector that also knows these normal clips; `detector` stays as it is.

    `machine`: of all clips (default: as `Detector.score` finds it). `domain`: of clips whose name does not tell it
    (default: the one that most of the machine's clips are of). `reason`: why they are added; the card tells it. Clips
    that cannot be read are left out and appended to `failures`; those that the detector already knows are left out and
    told to `progress`.

    Raises UpdateError for a clip whose name or folder says that it is faulty, and where nothing is left to add;
    DetectorError for a machine that the detector does not know.
    """
    progress, failures = progress or Quiet(), failures if failures is not None else []
    if isinstance(detector, Ensemble):
        return _members(
            detector, clips, progress, failures, machine=machine, domain=domain, reason=reason, workers=workers
        )
    metas = [_described(clip) for clip in clips]
    faulty = [meta.path for meta in metas if meta.condition is Condition.ANOMALY]
    if faulty:
        more = f", as are {len(faulty) - 1} more" if faulty[1:] else ""
        raise UpdateError(
            f"{faulty[0]} is known to be faulty by its name{more}; a detector "
            "learns from normal recordings only: leave it out, or rename it if the name is wrong"
        )
    if not metas:
        raise UpdateError("no clips to add: name recordings, or folders of them")
    keys = [detector.machine_of(meta, machine) for meta in metas]
    hop = detector.config.mel.hop / detector.config.audio.rate
    rows, builder, frames = _look(detector, metas, keys, workers, progress, failures)
    machines, added = dict(detector.machines), {}
    profiles = builder.profiles()
    for name in dict.fromkeys(keys):
        places = [place for place, key in enumerate(keys) if key == name and place in rows]
        new = _unknown(detector.machines[name], places, rows)
        if len(new) < len(places):
            progress.say(f"{name}: {len(places) - len(new)} of {len(places)} clips are known already; left out")
            # their profile is counted with the others': look again without them
            if new:
                _, again, frames_again = _look(
                    detector, [metas[place] for place in new], [name] * len(new), workers, Quiet(), []
                )
                profiles[name], frames[name] = again.profiles()[name], frames_again[name]
        if not new:
            continue
        known = detector.machines[name]
        machines[name] = _grown(
            detector, known, [metas[place] for place in new], [rows[place] for place in new], domain,
            profiles[name], frames[name],
        )  # fmt: skip
        added[name] = {
            "clips": [metas[place].path.name for place in new],
            "hours": round(frames[name] * hop / 3600, 4),
        }
        warning = machines[name].calibration.warning()
        if warning:
            progress.say(f"{name}: {warning}")
    if not added:
        raise UpdateError(
            "nothing was added: no clip could be read" if not rows else "nothing was added: all clips are known already"
        )
    return replace(detector, machines=machines, facts=_facts(detector.facts, machines, added, reason))


def _members(
    ensemble: Ensemble,
    clips: Sequence[str | Path | ClipMeta],
    progress: Progress,
    failures: list[Failure],
    **keywords: Any,
) -> Ensemble:
    """The ensemble of updated members; what all of them would say is said once."""
    first = next(iter(ensemble.members.values()))

    def grown(member: Detector) -> Detector:
        if member is first:
            return update(member, clips, progress=progress, failures=failures, **keywords)
        return update(member, clips, **keywords)

    made = ensemble.with_members(grown)
    updates = next(iter(made.members.values())).facts["updates"]
    return replace(made, facts=made.facts | {"updates": updates})


def _described(clip: str | Path | ClipMeta) -> ClipMeta:
    """What a clip's name and folders say of it."""
    if isinstance(clip, ClipMeta):
        return clip
    path = Path(clip)
    name = parse_name(path.name)
    folder = path.absolute().parent
    words, above = set(re.split(r"[^a-z]+", path.stem.lower())), {folder.name.lower(), folder.parent.name.lower()}
    faulty = bool(words & _FAULTY or above & _FAULTY_FOLDERS) or (
        name is not None and name.condition is Condition.ANOMALY
    )
    return ClipMeta(
        path,
        machine=folder.name,
        section=name.section if name else "00",
        domain=name.domain if name else Domain.UNKNOWN,
        condition=Condition.ANOMALY if faulty else Condition.NORMAL,
        attributes=name.attributes if name else (),
    )


def _look(
    detector: Detector,
    metas: Sequence[ClipMeta],
    keys: Sequence[str],
    workers: int,
    progress: Progress,
    failures: list[Failure],
) -> tuple[dict[int, dict[str, NDArray[np.float32]]], ProfileBuilder, dict[str, int]]:
    """Views of every clip that can be read, by its place; what is normal in each band; mel frames a machine."""
    views = Views(detector.config, detector.networks)
    mel = LogMel(detector.config.audio.rate, detector.config.mel)
    builder, frames = ProfileBuilder(mel), dict.fromkeys(keys, 0)
    rows: dict[int, dict[str, NDArray[np.float32]]] = {}
    order = [list(range(at, min(at + _BATCH, len(metas)))) for at in range(0, len(metas), _BATCH)]
    progress.start("embedding normal clips", len(metas))
    for batch in load_batches(metas, order, detector.reader(), None, workers=workers, failures=failures):
        places = batch.place.tolist()
        mine = [keys[place] for place in places]
        seen = views(batch, mine)
        for row, place in enumerate(places):
            rows[place] = {view: array[row] for view, array in seen.embeddings.items()}
            frames[keys[place]] += int(mel.frames(batch.lengths)[row])
        builder.add(mine, batch, seen.errors)
        progress.step(len(rows))
    return rows, builder, frames


def _unknown(
    known: MachineDetector, places: Sequence[int], rows: Mapping[int, Mapping[str, NDArray[np.float32]]]
) -> list[int]:
    """The clips that are not in the reference yet, each once.

    A clip that stands in it twice would find itself in the other fold of the cross-fit, and lower the threshold.
    """
    views = list(known.embeddings)
    taken = [np.concatenate([known.embeddings[view][row] for view in views]) for row in range(len(known.clips))]
    kept = []
    for place in places:
        mine = np.concatenate([rows[place][view] for view in views])
        scale = max(float(np.abs(mine).max()), 1e-6)
        if not any(np.abs(other - mine).max() <= 1e-5 * scale for other in taken):
            kept.append(place)
            taken.append(mine)
    return kept


def _grown(
    detector: Detector,
    known: MachineDetector,
    metas: Sequence[ClipMeta],
    rows: Sequence[Mapping[str, NDArray[np.float32]]],
    domain: Domain | None,
    profile: Any,
    frames: int,
) -> MachineDetector:
    usual = max(sorted(set(known.domains)), key=known.domains.count)
    domains = [
        meta.domain.value if meta.domain is not Domain.UNKNOWN else (domain.value if domain else usual)
        for meta in metas
    ]
    labels = detector.labels
    identities = [
        labels.encode(replace(meta, machine=known.name.split("/")[0], domain=Domain(told)))[0] if labels else -1
        for meta, told in zip(metas, domains, strict=True)
    ]
    mel = LogMel(detector.config.audio.rate, detector.config.mel)
    return fit_reference(
        known.name,
        [*known.clips, *(meta.path.name for meta in metas)],
        [*known.domains, *domains],
        [*known.identities, *identities],
        {
            view: np.concatenate([array, np.stack([row[view] for row in rows])])
            for view, array in known.embeddings.items()
        },
        join_profiles(known.profile, profile, frames / (frames + _frames(known, mel, frames / len(metas)))),
        detector.config,
        np.array([*_fresh(detector, known), *[True] * len(metas)]),
        known.calibration.alpha,
    )


def _frames(known: MachineDetector, mel: LogMel, usual: float) -> float:
    """Mel frames of the clips that a machine's profile was made of."""
    spectra = known.profile.spectra
    if spectra is None:
        return usual * len(known.clips)
    import torch

    return float(mel.frames(torch.from_numpy(np.round(spectra.seconds * mel.rate).astype(np.int64))).sum())


def _fresh(detector: Detector, known: MachineDetector) -> list[bool]:
    """Which of the reference clips the network did not learn from: those held out, and those that were added later."""
    training = detector.facts.get("training") or {}
    if not detector.networks or not training:
        return [True] * len(known.clips)
    machine = known.name.split("/")[0]
    held = set(training.get("held_out_clips", ()))
    later = len(known.clips) - sum(
        len(entry["clips"]) for entry in detector.facts.get("updates", ()) if entry["machine"] == known.name
    )
    return [place >= later or f"{machine}/{name}" in held for place, name in enumerate(known.clips)]


def _facts(
    facts: Mapping[str, Any], machines: Mapping[str, MachineDetector], added: Mapping[str, Any], reason: Reason
) -> dict[str, Any]:
    import offkey

    when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entries = [
        {"when": when, "offkey": offkey.__version__, "machine": name, "reason": reason, **told}
        for name, told in added.items()
    ]
    return {
        **facts,
        "hours": round(float(facts.get("hours", 0)) + sum(told["hours"] for told in added.values()), 4),
        "clips": {name: len(known.clips) for name, known in machines.items()},
        "updates": [*facts.get("updates", ()), *entries],
    }


def replace_folder(detector: Detector, folder: Path, keep: Iterable[str] = _KEPT) -> Path:
    """Write a detector over the one in `folder`: a reader finds the old one or the new one, whole.

    It is written beside the place and then moved there; only between two renames there is nothing (if the machine
    stops just then, the old detector lies beside it as `.NAME.old`). Its logs (`keep`) stay; an evaluation of the old
    one does not. Raises OSError; the old detector is then untouched.
    """
    folder = folder.resolve()
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
    old = folder.with_name(f".{folder.name}.old")
    try:
        detector.save(stage)
        for name in keep:
            if (folder / name).is_dir():
                shutil.copytree(folder / name, stage / name)
        stage.chmod(folder.stat().st_mode & 0o7777)
        if old.exists() and (folder / MANIFEST).is_file():
            shutil.rmtree(old)
        os.rename(folder, old)  # noqa: PTH104 - Path.rename of a folder is this
        try:
            os.rename(stage, folder)  # noqa: PTH104
        except OSError:
            os.rename(old, folder)  # noqa: PTH104
            raise
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    return folder
