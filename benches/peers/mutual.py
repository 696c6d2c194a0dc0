"""Mutual contrastive learning in plain PyTorch, float64, every matrix written out; writes the golden file.

    benches/peers/golden.sh mutual

Formulas: crates/methods/src/mutual/mod.rs. Planted cases: an anchor without a positive, a batch of one class, duplicated
keys, padding in lists, queues that are empty, half filled, and have wrapped.
"""

import numpy
import torch
from golden import Golden, narrow, unit

INF = float("inf")


def contrast(scores, positive, compared):
    """The mean over rows with a positive of -(1/|J|) sum_J log softmax."""
    log_p = scores.masked_fill(~compared, -INF).log_softmax(1)
    positive = positive & compared
    count = positive.sum(1)
    rows = -log_p.masked_fill(~positive, 0.0).sum(1)[count > 0] / count[count > 0]
    return rows.mean() if len(rows) else scores.sum() * 0.0


def divergence(student, teacher, softening, compared):
    teacher = (teacher.detach() / softening).masked_fill(~compared, -INF).log_softmax(1)
    student = (student / softening).masked_fill(~compared, -INF).log_softmax(1)
    terms = (teacher.exp() * (teacher - student)).masked_fill(~compared, 0.0)
    return softening**2 * terms.sum(1).mean()


def mutual(settings, own, between, score, networks):
    """The four losses; `own` and `between` are (positive, compared) of S^aa and S^ab, `score(a, b)` is S^ab."""
    pairs = [(a, b) for a in range(networks) for b in range(networks) if a != b]
    t = settings["softening"]
    soft_own = own[2] if len(own) > 2 else own[1]
    soft_between = between[2] if len(between) > 2 else between[1]
    columns = own[3] if len(own) > 3 else slice(None)
    parts = {
        "vcl": sum(contrast(score(a, a)[:, columns], *own[:2]) for a in range(networks)),
        "icl": sum(contrast(score(a, b), *between[:2]) for a, b in pairs),
        "soft_vcl": sum(
            divergence(score(a, a)[:, columns], score(b, b)[:, columns], t, soft_own) for a, b in pairs
        ),
        "soft_icl": sum(divergence(score(a, b), score(b, a), t, soft_between) for a, b in pairs),
    }
    total = sum(settings[name] * value for name, value in parts.items())
    return total, parts


def finish(golden, name, settings, inputs, total, parts, variables, more=None):
    gradients = torch.autograd.grad(total, variables, allow_unused=True)
    results = {f"part.{key}": value.reshape(1) for key, value in parts.items()}
    results["total"] = total.reshape(1)
    for network, (variable, gradient) in enumerate(zip(variables, gradients)):
        results[f"gradient.{network}"] = torch.zeros_like(variable) if gradient is None else gradient
    golden.case(name, settings, inputs, results | (more or {}))


def tracked(arrays):
    return [torch.tensor(array, requires_grad=True) for array in arrays]


def named(prefix, arrays):
    return {f"{prefix}.{i}": array for i, array in enumerate(arrays)}


WEIGHTS = {"vcl": 0.1, "icl": 0.1, "soft_vcl": 1.0, "soft_icl": 1.0}
QUEUE = {"vcl": 1.0, "icl": 1.0, "soft_vcl": 1.0, "soft_icl": 1.0}


def batches(golden, generator):
    rows, dimension = 12, 8
    pairs_of_classes = [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]
    cases = {
        "pairs-2": (2, pairs_of_classes, False),
        "pairs-3": (3, pairs_of_classes, False),
        "pairs-4": (4, pairs_of_classes, False),
        "no-positive": (2, [0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 5], False),
        "one-class": (2, [7] * rows, False),
        "all-alone": (2, list(range(rows)), False),
        "duplicates": (2, pairs_of_classes, True),
    }
    for name, (networks, labels, duplicated) in cases.items():
        settings = WEIGHTS | {"temperature": 0.1, "softening": 3.0}
        v = [unit(generator, rows, dimension) for _ in range(networks)]
        if duplicated:
            for x in v:
                x[3] = x[9] = x[0]
        variables = tracked(v)
        label = torch.tensor(labels)
        other = ~torch.eye(rows, dtype=torch.bool)
        same = label[:, None] == label[None, :]
        everything = torch.ones(rows, rows, dtype=torch.bool)
        mask = (same & other, other, everything)

        def score(a, b):
            return variables[a] @ variables[b].T / settings["temperature"]

        total, parts = mutual(settings, mask, mask, score, networks)
        inputs = named("v", v) | {"labels": numpy.array(labels, dtype=numpy.uint32)}
        finish(golden, f"batch/{name}", settings, inputs, total, parts, variables)


def banks(golden, generator):
    rows, dimension, held, negatives = 6, 8, 40, 16
    for name, networks, padded in [("two", 2, False), ("three", 3, False), ("padded", 2, True)]:
        settings = WEIGHTS | {"temperature": 0.07, "softening": 3.0}
        v = [unit(generator, rows, dimension) for _ in range(networks)]
        bank = [unit(generator, held, dimension) for _ in range(networks)]
        lists = generator.integers(0, held, (rows, 2 + negatives)).astype(numpy.uint32)
        if padded:
            lists[0, 9:] = 0xFFFFFFFF  # a short list
            lists[1, 1] = 0xFFFFFFFF  # nobody else of its class: no positive without itself
            lists[2, 2:] = lists[2, 2]  # one negative, many times
        variables = tracked(v)
        listed = torch.tensor(lists.astype(numpy.int64))
        there = listed != 0xFFFFFFFF
        stores = [torch.tensor(x) for x in bank]

        def score(a, b):
            chosen = stores[b][listed.masked_fill(~there, 0)]
            return torch.einsum("bd,bkd->bk", variables[a], chosen) / settings["temperature"]

        positive = torch.zeros_like(there)
        positive[:, :2] = True
        own = (positive[:, 1:], there[:, 1:], there[:, 1:], slice(1, None))
        total, parts = mutual(settings, own, (positive, there), score, networks)
        moved = {}
        for network, store in enumerate(stores):
            store = store.clone()
            for row, x in zip(lists[:, 0].tolist(), variables[network].detach()):
                z = 0.5 * store[row] + 0.5 * x
                store[row] = z / z.norm()
            moved[f"bank.{network}"] = store
        inputs = named("v", v) | named("bank", bank) | {"lists": lists}
        finish(golden, f"bank/{name}", settings, inputs, total, parts, variables, moved)


def queues(golden, generator):
    batch, dimension, length = 6, 8, 20
    for name, networks, steps in [("empty", 2, 1), ("half", 2, 3), ("wrapped", 2, 7), ("four", 4, 5)]:
        settings = QUEUE | {"temperature": 0.07, "softening": 3.0, "steps": steps, "length": length}
        keys = [unit(generator, steps, batch, dimension) for _ in range(networks)]
        queries = [unit(generator, batch, dimension) for _ in range(networks)]
        variables = tracked(queries)
        own = [torch.tensor(x[-1]) for x in keys]
        past = [torch.tensor(x[:-1].reshape(-1, dimension)[-length:]) for x in keys]

        def score(a, b):
            first = (variables[a] * own[b]).sum(1, keepdim=True)
            return torch.cat([first, variables[a] @ past[b].T], 1) / settings["temperature"]

        columns = 1 + len(past[0])
        compared = torch.ones(batch, columns, dtype=torch.bool)
        positive = torch.zeros_like(compared)
        positive[:, 0] = True
        total, parts = mutual(settings, (positive, compared), (positive, compared), score, networks)
        finish(golden, f"queue/{name}", settings, named("q", queries) | named("k", keys), total, parts, variables)


def logits(golden, generator):
    for networks in (2, 4):
        for students in ("published", "all"):
            settings = {"weight": 1.0, "softening": 3.0, "students": students}
            values = [narrow(3 * generator.standard_normal((5, 7))) for _ in range(networks)]
            variables = tracked(values)
            mean = sum(variables) / networks
            first = networks - 1 if students == "published" and networks > 2 else 0
            everything = torch.ones(5, 7, dtype=torch.bool)
            total = sum(divergence(x, mean, 3.0, everything) for x in variables[first:])
            name = f"logits/{students}-{networks}"
            finish(golden, name, settings, named("l", values), total, {"logits": total}, variables)


def main():
    golden, generator = Golden("mutual"), numpy.random.default_rng(20)
    batches(golden, generator)
    banks(golden, generator)
    queues(golden, generator)
    logits(golden, generator)
    golden.write()


if __name__ == "__main__":
    main()
