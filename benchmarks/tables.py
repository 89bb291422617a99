"""What `compare.py` shows of its answers: tables, a line in words, a chart; and how they differ from earlier ones."""
import re
import statistics

SLOWER = 1.15  # --check: a ratio may be worse by this factor, times the spread of both subjects in the run


def table(rows, rate):
    """Markdown: the median, the spread, how many times as long as the case's first subject takes, memory, and the rate
    of arithmetic where it is known."""
    head = ["", "seconds", "least to most", "against the first", "peak memory, MiB"]
    head += ["GFLOP/s", "share"] if any(row.gflop for row in rows) else []
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for row in rows:
        cells = [", ".join(part for part in (row.subject, row.case) if part)]
        if row.seconds:
            first = next(other for other in rows if other.case == row.case)
            middle = statistics.median(row.seconds)
            cells += [f"{middle:.4g}", f"{min(row.seconds):.4g} to {max(row.seconds):.4g}",
                      f"{middle / statistics.median(first.seconds):.2f}",
                      f"{row.peak_mib:,.0f}" if row.peak_mib else ""]
            if row.gflop:
                cells += [f"{row.gflop / middle:.0f}", f"{row.gflop / middle / rate:.2f}"]
        lines.append(f"| {' | '.join(cells + [''] * (len(head) - len(cells)))} |")
    return "\n".join(lines)


def in_words(rows):
    """The ratios of the first case in one line."""
    timed = [row for row in rows if row.seconds]
    first, *others = [row for row in timed if row.case == timed[0].case]
    middle = statistics.median(first.seconds)
    if not others:
        return f"{first.subject}: {middle:.3g} seconds"
    ratios = ", ".join(f"{row.subject} {statistics.median(row.seconds) / middle:.2f}" for row in others)
    case = f", {first.case}" if first.case else ""
    return f"In times of what {first.subject} takes ({middle:.3g} s{case}): {ratios}"


def check(before, after):
    """Lines about subjects that ppgfl has become slower against, of the rows of RESULTS.json and of now.

    A machine changes all times alike, so ratios within a question and case are compared: of each peer to ppgfl's first
    subject, and of each other way of ppgfl's to it. One counts as worse beyond `SLOWER` times the spread that both
    subjects had in this run."""
    def ratios(rows):
        found = {}
        for row in rows:
            first = next(one for one in rows if (one["question"], one["case"]) == (row["question"], row["case"]))
            if row["seconds"] and row is not first:
                spread = [max(one["seconds"]) / min(one["seconds"]) for one in (row, first)]
                ratio = statistics.median(row["seconds"]) / statistics.median(first["seconds"])
                key = row["question"], row["case"], first["subject"].split(" (")[0], row["subject"].split(" (")[0]
                found[key] = ratio, spread[0] * spread[1]
        return found

    then = ratios(before)
    for key, (ratio, noise) in ratios(after).items():
        if key not in then:
            continue
        question, case, first, subject = key
        is_ours = subject.startswith(("ppgfl", "infer"))  # against another way of ppgfl's less is better
        worse = ratio / then[key][0] if is_ours else then[key][0] / ratio
        allowed = SLOWER * noise
        yield (worse > allowed, f"{question}{', ' * bool(case)}{case}: {subject} takes {ratio:.2f} times as long as "
               f"{first}, was {then[key][0]:.2f}; {worse:.2f} times as bad, {allowed:.2f} allowed")


WAYS = {"its defaults": "as it is installed", "tuned": "with the environment variables that ppgfl sets itself"}
MEANINGS = {"inference": "exported, one image", "evaluation": "evaluation", "step": "training step",
            "loader": "loading of batches", "augmentations": "loading with augmentation",
            "targets": "targets of an image"}
CASES = {"gfl_r18vd_1x_coco": "R18vd", "gfl_r50_fpn_1x_coco": "R50", "gflv2_r50_fpn_1x_coco": "GFLv2 R50",
         "1 boxes": "1 box"}


def ratios_of(results):
    """{(question, case): {way: PaddleDetection's time over ppgfl's}} of RESULTS.md."""
    ratios, question = {}, ""
    for line in results.splitlines():
        if line.startswith("## "):
            question = line[3:]
        elif line.startswith("| PaddleDetection, "):
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            name = cells[0]
            way = next(way for way in WAYS if name.startswith(f"PaddleDetection, {way}"))
            case = re.sub(r"\([^)]*\)", "", name[len(f"PaddleDetection, {way}"):]).strip(", ")
            ratios.setdefault((question, case), {})[way] = float(cells[3])
    return ratios


def chart(results, path):
    """Bars of PaddleDetection's time over ppgfl's, of the text of RESULTS.md."""
    from matplotlib.figure import Figure

    ratios = ratios_of(results)
    figure = Figure(figsize=(9, 0.62 * len(ratios) + 1.8), layout="constrained")
    axes = figure.subplots()
    for offset, (way, meaning), color in zip((-0.2, 0.2), WAYS.items(), ("#9aa5b1", "#1f6feb")):
        places = [place for place, by_way in enumerate(ratios.values()) if way in by_way]
        values = [by_way[way] for by_way in ratios.values() if way in by_way]
        bars = axes.barh([place + offset for place in places], values, 0.36, label=f"PaddleDetection {meaning}",
                         color=color)
        axes.bar_label(bars, [f"{value:.1f} times" for value in values], padding=3, fontsize=9)
    axes.set_yticks(range(len(ratios)), [", ".join(filter(None, (MEANINGS[question], CASES.get(case, case))))
                                         for question, case in ratios])
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(0.8, 1.9 * max(max(by_way.values()) for by_way in ratios.values()))
    axes.set_xticks([1, 2, 5, 10, 20, 50], ["1\nequally long", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.set_xlabel("PaddleDetection's time over ppgfl's on the same CPU, logarithmic")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=1, frameon=False)
    figure.savefig(path, dpi=130)
