"""The sentences of a report say what its figures show."""

from dataclasses import replace

import pytest

from re4.training.evaluation.interests import InterestFigures
from re4.training.evaluation.metrics import Interval
from re4.training.evaluation.protocol import Evaluation
from re4.training.report import sentences
from re4.training.report.figures import ReportFigures, Share, SimpleModelRow

_ZERO = dict.fromkeys(("recall_20", "hit_rate_20", "hit_rate_50", "ndcg_20", "ndcg_50", "coverage_50"), 0.0)


def evaluation(recall_50: float) -> Evaluation:
    return Evaluation(num_users=9, recall_50=recall_50, interest_cosine=0.5, **_ZERO)


def record(epoch: int, recall: float, **losses: float) -> dict[str, object]:
    return {"epoch": epoch, "losses": losses, "valid": {"recall_50": recall}}


@pytest.fixture
def figures() -> ReportFigures:
    return ReportFigures(
        records=[
            record(0, 0.1),
            record(1, 0.2, total=4.0, contrast=1.0, attend=2.0),
            record(2, 0.3, total=3.0, contrast=1.5, attend=2.01),
            record(3, 0.25, total=2.0, contrast=2.0, attend=2.0),
        ],
        best_epoch=2,
        exclude_history=False,
        num_users=1_234,
        recall_50=Interval(mean=0.3, low=0.28, high=0.32),
        start="",
        evaluation=evaluation(0.3),
        models=[
            SimpleModelRow(
                name=name, evaluation=evaluation(recall), lead=Interval(mean=lead, low=low, high=high)
            )
            for name, recall, lead, low, high in (
                ("most popular", 0.1, -0.2, -0.3, -0.1),
                ("EASE", 0.31, 0.01, -0.02, 0.04),
            )
        ],
        models_left_out="",
        share_of_list_K=[0.2, 0.8],
        share_of_hits_K=[0.1, 0.9],
        recall_by_interests_K=[0.299, 0.3],
        tenths_of_events=[0.4] + [0.06] * 9,
        tenths_of_candidates=[0.8] + [0.02] * 9,
        by_popularity=[
            Share(name=name, num_targets=100, recall_50=recall)
            for name, recall in (("head", 0.5), ("middle", 0.3), ("tail", 0.1), ("cold", 0.0))
        ],
        by_history_length=[
            Share(name="1 to 5 events", num_targets=50, recall_50=0.2),
            Share(name="6 to 10 events", num_targets=50, recall_50=0.4),
            Share(name="11 to 20 events", num_targets=1, recall_50=1.0),
        ],
        examples=[],
    )


def test_the_verdict_stands_on_top(figures: ReportFigures) -> None:
    found = sentences.verdict(figures)
    assert (
        found[0]
        == "Recall@50 of 1,234 held-out users is 0.3000 ± 0.0200, with the history left in the lists."
    )
    assert found[1].startswith("The best simple model, EASE, has 0.3100: neither is ahead")
    assert found[2] == "One interest of a user finds as much as 2 (100% of the recall)."
    out = sentences.verdict(replace(figures, exclude_history=True, start="It started.", models=[]))
    assert "left out of the lists" in out[0]
    assert "It started." in out


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.03, "it is ahead of this run by +0.0200"),
        (-0.03, -0.01, "this run is ahead by +0.0200 (+0.0100"),
    ],
)
def test_the_best_simple_model_is_judged(figures: ReportFigures, low: float, high: float, words: str) -> None:
    models = [replace(figures.models[1], lead=Interval(mean=(low + high) / 2, low=low, high=high))]
    assert words in sentences.verdict(replace(figures, models=models))[1]


def test_losses_rise_fall_and_stay(figures: ReportFigures) -> None:
    assert sentences.about_losses(figures)[:3] == [
        "Falling: total (4 to 2).",
        "Level: attend (2 to 2).",
        "Rising: contrast (1 to 2).",
    ]
    assert sentences.about_losses(replace(figures, records=figures.records[:2])) == []


def test_validation_names_the_best_epoch(figures: ReportFigures) -> None:
    assert sentences.about_validation(figures) == [
        "Validation Recall@50 is best in epoch 2 (0.3000) and 0.2500 in the last, epoch 3."
    ]
    last = sentences.about_validation(replace(figures, best_epoch=3))
    assert last == ["Validation Recall@50 is best in the last of 3 epochs: more epochs may find more."]


def test_interests_are_described(figures: ReportFigures) -> None:
    several = sentences.about_interests(replace(figures, recall_by_interests_K=[0.1, 0.2, 0.3]))
    assert several[0] == "3 interests find 200% more than the most used one alone."
    assert several[-1] == "Interest 1 finds 90% of the hits, and 80% of the candidates."
    assert sentences.about_interests(replace(figures, recall_by_interests_K=[0.3])) == [
        "The model has one interest."
    ]
    collapsed = InterestFigures(
        num_users=9,
        interest_overlap=0.99,
        effective_interests=1.0,
        one_interest_lists=1.0,
        one_interest_recall=1.0,
        hit_shares=[0.5, 0.5],
    )
    near = replace(figures, evaluation=replace(figures.evaluation, interests=collapsed))
    assert near.evaluation.collapse in sentences.verdict(near)


def test_popularity_and_length_are_described(figures: ReportFigures) -> None:
    assert sentences.about_popularity(figures) == [
        "The most popular tenth of the catalogue has 80% of the candidates and 40% of what users chose: "
        "the model "
        "leans to popular items.",
        "Of targets among popular items (the head) 50% are found, of those among rare ones (the tail) 10%.",
        "Of 100 targets among items with fewer than 5 events, none are found.",
        "By history: most targets are found for users with 6 to 10 events (40%), fewest for those with 1 "
        "to 5 "
        "events (20%).",
    ]


def test_the_data_is_summarised() -> None:
    splits = {
        name: {"num_users": users, "num_events": 10 * users, "num_targets": 0}
        for name, users in (("train", 800), ("valid", 100), ("test", 100))
    }
    found = sentences.about_data(
        {
            "name": "shop",
            "num_items": 50,
            "splits": splits,
            "prepared": {"first_event": "2026-01-02T00:00:00", "last_event": "2026-03-04T05:00:00"},
            "dropped": {"duplicate_events": 7, "items_never_in_train": 0},
        }
    )
    assert found == [
        "shop: 10,000 events of 1,000 users on 50 items; 800 train users, 100 valid users, 100 test users.",
        "Events are from 2026-01-02 to 2026-03-04.",
        "Dropped or noticed in preparation: 7 duplicate events.",
    ]
