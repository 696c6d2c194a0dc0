"""Exact top-k by inner product: faiss IndexFlatIP, the keys added beforehand, one batched search timed."""

import common

common.pin_threads()

FAMILY, PEER = "neighbors", "faiss IndexFlatIP"


def main():
    options, shapes = common.arguments(FAMILY)
    try:
        import faiss
    except ImportError as error:
        for shape in shapes:
            common.skipped(FAMILY, PEER, shape, error)
        return
    faiss.omp_set_num_threads(common.THREADS)
    for batch, keys, dimension, k in shapes:
        queries, bank = common.unit(batch, dimension, 1), common.unit(keys, dimension, 2)
        index = faiss.IndexFlatIP(dimension)
        index.add(bank)
        shape = (batch, keys, dimension, k)
        common.measure(FAMILY, PEER, shape, lambda: index.search(queries, k), options.repeats)


if __name__ == "__main__":
    main()
