"""`re4 bench quality`: baselines that are what their papers say, and a table that adds up."""

import json
import sys

import numpy as np
import pytest
import torch
from planted_tastes import write_planted
from user_sequences import sequences

from re4.benchmarks.quality import rivals
from re4.benchmarks.quality.cli import quality
from re4.benchmarks.quality.ledger import (
    Entry,
    Ledger,
    alternatives,
    pack_hits,
    parse_variant,
    split_variants,
    variant_name,
)
from re4.benchmarks.quality.ledger import TestResult as LedgerResult
from re4.benchmarks.quality.summary import verdict
from re4.common.errors import DataError, RunError, UsageError
from re4.training.config import ADDED_SINCE, TrainConfig
from re4.training.evaluation.baselines import ease, fit_baselines, item_cosine, most_popular, rank_baseline
from re4.training.evaluation.protocol import history_and_targets, summarise
from re4.training.presets import SMALL_CATALOGUE

USERS = [[0, 1, 1, 2], [1, 2], [2, 3, 0], [1], [3, 4, 2]]
NUM_ITEMS = 5


@pytest.fixture
def train():
    return sequences(*USERS)


@pytest.fixture
def matrix():
    matrix = np.zeros((len(USERS), NUM_ITEMS))
    for user, items in enumerate(USERS):
        matrix[user, items] = 1
    return matrix


HISTORY = torch.tensor([[1.0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])


def test_most_popular_counts_users(train, matrix):
    scores = most_popular(train, NUM_ITEMS)(HISTORY)
    np.testing.assert_allclose(scores, np.tile(matrix.sum(axis=0), (2, 1)))


def test_item_cosine(train, matrix):
    length = np.linalg.norm(matrix, axis=0)
    cosine = matrix.T @ matrix / np.outer(length, length)
    np.fill_diagonal(cosine, 0)
    scores = item_cosine(train, NUM_ITEMS)(HISTORY)
    np.testing.assert_allclose(scores, HISTORY.numpy() @ cosine, rtol=1e-5)


def test_ease_minimises_its_objective_with_a_zero_diagonal(train, matrix):
    """The solution solved column by column: ridge regression of each item on all others."""
    expected = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for item in range(NUM_ITEMS):
        others = [other for other in range(NUM_ITEMS) if other != item]
        x = matrix[:, others]
        expected[others, item] = np.linalg.solve(x.T @ x + 3 * np.eye(len(others)), x.T @ matrix[:, item])
    scores = ease(train, NUM_ITEMS, penalty=3.0)(torch.eye(NUM_ITEMS))
    np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    return write_planted(tmp_path_factory.mktemp("planted") / "data")


def test_baselines_rank_by_the_protocol(planted):
    for baseline, _ in fit_baselines(planted.train, planted.valid, planted.num_items).values():
        left_out = rank_baseline(baseline, planted.test, planted.num_items, exclude_history=True)
        for user, top in enumerate(left_out.top_UM):
            assert len(set(top.tolist())) == 50
            assert not set(top.tolist()) & set(history_and_targets(planted.test, user)[0].tolist())


def test_ease_finds_the_planted_tastes(planted):
    fitted = fit_baselines(planted.train, planted.valid, planted.num_items)
    recall = {
        name: summarise(
            rank_baseline(baseline, planted.test, planted.num_items, exclude_history=False),
            planted.test,
            planted.num_items,
        ).recall_20
        for name, (baseline, _) in fitted.items()
    }
    assert recall["EASE"] > 2 * recall["most popular"]


def test_newer_events_can_weigh_more(planted):
    seen = []

    def scores(chosen_BN):
        seen.append(chosen_BN.clone())
        return chosen_BN

    rank_baseline(scores, planted.test, planted.num_items, exclude_history=False, recency_decay=0.5)
    history = history_and_targets(planted.test, 0)[0].tolist()
    expected = np.zeros(planted.num_items)
    for age, row in enumerate(reversed(history)):
        expected[row] = max(expected[row], 0.5**age)
    np.testing.assert_allclose(seen[0][0], expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [("re4:num_interest=1", "num_interest=1"), ("re4:position", "'position'"), ("bert", "--model is 'bert'")],
)
def test_wrong_variants_are_named(text, message):
    with pytest.raises(UsageError, match=message):
        parse_variant(text)


def test_columns_of_attributes_are_no_variants():
    assert split_variants("re4:num_interests=1:attributes=category,brand,transformer:num_epochs=3,re4") == [
        "re4:num_interests=1:attributes=category,brand",
        "transformer:num_epochs=3",
        "re4",
    ]
    assert split_variants("re4,brand") == ["re4", "brand"]  # refused as a model


def test_variants_cannot_choose_a_seed():
    with pytest.raises(UsageError, match="seed=3"):
        parse_variant("re4:seed=3")


def test_alternatives_are_read_and_checked():
    assert alternatives("re4") == [TrainConfig(model="re4")]
    assert alternatives("re4:head=true|false:learning_rate=0.1|0.2") == [
        TrainConfig(model="re4", head=True, learning_rate=0.1),
        TrainConfig(model="re4", head=True, learning_rate=0.2),
        TrainConfig(model="re4", head=False, learning_rate=0.1),
        TrainConfig(model="re4", head=False, learning_rate=0.2),
    ]
    with pytest.raises(UsageError, match="--learning-rate"):
        alternatives("re4:learning_rate=0.1|-1")


@pytest.mark.parametrize(
    ("text", "num_items", "name"),
    [
        ("re4", 100_000, "re4"),
        ("re4:contrast_weight=0.1", 100_000, "re4"),
        ("re4:contrast_weight=0.1", SMALL_CATALOGUE, "re4:contrast_weight=0.1"),
        ("re4:num_interests=1:history_weight=0", 100_000, "re4:num_interests=1"),
        ("re4:num_interests=8", 100_000, "re4"),
        ("re4:num_interests=4", SMALL_CATALOGUE, "re4"),
        ("re4:history_weight=0:num_interests=4", 100_000, "re4:num_interests=4:history_weight=0"),
        ("re4:head=true:averaging=0:negatives=uniform", 100, "re4:head=true:negatives=uniform:averaging=0"),
        ("mean-pool:learning_rate=1e-3", 100, "mean-pool:learning_rate=0.001"),
        ("mind:num_interests=1", 100, "mind:num_interests=1"),
        ("most-popular", 100, "most-popular"),
    ],
)
def test_a_variant_is_named_by_what_differs_and_the_name_reads_back(text, num_items, name):
    config = parse_variant(text).resolve(num_items)
    assert variant_name(config.to_json(), num_items) == name
    assert parse_variant(name).resolve(num_items) == config


SMALL = "embedding_dim=8:attention_dim=8:construct_dim=4:num_epochs=1"


def asked(capsys, data, **options):
    torch.set_num_threads(1)
    quality(data, **{"ledger": None, "num_seeds": 2, "as_json": True, **options})
    return json.loads(capsys.readouterr().out)


def written_weights(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("weights.safetensors")}


def test_the_table_adds_up_and_finished_runs_are_used_again(planted, tmp_path, capsys):
    variants = [f"re4:{SMALL}", f"comirec-sa:{SMALL}"]
    options = {"out": tmp_path / "runs", "variants": ",".join(variants)}
    report = asked(capsys, planted.path, **options)
    assert report == json.loads((tmp_path / "runs" / "quality.json").read_text())
    by_name = {(each["name"], each["is_history_excluded"]): each for each in report["outcomes"]}
    assert len(by_name) == 2 * (3 + 2)
    for is_excluded in (False, True):
        first = by_name[variants[0], is_excluded]["metrics"]["recall_50"]
        for name in (variants[1], "EASE"):
            figures = by_name[name, is_excluded]["metrics"]["recall_50"]
            assert figures["difference"] == pytest.approx(figures["mean"] - first["mean"], abs=1e-9)
        assert first["difference"] == 0
        assert first["half_width_over_seeds"] is not None
    written = written_weights(tmp_path / "runs")
    assert len(written) == 4
    assert asked(capsys, planted.path, **options) == report
    assert written_weights(tmp_path / "runs") == written
    page = (tmp_path / "runs" / "ledger.md").read_text()
    assert page.count(f"| {variants[1]} | 2 |") == 3
    gains = []
    for is_excluded in (False, True):
        ours, theirs = (by_name[name, is_excluded]["metrics"]["recall_20"] for name in variants)
        gain = f"{round(100 * (ours['mean'] / theirs['mean'] - 1), 1) + 0.0:+.1f}"
        is_beyond = abs(theirs["difference"]) > theirs["difference_half_width"]
        gains.append(f"**{gain}**" if is_beyond else gain)
    assert f"| {variants[1]} | 2 | {' / '.join(gains)} | " in page


def test_a_ledger_goes_on_without_the_runs_and_holds_every_users_metrics(planted, tmp_path, capsys):
    book = tmp_path / "book" / "planted.jsonl"
    variants = f"re4:{SMALL}:averaging=0:history_weight=0:learning_rate=0.002|0.01"
    options = {"variants": variants, "ledger": book, "num_seeds": 1}
    report = asked(capsys, planted.path, out=tmp_path / "here", **options)
    lines = book.read_text().splitlines()
    assert len(lines) == 1 + 3 + 2  # the data set, the baselines, and both alternatives
    chosen = report["reference"]
    valid = {entry.variant: entry.valid["recall_50"] for entry in Ledger(book, planted).entries[3:]}
    assert valid[chosen] == max(valid.values())

    again = asked(capsys, planted.path, out=tmp_path / "elsewhere", **options)
    assert again == report
    assert not written_weights(tmp_path / "elsewhere")
    assert book.read_text().splitlines() == lines

    # What is unpacked from the line is what was judged: the means agree with those taken from the lists.
    for entry in Ledger(book, planted).entries:
        for judged in entry.test.values():
            by_cut = Ledger(book, planted).by_user(judged)
            for cut in (20, 50):
                assert by_cut[cut].recall_U.mean() == pytest.approx(judged.metrics[f"recall_{cut}"], abs=1e-5)
                assert by_cut[cut].ndcg_U.mean() == pytest.approx(judged.metrics[f"ndcg_{cut}"], abs=1e-5)

    # A line that was written when defaults were others: what differs from them today is the name.
    renamed = [json.loads(line) for line in lines]
    for line in renamed[4:]:
        line["variant"] = "re4"
    book.write_text("".join(json.dumps(line) + "\n" for line in renamed))
    assert asked(capsys, planted.path, out=tmp_path / "elsewhere", **options) == report

    # Settings that a later version adds were not there when the line was written: it is still the same run,
    # and the same variant as a run of now with another seed.
    fewer = [json.loads(line) for line in lines]
    for line in fewer[4:]:
        line["settings"] = {
            name: value for name, value in line["settings"].items() if name not in ADDED_SINCE
        }
    book.write_text("".join(json.dumps(line) + "\n" for line in fewer))
    asked(capsys, planted.path, out=tmp_path / "later", **options)
    assert not written_weights(tmp_path / "later")
    options |= {"variants": chosen, "num_seeds": 2}
    both = asked(capsys, planted.path, out=tmp_path / "later", **options)
    assert [row["num_seeds"] for row in both["outcomes"] if row["name"] == chosen] == [2, 2]


def test_two_texts_for_the_same_settings_are_one_variant(planted, tmp_path, capsys):
    """Its seeds would count twice, and their interval come out too narrow."""
    variants = "most-popular,most-popular:batch_size=1024"
    report = asked(capsys, planted.path, out=tmp_path / "runs", variants=variants)
    assert [row["num_seeds"] for row in report["outcomes"] if row["name"] == "most-popular"] == [2, 2]


def test_a_ledger_of_other_data_is_refused(planted, tmp_path, capsys):
    book = tmp_path / "book.jsonl"
    book.write_text(json.dumps({"kind": "dataset", "fingerprint": "0123456789abcdef"}) + "\n")
    with pytest.raises(DataError, match="other data"):
        asked(capsys, planted.path, out=tmp_path / "runs", ledger=book)


def test_the_folder_of_a_run_with_other_settings_is_refused(planted, tmp_path, capsys):
    """As where the defaults have moved since: it would be judged as what it is not."""
    options = {"out": tmp_path / "runs", "variants": "most-popular", "num_seeds": 1}
    asked(capsys, planted.path, **options)
    (tmp_path / "runs" / "ledger.jsonl").unlink()
    config = tmp_path / "runs" / "most-popular" / "seed-0" / "config.json"
    facts = json.loads(config.read_text())
    facts["config"]["max_history_length"] = 50
    config.write_text(json.dumps(facts))
    with pytest.raises(RunError, match="Give another --out"):
        asked(capsys, planted.path, **options)


def entry_with(planted, variant, found_of_ten, *, seed=0, valid, num_interests=1, seconds=10.0):
    """A run that finds all targets of this many in ten users, and nothing of the others'."""
    top_UM = np.full((planted.test.num_users, 50), -1, np.int64)
    for user in range(planted.test.num_users):
        targets = np.unique(history_and_targets(planted.test, user)[1])
        if user % 10 < found_of_ten:
            top_UM[user, : len(targets)] = targets
    share = float(np.mean(np.arange(planted.test.num_users) % 10 < found_of_ten))
    result = LedgerResult(
        hits=pack_hits(top_UM, planted),
        coverage_50=0.5,
        interest_cosine=0.5,
        metrics={f"{kind}_{cut}": share for kind in ("recall", "hit_rate", "ndcg") for cut in (20, 50)},
    )
    return Entry(
        kind="baseline" if seed is None else "run",
        variant=variant,
        seed=seed,
        settings={} if seed is None else {"num_interests": num_interests},
        valid={"recall_50": valid},
        test={"kept": result, "excluded": result},
        train_seconds=None if seed is None else seconds,
        made_by={},
    )


@pytest.mark.parametrize(
    ("found", "lead", "certainty"),
    [
        (8, "+166.7 %", "it is ahead beyond the interval in both"),
        (3, "+0.0 %", "the two cannot be told apart"),
    ],
)
def test_the_verdict_names_the_best_its_lead_its_certainty_and_its_cost(
    planted, tmp_path, found, lead, certainty
):
    ledger = Ledger(tmp_path / "ledger.jsonl", planted)
    several = [
        entry_with(planted, "several", found, seed=seed, valid=0.9, num_interests=4, seconds=30.0)
        for seed in (0, 1)
    ]
    text = verdict(ledger, [entry_with(planted, "one", 3, valid=0.8), *several])
    assert text.startswith(
        f"By validation `several` is best: test Recall@50 0.{found}000 / 0.{found}000, history"
    )
    assert f"the next, `one`, is {lead} (" in text
    assert f"over {planted.test.num_users} users (seeds: 2 and 1): {certainty}" in text
    assert "Cost: 4 searches a request and 30 s of training; of the next: 1 search a request and 10 s" in text
    assert ("`one` finds as much for fewer searches." in text) == (found == 3)


def test_the_verdict_of_a_baseline_and_of_a_lone_model(planted, tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", planted)
    run, baseline = (
        entry_with(planted, "one", 3, valid=0.8),
        entry_with(planted, "EASE", 5, seed=None, valid=0.9),
    )
    assert "Cost: none: it is a baseline, which is not served; of the next: 1 search" in verdict(
        ledger, [run, baseline]
    )
    assert verdict(ledger, [run]) == (
        "By validation `one` is best: test Recall@50 0.3000 / 0.3000, history left in / left out."
    )


def test_rivals_are_fitted_tuned_and_kept_in_the_ledger(planted, tmp_path, capsys, monkeypatch):
    few = {"ials": {"alpha": (1.0, 10.0), "regularization": (0.01,), "newest": (None, 5)}}
    few["slim"] = {"alpha": (0.001,), "l1_ratio": (0.1,), "newest": (None,)}
    monkeypatch.setattr(rivals, "ALTERNATIVES", {**rivals.ALTERNATIVES, **few})
    options = {"out": tmp_path, "variants": "most-popular", "num_seeds": 1, "rivals": "ials,slim"}
    report = asked(capsys, planted.path, **options)
    recall = {
        row["name"]: row["metrics"]["recall_50"]["mean"]
        for row in report["outcomes"]
        if row["is_history_excluded"]
    }
    assert min(recall["ials"], recall["slim"]) > 1.5 * recall["most popular"]
    by_name = {entry.variant: entry for entry in Ledger(tmp_path / "ledger.jsonl", planted).entries}
    assert set(by_name["ials"].settings) == {"alpha", "regularization", "newest"}
    monkeypatch.setattr(rivals, "_ials", None)  # they are in the ledger, and fitted no more
    assert asked(capsys, planted.path, **options) == report


def test_slim_gives_an_item_no_weight_for_itself(planted):
    weights = rivals._slim(planted, alpha=0.001, l1_ratio=0.1)(torch.eye(planted.num_items))
    assert (weights.diagonal() == 0).all()
    assert (weights >= 0).all()
    assert (weights > 0).any()


def test_a_history_can_be_cut_to_its_newest_events(planted):
    def scores(chosen_BN):
        return chosen_BN

    ranking = rank_baseline(scores, planted.test, planted.num_items, exclude_history=False, newest=3)
    for user, top in enumerate(ranking.top_UM):
        newest = set(history_and_targets(planted.test, user)[0][-3:].tolist())
        assert set(top[: len(newest)].tolist()) == newest
    ranking = rank_baseline(scores, planted.test, planted.num_items, exclude_history=True, newest=3)
    for user, top in enumerate(ranking.top_UM):
        assert not set(top.tolist()) & set(history_and_targets(planted.test, user)[0].tolist())


def test_rivals_that_cannot_be_fitted_are_refused(planted, tmp_path, capsys, monkeypatch):
    options = {"out": tmp_path, "variants": "most-popular"}
    with pytest.raises(UsageError, match="'bert4rec'; ials, slim, sasrec, esasrec are possible"):
        asked(capsys, planted.path, rivals="ials,bert4rec", **options)
    monkeypatch.setattr(rivals, "MAX_SLIM_ITEMS", 100)
    with pytest.raises(UsageError, match="120 items, it is fitted to at most 100"):
        asked(capsys, planted.path, rivals="slim", **options)


def test_lists_of_rectools_come_from_its_environment(planted, tmp_path, capsys, monkeypatch):
    """A script plays its interpreter, and has hits by one alternative; without one the rival is refused."""
    options = {"out": tmp_path, "variants": "most-popular", "num_seeds": 1, "rivals": "esasrec"}
    monkeypatch.setattr(rivals, "missing", lambda environment: f"no environment at {environment}")
    with pytest.raises(UsageError, match=r"--rivals esasrec: no environment at \.venv-rectools"):
        asked(capsys, planted.path, **options)
    fake = tmp_path / "python"
    sizes = {split: getattr(planted, split).num_users for split in ("valid", "test")}
    fake.write_text(
        f"""#!{sys.executable}
import json, pathlib, sys
import numpy as np
out, settings = pathlib.Path(sys.argv[3]), json.loads(sys.argv[7])
for split, size in {sizes}.items():
    for name in ("kept", "excluded"):
        top = np.arange(50) if settings == {{"dropout_rate": 0.5, "lr": 0.001}} else np.full(50, -1)
        np.save(out / f"{{split}}.{{name}}.npy", np.tile(top, (size, 1)))
(out / "settings.json").write_text(json.dumps({{"model": sys.argv[5], **settings}}))
"""
    )
    fake.chmod(0o755)
    monkeypatch.setattr(rivals, "missing", lambda environment: None)
    monkeypatch.setattr(rivals, "python_of", lambda environment: fake)
    asked(capsys, planted.path, **options)
    (entry,) = (
        each for each in Ledger(tmp_path / "ledger.jsonl", planted).entries if each.variant == "esasrec"
    )
    assert entry.settings == {"model": "esasrec", "dropout_rate": 0.5, "lr": 0.001}
    assert entry.test["kept"].coverage_50 == pytest.approx(50 / planted.num_items, abs=1e-4)


def test_the_command_ends_with_the_verdict(planted, tmp_path, capsys):
    report = asked(capsys, planted.path, out=tmp_path, variants=f"re4:{SMALL}", num_seeds=1)
    assert report["verdict"] in (tmp_path / "ledger.md").read_text()
    quality(planted.path, out=tmp_path, variants=f"re4:{SMALL}", num_seeds=1, ledger=None, as_json=False)
    words = " ".join(capsys.readouterr().err.split())
    assert words.endswith(" ".join(report["verdict"].split()))
