"""Planted label noise in simulated classes: which score finds it. The figures of docs/clusters.md, by numpy alone.

    python benches/peers/label_noise.py

Classes of six rows from six styles: class vector + style vector + noise that grows from style to style, as unit vectors;
one label in ten is replaced by another class's. Printed: the share of the planted rows above the score that 10 % of the clean
rows exceed, and what the limits of -ln p(own) drop of the planted and of the clean rows.
"""

import numpy as np

DIMENSION, STYLES = 64, 6
LEVELS = np.array([0.7, 0.8, 0.9, 1.1, 1.4, 1.8])


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def simulate(rng, classes, noise, style):
    truth = np.repeat(np.arange(classes), STYLES)
    styles = np.tile(np.arange(STYLES), classes)
    centers = rng.normal(size=(classes, DIMENSION))
    shared = rng.normal(size=(STYLES, DIMENSION)) * style
    own = rng.normal(size=(len(truth), DIMENSION)) * (noise * LEVELS[styles])[:, None]
    labels = truth.copy()
    wrong = rng.random(len(truth)) < 0.1
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, wrong.sum())) % classes
    return unit(centers[truth] + shared[styles] + own), truth, styles, labels, wrong


def mean_average_precision(x, truth, styles):
    """Every seventh row as a query, its own style left out of the gallery."""
    scores, values = x @ x.T, []
    for i in range(0, len(x), 7):
        others = styles != styles[i]
        relevant = truth[others][np.argsort(-scores[i][others])] == truth[i]
        ranks = np.flatnonzero(relevant) + 1
        values.append(np.mean(np.arange(1, len(ranks) + 1) / ranks))
    return np.mean(values)


def distances(x, labels, classes, directions):
    """To every class's centroid, that of the own class with the row left out."""
    sums = np.zeros((classes, x.shape[1]))
    np.add.at(sums, labels, x)
    count = np.bincount(labels, minlength=classes)
    centroids = sums / np.maximum(count, 1)[:, None]
    left = (sums[labels] - x) / np.maximum(count[labels] - 1, 1)[:, None]
    if directions:
        centroids, left = unit(centroids + 1e-9), unit(left + 1e-9)
    squared = (x**2).sum(1)[:, None] + (centroids**2).sum(1) - 2 * x @ centroids.T
    d = np.sqrt(np.maximum(squared, 0))
    own = np.linalg.norm(x - left, axis=1)
    d[np.arange(len(x)), labels] = own
    return d, own


def softmax_scores(d, own, rate):
    s = -rate * d
    top = s.max(1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(s - top).sum(1))
    return lse + rate * own, lse - (np.exp(s - lse[:, None]) * s).sum(1)


def found(score, wrong):
    return (score[wrong] > np.quantile(score[~wrong], 0.9)).mean()


def scores_table(rng):
    for noise in (1.2, 1.8):
        x, truth, styles, labels, wrong = simulate(rng, 800, noise, 1.0)
        print(f"800 classes, noise {noise}: mAP {mean_average_precision(x, truth, styles):.2f}")
        for name, rows, directions in (
            ("mean", x, False),
            ("direction", x, True),
            ("direction, centered", unit(x - x.mean(0)), True),
        ):
            d, own = distances(rows, labels, 800, directions)
            others = d.copy()
            others[np.arange(len(d)), labels] = np.inf
            print(f"  {name}:")
            print(f"    d(own) {found(own, wrong):.2f}, less min d(other) {found(own - others.min(1), wrong):.2f}", end="")
            print(f", rank {found((others < own[:, None]).sum(1) + 1e-6 * own, wrong):.2f}", end="")
            for rate in (2, 5, 10, 20, 40, 80):
                print(f", -ln p at rate {rate} {found(softmax_scores(d, own, rate)[0], wrong):.2f}", end="")
            print(f", entropy at rate 20 {found(softmax_scores(d, own, 20)[1], wrong):.2f}")


def limits_table(rng):
    for classes, noise, style in ((800, 1.0, 1.0), (800, 0.7, 1.0), (800, 0.4, 0.5), (50, 0.7, 0.5)):
        x, _, _, labels, wrong = simulate(rng, classes, noise, style)
        d, own = distances(x, labels, classes, True)
        sigma = np.median([own[labels == c].std() for c in range(classes) if (labels == c).sum() > 1])
        suspicion, _ = softmax_scores(d, own, 1 / sigma)
        print(f"{classes} classes, noise {noise}, style {style}: 1/sigma {1 / sigma:.1f}", end="")
        for share in (0.5, 0.75, 0.9, 1.0):
            dropped = suspicion > share * np.log(classes)
            print(f"; {share} ln C drops {dropped[wrong].mean():.2f} and {dropped[~wrong].mean():.3f}", end="")
        print()


if __name__ == "__main__":
    scores_table(np.random.default_rng(0))
    limits_table(np.random.default_rng(1))
