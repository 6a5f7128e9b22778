"""Reports that agree with themselves, and files that tell other programs what they are."""

import dataclasses
import json
import re
from collections.abc import Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
from tiny_model import NETWORK, tiny_spec

from flows.commands.case_table import case_table
from flows.commands.predict import say_caveats
from flows.console import dice_rows
from flows.settings import load_settings
from liverseg_core.artifacts.local_store import LocalStore
from liverseg_core.cases.case_record import CaseRecord
from liverseg_core.cases.case_writer import CaseWriter
from liverseg_core.cases.data_page import data_page
from liverseg_core.cases.data_report import CaseRow
from liverseg_core.cases.split import split_cases
from liverseg_core.cases.store import IMAGE
from liverseg_core.config import IngestConfig, NetworkConfig, SplitConfig
from liverseg_core.evaluation.case_view import CaseView
from liverseg_core.evaluation.measures import score_case, summarise
from liverseg_core.models.caveats import caveats
from liverseg_core.models.model import Model, ModelSpec
from liverseg_core.page import html_page
from liverseg_core.report.card import model_card
from liverseg_core.report.page import Shown, report_page
from liverseg_core.report.places import placeless
from liverseg_core.report.results import POLICY_NAMES, Results, mean_dice, number
from liverseg_core.report.sources import ReportSources, Rival
from liverseg_core.report.viewer import ASSETS, pack, stack_of, viewer_html
from liverseg_core.volumes.geometry import Grid
from liverseg_core.volumes.resample import resample_label
from tasks.registry.promotion import COMPARED, Measured, Seen, decide
from tasks.registry.promotion import Rival as Champion
from tasks.registry.version_page import MEASURES, answers
from tasks.registry.versions import VersionRecord

ROWS: dict[str, tuple[str, str]] = {
    "1.14": (
        "a champion that was measured again for a comparison",
        "the scores that decided stand beside the verdict",
    ),
    "1.15": ("a place in air, in bone and in soft tissue in the viewer", "≤ −300, ≥ 720 and ≈ HU"),
    "1.17": (
        "labels learnt at twice the scans' spacing, by vote",
        "said in report, card and predict, with how much the labels changed",
    ),
    "4 percentiles": ("body HU in the data report", "names its percentiles"),
    "4 card": ("a datalist, a source and errors with absolute paths", "names of files alone"),
    "4 datalist": ("dataset_0.json, read by MONAI", "has what MONAI's Decathlon readers want"),
    "4 orientation": ("a stored case, read as LPS+", "its axes say that they are RAS+"),
    "4 affine": ("an affine of whole numbers to the served model", "taken; what is no affine: LS292"),
}
SPACING_MM = (2.0, 2.0, 5.0)
UNET = {"spacing_mm": None, "shrink": 2}


def found(cases: int, seed: int = 0) -> Results:
    """Cases with random errors; every third has no tumour, and of those every other has one invented."""
    rng, scores = np.random.default_rng(seed), []
    for at in range(cases):
        reference = np.zeros((14, 12, 10), np.uint8)
        reference[2:12, 2:10, 2:8] = 1
        if at % 3:
            reference[4:8, 4:8, 3:6] = 2
        prediction = np.where(rng.random(reference.shape) < 0.1, 0, reference).astype(np.uint8)
        prediction[4:6, 4:6, 3] = 2 if at % 2 else 1
        scores.append(score_case(f"v{at}", prediction, reference, SPACING_MM))
    return Results([score.record() for score in scores], summarise(scores))


@pytest.fixture
def sources(tmp_path: Path) -> ReportSources:
    """A model that learnt at twice the scans' spacing from two cases."""
    spec = ModelSpec(
        network=NetworkConfig(),
        activation="softmax",
        patch_size=(32, 32, 32),
        window_hu=(-200, 300),
        ingest=IngestConfig.model_validate(UNET),
        data_key="d" * 32,
    )
    (tmp_path / "model.json").write_text(json.dumps(spec.canonical()))
    row = CaseRow("t0", True, (9, 9, 9), (2, 2, 5), "RAS", {"p0.5": -90, "p50": 40, "p99.5": 400}, 1000, 10)
    rows = [
        dataclasses.replace(row, stored_liver_ml=1040.0, stored_tumour_ml=12.0),
        dataclasses.replace(row, case="t1", tumour_ml=0, stored_liver_ml=1000.0, stored_tumour_ml=0.0),
    ]
    return ReportSources(
        title="liverseg version 2",
        dataset="Liver",
        phantom=False,
        evaluation=tmp_path,
        model=tmp_path,
        resumed_from=[],
        training=["t0", "t1"],
        validation=dict.fromkeys((case["case"] for case in found(9).scores), tmp_path),
        data=rows,
        champion=None,
        verdict="champion: there was none",
        provenance={
            "written": "2026-11-30 02:12 UTC with liverseg 1",
            "trained": "in 9 s on a CPU",
        },
        recipe="train: {}\n",
        links={},
    )


def shown(sources: ReportSources, results: Results) -> str:
    """The words of the report's page."""
    return words(report_page(sources, results, Shown(None)))


def words(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", page.partition("</style>")[2])).split())


@pytest.mark.trouble("1.14")
def test_a_verdict_and_the_table_below_it_say_the_same(sources: ReportSources) -> None:
    """Also where tumours are counted in two ways, and intervals are others than the table's."""
    ours, theirs = found(9, 1), found(9, 2)
    seen = Seen("v", {case["case"]: case["case"] for case in ours.scores}, [])
    settings = load_settings(None, ["register.tolerance=1"]).register_
    _, verdict = decide(
        Measured.of(seen, ours.scores), Champion("version 1", Measured.of(seen, theirs.scores)), settings
    )
    rival = Rival("liverseg version 1", theirs.scores)
    text = shown(dataclasses.replace(sources, champion=rival, verdict=verdict), ours)
    assert "95 % intervals" in verdict
    for group, measure in COMPARED.items():
        told = re.search(rf"{group} ([+-][\d.]+), ([+-][\d.]+) to ([+-][\d.]+)", verdict)
        assert told
        mean, low, high = (number(float(value), 4, sign=True) for value in told.groups())
        assert f"{mean} ({low} to {high})" in text, measure


def test_every_table_has_the_same_dice(sources: ReportSources) -> None:
    """Terminal, page, card and the version's page in MLflow, under whichever policy they name."""
    for seed in range(5):
        results = found(7, seed)
        page, card = shown(sources, results), model_card(sources, results)
        liver, _, tumour = (row[1:] for row in dice_rows(results.summary))
        terminal = {"liver": liver, "tumour": tumour}
        for group in ("liver", "tumour"):
            mean, median, sd, empty, pooled = terminal[group]
            assert mean == number(mean_dice(results.scores, group).mean)
            assert page.count(f"{mean} (") == card.count(f"{mean} (") == 1
            assert f"{POLICY_NAMES['nan']} {mean} {median} {sd} " in page
            assert f"{POLICY_NAMES['lits']} {empty} " in page
            assert f"{POLICY_NAMES['pooled']} {pooled} " in page
            assert f"{POLICY_NAMES['lits']} | {empty} |" in card
            assert f"{POLICY_NAMES['pooled']} | {pooled} |" in card
        table = {group: results.summary[group]["policies"]["nan"] for group in ("liver", "tumour")}
        tags = {MEASURES: json.dumps(table)}
        version = VersionRecord("liverseg", 1, (), "r", "", tags, "", None)
        mean, _, sd, *_ = terminal["tumour"]
        assert f"tumour Dice {mean} ± {sd} of" in answers(version)["How good"]


def scene() -> CaseView:
    """Soft tissue, in a liver's height, with air, fat and bone."""
    image = np.full((30, 30, 8), 41, np.int16)
    image[2:6, 14:18], image[24:28, 14:18], image[10:14, 14:18] = -1000, 1500, -299
    label = np.zeros(image.shape, np.uint8)
    label[8:22, 8:22] = 1
    return CaseView("a", image, label, label, (2.0, 2.0, 5.0), {})


@pytest.mark.trouble("1.15")
def test_the_viewer_says_no_more_of_hu_than_it_knows(browser: Any, tmp_path: Path) -> None:
    case = scene()
    (tmp_path / "page.html").write_text(html_page("a", [viewer_html([pack(stack_of(case))])], *ASSETS))
    page = browser.new_page(viewport={"width": 700, "height": 900})
    page.goto((tmp_path / "page.html").as_uri())
    canvas = page.locator("canvas[aria-label]")
    canvas.wait_for()
    box = canvas.bounding_box()
    for x, expected in ((4, "≤ −300 HU"), (26, "≥ 720 HU"), (12, "≈ −296 HU"), (20, "≈ 40 HU")):
        across, up = ((n - 0.5 - at) / n for n, at in zip(case.image.shape, (x, 16), strict=False))
        canvas.click(position={"x": across * box["width"], "y": up * box["height"]})
        assert f"· {expected} here" in page.locator("#viewer output").inner_text()
    page.close()


@pytest.mark.trouble("1.17")
def test_votes_at_twice_the_spacing_are_said_wherever_volumes_are(
    sources: ReportSources, capsys: pytest.CaptureFixture[str]
) -> None:
    page, card = shown(sources, found(9)), " ".join(model_card(sources, found(9)).split())
    say_caveats(sources.model)
    predict = " ".join(capsys.readouterr().err.split())
    for said in ("labels at 2 times the scans' spacing", "equal votes", "volumes tend to be too large"):
        assert said in page
        assert said in card
        assert said in predict
    measured = "+2 % liver with tumour (0 % to +4 % by case), +20 % tumour (+20 % by case)"
    assert measured in page
    assert measured in card
    assert page.count("what to keep in mind of them") == 2, "beside the other tables and plots of volumes"
    spec = json.loads((sources.model / "model.json").read_text())
    ingest = IngestConfig(spacing_mm=(1, 1, 1)).canonical()
    (sources.model / "model.json").write_text(json.dumps(spec | {"ingest": ingest}))
    as_they_are = [dataclasses.replace(row, stored_tumour_ml=row.tumour_ml) for row in sources.data[1:]]
    assert "keep in mind" not in shown(dataclasses.replace(sources, data=as_they_are), found(9))


@pytest.mark.trouble("1.17")
def test_what_has_caveats_follows_from_settings() -> None:
    """And the caveat is true: of many balls, votes at twice the spacing give more volume."""
    expected = {"unet": 2, "phantom": 0, "ahnet": 0, "resenc": 0}
    assert {recipe: len(list(caveats(load_settings(recipe).ingest))) for recipe in expected} == expected
    for changed, count in (({"shrink": 3}, 1), ({"shrink": 1}, 0), ({"label_interpolation": "nearest"}, 1)):
        assert len(list(caveats(IngestConfig.model_validate({**UNET, **changed})))) == count
    fine, coarse = Grid((24, 24, 24), np.eye(4)), Grid((12, 12, 12), np.diag([2.0, 2, 2, 1]))
    coarse.affine[:3, 3] = 0.5
    at = np.stack(np.meshgrid(*(np.arange(24),) * 3, indexing="ij"))
    voxels, voted = 0, 0
    for centre in np.random.default_rng(0).uniform(11, 13, (30, 3, 1, 1, 1)):
        ball = 2 * (((at - centre) ** 2).sum(0) < 25).astype(np.uint8)
        voxels += np.count_nonzero(ball)
        voted += 8 * sum(np.count_nonzero(plane) for plane in resample_label(ball.T, fine, coarse, "vote"))
    assert 1.03 < voted / voxels < 1.08


@pytest.mark.trouble("4 percentiles")
def test_percentiles_are_named(sources: ReportSources, capsys: pytest.CaptureFixture[str]) -> None:
    named = "body HU, p0.5 p50 p99.5"
    assert named in words(data_page("a", "a", sources.data, {}))
    assert named in shown(sources, found(3))
    assert named in [column.header for column in case_table(sources.data).columns]
    interval = "from the 2.5th to the 97.5th percentile"
    assert interval in shown(sources, found(3))
    assert interval in model_card(sources, found(3))


def test_report_and_card_say_when_on_what_and_with_what(sources: ReportSources) -> None:
    for told in sources.provenance.values():
        assert told in shown(sources, found(3))
        assert told in model_card(sources, found(3))


@pytest.mark.trouble("4 card")
@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("LS303: /home/me/T.tar ends early (a/b.nii.gz)", "LS303: T.tar ends early (a/b.nii.gz)"),
        ("/data/my scans/liver/imagesTr/a.nii.gz cannot be read", "imagesTr/a.nii.gz cannot be read"),
        ("C:\\Users\\me\\list.json", "list.json"),
        ("file:///home/me/x.html", "x.html"),
        ("~/lists/dataset_0.json", "dataset_0.json"),
        ("lists/dataset_0.json", "lists/dataset_0.json"),
        ("s3://bucket/a/b.tar, https://host:80/a/b", "s3://bucket/a/b.tar, https://host:80/a/b"),
        ("https://me:secret@host/a", "https://host/a"),
        ("tumour / liver, and/or 1/2", "tumour / liver, and/or 1/2"),
    ],
)
def test_places_of_this_machine_are_left_out(given: str, left: str) -> None:
    assert placeless(given, ["/data/my scans/liver", "/data/my scans"]) == left


@pytest.mark.trouble("4 datalist")
def test_monai_reads_the_datalist(tmp_path: Path) -> None:
    from monai.apps import DecathlonDataset
    from monai.data import load_decathlon_datalist

    names = [f"liver_{n}" for n in range(10)]
    cases = [CaseRecord(name, name, n < 9, True, False, name) for n, name in enumerate(names)]
    split = split_cases("Liver", cases, SplitConfig(validation=2), LocalStore(tmp_path / "store"))
    (tmp_path / "Task03_Liver").mkdir()
    listing = tmp_path / "Task03_Liver" / "dataset.json"
    listing.write_bytes((split.path / "dataset_0.json").read_bytes())
    counts = {name: len(load_decathlon_datalist(listing, True, name)) for name in ("validation", "test")}
    assert counts == {"validation": 2, "test": 1}
    data = DecathlonDataset(tmp_path, "Task03_Liver", "training", val_frac=0.0, cache_num=0)
    assert len(data) == 7
    properties = data.get_properties()
    assert properties["labels"] == {"0": "background", "1": "liver", "2": "tumour"}
    assert properties["modality"] == {"0": "CT"}
    assert (properties["numTraining"], properties["numTest"]) == (7, 1)


RIGHTWARDS = {"left-to-right": -1, "right-to-left": 1}
BACKWARDS = {"posterior-to-anterior": -1, "anterior-to-posterior": 1}
UPWARDS = {"inferior-to-superior": 1, "superior-to-inferior": -1}


@pytest.mark.trouble("4 orientation")
def test_who_reads_orientations_finds_each_voxel_in_the_patient(tmp_path: Path) -> None:
    """In LPS+ millimetres, as ITK counts, by the metadata of image and label alone."""
    affine = np.diag([0.8, 1.0, 2.5, 1.0])
    affine[:3, 3] = -37.5, 12.25, 80.0
    writer = CaseWriter(tmp_path, Grid((4, 5, 6), affine), labelled=True)
    writer.write_slab(0, np.zeros((6, 5, 4), np.int16), np.zeros((6, 5, 4), np.uint8))
    writer.finish("c", {}, {})
    for group in (tmp_path / IMAGE, tmp_path / IMAGE / "labels" / "anatomy"):
        ome = json.loads((group / "zarr.json").read_text())["attributes"]["ome"]
        (scales,) = ome["multiscales"]
        size, place = scales["datasets"][0]["coordinateTransformations"]
        towards: Mapping[str, int] = RIGHTWARDS | BACKWARDS | UPWARDS
        signs = {axis["name"]: towards[axis["orientation"]["value"]] for axis in scales["axes"]}
        assert {axis["orientation"]["type"] for axis in scales["axes"]} == {"anatomical"}
        for voxel in ((0, 0, 0), (3, 4, 5)):
            steps = zip(size["scale"], voxel[::-1], place["translation"], "zyx", strict=True)
            z, y, x = (signs[name] * (mm * at + start) for mm, at, start, name in steps)
            right, front, up = (affine @ [*voxel, 1])[:3]
            assert (x, y, z) == pytest.approx((-right, -front, up))


@pytest.fixture(scope="module")
def served() -> Any:
    """The registered model's code with a network that was never trained."""
    from liverseg_core.models.model import pick_device
    from liverseg_core.models.networks import build_network
    from tasks.registry.pyfunc import SegmentationModel

    model = SegmentationModel()
    model.model = Model(build_network(NETWORK).eval(), tiny_spec(16, None, "d" * 32), pick_device("cpu"))
    return model


VOXELS = np.random.default_rng(0).integers(-200, 300, (6, 7, 8)).tolist()
WHOLE = [[-2, 0, 0, 5], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]]


@pytest.mark.trouble("4 affine")
def test_whole_numbers_are_numbers(served: Any) -> None:
    exact = served.predict(None, pd.DataFrame([{"image": VOXELS, "affine": np.array(WHOLE, float).tolist()}]))
    mixed = [[-2.0, 0, 0, 5], *WHOLE[1:]]
    for affine in (WHOLE, mixed, np.array(WHOLE), np.array(WHOLE, np.int8)):
        label = served.predict(None, pd.DataFrame([{"image": VOXELS, "affine": affine}]))
        np.testing.assert_array_equal(label, exact)


@pytest.mark.trouble("4 affine")
@pytest.mark.parametrize(
    ("scan", "code"),
    [
        pytest.param({"affine": "eye"}, "LS292", id="a word"),
        pytest.param({"affine": [["1", "0", "0", "0"]] * 4}, "LS292", id="numbers as text"),
        pytest.param({"affine": WHOLE[:3]}, "LS292", id="three rows"),
        pytest.param({"affine": [[1], [1, 2]]}, "LS292", id="ragged"),
        pytest.param({"affine": [[True] * 4] * 4}, "LS292", id="true"),
        pytest.param({"affine": [[0] * 4] * 3 + [[0, 0, 0, 1]]}, "LS292", id="zeros"),
        pytest.param({"affine": [[1, 1, 0, 0], *WHOLE[1:]]}, "LS315", id="shears"),
        pytest.param({"affine": [[float("inf"), 0, 0, 0], *WHOLE[1:]]}, "LS292", id="infinite"),
        pytest.param({"affine": None}, "LS292", id="none"),
        pytest.param({"image": [[[1, 2], [3]]]}, "LS292", id="a ragged image"),
        pytest.param({"image": [[[None]]]}, "LS292", id="an image of nothing"),
        pytest.param({"image": [[1, 2]]}, "LS313", id="a plane"),
        pytest.param({"image": [[[2**40]]]}, "LS318", id="too large for HU"),
        pytest.param({"image": [[[-(2**63)]]]}, "LS318", id="far too low"),
        pytest.param({"image": [[[2**70]]]}, "LS292", id="no number of a machine"),
    ],
)
def test_what_is_no_scan_has_a_code(served: Any, scan: dict[str, Any], code: str) -> None:
    with pytest.raises(Exception, match=rf"^{code}: "):
        served.predict(None, pd.DataFrame([{"image": VOXELS, "affine": WHOLE, **scan}]))
