"""k-means with 10 iterations of Lloyd's algorithm: scikit-learn and faiss.

The peers get their starting centroids, so that choosing them costs them nothing: the first rows of each class, which for
independent normal rows is a random choice. scikit-learn runs with tol 0, so that it does not stop early.
"""

import warnings

import common

common.pin_threads()

FAMILY, ITERATIONS = "clusters", 10


def main():
    options, shapes = common.arguments(FAMILY)
    for classes, rows, dimension, k in shapes:
        shape = (classes, rows, dimension, k)
        points = common.normal(classes * rows, dimension, 1)
        if classes == 1:
            scikit_learn(options, shape, points)
        faiss_kmeans(options, shape, points)


def scikit_learn(options, shape, points):
    _, _, _, k = shape
    try:
        import threadpoolctl
        from sklearn.cluster import KMeans
    except ImportError as error:
        common.skipped(FAMILY, "scikit-learn", shape, error)
        return

    def fit():
        model = KMeans(k, init=points[:k], n_init=1, max_iter=ITERATIONS, tol=0.0, algorithm="lloyd")
        with warnings.catch_warnings():
            # It says that 10 iterations did not converge, which is the point.
            warnings.simplefilter("ignore")
            model.fit(points)

    with threadpoolctl.threadpool_limits(common.THREADS):
        common.measure(FAMILY, "scikit-learn", shape, fit, options.repeats)


def faiss_kmeans(options, shape, points):
    classes, rows, dimension, k = shape
    peer = "faiss Kmeans" if classes == 1 else "faiss Kmeans, a loop"
    try:
        import faiss
    except ImportError as error:
        common.skipped(FAMILY, peer, shape, error)
        return
    faiss.omp_set_num_threads(common.THREADS)

    def fit():
        for first in range(0, classes * rows, rows):
            part = points[first : first + rows]
            # All rows are used: without the limits faiss samples 256 rows per centroid, and warns below 39.
            model = faiss.Kmeans(
                dimension, k, niter=ITERATIONS, min_points_per_centroid=1, max_points_per_centroid=rows
            )
            model.train(part, init_centroids=part[:k])

    common.measure(FAMILY, peer, shape, fit, options.repeats)


if __name__ == "__main__":
    main()
