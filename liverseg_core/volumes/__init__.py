"""NIfTI, geometry and resampling, plane by plane."""
