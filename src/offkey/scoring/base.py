"""The contract of every scorer: normal clips in, one number a clip out, HIGHER IS MORE ANOMALOUS.

A scorer sees embeddings, never audio. It is fitted on a `Reference` (normal clips only) and scores a `Query`.
Its whole state is a dict of plain arrays, so that it can be written to a safetensors file and read back
without running anybody's code. The options it was built from are in there too: `scorer_from_state` needs
nothing else.

Axes: N reference clips, M clips to score, D dimensions.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from offkey.types import Condition, Domain, OffkeyError

__all__ = ["Query", "Reference", "Scorer", "ScorerOptions", "ScoringError", "domain_order"]


class ScoringError(OffkeyError):
    """A scorer was given something that it cannot work with; the message says what, and what to do."""


def _embedding(array: Any, what: str) -> NDArray[np.float64]:
    """A private (rows, D) float64 copy; refuses everything that is not a finite, non-empty-width matrix."""
    try:
        matrix = np.array(array, dtype=np.float64, copy=True, order="C")
    except (TypeError, ValueError) as error:
        raise ScoringError(f"{what}: embeddings must be numbers ({error})") from None
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ScoringError(
            f"{what}: embeddings must have the shape (clips, dimensions), not {matrix.shape}; "
            "give one row a clip, also for a single clip"
        )
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise ScoringError(
            f"{what}: {bad.size} of {len(matrix)} embeddings hold NaN or infinity (first at row {bad[0]}); "
            "leave those clips out, or look at their audio with `offkey data check`"
        )
    matrix.setflags(write=False)
    return matrix


def _errors(array: Any, rows: int, what: str) -> NDArray[np.float64] | None:
    if array is None:
        return None
    values = np.array(array, dtype=np.float64, copy=True)
    if values.shape != (rows,):
        raise ScoringError(f"{what}: frame_error must be one number a clip, ({rows},), not {values.shape}")
    if not np.isfinite(values).all():
        raise ScoringError(f"{what}: frame_error holds NaN or infinity; leave those clips out")
    values.setflags(write=False)
    return values


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The normal clips that a scorer learns from.

    `embedding` (N, D) float64; `domain` (N,) strings, the values of `Domain`: "source", "target", "unknown"
    (members of `Domain` will do); `identity` (N,) int64 class numbers, -1 where not known; `condition` (N,)
    strings, the values of `Condition`: anything but "normal" is refused, because a scorer that has heard
    faults calls them normal; `frame_error` (N,) pooled reconstruction error a clip, or None.

    Everything is copied and made read-only. One value for `domain`, `identity` or `condition` stands for all.

    >>> Reference([[0.0, 1.0], [2.0, 3.0]], domain=["source", "target"]).take([1]).domain.tolist()
    ['target']
    """

    embedding: Any
    domain: Any = Domain.UNKNOWN
    identity: Any = -1
    condition: Any = Condition.NORMAL
    frame_error: Any = None

    def __post_init__(self) -> None:
        """Check and freeze the arrays; raise `ScoringError` where they do not fit together."""
        matrix = _embedding(self.embedding, "reference")
        rows = len(matrix)
        put = object.__setattr__
        put(self, "embedding", matrix)
        put(self, "domain", _names(self.domain, rows, "domain", [str(d) for d in Domain]))
        condition = _names(self.condition, rows, "condition", [str(c) for c in Condition])
        wrong = np.flatnonzero(condition != str(Condition.NORMAL))
        if wrong.size:
            raise ScoringError(
                f"reference: {wrong.size} of {rows} clips are not known to be normal (first: row {wrong[0]}, "
                f'"{condition[wrong[0]]}"); offkey learns from normal recordings only: leave those clips out'
            )
        put(self, "condition", condition)
        try:
            identity = np.broadcast_to(np.asarray(self.identity), (rows,))
        except ValueError:
            shape = np.shape(self.identity)
            raise ScoringError(f"reference: identity must have the shape ({rows},), not {shape}") from None
        if identity.dtype.kind not in "iu" and rows:
            raise ScoringError("reference: identity must hold whole class numbers (-1 where not known)")
        identity = identity.astype(np.int64)
        identity.setflags(write=False)
        put(self, "identity", identity)
        put(self, "frame_error", _errors(self.frame_error, rows, "reference"))

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.embedding)

    @property
    def width(self) -> int:
        """Dimensions of an embedding."""
        return int(self.embedding.shape[1])

    @property
    def domains(self) -> list[str]:
        """The domains that occur, in the fixed order source, target, unknown."""
        return domain_order(self.domain)

    def take(self, index: Any) -> Reference:
        """The clips at `index`: whole numbers, a boolean mask or a slice; in that order."""
        where = np.arange(len(self))[np.asarray(index) if not isinstance(index, slice) else index]
        part = object.__new__(Reference)  # what it holds was checked when it came in
        for name in ("embedding", "domain", "identity", "condition", "frame_error"):
            rows = getattr(self, name)
            if rows is not None:
                rows = rows[where]
                rows.setflags(write=False)
            object.__setattr__(part, name, rows)
        return part

    def query(self) -> Query:
        """The same clips as something to score."""
        return Query(self.embedding, self.frame_error)


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Clips to score: `embedding` (M, D) float64, `frame_error` (M,) or None. Copied and made read-only."""

    embedding: Any
    frame_error: Any = None

    def __post_init__(self) -> None:
        """Check and freeze the arrays; raise `ScoringError` where they do not fit together."""
        matrix = _embedding(self.embedding, "query")
        object.__setattr__(self, "embedding", matrix)
        object.__setattr__(self, "frame_error", _errors(self.frame_error, len(matrix), "query"))

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self.embedding)

    def take(self, index: Any) -> Query:
        """The clips at `index`: whole numbers, a boolean mask or a slice; in that order."""
        where = np.arange(len(self))[np.asarray(index) if not isinstance(index, slice) else index]
        return Query(self.embedding[where], None if self.frame_error is None else self.frame_error[where])


def _names(values: Any, rows: int, what: str, allowed: list[str]) -> NDArray[Any]:
    try:
        names = np.broadcast_to(np.asarray(values, dtype=np.str_), (rows,)).copy()
    except ValueError:
        shape = np.shape(values)
        raise ScoringError(f"reference: {what} must have the shape ({rows},), not {shape}") from None
    unknown = sorted(set(names.tolist()) - set(allowed))
    if unknown:
        raise ScoringError(f"reference: {what} must be one of {', '.join(allowed)}, not {unknown[0]!r}")
    names.setflags(write=False)
    return names


def domain_order(domain: NDArray[Any]) -> list[str]:
    """The domains that occur in `domain` (N,), in the fixed order source, target, unknown."""
    present = set(domain.tolist())
    return [str(d) for d in Domain if str(d) in present]


class ScorerOptions(BaseModel):
    """What every scorer's options have in common; each adds a literal `name` and its own fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ScorerT = TypeVar("ScorerT", bound="Scorer")


class Scorer(ABC):
    """Learns from normal clips, then gives one float64 a clip: HIGHER IS MORE ANOMALOUS.

    What is learnt does not depend on the order of the reference, to the last bit: clips are put into one
    canonical order first, also where a seed draws among them.

    A subclass writes `_fit`, `_score`, `_arrays`, `_restore`; everything that people may rely on (checks,
    copies, the state's header) is done here once. Scores have no unit and are finite. A clip's score depends
    on the reference and on that clip alone, never on the clips scored beside it.
    """

    Options: ClassVar[type[ScorerOptions]]

    def __init__(self, options: ScorerOptions | None = None, seed: int = 0) -> None:
        self.options: Any = options if options is not None else self.Options()
        if not isinstance(self.options, self.Options):
            raise ScoringError(
                f"{type(self).__name__} takes {self.Options.__name__}, not {type(options).__name__}; "
                "build_scorer(config, seed) chooses the scorer that belongs to a config"
            )
        self.seed = int(seed)
        self._width: int | None = None

    @property
    def name(self) -> str:
        """The scorer's name in the table and in config files."""
        return str(self.options.name)

    def fit(self: ScorerT, reference: Reference) -> ScorerT:
        """Learn from normal clips; whatever was learnt before is forgotten.

        Raises `ScoringError` on an empty reference or one that this scorer cannot use.
        """
        if not isinstance(reference, Reference):
            raise ScoringError(f"{self.name}: fit needs a Reference, not {type(reference).__name__}")
        if len(reference) == 0:
            raise ScoringError(f"{self.name}: the reference is empty; at least one normal clip is needed")
        self._fit(reference.take(_canonical_order(reference)))
        self._width = reference.width
        return self

    def score(self, query: Query) -> NDArray[np.float64]:
        """(M,) float64, higher is more anomalous. `ScoringError` before `fit` or on the wrong width."""
        if not isinstance(query, Query):
            raise ScoringError(f"{self.name}: score needs a Query, not {type(query).__name__}")
        if self._width is None:
            raise ScoringError(f"{self.name}: no normal clips are known yet; call fit(reference) first")
        if query.embedding.shape[1] != self._width:
            raise ScoringError(
                f"{self.name}: the clips' embeddings have {query.embedding.shape[1]} dimensions, the "
                f"reference's {self._width}; score with the model that made the reference"
            )
        if len(query) == 0:
            return np.zeros(0, dtype=np.float64)
        scores = np.asarray(self._score(query), dtype=np.float64)
        if not np.isfinite(scores).all():
            bad = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise ScoringError(
                f"{self.name}: the score of row {bad} is not finite; its embedding is too far from the "
                "reference to be measured in float64 (check the model's output)"
            )
        return scores

    def state(self) -> dict[str, NDArray[Any]]:
        """Plain arrays: what was learnt, and the options (JSON as uint8 under `header`)."""
        if self._width is None:
            raise ScoringError(f"{self.name}: nothing to save before fit(reference)")
        header = {
            "name": self.name,
            "format": 1,
            "seed": self.seed,
            "width": self._width,
            "options": self.options.model_dump(mode="json"),
        }
        packed = np.frombuffer(json.dumps(header, sort_keys=True).encode(), dtype=np.uint8).copy()
        return {"header": packed} | {k: np.array(v, copy=True, order="C") for k, v in self._arrays().items()}

    @classmethod
    def from_state(cls: type[ScorerT], state: Mapping[str, NDArray[Any]]) -> ScorerT:
        """The scorer that `state()` described; its scores are the same to the last bit.

        Raises `ScoringError` where the state is damaged, of another scorer, or of a newer format.
        """
        header = read_header(state)
        try:
            scorer = cls(cls.Options.model_validate(header["options"]), seed=int(header["seed"]))
            scorer._restore({k: np.array(v, copy=True) for k, v in state.items() if k != "header"})
            scorer._width = int(header["width"])
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise ScoringError(
                f"the state of scorer {header.get('name')!r} is damaged or of another version ({error}); fit again"
            ) from None
        return scorer

    @abstractmethod
    def _fit(self, reference: Reference) -> None: ...

    @abstractmethod
    def _score(self, query: Query) -> NDArray[np.float64]: ...

    @abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]: ...

    @abstractmethod
    def _restore(self, arrays: dict[str, NDArray[Any]]) -> None: ...


def _canonical_order(reference: Reference) -> NDArray[np.intp]:
    """An order of the clips that depends on what they are and not on where they stand: by their bytes."""
    codes = np.zeros(len(reference))
    for code, domain in enumerate(Domain):
        codes[reference.domain == str(domain)] = code
    error = np.zeros(len(reference)) if reference.frame_error is None else reference.frame_error
    first = _words([codes, reference.identity, error, reference.embedding[:, :1]])
    order = np.lexsort(first.T[::-1])
    if not (first[order[1:]] == first[order[:-1]]).all(axis=1).any():
        return order  # one number of the embedding told all clips apart, and the rest need not be looked at
    rows = _words([codes, reference.identity, error, reference.embedding])
    return np.argsort(rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel(), kind="stable")


def _words(columns: list[Any]) -> Any:
    """(N, columns) whole numbers that are in the order of the bytes of float64."""
    rows = np.column_stack(columns) + 0.0  # -0.0 becomes 0.0
    return np.ascontiguousarray(rows).view(">u8")


def read_header(state: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    """The header of a scorer's state: name, format, seed, width, options; `ScoringError` without one."""
    try:
        header = json.loads(np.asarray(state["header"], dtype=np.uint8).tobytes())
        name, version = str(header["name"]), int(header["format"])
    except (KeyError, ValueError, TypeError) as error:
        raise ScoringError(f"this is not the state of a scorer ({error!r}); fit again") from None
    if version != 1:
        raise ScoringError(f"the state of {name!r} has format {version}, this offkey reads 1; update offkey")
    return dict(header)
