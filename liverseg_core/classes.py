"""The classes of a label, by their values."""

CLASSES = ("background", "liver", "tumour")
COLOURS = {1: (164, 92, 219, 255), 2: (255, 221, 51, 255)}
"""Liver purple, tumour yellow."""
N_CLASSES = len(CLASSES)
GROUP_NAMES = {
    "liver": "liver with tumour",
    "liver_only": "liver without tumour",
    "tumour": "tumour",
}
"""Class groups that are measured and drawn, as people are told of them."""
