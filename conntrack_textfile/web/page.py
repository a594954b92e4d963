"""The page: the last snapshot in HTML, for people with a browser.

It is one document without scripts and without anything from elsewhere, so that
the strictest Content-Security-Policy can hold it. Bars are drawn in SVG, as
such a policy forbids style attributes. Every value is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import html
import time
from typing import TYPE_CHECKING, NamedTuple

from conntrack_textfile import __version__
from conntrack_textfile.ranking import Ranking, human, rank, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from conntrack_textfile.policy import Connections
    from conntrack_textfile.snapshot import Snapshot

_ROWS = 10
_PROTOCOLS = 256  # all that there can be
_TITLES = {"src": "source", "dst": "destination", "l7protocol": "service", "dport": "port"}


class Overview(NamedTuple):
    """What the page keeps of a snapshot's connections."""

    totals: tuple[tuple[str, str], ...]  # what, and how much
    counts: tuple[tuple[str, list[tuple[str, int]]], ...]  # a title, and words with numbers
    rankings: tuple[tuple[str, Ranking], ...]  # with titles


def overview(connections: Connections) -> Overview:
    """The few numbers that the page shows, of what may be very many."""
    totals = connections.totals
    folded = connections.folded
    names = connections.label_names
    titled = {
        "Top sources": ("src",),
        "Top destinations": ("dst",),
        "Top services": ("l7protocol",),
        "Top keys": names,
        "": ("l4protocol",),
    }
    kept = {title: labels for title, labels in titled.items() if set(labels) <= set(names)}
    ranked = dict(zip(kept, rank(connections, list(kept.values()), _PROTOCOLS), strict=True))
    by_protocol = ranked.pop("", None)
    protocols = by_protocol.rows if by_protocol else []
    return Overview(
        (
            ("Connections", f"{totals.connections:,}"),
            ("Sent", human(totals.sent_bytes)),
            ("Reply", human(totals.reply_bytes)),
            ("Keys", f"{connections.keys:,}" + (f", {folded:,} folded" if folded else "")),
            *([("Filtered", f"{connections.filtered:,}")] if connections.filtered else []),
            *([("Malformed", f"{connections.malformed:,}")] if connections.malformed else []),
            *([("Uncounted", f"{connections.uncounted:,}")] if connections.uncounted else []),
        ),
        (
            (
                "Connections by protocol",
                _sorted({name: sums.connections for (name,), sums in protocols}),
            ),
            ("Connections by state", _sorted(_summed(connections.states))),
            ("Connections by flag", _sorted(_summed(connections.flags))),
        ),
        tuple((title, _cut(ranking)) for title, ranking in ranked.items() if ranking.rows),
    )


def _cut(ranking: Ranking) -> Ranking:
    more = max(0, len(ranking.rows) - _ROWS)
    return ranking._replace(rows=ranking.rows[:_ROWS], others=ranking.others + more)


def render(
    snapshot: Snapshot | None,
    shown: Overview | None,
    *,
    cause: str,
    interval: float,
    telemetry_path: str,
) -> bytes:
    """The page. Without a snapshot or an overview it says why there is none."""
    parts = [*_banners(snapshot, shown, cause)]
    if snapshot is not None:
        parts.append(_facts(snapshot, shown))
    if shown is not None:
        parts += [_count_table(title, counts) for title, counts in shown.counts if counts]
        parts += [_ranking_table(title, ranking) for title, ranking in shown.rankings]
    return _DOCUMENT.format(
        style=_STYLE,
        refresh=max(5, round(interval)),
        body="\n".join(parts),
        metrics=html.escape(telemetry_path),
        version=html.escape(__version__),
    ).encode()


def _banners(snapshot: Snapshot | None, shown: Overview | None, cause: str) -> Iterable[str]:
    if snapshot is None:
        yield _banner("The first snapshot is not finished yet.")
        return
    if not snapshot.success:
        what = "there is no snapshot that is fresh enough to show"
        if shown is not None:
            what = "this is the last good snapshot"
        yield _banner(f"Stale: {what}." + (f" {cause}." if cause else ""))
    for warning in snapshot.warnings.values():
        yield _banner(f"{warning[:1].upper()}{warning[1:]}.")


def _banner(text: str) -> str:
    return f'<p class="banner" role="alert">{html.escape(text)}</p>'


def _facts(snapshot: Snapshot, shown: Overview | None) -> str:
    facts = list(shown.totals) if shown else []
    if snapshot.timestamp is not None and snapshot.duration is not None:
        age = max(0.0, time.time() - snapshot.timestamp)
        facts.append(("Snapshot", f"{age:.0f} s ago, took {snapshot.duration:.2f} s"))
    facts.append(("Read by", snapshot.source))
    items = [
        f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(much)}</dd></div>"
        for what, much in facts
    ]
    entries, limit = snapshot.conntrack.entries, snapshot.conntrack.entries_limit
    if entries is not None and limit:
        text = f"{entries:,} of {limit:,} ({entries / limit:.1%})"
        items.insert(
            0, f'<div class="wide"><dt>Table</dt><dd>{text}{_bar(entries, limit)}</dd></div>'
        )
    return f"<dl>{''.join(items)}</dl>"


def _count_table(title: str, counts: list[tuple[str, int]]) -> str:
    most = counts[0][1]
    rows = [
        f"<tr><th scope=row>{html.escape(word)}</th><td class=n>{number:,}</td>"
        f"<td class=bar>{_bar(number, most)}</td></tr>"
        for word, number in counts
    ]
    return _table(title, "", rows)


def _ranking_table(title: str, ranking: Ranking) -> str:
    heads = [_TITLES.get(label, label.removesuffix("protocol")) for label in ranking.labels]
    head = "".join(f"<th scope=col>{html.escape(text)}</th>" for text in heads)
    head += "<th scope=col class=n>connections</th><th scope=col class=n>sent</th>"
    head += "<th scope=col class=n>reply</th><th></th>"
    most = size(ranking.rows[0][1], ranking.by)
    rows = []
    for values, sums in ranking.rows:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        rows.append(
            f"<tr>{cells}<td class=n>{sums.connections:,}</td>"
            f"<td class=n>{human(sums.sent_bytes)}</td><td class=n>{human(sums.reply_bytes)}</td>"
            f"<td class=bar>{_bar(size(sums, ranking.by), most)}</td></tr>"
        )
    shown = len(ranking.rows)
    of = f", {shown} of {shown + ranking.others:,}" if ranking.others else ""
    return _table(f"{title} by {ranking.by}{of}", f"<thead><tr>{head}</tr></thead>", rows)


def _table(title: str, head: str, rows: list[str]) -> str:
    return (
        f'<section><h2>{html.escape(title)}</h2><div class="scroll"><table>{head}'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _bar(part: int, whole: int) -> str:
    percent = 100 * min(1.0, part / whole) if whole else 0
    return (
        '<svg width="100%" height="8" aria-hidden="true"><rect class="back" width="100%" '
        f'height="8" rx="2"/><rect class="part" width="{percent:.2f}%" height="8" rx="2"/></svg>'
    )


def _summed(counts: dict[tuple[str, str, str], int]) -> dict[str, int]:
    """IPv4 and IPv6 together."""
    sums: dict[str, int] = {}
    for (_, protocol, word), number in counts.items():
        sums[f"{protocol} {word}"] = sums.get(f"{protocol} {word}", 0) + number
    return sums


def _sorted(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


_STYLE = """\
:root { color-scheme: light dark; --text: #1c2430; --dim: #5b6675; --back: #f5f6f8;
  --card: #fff; --line: #dde1e7; --bar: #e3e7ee; --part: #2f6fd0; --warn: #8a4b00;
  --warn-back: #fff1dc; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ee; --dim: #98a3b3; --back: #12161c;
  --card: #1a2028; --line: #2c343f; --bar: #2a323d; --part: #5b9bff; --warn: #ffcf8f;
  --warn-back: #3a2a10; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; background: var(--back);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
header, footer { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; }
h1 { font-size: 1.3rem; margin: 0 0 .6rem; }
h2 { font-size: 1rem; margin: 0 0 .4rem; }
a { color: var(--part); }
footer { color: var(--dim); font-size: .85rem; margin-top: 1rem; }
main { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.banner { grid-column: 1 / -1; margin: 0; padding: .6rem .8rem; border-radius: .4rem;
  color: var(--warn); background: var(--warn-back); border: 1px solid currentColor; }
section, dl { margin: 0; padding: .8rem; min-width: 0; background: var(--card);
  border: 1px solid var(--line); border-radius: .4rem; }
dl { grid-column: 1 / -1; display: grid; gap: .6rem 1.4rem;
  grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
section:last-of-type { grid-column: 1 / -1; }
.wide { grid-column: 1 / -1; }
dt { color: var(--dim); font-size: .85rem; }
dd { margin: 0; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { padding: .2rem .6rem .2rem 0; text-align: left; white-space: nowrap; font-weight: normal; }
thead th { color: var(--dim); }
tbody tr { border-top: 1px solid var(--line); }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.bar { width: 30%; min-width: 4rem; padding-right: 0; }
svg { display: block; }
.back { fill: var(--bar); }
.part { fill: var(--part); }
"""

_DOCUMENT = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="{refresh}">
<title>Connections</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header><h1>Connections</h1><a href="{metrics}">Metrics</a></header>
<main>
{body}
</main>
<footer>conntrack-textfile {version}</footer>
</body>
</html>
"""

_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
