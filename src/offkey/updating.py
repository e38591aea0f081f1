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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offkey.audio.mel import LogMel
from offkey.data.dcase import parse_name
from offkey.data.loader import Failure, load_batches
from offkey.data.sessions import with_sessions
from offkey.detector import Detector, MachineDetector
from offkey.ensemble import Ensemble
from offkey.explaining import Profile, ProfileBuilder
from offkey.explaining.joining import join_profiles
from offkey.manifest import MANIFEST
from offkey.progress import Progress, Quiet
from offkey.references import fit_reference, joined_recordings
from offkey.types import ClipMeta, Condition, Domain, OffkeyError
from offkey.views import Views

__all__ = ["UpdateError", "replace_folder", "update"]

Reason = Literal["normal", "false-alarm"]
_BATCH = 16
_FAULTY = {"anomaly", "anomalies", "anomalous", "abnormal", "faulty", "broken", "defective"}
_FAULTY_FOLDERS = _FAULTY | {"fault", "faults", "ng", "bad"}  # a file named bad_weather.wav is no verdict
_OF_THE_OLD = ("evaluation", "run.json", "report*.html")  # what told of the detector that is replaced
_SHOWN = 5  # names of clips that are left out
# How far a copy may lie from the clip: in the company of other clips, and by another decoder, not all is as it was.
_SAME_VIEW = 1e-4  # of a view's largest number
_SAME_DB = 0.25  # spectra are kept in half precision: 0.06 dB
_SAME_SECONDS = 1e-3


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
    groups: Mapping[str, str] | None = None,
) -> Detector:
    """A new detector that also knows these normal clips; `detector` stays as it is.

    `machine`: of all clips (default: as `Detector.score` finds it). `domain`: of clips whose name does not tell it
    (default: the one that most of the machine's clips are of). `reason`: why they are added; the card tells it. Clips
    that cannot be read are left out and appended to `failures`; copies of clips that the detector already knows are
    left out and told to `progress`. All members of an ensemble get the same clips: what one of them cannot use or
    knows already is left out for all. `groups` (file -> recording): which clips were cut from one recording, as for
    `offkey.fit`; a name that the detector knows is the same recording. Without it each new clip is one by itself.

    Raises UpdateError for a clip whose name or folder says that it is faulty, and where nothing is left to add;
    DetectorError for a machine that the detector does not know.
    """
    progress, failures = progress or Quiet(), failures if failures is not None else []
    metas = [_described(clip) for clip in clips]
    metas = with_sessions(metas, groups) if groups is not None else metas
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
    parts = list(detector.members.values()) if isinstance(detector, Ensemble) else [detector]
    heard = [_hear(part, metas, keys, workers, progress if part is parts[0] else Quiet(), failures) for part in parts]
    readable = [place for place in range(len(metas)) if all(place in one.rows for one in heard)]
    chosen = {}
    for name in dict.fromkeys(keys):
        places = [place for place in readable if keys[place] == name]
        known = {place for part, one in zip(parts, heard, strict=True) for place in _known(part, name, places, one)}
        if known:
            progress.say(_told_known(name, [metas[place].path.name for place in sorted(known)], len(places)))
        if len(known) < len(places):
            chosen[name] = [place for place in places if place not in known]
    if not chosen:
        raise UpdateError(
            "nothing was added: no clip could be read"
            if not readable
            else "nothing was added: all clips are known already"
        )
    grown = {
        id(part): _added(part, metas, chosen, one, domain, reason, workers, progress if part is parts[0] else Quiet())
        for part, one in zip(parts, heard, strict=True)
    }
    if not isinstance(detector, Ensemble):
        return grown[id(detector)]
    made = detector.with_members(lambda member: grown[id(member)])
    updates = next(iter(made.members.values())).facts["updates"]
    return replace(made, facts=made.facts | {"updates": updates})


class _Heard(NamedTuple):
    """What a detector hears in clips: `rows` the views of those that can be used, by place.

    `profiles` is what is normal in each band a machine, and `places` a machine the clips that it counts, in its order.
    """

    rows: dict[int, dict[str, NDArray[np.float32]]]
    profiles: dict[str, Profile]
    places: dict[str, list[int]]


def _hear(
    detector: Detector,
    metas: Sequence[ClipMeta],
    keys: Sequence[str],
    workers: int,
    progress: Progress,
    failures: list[Failure],
) -> _Heard:
    """Listen to clips; what cannot be read, and what has no finite view, is appended to `failures`, once a file."""
    own: list[Failure] = []
    views = Views(detector.config, detector.networks)
    mel = LogMel(detector.config.audio.rate, detector.config.mel)
    builder = ProfileBuilder(mel, [str(meta.path) for meta in metas])
    rows: dict[int, dict[str, NDArray[np.float32]]] = {}
    order = [list(range(at, min(at + _BATCH, len(metas)))) for at in range(0, len(metas), _BATCH)]
    progress.start("embedding normal clips", len(metas))
    for batch in load_batches(metas, order, detector.reader(), None, workers=workers, failures=own):
        heard = batch.place.tolist()
        mine = [keys[place] for place in heard]
        seen = views(batch, mine, reasons=True)
        for row, place in enumerate(heard):
            rows[place] = {view: array[row] for view, array in seen.embeddings.items()}
        builder.add(mine, batch, seen.errors, seen.error_maps, seen.patches)
        progress.step(len(rows))
    places = {name: [place for place in sorted(rows) if keys[place] == name] for name in dict.fromkeys(keys)}
    for place, told in list(rows.items()):
        if not all(np.isfinite(array).all() for array in told.values()):
            own.append(
                Failure(metas[place].path, "what the detector hears in it is NaN or infinite; look at its audio")
            )
            del rows[place]
    named = {failure.path for failure in failures}
    failures += [failure for failure in own if failure.path not in named]
    return _Heard(rows, builder.profiles(), places)


def _told_known(name: str, files: Sequence[str], count: int) -> str:
    shown = ", ".join(files[:_SHOWN]) + (", …" if len(files) > _SHOWN else "")
    return f"{name}: {len(files)} of {count} clips are known already; left out: {shown}"


def _added(
    detector: Detector,
    metas: Sequence[ClipMeta],
    chosen: Mapping[str, Sequence[int]],
    heard: _Heard,
    domain: Domain | None,
    reason: Reason,
    workers: int,
    progress: Progress,
) -> Detector:
    """The detector that also knows the clips that were `chosen`, places a machine."""
    machines, added, recordings = dict(detector.machines), {}, dict(detector.facts.get("recordings") or {})
    for name, places in chosen.items():
        new, profile = [metas[place] for place in places], heard.profiles[name]
        if list(places) != heard.places[name]:  # its profile counts clips that are left out: look again without them
            profile = _hear(detector, new, [name] * len(new), workers, Quiet(), []).profiles[name]
        known = detector.machines[name]
        machines[name] = _grown(detector, known, new, [heard.rows[place] for place in places], domain, profile)
        if name in recordings:
            seconds = machines[name].profile.spectra.seconds.astype(np.float64)
            recordings[name] = joined_recordings(recordings[name], new, seconds.tolist())
        hours = float(profile.spectra.seconds.sum(dtype=np.float64)) / 3600
        added[name] = {"clips": [meta.path.name for meta in new], "hours": round(hours, 4)}
        warning = machines[name].calibration.warning()
        if warning:
            progress.say(f"{name}: {warning}")
    return replace(detector, machines=machines, facts=_facts(detector.facts, machines, added, recordings, reason))


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


def _known(detector: Detector, name: str, places: Sequence[int], heard: _Heard) -> list[int]:
    """The clips among `places` that stand in a machine's reference already, or before in `places`.

    A clip that stands in it twice would find itself in the other fold of the cross-fit, and lower the threshold. One
    view may be a single number that different clips share (a level, an error), so a copy is a clip of the same length
    whose views and whose coarse spectrogram, some two thousand numbers, all agree.
    """
    reference, profile = detector.machines[name], heard.profiles.get(name)
    if profile is None or not places:
        return []
    count, mine = len(reference.clips), [row for row, place in enumerate(heard.places[name]) if place in heard.rows]
    order = {heard.places[name][row]: count + number for number, row in enumerate(mine)}
    old, new = reference.profile.spectra, profile.spectra
    levels = np.concatenate([old.levels, new.levels[mine]]).astype(np.float32).reshape(count + len(mine), -1)
    seconds = np.concatenate([old.seconds, new.seconds[mine]])
    views = [
        np.concatenate([array, np.stack([heard.rows[place][view] for place in order])])
        for view, array in reference.embeddings.items()
    ]
    taken, copies = np.arange(len(levels)) < count, []
    for place in places:
        row = order[place]
        near = np.flatnonzero(taken & (np.abs(seconds - seconds[row]) <= _SAME_SECONDS))
        for array in views:
            away = np.abs(array[near] - array[row]).max(axis=1)
            near = near[away <= _SAME_VIEW * max(float(np.abs(array[row]).max()), 1e-6)]
        if (np.abs(levels[near] - levels[row]).max(axis=1) <= _SAME_DB).any():
            copies.append(place)
        else:
            taken[row] = True
    return copies


def _grown(
    detector: Detector,
    known: MachineDetector,
    metas: Sequence[ClipMeta],
    rows: Sequence[Mapping[str, NDArray[np.float32]]],
    domain: Domain | None,
    profile: Profile,
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
    frames = _frames(profile, mel)
    return fit_reference(
        known.name,
        [*known.clips, *(meta.path.name for meta in metas)],
        [*known.domains, *domains],
        [*known.identities, *identities],
        {
            view: np.concatenate([array, np.stack([row[view] for row in rows])])
            for view, array in known.embeddings.items()
        },
        join_profiles(known.profile, profile, frames / (frames + _frames(known.profile, mel))),
        detector.config,
        np.array([*_fresh(detector, known), *[True] * len(metas)]),
        known.calibration.alpha,
        sessions=[*(known.sessions or [""] * len(known.clips)), *(meta.session for meta in metas)],
    )


def _frames(profile: Profile, mel: LogMel) -> float:
    """Mel frames of the clips that a profile was made of."""
    import torch

    return float(mel.frames(torch.from_numpy(np.round(profile.spectra.seconds * mel.rate).astype(np.int64))).sum())


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
    facts: Mapping[str, Any],
    machines: Mapping[str, MachineDetector],
    added: Mapping[str, Any],
    recordings: Mapping[str, Any],
    reason: Reason,
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
    } | ({"recordings": dict(recordings)} if recordings else {})


def replace_folder(detector: Detector, folder: Path) -> Path:
    """Write a detector over the one in `folder`: a reader finds the old one or the new one, whole.

    It is written beside the place and then moved there; only between two renames there is nothing (if the machine
    stops just then, the old detector lies beside it as `.NAME.old`). What else lies in the folder stays, but for an
    evaluation and a report of the old one. Raises OSError; the old detector is then untouched.
    """
    folder = folder.resolve()
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".new", dir=folder.parent))
    old = folder.with_name(f".{folder.name}.old")
    try:
        detector.save(stage)
        for path in folder.iterdir():
            if (stage / path.name).exists() or any(path.match(pattern) for pattern in _OF_THE_OLD):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.copytree(path, stage / path.name, symlinks=True)
            else:
                shutil.copy2(path, stage / path.name, follow_symlinks=False)
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
