"""Published weights that are known by name: what they are, where they are to be had, and how to know the right file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import PurePath

from offkey.types import OffkeyError

__all__ = ["CATALOG", "Published", "WeightsError", "published"]


class WeightsError(OffkeyError):
    """Weights that are not at hand, are damaged, are not what they are said to be, or cannot be trusted."""


@dataclass(frozen=True, slots=True)
class Published:
    """One file of weights: `encoder` reads it, `size` in bytes and `sha256` tell it from any other."""

    name: str
    encoder: str
    file: str
    size: int
    sha256: str
    licence: str
    source: str
    urls: tuple[str, ...]
    about: str

    @property
    def conversion(self) -> str:
        """File name of the safetensors conversion."""
        return PurePath(self.file).with_suffix(".safetensors").name


# The official share links serve no plain HTTP, so these are mirrors that others made. That each of them keeps every
# file under its official name at the top was seen for some files only; a wrong address is a 404 and the next is asked,
# and a wrong file is refused by its hash.
_BEATS_MIRRORS = (
    "https://huggingface.co/datasets/Bencr/beats-checkpoints/resolve/082fb1849d55bef1ee52ee8d8910b3adc69d4bc8",
    "https://huggingface.co/lpepino/beats_ckpts/resolve/main",
    "https://huggingface.co/mooneyko/BEATs/resolve/main",
)
_PRETRAINED, _FINE_TUNED = 361_499_833, 363_145_291

# As several public projects pin them; Microsoft publishes none.
_BEATS = {
    "BEATs_iter1": "b5f4cc10bcbff63a437c695f33389e6411513b3f7d5cdae8fb62b5005f4a1fcd",
    "BEATs_iter2": "81a23e00aa4878d7e8627ded87ea697fb347c8ceffed21223e0398ed0fa34ad8",
    "BEATs_iter3": "8d1b234032a9ccff353612dc6c20982346dc2968b205b79d97303eb5e77bfb34",
    "BEATs_iter3_plus_AS20K": "8008b126bb5e8ab08912c60c58847ed676d32e64a5864c922356b7c2522fb2f8",
    "BEATs_iter3_plus_AS2M": "d43cbfad4d7b56381c061d7a24774f908d4d94c72961f6eb1d9090ff18cd8d34",
    "BEATs_iter1_finetuned_on_AS2M_cpt1": "e0e739e3670bfbb93c51adefb1d02981621397addc979d392aefd3dc53c22cab",
    "BEATs_iter1_finetuned_on_AS2M_cpt2": "2f3a7b65ab232c4f75570d4d17e21e5ebc34b3c40fe1a074f27d199e81354960",
    "BEATs_iter2_finetuned_on_AS2M_cpt1": "3a120810c0f6dbfd50a7f48dc03ed077971a50cb2dbb7999695d5c700d03da45",
    "BEATs_iter2_finetuned_on_AS2M_cpt2": "08363b9b5eabeb47b0879c84145b27c603e7e50c116a633fa5b98ade119fc354",
    "BEATs_iter3_finetuned_on_AS2M_cpt1": "379369a41d0b3749f746cdcea8036de506cb3aedecce84de7db0a75fda2a4fe7",
    "BEATs_iter3_finetuned_on_AS2M_cpt2": "08374f1cbd49143900b351bc81cd307de386a11f8e609eb3862634e992068b55",
    "BEATs_iter3_plus_AS20K_finetuned_on_AS2M_cpt1": "2c366278dcf835e9bdefad4f7147b0edba4b940c59146fd05dc49a401fa82ff8",
    "BEATs_iter3_plus_AS20K_finetuned_on_AS2M_cpt2": "6d28b32bfa7bcaaf84ab834186581c2a360c6669e372e808d054cf0ef4d5c2d2",
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt1": "7f9362028ac6e5c049e8dc314d87e90e4f82a15a8e472deb56af55d7f9b34d6a",
    "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2": "e5815275a04b6885e7b8af63d120b29bffae2cd2225cf4915e1ec6d819d3022c",
}


def _beats(name: str, sha256: str) -> Published:
    _, _, copy = name.partition("_finetuned_on_AS2M_cpt")
    about = f"fine-tuned on AudioSet's labels, copy {copy}" if copy else "pre-trained on AudioSet without labels"
    return Published(
        name=name,
        encoder="beats",
        file=f"{name}.pt",
        size=_FINE_TUNED if copy else _PRETRAINED,
        sha256=sha256,
        licence="MIT",
        source="Microsoft, github.com/microsoft/unilm, beats",
        urls=tuple(f"{mirror}/{name}.pt" for mirror in _BEATS_MIRRORS),
        about=about,
    )


_ALL = [
    *(_beats(name, sha256) for name, sha256 in _BEATS.items()),
    Published(
        name="mn04_as",
        encoder="efficientat",
        file="mn04_as_mAP_432.pt",
        size=4_066_513,
        # of a copy in a third party's repository; it was not compared with the release
        sha256="899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c",
        licence="MIT",
        source="F. Schmid, github.com/fschmid56/EfficientAT",
        urls=("https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1/mn04_as_mAP_432.pt",),
        about="small: distilled on AudioSet's labels",
    ),
]

CATALOG = {entry.name: entry for entry in _ALL}
"""Published weights by name."""

_ALIASES = {"beats": "BEATs_iter3_plus_AS2M", "efficientat": "mn04_as"}


def published(name: str) -> Published:
    """The entry of a name, a file name or an encoder (its usual weights), in upper or lower case.

    Raises WeightsError that names the nearest ones.

    >>> published("beats_ITER3+_as2m").file
    'BEATs_iter3_plus_AS2M.pt'
    """
    known: dict[str, str] = {}
    for entry in CATALOG.values():
        for key in (entry.name, entry.file, entry.conversion):
            known[key.lower()] = entry.name
    known |= _ALIASES
    asked = name.lower().replace("+", "_plus")
    if asked in known:
        return CATALOG[known[asked]]
    near = difflib.get_close_matches(asked, [entry.lower() for entry in CATALOG], n=3, cutoff=0.5)
    advice = f"did you mean {' or '.join(known[key] for key in near)}?" if near else "`offkey weights list` names all"
    raise WeightsError(f"no weights are called {name!r}, and no file is there; {advice}")
