// The dashboard: asks the node once a second, while somebody looks, and shows what it says.

import { ago, chart, patterns, rate, say, span } from './draw.js';
import { key, show } from './sections.js';

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
  show(view, before.rates);
  charts();
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
    tell: (at) => say('latency-now', at === null ? '' : `p50 ${span(near(past.p50, at))}, p99 ${span(near(past.p99, at))}, ${when(at)}`),
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

patterns();
loop();
