// Units, elements and drawings. Text goes in by `textContent` only: it is other people's.

const SVG = 'http://www.w3.org/2000/svg';

export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

export function shape(name, attributes = {}, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/** Sets an element's text, unless it is there already: what is selected stays selected. */
export function say(target, text) {
  const node = typeof target === 'string' ? document.getElementById(target) : target;
  if (node.textContent !== text) node.textContent = text;
}

/** A figure with its unit in small letters. */
export function figure(id, value, unit = '') {
  const node = document.getElementById(id);
  if (node.textContent === value + unit) return;
  node.replaceChildren(value, element('small', { textContent: unit }));
}

export function count(n) {
  return n.toLocaleString('en-US');
}

export function rate(perSecond) {
  if (perSecond === null) return '–';
  if (perSecond >= 100) return count(Math.round(perSecond));
  return perSecond >= 10 || Number.isInteger(perSecond) ? perSecond.toFixed(0) : perSecond.toFixed(1);
}

/** Microseconds, three digits. */
export function span(us) {
  if (us === null || us === undefined) return '–';
  const [value, unit] = us < 1e3 ? [us, 'µs'] : us < 1e6 ? [us / 1e3, 'ms'] : [us / 1e6, 's'];
  return `${value >= 100 || unit === 'µs' ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2)} ${unit}`;
}

export function bytes(n) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let at = 0;
  for (; n >= 1024 && at + 1 < units.length; at += 1) n /= 1024;
  return [n >= 100 || at === 0 || Number.isInteger(n) ? n.toFixed(0) : n.toFixed(1), units[at]];
}

/** How long ago, from milliseconds. */
export function ago(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor(seconds / 60) % 60} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor(seconds / 3600) % 24} h`;
}

/** Nodes by key, of each parent whose children are kept in step. */
const kept = new WeakMap();

/** Keeps a parent's children in step with items: `make` once per key, `update` each time. */
export function keyed(parent, items, keyOf, make, update) {
  if (!kept.has(parent)) kept.set(parent, new Map());
  const known = kept.get(parent);
  const seen = new Set();
  items.forEach((item, index) => {
    const key = keyOf(item);
    if (seen.has(key)) return;
    seen.add(key);
    let node = known.get(key);
    if (!node) known.set(key, node = make(item));
    update(node, item);
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
  });
  for (const [key, node] of known) {
    if (seen.has(key)) continue;
    node.remove();
    known.delete(key);
  }
}

// Phases in the order in which they happen, in the colours of the study reports (Okabe and Ito's, which
// colour-blind people tell apart), hatched where a colour comes twice.
export const PHASES = {
  queue: ['queue', 'var(--queue)'],
  turn: ['turn', '#999999', 'hatched'],
  image: ['image', '#F0E442'],
  network_slot: ['network', '#F0E442', 'hatched'],
  vmm_spawn: ['VMM', '#E69F00'],
  kernel_boot: ['kernel', '#D55E00'],
  init: ['init', '#CC79A7'],
  restore: ['restore', '#56B4E9'],
  resume: ['resume', '#56B4E9', 'hatched'],
  function_ready: ['function ready', '#009E73'],
  request: ['request', 'var(--request)'],
  rest: ['rest of start', 'var(--rest)'],
};

export function patterns() {
  const all = Object.entries(PHASES).filter(([, [, , hatched]]) => hatched).map(([name, [, colour]]) => {
    const pattern = shape('pattern', { id: `hatch-${name}`, width: 5, height: 5, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' });
    pattern.append(shape('rect', { width: 5, height: 5, fill: colour, opacity: 0.35 }), shape('rect', { width: 2.4, height: 5, fill: colour }));
    return pattern;
  });
  document.getElementById('patterns').replaceChildren(...all);
}

export function fill(phase) {
  const [, colour, hatched] = PHASES[phase];
  return hatched ? `url(#hatch-${phase})` : colour;
}

/**
 * Spans of a start for drawing, moved so that the first begins at 0, and the time until all are over. Each is drawn in
 * pieces of [begin, length]: of waiting in the queue, which leaves the start out, what lies before and after it.
 */
export function timeline(phases) {
  const from = Math.min(...phases.map((one) => one.begin_us));
  const place = ({ phase, begin_us, length_us }) => ({ phase, length: length_us, pieces: [[begin_us - from, length_us]] });
  const spans = phases.filter((one) => one.phase !== 'queue' || one.length_us > 0).map(place);
  const [queue, start, request] = ['queue', 'start', 'request'].map((phase) => spans.find((one) => one.phase === phase));
  if (queue && start && request) {
    const [[[begin]], [[began, took]], [[until]]] = [queue.pieces, start.pieces, request.pieces];
    queue.pieces = [[begin, began - begin], [began + took, until - began - took]].filter(([, length]) => length > 0);
  }
  const until = Math.max(1, ...spans.flatMap(({ pieces }) => pieces.map(([begin, length]) => begin + length)));
  return { spans, until };
}

/** One start in one line, `scale` microseconds wide. */
export function bar(start, scale) {
  const { spans } = timeline(start.phases);
  const svg = shape('svg', { width: '100%', height: 14, role: 'img', 'aria-label': 'phases of the start' });
  const behind = (one) => (one.phase === 'start' ? 0 : 1);
  for (const { phase, length, pieces } of [...spans].sort((a, b) => behind(a) - behind(b))) {
    const name = phase === 'start' ? 'rest' : phase;
    if (!PHASES[name]) continue;
    for (const [begin, wide] of pieces) {
      const rect = shape('rect', { x: `${(100 * begin) / scale}%`, width: `${Math.max(0.15, (100 * wide) / scale)}%`, height: 14, fill: fill(name) });
      rect.append(shape('title', {}, `${PHASES[name][0]} ${span(length)}`));
      svg.append(rect);
    }
  }
  return svg;
}

/** One start, a line for each phase. */
export function waterfall(start, width) {
  const { spans, until } = timeline(start.phases);
  const rows = spans.filter(({ phase }) => PHASES[phase] || phase === 'start' || phase === 'total');
  const [left, right, height] = [104, 66, 21];
  const plot = Math.max(60, width - left - right);
  const svg = shape('svg', { width, height: rows.length * height + 20, role: 'img', 'aria-label': 'waterfall of the start' });
  for (let part = 0; part <= 4; part += 1) {
    const x = left + (plot * part) / 4;
    svg.append(shape('line', { class: 'grid', x1: x, x2: x, y1: 0, y2: rows.length * height }));
    svg.append(shape('text', { x, y: rows.length * height + 15, 'text-anchor': 'middle' }, part === 0 ? '0' : span((until * part) / 4)));
  }
  rows.forEach(({ phase, length, pieces }, index) => {
    const y = index * height;
    const parent = phase === 'start' || phase === 'total';
    const name = parent ? phase : PHASES[phase][0];
    svg.append(shape('text', { class: 'strong', x: left - 10, y: y + 14, 'text-anchor': 'end' }, name));
    for (const [begin, wide] of pieces) {
      svg.append(shape('rect', {
        x: left + (plot * begin) / until, width: Math.max(1.5, (plot * wide) / until),
        y: y + (parent ? 7 : 3), height: parent ? 6 : 14, rx: 1.5, fill: parent ? 'var(--rest)' : fill(phase),
      }));
    }
    svg.append(shape('text', { class: 'strong', x: width - 2, y: y + 14, 'text-anchor': 'end' }, span(length)));
  });
  return svg;
}

/** A chart of the last `seconds`. `series` are lists of [seconds since 1970, value]; `log` draws tenfold steps. */
export function chart(box, { now, seconds, series, format, log = false, empty, tell }) {
  const width = Math.max(200, box.clientWidth);
  const height = Math.max(80, box.clientHeight);
  const [left, bottom, top, right] = [56, 20, 8, 6];
  const values = series.flatMap((one) => one.points.map(([, value]) => value)).filter((value) => value > 0 || !log);
  const svg = shape('svg', { width, height, role: 'img', 'aria-label': box.id });
  const plot = { width: width - left - right, height: height - top - bottom };
  const x = (at) => left + plot.width * (1 - (now - at) / seconds);
  let [low, high] = [0, nice(Math.max(0, ...values))];
  let ticks = [0, high / 2, high];
  if (log) {
    const exponents = values.map((value) => Math.log10(value));
    low = Math.floor(Math.min(2, ...exponents));
    high = Math.max(low + 3, Math.ceil(Math.max(...exponents, 3)));
    ticks = Array.from({ length: high - low + 1 }, (_, n) => 10 ** (low + n));
  }
  const y = (value) => {
    const part = log ? (Math.log10(Math.max(value, 1e-9)) - low) / (high - low) : value / high;
    return top + plot.height * (1 - Math.min(1, Math.max(0, part)));
  };
  for (const tick of ticks) {
    svg.append(shape('line', { class: 'grid', x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    svg.append(shape('text', { x: left - 8, y: y(tick) + 4, 'text-anchor': 'end' }, format(tick)));
  }
  for (let minute = 0; minute <= seconds / 60; minute += 1) {
    const anchor = minute === 0 ? 'end' : 'middle';
    svg.append(shape('text', { x: x(now - minute * 60), y: height - 4, 'text-anchor': anchor }, minute === 0 ? 'now' : `−${minute} min`));
  }
  for (const { points, name, area } of series) {
    for (const run of runs(points)) {
      const path = run.map(([at, value], index) => `${index ? 'L' : 'M'}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join('');
      if (area) svg.append(shape('path', { class: 'area', d: `${path}L${x(run.at(-1)[0]).toFixed(1)} ${y(0)}L${x(run[0][0]).toFixed(1)} ${y(0)}Z` }));
      if (run.length > 1) svg.append(shape('path', { class: `line ${name}`, d: path }));
      else svg.append(shape('circle', { class: `point ${name}`, cx: x(run[0][0]), cy: y(run[0][1]), r: 2 }));
    }
  }
  if (values.length === 0 || (!log && Math.max(...values) === 0)) {
    svg.append(shape('text', { x: left + plot.width / 2, y: top + plot.height * 0.25 + 8, 'text-anchor': 'middle' }, empty));
  }
  if (box.pointed !== undefined) {
    const at = now - seconds * (1 - (box.pointed - left) / plot.width);
    svg.append(shape('line', { class: 'cursor', x1: box.pointed, x2: box.pointed, y1: top, y2: top + plot.height }));
    tell(at);
  } else {
    tell(null);
  }
  box.replaceChildren(svg);
}

/** Stretches without a gap of more than three seconds. */
function runs(points) {
  const all = [];
  for (const point of points) {
    const last = all.at(-1);
    if (last && point[0] - last.at(-1)[0] <= 3.5) last.push(point);
    else all.push([point]);
  }
  return all;
}

function nice(most) {
  if (most <= 0) return 10;
  const step = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 4, 6, 8, 10].map((n) => n * step).find((n) => n >= most) ?? 10 * step;
}
