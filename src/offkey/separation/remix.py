"""New training clips from old ones: the foreground of one normal clip in the background of another.

The report's §2.3: backgrounds come from all machines, the signal-to-noise ratio is drawn, and sometimes foregrounds of
two domains are interpolated. Where the report lets anomalous clips in, this refuses: only clips that are marked normal
and belong to the training or supplemental part may enter, or a detector would learn what it is to find.

`Remix` changes batches on their way to the model, before anything else does; `write_remixes` writes a data set.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from offkey.data.dcase import format_name, parse_name
from offkey.data.fingerprint import clips_fingerprint
from offkey.data.loader import Failure
from offkey.data.source import Source
from offkey.files import same_name, write_whole
from offkey.progress import Progress, Quiet
from offkey.separation.stems import Stems
from offkey.training.config import RemixConfig
from offkey.training.randomness import Moment
from offkey.types import Batch, ClipMeta, Condition, Content, Domain, Float, OffkeyError, Split

__all__ = [
    "RECORD",
    "TRUTH",
    "Recipe",
    "Remix",
    "RemixConfig",
    "RemixError",
    "RemixSummary",
    "active_power",
    "loop",
    "write_remixes",
]

RECORD, TRUTH = "remix.json", "remix.csv"
"""Files below the root of a written data set: how it was made, and which clip was made of what."""

_FORMAT = 1
_REMIX = 21  # purpose of random numbers, apart from those of training/ and systems/
_FRAME_SECONDS = 0.032
_QUIETEST_ACTIVE = 1e-2  # of the loudest frame's power: 20 dB below it a machine counts as pausing
_FAINTEST = 1e-4  # of the clip's power: a part 40 dB below the clip is what separation left over, no sound of its own;
# and of the background's: a stretch 40 dB below the rest of it is a pause, and nothing that could be made louder
_FADE_SECONDS = 0.05


class RemixError(OffkeyError):
    """Clips that may not or cannot be recombined."""


class Recipe(NamedTuple):
    """What a remixed clip was made of; `partner_share` is the other domain's share of the foreground, 0 to 0.5."""

    foreground: ClipMeta
    background: ClipMeta
    snr_db: float
    partner: ClipMeta | None = None
    partner_share: float = 0.0


def active_power(samples: Float[np.ndarray, " T"], rate: int) -> float:
    """Mean power of the 32 ms frames that lie within 20 dB of the loudest one; 0 for silence.

    A valve that is open for a tenth of the time is as loud as one that never rests: pauses do not count.

    >>> active_power(np.r_[np.ones(1536, np.float32), np.zeros(14464, np.float32)], 16000)
    1.0
    """
    size = min(len(samples), max(1, round(_FRAME_SECONDS * rate)))
    frames = samples[: len(samples) // size * size].reshape(-1, size) if size else np.zeros((1, 1), np.float32)
    power = np.square(frames, dtype=np.float64).mean(axis=1)
    loudest = float(power.max())
    return float(power[power >= _QUIETEST_ACTIVE * loudest].mean()) if loudest > 0 else 0.0


def loop(samples: Float[np.ndarray, " T"], length: int, start: float, fade: int) -> NDArray[np.float32]:
    """`length` samples of a sound that repeats without an audible seam, from `start` (0 to 1) of the way into it.

    Where it begins again, its end fades out over `fade` samples while its beginning fades in, at equal power (cosine
    and sine), since the two are not alike.

    >>> loop(np.arange(4, dtype=np.float32), 6, 0.5, 0)
    array([2., 3., 0., 1., 2., 3.], dtype=float32)
    """
    if not len(samples):
        raise ValueError("no samples to repeat")
    fade = min(fade, len(samples) // 2)
    once = np.array(samples[: len(samples) - fade], dtype=np.float32)
    if fade:
        angle = (np.arange(fade, dtype=np.float32) + 0.5) * np.float32(np.pi / 2 / fade)
        once[:fade] = once[:fade] * np.sin(angle) + samples[len(samples) - fade :] * np.cos(angle)
    first = min(int(start * len(once)), len(once) - 1)
    turns = -(-(first + length) // len(once))
    return np.tile(once, turns)[first : first + length] if turns > 1 else once[first : first + length].copy()


def _loudest(samples: NDArray[np.float32], length: int, fade: int) -> float:
    """Where in `loop`'s sound (0 to 1) the `length` samples with the most power begin."""
    once = loop(samples, len(samples) - min(fade, len(samples) // 2), 0.0, fade)
    if length >= len(once):
        return 0.0  # all of it is heard
    around = np.cumsum(np.square(np.r_[np.float32(0), once, once[:length]], dtype=np.float64))
    return (int(np.argmax(around[length : length + len(once)] - around[: len(once)])) + 0.5) / len(once)


class Remix:
    """Changes some clips of a batch into their foreground in another clip's background.

    `clips` is the list that `batch.place` points into; `supplemental` may add noise-only clips, which serve as
    backgrounds whole, and machine-only clips, which serve as partners in mixup; `lenders` lend backgrounds and nothing
    else. A machine-only clip in a batch is its own foreground; a noise-only one is left as it is, and so is a clip in
    which separation found next to nothing.

    The background is drawn from another clip: the machine first, so that each is as likely however many clips it has,
    then the clip, then a stretch of it as long as the foreground; where that stretch is silent next to the rest of
    the clip, its loudest one. The SNR counts active frames on both sides (`active_power`). A remixed clip has the
    length and RMS level of the one that it replaces, and its labels: those of the foreground, with mixup of its louder
    part.

    Every draw follows from the moment given to `seek` and the row in the batch. Use it before speeds and crops change
    the clips: foregrounds are looked up by place and must be as long. Raises RemixError for clips that are not normal.
    """

    def __init__(
        self,
        config: RemixConfig,
        clips: Sequence[ClipMeta],
        stems: Stems,
        supplemental: Sequence[ClipMeta] = (),
        lenders: Sequence[ClipMeta] = (),
    ) -> None:
        lent = {clip.path: clip for clip in lenders}
        own = {clip.path: clip for clip in [*clips, *supplemental]}
        refuse_unless_normal([*clips, *supplemental, *lenders])
        self.config, self.clips, self.stems = config, list(clips), stems
        self.rate = stems.config.rate
        self.moment = Moment(0, 0, 0)
        self._backgrounds: dict[str, list[ClipMeta]] = {}
        self._partners: dict[tuple[str, str, Domain], list[ClipMeta]] = {}
        for clip in (own | lent).values():
            if clip.content is not Content.MACHINE:
                self._backgrounds.setdefault(clip.machine, []).append(clip)
        for clip in own.values():
            if clip.content is not Content.NOISE and clip.domain is not Domain.UNKNOWN:
                self._partners.setdefault((clip.machine, clip.section, clip.domain), []).append(clip)
        if not self._backgrounds:
            raise RemixError("there is no background to mix with: give normal training clips or noise-only recordings")

    def seek(self, moment: Moment) -> None:
        """Set the place in the run that the next draws follow from."""
        self.moment = moment

    def seek_batch(self, seed: int, epoch: int, batch: Batch) -> None:
        """`seek` for a loader that does not know the step: the batch's own clips stand for it.

        A resumed run, which loads the rest of an epoch only, draws the same.
        """
        self.seek(Moment(seed, epoch, zlib.crc32(batch.place.numpy().tobytes())))

    def __call__(self, batch: Batch) -> Batch:
        """Return the batch with some clips remixed, in a copy; labels, lengths and places stay."""
        if not self.config.enabled:
            return batch
        waveform = batch.waveform.clone()
        for row, (length, place) in enumerate(zip(batch.lengths.tolist(), batch.place.tolist(), strict=True)):
            numbers = np.random.default_rng([*self.moment, _REMIX, row])
            if numbers.random() >= self.config.probability:
                continue
            made = self.make(self.clips[place], waveform[row, :length].numpy(), numbers)
            if made is not None:
                waveform[row, :length] = torch.from_numpy(made[0])
        return batch._replace(waveform=waveform)

    def make(
        self, clip: ClipMeta, samples: NDArray[np.float32], numbers: np.random.Generator
    ) -> tuple[NDArray[np.float32], Recipe] | None:
        """Remix one clip, whose `samples` (T,) are as read; None where there is nothing to recombine.

        Raises RemixError for a clip that is not normal, and for samples that are not as long as its foreground.
        """
        refuse_unless_normal([clip])
        if clip.content is Content.NOISE:
            return None
        # Drawn in any case and first, so that one setting does not change what another draws.
        snr = float(numbers.uniform(self.config.min_snr_db, self.config.max_snr_db))
        start, wanted, far = numbers.random(), numbers.random() < self.config.mixup, numbers.random()
        share = float(numbers.beta(self.config.mixup_alpha, self.config.mixup_alpha))
        source = self._background(clip, numbers)
        other = self._partner(clip, numbers) if wanted else None

        front = samples if clip.content is Content.MACHINE else self.stems.foreground(clip.path)
        if len(front) != len(samples):
            raise RemixError(
                f"{clip.path}: {len(samples)} samples are to be remixed, but its foreground has {len(front)}; remix "
                "clips as they were read, before speeds and crops change them"
            )
        power = float(np.mean(np.square(samples, dtype=np.float64)))
        loud = active_power(front, self.rate)
        whole = self.stems.of(source)
        back_loud = active_power(whole.background, self.rate)
        if loud <= _FAINTEST * power or back_loud <= _FAINTEST * active_power(np.add(*whole), self.rate):
            return None
        fade = round(_FADE_SECONDS * self.rate)
        back = loop(whole.background, len(front), start, fade)
        stretch_loud = active_power(back, self.rate)
        if stretch_loud <= _FAINTEST * back_loud:  # a pause of the surroundings, which no gain brings to the SNR
            back = loop(whole.background, len(front), _loudest(whole.background, len(front), fade), fade)
            stretch_loud = active_power(back, self.rate)
            if stretch_loud <= _FAINTEST * back_loud:
                return None
        recipe = Recipe(clip, source, snr)
        if other is not None:
            pair = self.stems.of(other)
            second, second_loud = pair.foreground, active_power(pair.foreground, self.rate)
            if second_loud > _FAINTEST * active_power(np.add(*pair), self.rate):
                share = min(share, 1.0 - share)
                second = loop(second, len(front), far, fade) * np.float32((loud / second_loud) ** 0.5)
                front = np.float32(1.0 - share) * front + np.float32(share) * second
                loud = active_power(front, self.rate)
                recipe = recipe._replace(partner=other, partner_share=share)
        scale = (loud / (stretch_loud * 10.0 ** (snr / 10.0))) ** 0.5
        mixed = front + np.float32(scale) * back
        # as loud as before: otherwise the level would tell how much background there is
        level = (power / float(np.mean(np.square(mixed, dtype=np.float64)))) ** 0.5
        return np.asarray(mixed * np.float32(level), dtype=np.float32), recipe

    def _background(self, clip: ClipMeta, numbers: np.random.Generator) -> ClipMeta:
        machine, place = numbers.random(), numbers.random()
        # A machine whose only clip is this one has no other to offer; a lone clip keeps its own background.
        offered = [mine for mine in self._backgrounds.values() if len(mine) > 1 or mine[0].path != clip.path] or list(
            self._backgrounds.values()
        )
        mine = offered[int(machine * len(offered))]
        drawn = int(place * len(mine))
        if mine[drawn].path == clip.path:
            drawn = (drawn + 1 + int(numbers.integers(max(1, len(mine) - 1)))) % len(mine)
        return mine[drawn]

    def _partner(self, clip: ClipMeta, numbers: np.random.Generator) -> ClipMeta | None:
        across = {Domain.SOURCE: Domain.TARGET, Domain.TARGET: Domain.SOURCE}.get(clip.domain)
        mine = [] if across is None else self._partners.get((clip.machine, clip.section, across), [])
        return mine[int(numbers.integers(len(mine)))] if mine else None


def refuse_unless_normal(clips: Sequence[ClipMeta]) -> None:
    """Raise RemixError unless every clip is marked normal and lies outside the test part."""
    for clip in clips:
        if clip.condition is not Condition.NORMAL or clip.split is Split.TEST:
            raise RemixError(
                f"{clip.path} is a {clip.split.value} clip of condition {clip.condition.value}: only training and "
                "supplemental clips marked normal are recombined, since a detector learns what is normal from them. "
                "Leave it out"
            )


class RemixSummary(NamedTuple):
    """What `write_remixes` left: remixed clips, originals beside them, and clips with nothing to recombine."""

    root: Path
    written: int
    originals: int
    left_out: int


def write_remixes(
    source: Source,
    out: Path,
    config: RemixConfig,
    stems: Stems,
    *,
    copies: int = 1,
    seed: int = 0,
    originals: bool = False,
    progress: Progress | None = None,
    failures: list[Failure] | None = None,
) -> RemixSummary:
    """Write `copies` remixes of every normal training clip of `source` as a data set of its own layout.

    A DCASE source becomes `<machine>/train/<DCASE name with a new number>.wav` with `attributes_NN.csv`; a plain folder
    keeps its paths, each name with `_remixK` (and `_2`, `_3`, … before it where two clips would have the same).
    Machine-only supplemental clips are remixed as training clips of their machine, noise-only ones lend their
    background. With `originals` the training clips themselves lie beside their remixes, as they were decoded. Files
    are mono, 32-bit float, at the stems' rate. `remix.csv` tells what each was made of; `remix.json` how. Every clip
    is met, whatever `config.probability` says.

    Started again with the same arguments, a run that was broken off goes on; same arguments, same bytes. Clips that
    cannot be read are appended to `failures`. Raises RemixError for a folder that holds something else.
    """
    progress, failures = progress or Quiet(), failures if failures is not None else []
    heard = [clip for clip in source.clips if clip.split is not Split.TEST]
    refuse_unless_normal(heard)
    if not any(clip.split is Split.TRAIN for clip in heard):
        raise RemixError(f"{source.root} has no training clips; `offkey data check {source.root}` tells what was found")
    _claim(out, source, config, stems, copies, seed, originals, heard)
    heard = stems.find(heard, progress, failures)
    train = [clip for clip in heard if clip.split is Split.TRAIN]
    extra = [clip for clip in heard if clip.split is Split.SUPPLEMENTAL]
    fronts = [*train, *(clip for clip in extra if clip.content is Content.MACHINE)]
    remix = Remix(config.model_copy(update={"enabled": True}), fronts, stems, extra)
    names = _Names(source, fronts, copies)
    rows: list[list[object]] = []
    tables: dict[Path, list[tuple[str, ClipMeta]]] = {}
    left_out = kept = 0

    def note(clip: ClipMeta, place: Path) -> None:
        if source.kind == "dcase":
            table = out / clip.machine / f"attributes_{clip.section}.csv"
            tables.setdefault(table, []).append((place.as_posix(), clip))

    progress.start("remixing", len(fronts) * copies)
    for number, clip in enumerate(fronts):
        pair = stems.of(clip)
        samples = pair.foreground + pair.background
        if originals and clip.split is Split.TRAIN:
            place = names.of(number, 0)
            _write_wav(out / place, samples, remix.rate)
            note(clip, place)
            kept += 1
        for copy in range(1, copies + 1):
            made = remix.make(clip, samples, np.random.default_rng([*Moment(seed, copy, number), _REMIX]))
            progress.step(number * copies + copy)
            if made is None:
                left_out += 1
                continue
            place = names.of(number, copy)
            _write_wav(out / place, made[0], remix.rate)
            note(clip, place)
            rows.append([place.as_posix(), *_told(made[1], source.root)])
    for table, listed in tables.items():
        if any(clip.attributes for _, clip in listed):
            write_whole(table, _attributes(listed))
    header = ["file", "foreground", "background", "snr_db", "partner", "partner_share"]
    write_whole(out / TRUTH, _csv([header, *rows]))
    return RemixSummary(out, len(rows), kept, left_out)


class _Names:
    """Where the copies of each clip go: names that the source's layout has for clips of the same kind.

    No two are alike, nor do two differ in upper and lower case alone, which some disks take for the same.
    """

    def __init__(self, source: Source, clips: Sequence[ClipMeta], copies: int) -> None:
        self.source, self.clips, self.copies = source, clips, copies
        parsed = [parse_name(clip.path.name) if source.kind == "dcase" else None for clip in clips]
        self.parsed = parsed
        digits = max((len(name.number) for name in parsed if name is not None), default=0)
        self.block = 10**digits  # numbers of one copy
        self._turns: list[int] = []  # of each clip: how many earlier ones would have had its names
        taken: set[str] = set()
        for place in range(len(clips)):
            for turn in count():
                names = {same_name(self._name(place, copy, turn).as_posix()) for copy in range(copies + 1)}
                if not names & taken:
                    break
            taken |= names
            self._turns.append(turn)

    def of(self, place: int, copy: int) -> Path:
        """Path below the new root of copy number `copy` of a clip; copy 0 is the original."""
        return self._name(place, copy, self._turns[place])

    def _name(self, place: int, copy: int, turn: int) -> Path:
        clip, name = self.clips[place], self.parsed[place]
        if name is not None:
            # Odd blocks are training clips', even ones machine-only clips': they count from 0 as well.
            block = 2 * copy - (clip.split is Split.TRAIN) if copy else 0
            block += turn * 2 * (self.copies + 1)
            number = name.number if not block else str(int(name.number) + block * self.block)
            name = name._replace(number=number, split=Split.TRAIN, condition=Condition.NORMAL, content=Content.MIXTURE)
            return Path(clip.machine, "train", format_name(name))
        inside = clip.path.relative_to(self.source.root)
        told = (f"_{turn + 1}" if turn else "") + (f"_remix{copy}" if copy else "")
        # The ending stays in the name: a.wav and a.flac are two clips.
        stem = inside.stem if inside.suffix.lower() == ".wav" else inside.name.replace(".", "_")
        kind = "_machine" if clip.content is Content.MACHINE else ""
        folders = [part for part in inside.parts[:-1] if clip.split is Split.TRAIN or part.lower() not in _UNTRAINED]
        if clip.machine not in folders:
            folders.insert(0, clip.machine)  # the source's root names it, and the new root has another name
        return Path(*folders, f"{stem}{kind}{told}.wav")


_UNTRAINED = frozenset({"supplemental", "supplementary", "machine", "clean"})


def _claim(
    out: Path,
    source: Source,
    config: RemixConfig,
    stems: Stems,
    copies: int,
    seed: int,
    originals: bool,
    clips: Sequence[ClipMeta],
) -> None:
    """Make the folder ours, or refuse."""
    record = {
        "format": _FORMAT,
        "source": source.root.name,
        "clips": clips_fingerprint(clips),
        "separator": stems.fingerprint,
        "audio": stems.config.model_dump(mode="json"),
        "remix": config.model_dump(mode="json", exclude={"enabled", "probability"}),
        "copies": copies,
        "originals": originals,
        "seed": seed,
    }
    text = json.dumps(record, indent=1) + "\n"
    inside, root = out.resolve(), source.root.resolve()
    if inside == root or root in inside.parents:
        raise RemixError(
            f"{out} lies inside {source.root}, where its clips would be taken for originals: choose another"
        )
    if out.exists() and not out.is_dir():
        raise RemixError(f"{out} is a file; give a folder for the remixed clips")
    if out.is_dir() and any(out.iterdir()):
        path = out / RECORD
        if not path.is_file():
            raise RemixError(f"{out} is not empty and holds no {RECORD}: give a new folder; nothing was overwritten")
        if path.read_text(encoding="utf-8") != text:
            raise RemixError(
                f"{out} was made from other clips, with another separator or other settings (see {path}): give another "
                "folder, or remove this one"
            )
    write_whole(out / RECORD, text)


def _told(recipe: Recipe, root: Path) -> list[object]:
    def inside(clip: ClipMeta) -> str:
        return clip.path.relative_to(root).as_posix()

    partner = "" if recipe.partner is None else inside(recipe.partner)
    parts = [inside(recipe.foreground), inside(recipe.background), f"{recipe.snr_db:.3f}", partner]
    return [*parts, f"{recipe.partner_share:.4f}" if partner else ""]


def _attributes(listed: Sequence[tuple[str, ClipMeta]]) -> str:
    """DCASE's table: one row a clip, name and value of each setting in turn."""
    count = max(len(clip.attributes) for _, clip in listed)
    rows: list[list[object]] = [["file_name", *(f"d{k}{x}" for k in range(1, count + 1) for x in "pv")]]
    for place, clip in listed:
        words = [word for pair in clip.attributes for word in pair]
        rows.append([place, *words, *[""] * (2 * count - len(words))])
    return _csv(rows)


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _write_wav(path: Path, samples: NDArray[np.float32], rate: int) -> None:
    # Float, so that neither a faint clip is coarsened nor a loud peak cut off; and not by libsndfile, which writes the
    # time of day into the header of float files.
    from scipy.io import wavfile

    memory = io.BytesIO()
    wavfile.write(memory, rate, samples)
    sound = memory.getvalue()
    if not path.is_file() or path.stat().st_size != len(sound) or path.read_bytes() != sound:
        write_whole(path, sound)
