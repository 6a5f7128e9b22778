"""nnU-Net's predict command as a whole process, which notes where its time goes; started by ../predict.py.

    python predict_nnunet.py PHASES ARGUMENTS...

ARGUMENTS are those of `nnUNetv2_predict_from_modelfolder`; PHASES is the file for the notes. Its processes
for preprocessing and export are waited for, so their CPU time is in none of the phases.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nnunetv2.inference import predict_from_raw_data as nnunet
from phases import spent, timed, until_now, waited_for


def watch() -> None:
    """Have the parts of a prediction counted."""
    prepared = nnunet.preprocessing_iterator_fromfiles

    def waiting(*arguments: Any) -> Iterator[Any]:
        return waited_for(prepared(*arguments), "read and resample")

    nnunet.preprocessing_iterator_fromfiles = waiting
    predictor = nnunet.nnUNetPredictor
    timed(predictor, "initialize_from_trained_model_folder", "load model")
    timed(predictor, "_internal_maybe_mirror_and_predict", "network")
    timed(predictor, "predict_logits_from_preprocessed_data", "windows")
    timed(predictor, "predict_from_data_iterator", "back to native, write")


if __name__ == "__main__":
    notes, sys.argv[1:] = Path(sys.argv[1]), sys.argv[2:]
    watch()
    until_now()
    nnunet.predict_entry_point_modelfolder()
    notes.write_text(json.dumps(spent()))
