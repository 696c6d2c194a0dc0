"""Object-aware contrastive learning in plain PyTorch, float64: gradients by autograd through the activations, every score written
out, maps by torch's bicubic interpolation, backgrounds pixel by pixel.

    benches/peers/golden.sh object_aware

Formulas: crates/methods/src/object_aware/mod.rs. Planted cases: duplicated images, an image without activations (its map is 0
everywhere), batches of two, the departures of the public code, all channels (Grad-CAM), images without a background.
"""

import numpy
import torch
from golden import Golden, narrow, unit

F = torch.nn.functional


def scores(settings, g, keys):
    """s of every image; `keys` has the projections of each round, constants."""
    b = len(g)
    own = (g * keys[0]).sum(1)
    others = 1 - torch.eye(b, dtype=torch.float64)
    compat = settings["compat"]
    if compat["counted_own_keys"]:
        # Multiplied by 0 before the exponential: e^0 of every round.
        negatives = sum(((g @ k.T) * others).exp().sum(1) for k in keys)
    else:
        negatives = sum(((g @ k.T).exp() * others).sum(1) for k in keys)
    positive = own.exp().sum().expand(b) if compat["batch_positives"] else own.exp()
    return (positive / negatives).log()


def score_case(golden, generator, name, rows, rounds, compat, duplicated=False):
    dimension = 6
    g = unit(generator, rows, dimension)
    # Later rounds are near the first one, as masked images are.
    keys = [g] + [narrow(0.8 * g + 0.3 * unit(generator, rows, dimension)) for _ in range(rounds - 1)]
    if duplicated:
        for k in keys:
            k[1] = k[0]
    x = torch.tensor(narrow(g if rounds == 1 else keys[-1]), requires_grad=True)
    s = scores({"compat": compat}, x, [torch.tensor(k) for k in keys])
    if s.sum().abs() < 0.5 * s.norm() or s.abs().max() < 0.5:
        # A small sum of large scores is known to their rounding: drawn again.
        return score_case(golden, generator, name, rows, rounds, compat, duplicated)
    (gradient,) = torch.autograd.grad(s.sum(), [x])
    results = {"total": s.sum().reshape(1), "scores": s, "gradient.0": gradient}
    inputs = {"x.0": x, "keys": numpy.concatenate(keys)}
    golden.case(f"score/{name}", {"rounds": rounds, "compat": compat}, inputs, results)


def masks_case(golden, generator, name, settings, sizes, duplicated=False, empty=False):
    b, channels, (h, w), (height, width) = sizes
    hidden, dimension, rounds = 16, 5, settings["rounds"]
    images = narrow(generator.standard_normal((b, 3, height, width)))
    # Sparse, as behind a ReLU.
    drawn = [generator.standard_normal((b, channels, h, w)) - 0.5 for _ in range(rounds)]
    activations = [narrow(2 * a.clip(0)) for a in drawn]
    if duplicated:
        images[1] = images[0]
        for a in activations:
            a[1] = a[0]
    if empty:
        for a in activations:
            a[b - 1] = 0
    shapes = [(channels, hidden), (hidden,), (hidden, dimension)]
    weights = [narrow(0.6 * generator.standard_normal(shape)) for shape in shapes]
    w1, bias, w2 = map(torch.tensor, weights)
    pixels = torch.tensor(images)
    color = pixels.mean((0, 2, 3))
    keys, results, mask = [], {}, None
    for t, values in enumerate(activations):
        a = torch.tensor(values, requires_grad=True)
        projected = (a.mean((2, 3)) @ w1 + bias).relu() @ w2
        g = projected / projected.norm(dim=1, keepdim=True)
        keys.append(g.detach())
        s = scores(settings, g, keys)
        (gradient,) = torch.autograd.grad(s.sum(), [a])
        alpha = gradient.mean((2, 3)) if settings["weights"] == "signed" else gradient.mean((2, 3)).relu()
        sizes_of_alpha = alpha.norm(dim=1)
        cam = (alpha[:, :, None, None] * a.detach()).sum(1, keepdim=True).relu()
        cam = F.interpolate(cam, size=(height, width), mode="bicubic", align_corners=False)[:, 0]
        least, most = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
        # Scores and gradients are known to the rounding of their terms, and a map's norm magnifies that by its largest value
        # over its range. What is a small difference of large numbers is drawn again.
        is_small = s.norm() < 0.2 or sizes_of_alpha.min() < 0.2 * sizes_of_alpha.max()
        if is_small or sizes_of_alpha.max() < 1e-3 or (most - least < 0.5 * most).any():
            return masks_case(golden, generator, name, settings, sizes, duplicated, empty)
        cam = (cam - least) / (most - least + 1e-20)
        mask = cam if mask is None else torch.maximum(mask, cam)
        blend = pixels * (1 - mask[:, None]) + color[None, :, None, None] * mask[:, None]
        results |= {f"scores.{t}": s, f"alpha.{t}": alpha, f"mask.{t}": mask, f"blend.{t}": blend}
    inputs = {"images": images} | {f"a.{t}": a for t, a in enumerate(activations)}
    inputs |= {f"w.{i}": weight for i, weight in enumerate(weights)}
    golden.case(f"masks/{name}", settings, inputs, results)


def background(image, mask, threshold, short):
    """Or None."""
    height, width = mask.shape
    inside = numpy.argwhere(mask >= numpy.float32(threshold))
    if len(inside) == 0:
        return None
    (top, left), (bottom, right) = inside.min(0), inside.max(0) + (0 if short else 1)
    if top >= bottom or left >= right:
        return None
    strips = [
        image[:, :top, :],
        image[:, :, :left],
        image[:, :, right:],
        image[:, bottom:, :],
    ]
    strip = max(strips, key=lambda s: s.shape[1] * s.shape[2])
    if strip.size == 0:
        return None
    times = (1, -(-height // strip.shape[1]), -(-width // strip.shape[2]))
    tiled = numpy.tile(strip, times)[:, :height, :width]
    out = image.copy()
    out[:, top:bottom, left:right] = tiled[:, top:bottom, left:right]
    return out


def mixup_case(golden, generator, name, short):
    b, height, width, threshold = 6, 7, 9, 0.2
    images = narrow(generator.standard_normal((b, 3, height, width)))
    views = narrow(generator.standard_normal((b, 3, height, width)))
    masks, of_views = numpy.zeros((b, height, width)), narrow(generator.random((b, height, width)))
    for at, (top, left, bottom, right) in enumerate(
        [(1, 2, 4, 6), (0, 0, 7, 4), (3, 0, 7, 9), (0, 0, 7, 9), (0, 0, 0, 0), (2, 2, 5, 7)]
    ):
        masks[at, top:bottom, left:right] = narrow(0.3 + 0.7 * generator.random((bottom - top, right - left)))
    masks[0, 1, 2] = narrow(threshold)
    partners = numpy.array([1, 0, 5, 2, 0, 3], dtype=numpy.uint32)
    mixed = numpy.array([1, 0, 1, 1, 1, 1], dtype=numpy.uint32)
    found = [background(image, mask, threshold, short) for image, mask in zip(images, masks)]
    out = views.copy()
    for at, partner in enumerate(partners):
        if mixed[at] and found[at] is not None and found[partner] is not None:
            m = of_views[at][None]
            out[at] = m * views[at] + (1 - m) * found[partner]
    covered = numpy.stack([image if f is None else f for image, f in zip(images, found)])
    settings = {"threshold": threshold, "short_rectangles": short}
    inputs = {"images": images, "masks": masks, "views": views, "of_views": of_views}
    inputs |= {"partners": partners, "mixed": mixed}
    golden.case(f"mixup/{name}", settings, inputs, {"backgrounds": covered, "views": out})


def main():
    golden, generator = Golden("object_aware"), numpy.random.default_rng(11)
    compats = {
        "plain": {"batch_positives": False, "counted_own_keys": False},
        "batch-positives": {"batch_positives": True, "counted_own_keys": False},
        "counted-own-keys": {"batch_positives": False, "counted_own_keys": True},
        "public-code": {"batch_positives": True, "counted_own_keys": True},
    }
    for name, compat in compats.items():
        score_case(golden, generator, f"{name}-first", 7, 1, compat)
        # Where the batch's positives are summed, many rounds keep the score from being near 0.
        score_case(golden, generator, f"{name}-tenth", 7, 10, compat)
    score_case(golden, generator, "two-images", 2, 1, compats["plain"])
    score_case(golden, generator, "two-images-fourth", 2, 4, compats["public-code"])
    score_case(golden, generator, "duplicated", 6, 2, compats["plain"], duplicated=True)

    def settings(rounds, weights="positive", compat="plain"):
        return {"rounds": rounds, "weights": weights, "compat": compats[compat]}

    usual = (4, 10, (4, 3), (7, 8))
    masks_case(golden, generator, "one-round", settings(1), usual)
    masks_case(golden, generator, "three-rounds", settings(3), usual)
    masks_case(golden, generator, "grad-cam", settings(1, "signed"), usual)
    masks_case(golden, generator, "grad-cam-rounds", settings(2, "signed"), usual)
    masks_case(golden, generator, "public-code", settings(3, compat="public-code"), usual)
    masks_case(golden, generator, "two-images", settings(2), (2, 6, (3, 3), (8, 8)))
    masks_case(golden, generator, "duplicated", settings(2), usual, duplicated=True)
    masks_case(golden, generator, "empty", settings(2), usual, empty=True)
    masks_case(golden, generator, "smaller", settings(2), (3, 8, (7, 7), (5, 4)))
    mixup_case(golden, generator, "plain", False)
    mixup_case(golden, generator, "public-code", True)
    golden.write()


if __name__ == "__main__":
    main()
