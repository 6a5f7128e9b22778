"""What is made once and kept: keys, manifests, and the stores on disk and on S3."""
