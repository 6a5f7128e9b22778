"""What a model knows of data: which scans it has seen, and between which volumes it was measured.

Both lie as small JSON files in its folder. A model that was made before there were such files knows nothing,
which is not the same as having seen nothing.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.data_report import volumes_ml
from liverseg_core.cases.scan_identity import ScanIdentity
from liverseg_core.config import Section
from liverseg_core.durable import write_atomically
from liverseg_core.errors import LiversegError
from liverseg_core.models.model_folder import MEASURED, SEEN

Role = Literal["training", "validation"]
ROLES: tuple[Role, ...] = ("training", "validation")
"""What spoils a score more comes first."""
Kind = TypeVar("Kind", bound=Section)


class SeenCase(Section):
    """A case that a model was shown."""

    case: str
    """As it was called then."""
    role: Role
    before: bool = False
    """Whether it was so to the weights that training began with, or to those that these began with."""
    identity: ScanIdentity | None
    """None where the case was stored before scans were identified."""
    liver_ml: float | None = None
    """With tumours, of the label that it came with; so is the next."""
    tumour_ml: float | None = None
    member: int | None = None
    """Of an ensemble, the one that saw it, counted from 1."""

    @classmethod
    def of(cls, facts: Facts, role: Role) -> "SeenCase":
        """From the facts of a stored case."""
        found, volumes = facts.get("identity"), volumes_ml(facts)
        liver, tumour = volumes or (None, None)
        identity = ScanIdentity(**found) if found else None
        return cls(case=facts["case"], role=role, identity=identity, liver_ml=liver, tumour_ml=tumour)


class SeenCases(Section):
    """All cases that a model was shown."""

    format: Literal[1] = 1
    cases: tuple[SeenCase, ...]
    complete: bool = True
    """Whether what was shown to the weights that training began with is known, too."""

    def find(self, identity: ScanIdentity) -> tuple[SeenCase, ...]:
        """The cases that are this scan, however they lie and whatever they are called; `ROLES` in order."""
        found = (one for one in self.cases if one.identity == identity)
        return tuple(sorted(found, key=lambda one: (ROLES.index(one.role), one.before)))


class Measured(Section):
    """Smallest and largest volumes of the cases that a model was measured on, predicted and true; in ml."""

    format: Literal[1] = 1
    cases: int
    liver_ml: tuple[float, float] | None
    tumour_ml: tuple[float, float] | None


@dataclass(frozen=True)
class KnownData:
    """What a model's folder says of data; None where it does not."""

    seen: SeenCases | None = None
    measured: Measured | None = None

    def range_ml(self, name: Literal["liver_ml", "tumour_ml"]) -> tuple[float, float] | None:
        """The volumes that it was trained and measured on, smallest and largest."""
        shown = [getattr(one, name) for one in self.seen.cases] if self.seen else []
        scored = getattr(self.measured, name) if self.measured else None
        volumes = [one for one in (*shown, *(scored or ())) if one]
        return (min(volumes), max(volumes)) if volumes else None


def read_known(folder: Path) -> KnownData:
    """What the folder of a model says of data.

    Raises:
        LiversegError: LS522 for a damaged file.
    """
    return KnownData(_read(folder / SEEN, SeenCases), _read(folder / MEASURED, Measured))


def write_seen(folder: Path, seen: SeenCases) -> None:
    """Keep in a model's folder what it was shown."""
    _write(folder / SEEN, seen)


def write_measured(folder: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Keep in an evaluation's folder between which volumes the model was measured.

    Args:
        folder: Its files go with the model's when that is registered.
        records: From `CaseScore.record`.
    """

    def span(group: str) -> tuple[float, float] | None:
        found = [one[group][name] for one in records for name in ("volume_ml", "reference_volume_ml")]
        volumes = [round(value, 3) for value in found if value]
        return (min(volumes), max(volumes)) if volumes else None

    _write(folder / MEASURED, Measured(cases=len(records), liver_ml=span("liver"), tumour_ml=span("tumour")))


def after(start: Path | None, shown: Iterable[SeenCase]) -> SeenCases:
    """What a model has seen after a training that began with the weights of `start`."""
    if start is None:
        return SeenCases(cases=tuple(shown))
    before = read_known(start).seen
    known = before.cases if before else ()
    inherited = (one.model_copy(update={"before": True, "member": None}) for one in known)
    once = {(one.case, one.role, one.identity): one for one in inherited}  # chains grow long
    return SeenCases(cases=(*shown, *once.values()), complete=before is not None and before.complete)


def united(members: Sequence[Path]) -> SeenCases | None:
    """What an ensemble has seen: what any of its members has; None where one does not know."""
    found = [read_known(folder).seen for folder in members]
    cases = tuple(
        one.model_copy(update={"member": number})
        for number, seen in enumerate(found, 1)
        if seen
        for one in seen.cases
    )
    complete = all(seen is not None and seen.complete for seen in found)
    return SeenCases(cases=cases, complete=complete) if cases else None


def _read(path: Path, kind: type[Kind]) -> Kind | None:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        what = f"{path} is damaged ({str(error).splitlines()[0]})"
        remedy = "Fetch or copy the model again, or train it again"
        raise LiversegError("LS522", what, "what liverseg wrote there", remedy) from None


def _write(path: Path, section: Section) -> None:
    write_atomically(path, (json.dumps(section.canonical(), indent=1) + "\n").encode())
