"""The picture of a run: bars on a log axis that begin at bare C, by layer, hostline's in full colour.

matplotlib is imported here and nowhere else, and only when something is drawn. The same results give the same bytes.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from xml.sax.saxutils import escape as escape_xml

from hostline.bench.arranged import (
    LAYERS,
    UNITS,
    Case,
    arrange,
    chart_legend,
    chart_title,
    kind_of,
    number,
    ordered,
    panel_name,
    ratio_text,
    run_line,
    side_by_side,
)
from hostline.bench.results import Measurement, Results

__all__ = ["FORMATS", "check", "draw", "picture"]

FORMATS = (".svg", ".png")

# Okabe and Ito's blue, vermilion and green: told apart with every kind of colour blindness, and in grey by their order.
_COLOURS = {"raw": "#0072b2", "framed": "#c44e00", "typed": "#007a5a"}
_OTHER = "#7a4a8a"
_BACKGROUND = "#faf9f6"
_INK = "#1f2328"
_QUIET = "#5b626a"
_GRID = "#dddad2"
# How much of the background is in the colour of a bar that is not hostline's.
_MUTED = 0.62

# Inches. The width is that of a column of text: shown in 1:1, the smallest text is 12 pixels high.
_WIDTH = 7.2
_ROW = 0.215
_PAD = 0.16
_GAP = 0.22
_HEAD = 0.66
_ABOVE = 0.21
_BELOW = 0.36
_FOOT = 0.34
# Panels side by side at most, and how narrow they may be.
_NARROWEST = 1.2
_COLUMNS = 3

# Points.
_TEXT = 9.0

# What stands behind text, so that no grid line runs through it.
_BEHIND = {"facecolor": _BACKGROUND, "edgecolor": "none", "pad": 0.6}

_FONTS = "'DejaVu Sans', Verdana, 'Segoe UI', Helvetica, Arial, sans-serif"


def check(path: Path) -> None:
    """See to it that a chart can be written, before hours of measuring.

    Raises:
        ValueError: The name ends neither in .svg nor in .png, or no file of that name can be written.
        ModuleNotFoundError: matplotlib is not installed; the text names the extra.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"chart {path.name!r} must end in {' or '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise ValueError(f"chart {str(path)!r}: there is no directory {str(path.parent)!r}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"chart {str(path)!r} cannot be written")
    _need_matplotlib()


def draw(results: Results, path: Path) -> list[Path]:
    """Write the chart of each workload; the first is `path`, the others are beside it with the workload in their name.

    Args:
        results: The run.
        path: A name that ends in .svg or .png.

    Returns:
        What was written: `out.svg`, `out-transfer.svg`, ...

    Raises:
        ValueError: There is nothing to draw, or it cannot be written there.
        ModuleNotFoundError: matplotlib is not installed.
        OSError: A file cannot be written.
    """
    check(path)
    workloads = list(dict.fromkeys(case.workload for case in arrange(results)))
    if not workloads:
        raise ValueError("there is nothing to draw: the results have no measurements")
    written = []
    for place, workload in enumerate(workloads):
        target = path if not place else path.with_name(f"{path.stem}-{workload}{path.suffix}")
        new = target.with_name(f".{target.name}.new")
        new.write_bytes(picture(results, workload, format=path.suffix.lower()[1:]))
        os.replace(new, target)
        written.append(target)
    return written


def picture(results: Results, workload: str, cases: Sequence[str] | None = None, *, format: str = "svg") -> bytes:
    """Return the chart of one workload.

    Args:
        results: The run.
        workload: Which.
        cases: Names of its cases; all of them unless given.
        format: `svg` or `png`.

    Raises:
        ValueError: The run has none of these.
        ModuleNotFoundError: matplotlib is not installed.
    """
    wanted = [c for c in arrange(results) if c.workload == workload and (cases is None or c.name in cases)]
    if not wanted:
        raise ValueError(f"the results have no {workload}" + (f" of {', '.join(cases)}" if cases else ""))
    _need_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # nobody's own style
        matplotlib.rcParams.update(
            {"svg.hashsalt": "hostline", "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": _TEXT}
        )
        figure = _figure(results, wanted)
        out = io.BytesIO()
        if format == "png":
            figure.savefig(out, format="png", dpi=160, facecolor=_BACKGROUND, metadata={"Software": None})
            return out.getvalue()
        empty = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(out, format="svg", facecolor=_BACKGROUND, metadata=empty)
        return _for_readers(out.getvalue().decode(), wanted).encode()


def _need_matplotlib() -> None:
    try:
        found = importlib.util.find_spec("matplotlib")
    except ValueError:  # sys.modules holds a None in its place
        found = None
    if found is None:
        raise ModuleNotFoundError(
            "charts need matplotlib, which the extra hostline[bench] brings: pip install 'hostline[bench]'",
            name="matplotlib",
        )


def _for_readers(svg: str, cases: Sequence[Case]) -> str:
    """Give an SVG a title and a description for those who hear it, and fonts that every system has one of."""
    described = [f"{case.name}: {m.subject} {_Scale.text(case, m)}" for case in cases for m in case.measurements]
    about = f"<title>{escape_xml(chart_title(cases))}</title>\n<desc>{escape_xml('; '.join(described))}</desc>\n"
    svg = re.sub(r"'DejaVu Sans'(?:, [^;\"]*)?", _FONTS, svg)
    return re.sub(r"(<svg [^>]*)>\n?", lambda m: f'{m[1]} role="img">\n {about}', svg, count=1)


# --- the parts ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scale:
    """Hold the horizontal axis that every panel with this kind of figure shares, so that bars can be compared.

    Attributes:
        is_ratio: Whether it counts in times of the reference; else in the unit of its figures.
        low: Where it begins.
        high: Where it ends, the room for the text beside the longest bar included.
        inches: How long it is.
    """

    is_ratio: bool
    low: float
    high: float
    inches: float

    @classmethod
    def over(cls, cases: Sequence[Case], inches: float) -> Self:
        """Make the scale on which all figures of these cases have room."""
        values = [value for case in cases for m in case.measurements if (value := cls.value(case, m)) is not None] or [
            1.0
        ]
        is_ratio = cases[0].reference is not None
        low, high = (min([*values, 1.0]), max([*values, 1.0])) if is_ratio else (min(values), max(values))
        beside = 0.12 + 0.085 * max((len(cls.text(case, m)) for case in cases for m in case.measurements), default=0)
        before = 0.04 if is_ratio else 0.35  # where there is no line to begin at, the shortest bar is seen as one
        decades = max(math.log10(high / low), 0.6)
        each = decades / max(0.3, inches - before - beside)
        return cls(is_ratio, low / 10 ** (before * each), low * 10 ** (decades + beside * each), inches)

    @staticmethod
    def value(case: Case, measurement: Measurement) -> float | None:
        """Return where a measurement stands on it; None for one that cannot be drawn."""
        value = measurement.value if case.reference is None else measurement.ratio
        return value if value is not None and math.isfinite(value) and value > 0 else None

    @staticmethod
    def text(case: Case, measurement: Measurement) -> str:
        """Return what stands beside the bar."""
        return number(measurement.value) if case.reference is None else ratio_text(measurement.ratio) or "no ratio"

    def ticks(self) -> dict[float, str]:
        """Return the marks on it, as many as can be read."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for steps, stride in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
            found = [step * 10.0**power for power in powers if power % stride == 0 for step in steps]
            marks = {tick: text for tick in found if self._has_room(tick, text := self._tick_text(tick))}
            if sum(0.16 + 0.085 * len(text) for text in marks.values()) <= self.inches:
                break
        return marks

    def _tick_text(self, tick: float) -> str:
        if self.is_ratio:
            return f"{tick:g}x"
        return f"{tick / 1e6:g}M" if tick >= 1e6 else f"{tick / 1e3:g}k" if tick >= 1e4 else f"{tick:,g}"

    def _has_room(self, tick: float, text: str) -> bool:
        place = self.inches * math.log10(tick / self.low) / math.log10(self.high / self.low)
        return 0 <= place <= self.inches + _PAD - 0.045 * len(text)


@dataclass(frozen=True, slots=True)
class _Block:
    """Hold cases that are drawn side by side on the same rows.

    Attributes:
        cases: One for each column.
        rows: A layer and a subject of it, or None for the layer's heading.
    """

    cases: Sequence[Case]
    rows: Sequence[tuple[str, Measurement | None]]

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Self:
        """Put the subjects of all cases into the order of the first case that has them."""
        firsts: dict[str, Measurement] = {}
        for case in cases:
            for measurement in case.measurements:
                firsts.setdefault(measurement.subject, measurement)
        rows: list[tuple[str, Measurement | None]] = []
        for measurement in ordered(firsts.values()):
            if not rows or rows[-1][0] != measurement.layer:
                rows.append((measurement.layer, None))
            rows.append((measurement.layer, measurement))
        return cls(cases, rows)

    @property
    def tall(self) -> float:
        """Return the height of its rows in inches."""
        return len(self.rows) * _ROW


def _figure(results: Results, cases: Sequence[Case]) -> Any:
    """Return the figure: cases side by side where they have the same subjects, else one under another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 1))
    labels = _label_width(figure, cases)
    left = _PAD + labels + 0.10
    columns = _COLUMNS
    while columns > 1 and (_WIDTH - left - _PAD + _GAP) / columns - _GAP < _NARROWEST:
        columns -= 1
    blocks = [_Block.of(found) for found in side_by_side(cases, columns)]
    columns = max(len(block.cases) for block in blocks)
    each = (_WIDTH - left - _PAD + _GAP) / columns - _GAP
    above = [_ABOVE * ((len(cases) > 1) + (block.cases[0].reference is not None)) + 0.06 for block in blocks]
    height = _HEAD + sum(above) + sum(block.tall + _BELOW for block in blocks) + _FOOT
    figure.set_size_inches(_WIDTH, height)
    _write(figure, (_PAD, height - 0.30), chart_title(cases), fontsize=12, fontweight="bold")
    _write(figure, (_PAD, height - 0.54), chart_legend(cases), color=_QUIET)
    _write(figure, (_PAD, 0.14), run_line(results, cases), color=_QUIET, fontsize=_TEXT - 0.5)
    top = height - _HEAD
    for block, room in zip(blocks, above, strict=True):
        top -= room + block.tall
        alike = [case for case in cases if kind_of(case) == kind_of(block.cases[0])]
        for column, case in enumerate(block.cases):
            place = ((left + column * (each + _GAP)) / _WIDTH, top / height, each / _WIDTH, block.tall / height)
            axes = figure.add_axes(place, facecolor="none")
            _panel(axes, case, block, _Scale.over(alike, each), panel_name(case, cases) if len(cases) > 1 else "")
            if not column:
                _names(axes, block, labels)
        top -= _BELOW
    return figure


def _label_width(figure: Any, cases: Sequence[Case]) -> float:
    """Return the inches that the longest name takes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    widest = 0.0
    names = {(m.subject, m.is_hostline) for case in cases for m in case.measurements}
    names |= {(LAYERS.get(m.layer, m.layer), True) for case in cases for m in case.measurements}
    for name, is_bold in names:
        text = figure.text(0, 0, name, fontweight="bold" if is_bold else "normal", parse_math=False)
        widest = max(widest, text.get_window_extent(renderer).width / figure.dpi)
        text.remove()
    return min(widest, _WIDTH * 0.45)


# --- ink ---------------------------------------------------------------------------------------------


def _write(figure: Any, place: tuple[float, float], text: str, **style: Any) -> None:
    """Write text at a place in inches from the lower left corner."""
    wide, tall = figure.get_size_inches()
    figure.text(place[0] / wide, place[1] / tall, text, parse_math=False, **{"color": _INK, **style})


def _note(
    axes: Any, text: str, at: tuple[float, float], coords: Any, offset: tuple[float, float], **style: Any
) -> None:
    """Write text at an offset in points from a place in the axes."""
    words = {"ha": "left", "va": "center", "color": _INK, "parse_math": False, "bbox": _BEHIND, **style}
    axes.annotate(text, at, offset, xycoords=coords, textcoords="offset points", **words)


def _panel(axes: Any, case: Case, block: _Block, scale: _Scale, name: str) -> None:
    """Draw the bars of one case."""
    axes.set(xscale="log", xlim=(scale.low, scale.high), ylim=(len(block.rows) - 0.5, -0.5), yticks=[])
    axes.spines[:].set_visible(False)
    ticks = scale.ticks()
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", length=0, labelcolor=_QUIET, labelsize=_TEXT)
    axes.grid(axis="x", color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    begin = 1.0 if scale.is_ratio else scale.low
    corner = ("data", "axes fraction")
    if scale.is_ratio:
        value = case.reference_value
        reference = "bare C" if case.reference == "C" else str(case.reference)
        if value is not None:
            reference += f": {number(value)} {UNITS.get(case.unit, case.unit)}"
        axes.axvline(1.0, color=_INK, linewidth=1.1, zorder=3)
        _note(axes, reference, (1.0, 1), corner, (0, 4), va="bottom")
    if name:
        above = 4 + _ABOVE * 72 * scale.is_ratio
        _note(axes, name, (begin, 1), corner, (0, above), va="bottom", fontweight="bold", fontsize=10.5)
    found = {m.subject: m for m in case.measurements}
    for y, (layer, row) in enumerate(block.rows):
        if row is not None and row.subject in found:
            _bar(axes, y, case, found[row.subject], begin, _COLOURS.get(layer, _OTHER))


def _bar(axes: Any, y: int, case: Case, measurement: Measurement, begin: float, full: str) -> None:
    is_ours = measurement.is_hostline
    value = _Scale.value(case, measurement)
    if value is not None:
        colour = full if is_ours else _mixed(full, _MUTED)
        tall = 0.6 if case.reference is not None else 0.22  # no bar has a length where there is no line to begin at
        axes.barh(y, abs(value - begin), left=min(begin, value), height=tall, color=colour, zorder=2)
        # The end is seen at 1.0x too, where the bar has no length.
        axes.plot([value], [y], "|", markersize=0.6 * _ROW * 72, markeredgewidth=2, color=colour, zorder=4)
    style = {"color": full if is_ours else _QUIET, "fontweight": "bold" if is_ours else "normal"}
    _note(axes, _Scale.text(case, measurement), (max(begin, value or begin), y), "data", (5, 0), zorder=5, **style)


def _names(axes: Any, block: _Block, labels: float) -> None:
    """Write the names of subjects beside their bars, and the headings of layers."""
    edge = ("axes fraction", "data")
    for y, (layer, row) in enumerate(block.rows):
        if row is None:
            heading, colour = LAYERS.get(layer, layer), _COLOURS.get(layer, _OTHER)
            _note(axes, heading, (0, y + 0.12), edge, (-(labels + 0.10) * 72, 0), fontweight="bold", color=colour)
        else:
            style = {"fontweight": "bold"} if row.is_hostline else {"color": _QUIET}
            _note(axes, row.subject, (0, y), edge, (-6, 0), ha="right", **style)


def _mixed(colour: str, share: float) -> str:
    """Return a colour with so much of the background in it."""
    pairs = [(int(colour[i : i + 2], 16), int(_BACKGROUND[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(own * (1 - share) + other * share):02x}" for own, other in pairs)
