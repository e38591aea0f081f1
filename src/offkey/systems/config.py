"""The settings of a system: one typed tree, one TOML preset a system, `--set` overrides.

Every room describes its own settings beside its code; this module only puts them together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from offkey.audio.io import AudioConfig
from offkey.audio.mel import MelConfig
from offkey.encoders.config import EncoderConfig
from offkey.models.config import BaselineConfig, DiscriminativeConfig, ReconstructiveConfig, RetrievalConfig
from offkey.objectives.config import MultiTaskConfig, ReconstructionConfig
from offkey.scoring import ScorerConfig
from offkey.systems.settings import SettingsError, apply_overrides, read_toml, validate
from offkey.training.config import AugmentationConfig, TrainingConfig

__all__ = [
    "AutoConfig",
    "CalibrationConfig",
    "EnsembleConfig",
    "LabelConfig",
    "MemberConfig",
    "ScoringConfig",
    "SeparationConfig",
    "SystemConfig",
    "ViewScorer",
    "load_preset",
    "preset_names",
]

View = Literal["network", "error", "residual", "logmel", "loudness", "members"]


def _named(default: str) -> Discriminator:
    """Tell settings apart by their name; what has no name is the first kind."""
    return Discriminator(
        lambda given: given.get("name", default) if isinstance(given, Mapping) else getattr(given, "name", default)
    )


ModelConfig = Annotated[
    Annotated[DiscriminativeConfig, Tag("mobilefacenet")]
    | Annotated[ReconstructiveConfig, Tag("conv-autoencoder")]
    | Annotated[BaselineConfig, Tag("dense-autoencoder")]
    | Annotated[RetrievalConfig, Tag("retrieval")],
    _named("mobilefacenet"),
]
ObjectiveConfig = Annotated[
    Annotated[MultiTaskConfig, Tag("multitask")] | Annotated[ReconstructionConfig, Tag("reconstruction")],
    _named("multitask"),
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LabelConfig(_Settings):
    """Which classes a discriminative model learns to tell apart."""

    identity: Literal["attributes", "attributes-or-clusters", "clusters", "domain", "machine"] = Field(
        "attributes",
        description="attributes: machine x known settings, else machine x domain; attributes-or-clusters: the same, "
        "but clips whose settings are not told are grouped by how they sound; clusters: all clips are; "
        "domain or machine alone",
    )
    clusters: int = Field(0, ge=0, description="groups a machine and domain; 0 chooses their number without labels")
    cluster_on: Literal["logmel", "encoder"] = Field(
        "logmel",
        description="what groups are found in: mean and deviation of each log-mel band, or the mean of what the "
        "pretrained encoder hears before it learns",
    )
    speeds: tuple[Annotated[float, Field(gt=0.5, lt=2.0)], ...] = Field(
        (1.0,),
        description="signal-level variants: each clip is also played at these speeds, and every speed is a "
        "class of its own; the first must be 1.0",
    )
    supplemental: bool = Field(
        False,
        description="clips of the machine alone and of noise alone join training as classes of their own",
    )

    @model_validator(mode="after")
    def _natural_speed_first(self) -> LabelConfig:
        if not self.speeds or self.speeds[0] != 1.0 or len(set(self.speeds)) != len(self.speeds):
            raise ValueError("speeds must begin with 1.0 and hold no value twice")
        return self


class ViewScorer(_Settings):
    """One scorer and the view of a clip that it judges."""

    view: View = Field(
        "network",
        description="network: the trained embedding, or that of a frozen encoder; error: an autoencoder's; residual: "
        "selective Mahalanobis of the baseline; logmel: statistics; loudness; members: scores of an "
        "ensemble's members",
    )
    scorer: ScorerConfig
    name: str = Field("", description="what it is called in tables; left out: view:scorer")
    weight: float = Field(1.0, ge=0, description="share in the blend; 0: told beside it, without a say")


class ScoringConfig(_Settings):
    """Scorers whose normal quantiles are averaged (a lone scorer is used as it is)."""

    scorers: tuple[ViewScorer, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_counts(self) -> ScoringConfig:
        if not self.voters:
            raise ValueError("every scorer has weight 0: one at least must count")
        return self

    @property
    def voters(self) -> list[int]:
        """Places of the scorers that count."""
        return [place for place, entry in enumerate(self.scorers) if entry.weight > 0]

    @property
    def names(self) -> list[str]:
        """A name a scorer, view:scorer, with a number where two would have the same."""
        plain = [entry.name or f"{entry.view}:{entry.scorer.name}" for entry in self.scorers]
        return [
            name if plain.count(name) == 1 else f"{name}.{plain[: place + 1].count(name)}"
            for place, name in enumerate(plain)
        ]


class StatisticsConfig(_Settings):
    """The training-free view: log-mel statistics over time."""

    mean: bool = Field(True, description="mean over time of every band")
    std: bool = Field(False, description="standard deviation over time of every band")


class CalibrationConfig(_Settings):
    """How normal clips become a threshold."""

    method: Literal["conformal", "gamma"] = Field("conformal", description="gamma is the challenge's rule")
    false_alarm_rate: float = Field(0.1, gt=0, lt=1, description="share of normal clips that may raise an alarm")
    folds: int = Field(5, ge=2, description="parts of the cross-fit")
    each_domain: bool = Field(
        False,
        description="the rate holds for source clips and for target clips on their own, where both are known; false: "
        "for the mix of them (conformal only)",
    )


class SeparationConfig(_Settings):
    """Separators that the system uses; each is the folder of one (`offkey fit-separator`), empty for none."""

    fit: Literal["never", "auto", "always"] = Field(
        "never",
        description="fit a separator first, where no front end is named, and hear every clip through it; auto: where "
        "there are 20 clips or more of the machine alone and of noise alone each, those of noise differ more from one "
        "another, and auto.minutes has room",
    )
    model: str = Field("", description="separator that augmentation.remix takes clips apart with")
    front_end: str = Field("", description="separator that every clip goes through before features, in scoring too")
    keep: Literal["foreground", "background"] = Field("foreground", description="part that the front end passes on")
    folder: str = Field(
        "",
        description="where a separator that is fitted first is kept, a folder each seed and set of clips: whoever is "
        "told the same folder shares it; empty: beside the detector, for it alone",
    )


class MemberConfig(_Settings):
    """One member of an ensemble: a system, by its preset, and what is changed in it. A text alone is the preset."""

    system: str = Field(description="name of a preset, or the path of a TOML file")
    name: str = Field(
        "", pattern=r"^[A-Za-z0-9_+-][A-Za-z0-9_.+-]*$|^$", description="its folder and name; left out: the system's"
    )
    weight: float = Field(1.0, ge=0, description="share in the blend; 0: told beside it, without a say")
    settings: tuple[str, ...] = Field((), description="changes in it, KEY=VALUE as --set takes them")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"system": given} if isinstance(given, str) else given


class EnsembleConfig(_Settings):
    """Systems that are fitted on the same clips and judge together; other settings hold for all of them."""

    members: tuple[MemberConfig, ...] = Field(
        (), description="presets by name, or tables with system, name, weight and settings (KEY=VALUE texts)"
    )
    weights: Literal["equal", "agreement"] = Field(
        "equal",
        description="what a member's own weight is multiplied with: 1, or how well its ranking of normal clips agrees "
        "with the others'",
    )

    @property
    def names(self) -> list[str]:
        """A name a member, with a number where two would have the same."""
        plain = [entry.name or Path(entry.system).stem for entry in self.members]
        return [
            name if plain[:place].count(name) == 0 else f"{name}-{plain[: place + 1].count(name)}"
            for place, name in enumerate(plain)
        ]


class AutoConfig(_Settings):
    """What `auto` may do beside a single detector."""

    retrieval: bool = Field(
        True,
        description="retrieval joins as a second system where weights of an encoder are at hand",
    )
    minutes: float = Field(
        0.0,
        ge=0,
        description="time that fitting may take by the estimate; 0: no bound. A network and a separator that would "
        "take longer are left out",
    )


class SystemConfig(_Settings):
    """Everything that makes a system, and nothing of the data."""

    system: str = Field(description="name of the recipe")
    about: str = Field("", description="one sentence on what it does")
    kind: Literal["discriminative", "reconstructive", "training-free", "auto", "ensemble"] = Field(
        "training-free",
        description="what a network learns: to tell classes apart, to rebuild what it hears, or there is none; "
        "auto decides when it has seen the recordings; ensemble: several systems that judge together",
    )
    networks: Literal["shared", "machine"] = Field(
        "shared", description="one network that learns from all machines together, or one for each machine"
    )
    seed: int = Field(0, ge=0, description="everything random follows from it")
    audio: AudioConfig = AudioConfig()
    mel: MelConfig = MelConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    labels: LabelConfig = LabelConfig()
    encoder: EncoderConfig = EncoderConfig()
    model: ModelConfig = DiscriminativeConfig()
    objective: ObjectiveConfig = MultiTaskConfig()
    training: TrainingConfig = TrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    separation: SeparationConfig = SeparationConfig()
    scoring: ScoringConfig
    calibration: CalibrationConfig = CalibrationConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    auto: AutoConfig = AutoConfig()

    @model_validator(mode="before")
    @classmethod
    def _older_names(cls, given: Any) -> Any:
        """`separation.fit` was `auto.separator` (true, false or null) in settings of older versions, and wins."""
        told = given.get("auto") if isinstance(given, Mapping) else None
        if not isinstance(told, Mapping) or "separator" not in told:
            return given
        rest = {name: value for name, value in told.items() if name != "separator"}
        fit = told["separator"]
        if isinstance(fit, bool):
            fit = "always" if fit else "never"
        elif fit is None:
            fit = "auto" if given.get("kind") == "auto" else "never"
        return {**given, "auto": rest, "separation": {**(given.get("separation") or {}), "fit": fit}}

    @model_validator(mode="before")
    @classmethod
    def _members_score(cls, given: Any) -> Any:
        """The scorers of an ensemble are its members, unless a saved one says which they came to be."""
        if not isinstance(given, Mapping) or given.get("kind") != "ensemble" or "scoring" in given:
            return given
        told = given.get("ensemble")
        ensemble = told if isinstance(told, EnsembleConfig) else EnsembleConfig.model_validate(told or {})
        scorers = [
            {"view": "members", "name": name, "weight": entry.weight, "scorer": {"name": "value", "column": place}}
            for place, (name, entry) in enumerate(zip(ensemble.names, ensemble.members, strict=True))
        ]
        if not scorers:
            raise ValueError("an ensemble has no members: name systems as ensemble.members")
        return {**given, "scoring": {"scorers": scorers}}

    @model_validator(mode="after")
    def _one_kind_has_members(self) -> SystemConfig:
        views = {entry.view for entry in self.scoring.scorers}
        if (self.kind == "ensemble") != (views == {"members"}):
            raise ValueError("view members is an ensemble's, and an ensemble has no other")
        if self.ensemble.members and self.kind != "ensemble":
            raise ValueError(f"ensemble.members is for --system ensemble; a system of kind {self.kind} has none")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> SystemConfig:
        views = {entry.view for entry in self.scoring.scorers}
        if isinstance(self.model, RetrievalConfig):
            self._retrieves(views)
            return self
        if self.kind == "training-free" and views & {"network", "error", "residual"}:
            raise ValueError("a training-free system has no network for a scorer to look at")
        if self.kind == "training-free" and self.encoder.name != "none":
            raise ValueError(
                "a training-free system has no network for an encoder to join: leave encoder.name alone, or choose "
                "system retrieval, or one that trains (system1 to system4, discriminative, auto)"
            )
        rebuilds = self.kind == "reconstructive"
        if rebuilds == isinstance(self.model, DiscriminativeConfig):
            names = "conv-autoencoder or dense-autoencoder" if rebuilds else "mobilefacenet"
            raise ValueError(f"a system of kind {self.kind} takes model.name {names}, not {self.model.name}")
        if rebuilds == isinstance(self.objective, MultiTaskConfig):
            name = "reconstruction" if rebuilds else "multitask"
            raise ValueError(f"a system of kind {self.kind} takes objective.name {name}, not {self.objective.name}")
        if "error" in views and not rebuilds:
            raise ValueError("view error is an autoencoder's; this system rebuilds nothing")
        if "residual" in views and not isinstance(self.model, BaselineConfig):
            raise ValueError("view residual is the dense autoencoder's (system baseline)")
        if rebuilds:
            self._frozen()
        grouped = self.kind != "training-free" and "clusters" in self.labels.identity
        if grouped and self.labels.cluster_on == "encoder" and self.encoder.name == "none":
            raise ValueError(
                "labels.cluster_on = encoder groups clips by what a pretrained encoder hears, and encoder.name is "
                "none: name an encoder, or set labels.cluster_on to logmel"
            )
        return self

    def _retrieves(self, views: set[View]) -> None:
        """Raise where settings ask a retrieval system for what it cannot do."""
        if self.kind != "training-free":
            raise ValueError(
                f"model.name retrieval trains nothing: kind must be training-free, not {self.kind} (or choose another "
                "system)"
            )
        if self.encoder.name == "none":
            raise ValueError(
                "a retrieval system listens with a pretrained encoder: set encoder.name to beats, or to efficientat on "
                "a machine without a GPU"
            )
        if self.encoder.unfreeze != "none" or self.encoder.lora_rank:
            raise ValueError(
                "nothing learns in a retrieval system: leave encoder.unfreeze and encoder.lora_rank alone, or choose "
                "system1 or system2"
            )
        if self.networks != "shared":
            raise ValueError("a retrieval system has one frozen encoder for all machines: leave networks alone")
        if views & {"error", "residual"}:
            raise ValueError("views error and residual are an autoencoder's; a retrieval system rebuilds nothing")
        if "network" not in views:
            raise ValueError("no scorer looks at what the encoder hears: give one the view network, or leave it out")

    def _frozen(self) -> None:
        """Raise where settings ask an autoencoder to learn from anything but the clips as they are."""
        told = [name for name in ("gain", "noise", "shift", "polarity", "mixup", "featex", "spec_augment")
                if getattr(self.augmentation, name).enabled]  # fmt: skip
        told = [f"augmentation.{name}.enabled" for name in told]
        told += ["labels.speeds"] if len(self.labels.speeds) > 1 else []
        told += ["training.crop_seconds"] if self.training.crop_seconds else []
        told += ["training.accumulate"] if self.training.accumulate > 1 else []
        if told:
            raise ValueError(
                f"an autoencoder learns from windows of clips as they are, cut beforehand: {', '.join(told)} cannot be "
                "used here"
            )
        if self.encoder.unfreeze != "none" or self.encoder.lora_rank:
            raise ValueError(
                "an autoencoder listens with a frozen encoder, for it could make its own task easy otherwise: "
                "leave encoder.unfreeze and encoder.lora_rank alone"
            )
        if isinstance(self.model, BaselineConfig) and self.encoder.name != "none":
            raise ValueError("the DCASE baseline hears log-mel alone: leave encoder.name alone, or choose system3")

    @model_validator(mode="after")
    def _a_frame_at_least(self) -> SystemConfig:
        crop, rate, frame = self.training.crop_seconds, self.audio.rate, self.mel.n_fft
        if crop and round(crop * rate) < frame:
            raise ValueError(
                f"training.crop_seconds {crop:g} is shorter than one frame ({frame} samples at {rate} Hz, "
                f"{frame / rate:g} s): nothing could be learnt from such a crop; 0 takes whole clips"
            )
        return self

    @model_validator(mode="after")
    def _remix_needs_a_separator(self) -> SystemConfig:
        if self.augmentation.remix.enabled and (self.separation.front_end or self.separation.fit == "always"):
            raise ValueError(
                "augmentation.remix puts backgrounds into training clips and separation.front_end takes them out of "
                "the clips that are scored: choose one of the two"
            )
        if self.augmentation.remix.enabled and not self.separation.model:
            raise ValueError(
                "augmentation.remix needs a separator: name its folder as separation.model (`offkey fit-separator` "
                "makes one)"
            )
        if self.augmentation.remix.enabled and self.kind == "training-free":
            raise ValueError("augmentation.remix makes training clips, and a training-free system learns from none")
        return self

    @property
    def varies_waveforms(self) -> bool:
        """Whether a training clip sounds different from epoch to epoch."""
        changes = self.augmentation
        drawn = (changes.gain, changes.noise, changes.shift, changes.polarity, changes.mixup, changes.remix)
        return any(change.enabled for change in drawn) or len(self.labels.speeds) > 1 or self.training.crop_seconds > 0


def preset_names() -> list[str]:
    """The names that `--system` takes, in alphabetical order."""
    folder = resources.files("offkey.systems") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_preset(
    system: str | Path, overrides: Iterable[str] = (), extra: Mapping[str, Any] | None = None
) -> SystemConfig:
    """Read a preset by name, or a TOML file by path, with overrides applied.

    `overrides` are `KEY=VALUE` texts; `extra` is a tree laid over the preset before them.
    Raises SettingsError for a system, key or value that does not exist, naming the nearest one.

    >>> load_preset("discriminative", ["training.epochs=5"]).training.epochs
    5
    """
    path = Path(system)
    if path.suffix == ".toml":
        tree = read_toml(path)
        where = str(path)
    else:
        if str(system) not in preset_names():
            raise SettingsError(
                f"there is no system {str(system)!r}; known: {', '.join(preset_names())}, or a path to a .toml file"
            )
        text = resources.files("offkey.systems").joinpath(f"presets/{system}.toml")
        with resources.as_file(text) as file:
            tree = read_toml(file)
        where = f"system {system!r}"
    tree = _merge(tree, extra or {})
    return validate(SystemConfig, apply_overrides(tree, overrides), where)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
