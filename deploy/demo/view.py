"""What the spectator sees: a live picture on a terminal, plain lines where there is none."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.demo.visitor import Progress, Stage

REFRESH_PER_S = 6
LINES_KEPT = 8
SHOWN_ONE_BY_ONE_MAX = 8
"""With more visitors than that the view sums up."""
_MARKS = {"running": ("▸", "yellow"), "done": ("✓", "green"), "failed": ("✗", "bold red")}


@dataclass
class Step:
    """One step of the story, as the view and the report tell it."""

    title: str
    began_s: float
    state: str = "running"
    note: str = ""
    seconds: float = 0.0


@dataclass
class View:
    """Told what happens; draws it. `people` is filled by the story and read when drawing."""

    console: Console
    people: list[Progress] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)
    _lines: deque[str] = field(default_factory=lambda: deque(maxlen=LINES_KEPT))
    _live: Live | None = None

    @property
    def wall_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began_s

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal to draw on."""
        return self.console.is_terminal

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Draw while the context lasts; nothing to do without a terminal."""
        if not self.is_live:
            yield
            return
        live = Live(
            console=self.console,
            get_renderable=self._picture,
            refresh_per_second=REFRESH_PER_S,
            transient=False,
        )
        with live:
            self._live = live
            try:
                yield
            finally:
                self._live = None

    @contextlib.contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show a step while it is carried out, and how long it took."""
        step = Step(title=title, began_s=time.monotonic())
        self.steps.append(step)
        self._say(title)
        try:
            yield
        except BaseException:
            step.state = "failed"
            raise
        else:
            step.state = "done"
        finally:
            step.seconds = time.monotonic() - step.began_s

    def note(self, text: str) -> None:
        """Show what the running step is at."""
        if self.steps:
            self.steps[-1].note = text
        self._say(f"  {text}")

    def tell(self, progress: Progress, text: str) -> None:
        """Show what a visitor sees or does."""
        line = f"visitor {progress.person.number}: {text}"
        if len(self.people) <= SHOWN_ONE_BY_ONE_MAX or progress.stage is Stage.FAILED:
            self._lines.append(f"{self.wall_s:6.1f} s  {line}")
            self._say(f"  {line}")

    def show(self, *what: RenderableType) -> None:
        """Print something that stays: a table, a sentence."""
        self.console.print(*what)

    def _say(self, text: str) -> None:
        if not self.is_live:
            self.console.print(f"{self.wall_s:6.1f} s  {text}", highlight=False, markup=False)

    # --- drawing

    def _picture(self) -> RenderableType:
        parts: list[RenderableType] = [self._steps()]
        if self.people:
            one_by_one = len(self.people) <= SHOWN_ONE_BY_ONE_MAX
            parts.append(self._each() if one_by_one else self._summary())
        if self._lines:
            parts.append(Text("\n".join(self._lines), style="dim", no_wrap=True))
        return Panel(
            Group(*parts),
            title="[bold]Minutes: watch an ad, earn minutes, be connected[/]",
            subtitle=f"{self.wall_s:.0f} s",
        )

    def _steps(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for step in self.steps:
            mark, style = _MARKS[step.state]
            running = step.state == "running"
            seconds = time.monotonic() - step.began_s if running else step.seconds
            table.add_row(
                Text(mark, style=style),
                Text(step.title, style="bold" if running else ""),
                Text(f"{seconds:5.1f} s", style="cyan"),
                Text(step.note if running else "", style="dim"),
            )
        return table

    def _each(self) -> Table:
        table = Table(expand=True, box=None, padding=(0, 1))
        for column in ("visitor", "stage", "ad", "available", "reserved", "call", "talk"):
            table.add_column(column, justify="left" if column in {"stage", "call"} else "right")
        for progress in self.people:
            style = {Stage.FAILED: "red", Stage.DONE: "green"}.get(progress.stage, "")
            table.add_row(
                str(progress.person.number),
                progress.stage.value,
                _bar(progress),
                _seconds(progress.available_ms),
                _seconds(progress.reserved_ms),
                progress.call_status,
                _talk(progress),
                style=style,
            )
        return table

    def _summary(self) -> Table:
        n_by_stage = Counter(progress.stage for progress in self.people)
        table = Table.grid(padding=(0, 1))
        for stage in Stage:
            n = n_by_stage[stage]
            bar = ProgressBar(total=len(self.people), completed=n, width=40)
            table.add_row(stage.value, Text(str(n), style="bold"), bar)
        total_ms = sum(progress.available_ms + progress.reserved_ms for progress in self.people)
        table.add_row("credit, all", Text(_seconds(total_ms), style="bold"))
        return table


def _bar(progress: Progress) -> RenderableType:
    if not progress.ad_duration_ms:
        return Text("")
    return ProgressBar(total=progress.ad_duration_ms, completed=progress.ad_ms, width=16)


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.3f} s"


def _talk(progress: Progress) -> str:
    if progress.talk_ms is not None:
        return _seconds(progress.talk_ms)
    if progress.talking_since_s is None:
        return ""
    return f"{time.monotonic() - progress.talking_since_s:.1f} s"
