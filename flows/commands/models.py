"""Verbs that judge models: score, and what the registry holds."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import Config, Json, Overrides, Store, print_json
from flows.commands.score_tables import case_scores, lesion_table, surface_table
from flows.console import DATA, dice_table, plain_table, say, watching
from liverseg_core.config import Settings
from liverseg_core.errors import LiversegError
from liverseg_core.evaluation.glossary import TOLERANCE_MM
from liverseg_core.words import counted

if TYPE_CHECKING:
    from tasks.registry.tracking import Tracking

REF = "A version's number, @alias, models:/NAME/VERSION, models:/NAME@ALIAS or runs:/ID."
Reference = Annotated[str, typer.Argument(metavar="REF", help=REF)]
registry = typer.Typer(no_args_is_help=True, help="What the model registry holds.")


def add_to(app: typer.Typer) -> None:
    """Add these verbs to the command line."""
    app.command()(score)
    registry.command("list")(list_models)
    for verb in (show, promote, rollback):
        registry.command()(verb)
    app.add_typer(registry, name="models")


def score(
    prediction: Annotated[Path, typer.Argument(metavar="PRED", help="A label file, or a folder of them.")],
    reference: Annotated[Path, typer.Argument(metavar="REF", help="The labels to compare with.")],
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="MM", min=0.01, max=100, help="What NSD forgives.")
    ] = TOLERANCE_MM,
    as_json: Json = False,
) -> None:
    """Score labels against labels: overlap, surfaces in mm, lesions found, volumes, tumour burden.

    docs/measures.md says what each figure is, and which published table it may stand beside.
    """
    from liverseg_core.evaluation.score import score as score_paths

    with watching() as report:
        result = score_paths(prediction, reference, functools.partial(report.progress, "score"), tolerance)
    if as_json:
        print_json(result)
        return
    summary = result["summary"]
    tables = case_scores(result["cases"]), dice_table(summary), surface_table(summary), lesion_table(summary)
    for table in tables:
        DATA.print(table)
    for case in result["cases"]:
        if case["flags"]:
            say(f"{case['case']}: its label says {', '.join(case['flags'])}: a score of it proves little")


def list_models(config: Config = None, store: Store = None, as_json: Json = False) -> None:
    """List the registered versions, newest first."""
    from dataclasses import asdict

    from flows.settings import load_settings
    from tasks.registry.place import is_tracked

    settings = load_settings(config, store=store)
    versions = []
    if is_tracked(settings):
        from tasks.registry.version_page import mean_dice
        from tasks.registry.versions import list_versions

        versions = list_versions(_tracking(settings), settings.register_.model)
    if as_json:
        print_json([asdict(version) for version in versions])
        return
    headings = ("version", "aliases", "registered", "liver", "tumour", "data", "model")
    rows = [
        [
            one.version,
            " ".join(one.aliases),
            one.created[:16].replace("T", " "),
            *(mean_dice(one, group) for group in ("liver", "tumour")),
            *(one.tags.get(f"liverseg.{key}", "–")[:12] for key in ("data_key", "model_key")),
        ]
        for one in versions
    ]
    DATA.print(plain_table(headings, rows))


def show(reference: Reference, config: Config = None, store: Store = None, as_json: Json = False) -> None:
    """Show which data, code and recipe made a version, how good it is, and against whom."""
    from dataclasses import asdict

    from flows.settings import load_settings
    from tasks.registry.version_page import answers, links
    from tasks.registry.versions import find_version

    settings = load_settings(config, store=store)
    tracking = _tracking(settings)
    version = find_version(tracking, _full(reference, settings))
    server = tracking.uri if tracking.uri.startswith("http") else ""
    linked = links(version, tracking.experiment, server) if server else {}
    if as_json:
        print_json({**asdict(version), "answers": answers(version), "links": linked})
        return
    about = f"version {version.version} of {version.name}, registered {version.created}"
    aliases = ", ".join(version.aliases) or "none"
    rows = [("Which model", about), ("Aliases", aliases), *answers(version).items(), *linked.items()]
    DATA.print(plain_table(("", ""), rows))


def promote(
    reference: Annotated[str, typer.Argument(metavar="REF", help=REF)] = "@candidate",
    force: Annotated[bool, typer.Option("--force", help="Also when it is worse; recorded.")] = False,
    config: Config = None,
    store: Store = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Make a version champion, unless it is worse on the validation cases, damaged, or predicts otherwise."""
    from dataclasses import asdict

    from flows.settings import load_settings
    from tasks.registry.champion import promote as promote_version

    settings = load_settings(config, overrides or (), store=store)
    version = promote_version(_tracking(settings), _full(reference, settings), settings.register_, force)
    if as_json:
        print_json(asdict(version))
    say(f"{version.name} version {version.version} ({', '.join(version.aliases)}): {version.reason}")


def rollback(config: Config = None, store: Store = None, as_json: Json = False) -> None:
    """Make the previous champion the champion again."""
    from dataclasses import asdict

    from flows.settings import load_settings
    from tasks.registry.champion import roll_back

    settings = load_settings(config, store=store)
    now, was, differing = roll_back(_tracking(settings), settings.register_.model)
    if as_json:
        print_json({"champion": asdict(now), "previous": asdict(was), "differing_voxels": differing})
    say(f"champion of {now.name}: version {was.version} → version {now.version}; previous: {was.version}")
    if differing is not None:
        equal = "equals" if not differing else f"differs in {counted(differing, 'voxel')} from"
        say(f"Its prediction of the archived scan {equal} the one that was registered with it")


def _full(reference: str, settings: Settings) -> str:
    """A version's number or alias alone is one of the configured model's."""
    name = settings.register_.model
    if reference.isdecimal():
        return f"models:/{name}/{reference}"
    return f"models:/{name}{reference}" if reference.startswith("@") else reference


def _tracking(settings: Settings) -> "Tracking":
    """The tracking store; one that there is not is not made.

    Raises:
        LiversegError: LS294 where there is none; what `connect` raises.
    """
    from tasks.registry.place import is_tracked
    from tasks.registry.tracking import connect

    register = settings.register_
    if not is_tracked(settings):
        raise LiversegError(
            "LS294",
            f"{settings.store} holds no model registry",
            "a store in which a model was registered, or register.tracking_uri",
            "Check --store, or register a model with `liverseg run`",
        )
    return connect(register.tracking_uri, settings.store, register.experiment)
