// The sections of the page below its head, except the charts.

import { PHASES, ago, bar, bytes, count, element, figure, fill, keyed, rate, say, shape, span, timeline, waterfall } from './draw.js';

const $ = (id) => document.getElementById(id);

let view = null;
let perSecond = new Map();
let selected = null;

export const key = (one) => `${one.namespace}/${one.name}`;
const since = (at) => ago(Date.parse(view.at) - Date.parse(at));
const of = (namespace, name) => (namespace === 'default' ? name : `${namespace}/${name}`);

/** Shows what the node says. `rates` are requests a second, by service. */
export function show(told, rates) {
  [view, perSecond] = [told, rates];
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
  say(cells[5], rate(perSecond.get(key(one)) ?? null));
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

const STATES = { ready: ['●', 'good'], starting: ['◐', 'busy'], snapshotting: ['◆', 'busy'], leaving: ['◌', 'quiet'], unready: ['◇', 'bad'], broken: ['✕', 'bad'] };

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
