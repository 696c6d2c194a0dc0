"""Multimodal contrastive training in plain PyTorch, float64, every matrix written out.

    benches/peers/golden.sh multimodal

Formulas: crates/methods/src/multimodal.rs. Planted cases: empty, half filled and wrapped queues, images that all share a
tag, images that share none, duplicated keys, more than one word of tags, hinges that are never or always active.
"""

import numpy
import torch
from golden import Golden, unit

NAMES = ["image", "tag", "caption", "image_to_caption", "caption_to_image"]
BATCH, DIMENSION, LENGTH = 6, 8, 20


def own_and_queue(query, own, past, temperature):
    scores = torch.cat([(query * own).sum(1, keepdim=True), query @ past.T], 1) / temperature
    return -scores.log_softmax(1)[:, 0].mean()


def tag(query, keys, overlap, settings):
    log_p = (query @ keys.T / settings["temperature"]).log_softmax(1)
    positive = overlap > settings["overlap"]
    count = positive.sum(1)
    rows = -(log_p * positive).sum(1)[count > 0] / count[count > 0]
    return rows.mean() if len(rows) else query.sum() * 0


def hinge(query, own, past, margin):
    return (margin - (query * own).sum(1, keepdim=True) + query @ past.T).clamp(min=0).sum(1).mean()


def case(golden, generator, name, steps, settings, sets, duplicated=False):
    keys = {n: unit(generator, steps, BATCH, DIMENSION) for n in NAMES}
    queries = {n: unit(generator, BATCH, DIMENSION) for n in NAMES}
    if duplicated:
        for n in NAMES:
            keys[n][-1, 3] = keys[n][0, 1] = keys[n][-1, 0]
    variables = {n: torch.tensor(queries[n], requires_grad=True) for n in NAMES}
    own = {n: torch.tensor(keys[n][-1]) for n in NAMES}
    past = {n: torch.tensor(keys[n][:-1].reshape(-1, DIMENSION)[-LENGTH:]) for n in NAMES}
    hot = torch.tensor(sets.astype(numpy.float64))
    held = torch.cat([hot[:-1].reshape(-1, hot.shape[2])[-LENGTH:], hot[-1]])
    parts = {}
    for n in NAMES:
        term = settings[n]
        if n == "tag":
            parts[n] = tag(variables[n], torch.cat([past[n], own[n]]), hot[-1] @ held.T, term)
        elif n.count("_to_") and settings["inter_modal"] != "softmax":
            parts[n] = hinge(variables[n], own[n], past[n], settings["inter_modal"]["hinge"]["margin"])
        else:
            parts[n] = own_and_queue(variables[n], own[n], past[n], term["temperature"])
    total = sum(settings[n]["weight"] * parts[n] for n in NAMES)
    gradients = torch.autograd.grad(total, [variables[n] for n in NAMES], allow_unused=True)
    results = {"total": total.reshape(1)} | {f"part.{n}": parts[n].reshape(1) for n in NAMES}
    for i, (n, gradient) in enumerate(zip(NAMES, gradients)):
        results[f"gradient.{i}"] = torch.zeros_like(variables[n]) if gradient is None else gradient
    words = -(-sets.shape[2] // 32)
    bits = numpy.zeros((steps, BATCH, words), dtype=numpy.uint32)
    for t in range(sets.shape[2]):
        bits[:, :, t // 32] |= (sets[:, :, t].astype(numpy.uint32) << numpy.uint32(t % 32)).astype(numpy.uint32)
    inputs = {"tags": bits}
    for i, n in enumerate(NAMES):
        inputs |= {f"q.{i}": queries[n], f"k.{i}": keys[n]}
    golden.case(name, settings | {"steps": steps, "length": LENGTH}, inputs, results)


def main():
    golden, generator = Golden("multimodal"), numpy.random.default_rng(11)
    term = {"weight": 1.0, "temperature": 0.07}
    published = {n: term for n in NAMES} | {
        "tag": {"weight": 1.0, "temperature": 0.07, "overlap": 0},
        "caption_to_image": {"weight": 1e-4, "temperature": 0.07},
        "inter_modal": "softmax",
    }
    own_settings = {
        "image": {"weight": 0.5, "temperature": 0.2},
        "tag": {"weight": 2.0, "temperature": 0.1, "overlap": 1},
        "caption": {"weight": 0.25, "temperature": 0.5},
        "image_to_caption": {"weight": 1.5, "temperature": 0.3},
        "caption_to_image": {"weight": 1.0, "temperature": 0.4},
        "inter_modal": "softmax",
    }

    def hinges(margin):
        return published | {
            "caption_to_image": {"weight": 1.0, "temperature": 0.07},
            "inter_modal": {"hinge": {"margin": margin}},
        }

    def sets(steps, tags=40, share=0.1):
        chosen = generator.random((steps, BATCH, tags)) < share
        chosen[..., 0] |= ~chosen.any(2)  # no image without a tag
        return chosen

    def everyone(steps):
        chosen = sets(steps)
        chosen[..., 3] = True
        return chosen

    def nobody(steps):
        chosen = numpy.zeros((steps, BATCH, steps * BATCH), dtype=bool)
        chosen.reshape(steps * BATCH, -1)[numpy.arange(steps * BATCH), numpy.arange(steps * BATCH)] = True
        return chosen

    case(golden, generator, "empty", 1, published, sets(1))
    case(golden, generator, "half", 3, published, sets(3))
    case(golden, generator, "wrapped", 7, published, sets(7))
    case(golden, generator, "settings", 5, own_settings, sets(5, share=0.2))
    case(golden, generator, "all-positive", 4, published, everyone(4))
    case(golden, generator, "own-tags", 6, published, nobody(6))
    case(golden, generator, "duplicates", 4, published, sets(4), duplicated=True)
    case(golden, generator, "hinge", 6, hinges(0.2), sets(6))
    case(golden, generator, "hinge-always", 4, hinges(3.0), sets(4))
    case(golden, generator, "hinge-never", 4, hinges(1e-3), sets(4), duplicated=True)
    golden.write()


if __name__ == "__main__":
    main()
