"""Runs the peers and the criterion benches in turn, in rounds, and writes the side-by-side table.

Machines differ, and one machine differs from hour to hour: only ratios of one run count. So every round measures each family
with the peers and with criterion, one right after the other and in alternating order, and a ratio is the median over the
rounds of the ratios within a round. Times are medians over the rounds of the medians within a round.

The inputs are drawn from the same distribution on both sides (standard normal rows, or unit vectors uniform on the sphere;
labels uniform), not the same numbers: no side's time depends on the values.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys

import common

ROOT = common.HERE.parent.parent
US = "consonance"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of a peer per shape and round")
    parser.add_argument("--family", action="append", choices=list(common.SHAPES), help="only this one; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one round at the smallest shapes, to try the harness")
    parser.add_argument("--output", type=pathlib.Path, help="where the table goes")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.repeats = 1, 2
    families = options.family or list(common.SHAPES)
    partial = options.quick or len(families) < len(common.SHAPES)
    default = ROOT / ("target/cpu-side-by-side.md" if partial else "docs/measurements/cpu-side-by-side.md")
    output = options.output or default

    environment = common.pin_threads(dict(os.environ))
    load_before = os.getloadavg()[0]
    benches = [family for family in families if build(family, environment)]
    rounds = []
    for number in range(options.rounds):
        results = {}
        for family in families:
            sides = [lambda: peers(family, options, environment)]
            if family in benches:
                sides.append(lambda: criterion(family, options, environment))
            for side in sides if number % 2 == 0 else reversed(sides):
                try:
                    results.update(side())
                except subprocess.CalledProcessError as error:
                    # The table will say "not measured"; the other families' time is not thrown away.
                    say(f"{family}: {error}")
        rounds.append(results)
        say(f"round {number + 1} of {options.rounds} done")
    text = document(families, rounds, options, load_before)
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = output.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(output)
    print(text)
    say(f"written to {output}")


def say(text):
    print(text, file=sys.stderr, flush=True)


def build(family, environment):
    """Whether the bench of the family exists and builds. A bench that is there and does not build ends the run."""
    if not (ROOT / "benches" / f"{family}.rs").exists() and not (ROOT / "benches" / family / "main.rs").exists():
        say(f"no bench of {family}: not measured")
        return False
    subprocess.run(["cargo", "bench", "--bench", family, "--no-run"], cwd=ROOT, env=environment, check=True)
    return True


def peers(family, options, environment):
    """{(family, peer, shape): milliseconds, or the reason why there are none}"""
    say(f"{family}: peers")
    command = [sys.executable, common.HERE / f"{family}.py", "--repeats", str(options.repeats)]
    command += ["--quick"] if options.quick else []
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    results = {}
    for line in map(json.loads, run.stdout.splitlines()):
        key = (family, line["peer"], tuple(line["shape"]))
        results[key] = line["skipped"] if "skipped" in line else line["median_ms"]
    return results


def criterion(family, options, environment):
    """The medians that criterion leaves in its folder, which is emptied before."""
    say(f"{family}: criterion")
    home = ROOT / "target" / "criterion-side-by-side"
    shutil.rmtree(home, ignore_errors=True)
    command = ["cargo", "bench", "--quiet", "--bench", family, "--", "--noplot", "--sample-size", "10"]
    shapes = list(map(tuple, common.SHAPES[family]["quick" if options.quick else "shapes"]))
    # Not \D: criterion's regular expressions know no Unicode classes.
    patterns = "|".join("[^0-9]+".join(map(str, shape)) for shape in map(significant, shapes))
    command += [f"^{family}/(.*[^0-9])?({patterns})([^0-9]|$)"]
    if options.quick:
        command += ["--warm-up-time", "0.1", "--measurement-time", "0.2"]
    # Criterion's own report goes to standard error, so that standard output holds the table and nothing else.
    subprocess.run(command, cwd=ROOT, env=environment | {"CRITERION_HOME": str(home)}, stdout=sys.stderr, check=True)
    results = {}
    for path in home.glob("**/new/benchmark.json"):
        name = json.loads(path.read_text())["full_id"].removeprefix(f"{family}/")
        who = next((part for part in name.split("/") if not re.search(r"\d", part)), US)
        numbers = significant(map(int, re.findall(r"\d+", name)))
        estimates = json.loads((path.parent / "estimates.json").read_text())
        for shape in shapes:
            if significant(shape) == numbers:
                results[family, who, shape] = estimates["median"]["point_estimate"] / 1e6
    return results


def significant(shape):
    """The numbers of a shape without a leading 1, which a bench of one class may leave out."""
    shape = tuple(shape)
    return shape[1:] if shape[:1] == (1,) else shape


def over_rounds(values):
    """(median, least, greatest), or None without values."""
    values = list(values)
    return (statistics.median(values), min(values), max(values)) if values else None


def times(rounds, key):
    return over_rounds(r[key] for r in rounds if isinstance(r.get(key), float))


def ratios(rounds, family, peer, shape):
    """How many times as fast as the peer we are, per round."""
    pairs = [(r.get((family, peer, shape)), r.get((family, US, shape))) for r in rounds]
    return over_rounds(theirs / ours for theirs, ours in pairs if isinstance(theirs, float) and isinstance(ours, float))


def digits(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def spread(triple):
    middle, low, high = map(digits, triple)
    return middle if low == high else f"{middle} ({low} – {high})"


def table(family, rounds, options):
    about = common.SHAPES[family]
    shapes = list(map(tuple, about["quick" if options.quick else "shapes"]))
    found = {}
    for results in rounds:
        for of_family, name, shape in results:
            if of_family == family:
                found.setdefault(shape, []).append(name)
    lines = [f"## {family}", "", about["about"][0].upper() + about["about"][1:] + ".", ""]
    lines += [f"| {' × '.join(about['columns'])} | who | ms: median over rounds (least – greatest) "
              "| ratio to consonance | goal | |", "|---|---|---:|---:|---:|---|"]
    for shape in shapes:
        title = " × ".join(f"{n:,}" for n in shape)
        goals = {peer: goal for peer, goal in about["goals"].items() if expected(family, peer, shape)}
        names = [US, *goals] + [n for n in found.get(shape, []) if n != US and n not in goals]
        for name in dict.fromkeys(names):
            measured = times(rounds, (family, name, shape))
            reason = next((r[family, name, shape] for r in rounds if isinstance(r.get((family, name, shape)), str)), "")
            shown = spread(measured) if measured else "not measured" + (f" ({reason})" if reason else "")
            ratio = None if name == US else ratios(rounds, family, name, shape)
            verdict = goal = ""
            if name in goals:
                goal = f"≥ {goals[name]:g}"
                verdict = "not measured" if ratio is None else "met" if ratio[0] >= goals[name] else "**not met**"
            lines.append(f"| {title} | {name} | {shown} | {spread(ratio) if ratio else ''} | {goal} | {verdict} |")
            title = ""
    return "\n".join(lines) + "\n"


def expected(family, peer, shape):
    """Which goals belong to which shape: the clusters' peers differ between one class and many."""
    if family != "clusters":
        return True
    return (shape[0] == 1) == (peer != "faiss Kmeans, a loop")


def output_of(*command):
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine():
    model, flags = platform.processor() or platform.machine(), ""
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        text = info.read_text()
        found = re.search(r"^model name\s*: (.*)$", text, re.M)
        model = found[1] if found else model
        known = re.search(r"^flags\s*: (.*)$", text, re.M)
        wanted = ("avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile")
        flags = ", ".join(flag for flag in wanted if known and flag in known[1].split())
    release = pathlib.Path("/etc/os-release")
    system = platform.platform()
    if release.exists():
        pretty = re.search(r'^PRETTY_NAME="?([^"\n]*)', release.read_text(), re.M)
        system = f"{pretty[1]}, {system}" if pretty else system
    return model + (f" ({flags})" if flags else ""), system


def packages():
    names = [re.split("[=<>]", line)[0] for line in (common.HERE / "requirements.txt").read_text().splitlines()]
    found = []
    for name in names:
        if not name or name.startswith("#"):
            continue
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


def document(families, rounds, options, load_before):
    model, system = machine()
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    commit += " with uncommitted changes" if output_of("git", "status", "--porcelain") else ""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    arguments = " ".join(sys.argv[1:])
    head = f"""# CPU: consonance and its peers, side by side

All sides on {common.THREADS} threads, f32, in one run of {len(rounds)} round{"s" if len(rounds) != 1 else ""}. Every round
measures a family with its peers and with criterion right after each other, in alternating order. A time is the median over the
rounds of the medians within a round; a ratio is the peer's time over consonance's, per round, and the median of that: above 1,
consonance is faster. Inputs have the same distribution on both sides, not the same numbers.

| | |
|---|---|
| command | `benches/peers/run.sh{" " + arguments if arguments else ""}` |
| date | {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC |
| machine | {model}, {cores} cores |
| load average before the run | {load_before:.2f} |
| system | {system} |
| rustc | {output_of("rustc", "-V")} |
| commit | {commit} |
| peers | {packages()}, Python {platform.python_version()} |
"""
    return "\n".join([head, *(table(family, rounds, options) for family in families)])


if __name__ == "__main__":
    main()
