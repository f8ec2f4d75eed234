"""The Re4 model in float64 NumPy, one user and one interest at a time, straight from the equations.

Slow on purpose, and sharing nothing with `training/`: loops instead of masks, no batching, no padding.
Every history is a list of vectors without padding, newest first.
"""

import math

import numpy as np


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def log_sum_exp(x):
    x = np.asarray(x, dtype=np.float64)
    return np.max(x) + np.log(np.exp(x - np.max(x)).sum())


def attention(history, W1, w, position=None):
    """a[k, j], for one user's history [n, D]."""
    attended = history if position is None else history + position[: len(history)]
    logits = np.array([[w_k @ np.tanh(W1 @ x) for x in attended] for w_k in w])
    return np.array([softmax(row) for row in logits])


def interests(history, a, W2=None, head=None):
    """z[k]; `head` is (weight, bias)."""
    z = []
    for row in a:
        z_k = sum(row[j] * (history[j] if W2 is None else W2 @ history[j]) for j in range(len(history)))
        z.append(z_k if head is None else np.tanh(head[0] @ z_k + head[1]))
    return np.array(z)


def recommend(z, target, items, negatives, log_expected=None, *, served=False):
    """The loss of one user: interest by argmax, softmax against the negatives that are not the target.

    With `served` every interest scores the negatives, and the highest score counts.
    """
    chosen = int(np.argmax([z_k @ items[target] for z_k in z]))

    def score(row):
        best = max(z_k @ items[row] for z_k in z) if served else z[chosen] @ items[row]
        return best - (0.0 if log_expected is None else log_expected[row])

    scores = [score(target)] + [score(n) for n in negatives if n != target]
    return log_sum_exp(scores) - scores[0], chosen


def positives(a):
    """For each interest, the history positions whose attention is above the uniform share."""
    n = a.shape[1]
    return [[j for j in range(n) if row[j] > 1 / n] for row in a]


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def recontrast(histories, zs, attentions, outside, temperature):
    """Mean over all positives of all users. `outside[b]`: vectors of items outside user b's history."""
    losses = []
    for b, (history, z, a) in enumerate(zip(histories, zs, attentions, strict=True)):
        for k, mine in enumerate(positives(a)):
            negatives = [history[j] for j in range(len(history)) if j not in mine]
            negatives += [z[other] for other in range(len(z)) if other != k]
            negatives += list(outside[b])
            scores = [cosine(z[k], x) / temperature for x in negatives]
            for j in mine:
                positive = cosine(z[k], history[j]) / temperature
                losses.append(log_sum_exp([positive, *scores]) - positive)
    return np.mean(losses) if losses else 0.0


def reattend(histories, zs, attentions):
    """Mean over (user, interest) of the cross entropy of a under the target softmax(z·x)."""
    losses = []
    for history, z, a in zip(histories, zs, attentions, strict=True):
        for k in range(len(z)):
            target = softmax(np.array([z[k] @ x for x in history]))
            losses.append(-sum(target[j] * np.log(a[k, j]) for j in range(len(history))))
    return np.mean(losses)


def reconstruct(z_k, n, W4, b4, W3, v, W5):
    """x̂[j] for one interest and a history of n items."""
    construct_dim = W3.shape[1]
    pieces = (W4 @ z_k + b4).reshape(-1, construct_dim)[:n]
    result = []
    for j in range(n):
        share = softmax(np.array([v[j] @ np.tanh(W3 @ c) for c in pieces]))
        result.append(sum(share[i] * (W5 @ pieces[i]) for i in range(n)))
    return np.array(result)


def reconstruct_loss(histories, zs, attentions, weights):
    """Mean over all positives of all users of the squared distance."""
    losses = []
    for history, z, a in zip(histories, zs, attentions, strict=True):
        for k, mine in enumerate(positives(a)):
            rebuilt = reconstruct(z[k], len(history), *weights)
            losses += [((rebuilt[j] - history[j]) ** 2).sum() for j in mine]
    return np.mean(losses) if losses else 0.0


def own_history(zs, targets, histories, items):
    """Mean over users of the cross entropy of the target against the rest of the user's own history."""
    losses = []
    for z, target, rows in zip(zs, targets, histories, strict=True):
        score = max(z @ items[target])
        rivals = [max(z @ items[row]) for row in rows if row != target]
        losses.append(np.log(np.exp(score) + sum(np.exp(rivals))) - score)
    return np.mean(losses)


def squash(s):
    square = s @ s
    return square / (1 + square) * s / np.sqrt(square)


def mind(history, S, logits, num_interests):
    """Interests and couplings of one user: three rounds of routing from drawn `logits` [K, n]."""
    n = len(history)
    active = max(1, min(num_interests, int(np.log2(n))))
    mapped = [S @ x for x in history]
    b = logits[:active, :n].copy()
    for round_number in range(3):
        w = np.array([softmax(b[:, j]) for j in range(n)]).T
        z = np.array([squash(sum(w[k, j] * mapped[j] for j in range(n))) for k in range(active)])
        if round_number < 2:
            b += np.array([[z[k] @ mapped[j] for j in range(n)] for k in range(active)])
    return z, w


def hard_negatives(target_score, negative_scores, beta):
    """The loss where negatives stand for M draws in proportion to e^(beta s)."""
    s = np.asarray(negative_scores)
    expected = len(s) * np.exp((1 + beta) * s).sum() / np.exp(beta * s).sum()
    return np.log(np.exp(target_score) + expected) - target_score


def routing(attentions):
    """Mean over users of the squared norm of diag((A - mean)(A - mean)^T)."""
    values = []
    for a in attentions:
        centred = a - a.mean(axis=1, keepdims=True)
        values.append((np.diag(centred @ centred.T) ** 2).sum())
    return np.mean(values)


def transformer_block(x, w):
    """One pre-norm causal block with one head, on a history that is newest first; `w`: weights by name."""
    length, dim = x.shape

    def normal(v, name):
        centred = v - v.mean()
        return centred / np.sqrt((centred**2).mean() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(v):
        return np.array([each * 0.5 * (1 + math.erf(each / math.sqrt(2))) for each in v])

    outputs = np.zeros_like(x)
    attention = np.zeros((length, length))
    for q in range(length):
        query = w["query.weight"] @ normal(x[q], "norm_before_attention")
        logits = []
        for j in range(q, length):  # itself and the older ones
            key = w["key.weight"] @ normal(x[j], "norm_before_attention")
            logits.append(query @ key / math.sqrt(dim) + w["by_distance"][0, j - q])
        shares = np.exp(np.array(logits) - max(logits))
        attention[q, q:] = shares / shares.sum()
        values = [w["value.weight"] @ normal(x[j], "norm_before_attention") for j in range(q, length)]
        y = x[q] + w["out.weight"] @ sum(a * v for a, v in zip(attention[q, q:], values, strict=True))
        inside = gelu(w["widen.weight"] @ normal(y, "norm_before_maps") + w["widen.bias"])
        outputs[q] = y + w["narrow.weight"] @ inside + w["narrow.bias"]
    return outputs, attention
