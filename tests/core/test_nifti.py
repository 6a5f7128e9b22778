"""The NIfTI gate: decode as nibabel does, or refuse with a code; never anything else."""

import gzip
import itertools
import struct
import tracemalloc
import warnings
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liverseg_core.errors import LiversegError
from liverseg_core.volumes.geometry import canonical_orientation, resampled_grid
from liverseg_core.volumes.nifti import as_hu, as_label, decode, open_scan, write_label
from liverseg_core.volumes.nifti_fields import header_like
from liverseg_core.volumes.nifti_header import parse_header

SHAPE = (5, 4, 3)
DATA = np.arange(60, dtype=np.int16).reshape(SHAPE)
FIELDS = {
    name: nib.Nifti1Header().template_dtype.fields[name] for name in nib.Nifti1Header.template_dtype.names
}
BIG = st.sampled_from([0, 1, -1, 2**15 - 1, -(2**15), 348, 540])


def raw(build: SimpleNamespace, data: np.ndarray = DATA, **fields: object) -> bytes:
    """A good file with some header fields set to something else."""
    content = bytearray(build.nifti(data, build.affine(spacing=(1, 2, 3))))
    header = np.frombuffer(content, nib.Nifti1Header.template_dtype, 1)
    for name, value in fields.items():
        header[0][name] = value
    return bytes(content)


def dim(*sizes: int) -> list[int]:
    return [*sizes, *[1] * (8 - len(sizes))]


def row(*values: float) -> list[float]:
    return list(values)


NAN, INF = float("nan"), float("inf")
QFORM = {"sform_code": 0, "qform_code": 1}
NO_FORM = {"sform_code": 0, "qform_code": 0}
HEADERS = [
    ("good", {}, ""),
    ("dims 0", {"dim": [0] * 8}, "LS313"),
    ("two dims", {"dim": dim(2, 5, 12)}, "LS313"),
    ("zero size", {"dim": dim(3, 5, 0, 3)}, "LS313"),
    ("negative size", {"dim": dim(3, 5, -4, 3)}, "LS313"),
    ("negative dims", {"dim": dim(-3, 5, 4, 3)}, "LS313"),
    ("eight dims", {"dim": dim(8, 5, 4, 3)}, "LS313"),
    ("4-D series", {"dim": dim(4, 5, 4, 1, 3)}, "LS313"),
    ("5-D", {"dim": dim(5, 5, 4, 1, 1, 3)}, "LS313"),
    ("5-D of one", {"dim": dim(5, 5, 4, 3)}, ""),
    ("huge", {"dim": dim(3, 32767, 32767, 32767)}, "LS313"),
    ("promises 4 GB", {"dim": dim(3, 32767, 32767, 2)}, "LS317"),
    ("promises 17 GB", {"dim": dim(3, 32767, 32767, 2), "datatype": 64}, "LS317"),
    ("spacing NaN", {**QFORM, "pixdim": row(1, NAN, 1, 1, 1, 1, 1, 1)}, "LS315"),
    ("spacing Inf", {**QFORM, "pixdim": row(1, INF, 1, 1, 1, 1, 1, 1)}, "LS315"),
    ("spacing 0", {**QFORM, "pixdim": row(1, 0, 1, 1, 1, 1, 1, 1)}, "LS314"),
    ("spacing 1e-30", {**QFORM, "pixdim": row(1, 1e-30, 1, 1, 1, 1, 1, 1)}, "LS314"),
    ("spacing 1e6", {**QFORM, "pixdim": row(1, 1, 1, 1e6, 1, 1, 1, 1)}, "LS314"),
    ("spacing negative", {**QFORM, "pixdim": row(1, -1, 1, 1, 1, 1, 1, 1)}, "LS315"),
    ("spacing negative, no form", {**NO_FORM, "pixdim": row(1, -1, 1, 1, 1, 1, 1, 1)}, "LS314"),
    ("spacing NaN, no form", {**NO_FORM, "pixdim": row(1, NAN, 1, 1, 1, 1, 1, 1)}, "LS315"),
    ("no form", NO_FORM, ""),
    ("sform NaN", {"srow_x": row(1, 0, NAN, 0)}, "LS315"),
    ("sform Inf offset", {"srow_y": row(0, 1, 0, INF)}, "LS315"),
    ("sform zero column", {"srow_x": row(0, 0, 0, 0)}, "LS314"),
    ("sform parallel axes", {"srow_y": row(1, 0, 0, 0), "srow_x": row(1, 1, 0, 0)}, "LS315"),
    ("sform sheared", {"srow_x": row(1, 0.3, 0, 0)}, "LS315"),
    ("sform 3e38", {"srow_x": row(3e38, 0, 0, 0)}, "LS314"),
    ("qform NaN", {**QFORM, "quatern_b": NAN}, "LS315"),
    ("qform no rotation", {**QFORM, "quatern_b": 1, "quatern_c": 1}, "LS315"),
    ("qform disagrees", {"qform_code": 1, "quatern_b": 1}, ""),
    ("unknown type", {"datatype": 3}, "LS316"),
    ("type 0", {"datatype": 0}, "LS316"),
    ("complex", {"datatype": 32}, "LS316"),
    ("RGB", {"datatype": 128}, "LS316"),
    ("128-bit floats", {"datatype": 1536}, "LS316"),
    ("type too wide", {"datatype": 16}, "LS317"),
    ("type too narrow", {"datatype": 2}, "LS317"),
    ("offset 0", {"vox_offset": 0}, "LS312"),
    ("offset NaN", {"vox_offset": NAN}, "LS312"),
    ("offset negative", {"vox_offset": -352}, "LS312"),
    ("offset 1e30", {"vox_offset": 1e30}, "LS312"),
    ("offset a little far", {"vox_offset": 368}, "LS317"),
    ("magic of a pair", {"magic": b"ni1"}, "LS312"),
    ("no magic", {"magic": b"xyz"}, "LS312"),
    ("size of another header", {"sizeof_hdr": 347}, "LS312"),
]


@pytest.mark.parametrize(("name", "fields", "code"), HEADERS, ids=[name for name, *_ in HEADERS])
def test_headers(build: SimpleNamespace, name: str, fields: dict[str, object], code: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = raw(build, **fields)
        assert build.refusal(decode, content, "x.nii") == code
        assert build.refusal(decode, build.zipped(content), "x.nii.gz") == code


def test_oddities_are_flagged(build: SimpleNamespace) -> None:
    assert decode(raw(build, **NO_FORM), "x").header.flags == ("no-orientation",)
    assert decode(raw(build, qform_code=1, quatern_b=1), "x").header.flags == ("qform-disagrees",)
    assert decode(build.nifti(DATA, np.eye(4)), "x").header.flags == ("identity-affine",)
    assert decode(raw(build), "x").header.flags == ()


ZEROS = gzip.compress(bytes(1 << 24), 1)


def extended(content: bytes, extension: bytes) -> bytes:
    """A file with an extension between header and voxels, of which nothing is read."""
    offset = struct.pack("<f", 352 + len(extension))
    return content[:108] + offset + content[112:348] + b"\1\0\0\0" + extension + content[352:]


STREAMS = [
    ("multi-member", lambda f: gzip.compress(f[:100]) + gzip.compress(f[100:]), ""),
    ("empty members", lambda f: gzip.compress(b"") + gzip.compress(f) + gzip.compress(b""), ""),
    ("trailing zeros", lambda f: gzip.compress(f) + bytes(1 << 20), ""),
    ("trailing garbage", lambda f: gzip.compress(f) + b"garbage", "LS311"),
    ("zeros then garbage", lambda f: gzip.compress(f) + bytes(9) + b"x", "LS311"),
    ("bad CRC", lambda f: gzip.compress(f)[:-8] + b"abcd" + gzip.compress(f)[-4:], "LS311"),
    ("bad length", lambda f: gzip.compress(f)[:-1] + b"\1", "LS311"),
    ("no trailer", lambda f: gzip.compress(f)[:-8], "LS311"),
    ("half", lambda f: gzip.compress(f)[: len(f) // 4], "LS311"),
    ("gzip magic alone", lambda f: b"\x1f\x8b", "LS311"),
    ("not gzip", lambda f: b"\0" + gzip.compress(f)[1:], "LS312"),
    ("gzip in gzip", lambda f: gzip.compress(gzip.compress(f)), "LS312"),
    ("empty", lambda f: b"", "LS312"),
    ("gzip of nothing", lambda f: gzip.compress(b""), "LS312"),
    ("header alone", lambda f: f[:352], "LS317"),
    ("half a header", lambda f: f[:200], "LS312"),
    ("a byte short", lambda f: f[:-1], "LS317"),
    ("a byte long", lambda f: f + b"\0", "LS317"),
    ("a byte long inside", lambda f: gzip.compress(f + b"\0"), "LS317"),
    ("nonsense for an extension", lambda f: extended(f, b"\xff" * 48), ""),
    ("an extension of negative size", lambda f: extended(f, struct.pack("<ii", -16, 6) + bytes(8)), ""),
    ("an extension that is missing", lambda f: extended(f, b"\xff" * 48)[:380], "LS317"),
    ("a gigabyte of zeros in members", lambda f: gzip.compress(f) + 64 * ZEROS, "LS317"),
    ("bomb", lambda f: gzip.compress(f + bytes(1 << 26)), "LS317"),
    (
        "git-lfs",
        lambda f: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n" + bytes(400),
        "LS312",
    ),
    ("web page", lambda f: b"\n <!DOCTYPE html><html>" + b" " * 400, "LS312"),
    ("DICOM", lambda f: bytes(128) + b"DICM" + bytes(400), "LS312"),
]
SEEMS = {
    "git-lfs": "git-lfs pointer",
    "web page": "web page",
    "DICOM": "DICOM",
    "gzip in gzip": "gzip inside",
}


@pytest.mark.parametrize(("name", "change", "code"), STREAMS, ids=[name for name, *_ in STREAMS])
def test_streams(build: SimpleNamespace, name: str, change: object, code: str) -> None:
    content = change(raw(build))
    assert build.refusal(decode, content, "x.nii.gz") == code
    if name in SEEMS:
        with pytest.raises(LiversegError, match=SEEMS[name]):
            decode(content, "x.nii.gz")


@pytest.mark.timeout(60)
def test_a_gigabyte_of_zeros_behind_the_gzip(build: SimpleNamespace) -> None:
    """Padding is passed over, a piece at a time; what follows it is not."""
    packed, zeros = build.zipped(raw(build)), bytes(1 << 20)
    for behind, code in ((b"", ""), (b"x", "LS311")):
        pieces = itertools.chain([packed], itertools.repeat(zeros, 1024), [behind])
        tracemalloc.start()
        assert build.refusal(lambda found: open_scan(found, 1 << 30, "x").whole(), pieces) == code
        assert tracemalloc.get_traced_memory()[1] < 16e6
        tracemalloc.stop()


def test_every_bit_of_a_gzip_counts(build: SimpleNamespace) -> None:
    """Also where the stream spans several pieces; bits that carry nothing (time, system) may flip unseen."""
    noise = np.random.default_rng(0).integers(-900, 900, (80, 70, 60)).astype(np.int16)
    packed = build.zipped(build.nifti(noise, np.eye(4)))
    assert len(packed) > 1 << 18
    rng = np.random.default_rng(1)
    for at in rng.integers(10, len(packed), 40):
        changed = bytearray(packed)
        changed[at] ^= 1 << int(rng.integers(8))
        assert build.refusal(decode, bytes(changed), "x").startswith("LS31")
    for size in rng.integers(0, len(packed), 40):
        assert build.refusal(decode, packed[:size], "x") in ("LS311", "LS312")
    assert np.array_equal(decode(packed, "x").data, noise)


VALUES = [
    ("NaN", np.float32([0, NAN]), (1, 0), "LS318"),
    ("Inf", np.float32([0, INF]), (1, 0), "LS318"),
    ("above int16", np.int32([0, 32768]), (1, 0), "LS318"),
    ("below int16", np.float64([0, -32769]), (1, 0), "LS318"),
    ("ends of int16", np.float32([-32768, 32767]), (1, 0), ""),
    ("slope NaN means none", np.int16([5, 7]), (NAN, NAN), ""),
    ("slope 0 means none", np.int16([5, 7]), (0, 9), ""),
    ("slope Inf means none", np.int16([5, 7]), (INF, 0), ""),
    ("intercept NaN", np.int16([5, 7]), (1, NAN), "LS318"),
    ("slope 1e38", np.int16([5, 7]), (1e38, 0), "LS318"),
    ("int64", np.int64([-9, 2**62]), (1, 0), "LS318"),
    ("uint8", np.uint8([0, 255]), (1, 0), ""),
]


@pytest.mark.parametrize(("name", "values", "slope", "code"), VALUES, ids=[name for name, *_ in VALUES])
def test_image_values(
    build: SimpleNamespace, name: str, values: np.ndarray, slope: object, code: str
) -> None:
    content = bytearray(build.nifti(values.reshape(2, 1, 1), np.eye(4)))
    content[112:120] = struct.pack("<ff", *slope)
    volume = decode(bytes(content), "x")
    assert build.refusal(as_hu, volume, volume.data[:, :, 0]) == code
    if not code:
        assert as_hu(volume, volume.data[:, :, 0]).ravel().tolist() == values.tolist()


@pytest.mark.parametrize("odd", [1.5, NAN, INF, -INF, -1, 7, 257, 1 + 1e-6, 1e300, -1e300])
def test_label_values(build: SimpleNamespace, odd: float) -> None:
    for kind in (np.float64, np.int32, np.int8):
        with np.errstate(all="ignore"):
            data = np.array([0, odd]).astype(kind)
        if data[1] not in (0, 1, 2):
            assert build.refusal(as_label, decode(build.nifti(data.reshape(2, 1, 1)), "x")) == "LS320"
    for kind in ("u1", "i1", "<i2", ">i2", "<f4", ">f8", "i8", "u8"):
        good = np.array([0, 1, 2, 2]).astype(kind).reshape(2, 2, 1)
        assert as_label(decode(build.nifti(good), "x")).ravel().tolist() == [0, 1, 2, 2]
    only_tumour = as_label(decode(build.nifti(np.full((2, 1, 1), 2, np.uint8)), "x"))
    assert only_tumour.tolist() == [[[2]], [[2]]]
    scaled = decode(build.nifti(np.uint8([0, 1]).reshape(2, 1, 1), slope=(2, 0)), "x")
    assert as_label(scaled).ravel().tolist() == [0, 2]


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), st.binary(min_size=32, max_size=32), max_size=4), BIG)
@settings(max_examples=300, deadline=None)
def test_random_headers_give_coded_errors_only(
    build: SimpleNamespace, changes: dict[str, bytes], size: int
) -> None:
    content = bytearray(raw(build))
    for name, values in changes.items():
        kind, offset = FIELDS[name]
        content[offset : offset + kind.itemsize] = (values * 3)[: kind.itemsize]
    if size % 3 == 0:  # also plausible nonsense: one dimension
        content[42:44] = struct.pack("<h", size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            volume = decode(bytes(content), "x")
            as_hu(volume, volume.data[:, :, 0])
            resampled_grid(volume.header.grid, (1, 1, 1))
        except LiversegError:
            pass


def test_real_files_decode_as_nibabel_does_or_are_refused(real_data: Path) -> None:
    decoded, refused = [], {}
    for path in sorted(
        path for path in real_data.rglob("*") if path.is_file() and path.stat().st_size < 2**24
    ):
        try:
            volume = decode(path.read_bytes(), path.name)
        except LiversegError as error:
            refused[path.name] = error.code
            continue
        image = (
            nib.Nifti1Image.from_bytes if volume.header.raw[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c") else None
        )
        expected = nib.load(path) if path.suffix in (".gz", ".nii") else image(path.read_bytes())
        values = np.asanyarray(expected.dataobj).reshape(volume.header.shape)
        scaled = volume.data * volume.header.slope + volume.header.intercept
        np.testing.assert_allclose(scaled, values, rtol=1e-6)
        np.testing.assert_array_equal(volume.header.affine, expected.affine)
        decoded.append(path.name)
    assert len(decoded) > 40, refused
    assert refused["complex.nii.gz"] == refused["rgb_3D.nii"] == "LS316"
    assert refused["5D_zeros.nii.gz"] == refused["example4d.nii.gz"] == "LS313"
    assert refused["not-nifti.nii"] == "LS312"


@given(
    st.sampled_from([nib.Nifti1Header, nib.Nifti2Header]),
    st.sampled_from("<>"),
    st.sampled_from(["sform", "qform", "none"]),
    st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_affine_orientation_and_written_header_are_nibabels(
    kind: type[nib.Nifti1Header], order: str, form: str, seed: int
) -> None:
    """At any angle, to the bit: nibabel is what we leave at home."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix = np.diag([0, 0, 0, 1.0])
    matrix[:3, :3], matrix[:3, 3] = turn * rng.uniform(0.3, 5, 3), rng.uniform(-300, 300, 3)
    header = kind()
    header.set_data_shape(SHAPE)
    header.set_zooms(np.linalg.norm(matrix[:3, :3], axis=0))
    header.set_data_dtype(np.int16)
    header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
    if form != "none":
        getattr(header, f"set_{form}")(matrix, 1)
    header = header.as_byteswapped(order)
    ours = parse_header(header.binaryblock, "x")
    np.testing.assert_array_equal(ours.affine, header.get_best_affine())
    assert canonical_orientation(ours.affine).code == "".join(nib.aff2axcodes(ours.affine))
    label = (DATA % 3).astype(np.uint8)
    header.set_data_dtype(np.uint8)
    image = nib.Nifti2Image if kind is nib.Nifti2Header else nib.Nifti1Image
    written, stored = header_like(ours.raw, SHAPE, np.uint8)
    assert written + label.astype(stored).tobytes("F") == image(label, None, header).to_bytes()


@pytest.mark.parametrize("form", ["sform", "qform", "none", "nifti-2", "big-endian", "extension", "scaled"])
def test_written_label_lies_where_its_scan_does(build: SimpleNamespace, tmp_path: Path, form: str) -> None:
    matrix = build.affine("LIA", (0.7, 2.5, 1.1))
    image = (nib.Nifti2Image if form == "nifti-2" else nib.Nifti1Image)(DATA.astype(np.float32), matrix)
    for field in {"descrip", "data_type", "db_name", "aux_file", "intent_name"} & set(image.header.keys()):
        image.header[field] = b"secret"
    image.set_sform(matrix, 1 if form != "qform" else 0)
    image.set_qform(matrix, 1 if form != "sform" else 0)
    if form == "none":
        image.set_sform(None, 0), image.set_qform(None, 0)
    if form == "big-endian":
        image = nib.Nifti1Image(image.get_fdata(), None, image.header.as_byteswapped(">"))
    if form == "extension":
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"secret" * 100))
    content = bytearray(image.to_bytes())
    if form == "scaled":
        content[112:120] = struct.pack("<ff", 2, -1024)
    source = decode(bytes(content), "x")
    label = (DATA % 3).astype(np.uint8)
    first, second = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    write_label(first, label, source.header)
    write_label(second, np.asfortranarray(label), source.header)
    assert first.read_bytes() == second.read_bytes()
    written, ours = nib.load(first), decode(first.read_bytes(), "x")
    assert b"secret" not in gzip.decompress(first.read_bytes())
    assert written.shape == SHAPE
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asanyarray(written.dataobj), label)
    np.testing.assert_array_equal(written.affine, source.header.affine)
    np.testing.assert_array_equal(ours.header.affine, source.header.affine)
    assert ours.header.offset < 1024, "no room for the source's extensions"
