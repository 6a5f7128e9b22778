"""Settings: flags before environment before YAML before defaults; every mistake is named."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows.settings import every_setting, load_settings
from liverseg_core.config import Settings
from liverseg_core.errors import ExitCode, LiversegError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "store: from-yaml\nsource: yaml.tar\ntrain: {steps: 11, seed: 1, network: {channels: [4, 8]}}\n"
    )
    return path


def load(
    config: Path | str | None = None, *overrides: str, env: dict[str, str] | None = None, **flags: object
) -> Settings:
    return load_settings(config and str(config), overrides, env or {}, **flags)


def test_defaults() -> None:
    assert load() == Settings()
    assert load_settings(environment={"LIVERSEG_REAL_DATA": "/x", "HOME": "/y"}) == Settings()


def test_precedence(config: Path) -> None:
    env = {
        "LIVERSEG_STORE": "from-env",
        "LIVERSEG_TRAIN__STEPS": "22",
        "LIVERSEG_TRAIN__NETWORK__NORM": "batch",
    }
    yaml_only = load(config)
    assert (yaml_only.store, yaml_only.train.steps, yaml_only.train.seed) == ("from-yaml", 11, 1)
    with_env = load(config, env=env)
    assert (with_env.store, with_env.source, with_env.train.steps) == ("from-env", "yaml.tar", 22)
    assert with_env.train.network.channels == (4, 8)
    assert with_env.train.network.norm == "batch"
    flagged = load(config, "train.steps=33", env=env, store="from-flag", source=None)
    assert (flagged.store, flagged.source, flagged.train.steps) == ("from-flag", "yaml.tar", 33)
    assert flagged.train.seed == 1
    assert flagged.train.batch_size == Settings().train.batch_size


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.steps=100", "train.steps", 100),
        (" train.steps =100", "train.steps", 100),
        ("train.learning_rate=1e-4", "train.learning_rate", 1e-4),
        ("ingest.spacing_mm=[1, 2, 3.5]", "ingest.spacing_mm", (1, 2, 3.5)),
        ("ingest.spacing_mm=null", "ingest.spacing_mm", None),
        ("split.validation=27", "split.validation", 27),
        ("split.validation=0.25", "split.validation", 0.25),
        ("train.class_mixture=[0, 0.5, 0.5]", "train.class_mixture", (0, 0.5, 0.5)),
        ("register.experiment=a=b", "register_.experiment", "a=b"),
        ("train.network={channels: [2, 4, 8]}", "train.network.channels", (2, 4, 8)),
        ("source=!!python/object:os.system {}", "source", "!!python/object:os.system {}"),
    ],
)
def test_set(override: str, path: str, value: object) -> None:
    found: object = load(None, override)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == value


MISTAKES = [
    ("train.stepz=1", "Did you mean train.steps?"),
    ("train.netwrok.name=unet", "Did you mean train.network"),
    ("trian.steps=1", "Did you mean train?"),
    ("sorce=x", "Did you mean source?"),
    ("ingest.spacing=[1, 1, 1]", "Did you mean ingest.spacing_mm?"),
    ("qqqqqq=1", "liverseg info"),
    ("train.steps.more=1", "train.steps"),
    ("train.steps", "has no value"),
    ("train.steps=ten", "train.steps = 'ten'"),
    ("train.steps=0", "train.steps = 0"),
    ("train.steps=1.5", "train.steps = 1.5"),
    ("train=5", "train = 5"),
    ("train.loss=focal", "'dice_ce' or 'bce'"),
    ("ingest.spacing_mm=[1, 1]", "ingest.spacing_mm"),
    ("ingest.spacing_mm=[1, -1, 1]", "ingest.spacing_mm"),
    ("ingest.spacing_mm=[1, .nan, 1]", "ingest.spacing_mm"),
    ("ingest.shrink=.inf", "ingest.shrink"),
    ("train.learning_rate=.inf", "train.learning_rate"),
    ("train.window_hu=[.nan, 1]", "train.window_hu"),
    ("train.window_hu=[300, -200]", "the lower end first"),
    ("train.window_hu=[5, 5]", "the lower end first"),
    ("split.validation=1.5", "split.validation"),
    ("split.validation=0", "split.validation"),
    ("=5", "unknown setting"),
]


@pytest.mark.parametrize(("override", "says"), MISTAKES)
def test_mistakes(override: str, says: str) -> None:
    with pytest.raises(LiversegError) as caught:
        load(None, override)
    assert caught.value.code == "LS201"
    assert caught.value.exit_code == ExitCode.USAGE
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_mistakes_in_the_environment_and_in_flags() -> None:
    with pytest.raises(LiversegError, match=r"LS201.*Did you mean train\.steps"):
        load(env={"LIVERSEG_TRAIN__STEPZ": "1"})
    with pytest.raises(LiversegError, match="LS201"):
        load(store=["two", "stores"])


LAUGHS = b"a0: &a0 [x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 10)
)
FILES = [
    ("python object", b"store: !!python/object:os.system {}\n", "LS202"),
    ("python call", b"store: !!python/object/apply:os.system ['echo']\n", "LS202"),
    ("not YAML", b"store: [1\n", "LS202"),
    ("not UTF-8", b"store: \xff\xfe\xff\n", "LS202"),
    ("a tar", bytes(range(256)) * 40, "LS202"),
    ("a list", b"- store\n", "LS202"),
    ("a word", b"store\n", "LS202"),
    ("deeply nested", b"[" * 100_000, "LS202"),
    ("a thousand million laughs", LAUGHS + b"source: *a9\n", "LS201"),
    ("unknown key", b"stoer: x\n", "LS201"),
    ("a number as key", b"5: x\n", "LS201"),
    ("null as key", b"null: x\n", "LS201"),
    ("empty", b"", ""),
    ("comments alone", b"# nothing\n", ""),
    ("an empty section", b"train:\n", "LS201"),
]


@pytest.mark.parametrize(("name", "content", "code"), FILES, ids=[name for name, *_ in FILES])
def test_files(build: SimpleNamespace, tmp_path: Path, name: str, content: bytes, code: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    assert build.refusal(load, path) == code


def test_missing_files_and_recipe_names(build: SimpleNamespace, tmp_path: Path) -> None:
    for name in (tmp_path / "none.yaml", tmp_path, "no-such-recipe", "../phantom", ""):
        assert build.refusal(load, name) == ("LS202" if name else "")
    with pytest.raises(LiversegError, match=r"one of .*phantom.*unet"):
        load("no-such-recipe")
    folder = Path(__file__).parents[2] / "deployments" / "configs"
    recipes = {path.stem for path in folder.glob("*.yaml")}
    assert {"phantom", "unet"} <= recipes
    for recipe in recipes:
        given = yaml.safe_load((folder / f"{recipe}.yaml").read_text())
        dumped = load(recipe).model_dump(mode="json", by_alias=True)
        for section, values in given.items():
            if isinstance(values, dict):
                assert values.items() <= dumped[section].items() or "network" in values


def test_canonical_sections_survive_json() -> None:
    settings = load("phantom")
    again = Settings.model_validate(settings.model_dump(mode="json", by_alias=True))
    assert again == settings


@pytest.mark.parametrize("digits", ["0123", "1234567890", "12e4"])
def test_a_checksum_of_digits_stays_as_it_was_written(digits: str) -> None:
    assert load_settings(overrides=[f"source_md5={digits}"], environment={}).source_md5 == digits


def test_every_setting_comes_back_and_none_is_left_out() -> None:
    """Also those in no key, which a training that is handed to another pool needs as much."""
    changed = ["train.start_from=models:/liverseg@champion", "register.tolerance=0.5", "compute.workers=3"]
    settings = load_settings("resenc", changed, {}, store="s3://bucket/store")
    told = json.loads(json.dumps(every_setting(settings)))
    assert told["train"]["start_from"] == "models:/liverseg@champion"
    assert told["register"]["tolerance"] == 0.5
    assert Settings.model_validate(told) == settings
