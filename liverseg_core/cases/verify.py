"""Check a case without storing it: the same gates and the same facts as ingest, nothing written."""

from liverseg_core.artifacts.artifact import Facts
from liverseg_core.cases.ingest import survey_case
from liverseg_core.config import IngestConfig
from liverseg_core.errors import ExitCode, LiversegError
from liverseg_core.sources.source import CaseSource

PLAIN = IngestConfig()


def verify_case(case: CaseSource, config: IngestConfig = PLAIN, memory_limit: int | None = None) -> Facts:
    """Read a case whole, as ingest would.

    Args:
        case: What to read.
        config: As for ingest.
        memory_limit: As for ingest.

    Returns:
        The facts that ingest would store, and `problem` None; or `case`, `labelled` and `problem`, the
        error's text.

    Raises:
        LiversegError: When the source's server fails: that says nothing of the case.
    """
    try:
        return {**survey_case(case, config, memory_limit), "problem": None}
    except LiversegError as error:
        if error.exit_code is ExitCode.UNREACHABLE:
            raise
        return {"case": case.case, "labelled": case.label is not None, "problem": str(error)}
