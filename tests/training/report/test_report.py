"""The page about a run: its numbers against slow counts, and that titles from outside cannot harm it."""

from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from planted_tastes import write_planted
from typer.testing import CliRunner

from re4.cli import build_app
from re4.training.config import TrainConfig
from re4.training.data.dataset import Dataset
from re4.training.evaluation.protocol import evaluate, history_and_targets, rank
from re4.training.report.figures import gather_figures
from re4.training.report.page import PICTURES, write_page
from re4.training.run.run import Run
from re4.training.trainer.loop import train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    config = TrainConfig(
        embedding_dim=16, attention_dim=16, num_interests=3, num_epochs=2, learning_rate=0.01
    )
    train(write_planted(folder / "data"), config, folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def figures(run):
    dataset = Dataset.open(run.parent / "data")
    return gather_figures(Run.open(run), dataset, dataset.valid, dataset.users("valid"), exclude_history=True)


def test_the_numbers_agree_with_the_evaluation_and_with_each_other(run, figures):
    dataset = Dataset.open(run.parent / "data")
    model = Run.open(run).load_model()
    assert figures.recall_50.mean == pytest.approx(
        evaluate(model, dataset.valid, exclude_history=True).recall_50
    )
    assert figures.recall_by_interests_K[-1] == pytest.approx(figures.recall_50.mean)
    assert sum(figures.share_of_list_K) == pytest.approx(1)
    assert sum(figures.share_of_hits_K) == pytest.approx(1)
    assert sum(figures.tenths_of_events) == pytest.approx(1)
    assert sum(figures.tenths_of_candidates) == pytest.approx(1)
    assert figures.tenths_of_events == sorted(figures.tenths_of_events, reverse=True)


def test_groups_of_targets_against_a_slow_count(run, figures):
    dataset = Dataset.open(run.parent / "data")
    top = rank(Run.open(run).load_model(), dataset.valid, exclude_history=True, title="").top_UM
    counts = dataset.item_counts()
    pairs = [
        (int(counts[target]), target in top[user])
        for user in range(dataset.valid.num_users)
        for target in set(history_and_targets(dataset.valid, user)[1].tolist())
    ]
    head, middle, tail, cold = figures.by_popularity
    assert head.num_targets + middle.num_targets + tail.num_targets == len(pairs)
    low = int(head.name.split(":")[1].split()[0])
    of_head = [found for count, found in pairs if count >= low]
    assert (head.num_targets, head.recall_50) == (len(of_head), pytest.approx(np.mean(of_head)))
    assert cold.num_targets == sum(count < 5 for count, _ in pairs)
    assert sum(share.num_targets for share in figures.by_history_length) == len(pairs)


class _Words(HTMLParser):
    """What a reader sees, and what the page would run or load."""

    def __init__(self):
        super().__init__()
        self.tags, self.loaded, self.words = set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.loaded += [value for name, value in attributes if name in {"src", "href"}]

    def handle_data(self, data):
        self.words.append(data)


def test_the_command_writes_a_page_with_its_pictures(run):
    result = CliRunner().invoke(build_app(["report"]), ["report", str(run)])
    assert result.exit_code == 0, result.output
    page = _Words()
    page.feed((run / "report" / "index.html").read_text("utf-8"))
    assert set(page.loaded) == set(PICTURES)
    for name in PICTURES:
        assert (run / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert any(word.startswith("Title ") for word in page.words)


def test_titles_are_text_whatever_they_hold(run, tmp_path, monkeypatch):
    opened, dataset = Run.open(run), Dataset.open(run.parent / "data")
    items = opened.items().with_columns(title=pl.lit("<script>alert(1)</script>"))
    monkeypatch.setattr(opened, "items", lambda: items)
    figures = gather_figures(opened, dataset, dataset.valid, dataset.users("valid"))
    page = _Words()
    page.feed(write_page(tmp_path, figures, title="<b>mine</b>", config={}).read_text("utf-8"))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.words


def test_the_page_states_the_interval_and_the_gain_over_the_start(run, figures, tmp_path):
    page = _Words()
    page.feed(write_page(tmp_path, figures, title="it", config={}).read_text("utf-8"))
    text = " ".join(" ".join(page.words).split())
    assert f"{figures.recall_50.mean:.4f} ± {figures.recall_50.half_width:.4f}" in text
    assert figures.start in text
    assert "the start, epoch 0" in figures.start


@pytest.mark.parametrize("exclude_history", [False, True])
def test_the_history_is_in_or_out_as_in_evaluate(run, exclude_history):
    dataset = Dataset.open(run.parent / "data")
    opened = Run.open(run)
    users = dataset.users("valid")
    found = gather_figures(opened, dataset, dataset.valid, users, exclude_history=exclude_history)
    expected = evaluate(opened.load_model(), dataset.valid, exclude_history=exclude_history)
    assert found.evaluation == expected
    assert found.recall_by_interests_K[-1] == pytest.approx(expected.recall_50)
    assert [model.name for model in found.models] == ["most popular", "item-item", "EASE"]


def test_items_and_users_are_named_by_titles_or_ids(run):
    opened, dataset = Run.open(run), Dataset.open(run.parent / "data")
    items = opened.items().with_columns(title=pl.lit(None, pl.String))
    opened.items = lambda: items
    found = gather_figures(opened, dataset, dataset.valid, dataset.users("valid"))
    ids = {str(id_) for id_ in items["item_id"]}
    assert all(set(example.history) <= ids for example in found.examples)
    assert {example.user for example in found.examples} <= {str(user) for user in dataset.users("valid")}
