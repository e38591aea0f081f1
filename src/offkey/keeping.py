"""A detector on disk: a folder that can be copied anywhere.

    config.toml           the settings it was fitted with (resolved: `auto` has chosen)
    model.safetensors     weights of the network (absent where nothing is trained)
    scorer.safetensors    a machine each: what its scorers learnt, and the embeddings of its reference clips
    calibration.json      a machine each: cross-fitted scores of normal clips, names of the reference clips
    CARD.md               what a person should know of it
    front_end/            the separator that every clip goes through first (absent without one)
    members/NAME/         the members of an ensemble, each a whole detector (absent otherwise)
    manifest.json         format number, and size and sha256 of every other file

Nothing in it can run code, and a file that does not agree with the manifest is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from offkey.data.labels import LabelSpace
from offkey.detector import Detector, DetectorError, MachineDetector
from offkey.ensemble import MEMBERS, Ensemble
from offkey.explaining import PatchBank, Profile, Reach, Spectra
from offkey.files import write_whole
from offkey.manifest import MANIFEST, Kind, ManifestError, read_manifest, write_manifest
from offkey.scoring import Calibration, NormalQuantile, scorer_from_state
from offkey.separation.front_end import FOLDER as FRONT_END
from offkey.separation.front_end import FrontEnd
from offkey.systems.config import SystemConfig
from offkey.systems.settings import read_toml, to_toml, validate
from offkey.views import SHARED

if TYPE_CHECKING:
    from offkey.systems.network import Network

__all__ = ["FORMAT", "load_detector", "save_detector"]

FORMAT = 1
KIND = Kind(
    "detector",
    FORMAT,
    ("config.toml", "scorer.safetensors", "calibration.json", "CARD.md"),
    "offkey fit SOURCE",
    inner=(FRONT_END, f"{MEMBERS}/*"),
)
"""What a folder of a detector holds, for its manifest."""


def save_detector(detector: Detector, folder: Path) -> Path:
    """Write a detector into `folder` (made if missing); the manifest comes last, so a kill leaves no half one."""
    from safetensors.numpy import save as numpy_bytes
    from safetensors.torch import save as torch_bytes

    from offkey.systems.network import encoder_of

    arrays: dict[str, NDArray[Any]] = {}
    calibration: dict[str, Any] = {}
    for name, known in detector.machines.items():
        for number, scorer in enumerate(known.scorers):
            arrays |= {f"{name}|scorer{number}|{key}": value for key, value in scorer.state().items()}
        for number, to in enumerate(known.quantiles):
            arrays[f"{name}|quantile{number}|knots"] = to.knots
            arrays[f"{name}|quantile{number}|quantiles"] = to.quantiles
            arrays[f"{name}|quantile{number}|slope"] = np.array([to.slope])
        arrays |= {f"{name}|reference|{view}": array for view, array in known.embeddings.items()}
        if known.cross_fitted is not None and known.fresh is not None:
            arrays |= {f"{name}|normal|cross_fitted": known.cross_fitted, f"{name}|normal|fresh": known.fresh}
        arrays |= {f"{name}|profile|mean": known.profile.mean, f"{name}|profile|spread": known.profile.spread}
        kept = {"spectra": known.profile.spectra, "patches": known.profile.patches, "reach": known.profile.reach}
        for what, part in kept.items():
            arrays |= {f"{name}|{what}|{key}": value for key, value in (vars(part) if part else {}).items()}
        usual = {"frame_error": known.profile.frame_error, "band_error": known.profile.band_error}
        arrays |= {f"{name}|{what}|usual": value for what, value in usual.items() if value is not None}
        calibration[name] = {
            "calibration": known.calibration.to_dict(),
            "clips": list(known.clips),
            "domains": list(known.domains),
            "identities": list(known.identities),
        }
        if known.sessions is not None:
            calibration[name]["sessions"] = list(known.sessions)
    document = {
        "machines": calibration,
        "labels": detector.labels.to_dict() if detector.labels else None,
        "reasons": list(detector.reasons),
        "facts": detector.facts,
    }
    (folder / MANIFEST).unlink(missing_ok=True)
    contents: dict[str, bytes | str] = {
        "config.toml": to_toml(detector.config),
        "scorer.safetensors": numpy_bytes({key: np.ascontiguousarray(value) for key, value in arrays.items()}),
        "calibration.json": json.dumps(document, indent=1, ensure_ascii=False),
        "CARD.md": detector.card(),
    }
    if detector.networks:
        encoder = encoder_of(next(iter(detector.networks.values())))  # all have the same settings
        told = None if encoder is None else {"encoder": json.dumps(encoder.architecture)}
        contents["model.safetensors"] = torch_bytes(
            {
                (key if name == SHARED else f"{name}|{key}"): value.contiguous()
                for name, network in detector.networks.items()
                for key, value in network.state_dict().items()
            },
            told,
        )
    for name, content in contents.items():
        write_whole(folder / name, content)
    if not detector.networks:
        (folder / "model.safetensors").unlink(missing_ok=True)  # of a detector that was here before
    names = list(contents)
    if detector.front_end is not None and detector.config.separation.front_end:  # an ensemble's is its members'
        place = detector.front_end.save(folder)
        names += sorted(path.relative_to(folder).as_posix() for path in place.iterdir() if path.is_file())
    elif (folder / FRONT_END / MANIFEST).is_file():
        shutil.rmtree(folder / FRONT_END)
    if isinstance(detector, Ensemble):
        names += detector.manifests()
    write_manifest(folder, names, KIND)
    return folder


def load_detector(folder: Path) -> Detector:
    """Read a detector that `save_detector` wrote; raises DetectorError as `Detector.load` says."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        files = read_manifest(folder, KIND)
    except ManifestError as error:
        raise DetectorError(str(error)) from None
    try:
        config = validate(SystemConfig, read_toml(folder / "config.toml"), str(folder / "config.toml"))
        document = json.loads((folder / "calibration.json").read_text(encoding="utf-8"))
        arrays = load_file(folder / "scorer.safetensors")
        labels = LabelSpace.from_dict(document["labels"]) if document["labels"] else None
        networks = {}
        if "model.safetensors" in files:
            networks = _networks(folder / "model.safetensors", config, list(document["machines"]))
        front_end = None
        if config.separation.front_end:
            front_end = FrontEnd.load(folder / FRONT_END, config.separation.keep)
        machines = {name: _machine(name, entry, arrays, config) for name, entry in document["machines"].items()}
        if config.kind == "ensemble":
            places = {name: f"{MEMBERS}/{name}" for name in config.scoring.names}
            silent = [name for name, place in places.items() if f"{place}/{MANIFEST}" not in files]
            if silent:
                raise ValueError(f"{MANIFEST} says nothing of the member {silent[0]}")
            members = {name: load_detector(folder / place) for name, place in places.items()}
            told = (tuple(document["reasons"]), document["facts"])
            return Ensemble(config, machines, {}, labels, *told, None, members)
    except (KeyError, ValueError, TypeError, RuntimeError, SafetensorError, OSError) as error:
        raise DetectorError(f"{folder}: the detector is damaged ({error}); fit it again") from error
    return Detector(config, machines, networks, labels, tuple(document["reasons"]), document["facts"], front_end)


def _networks(file: Path, config: SystemConfig, machines: Sequence[str]) -> dict[str, Network]:
    """The trained networks; the file tells what their encoder looks like."""
    from safetensors import safe_open

    from offkey.encoders import build_encoder
    from offkey.systems.network import build_network

    with safe_open(file, framework="pt") as opened:
        told = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
    networks: dict[str, Network] = {}
    for name in [SHARED] if config.networks == "shared" else machines:
        prefix = "" if name == SHARED else f"{name}|"
        encoder = config.encoder.name
        network = build_network(
            config, None if encoder == "none" else build_encoder(encoder, json.loads(told["encoder"]))
        )
        network.load_state_dict(
            {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        )
        networks[name] = network.eval().requires_grad_(False)
    return networks


def _machine(
    name: str, entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], config: SystemConfig
) -> MachineDetector:
    def part(what: str) -> dict[str, NDArray[Any]]:
        prefix = f"{name}|{what}|"
        return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    def quantile(number: int) -> NormalQuantile:
        state = part(f"quantile{number}")
        return NormalQuantile(state["knots"], state["quantiles"], float(state["slope"][0]))

    normal = part("normal")
    count = len(config.scoring.scorers)
    blended = len(config.scoring.voters) > 1
    return MachineDetector(
        name=name,
        clips=tuple(entry["clips"]),
        domains=tuple(entry["domains"]),
        identities=tuple(entry["identities"]),
        embeddings=part("reference"),
        scorers=tuple(scorer_from_state(part(f"scorer{number}")) for number in range(count)),
        quantiles=tuple(quantile(number) for number in range(count)) if blended else (),
        calibration=Calibration.from_dict(entry["calibration"]),
        profile=Profile(
            **part("profile"),
            spectra=Spectra(**part("spectra")),
            frame_error=part("frame_error").get("usual"),
            band_error=part("band_error").get("usual"),
            patches=PatchBank(**part("patches")) if part("patches") else None,
            reach=Reach(**part("reach")) if part("reach") else None,
        ),
        cross_fitted=normal.get("cross_fitted"),
        fresh=normal.get("fresh"),
        sessions=tuple(entry["sessions"]) if "sessions" in entry else None,
    )
