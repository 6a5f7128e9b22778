"""Who becomes champion, what is refused, and that it is the better one however many try at once."""

import dataclasses
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

import tasks.registry.lock
from liverseg_core.config import RegisterConfig
from liverseg_core.errors import LiversegError
from tasks.registry.champion import promote, roll_back
from tasks.registry.lock import one_at_a_time
from tasks.registry.promotion import COMPARED, Measured, Rival, Seen, decide
from tasks.registry.publish import Registration, register
from tasks.registry.tracking import Tracking, connect
from tasks.registry.version_scores import add_scores, scores_of_version
from tasks.registry.versions import DIGEST, KEY, find_version, model_digest

Make = Callable[..., Registration]
Dice = Sequence[tuple[float | None, float]]
LIMITS = RegisterConfig()
ROUNDS = int(os.environ.get("PROMOTION_ROUNDS", "10"))


def measured(dice: Dice, **seen: Any) -> Measured:
    cases = {f"case_{number}": f"scan {number}" for number in range(len(dice))}
    scores = {
        group: {name: values[k] for name, values in zip(cases, dice, strict=True)}
        for k, group in enumerate(COMPARED)
    }
    return Measured(Seen("v1", cases, seen.pop("training", ["another scan"]), **seen), scores)


def against(dice: Dice) -> Rival:
    return Rival("version 1", measured(dice))


# The decision

TEN = [(0.95, 0.60 + 0.01 * k) for k in range(10)]


def shifted(liver: float, tumour: float) -> Dice:
    return [(ours + liver, theirs + tumour) for ours, theirs in TEN]


@pytest.mark.parametrize(
    ("candidate", "limits", "promoted", "why"),
    [
        pytest.param(TEN, {}, True, "champion: mean Dice +0.0000 against version 1 on 10", id="equal"),
        pytest.param(shifted(0, 0.02), {}, True, "tumour +0.0200, +0.0200 to +0.0200", id="better"),
        pytest.param(shifted(0, -0.01), {}, False, "not champion: mean Dice -0.0050", id="worse"),
        pytest.param(shifted(0, -0.01), {"tolerance": 0.006}, True, "champion: mean", id="within tolerance"),
        pytest.param(shifted(-0.02, 0.1), {}, False, "; too much liver Dice lost", id="a liver for tumours"),
        pytest.param(
            shifted(-0.02, 0.1), {"liver_loss": 0.03}, True, "champion:", id="as much as is allowed"
        ),
        pytest.param([(0.93, 0.9), *TEN[1:]], {}, True, "champion:", id="one case lost, which may be chance"),
        pytest.param([(None, b) for _, b in TEN], {}, True, "(tumour +0.0000", id="no liver at all"),
    ],
)
def test_the_better_one_and_no_class_for_the_other(
    candidate: Dice, limits: dict[str, float], promoted: bool, why: str
) -> None:
    decision, reason = decide(measured(candidate), against(TEN), RegisterConfig(**limits))  # type: ignore[arg-type]
    assert decision is promoted
    assert why in reason
    assert decide(measured(candidate), against(TEN), RegisterConfig(**limits))[1] == reason  # type: ignore[arg-type]


def test_of_two_the_one_with_the_higher_mean_wins_in_either_order() -> None:
    """Models differ by noise of a few hundredths: none of these pairs trades one class for the other."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        first, second = (
            [(float(a), float(b)) for a, b in rng.normal((0.9, 0.6), (0.02, 0.1), (8, 2))] for _ in range(2)
        )
        better = np.mean(first) > np.mean(second)
        assert decide(measured(first), against(second), LIMITS)[0] is bool(better)
        assert decide(measured(second), against(first), LIMITS)[0] is not bool(better)


@pytest.mark.parametrize(
    ("candidate", "champion", "why"),
    [
        pytest.param(None, None, "there are no scores of its validation cases", id="no scores"),
        pytest.param(
            measured(TEN, training=["scan 3", "scan 7"]),
            None,
            "it had trained on 2 of its 10 validation cases (case_3, case_7)",
            id="trained on what it was measured on",
        ),
        pytest.param(
            measured(TEN, before=["scan 1"], out_of_fold=True),
            against(TEN),
            "trained on 1 of its 10",
            id="so had the weights it started from",
        ),
        pytest.param(
            measured(TEN),
            Rival("version 1", None),
            "no scores of version 1 on the same validation cases",
            id="other cases",
        ),
        pytest.param(measured([]), against([]), "there is no Dice to compare", id="no case"),
    ],
)
def test_what_is_never_champion(candidate: Measured | None, champion: Rival | None, why: str) -> None:
    decision, reason = decide(candidate, champion, LIMITS)
    assert not decision
    assert reason.startswith("not champion: ")
    assert why in reason


def test_out_of_fold_scores_are_fair_and_the_first_is_champion() -> None:
    united = measured(TEN, training=[f"scan {number}" for number in range(10)], out_of_fold=True)
    assert decide(united, None, LIMITS) == (True, "champion: there was none")
    assert Measured.from_json(united.to_json()).to_json() == united.to_json()


# The registry


def aliases(name: str) -> dict[str, int]:
    return {alias: int(of) for alias, of in MlflowClient().get_registered_model(name).aliases.items()}


def test_better_worse_forced_and_rolled_back(store: Tracking, registration: Make) -> None:
    """A registry's life: every alias, every reason, and a page that answers."""
    first = register(store, registration(store))
    name = first.name
    assert (first.aliases, first.reason, first.against) == (
        ("candidate", "champion"),
        "champion: there was none",
        None,
    )
    worse = register(store, registration(store, "worse", [(0.9, 0.8)]))
    assert aliases(name) == {"candidate": 2, "champion": 1}
    assert worse.reason == (
        "not champion: mean Dice -0.0500 against version 1 on 1 validation case "
        "(liver +0.0000; tumour -0.1000); too much tumour Dice lost"
    )
    assert worse.against == {"name": name, "version": 1, "evaluation_key": "evaluation a"}
    better = register(store, registration(store, "better", [(0.92, 0.95)]))
    assert aliases(name) == {"candidate": 3, "champion": 3, "previous": 1}
    assert better.reason.startswith("champion: mean Dice +0.0350 against version 1 on 1 validation case")

    with pytest.raises(
        LiversegError, match=r"LS901: .* version 2 is not champion: mean Dice -0\.0850"
    ) as refused:
        promote(store, f"models:/{name}/2", LIMITS)
    assert refused.value.exit_code == 9
    forced = promote(store, f"models:/{name}/2", LIMITS, force=True)
    assert forced.reason.startswith("champion: forced, though not champion: mean Dice -0.0850 against")
    assert forced.tags["liverseg.forced"].startswith("not champion: mean")
    assert aliases(name) == {"candidate": 2, "champion": 2, "previous": 3}

    now, was, differing = roll_back(store, name)
    assert (now.version, was.version, differing) == (3, 2, 0)
    assert aliases(name) == {"candidate": 2, "champion": 3, "previous": 2}
    assert (now.reason, was.reason) == (
        "champion: rolled back from version 2",
        "not champion: rolled back to version 3",
    )
    assert promote(store, f"models:/{name}@champion", LIMITS).reason == now.reason, "it is already"
    page = MlflowClient().get_model_version(name, "3").description
    for part in (
        "**Which data?**",
        "**Which code?**",
        "phantom",
        "tumour Dice 0.950 of 1",
        "mean Dice +0.0350",
        now.reason,
    ):
        assert part in page
    assert f"runs/{now.run_id}/artifacts/report/report.html" in page


def test_there_is_nothing_to_go_back_to(store: Tracking, registration: Make) -> None:
    name = register(store, registration(store)).name
    for what in (name, "nobody"):
        with pytest.raises(LiversegError, match=r"LS902.*no version was champion before"):
            roll_back(store, what)
    assert aliases(name) == {"candidate": 1, "champion": 1}


def stored_file(store: Tracking, run_id: str, name: str) -> Path:
    assert store.folder
    model_id = MlflowClient().get_run(run_id).outputs.model_outputs[0].model_id
    (found,) = store.folder.glob(f"mlflow-artifacts/**/{model_id}/**/{name}")
    return found


def test_damaged_files_are_refused_by_promotion_and_rollback(store: Tracking, registration: Make) -> None:
    """Also when forced; the aliases stay."""
    name = register(store, registration(store)).name
    register(store, registration(store, "b"))
    before = aliases(name)
    spec = stored_file(store, find_version(store, f"models:/{name}/1").run_id, "model.json")
    spec.write_bytes(spec.read_bytes().replace(b"-200", b"-201"))
    for attempt in (
        lambda: promote(store, f"models:/{name}/1", LIMITS, force=True),
        lambda: roll_back(store, name),
    ):
        with pytest.raises(LiversegError, match=r"LS503.*not the ones that were registered"):
            attempt()
    assert aliases(name) == before == {"candidate": 2, "champion": 2, "previous": 1}


def test_a_model_that_predicts_otherwise_than_it_did_is_refused(
    store: Tracking, registration: Make, tmp_path: Path
) -> None:
    version = register(store, registration(store))
    archived = stored_file(store, version.run_id, "prediction.npz")
    with np.load(archived) as found:
        arrays = dict(found)
    assert 0 < np.count_nonzero(arrays["labels"]) < arrays["labels"].size, "a prediction that says something"
    arrays["labels"] = np.roll(arrays["labels"], 3)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    archived.write_bytes(buffer.getvalue())
    digest = model_digest(*{path.parent for path in archived.parent.parent.rglob("*.*")})
    MlflowClient().set_model_version_tag(version.name, "1", DIGEST, digest)
    with pytest.raises(LiversegError, match=r"LS525: .* version 1 labels \d+ of 4096 voxels otherwise"):
        promote(store, f"models:/{version.name}/1", LIMITS, force=True)


def test_scores_that_were_altered_or_are_gone_make_no_champion(store: Tracking, registration: Make) -> None:
    register(store, registration(store))
    better = register(store, registration(store, "better", [(0.8, 0.8)]))
    client, name = MlflowClient(), better.name
    path = f"scores/{better.tags[KEY]}/v1.json"
    text = Path(client.download_artifacts(better.run_id, path)).read_text().replace("0.8", "0.99")
    client.log_text(better.run_id, text, path)
    for change in (lambda: None, lambda: client.delete_model_version_tag(name, "2", "liverseg.scores.v1")):
        change()
        with pytest.raises(LiversegError, match=r"LS901.*no scores of its validation cases, or not those"):
            promote(store, f"models:/{name}/2", LIMITS)
    assert aliases(name)["champion"] == 1


def test_what_the_weights_it_started_from_had_seen_counts(store: Tracking, registration: Make) -> None:
    """Version 2 starts from version 1, and is measured on a case that version 1 trained on."""
    first = register(store, registration(store))
    seen = Seen("v2", {"case_0": "another scan"}, ["a third scan"])
    started = (first.tags["liverseg.weights"],)
    second = register(store, registration(store, "second", seen=seen, started_from=started))
    assert second.reason == "not champion: it had trained on 1 of its 1 validation case (case_0)"
    assert second.tags["liverseg.started_from"] == "started from version 1"
    unknown = register(store, registration(store, "third", [(0.95, 0.95)], started_from=("f" * 32,)))
    assert unknown.tags["liverseg.started_from"] == "started from weights ffffffffffff, not registered here"
    assert "champion" in unknown.aliases


def test_a_champion_measured_on_the_new_cases_can_be_compared_on_them(
    store: Tracking, registration: Make
) -> None:
    name = register(store, registration(store)).name
    seen = Seen("v2", {"case_0": "new scan"}, ["another scan"])
    better = registration(store, "better", [(0.95, 0.95)], seen=seen)
    assert "no scores of version 1 on the same" in register(store, better).reason
    cases = json.loads((registration(store, "b", [(0.94, 0.94)]).evaluation / "metrics.json").read_text())[
        "cases"
    ]
    add_scores(store, f"models:/{name}@champion", Measured.of(seen, cases))
    assert promote(store, f"models:/{name}/2", LIMITS).reason.startswith("champion: mean Dice +0.0100")


def test_scores_by_other_definitions_are_not_compared_until_they_are_made_again(
    store: Tracking, registration: Make
) -> None:
    """As a champion is that was registered before the definitions changed."""
    client, first = MlflowClient(), register(store, registration(store))
    client.set_model_version_tag(first.name, "1", "liverseg.scoring.v1", "4")
    better = registration(store, "better", [(0.95, 0.95)])
    reason = "not champion: it and version 1 were scored by different versions of the measures"
    assert register(store, better).reason == reason
    cases = json.loads((registration(store, "again").evaluation / "metrics.json").read_text())["cases"]
    again = Measured.of(dataclasses.replace(better.seen, training=[]), cases)
    add_scores(store, f"models:/{first.name}@champion", again)
    assert promote(store, f"models:/{first.name}/2", LIMITS).reason.startswith("champion: mean Dice +0.0500")
    version = client.get_model_version(first.name, "1")
    kept = scores_of_version(client, version, "v1")
    assert kept is not None
    assert kept.seen.training == ["another scan"], "what it had seen stays known"


# Several at once

WORKER = """
import json, sys, time
import liverseg_core.inference.predict  # takes seconds: before the race
from liverseg_core.config import RegisterConfig
from liverseg_core.errors import LiversegError
from tasks.registry.champion import promote
from tasks.registry.tracking import connect
print("ready", flush=True)
for line in sys.stdin:
    uri, folder, reference, pause = json.loads(line)
    tracking = connect(uri, folder, "liverseg")
    time.sleep(pause)
    try:
        promote(tracking, reference, RegisterConfig())
        print("promoted", flush=True)
    except LiversegError as error:
        print(error.code, flush=True)
"""
Workers = Sequence["subprocess.Popen[str]"]


def answers(workers: Workers) -> list[str]:
    return [worker.stdout.readline().strip() for worker in workers if worker.stdout]


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two processes that promote what they read."""
    with ExitStack() as stack:
        command = [sys.executable, "-c", WORKER]
        started = [
            stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        assert answers(started) == ["ready"] * 2
        yield started
        for worker in started:
            assert worker.stdin
            worker.stdin.close()


def race(workers: Workers, place: tuple[str | None, str], name: str, rounds: int) -> list[int]:
    """Let both promote versions 2 and 3 at once, again and again; who was champion each time."""
    client, champions, rng = MlflowClient(), [], random.Random(0)
    for _ in range(rounds):
        client.set_registered_model_alias(name, "champion", "1")
        for worker, number in zip(workers, rng.sample((2, 3), 2), strict=True):
            assert worker.stdin
            worker.stdin.write(json.dumps([*place, f"models:/{name}/{number}", rng.uniform(0, 0.02)]) + "\n")
            worker.stdin.flush()
        assert set(answers(workers)) <= {"promoted", "LS901"}
        found = aliases(name)
        assert found["previous"] in (1, 2)
        champions.append(found["champion"])
    return champions


def three_versions(tracking: Tracking, registration: Make) -> str:
    """Version 3 is better than 2, and 2 than 1."""
    for key, dice in (("a", 0.8), ("b", 0.85), ("c", 0.9)):
        version = register(tracking, registration(tracking, key, [(dice, dice)]))
    return version.name


@pytest.mark.slow
def test_of_two_promotions_at_once_the_better_one_is_champion(
    store: Tracking, registration: Make, workers: Workers
) -> None:
    name = three_versions(store, registration)
    assert race(workers, (None, str(store.folder)), name, ROUNDS) == [3] * ROUNDS


@pytest.mark.slow
def test_of_two_promotions_at_once_behind_a_server_too(
    mlflow_server: str,
    registration: Make,
    tmp_path: Path,
    workers: Workers,
    record_property: Callable[[str, object], None],
) -> None:
    """MLflow knows no locks: the better one is champion all the same, and no turn is left behind."""
    remote = connect(mlflow_server, tmp_path, "liverseg")
    name = three_versions(remote, registration)
    begun = time.monotonic()
    assert race(workers, (mlflow_server, str(tmp_path)), name, ROUNDS) == [3] * ROUNDS
    record_property("seconds_a_round", round((time.monotonic() - begun) / ROUNDS, 2))
    left = MlflowClient().search_registered_models(f"name LIKE '{name}%'")
    assert [one.name for one in left] == [name]
    assert len([tag for tag in left[0].tags if tag.startswith("liverseg.turn.")]) == 1


@pytest.fixture
def elsewhere(store: Tracking, request: pytest.FixtureRequest) -> tuple[Tracking, str]:
    """As behind a server: no folder to lock; and a registered model."""
    name = request.node.name.replace("[", "-").strip("]")
    MlflowClient().create_registered_model(name)
    return replace(store, folder=None), name


def test_turns_are_taken_one_at_a_time(elsewhere: tuple[Tracking, str]) -> None:
    inside, most, done = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(5):
            with one_at_a_time(*elsewhere):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 15)


def test_a_dead_ones_turn_ends_and_a_slow_one_changes_nothing(
    elsewhere: tuple[Tracking, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.registry.lock, "LEASE_S", 0.4)
    with one_at_a_time(*elsewhere) as slow:
        with one_at_a_time(*elsewhere) as second:  # after the lease
            second()
        with pytest.raises(LiversegError, match=r"LS602.*held turn 1 of .* has changed nothing"):
            slow()
    with one_at_a_time(*elsewhere) as third:  # what the slow one tidied up too late disturbs nobody
        third()
    name = elsewhere[1]
    assert MlflowClient().get_registered_model(name).tags.keys() == {"liverseg.turn.3"}


@pytest.mark.parametrize("local", [True, False])
def test_waiting_ends(
    store: Tracking, elsewhere: tuple[Tracking, str], monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    monkeypatch.setattr(tasks.registry.lock, "WAIT_S", 0.3)
    tracking, name = store if local else elsewhere[0], elsewhere[1]
    held, refused = one_at_a_time(tracking, name), pytest.raises(LiversegError, match="LS602")
    with held, refused, one_at_a_time(tracking, name):
        pass
