"""CT series in DICOM: their files, a gate on the needed tags, their volume, and its label as DICOM SEG."""
