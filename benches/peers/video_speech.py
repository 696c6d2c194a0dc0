"""Video-speech contrast with affinity-aware self-paced learning in plain PyTorch, float64, every matrix written out.

    benches/peers/golden.sh video_speech

Formulas: crates/methods/src/video_speech/mod.rs. Planted cases: one scan, scans of one pair, simultaneous pairs (affinity
1), duplicated embeddings, pairs that self-paced learning leaves out.
"""

import numpy
import torch
from golden import Golden, narrow, unit

INF = float("inf")


def pace(settings, epoch):
    share = min(1.0, epoch / settings["pace_epochs"]) if settings["pace_epochs"] else 1.0
    return settings["pace_start"] + (1 - settings["pace_start"]) * share


def denominator(settings, speech, scans, times, epoch):
    """u_ij, with 1 for the pair itself."""
    n = len(scans)
    kind = settings["affinity"]
    if kind == "uniform":
        return torch.ones(n, n, dtype=torch.float64)
    if kind == "speech":
        unit_speech = speech.detach() / speech.detach().norm(dim=1, keepdim=True)
        affinity = 0.5 * (1 + unit_speech @ unit_speech.T)
    else:
        affinity = torch.exp(-(times[:, None] - times[None, :]).abs() / kind["time"]["scale"])
    limit = pace(settings, epoch)
    inside = (affinity <= limit).double() if settings["admission"] == "hard" else (1 - affinity / limit).clamp(min=0)
    weights = torch.where(scans[:, None] == scans[None, :], inside, torch.ones_like(inside))
    return torch.where(torch.eye(n, dtype=torch.bool), torch.ones_like(weights), weights)


def sample_weights(settings, losses, epoch):
    kind = settings["samples"]
    if kind == "uniform":
        return torch.ones_like(losses)
    (name, values), = kind.items()
    limit = values["limit"] * values["growth"] ** epoch
    losses = losses.detach()
    return (losses < limit).double() if name == "hard" else (1 - losses / limit).clamp(min=0)


def softmax(scores, u):
    scores = torch.where(u > 0, scores + torch.log(u.clamp(min=1e-300)), torch.full_like(scores, -INF))
    return -scores.log_softmax(1).diagonal()


def losses(settings, video, speech, scans, times, epoch):
    u = denominator(settings, speech, scans, times, epoch)
    (name, values), = settings["form"].items()
    if name == "softmax":
        scores = video @ speech.T / values["temperature"]
        rows = softmax(scores, u)
        return rows + softmax(scores.T, u.T) if values["symmetric"] else rows
    u = u * (1 - torch.eye(len(scans), dtype=torch.float64))
    # Written with the difference of every pair, not with the products of the norms.
    squares = (video[:, None, :] - speech[None, :, :]).square().sum(2)
    own = squares.diagonal()
    distance = torch.where(squares > 0, squares, torch.ones_like(squares)).sqrt() * (squares > 0)
    hinges = (values["margin"] - distance).clamp(min=0).square()
    total = u.sum(1)
    return own + torch.where(total > 0, (u * hinges).sum(1) / total.clamp(min=1e-300), torch.zeros_like(own))


def order_case(golden, generator):
    parts, dimension, hidden, rows = 3, 5, 7, 6
    orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    features = narrow(generator.standard_normal((rows, parts, dimension)))
    weights = [
        narrow(0.4 * generator.standard_normal(shape))
        for shape in [(parts * dimension, hidden), (hidden,), (hidden, 6), (6,)]
    ]
    drawn = numpy.array([0, 5, 3, 3, 1, 4], dtype=numpy.uint32)
    x = torch.tensor(features, requires_grad=True)
    w = [torch.tensor(weight, requires_grad=True) for weight in weights]
    shuffled = torch.stack([x[row][orders[order]] for row, order in enumerate(drawn)])
    hidden_layer = (shuffled.reshape(rows, -1) @ w[0] + w[1]).relu()
    logits = hidden_layer @ w[2] + w[3]
    total = torch.nn.functional.cross_entropy(logits, torch.tensor(drawn.astype(numpy.int64)))
    gradients = torch.autograd.grad(total, [x, *w])
    results = {"total": total.reshape(1)} | {f"gradient.{i}": g for i, g in enumerate(gradients)}
    inputs = {"x.0": features, "orders": drawn} | {f"w.{i}": weight for i, weight in enumerate(weights)}
    golden.case("order/three", {"parts": parts, "hidden": hidden}, inputs, results)


def main():
    golden, generator = Golden("video_speech"), numpy.random.default_rng(7)
    soft = {"softmax": {"temperature": 0.1, "symmetric": True}}
    one_way = {"softmax": {"temperature": 0.1, "symmetric": False}}
    margin = {"margin": {"margin": 1.25}}
    time, speech = {"time": {"scale": 1.0}}, "speech"
    hard_samples = {"hard": {"limit": 6.0, "growth": 1.2}}
    linear_samples = {"linear": {"limit": 3.0, "growth": 1.1}}
    scans = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 4]
    cases = {
        "soft-early": (soft, time, "soft", "uniform", 0, scans),
        "soft-half": (soft, time, "soft", "uniform", 5, scans),
        "soft-late": (soft, time, "soft", "uniform", 25, scans),
        "hard-early": (soft, time, "hard", "uniform", 1, scans),
        "hard-late": (soft, time, "hard", "uniform", 10, scans),
        "speech-soft": (soft, speech, "soft", "uniform", 4, scans),
        "speech-hard": (soft, speech, "hard", "uniform", 4, scans),
        "one-way": (one_way, time, "soft", "uniform", 2, scans),
        "uniform": (soft, "uniform", "soft", "uniform", 2, scans),
        "one-scan": (soft, time, "soft", "uniform", 3, [9] * 12),
        "own-scans": (soft, time, "soft", "uniform", 3, list(range(12))),
        "samples-hard": (soft, time, "soft", hard_samples, 3, scans),
        "samples-linear": (soft, time, "soft", linear_samples, 3, scans),
        "margin-soft": (margin, time, "soft", "uniform", 2, scans),
        "margin-hard": (margin, speech, "hard", "uniform", 4, scans),
        "margin-one-scan": (margin, time, "hard", "uniform", 0, [9] * 12),
        "margin-samples": (margin, time, "soft", {"linear": {"limit": 1.0, "growth": 1.1}}, 2, scans),
    }
    for name, (form, affinity, admission, samples, epoch, of_scans) in cases.items():
        n, dimension = 12, 8
        settings = {
            "form": form,
            "affinity": affinity,
            "admission": admission,
            "samples": samples,
            "pace_start": 0.2,
            "pace_epochs": 10.0,
        }
        v, s = unit(generator, n, dimension), unit(generator, n, dimension)
        s[3] = s[0]  # the same words twice in one scan
        s[5] = narrow(0.9 * v[5] + 0.1 * s[5])
        s[5] = narrow(s[5] / numpy.linalg.norm(s[5]))
        t = narrow(numpy.sort(4 * generator.random(n)))
        t[1] = t[0]  # simultaneous: affinity 1
        video, words = torch.tensor(v, requires_grad=True), torch.tensor(s, requires_grad=True)
        rows = losses(settings, video, words, torch.tensor(of_scans), torch.tensor(t), epoch)
        total = (rows * sample_weights(settings, rows, epoch)).sum() / n
        gradients = torch.autograd.grad(total, [video, words])
        results = {"total": total.reshape(1), "gradient.0": gradients[0], "gradient.1": gradients[1]}
        inputs = {"v.0": v, "v.1": s, "scans": numpy.array(of_scans, dtype=numpy.uint32), "times": t}
        golden.case(f"pairs/{name}", settings | {"epoch": epoch}, inputs, results)
    order_case(golden, generator)
    golden.write()


if __name__ == "__main__":
    main()
