"""`reelbrush flow-error STYLIZED --content CONTENT`: measures the optical-flow error of a clip."""

import argparse
import json
import sys
from pathlib import Path

from ...common import pictures
from ...flow import measure, store
from ...flow.charts import error_heatmap, error_plot
from ...flow.conventions import CHOICES, PRESETS, convention
from ...flow.estimate import METHODS
from ...video.lazy_video import LazyVideo


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stylized", help="the clip to measure: a video file or a folder of PNG frames")
    motion = parser.add_mutually_exclusive_group(required=True)
    motion.add_argument("--content", help="the clip before it was stylized")
    motion.add_argument(
        "--flow", help="instead of the content, its flow: a saved flow or a folder of .flo files"
    )
    parser.add_argument(
        "--preset", default="custom", choices=PRESETS, metavar="NAME", help=", ".join(PRESETS)
    )
    parser.add_argument("--method", default="dis-medium", choices=METHODS, help="how the motion is estimated")
    parser.add_argument("--strides", default="1", help='the distances between compared frames, such as "1,8"')
    for name, allowed in CHOICES.items():
        parser.add_argument(f"--{name}", default=allowed[0], choices=allowed)
    parser.add_argument("--table", metavar="FILE.csv", help="write the table")
    parser.add_argument("--plot", metavar="FILE.png", help="write the plot")
    parser.add_argument("--heatmap", metavar="FILE.png", help="write the heat map")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    rule = convention(args.preset, args.strides, *(getattr(args, name) for name in CHOICES))
    stylized = LazyVideo.from_file(args.stylized)
    if args.flow:
        flow = store.load(Path(args.flow))
        report = measure.batch(stylized.get_components().images, None, flow, rule, args.method)
    else:
        report = measure.stream(stylized, LazyVideo.from_file(args.content), rule, args.method)
    if args.table:
        Path(args.table).write_text(report.table(), encoding="utf-8")
    if args.plot:
        pictures.write(Path(args.plot), error_plot(report)[0])
    if args.heatmap:
        pictures.write(Path(args.heatmap), error_heatmap(report, stylized.height, stylized.width)[0])
    sys.stdout.write(_as_json(report) if args.json else _as_text(report))
    return 0


def _as_text(report: measure.Report) -> str:
    lines = [f"optical-flow error {report.error:.6g}"]
    lines += [f"  {key}: {value}" for key, value in report.description().items()]
    counted = sum(pair.counts for pair in report.pairs)
    lines.append(f"  {report.frames} frames, {counted} of {len(report.pairs)} pairs counted")
    if report.worst:
        lines.append(f"  worst pair {report.worst}: {report.worst.error:.6g}")
    if report.cuts:
        lines.append(f"  cuts before frame {', '.join(map(str, report.cuts))}")
    return "\n".join(lines) + "\n"


def _as_json(report: measure.Report) -> str:
    finite = lambda x: x if x == x else None  # noqa: E731 (JSON has no NaN)
    pairs = [
        {"pair": str(p), "stride": p.stride, "error": finite(p.error), "valid": p.valid, "cut": p.cut}
        for p in report.pairs
    ]
    about = {**report.description(), "frames": report.frames, "cuts": report.cuts}
    return json.dumps({"error": finite(report.error), **about, "pairs": pairs}, indent=2) + "\n"
