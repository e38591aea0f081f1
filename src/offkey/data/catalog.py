"""What can be downloaded: the archives of DCASE Challenge Task 2, 2020 to 2026, and where the truth of the tests is."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from offkey.types import OffkeyError

__all__ = [
    "CATALOG",
    "PARTS",
    "Archive",
    "CatalogError",
    "Dataset",
    "Part",
    "TruthSource",
    "catalog_text",
    "chosen",
    "dataset",
    "described",
    "read_catalog",
]

Part = Literal["dev", "additional", "eval"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Development set; training clips of the evaluation machines ("additional training"); their test clips."""


class CatalogError(OffkeyError):
    """A data set, machine or part that nobody knows, or a catalogue that cannot be read; the message says what is."""


@dataclass(frozen=True, slots=True)
class Archive:
    """One zip of a Zenodo record: clips of one machine. `md5` is known beforehand for some, None for the others."""

    part: Part
    machine: str
    record: str
    file: str
    md5: str | None = None

    @property
    def folder(self) -> str:
        """Where its machine's folder stands below the data set's: both halves of an evaluation machine share one."""
        return f"{'dev' if self.part == 'dev' else 'eval'}_data/raw"


@dataclass(frozen=True, slots=True)
class TruthSource:
    """Where the organisers publish the truth of an evaluation set.

    A GitHub `repository` with `commit` (None: the one that is newest when first asked, which is then kept to), or a
    `file` of a Zenodo `record`.
    """

    repository: str | None = None
    commit: str | None = None
    record: str | None = None
    file: str | None = None

    @property
    def page(self) -> str:
        """Address for people."""
        if self.repository is not None:
            return f"https://github.com/{self.repository}"
        return f"https://zenodo.org/records/{self.record}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One year of the challenge.

    `private` is None in offkey's own catalogue; else the hash of what a catalogue of somebody's own says of it, which
    the lock file keeps, so that nothing fetched by one catalogue is taken for what another one promises.
    """

    name: str
    year: int
    archives: tuple[Archive, ...]
    truth: TruthSource
    private: str | None = None

    @property
    def folder(self) -> str:
        """Name of its folder below the user's root, as the organisers' baseline has it."""
        return f"{self.name}t2"

    def machines(self, *parts: Part) -> tuple[str, ...]:
        """Machines of these parts (none given: all), in the catalogue's order.

        >>> CATALOG["dcase2025"].machines("dev")
        ('ToyCar', 'ToyTrain', 'bearing', 'fan', 'gearbox', 'slider', 'valve')
        """
        return tuple(dict.fromkeys(a.machine for a in self.archives if a.part in (parts or PARTS)))

    def sections(self, machine: str, part: Part) -> tuple[str, ...]:
        """Sections of a machine (2020: machine IDs) in a part of the year; "additional" and "eval" have the same ones.

        >>> CATALOG["dcase2020"].sections("fan", "dev"), CATALOG["dcase2022"].sections("fan", "eval")
        (('00', '02', '04', '06'), ('03', '04', '05'))
        """
        if self.year >= 2023:
            return ("00",)
        dev, hidden = ("00 01 02", "03 04 05") if self.year > 2020 else _IDS.get(machine, ("00 02 04 06", "01 03 05"))
        return tuple((dev if part == "dev" else hidden).split())


# 2020 to 2022: names as the organisers' baseline downloads them. 2023 to 2026: records, names and checksums as that
# baseline and the soundata project list them; those of the 2026 test clips as public systems of that year fetch them.
_DEV = "ToyCar ToyTrain bearing fan gearbox slider valve"
_2020 = "ToyCar ToyConveyor fan pump slider valve"
_IDS = {"ToyCar": ("01 02 03 04", "05 06 07"), "ToyConveyor": ("01 02 03", "04 05 06")}  # 2020: dev, hidden
_2021 = "ToyCar ToyTrain fan gearbox pump slider valve"
_2023 = "bandsaw grinder shaker ToyDrone ToyNscale ToyTank Vacuum"
_2024 = (  # a machine:revision, where its archive was replaced
    "3DPrinter:_r2 AirCompressor Scanner ToyCircuit HoveringDrone HairDryer ToothBrush RoboticArm:_r2 BrushlessMotor"
)
_2025 = "ToyRCCar ToyPet HomeCamera AutoTrash Polisher ScrewFeeder BandSealer CoffeeGrinder"
_2026 = "ToyDrone ToothBrush SewingMachine BlowerDustCollector Sander"
_YEARS: dict[int, tuple[tuple[Part, str, str, str], ...]] = {
    2020: (
        ("dev", "3678171", "dev_data_{}.zip", _2020),
        ("additional", "3727685", "eval_data_train_{}.zip", _2020),
        ("eval", "3841772", "eval_data_test_{}.zip", _2020),
    ),
    2021: (
        ("dev", "4562016", "dev_data_{}.zip", _2021),
        ("additional", "4660992", "eval_data_{}_train.zip", _2021),
        ("eval", "4884786", "eval_data_{}_test.zip", _2021),
    ),
    2022: (
        ("dev", "6355122", "dev_{}.zip", _DEV),
        ("additional", "6462969", "eval_data_{}_train.zip", _DEV),
        ("eval", "6586456", "eval_data_{}_test.zip", _DEV),
    ),
    2023: (
        ("dev", "7882613", "dev_{}.zip", _DEV),
        ("additional", "7830345", "eval_data_{}_train.zip", _2023),
        ("eval", "7860847", "eval_data_{}_test.zip", _2023),
    ),
    2024: (
        ("dev", "10902294", "dev_{}.zip", _DEV),
        ("additional", "11259435", "eval_data_{}_train.zip", _2024),
        ("eval", "11363076", "eval_data_{}_test.zip", _2024.replace(":_r2", "")),
    ),
    2025: (
        ("dev", "15097779", "dev_{}.zip", _DEV),
        ("additional", "15392814", "eval_data_{}_train.zip", _2025),
        ("eval", "15519362", "eval_data_{}_test.zip", _2025),
    ),
    2026: (
        ("dev", "19336329", "dev_{}.zip", "ToyCar:_r2 ToyCarEmu bearingEmu fan gearboxEmu sliderEmu valveEmu"),
        ("additional", "20151556", "eval_data_{}_train.zip", _2026),
        ("eval", "20437238", "eval_data_{}_test.zip", _2026),
    ),
}

_MD5 = {
    "dev_bearing.zip": "8a813bc8d8f156b5395bfccdfac7673c",
    "dev_fan.zip": "9348591e96fb0ad499a1e33b082562fc",
    "dev_gearbox.zip": "b6e55f6a31faa0fc8569ec0afdd53ccf",
    "dev_slider.zip": "b3f8dee36b4718c36d659a4fd1c4afe0",
    "dev_ToyCar.zip": "4e3bf15f4101ed4ed4f1fecde2e2b2a3",
    "dev_ToyTrain.zip": "6b02a6c65eebb3b8b1ae59a6b25bb897",
    "dev_valve.zip": "b2051a2022eadb53cd97581120811cae",
    "eval_data_bandsaw_train.zip": "9274dfe63de028743823f1123f8b4b47",
    "eval_data_bandsaw_test.zip": "2a8e8f39f6584ab366a8f4da52d4d7a6",
    "eval_data_grinder_train.zip": "17569c1f9df23621a0dbabc430684a35",
    "eval_data_grinder_test.zip": "631b3e1608b6077772829a6e68c82c77",
    "eval_data_shaker_train.zip": "35f821b5645b731fb5a1750e33b95fc3",
    "eval_data_shaker_test.zip": "ba98c98caa96051ec80e24e44b8fca56",
    "eval_data_ToyDrone_train.zip": "7fea367d1384a1521ae24f72203238de",
    "eval_data_ToyDrone_test.zip": "fdae7b8d1f4cadb2bea88bc93e2367db",
    "eval_data_ToyNscale_train.zip": "9332822f3e47afd984c01f2ecb5ca3af",
    "eval_data_ToyNscale_test.zip": "62f5f5043d8fb3a305b1c2e1025872de",
    "eval_data_ToyTank_train.zip": "b1fd3ab7de7561290df2d477de1c9d33",
    "eval_data_ToyTank_test.zip": "f5639bf58c47169c622751f19c6fc321",
    "eval_data_Vacuum_train.zip": "1c8de33d9a8c7850a1f7aaddb97d87be",
    "eval_data_Vacuum_test.zip": "a32524fd8c45b574a560685b38acc4e1",
}
"""Checksums of 2023; for the other years they are read from the record when it is first asked."""

_TRUTH = {
    2020: TruthSource(record="3951620", file="eval_data_list.csv"),
    2021: TruthSource("y-kawagu/dcase2021_task2_evaluator", "0c11634ba7259e4ae4a655646aebd6cd056cc523"),
    2022: TruthSource("Kota-Dohi/dcase2022_evaluator", "9785ae5c63f6308c699b8b82cff3bfcd08667df3"),
    2023: TruthSource("nttcslab/dcase2023_task2_evaluator", "c850537ff8e3b81ab09d90041279dbf86811738b"),
    2024: TruthSource("nttcslab/dcase2024_task2_evaluator", "b5d17f63769bf4372a5412a7ede1f814c9590047"),
    2025: TruthSource("nttcslab/dcase2025_task2_evaluator"),
    2026: TruthSource("nttcslab/dcase2026_task2_evaluator", "f6a94a2b5e614a9626c9d1ccff6df0705e6aaa75"),
}


def _archives(year: int) -> Iterable[Archive]:
    for part, record, pattern, machines in _YEARS[year]:
        for word in machines.split():
            machine, _, revision = word.partition(":")
            file = pattern.format(machine).removesuffix(".zip") + f"{revision}.zip"
            yield Archive(part, machine, record, file, _MD5.get(file) if year == 2023 else None)


CATALOG = MappingProxyType(
    {f"dcase{year}": Dataset(f"dcase{year}", year, tuple(_archives(year)), _TRUTH[year]) for year in _YEARS}
)
"""Data sets by name."""


def dataset(name: str | Dataset, catalog: Mapping[str, Dataset] = CATALOG) -> Dataset:
    """The data set called `name`: "dcase2025", "2025", "DCASE2025T2"; one that is given is given back.

    Raises CatalogError that names the nearest ones.

    >>> dataset("DCASE2026T2").year
    2026
    """
    if isinstance(name, Dataset):
        return name
    asked = name.lower().removesuffix("t2").replace("-", "").replace("_", "")
    asked = f"dcase{asked}" if asked.isdigit() else asked
    if asked in catalog:
        return catalog[asked]
    raise CatalogError(f"no data set is called {name!r}; there are {', '.join(catalog)}")


_FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def described(one: Dataset) -> dict[str, Any]:
    """A data set as `read_catalog` reads it, for JSON."""
    return {
        "name": one.name,
        "year": one.year,
        "archives": [asdict(archive) for archive in one.archives],
        "truth": asdict(one.truth),
    }


def catalog_text(sets: Iterable[Dataset]) -> str:
    """Data sets as the text that `read_catalog` reads."""
    return json.dumps({"format": _FORMAT, "datasets": [described(one) for one in sets]}, indent=1) + "\n"


def read_catalog(path: Path) -> dict[str, Dataset]:
    """A catalogue of one's own: data sets by name, of a year that offkey knows, with an MD5 for every archive.

    The file is `{"format": 1, "datasets": [{"name", "year", "archives": [{"part", "machine", "record", "file",
    "md5"}, …], "truth": {"repository", "commit"} or {"record", "file"}}, …]}`. `offkey data miniature --site` writes
    one beside its zips. What it says stands beside offkey's own catalogue and changes nothing in it.

    Raises CatalogError that names the entry that is missing, or is no plain name of a file.
    """
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            raise CatalogError(f"{path}: format {told['format']!r} is not known here; expected {_FORMAT}")
        found = [_read(path, entry) for entry in told["datasets"]]
    except OSError as error:
        raise CatalogError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CatalogError(f"{path} is no catalogue ({error!r}); expected format, datasets, archives, truth") from error
    return {one.name: one for one in found}


def _read(path: Path, entry: dict[str, Any]) -> Dataset:
    year = f"dcase{entry['year']}"
    if entry["name"] != year or year not in CATALOG:
        raise CatalogError(f"{path}: a data set is called dcase<year>, {', '.join(CATALOG)}, not {entry['name']!r}")
    for told in entry["archives"]:
        names = [told[key] for key in ("part", "machine", "record", "file")]
        wrong = [name for name in names if not isinstance(name, str) or not _NAME.fullmatch(name)]
        if wrong or names[0] not in PARTS or not names[3].endswith(".zip"):
            raise CatalogError(f"{path}: {wrong[0] if wrong else names!r} is no part, machine, record or zip file")
        if not re.fullmatch(r"[0-9a-f]{32}", str(told.get("md5"))):
            raise CatalogError(f"{path}: {names[3]} has no md5; a catalogue of one's own tells one for every archive")
    archives = tuple(Archive(**told) for told in entry["archives"])
    twice = [one.file for at, one in enumerate(archives) if one.file in {other.file for other in archives[:at]}]
    if twice or not archives:
        raise CatalogError(f"{path}: {year} has {f'{twice[0]} twice' if twice else 'no archives'}")
    truth = TruthSource(**entry["truth"])
    words = [word for text in asdict(truth).values() if text is not None for word in str(text).split("/")]
    if not all(_NAME.fullmatch(word) for word in words) or not (truth.repository or (truth.record and truth.file)):
        raise CatalogError(f"{path}: the truth of {year} is a repository OWNER/NAME, or a file of a record")
    own = Dataset(year, int(entry["year"]), archives, truth)
    digest = hashlib.sha256(json.dumps(described(own), sort_keys=True).encode()).hexdigest()
    return replace(own, private=digest)


def chosen(year: Dataset, machines: Iterable[str] = (), parts: Iterable[str] = PARTS) -> tuple[Archive, ...]:
    """The archives of these machines (none given: all) and parts, development set first.

    Raises CatalogError for a part or machine that the year does not have.

    >>> [archive.file for archive in chosen(dataset("2024"), ["3DPrinter"])]
    ['eval_data_3DPrinter_train_r2.zip', 'eval_data_3DPrinter_test.zip']
    """
    wanted = set(parts)
    if strange := sorted(wanted - set(PARTS)):
        raise CatalogError(f"there is no part {strange[0]!r}; the parts are {', '.join(PARTS)}")
    known = {machine.lower(): machine for machine in year.machines()}
    asked = list(dict.fromkeys(machines))
    for machine in asked:
        if machine.lower() not in known:
            near = [known[key] for key in difflib.get_close_matches(machine.lower(), known, n=2)]
            advice = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known.values())}"
            raise CatalogError(f"{year.name} has no machine {machine!r}; {advice}")
    names = {known[machine.lower()] for machine in asked} or set(known.values())
    found = tuple(a for a in year.archives if a.part in wanted and a.machine in names)
    if not found:
        raise CatalogError(f"{year.name} has nothing of {', '.join(sorted(names))} in {', '.join(sorted(wanted))}")
    return found
