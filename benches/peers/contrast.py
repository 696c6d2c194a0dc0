"""The weighted multi-positive contrastive loss in PyTorch's own operations (eager), forward and backward.

L_i = - mean over the positives j of w_ij log softmax(s_i)_j, s = x y^T / tau, positives by equal label, weights
w_ij = (1 + cos(o_i, y_j)) / 2 of old embeddings o of the queries (the keys are old embeddings themselves); the mean over the
rows that have a positive. `torch eager, equal weights` is the same with w = 1, written without the weights' product.
The gradient goes to the queries; the keys are constants, as a bank is.

`two matrix products` is x y^T and P y with P of the size of the scores: the floor of any method that computes every score
in the forward and in the backward pass once. It is there for orientation and is no goal.
"""

import common

common.pin_threads()

FAMILY, TAU, LABELS = "contrast", 0.07, 1000


def main():
    options, shapes = common.arguments(FAMILY)
    try:
        import torch
    except ImportError as error:
        for shape in shapes:
            common.skipped(FAMILY, "torch eager", shape, error)
        return
    torch.set_num_threads(common.THREADS)
    generator = torch.Generator().manual_seed(7)
    for batch, keys, dimension in shapes:
        x = torch.from_numpy(common.unit(batch, dimension, 1)).requires_grad_()
        y = torch.from_numpy(common.unit(keys, dimension, 2))
        x_labels = torch.randint(LABELS, (batch,), generator=generator)
        y_labels = torch.randint(LABELS, (keys,), generator=generator)

        old = torch.from_numpy(common.unit(batch, dimension, 3))

        def weighted():
            x.grad = None
            scores = (x / TAU) @ y.T
            positive = x_labels[:, None] == y_labels[None, :]
            count = positive.sum(1)
            weights = torch.where(positive, 0.5 * (1.0 + old @ y.T), 0.0) / count.clamp_min(1)[:, None]
            per_row = -(weights * torch.log_softmax(scores, 1)).sum(1)
            (per_row.sum() / (count > 0).sum()).backward()

        def equal():
            x.grad = None
            scores = (x / TAU) @ y.T
            positive = x_labels[:, None] == y_labels[None, :]
            count = positive.sum(1)
            of_positives = torch.where(positive, scores, 0.0).sum(1) / count.clamp_min(1)
            per_row = torch.where(count > 0, torch.logsumexp(scores, 1) - of_positives, 0.0)
            (per_row.sum() / (count > 0).sum()).backward()

        def products():
            with torch.no_grad():
                (x @ y.T) @ y

        shape = (batch, keys, dimension)
        common.measure(FAMILY, "torch eager", shape, weighted, options.repeats)
        common.measure(FAMILY, "torch eager, equal weights", shape, equal, options.repeats)
        common.measure(FAMILY, "two matrix products (torch)", shape, products, options.repeats)


if __name__ == "__main__":
    main()
