"""The history items behind an interest: those that it attends to most, each once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from re4.serving.api.replies import top_attended


@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_most_attended_items_with_their_weights(
    length: int, num_interests: int, num_reasons: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    history = rng.integers(6, size=length)  # newest first, with repeats
    attention_KL = rng.integers(0, 4, (num_interests, length)).astype(np.float32) / 4
    found = top_attended(attention_KL, history, num_reasons)
    newest_first = list(dict.fromkeys(history.tolist()))
    assert found.rows_KR.shape == (num_interests, min(num_reasons, len(newest_first)))
    for k in range(num_interests):
        weights = {row: float(attention_KL[k, history == row].sum()) for row in newest_first}
        expected = sorted(newest_first, key=lambda row: -weights[row])[:num_reasons]
        assert found.rows_KR[k].tolist() == expected
        assert found.weights_KR[k].tolist() == [weights[row] for row in expected]
