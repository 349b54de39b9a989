// The dashboard: asks the node once a second, while somebody looks, and shows what it says.

import { PHASES, ago, bar, bytes, chart, count, element, figure, fill, keyed, patterns, rate, say, shape, span, timeline, waterfall } from './draw.js';

const PERIOD = 1000;
const PATIENCE = 5000;
const WINDOW = 300;
const STORED = 'vhive-token';

const $ = (id) => document.getElementById(id);
const body = document.body;

/** What the charts draw: [seconds since 1970, value]. */
const past = { rate: [], p50: [], p99: [] };
let before = null;
let view = null;
let selected = null;
let timer = null;
let asking = false;

// What goes wrong in this script shall be seen.
const fault = (message) => {
  body.dataset.fault = message;
  banner(`This page has a fault: ${message}`);
};
addEventListener('error', (event) => fault(event.message));
addEventListener('unhandledrejection', (event) => fault(String(event.reason)));
addEventListener('securitypolicyviolation', (event) => fault(`${event.violatedDirective} refused ${event.blockedURI}`));

function banner(text) {
  $('banner').hidden = text === null;
  say('banner', text ?? '');
}

function state(name, text) {
  if (body.dataset.state !== name) body.dataset.state = name;
  say('state-text', text);
}

/** Takes the token out of the address bar, and keeps it as long as the tab. */
function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get('token');
  if (given) {
    sessionStorage.setItem(STORED, given);
    history.replaceState(null, '', location.pathname);
  }
  return sessionStorage.getItem(STORED);
}

async function ask() {
  const shown = token();
  if (!shown) {
    state('refused', 'no token');
    banner('This page needs the node’s token: run `vhive dashboard` on the node’s host and open the address that it prints.');
    return false;
  }
  let told;
  try {
    const reply = await fetch(`/vhive/v1/overview${before ? '' : '?history=true'}`, {
      headers: { authorization: `Bearer ${shown}` },
      cache: 'no-store',
      credentials: 'omit',
      signal: AbortSignal.timeout(PATIENCE),
    });
    if (reply.status === 401) {
      sessionStorage.removeItem(STORED);
      state('refused', 'token refused');
      banner('The node does not accept this token: run `vhive dashboard` again and open the address that it prints.');
      return false;
    }
    if (!reply.ok) throw new Error(`the node says ${reply.status}`);
    told = await reply.json();
  } catch (error) {
    state('lost', 'no answer');
    const since = view ? `What you see is of ${new Date(view.at).toLocaleTimeString()}. ` : '';
    banner(`The node does not answer (${error.message}). ${since}Asking again every second; is \`vhive node\` running?`);
    return true;
  }
  view = told;
  banner(body.dataset.fault ? `This page has a fault: ${body.dataset.fault}` : null);
  $('main').hidden = false;
  remember();
  show();
  state('live', 'live');
  return true;
}

async function loop() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  try {
    const again = await ask();
    if (again) timer = setTimeout(loop, PERIOD);
  } finally {
    asking = false;
  }
}

document.addEventListener('visibilitychange', loop);
addEventListener('hashchange', loop);
addEventListener('resize', () => view && charts());

/** Adds this moment to the past. */
function remember() {
  const at = Date.parse(view.at) / 1000;
  const ended = new Map(view.services.map((one) => [key(one), one.ended]));
  if (view.history) {
    const known = new Map(view.history.seconds.map((second) => [second.at, second]));
    for (let second = view.history.since; second < Math.floor(at); second += 1) {
      const one = known.get(second);
      past.rate.push([second, one?.requests ?? 0]);
      if (one) latency(second, one);
    }
  }
  const passed = before ? at - before.at : 0;
  // A node that has begun again counts from zero; a gap in looking is a gap in the chart.
  if (before && passed > 0) {
    past.rate.push([at, Math.max(0, view.requests.ended - before.all) / passed]);
    latency(at, view.requests.now);
  }
  const rates = new Map();
  for (const [name, all] of ended) {
    const was = before?.ended.get(name);
    const fresh = was === undefined || passed <= 0 ? null : Math.max(0, all - was) / passed;
    const smooth = before?.rates.get(name);
    const mixed = fresh === null || smooth === null || smooth === undefined ? fresh : smooth * 0.7 + fresh * 0.3;
    rates.set(name, mixed !== null && mixed < 0.05 ? 0 : mixed);
  }
  before = { at, all: view.requests.ended, ended, rates };
  for (const points of Object.values(past)) {
    while (points.length && points[0][0] < at - WINDOW) points.shift();
  }
}

function latency(at, { p50_us, p99_us }) {
  if (p50_us !== null) past.p50.push([at, p50_us]);
  if (p99_us !== null) past.p99.push([at, p99_us]);
}

const key = (one) => `${one.namespace}/${one.name}`;
const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`;
const since = (at) => ago(Date.parse(view.at) - Date.parse(at));
const of = (namespace, name) => (namespace === 'default' ? name : `${namespace}/${name}`);

function show() {
  const { node } = view;
  say('about', `${node.version} · gateway ${node.gateway} · ${node.domain}`);
  const runs = node.runtimes.map(({ name, accelerator }) => {
    const how = accelerator ? ` (${accelerator.accelerator})` : '';
    return `${name}${how}${name === node.default_runtime ? ' *' : ''}`;
  });
  say('runtimes', `runtimes ${runs.join(', ')}`);
  $('runtimes').title = node.runtimes.flatMap(({ name, accelerator }) => (accelerator ? [`${name}: ${accelerator.reason}`] : [])).concat('* unless a service says otherwise').join('\n');
  tiles(node);
  services();
  starts();
  instances();
  snapshots();
  charts();
}

function tiles(node) {
  const { requests } = view;
  const broken = view.services.filter((one) => one.failure).length;
  figure('t-services', count(view.services_total));
  say('t-services-more', broken ? `${broken} cannot start` : `${view.services.filter((one) => one.instances_ready).length} with instances`);
  figure('t-instances', count(view.instances_ready), ` of ${count(node.max_instances)}`);
  say('t-instances-more', view.instances_starting ? `${view.instances_starting} starting` : 'ready');
  const [used, unit] = bytes(node.memory_bytes);
  figure('t-memory', used, ` ${unit} of ${bytes(node.max_memory_bytes).join(' ')}`);
  const part = (100 * node.memory_bytes) / Math.max(1, node.max_memory_bytes);
  $('t-meter-fill').style.width = `${part}%`;
  $('t-meter').classList.toggle('high', part > 90);
  $('t-meter').setAttribute('aria-valuenow', String(Math.round(part)));
  $('t-meter').setAttribute('aria-valuemax', '100');
  figure('t-flight', count(requests.in_flight));
  say('t-flight-more', `${count(requests.queued)} waiting for an instance`);
  figure('t-requests', count(requests.ended));
  say('t-requests-more', `${count(requests.failed)} failed`);
  const [p50, p50Unit = ''] = span(requests.minute.p50_us).split(' ');
  figure('t-latency', p50, p50Unit && ` ${p50Unit}`);
  say('t-latency-more', `p99 ${span(requests.minute.p99_us)}`);
}

function charts() {
  const now = Date.parse(view.at) / 1000;
  const near = (points, at) => points.reduce((best, one) => (Math.abs(one[0] - at) < Math.abs((best ?? [Infinity])[0] - at) ? one : best), null)?.[1] ?? null;
  const when = (at) => `${ago((now - at) * 1000)} ago`;
  const shared = { now, seconds: WINDOW, empty: 'no requests in the last five minutes' };
  const last = past.rate.at(-1)?.[1] ?? null;
  chart($('rate'), {
    ...shared,
    series: [{ name: 'first', points: past.rate, area: true }],
    format: rate,
    tell: (at) => say('rate-now', at === null ? `${rate(last)} per second` : `${rate(near(past.rate, at))} per second, ${when(at)}`),
  });
  chart($('latency'), {
    ...shared,
    series: [{ name: 'second', points: past.p99 }, { name: 'first', points: past.p50 }],
    format: (us) => (us < 1e3 ? `${us} µs` : us < 1e6 ? `${us / 1e3} ms` : `${us / 1e6} s`),
    log: true,
    tell: (at) => say('latency-now', at === null ? 'p50 ━  p99 ╍  tenfold steps' : `p50 ${span(near(past.p50, at))}, p99 ${span(near(past.p99, at))}, ${when(at)}`),
  });
}

for (const id of ['rate', 'latency']) {
  const point = (x) => {
    $(id).pointed = x;
    if (view) charts();
  };
  $(id).addEventListener('pointermove', (event) => point(Math.max(56, event.clientX - $(id).getBoundingClientRect().left)));
  $(id).addEventListener('pointerleave', () => point(undefined));
}

/** Fills a table, or says what to do as long as there is nothing to fill it with. `hint` alternates words and commands. */
function table(id, rows, keyOf, make, update, hint) {
  const section = $(id);
  section.querySelector('table').hidden = rows.length === 0;
  empty(section, rows.length === 0 ? hint : []);
  keyed(section.querySelector('tbody'), rows, keyOf, make, update);
}

function empty(section, hint) {
  const place = section.querySelector('.empty');
  if (place.textContent === hint.join('')) return;
  place.replaceChildren(...hint.map((part, index) => (index % 2 ? element('code', { textContent: part }) : part)));
}

function row(...kinds) {
  const made = element('tr');
  made.cells_ = kinds.map((className) => element('td', { className }));
  made.append(...made.cells_);
  return made;
}

function services() {
  say('services-count', view.services_total > view.services.length ? `the ${view.services.length} liveliest of ${count(view.services_total)}` : '');
  table('services', view.services, key, makeService, updateService, ['No services yet. ', 'vhive apply -f service.yaml', ' makes one; docs/guide/quickstart.md has a first document.']);
}

function makeService() {
  const made = row('name', 'split', '', 'n', 'n', 'n', 'n', 'n', 'n');
  const part = (tag, className) => element(tag, { className });
  const parts = { mark: part('span', 'mark'), title: part('span', 'title'), url: part('div', 'under mono'), image: part('div', 'under'), labels: part('div', 'labels'), failure: element('details', { hidden: true }), message: part('pre', '') };
  parts.failure.append(element('summary', { textContent: 'its last start failed' }), parts.message);
  made.cells_[0].append(parts.mark, parts.title, parts.url, parts.image, parts.labels, parts.failure);
  made.parts = parts;
  return made;
}

function updateService(made, one) {
  const { parts, cells_: cells } = made;
  const [mark, className, title] = one.failure ? ['✕', 'bad', 'its last start failed']
    : one.instances_ready ? ['●', 'good', 'serves']
      : one.instances_starting ? ['◐', 'busy', 'an instance is being started']
        : ['○', 'quiet', 'scaled to zero: the next request starts an instance'];
  say(parts.mark, mark);
  parts.mark.className = `mark ${className}`;
  parts.mark.title = title;
  say(parts.title, of(one.namespace, one.name));
  say(parts.url, one.url);
  parts.url.title = `curl -H 'Host: ${one.host}' http://${view.node.gateway}/`;
  say(parts.image, `${one.image} on ${one.runtime}`);
  keyed(parts.labels, Object.entries(one.labels), ([name]) => name, () => element('span', { className: 'label' }), (label, [name, value]) => say(label, value ? `${name}: ${value}` : name));
  parts.failure.hidden = !one.failure;
  say(parts.message, one.failure ?? '');
  split(cells[1], one);
  say(cells[2], [one.instances_ready && `${count(one.instances_ready)} ready`, one.instances_starting && `${count(one.instances_starting)} starting`].filter(Boolean).join(', ') || 'none');
  say(cells[3], count(one.in_flight));
  say(cells[4], count(one.queued));
  say(cells[5], rate(before.rates.get(key(one)) ?? null));
  say(cells[6], span(one.latency.p50_us));
  say(cells[7], span(one.latency.p99_us));
  say(cells[8], count(one.failed));
  cells[8].className = one.failed ? 'n bad' : 'n';
}

const SHARES = ['#0072B2', '#E69F00', '#009E73', '#CC79A7', '#56B4E9', '#D55E00'];

/** How requests are split between revisions. */
function split(cell, one) {
  const drawn = JSON.stringify([one.traffic, one.latest_revision]);
  if (cell.drawn === drawn) return;
  cell.drawn = drawn;
  const shares = one.traffic.filter(({ percent }) => percent > 0);
  if (shares.length === 0) {
    cell.replaceChildren(element('div', { className: 'under', textContent: `none yet: ${one.latest_revision} has not been ready` }));
    return;
  }
  const svg = shape('svg', { width: '100%', height: 8, role: 'img', 'aria-label': 'traffic between revisions' });
  let x = 0;
  shares.forEach(({ percent }, index) => {
    svg.append(shape('rect', { x: `${x}%`, width: `${percent}%`, height: 8, fill: SHARES[index % SHARES.length] }));
    x += percent;
  });
  const lines = one.traffic.map(({ revision, percent, tag }) => {
    const index = shares.findIndex((share) => share.revision === revision && share.percent === percent);
    const dot = shape('svg', { width: 9, height: 8 });
    if (index >= 0) dot.append(shape('rect', { width: 7, height: 7, fill: SHARES[index % SHARES.length] }));
    const line = element('div', { className: 'under' }, dot, ` ${revision} ${percent} %${tag ? ` · tag ${tag}` : ''}`);
    dot.style.display = 'inline-block';
    return line;
  });
  cell.replaceChildren(svg, ...lines);
}

function starts() {
  const list = view.starts;
  const keyOf = (one) => `${one.sandbox}/${one.at}`;
  const any = view.services.find((one) => one.ready) ?? view.services[0];
  empty($('starts'), list.length ? [] : any
    ? ['No cold start yet. ', `vhive invoke ${any.name}`, ' makes one; ', `vhive evict ${any.name}`, ' stops what idles, so that the next request starts cold again.']
    : ['No cold start yet: the first request to a service makes one.']);
  $('start-detail').hidden = list.length === 0;
  say('starts-about', list.length ? 'on one scale; pick one for its phases' : '');
  const scale = Math.max(1, ...list.map((one) => timeline(one.phases).until));
  const chosen = list.find((one) => keyOf(one) === selected) ?? list[0];
  const part = (className) => element('span', { className });
  keyed($('start-list'), list, keyOf, (one) => {
    const made = element('li');
    made.button = element('button', { type: 'button' });
    made.parts = [part('who'), part('kind'), part('bar'), part('length')];
    made.button.append(...made.parts);
    made.button.addEventListener('click', () => {
      selected = keyOf(one);
      starts();
    });
    made.append(made.button);
    return made;
  }, (made, one) => {
    const [who, kind, line, length] = made.parts;
    say(who, of(one.namespace, one.revision));
    who.title = one.revision;
    say(kind, one.kind);
    if (made.scale !== scale) line.replaceChildren(bar(one, scale));
    made.scale = scale;
    say(length, span(timeline(one.phases).until));
    made.button.setAttribute('aria-pressed', String(one === chosen));
  });
  if (chosen) detail(chosen, keyOf(chosen));
  const used = new Set(list.flatMap((one) => one.phases.map(({ phase }) => (phase === 'start' ? 'rest' : phase))));
  keyed($('legend'), Object.keys(PHASES).filter((name) => used.has(name)), (name) => name, (name) => {
    const swatch = shape('svg', { width: 11, height: 11 });
    swatch.append(shape('rect', { width: 11, height: 11, fill: fill(name) }));
    return element('span', {}, swatch, PHASES[name][0]);
  }, () => {});
}

function detail(one, name) {
  const place = $('start-detail');
  const width = Math.max(260, place.clientWidth);
  const about = [`${one.kind} on ${one.runtime}`, `${since(one.at)} ago`, one.status === null ? 'ahead of any request' : one.status === 0 ? 'no reply' : `replied ${one.status}`, one.fallback].filter(Boolean).join(' · ');
  if (place.drawn !== `${name} ${width}`) {
    place.drawn = `${name} ${width}`;
    place.about = element('p');
    place.replaceChildren(element('h3', { textContent: of(one.namespace, one.revision) }), place.about, waterfall(one, width));
  }
  say(place.about, about);
}

const STATES = { ready: ['●', 'good'], starting: ['◐', 'busy'], snapshotting: ['◆', 'busy'], leaving: ['◌', 'quiet'], broken: ['✕', 'bad'] };

function instances() {
  const any = view.services[0];
  say('instances-count', view.instances.length ? count(view.instances.length) : '');
  table('instances', view.instances, (one) => one.sandbox, () => row('mono', '', '', '', 'n', 'n'), ({ cells_: cells }, one) => {
    const [mark, className] = STATES[one.state] ?? ['?', 'quiet'];
    [one.sandbox, of(one.namespace, one.revision), one.runtime, `${mark} ${one.state}`, count(one.in_flight), since(one.since)].forEach((text, index) => say(cells[index], text));
    cells[3].className = className;
  }, any ? ['Nothing runs. The next request starts an instance: ', `vhive invoke ${any.name}`] : ['Nothing runs.']);
}

function snapshots() {
  const any = view.services[0];
  say('snapshots-count', view.snapshots_total ? `${count(view.snapshots_total)}, ${bytes(view.snapshots_bytes).join(' ')} on disk` : '');
  table('snapshots', view.snapshots, (one) => `${one.digest}/${one.runtime}`, () => row('', '', 'n', 'n', 'n', 'n', 'n'), ({ cells_: cells }, one) => {
    const text = [of(one.namespace, one.revision) + (one.stale ? ' (stale)' : ''), one.runtime, bytes(one.memory_bytes).join(' '), bytes(one.allocated_bytes).join(' '), count(one.working_sets), count(one.clones), `${since(one.used)} ago`];
    text.forEach((cell, index) => say(cells[index], cell));
    cells[0].title = one.digest;
  }, any ? ['No snapshots. With ', 'vhive.dev/snapshot-policy: reap', ' a service’s cold starts come from one; ', `vhive snapshot create ${any.name}`, ' takes one now.'] : ['No snapshots.']);
}

patterns();
loop();
