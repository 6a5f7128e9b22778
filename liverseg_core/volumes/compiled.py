"""The loops of resampling, compiled: what a plane of `resample` is made of.

Importing numba and readying its functions costs most of a second and a hundred megabytes, so this module is
imported where there is work for it.
"""

import numba
import numpy as np

MIXED = 255
ZERO, ONE = (
    np.float32(0),
    np.float32(1),
)  # numba's tuples want one type: a bare 1 would make float64 of a float32 weight
EQUAL = np.float32(1e-6)
"""Votes that differ by less are the same: weights are rounded."""


@numba.njit(cache=True, nogil=True)
def linear_2d(plane, along_x, along_y):  # type: ignore[no-untyped-def]  # numba infers
    x, x_weight = along_x
    y, y_weight = along_y
    x_lower, x_upper, y_lower, y_upper = x[0], x[1], y[0], y[1]
    out = np.empty((y_lower.size, x_lower.size), np.float32)
    pair = np.empty((plane.shape[1], 2), np.float32)  # two rows share what is looked up along x
    for j in range(0, y_lower.size, 2):
        k = min(j + 1, y_lower.size - 1)
        j_lower, j_upper, j_weight = plane[y_lower[j]], plane[y_upper[j]], y_weight[j]
        k_lower, k_upper, k_weight = plane[y_lower[k]], plane[y_upper[k]], y_weight[k]
        for i in range(plane.shape[1]):
            a, b = np.float32(j_lower[i]), np.float32(k_lower[i])
            pair[i, 0] = a + j_weight * (np.float32(j_upper[i]) - a)
            pair[i, 1] = b + k_weight * (np.float32(k_upper[i]) - b)
        for i in range(x_lower.size):
            lower, upper, weight = pair[x_lower[i]], pair[x_upper[i]], x_weight[i]
            out[j, i] = lower[0] + weight * (upper[0] - lower[0])
            out[k, i] = lower[1] + weight * (upper[1] - lower[1])
    return out


@numba.njit(cache=True, nogil=True)
def cubic_2d(plane, along_x, along_y):  # type: ignore[no-untyped-def]
    x, wx = along_x
    y, wy = along_y
    out = np.empty((y.shape[1], x.shape[1]), np.float32)
    row = np.empty(plane.shape[1], np.float32)
    for j in range(y.shape[1]):
        a, b, c, d = plane[y[0, j]], plane[y[1, j]], plane[y[2, j]], plane[y[3, j]]
        wa, wb, wc, wd = wy[0, j], wy[1, j], wy[2, j], wy[3, j]
        for i in range(row.size):
            middle = wb * np.float32(b[i]) + wc * np.float32(c[i])
            row[i] = middle + (wa * np.float32(a[i]) + wd * np.float32(d[i]))
        for i in range(x.shape[1]):
            middle = wx[1, i] * row[x[1, i]] + wx[2, i] * row[x[2, i]]
            out[j, i] = middle + (wx[0, i] * row[x[0, i]] + wx[3, i] * row[x[3, i]])
    return out


@numba.njit(cache=True, nogil=True)
def blend(lower, upper, weight):  # type: ignore[no-untyped-def]
    out = np.empty_like(lower)
    for j in range(lower.shape[0]):
        for i in range(lower.shape[1]):
            out[j, i] = lower[j, i] + weight * (upper[j, i] - lower[j, i])
    return out


@numba.njit(cache=True, nogil=True)
def blend_to_int16(lower, upper, weight):  # type: ignore[no-untyped-def]
    out = np.empty(lower.shape, np.int16)
    for j in range(lower.shape[0]):
        for i in range(lower.shape[1]):
            value = lower[j, i] + weight * (upper[j, i] - lower[j, i])
            out[j, i] = np.int16(np.floor(value + np.float32(0.5)))
    return out


@numba.njit(cache=True, nogil=True)
def mix_to_int16(window, weights):  # type: ignore[no-untyped-def]
    a, b, c, d = window
    out = np.empty(a.shape, np.int16)
    for j in range(a.shape[0]):
        for i in range(a.shape[1]):
            middle = weights[1] * b[j, i] + weights[2] * c[j, i]
            value = middle + (weights[0] * a[j, i] + weights[3] * d[j, i])
            value = np.floor(value + np.float32(0.5))
            out[j, i] = np.int16(min(max(value, np.float32(-32768)), np.float32(32767)))
    return out


@numba.njit(cache=True, nogil=True)
def vote(lower, upper, wz, along_x, along_y):  # type: ignore[no-untyped-def]
    x, x_weight = along_x
    y, y_weight = along_y
    x_lower, x_upper, y_lower, y_upper = x[0], x[1], y[0], y[1]
    columns = lower.shape[1]
    out = np.zeros((y_lower.size, x_lower.size), np.uint8)
    column = np.empty(columns, np.uint8)  # the class that all four voxels of a column share, or MIXED
    for j in range(y_lower.size):
        wy = y_weight[j]
        a, b, c, d = lower[y_lower[j]], lower[y_upper[j]], upper[y_lower[j]], upper[y_upper[j]]
        seen = np.uint8(0)
        for i in range(columns):
            seen |= a[i] | b[i] | c[i] | d[i]
        if seen == 0:
            continue
        for i in range(columns):
            column[i] = a[i] if (a[i] == b[i]) & (a[i] == c[i]) & (a[i] == d[i]) else np.uint8(MIXED)
        for i in range(x_lower.size):
            x0, x1 = x_lower[i], x_upper[i]
            if column[x0] == column[x1] and column[x0] != MIXED:
                out[j, i] = column[x0]
                continue
            none = liver = tumour = ZERO  # unlike an array of votes, these stay in registers
            for u, wx in ((x0, ONE - x_weight[i]), (x1, x_weight[i])):
                front, back = wx * (ONE - wy), wx * wy
                below, above = ONE - wz, wz
                for voxel, weight in (
                    (a[u], front * below),
                    (b[u], back * below),
                    (c[u], front * above),
                    (d[u], back * above),
                ):
                    none += weight if voxel == 0 else ZERO
                    liver += weight if voxel == 1 else ZERO
                    tumour += weight if voxel == 2 else ZERO
            if tumour > 0 and tumour >= max(none, liver) - EQUAL:
                out[j, i] = 2
            elif liver > 0 and liver >= none - EQUAL:
                out[j, i] = 1
    return out
