"""Where scans come from: tars and folders, on disk or behind S3 and HTTPS."""
