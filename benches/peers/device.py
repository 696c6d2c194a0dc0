"""The families in PyTorch's own operations and in other libraries on a CUDA device, timed by the device's events.

One JSON line per measurement, or with --table a Markdown table. The shapes are in device.json. TF32 is off: an f32 row is
f32 arithmetic. device-requirements.txt names the packages; one that is not installed gets a line that says so.
"""

import argparse
import importlib
import importlib.metadata
import json
import math
import pathlib
import statistics

SHAPES = json.loads((pathlib.Path(__file__).resolve().parent / "device.json").read_text(encoding="utf-8"))
TAU, LABELS, ITERATIONS = 0.07, 1000, 10
TAU_LOG = math.log(TAU)
# Scores of a call in PyTorch: the batch is cut so that one piece of the matrix stays below this.
MOST_BYTES = 8 << 30


def unit(torch, rows, columns, seed, dtype):
    generator = torch.Generator("cuda").manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, device="cuda")
    return torch.nn.functional.normalize(x, dim=1).to(dtype)


def module(package):
    return importlib.import_module(package)


def installed(package, call):
    """The peer's name with its version and its call, or with the reason why there is none."""
    try:
        module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        yield f"{package}: " + ("not installed" if missing else f"not usable: {error}"), None
        return
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    yield f"{package} {version}", call()


def neighbors(torch, shape, dtype):
    batch, keys, dimension, k = shape
    queries, bank = unit(torch, batch, dimension, 1, dtype), unit(torch, keys, dimension, 2, dtype)
    rows = max(1, MOST_BYTES // (keys * dtype.itemsize))

    def search():
        for first in range(0, batch, rows):
            torch.topk(queries[first : first + rows] @ bank.T, k, dim=1)

    yield "torch matmul + topk", search


def contrast(torch, shape, dtype):
    batch, keys, dimension = shape
    x = unit(torch, batch, dimension, 1, dtype).requires_grad_()
    y = unit(torch, keys, dimension, 2, dtype)
    generator = torch.Generator("cuda").manual_seed(7)
    x_labels = torch.randint(LABELS, (batch,), generator=generator, device="cuda")
    y_labels = torch.randint(LABELS, (keys,), generator=generator, device="cuda")

    def loss(x):
        scores = (x @ y.T).float() / TAU
        positive = x_labels[:, None] == y_labels[None, :]
        count = positive.sum(1)
        of_positives = torch.where(positive, scores, 0.0).sum(1) / count.clamp_min(1)
        per_row = torch.where(count > 0, torch.logsumexp(scores, 1) - of_positives, 0.0)
        return per_row.sum() / (count > 0).sum()

    def eager():
        x.grad = None
        loss(x).backward()

    yield "torch eager, equal weights", eager
    compiled = torch.compile(loss)

    def fused():
        x.grad = None
        compiled(x).backward()

    yield "torch.compile, equal weights", fused
    # With one positive a row, which is all that these know: key i + 1 of query i.
    targets = (torch.arange(batch, device="cuda") + 1) % keys

    def of(package, loss):
        def backward():
            x.grad = None
            loss(x).backward()

        return installed(package, lambda: backward)

    yield from of("inf_cl", lambda x: module("inf_cl").cal_flash_loss(x, y, targets, 1.0 / TAU).mean())
    # Without its filter of small coefficients, which is an approximation.
    yield from of(
        "cut_cross_entropy",
        lambda x: module("cut_cross_entropy").linear_cross_entropy(x / TAU, y, targets, filter_eps=None),
    )


def symmetric(torch, shape, dtype):
    batch, dimension = shape
    x = unit(torch, batch, dimension, 1, dtype).requires_grad_()
    y = unit(torch, batch, dimension, 2, dtype).requires_grad_()
    log_scale = torch.tensor(-TAU_LOG, device="cuda").requires_grad_()
    targets = torch.arange(batch, device="cuda")
    cross_entropy = torch.nn.functional.cross_entropy

    def loss(x, y):
        scores = (x @ y.T).float() * log_scale.exp()
        return (cross_entropy(scores, targets) + cross_entropy(scores.T, targets)) / 2

    def timed(loss):
        def backward():
            x.grad = y.grad = log_scale.grad = None
            loss(x, y).backward()

        return backward

    yield "torch eager, diagonal", timed(loss)
    yield "torch.compile, diagonal", timed(torch.compile(loss))

    def inf_cl(x, y):
        loss, scale = module("inf_cl").cal_flash_loss, log_scale.exp()
        return (loss(x, y, targets, scale).mean() + loss(y, x, targets, scale).mean()) / 2

    yield from installed("inf_cl", lambda: timed(inf_cl))
    # Its temperature is a constant.
    yield from installed(
        "memeff",
        lambda: timed(module("memeff").MemoryEfficientCLIPLoss(TAU, normalized_inputs=True, stable=False)),
    )
    # The sigmoid loss: another loss of the same pairs, with no sums over rows and columns.
    bias = torch.tensor(-10.0, device="cuda").requires_grad_()
    yield from installed(
        "siglip_kernel", lambda: timed(lambda x, y: module("siglip_kernel").fused_siglip_loss(x, y, log_scale, bias))
    )

    def cut_cross_entropy(x, y):
        loss, scale = module("cut_cross_entropy").linear_cross_entropy, log_scale.exp().to(x.dtype)
        return (loss(x * scale, y, targets, filter_eps=None) + loss(y * scale, x, targets, filter_eps=None)) / 2

    yield from installed("cut_cross_entropy", lambda: timed(cut_cross_entropy))


def clusters(torch, shape, dtype):
    classes, rows, dimension, k = shape
    generator = torch.Generator("cuda").manual_seed(1)
    points = torch.randn(classes, rows, dimension, generator=generator, device="cuda").to(dtype)

    def fit():
        centroids = points[:, :k].float()
        for _ in range(ITERATIONS):
            scores = torch.baddbmm(
                (centroids * centroids).sum(2)[:, None, :].to(dtype), points, centroids.to(dtype).mT, beta=1.0, alpha=-2.0
            )
            nearest = scores.argmin(2)
            members = torch.nn.functional.one_hot(nearest, k).to(dtype)
            sums = torch.bmm(members.mT, points).float()
            centroids = sums / members.sum(1).float().clamp_min(1.0)[:, :, None]
        return centroids

    yield "torch bmm + argmin", fit
    yield from clusters_of_packages(points, k)


def clusters_of_packages(points, k):
    """Peers that may not be installed: they say so in the row of their name."""
    try:
        from flash_kmeans import batch_kmeans_Euclid

        yield "flash-kmeans", lambda: batch_kmeans_Euclid(points, n_clusters=k, max_iters=ITERATIONS, tol=0.0)
    except ImportError as error:
        yield "flash-kmeans", missing(error)
    try:
        from fast_pytorch_kmeans import KMeans

        def fit():
            for rows in points:
                KMeans(n_clusters=k, max_iter=ITERATIONS, tol=0.0, mode="euclidean").fit_predict(rows)

        yield "fast-pytorch-kmeans, a loop over classes", fit
    except ImportError as error:
        yield "fast-pytorch-kmeans", missing(error)
    try:
        from pt_kmeans import kmeans

        def fit_each():
            for rows in points:
                kmeans(rows, k, max_iters=ITERATIONS, tol=0.0, initial_centers=rows[:k])

        yield "pt-kmeans, a loop over classes", fit_each
    except ImportError as error:
        yield "pt-kmeans", missing(error)


def missing(error):
    def call():
        raise RuntimeError(f"not installed: {error}")

    return call


FAMILIES = {"neighbors": neighbors, "contrast": contrast, "symmetric": symmetric, "clusters": clusters}


def milliseconds(torch, call, repeats):
    """Of each call, after three that are not timed."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--table", action="store_true", help="a Markdown table instead of JSON lines")
    options = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        raise SystemExit("device.py: torch sees no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.table:
        device = torch.cuda.get_device_name()
        print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {device}, medians of {options.repeats}\n")
        print("| family | shape | type | peer | ms | lowest | highest |\n|---|---|---|---|---:|---:|---:|")
    for family, peers in FAMILIES.items():
        for shape in SHAPES[family]:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                name = str(dtype).removeprefix("torch.")
                # A peer that fails is said to have failed; the others are measured all the same.
                peer = "inputs"
                try:
                    for peer, call in peers(torch, shape, dtype):
                        try:
                            times = milliseconds(torch, call, options.repeats) if call else []
                        except Exception as error:
                            times, peer = [], f"{peer}, {failed(error)}"
                        report(options.table, family, shape, name, peer, times)
                        torch.cuda.empty_cache()
                except Exception as error:
                    report(options.table, family, shape, name, failed(error), [])
                torch.cuda.empty_cache()


def failed(error):
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def report(table, family, shape, dtype, peer, times):
    median, low, high = (statistics.median(times), min(times), max(times)) if times else (None, None, None)
    if table:
        figures = " | ".join("–" if x is None else f"{x:.3f}" for x in (median, low, high))
        print(f"| {family} | {' × '.join(map(str, shape))} | {dtype} | {peer} | {figures} |", flush=True)
    else:
        line = {"family": family, "shape": shape, "dtype": dtype, "peer": peer}
        line |= {"median_ms": median, "min_ms": low, "max_ms": high}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
