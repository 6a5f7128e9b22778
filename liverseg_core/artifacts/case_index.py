"""The facts of all stored cases in one file, so that a finished dataset is found with one listing.

It is a convenience, never the truth: an entry counts only while its case's folder is there, and what the file
lacks, or all of it when it is damaged, is read from the manifests again.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from isal import igzip
from isal.igzip_lib import IsalError

from liverseg_core.artifacts.artifact import Facts
from liverseg_core.artifacts.produce import Store
from liverseg_core.artifacts.stages import INGEST

INDEX = f"{INGEST.folder}/index.jsonl.gz"
AT_ONCE = 16


def stored_facts(store: Store, keys: Iterable[str]) -> Iterator[Facts | None]:
    """For each key the facts of its case, or None where it is not stored.

    Args:
        store: Asked for one listing and the index; for a manifest where the index lacks a stored case.
        keys: Of cases.

    Raises:
        LiversegError: LS501 for a damaged manifest; what the store raises.
    """
    keys = list(keys)
    there, lines = store.folders(INGEST), _read(store)
    unknown = [key for key in keys if key in there and key not in lines]
    if unknown:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(lambda key: store.find(INGEST, key), unknown)
            read = {artifact.key: artifact.facts for artifact in found if artifact}
        if read:
            remember(store, read)
            lines |= _lines(read)
    for key in keys:
        yield json.loads(lines[key]) if key in there and key in lines else None


def remember(store: Store, facts: Mapping[str, Facts]) -> None:
    """Add cases to the index, and drop those that are gone.

    Of two runs that do so at once, one's cases may be missing then, and are read from their manifests.
    """
    there = store.folders(INGEST)
    lines = {key: line for key, line in (_read(store) | _lines(facts)).items() if key in there}
    content = b"".join(b"%s\t%s\n" % (key.encode(), lines[key]) for key in sorted(lines))
    seal = hashlib.sha256(content).hexdigest().encode()
    store.write(INDEX, igzip.compress(seal + b"\n" + content))


def _lines(facts: Mapping[str, Facts]) -> dict[str, bytes]:
    """Text until it is asked for: as objects, 100,000 cases would take ten times the memory."""
    return {key: json.dumps(found, separators=(",", ":")).encode() for key, found in facts.items()}


def _read(store: Store) -> dict[str, bytes]:
    packed = store.read(INDEX)
    if packed is None:
        return {}
    try:
        seal, _, content = igzip.decompress(packed).partition(b"\n")
    except (OSError, EOFError, IsalError):  # type: ignore[misc]  # its stub calls the class an instance
        return {}
    if hashlib.sha256(content).hexdigest().encode() != seal:
        return {}
    pairs = (line.partition(b"\t") for line in content.splitlines())
    return {key.decode(): line for key, _, line in pairs}
