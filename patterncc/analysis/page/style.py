"""The look of the HTML report: one style sheet, light and dark by the reader's setting, and print.

Colours keep one meaning on the whole page and stay apart for colour-blind readers (after Okabe and
Ito): blue is reach, vermilion influence, green FLOPs, purple KV bytes, grey full attention.
"""

CSS = """
:root { color-scheme: light dark;
  --page: #fff; --card: #f6f7f9; --ink: #17202c; --soft: #566275; --line: #dfe4ea; --track: #e9ecf1;
  --reach: #0067a8; --flow: #c44b00; --flops: #00795a; --kv: #9a4a86; --rest: #7d8797;
  --warn: #8a5300; --bad: #b3261e; --good: #00694e;
  --recurrent: #e69f00; --convolution: #009e73; --hybrid: #cc79a7; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11161d; --card: #1a212b; --ink: #e8ecf3; --soft: #9eabbd; --line: #2b3542;
  --track: #26303c;
  --reach: #5db4f0; --flow: #ff9352; --flops: #3ecf9f; --kv: #e29ad0; --rest: #8793a5;
  --warn: #e9b45c; --bad: #ff8f85; --good: #58d3a8; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 Inter, "Segoe UI", system-ui, -apple-system, Roboto, "Helvetica Neue", Arial,
  sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: clamp(26px, 4.6vw, 40px); line-height: 1.15; letter-spacing: -.015em;
  font-weight: 650; margin: 4px 0 10px; }
h2 { font-size: 20px; line-height: 1.25; letter-spacing: -.005em; font-weight: 650; margin: 0; }
h3 { font-size: 15px; font-weight: 600; margin: 0; }
p { margin: 4px 0; max-width: 72ch; }
.eyebrow { color: var(--soft); font-size: 13px; margin: 0; }
.soft { color: var(--soft); }
section { margin-top: 52px; border-top: 1px solid var(--line); padding-top: 20px; }
section > h2 + p { color: var(--soft); margin: 4px 0 0; }
.pair { display: grid; gap: 28px 44px; margin-top: 20px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { display: flow-root; margin: 20px 0 0; min-width: 0; break-inside: avoid; }
.pair > figure { margin: 0; display: flex; flex-direction: column; }
.pair > figure > svg.chart { margin-top: auto; }
.pair > figure > :nth-last-child(2) { margin-bottom: 16px; }
.head { display: flex; flex-wrap: wrap; gap: 2px 10px; align-items: baseline; }
figcaption { color: var(--soft); font-size: 13.5px; margin: 2px 0 0; max-width: 72ch; }
.badge { font-size: 12px; color: var(--soft); white-space: nowrap; }
.badge::before { content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 5px;
  border-radius: 50%; border: 1.5px solid currentColor; vertical-align: -.5px; }
.badge.exact::before { background: var(--good); border-color: var(--good); }
.badge.bounds::before { background: linear-gradient(90deg, var(--warn) 50%, transparent 50%);
  border-color: var(--warn); }
.badge.estimate::before { border-color: var(--warn); }
.badge.wrap { white-space: normal; }
.tiles { display: flex; flex-wrap: wrap; gap: 1px; margin-top: 24px; background: var(--line);
  border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.tile { flex: 1 1 184px; background: var(--page); padding: 14px 16px 12px; }
.tile .name { font-size: 13px; color: var(--soft); display: block; }
.tile b { display: block; font-size: 28px; line-height: 1.25; font-weight: 620;
  letter-spacing: -.01em; font-variant-numeric: tabular-nums; }
.tile b small { font-size: 15px; font-weight: 400; color: var(--soft); letter-spacing: 0; }
.tile .reach { color: var(--reach); } .tile .flow { color: var(--flow); }
.tile .flops { color: var(--flops); } .tile .kv { color: var(--kv); }
svg { overflow: visible; }
svg.chart { display: block; width: calc(100% - 66px); margin: 14px 14px 44px 52px; }
svg.chart.named { width: calc(100% - 104px); margin-left: 90px; }
svg.chart.inline { width: 100%; margin: 0; min-width: 120px; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg text.name { font-size: 12px; }
svg text.strong { fill: var(--ink); font-weight: 600; }
svg text.halo { fill: var(--ink); paint-order: stroke; stroke: var(--page); stroke-width: 4px;
  stroke-linejoin: round; }
svg text.halo.thumb, svg text.halo.end { fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; }
.grid.base { stroke: var(--rest); }
.line { fill: none; stroke-width: 2.25; vector-effect: non-scaling-stroke; stroke-linejoin: round;
  stroke-linecap: round; }
.line.reach { stroke: var(--reach); } .line.flow { stroke: var(--flow); }
.line.flops { stroke: var(--flops); } .line.kv { stroke: var(--kv); stroke-dasharray: 7 4; }
.line.held { stroke: var(--kv); stroke-width: 1.5; stroke-dasharray: 1.5 4; }
.line.full { stroke: var(--rest); stroke-width: 1.25; stroke-dasharray: 2 4; }
.line.faint { stroke-width: 1; stroke-dasharray: 3 3; }
.line.traced { stroke: var(--flow); stroke-dasharray: 5 3; }
.fill.reach { fill: var(--reach); opacity: .2; }
.dot { stroke: var(--page); stroke-width: 1.5; }
.dot.reach, .bar.reach { fill: var(--reach); } .dot.flow, .bar.flow { fill: var(--flow); }
.bar.flops { fill: var(--flops); } .bar.kv { fill: var(--kv); } .bar.faint { opacity: .3; }
.track { fill: var(--track); }
.hit { fill: transparent; } .hit:hover { fill: var(--ink); fill-opacity: .07; }
.mark { stroke: var(--ink); stroke-width: 1.25; }
.thumb { stroke: var(--rest); stroke-width: 1.25; stroke-dasharray: 5 4; }
.end { stroke: var(--reach); stroke-width: 1.25; stroke-dasharray: 1.5 3; }
text.mark, text.thumb, text.end, text.halo { stroke-dasharray: none; }
.beyond { fill: var(--track); }
.lost { stroke: var(--bad); stroke-width: 3; }
.before { fill: var(--page); stroke: var(--reach); stroke-width: 2; }
.chooser { fill: var(--flow); stroke: var(--page); stroke-width: 1; }
.shared { fill: var(--page); stroke: var(--ink); stroke-width: 1.5; }
.band-dense { fill: var(--reach); opacity: .2; } .band-sparse { fill: var(--reach); opacity: .055; }
.band-recurrent { fill: var(--recurrent); opacity: .24; }
.band-convolution { fill: var(--convolution); opacity: .24; }
.band-hybrid { fill: var(--hybrid); opacity: .3; } .band-none { fill: var(--rest); opacity: .16; }
.paper { fill: var(--card); }
.outline { fill: none; stroke: var(--reach); stroke-width: 1.25;
  vector-effect: non-scaling-stroke; }
.cone { fill: var(--reach); opacity: .22; }
path.s1, path.s2, path.s3, path.s4, path.s5, path.s6, path.s7 { shape-rendering: crispEdges; }
.reach.s1, .reach.s2, .reach.s3, .reach.s4, .reach.s5, .reach.s6 { fill: var(--reach); }
.attention { fill: var(--reach); } .recurrent { fill: var(--recurrent); }
.convolution { fill: var(--convolution); } .hybrid { fill: var(--hybrid); }
.rest.s1, .rest.s2, .rest.s3, .rest.s4, .rest.s5, .rest.s6 { fill: var(--rest); }
.flow.s1, .flow.s2, .flow.s3, .flow.s4, .flow.s5, .flow.s6, .flow.s7 { fill: var(--flow); }
.s1 { opacity: .2; } .s2 { opacity: .34; } .s3 { opacity: .48; } .s4 { opacity: .63; }
.s5 { opacity: .8; } .s6 { opacity: 1; }
.flow.s1 { opacity: .1; } .flow.s2 { opacity: .2; } .flow.s3 { opacity: .32; }
.flow.s4 { opacity: .46; } .flow.s5 { opacity: .62; } .flow.s6 { opacity: .8; }
svg text.on { fill: var(--ink); }
svg text.on5, svg text.on6 { fill: var(--page); font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 8px 0 0; padding: 0;
  list-style: none; font-size: 13px; color: var(--soft); }
.legend svg { width: 22px; height: 12px; margin-right: 6px; vertical-align: -1px; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.ramp { display: inline-flex; align-items: center; gap: 8px; }
.ramp svg { width: auto; margin: 0; }
.scroll { overflow-x: auto; margin-top: 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 14px; }
th, td { text-align: right; padding: 6px 12px; border-bottom: 1px solid var(--line);
  vertical-align: baseline; white-space: nowrap; }
th { font-weight: 500; color: var(--soft); font-size: 13px; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
td.words, th.words { text-align: left; }
td.words, td:first-child { white-space: normal; min-width: 88px; }
td.words:nth-child(2) { min-width: 220px; }
td.words code { overflow-wrap: anywhere; }
td svg.swatch { width: 12px; height: 12px; margin-right: 7px; vertical-align: -1px; }
code { font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); font-size: 13.5px; }
details .scroll { max-height: 420px; overflow-y: auto; }
.masks { display: grid; gap: 22px 20px; margin-top: 20px;
  grid-template-columns: repeat(auto-fill, minmax(min(148px, 100%), 1fr)); }
.masks figure { margin: 0; }
.masks svg { display: block; width: 100%; height: auto; border: 1px solid var(--line); }
.masks figcaption { font-size: 12.5px; overflow-wrap: anywhere; margin-top: 6px; line-height: 1.4; }
.masks figcaption b { color: var(--ink); }
.masks code { font-size: 12px; color: var(--ink); }
.findings { list-style: none; padding: 0; margin: 20px 0 0; display: grid; gap: 10px; }
.findings li { border-left: 3px solid var(--rest); padding: 1px 0 1px 14px; max-width: 84ch; }
.findings .error { border-color: var(--bad); } .findings .warning { border-color: var(--warn); }
.error b { color: var(--bad); } .warning b { color: var(--warn); }
.absent { background: var(--card); border-radius: 6px; padding: 12px 14px; margin-top: 14px;
  max-width: 84ch; }
footer { margin-top: 56px; border-top: 1px solid var(--line); padding-top: 14px; font-size: 13px;
  color: var(--soft); }
footer p { max-width: 84ch; }
@media (max-width: 640px) {
  main { padding: 24px 16px 48px; } .wide { display: none; } section { margin-top: 40px; }
  svg.chart { width: calc(100% - 56px); margin-left: 46px; margin-right: 10px; }
  svg text { font-size: 11px; } .tile b { font-size: 24px; }
  .tile { flex-basis: 140px; padding: 12px 12px 10px; }
  th, td { padding: 6px 8px; } .badge { white-space: normal; } }
@media print {
  :root { color-scheme: light; } main { max-width: none; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  section { margin-top: 28px; break-inside: avoid-page; } .scroll { overflow: visible; } }
"""
