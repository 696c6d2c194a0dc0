"""Contrastive video representation learning in plain PyTorch, float64, every matrix written out.

    benches/peers/golden.sh cvrl

Both panels as published: scores of the other clips beside those of the own ones, whose diagonal is left out, and the
cross-entropy of the own video's column. Planted cases: two videos, duplicated clips, both clips of a video alike, equal keys.
The value of two videos at the angles 0°, 70° and 20°, 110° is asserted.
"""

import numpy
import torch
from golden import Golden, narrow, unit


def panel(own, other, temperature):
    n = len(own)
    across = own @ other.T / temperature
    within = own @ own.T / temperature
    within = within.masked_fill(torch.eye(n, dtype=torch.bool), -float("inf"))
    return torch.nn.functional.cross_entropy(torch.cat([across, within], 1), torch.arange(n))


def case(golden, name, temperature, first, second):
    h1, h2 = torch.tensor(first, requires_grad=True), torch.tensor(second, requires_grad=True)
    panels = [panel(h1, h2, temperature), panel(h2, h1, temperature)]
    total = panels[0] + panels[1]
    gradients = torch.autograd.grad(total, [h1, h2])
    results = {
        "total": total.reshape(1),
        "panels": torch.stack(panels),
        "gradient.0": gradients[0],
        "gradient.1": gradients[1],
    }
    golden.case(f"loss/{name}", {"temperature": temperature}, {"h.0": first, "h.1": second}, results)


def main():
    golden, generator = Golden("cvrl"), numpy.random.default_rng(11)

    def pair(n=14, dimension=9):
        return unit(generator, n, dimension), unit(generator, n, dimension)

    def angles(*degrees):
        radians = numpy.radians(degrees)
        return numpy.stack([numpy.cos(radians), numpy.sin(radians)], 1)

    first, second = angles(0, 70), angles(20, 110)
    exact = [float(panel(torch.tensor(a), torch.tensor(b), 0.1)) for a, b in ((first, second), (second, first))]
    assert numpy.allclose(exact, [0.134732504, 0.025321164], rtol=0, atol=1e-9), exact
    case(golden, "angles", 1.0, narrow(first), narrow(second))
    case(golden, "plain", 0.1, *pair())
    case(golden, "soft", 1.0, *pair())
    case(golden, "sharp", 0.02, *pair())
    case(golden, "two-videos", 0.5, *pair(n=2))
    case(golden, "many", 0.1, *pair(n=70, dimension=33))
    first, second = pair()
    first[4], second[4] = first[1], second[1]  # the same video twice
    second[9] = second[2]
    case(golden, "duplicates", 0.1, first, second)
    first, second = pair()
    second[5], second[6] = first[5], first[6]  # both clips of a video alike, at the highest score
    case(golden, "clips-alike", 0.2, first, second)
    first, second = pair()
    second[:] = second[0]
    case(golden, "equal-keys", 0.1, first, second)
    first, second = pair()
    case(golden, "opposite", 0.1, first, narrow(-first))
    golden.write()


if __name__ == "__main__":
    main()
