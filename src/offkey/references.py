"""What a detector keeps of normal clips: their embeddings, scorers fitted on them, and a calibration, a machine each.

`offkey.fitting` calls this once networks are trained, `offkey.updating` when normal clips come later.
"""

from __future__ import annotations

import datetime
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import offkey
from offkey.audio.io import read_header
from offkey.audio.mel import LogMel
from offkey.data.labels import LabelSpace
from offkey.data.loader import ClipReader, Failure, load_batches
from offkey.detector import Detector, MachineDetector
from offkey.explaining import Profile, ProfileBuilder
from offkey.progress import Progress
from offkey.scoring import (
    Calibration,
    NormalQuantile,
    Reference,
    blend,
    blend_normal,
    build_scorer,
    cross_fit,
    sessions_apart,
)
from offkey.scoring.calibrate import clips_needed, independent
from offkey.systems.config import SystemConfig
from offkey.types import ClipMeta, Domain
from offkey.views import Views

__all__ = ["assemble", "fit_machine", "fit_reference", "joined_recordings", "machine_groups"]

_BATCH = 16
_PATCHES_OF = 4  # clips of a machine, evenly spread, whose batches lend patches to explanations
_HEADERS = 100  # of a machine's files that are read for the card


def assemble(
    clips: Sequence[ClipMeta],
    config: SystemConfig,
    networks: dict[str, Any],
    labels: LabelSpace | None,
    held_out: frozenset[Path],
    reader: ClipReader,
    *,
    workers: int,
    progress: Progress,
    failures: list[Failure],
) -> Detector:
    """Embed the normal clips, fit scorers and calibration a machine each.

    `networks` by machine, or one by the name `SHARED`; clips in `held_out` are new to them. Clips that cannot be read
    are left out and appended to `failures`.
    """
    views = Views(config, networks)
    order = [list(range(at, min(at + _BATCH, len(clips)))) for at in range(0, len(clips), _BATCH)]
    rows: dict[int, dict[str, NDArray[np.float32]]] = {}
    lengths: dict[int, float] = {}
    groups = machine_groups(clips)
    group_of = {place: name for name, members in groups.items() for place in members}
    builder = ProfileBuilder(LogMel(config.audio.rate, config.mel), [str(clip.path) for clip in clips])
    # patches of an encoder are large, and a few clips of each machine tell what is normal of them
    asked = {place for members in groups.values() for place in members[:: -(-len(members) // _PATCHES_OF)]}
    rebuilds = config.kind == "reconstructive"
    progress.start("embedding normal clips", len(clips))
    for batch in load_batches(clips, order, reader, None, workers=workers, failures=failures):
        machines_of = [group_of[place] for place in batch.place.tolist()]
        seen = views(batch, machines_of, reasons=rebuilds or bool(asked & set(batch.place.tolist())))
        for view, array in seen.embeddings.items():
            for place, row in zip(batch.place.tolist(), array, strict=True):
                rows.setdefault(place, {})[view] = row
        builder.add(machines_of, batch, seen.errors, seen.error_maps, seen.patches)
        lengths |= zip(batch.place.tolist(), (batch.lengths / config.audio.rate).tolist(), strict=True)
        progress.step(len(rows))
    machines: dict[str, MachineDetector] = {}
    profiles = builder.profiles()
    for name, members in groups.items():
        mine = [place for place in members if place in rows]
        machines[name] = fit_machine(
            name,
            [clips[place] for place in mine],
            {view: np.stack([rows[place][view] for place in mine]) for view in views.names},
            profiles[name],
            config,
            labels,
            held_out,
        )
        warning = machines[name].calibration.warning()
        if warning:
            progress.say(f"{name}: {warning}")
        if labels is not None and len(machines[name].calibration.scores) == len(mine):
            progress.say(
                f"{name}: too few clips could be held out of training, so the threshold rests on clips that the "
                "network knows; expect more false alarms than asked for"
            )
    facts = {
        "offkey": offkey.__version__,
        "python": platform.python_version(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "hours": round(sum(lengths.values()) / 3600, 4),
        "clips": {name: len(known.clips) for name, known in machines.items()},
        "recordings": {
            name: _recordings([clips[place] for place in rows], [lengths[place] for place in rows])
            for name, rows in (
                (name, [place for place in members if place in lengths]) for name, members in groups.items()
            )
        },
    }
    return Detector(config, machines, networks, labels, facts=facts)


def _recordings(clips: Sequence[ClipMeta], seconds: Sequence[float]) -> dict[str, Any]:
    """What the card tells of a machine's normal clips; sampling rates are read from the headers of some of them."""
    headers = [read_header(clip.path) for clip in clips[:: max(1, len(clips) // _HEADERS)]]
    values: dict[str, set[str]] = {}
    for clip in clips:
        for name, value in clip.attributes:
            values.setdefault(name, set()).add(value)
    return {
        "minutes": round(sum(seconds) / 60, 2),
        "shortest": round(min(seconds), 3),
        "longest": round(max(seconds), 3),
        "rates": dict(sorted(Counter(str(header[0]) for header in headers if header is not None).items())),
        "attributes": {name: len(found) for name, found in values.items()},
        "values": {name: sorted(found) for name, found in values.items()},
    }


def joined_recordings(old: Mapping[str, Any], new: Sequence[ClipMeta], seconds: Sequence[float]) -> dict[str, Any]:
    """What the card tells of a machine when `new` clips have come; `seconds` are of all its clips, old and new.

    Older detectors kept how many values a setting has, but not which: the count is then the least that it can be.
    """
    added = _recordings(new, seconds)
    rates = Counter({rate: int(count) for rate, count in old.get("rates", {}).items()}) + Counter(added["rates"])
    counts, kept = old.get("attributes", {}), old.get("values")
    names = [*counts, *(name for name in added["attributes"] if name not in counts)]
    joined = {**old, **added, "rates": dict(sorted(rates.items()))}
    if kept is None:
        joined["attributes"] = {name: max(counts.get(name, 0), added["attributes"].get(name, 0)) for name in names}
        del joined["values"]
        return joined
    joined["values"] = {name: sorted({*kept.get(name, ()), *added["values"].get(name, ())}) for name in names}
    joined["attributes"] = {name: len(found) for name, found in joined["values"].items()}
    return joined


def machine_groups(clips: Sequence[ClipMeta]) -> dict[str, list[int]]:
    """Clips by machine, or by machine and section where a machine has several sections."""
    sections: dict[str, set[str]] = {}
    for clip in clips:
        sections.setdefault(clip.machine, set()).add(clip.section)
    groups: dict[str, list[int]] = {}
    for number, clip in enumerate(clips):
        key = clip.machine if len(sections[clip.machine]) == 1 else f"{clip.machine}/{clip.section}"
        groups.setdefault(key, []).append(number)
    return dict(sorted(groups.items()))


def fit_machine(
    name: str,
    clips: Sequence[ClipMeta],
    embeddings: dict[str, NDArray[np.float32]],
    profile: Profile,
    config: SystemConfig,
    labels: LabelSpace | None,
    held_out: frozenset[Path] = frozenset(),
) -> MachineDetector:
    """Scorers on all normal clips of one machine, and a calibration in which no clip meets a scorer that knows it.

    `held_out` are the clips that the network did not learn from.
    """
    return fit_reference(
        name,
        [clip.path.name for clip in clips],
        [clip.domain.value for clip in clips],
        [labels.encode(clip)[0] if labels is not None else -1 for clip in clips],
        embeddings,
        profile,
        config,
        np.array([clip.path in held_out for clip in clips]),
        config.calibration.false_alarm_rate,
        sessions=[clip.session for clip in clips],
    )


def fit_reference(
    name: str,
    clips: Sequence[str],
    domains: Sequence[str],
    identities: Sequence[int],
    embeddings: Mapping[str, NDArray[np.float32]],
    profile: Profile,
    config: SystemConfig,
    fresh: NDArray[np.bool_],
    rate: float,
    *,
    sessions: Sequence[str] | None = None,
) -> MachineDetector:
    """What a machine's detector is of its normal clips: (N,) names, domains, identities, and a view each (N, D).

    A network finds the clips that it was trained on too ordinary. Where enough clips are `fresh` (N,), held out of
    its training, the threshold for a false-alarm `rate` and the scales on which scores are blended rest on their
    cross-fitted scores alone; otherwise on those of all clips.

    `sessions` (N,): the recording that each clip was cut from, "" where it is one by itself. Whole recordings are then
    left out together, one is fresh where all of its clips are, and enough means enough recordings. Raises ScoringError
    where there is one alone.
    """
    apart = sessions_apart(sessions)
    references = {view: Reference(array, domain=domains, identity=identities) for view, array in embeddings.items()}
    entries = config.scoring.scorers
    settings = config.calibration
    parts = np.empty((len(clips), len(entries)))
    scorers = []
    for number, entry in enumerate(entries):
        build = partial(build_scorer, entry.scorer, config.seed)
        parts[:, number] = cross_fit(build, references[entry.view], settings.folds, apart, config.seed)
        scorers.append(build().fit(references[entry.view]))
    if apart is not None:
        partly = {name for name, new in zip(apart, fresh.tolist(), strict=True) if not new}
        fresh = np.array([name not in partly for name in apart])
    if independent(fresh, apart) < clips_needed(rate):
        fresh = np.ones(len(clips), dtype=bool)
    weights = [entry.weight for entry in entries]
    quantiles: tuple[NormalQuantile, ...] = ()
    if len(config.scoring.voters) > 1:
        quantiles = tuple(NormalQuantile.of(parts[fresh, number]) for number in range(len(entries)))
        # a new clip is unknown to the maps that blend it, so each of these has to be unknown to its own
        scores = blend_normal(parts, weights, fresh, apart)
    else:
        scores = blend(parts, (), weights)
    told = np.array(domains)[fresh]
    each = settings.each_domain and set(told.tolist()) == {Domain.SOURCE.value, Domain.TARGET.value}
    heard = None if apart is None else np.array(apart)[fresh]
    return MachineDetector(
        name=name,
        clips=tuple(clips),
        domains=tuple(domains),
        identities=tuple(identities),
        embeddings=dict(embeddings),
        scorers=tuple(scorers),
        quantiles=quantiles,
        calibration=Calibration(scores[fresh], settings.method, rate, told if each else None, heard),
        profile=profile,
        cross_fitted=parts,
        fresh=fresh,
        sessions=None if apart is None or sessions is None else tuple(sessions),
    )
