"""`liverseg predict` as a whole process, which notes where its time goes; started by ../predict.py.

    python predict_liverseg.py PHASES ARGUMENTS...

ARGUMENTS are those of `liverseg`; PHASES is the file for the notes.
"""

import json
import sys
from pathlib import Path

from phases import spent, timed, until_now

from flows.cli import main


def watch() -> None:
    """Have the parts of a prediction counted, as soon as they are imported."""
    from liverseg_core.inference import inference, predict, predict_scan

    timed(predict, "read_image", "read and resample")
    timed(inference, "_predict", "network")
    for name in ("add", "add_background", "take", "drop"):
        timed(inference.Sums, name, "windows")
    timed(inference, "cut", "windows")
    timed(predict, "canonical_label", "back to native")
    timed(predict, "postprocess", "rules and findings")
    timed(predict, "findings", "rules and findings")
    timed(predict.ScanIdentifier, "add", "doubts")
    for name in ("scan_facts", "anatomy_of", "label_facts", "second_part", "doubts"):
        timed(predict, name, "doubts")
    timed(predict_scan, "write_label", "write")
    timed(predict_scan, "load_model", "load model")


if __name__ == "__main__":
    notes, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    watch()
    until_now()
    try:
        main()
    finally:
        notes.write_text(json.dumps(spent()))
