"""Films: the slices they run through, the colours where the masks are, sizes, and never half a file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from liverseg_core.drawing import LIVER, TUMOUR
from liverseg_core.evaluation.case_view import CaseView
from liverseg_core.phantom.case import phantom_case
from liverseg_core.report import films
from liverseg_core.report.films import GIF_BYTES, MP4_BYTES, film, poster
from liverseg_core.report.frames import frames
from liverseg_core.report.scene import FRAME_HEIGHT, Scene, panel_boxes, plan

SPACING_MM = (2.0, 2.0, 5.0)
SHAPE = (100, 80, 24)


def view(reference: bool = True, name: str = "case_1") -> CaseView:
    """A body with a liver on the patient's right, one tumour in it, and a prediction two voxels off."""
    image = np.full(SHAPE, -1000, np.int16)
    image[6:94, 6:74] = 40
    label = np.zeros(SHAPE, np.uint8)
    label[56:88, 20:64, 8:18] = 1
    label[70:82, 44:58, 11:15] = 2
    return CaseView(name, image, label if reference else None, np.roll(label, 2, 1), SPACING_MM, {})


def gif_frames(path: Path) -> list[np.ndarray]:
    with Image.open(path) as picture:
        found = []
        for at in range(getattr(picture, "n_frames", 1)):
            picture.seek(at)
            found.append(np.array(picture.convert("RGB")))
        return found


def pure(picture: np.ndarray, colour: str, box: tuple[int, int, int, int]) -> np.ndarray:
    """Positions (row, column) in a box of pixels that have exactly a colour."""
    left, top, right, bottom = box
    wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return np.argwhere((picture[top:bottom, left:right] == wanted).all(-1))


def like(picture: np.ndarray, box: tuple[int, int, int, int], yellow: bool) -> Any:
    """Where a box is tinted yellow, or purple."""
    left, top, right, bottom = box
    green, blue = (picture[top:bottom, left:right, channel].astype(int) for channel in (1, 2))
    return (green - blue > 60) if yellow else (blue - green > 40)


def shown(mask: np.ndarray, scene: Scene) -> Any:
    """A slice's mask as pixels of a panel, by nearest."""
    piece = mask[scene.x, scene.y][::-1, ::-1].T
    wide, high = scene.size
    rows = np.arange(high) * piece.shape[0] // high
    return piece[rows][:, np.arange(wide) * piece.shape[1] // wide]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_gif_runs_from_below_the_liver_to_above_it(tmp_path: Path) -> None:
    case = view()
    film(case, tmp_path / "case.gif")
    found = gif_frames(tmp_path / "case.gif")
    scene = plan(case, frames=99)
    assert scene.slices == tuple(range(6, 20)), "12 mm more on either side"
    assert len(found) == len(scene.slices)
    reference, prediction = panel_boxes(plan(case, frames=99, panel_width=440))
    tumours = [len(pure(picture, TUMOUR, reference)) > 0 for picture in found]
    livers = [like(picture, prediction, yellow=False).any() for picture in found]
    assert tumours == [11 <= z < 15 for z in scene.slices]
    assert livers == [8 <= z < 18 for z in scene.slices]
    with Image.open(tmp_path / "case.gif") as picture:
        assert picture.height <= FRAME_HEIGHT
        assert picture.info["duration"] >= 1000 / 12
        assert picture.info["loop"] == 0


def test_colours_lie_on_the_masks_and_right_is_left(tmp_path: Path) -> None:
    case = view()
    film(case, tmp_path / "case.gif")
    scene = plan(case, frames=99)
    picture = gif_frames(tmp_path / "case.gif")[scene.slices.index(12)]
    left, right = panel_boxes(scene)
    yellow, purple = (like(picture, right, yellow=colour) for colour in (True, False))
    assert dice(yellow, shown(case.prediction[..., 12] == 2, scene)) > 0.97
    assert dice(purple, shown(case.prediction[..., 12] == 1, scene)) > 0.97
    outline = pure(picture, LIVER, left)
    assert len(outline) > 200
    inside = shown(case.reference[..., 12] > 0, scene)  # type: ignore[index]
    rows, columns = np.nonzero(inside)
    assert outline[:, 1].max() < scene.size[0] / 2, "the patient's right is on the left"
    assert abs(outline[:, 0].min() - rows.min()) <= 2
    assert abs(outline[:, 1].max() - columns.max()) <= 2
    assert not inside.all()
    tumour = pure(picture, TUMOUR, left)
    assert tumour[:, 0].mean() < outline[:, 0].mean(), "the tumour is in front, and front is up"


def test_pixels_are_square_in_millimetres() -> None:
    case = view()
    stretched = CaseView("c", case.image, None, case.prediction, (1.0, 2.0, 5.0), {})
    for each in (case, stretched):
        scene = plan(each, frames=3)
        across, up = (part.stop - part.start for part in (scene.x, scene.y))
        dx, dy, _ = each.spacing_mm
        assert scene.size[0] / scene.size[1] == pytest.approx(across * dx / (up * dy), rel=0.02)
    scene = plan(case, frames=3)
    assert (scene.x, scene.y) == (slice(2, 98), slice(2, 78)), "the body and 8 mm around it"


def test_mp4_plays_in_a_browser(tmp_path: Path) -> None:
    import av

    case = view()
    film(case, tmp_path / "case.mp4")
    data = (tmp_path / "case.mp4").read_bytes()
    assert len(data) < MP4_BYTES
    assert data.index(b"moov") < data.index(b"mdat"), "the head is in front"
    scene = plan(case, frames=999)
    with av.open(io.BytesIO(data), "r") as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate is not None
        assert stream.average_rate <= 12
        found = [picture.to_ndarray(format="rgb24") for picture in video.decode(stream)]
    assert len(found) >= len(scene.slices)
    assert found[0].shape[:2] == scene.frame[::-1]
    picture = found[scene.slices.index(12)]
    _, box = panel_boxes(scene)
    assert dice(like(picture, box, yellow=True), shown(case.prediction[..., 12] == 2, scene)) > 0.9
    assert dice(like(picture, box, yellow=False), shown(case.prediction[..., 12] == 1, scene)) > 0.9


def test_noisy_scans_keep_within_the_bytes(tmp_path: Path) -> None:
    image, label, affine = phantom_case(1, 0, (200, 160, 90))
    x, y, z = np.abs(np.diag(affine))[:3].tolist()
    case = CaseView("phantom_0", image, label, label, (x, y, z), {})
    for suffix, most in ((".gif", GIF_BYTES), (".mp4", MP4_BYTES)):
        film(case, tmp_path / f"case{suffix}")
        assert (tmp_path / f"case{suffix}").stat().st_size <= most
    again = tmp_path / "again.gif"
    film(case, again)
    assert again.read_bytes() == (tmp_path / "case.gif").read_bytes()


@pytest.mark.parametrize("shape", [(40, 30, 5), (1, 1, 1), (3, 200, 2), (64, 64, 1)])
def test_any_case_has_a_film(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    """No liver in either: all slices; no reference; no body; names that do not fit."""
    rng = np.random.default_rng(0)
    nothing = np.zeros(shape, np.uint8)
    for image in (rng.integers(-1000, 1000, shape, np.int16), np.full(shape, -1000, np.int16)):
        case = CaseView("a name & <that> does not $fit$ " * 9, image, None, nothing, SPACING_MM, {})
        film(case, tmp_path / "case.gif")
        film(case, tmp_path / "case.mp4")
        found = gif_frames(tmp_path / "case.gif")
        assert len(found) == shape[2], "every slice"
        assert found[0].shape[0] <= FRAME_HEIGHT
        assert Image.open(io.BytesIO(poster(case))).size == plan(case, frames=1).frame


def test_no_voxel_of_tumour_is_lost() -> None:
    image = np.full((300, 300, 3), 40, np.int16)
    label = np.zeros(image.shape, np.uint8)
    spots = [(20, 30), (21, 33), (150, 151), (277, 12)]
    for x, y in spots:
        label[x, y, 1] = 2
    case = CaseView("c", image, label, label, (1.0, 1.0, 1.0), {})
    scene = plan(case, frames=9, panel_width=180)
    _, (left, top, right, bottom) = panel_boxes(scene)
    drawn = list(frames(case, scene))[1][top:bottom, left:right]
    assert (drawn >= drawn.max()).sum() >= len(spots)


def test_poster_shows_the_most_tumour() -> None:
    case = view()
    label = case.prediction.copy()
    label[60:86, 24:60, 9] = 2
    picture = np.array(
        Image.open(io.BytesIO(poster(CaseView("c", case.image, label, label, SPACING_MM, {})))).convert("RGB")
    )
    left, _ = panel_boxes(plan(case, frames=99))
    rows = pure(picture, TUMOUR, left)[:, 0]
    assert np.ptp(rows) > 100, "the slice with the large tumour"


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".gif", ".mp4"):
        path = tmp_path / f"case{suffix}"
        path.write_bytes(b"old")

        def broken(*_: object) -> object:
            yield from list(frames(view(), plan(view(), frames=2)))[:1]
            raise OSError("no space")

        with monkeypatch.context() as patch:
            patch.setattr(films, "frames", broken)
            with pytest.raises(OSError, match="no space"):
                film(view(), path)
        assert path.read_bytes() == b"old"
        film(view(), path)
        assert path.read_bytes() != b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case.gif", "case.mp4"]
    with pytest.raises(ValueError, match=r"case\.webm"):
        film(view(), tmp_path / "case.webm")
