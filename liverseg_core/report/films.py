"""Films through a case's slices, from below the liver to above it, as GIF or MP4; and one picture of it."""

import io
import os
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image as Pictures

from liverseg_core.durable import PART, sync, write_atomically
from liverseg_core.evaluation.case_view import CaseView
from liverseg_core.report.frames import Frame, frames, palette
from liverseg_core.report.scene import Scene, fullest, plan

GIF_BYTES, MP4_BYTES = 4_000_000, 2_000_000
GIF_FRAMES, MP4_FRAMES = 64, 360
GIF_SIZES = ((440, 40), (400, 32), (340, 28), (280, 24), (220, 20), (180, 14))
"""Panel width in pixels and number of greys, tried from the best."""
SECONDS = 7
"""What a short film is stretched to."""
FASTEST_HZ, SLOWEST_HZ, HELD_MS = 11, 3, 900


def film(view: CaseView, path: Path) -> None:
    """Write a film through a case; under its name there is never a part of one.

    Args:
        view: The case.
        path: `.gif`, of at most 4 MB, or `.mp4`, of at most 2 MB.

    Raises:
        ValueError: For another suffix.
    """
    suffix = path.suffix.lower()
    if suffix == ".gif":
        write_atomically(path, _gif(view))
    elif suffix == ".mp4":
        _mp4(view, path)
    else:
        raise ValueError(f"{path.name}: a film is .gif or .mp4")


def poster(view: CaseView) -> bytes:
    """A PNG of the slice with the most tumour, as a film shows it."""
    scene = replace(plan(view, frames=MP4_FRAMES), slices=(fullest(view),))
    data = io.BytesIO()
    _picture(next(frames(view, scene))).save(data, "PNG", optimize=True)
    return data.getvalue()


def _gif(view: CaseView) -> bytes:
    """The largest that keeps within the bytes, as foreseen from a few frames."""
    for width, greys in GIF_SIZES:
        scene = plan(view, frames=GIF_FRAMES, panel_width=width, greys=greys)
        some = scene.slices[:: max(1, len(scene.slices) // 5)]
        sample = replace(scene, slices=some)
        if len(_encoded(view, sample)) / len(some) * len(scene.slices) < 0.95 * GIF_BYTES:
            break
    return _encoded(view, scene)


def _encoded(view: CaseView, scene: Scene) -> bytes:
    count = len(scene.slices)
    each = round(100 / _rate(count)) * 10  # GIF counts in hundredths of a second
    durations = [each] * (count - 1) + [HELD_MS]
    pictures = map(_picture, frames(view, scene))
    data = io.BytesIO()
    first = next(pictures)
    first.save(
        data, "GIF", save_all=True, append_images=pictures, duration=durations if count > 1 else HELD_MS,
        loop=0, optimize=False, disposal=1,
    )  # fmt: skip
    return data.getvalue()


def _picture(frame: Frame) -> Pictures.Image:
    picture = Pictures.fromarray(frame, "P")
    picture.putpalette(palette().tobytes())
    return picture


def _rate(count: int) -> float:
    return min(max(count / SECONDS, SLOWEST_HZ), FASTEST_HZ)


def _mp4(view: CaseView, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        _encode_video(view, plan(view, frames=MP4_FRAMES), temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _encode_video(view: CaseView, scene: Scene, path: Path) -> None:
    """H.264 as every browser plays it, its head in front; the rate is bounded so that the size is, too."""
    import av

    count, rate = len(scene.slices), Fraction(round(_rate(len(scene.slices))))
    most = int(0.8 * MP4_BYTES * 8 / (count / rate + 1))
    options = {
        "crf": "22", "preset": "veryfast", "maxrate": str(most), "bufsize": str(most), "threads": "1",
        "colorprim": "bt709", "transfer": "bt709", "colormatrix": "bt709",
    }  # fmt: skip
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as file:
        stream: Any = file.add_stream("libx264", rate=rate, options=options)
        (stream.width, stream.height), stream.pix_fmt = scene.frame, "yuv420p"
        drawn = frames(view, scene)
        for frame in _held(drawn, round(rate * HELD_MS / 1000)):
            picture = av.VideoFrame.from_ndarray(palette()[frame], format="rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode())


def _held(drawn: Iterator[Frame], times: int) -> Iterator[Frame]:
    """Frames, the last of them some more times."""
    frame = next(drawn)
    yield frame
    for frame in drawn:
        yield frame
    yield from chain.from_iterable([frame] for _ in range(times))
