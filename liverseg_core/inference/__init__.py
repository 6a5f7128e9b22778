"""From a scan to labels on its own grid."""
