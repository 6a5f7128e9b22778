"""Which cases train and which validate: stratified, deterministic, and frozen once drawn.

The drawn validation cases, or folds, are written into the store under the dataset's name and what they were
drawn with. Cases that come later train, so that models stay comparable while data grows.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from liverseg_core.artifacts.artifact import Artifact, Recipe, digest_json
from liverseg_core.artifacts.produce import Store, produce
from liverseg_core.artifacts.stages import SPLIT
from liverseg_core.cases.case_record import CaseRecord
from liverseg_core.classes import CLASSES
from liverseg_core.config import SplitConfig
from liverseg_core.errors import LiversegError
from liverseg_core.volumes.nifti_names import PACKED, stem


def split_cases(dataset: str, cases: Sequence[CaseRecord], config: SplitConfig, store: Store) -> Artifact:
    """Divide stored cases into training, validation and unlabelled.

    The artifact's key is the data version. Its facts list `training`, `validation` and `unlabelled` as
    `{"case", "key"}`; `dataset_0.json` beside the manifest is the same as a datalist, with the properties
    that readers of a Decathlon `dataset.json` want.

    Raises:
        LiversegError: LS330 when voxels of a validation case also train, LS331 when the sizes can't be met,
            LS332 for an unusable datalist, LS334 when no frozen validation case is left, LS501
            when their list is damaged.
    """
    labelled = [case for case in cases if case.labelled]
    if config.datalist is not None:
        training, validation = _read_datalist(Path(config.datalist), labelled)
    else:
        frozen = _frozen_validation(dataset, labelled, config, store)
        training = [case for case in labelled if case.case not in frozen]
        validation = [case for case in labelled if case.case in frozen]
    if not training or not validation:
        raise _sizes(len(labelled), f"{len(training)} for training and {len(validation)} for validation")
    _refuse_leakage(training, validation)
    groups = {
        "training": _listed(training),
        "validation": _listed(validation),
        "unlabelled": _listed(case for case in cases if not case.labelled),
    }
    facts = {"dataset": dataset, "validation_key": digest_json(groups["validation"])[:32], **groups}

    def write(folder: Path) -> dict[str, Any]:
        text = json.dumps(_datalist(facts), indent=1)
        (folder / "dataset_0.json").write_text(text + "\n")
        return facts

    return produce(store, Recipe(SPLIT, {}, {"dataset": dataset, **groups}), write)


def draw_validation(cases: Sequence[CaseRecord], config: SplitConfig) -> list[str]:
    """Draw validation cases, the same share of every stratum (with tumour or not, flagged or not).

    The order of the cases does not matter: each is ranked by a hash of the seed and its name.

    Raises:
        LiversegError: LS331 when there are too few cases.
    """
    wanted = (
        config.validation if isinstance(config.validation, int) else round(config.validation * len(cases))
    )
    if not 0 < wanted < len(cases):
        raise _sizes(len(cases), f"{wanted} for validation")
    strata = _strata(cases, config.seed)
    shares = {stratum: wanted * len(names) / len(cases) for stratum, names in strata.items()}
    counts = {stratum: int(share) for stratum, share in shares.items()}
    by_remainder = sorted(shares, key=lambda stratum: (counts[stratum] - shares[stratum], stratum))
    for stratum in by_remainder[: wanted - sum(counts.values())]:
        counts[stratum] += 1
    return sorted(name for stratum, names in strata.items() for name in names[: counts[stratum]])


def draw_folds(cases: Sequence[CaseRecord], config: SplitConfig) -> list[list[str]]:
    """Deal the cases to folds, stratum by stratum, so that each has the same share of each.

    Raises:
        LiversegError: LS331 when there are fewer cases than folds.
    """
    if len(cases) < config.folds:
        raise _sizes(len(cases), f"{config.folds} folds")
    strata = _strata(cases, config.seed)
    dealt = [name for stratum in sorted(strata) for name in strata[stratum]]
    return [sorted(dealt[fold :: config.folds]) for fold in range(config.folds)]


def _strata(cases: Sequence[CaseRecord], seed: int) -> dict[tuple[bool, bool], list[str]]:
    """Names by stratum, in an order that the seed decides."""

    def rank(name: str) -> str:
        return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()

    strata: dict[tuple[bool, bool], list[str]] = defaultdict(list)
    for case in sorted(cases, key=lambda case: rank(case.case)):
        strata[case.tumour, case.flagged].append(case.case)
    return strata


def _frozen_validation(
    dataset: str, labelled: Sequence[CaseRecord], config: SplitConfig, store: Store
) -> frozenset[str]:
    """The validation cases drawn when this dataset was first split this way."""
    assert config.fold != "all", "a flow splits fold by fold"
    drawn_with = config.canonical()
    used = ("validation", "seed", "datalist") if config.fold is None else ("folds", "seed")
    described = {"dataset": dataset, "split": {name: drawn_with[name] for name in used}}
    kind = "validation" if config.fold is None else "folds"
    name = f"{SPLIT.folder}/{kind}-{digest_json([*described.values()])[:16]}.json"
    content = store.read(name)
    if content is None:
        drawn = draw_validation(labelled, config) if config.fold is None else draw_folds(labelled, config)
        store.create(name, json.dumps({**described, "cases": drawn}, indent=1).encode())
        content = store.read(name) or b""  # what another run drew first counts
    try:
        listed = json.loads(content)["cases"]
        frozen = frozenset(listed if config.fold is None else listed[config.fold])
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise LiversegError(
            "LS501",
            f"{store}/{name} is damaged ({error})",
            "the frozen validation cases that liverseg wrote",
            "Restore the file, or delete it to draw validation cases anew: scores then compare no more",
        ) from None
    if not any(case.case in frozen for case in labelled):
        raise LiversegError(
            "LS334",
            f"none of the {len(frozen)} frozen validation cases of {dataset!r} is in the source",
            "a source that still holds some of them",
            "Check --limit and the source, or set another split.seed to draw anew",
        )
    return frozen


def _read_datalist(path: Path, labelled: Sequence[CaseRecord]) -> tuple[list[CaseRecord], list[CaseRecord]]:
    by_name = {case.case: case for case in labelled}
    try:
        content = json.loads(path.read_text())
        named = [[_case_name(entry) for entry in content[group]] for group in ("training", "validation")]
        unknown = [name for group in named for name in group if name not in by_name]
        trouble = f"it names {unknown[0]!r}, which is not a labelled case here" if unknown else ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        trouble = f"{type(error).__name__}: {error}"
    if trouble:
        what = f"split.datalist {path}: {trouble}"
        allowed = 'JSON with "training" and "validation" lists of this dataset\'s cases'
        raise LiversegError("LS332", what, allowed, "Correct the file or leave it out")
    training, validation = ([by_name[name] for name in dict.fromkeys(group)] for group in named)
    return training, validation


def _case_name(entry: dict[str, str] | str) -> str:
    return stem(entry if isinstance(entry, str) else entry["image"])


def _datalist(facts: dict[str, Any]) -> dict[str, Any]:
    def pair(entry: dict[str, str]) -> dict[str, str]:
        name = f"{entry['case']}{PACKED}"
        return {"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"}

    return {
        "name": facts["dataset"],
        "description": f"Split of {facts['dataset']}",
        "reference": "",
        "licence": "",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {str(value): name for value, name in enumerate(CLASSES)},
        "numTraining": len(facts["training"]),
        "numTest": len(facts["unlabelled"]),
        "training": [pair(entry) for entry in facts["training"]],
        "validation": [pair(entry) for entry in facts["validation"]],
        "test": [f"imagesTs/{entry['case']}{PACKED}" for entry in facts["unlabelled"]],
    }


def _listed(cases: Iterable[CaseRecord]) -> list[dict[str, str]]:
    return [{"case": case.case, "key": case.key} for case in sorted(cases, key=lambda case: case.case)]


def _refuse_leakage(training: Sequence[CaseRecord], validation: Sequence[CaseRecord]) -> None:
    trains = {case.content: case.case for case in training}
    for case in validation:
        if case.content in trains:
            raise LiversegError(
                "LS330",
                f"validation case {case.case} has the same voxels as training case {trains[case.content]}",
                "scans that are on one side of the split only",
                "Remove one of the two from the source",
            )


def _sizes(labelled: int, wanted: str) -> LiversegError:
    return LiversegError(
        "LS331",
        f"{labelled} labelled cases cannot give {wanted}",
        "at least one case on either side",
        "Set split.validation to fit, or add cases",
    )
