
'use strict';

// Everything shown comes from this server: /fsm, /history, /events, /status, /metrics.json. Texts are put in as texts.

const byId = (id) => document.getElementById(id);
const KEPT = 'compute token';
const SVG = 'http://www.w3.org/2000/svg';
const GOOD = new Set(['running']);
const BAD = new Set(['failed']);
const OVER = new Set(['terminated']);
const ENDING = new Set(['termination_pending_fast', 'termination_pending_immediate', 'terminated']);
const SHOWN = 256;

const seen = { graph: null, status: null, since: 0, last: null, began: null, newest: null, chosen: null, transitions: [], dropped: 0, ended: false };
let token = sessionStorage.getItem(KEPT);

// ---- small things ----------------------------------------------------------------------------------------

const words = (status) => status.replaceAll('_', ' ');

function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const s = ms / 1000;
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return h ? `${h} h ${m} min` : `${m} min ${Math.floor(s % 60)} s`;
}

function element(name, content = [], attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...[content].flat());
  return made;
}

function drawn(name, attributes = {}, content = []) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...[content].flat());
  return made;
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const tone = (status) => GOOD.has(status) ? 'good' : BAD.has(status) ? 'bad' : OVER.has(status) ? 'over' : '';

// ---- talking to the server -------------------------------------------------------------------------------

class NoToken extends Error {}

async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (token) headers.set('authorization', `Bearer ${token}`);
  const answer = await fetch(path, { ...options, headers, cache: 'no-store', credentials: 'omit' });
  const text = answer.ok ? '' : await answer.clone().text();
  // 400 is also the answer to a fault of the body, and then has another text.
  if (answer.status === 401 || (answer.status === 400 && text.includes('invalid authorization token'))) throw new NoToken(text);
  return answer;
}

async function read(path) {
  const answer = await ask(path);
  if (!answer.ok) throw new Error(await reason(answer));
  return answer.json();
}

async function reason(answer) {
  const text = await answer.text();
  try { return JSON.parse(text).error ?? text; } catch { return text || answer.statusText; }
}

// One round: what is there, then what happens, until the stream ends.
async function follow() {
  const [graph, history] = await Promise.all([read('/fsm'), read('/history')]);
  if (seen.began !== history.began) Object.assign(seen, { transitions: [], last: null });
  seen.graph = graph;
  seen.began = history.began;
  seen.dropped = history.dropped;
  seen.transitions = history.transitions;
  seen.last = history.last;
  present(history);
  drawGraph();
  showHistory();
  lookAround();
  const answer = await ask(`/events?last_event_id=${seen.last}`, { headers: { accept: 'text/event-stream' } });
  if (!answer.ok) throw new Error(await reason(answer));
  link('live');
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split('\n\n');
    text = blocks.pop();
    for (const block of blocks) take(block);
  }
}

function take(block) {
  const field = (name) => block.split('\n').find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
  if (!field('data')) return;
  const data = JSON.parse(field('data'));
  const kind = field('event');
  if (kind === 'state') present(data);
  if (kind === 'gap') seen.dropped += data.lost ?? 0;
  if (kind !== 'transition') return;
  seen.last = data.seq;
  seen.transitions.push(data);
  if (seen.transitions.length > SHOWN) { seen.transitions.shift(); seen.dropped += 1; }
  present({ status: data.to, in_status_ms: 0 });
  drawGraph();
  showHistory();
  lookAround();
}

async function live() {
  for (let tries = 0; ; tries += 1) {
    try {
      await follow();
      tries = 0;
      if (seen.status === 'terminated') break;
    } catch (error) {
      if (error instanceof NoToken) { askForToken(error); return; }
      if (ENDING.has(seen.status) || seen.status === 'failed') break;
    }
    link('connection lost, trying again');
    await pause(Math.min(500 * 2 ** tries, 8000));
  }
  seen.ended = true;
  link('ended');
  byId('now-since').textContent = '';
  for (const id of ['configure', 'refresh', 'terminate']) byId(id).disabled = true;
  trouble(`The compute has ended. Its last status was: ${words(seen.status)}.`, tone(seen.status));
}

function link(text) {
  byId('link').textContent = text;
  byId('link').dataset.link = text;
}

function trouble(text, kind = 'bad') {
  byId('trouble').hidden = !text;
  byId('trouble').dataset.tone = kind;
  byId('trouble').textContent = text ?? '';
}

// ---- the token -------------------------------------------------------------------------------------------

function askForToken() {
  byId('gate').hidden = false;
  byId('gate-error').textContent = token ? 'The server does not accept this token.' : '';
  link('a token is needed');
  byId('token').value = '';
  byId('token').focus();
}

byId('gate-form').addEventListener('submit', (event) => {
  event.preventDefault();
  token = byId('token').value.trim();
  sessionStorage.setItem(KEPT, token);
  byId('gate').hidden = true;
  live();
});

// ---- the present -----------------------------------------------------------------------------------------

function present({ status, in_status_ms: already }) {
  seen.since = performance.now() - already;
  if (seen.status !== status) {
    seen.status = status;
    document.body.dataset.status = status;
    document.title = `${words(status)} · compute`;
    byId('now-status').textContent = words(status);
    byId('now').dataset.tone = tone(status);
    seen.chosen = null;
    const ends = ENDING.has(status);
    byId('terminate').disabled = OVER.has(status);
    byId('configure').disabled = ends;
    byId('refresh').disabled = ends;
  }
  tick();
}

function tick() {
  if (seen.status) byId('now-since').textContent = `for ${span(performance.now() - seen.since)}`;
}

// ---- the picture -----------------------------------------------------------------------------------------

// Where the states stand: column and row, on a wide and on a narrow page. What is not named here, because it is newer,
// gets a row of its own; states and arrows themselves are the machine's.
const WIDE = {
  empty: [0, 0], configuration_pending: [1, 0], configuration: [2, 0], refresh_configuration: [3, 0.5],
  init: [0, 1], running: [2, 1], failed: [1, 2], refresh_configuration_pending: [3, 2],
  termination_pending_fast: [0.4, 3.2], termination_pending_immediate: [1.6, 3.2], terminated: [2.8, 3.2],
};
const NARROW = {
  empty: [0, 0], configuration_pending: [1, 0], init: [0, 1], configuration: [1, 1], running: [0.5, 2],
  failed: [0, 3], refresh_configuration_pending: [1, 3], refresh_configuration: [1, 4],
  termination_pending_fast: [0, 5.2], termination_pending_immediate: [1, 5.2], terminated: [0.5, 6.2],
};

let size = null;

function layout(width) {
  const narrow = width < 560;
  const [places, columns] = narrow ? [NARROW, 2] : [WIDE, 4];
  const box = { w: Math.min(narrow ? (width - 40) / 2 : (width - 130) / 4, 150), h: narrow ? 52 : 50 };
  const step = { x: (width - 24 - box.w) / (columns - 1), y: narrow ? 92 : 98 };
  let spare = 0;
  const rows = Math.max(...Object.values(places).map(([, row]) => row));
  const at = new Map();
  for (const state of seen.graph.states) {
    const [column, row] = places[state.status] ?? [spare++ % columns, rows + 1];
    at.set(state.status, { x: 12 + box.w / 2 + column * step.x, y: 14 + box.h / 2 + row * step.y });
  }
  const height = Math.max(...[...at.values()].map(({ y }) => y)) + box.h / 2 + 6;
  return { at, box, width, height };
}

// The border of a box, seen from its middle.
function border(from, towards, { w, h }, room) {
  const [dx, dy] = [towards.x - from.x, towards.y - from.y];
  const scale = Math.min((w / 2 + room) / Math.abs(dx || 1e-9), (h / 2 + room) / Math.abs(dy || 1e-9));
  return { x: from.x + dx * scale, y: from.y + dy * scale };
}

// A curve from box to box, bent as far as it must be to keep clear of the others.
function curve(from, to, picture) {
  const { at, box, width, height } = picture;
  const [a, b] = [at.get(from), at.get(to)];
  const length = Math.hypot(b.x - a.x, b.y - a.y) || 1;
  const normal = { x: -(b.y - a.y) / length, y: (b.x - a.x) / length };
  let best = null;
  for (const bend of [18, 40, -18, 70, -40, 105, -70, 145, -105, 190, -145, 240, -190]) {
    const middle = { x: (a.x + b.x) / 2 + normal.x * bend, y: (a.y + b.y) / 2 + normal.y * bend };
    const [p, q] = [border(a, middle, box, 1), border(b, middle, box, 6)];
    let cost = Math.abs(bend) + (bend < 0 ? 8 : 0);
    for (let t = 0.05; t < 1; t += 0.05) {
      const x = (1 - t) ** 2 * p.x + 2 * t * (1 - t) * middle.x + t * t * q.x;
      const y = (1 - t) ** 2 * p.y + 2 * t * (1 - t) * middle.y + t * t * q.y;
      if (x < 3 || x > width - 3 || y < 3 || y > height - 3) cost += 60;
      for (const [status, other] of at) {
        if (status === from || status === to) continue;
        if (Math.abs(x - other.x) < box.w / 2 + 5 && Math.abs(y - other.y) < box.h / 2 + 5) cost += 60;
      }
    }
    if (!best || cost < best.cost) best = { cost, path: `M${point(p)}Q${point(middle)} ${point(q)}` };
  }
  return best.path;
}

const point = ({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;

function lines(text, most) {
  return text.split(' ').reduce((done, word) => {
    const last = done.at(-1);
    if (last && last.length + word.length < most) done[done.length - 1] = `${last} ${word}`;
    else done.push(word);
    return done;
  }, []);
}

// Arrows by their ends; those that all live states have in common are drawn once, from the frame around them.
function arrows() {
  const pairs = new Map();
  for (const { from, to, label } of seen.graph.transitions) {
    const key = `${from} ${to}`;
    if (!pairs.has(key)) pairs.set(key, { from, to, labels: new Set() });
    pairs.get(key).labels.add(label);
  }
  const live = seen.graph.states.map((state) => state.status).filter((status) => !ENDING.has(status));
  const common = [...ENDING].filter((to) => live.every((from) => pairs.has(`${from} ${to}`)));
  const own = [...pairs.values()].filter(({ from, to }) => !(common.includes(to) && live.includes(from)));
  return { own, common, live };
}

function drawGraph() {
  const svg = byId('graph');
  const width = Math.max(Math.floor(svg.clientWidth), 240);
  if (!seen.graph) return;
  size = width;
  const picture = layout(width);
  const { at, box } = picture;
  const newest = seen.transitions.at(-1);
  const focused = document.activeElement?.closest?.('.state')?.dataset.state;
  const about = seen.chosen ?? seen.status;
  const { own, common, live } = arrows();

  const kinds = ['', 'possible', 'chosen', 'taken'];
  const heads = kinds.map((kind) => drawn('marker', {
    id: `head-${kind}`, viewBox: '0 0 8 8', refX: 6, refY: 4, markerWidth: 8, markerHeight: 8, orient: 'auto', markerUnits: 'userSpaceOnUse',
  }, drawn('path', { d: 'M0 0L8 4L0 8Z', class: `head ${kind}` })));
  const layers = kinds.map(() => drawn('g'));
  const arrow = (path, kind, title) => layers[kinds.indexOf(kind)].append(
    drawn('path', { d: path, class: `arrow ${kind}`, 'marker-end': `url(#head-${kind})` }, drawn('title', {}, title)));
  const kindOf = (from, to) => {
    if (newest && newest.from === from && newest.to === to) return 'taken';
    if (from === about) return about === seen.status ? 'possible' : 'chosen';
    return '';
  };
  for (const { from, to, labels } of own) {
    arrow(curve(from, to, picture), kindOf(from, to), `${words(from)} → ${words(to)}: ${[...labels].join('; ')}`);
  }

  const inside = live.map((status) => at.get(status));
  const bottom = Math.max(...inside.map(({ y }) => y)) + box.h / 2 + 12;
  const frame = drawn('g', {}, [
    drawn('rect', { class: 'frame', x: 2, y: 2, width: width - 4, height: bottom - 2, rx: 12 }),
  ]);
  const ends = common.map((to) => at.get(to).x);
  if (ends.length) {
    const x = (Math.min(...ends) + Math.max(...ends)) / 2;
    frame.append(drawn('text', { class: 'frame-label', x, y: bottom + 16 }, 'from any of these'));
  }
  for (const to of common) {
    const { x, y } = at.get(to);
    const taken = newest && newest.to === to && live.includes(newest.from);
    const kind = taken ? 'taken' : live.includes(about) ? kindOf(about, to) : '';
    const top = y - box.h / 2 - 6;
    arrow(`M${point({ x, y: bottom })}Q${point({ x, y: bottom })} ${point({ x, y: top })}`, kind, `any of these → ${words(to)}`);
  }

  const order = seen.graph.states.map((state) => state.status);
  const stop = focused ?? seen.chosen ?? seen.status;
  const states = seen.graph.states.map((state) => {
    const { x, y } = at.get(state.status);
    const current = state.status === seen.status;
    const text = lines(words(state.status), box.w < 125 ? 14 : 17);
    const classes = ['state', current && 'current', current && tone(state.status), state.final && 'final', state.status === seen.chosen && 'chosen'];
    const made = drawn('g', {
      class: classes.filter(Boolean).join(' '), role: 'button', tabindex: state.status === stop ? 0 : -1,
      'aria-pressed': String(state.status === about), 'aria-label': words(state.status) + (current ? ', the present state' : ''),
    }, [
      drawn('rect', { x: x - box.w / 2, y: y - box.h / 2, width: box.w, height: box.h, rx: 9 }),
      ...text.map((line, row) => drawn('text', { x, y: y + (row - (text.length - 1) / 2) * 14.5 }, line)),
    ]);
    made.dataset.state = state.status;
    if (current) made.setAttribute('aria-current', 'true');
    made.addEventListener('click', () => choose(state.status));
    made.addEventListener('keydown', (event) => {
      const move = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (event.key === 'Enter' || event.key === ' ') choose(state.status);
      else if (move) focusState(order[(order.indexOf(state.status) + move + order.length) % order.length]);
      else return;
      event.preventDefault();
    });
    return made;
  });
  svg.setAttribute('viewBox', `0 0 ${width} ${picture.height}`);
  svg.replaceChildren(drawn('defs', {}, heads), frame, ...layers, ...states);
  if (focused) focusState(focused);
  showWays(about);
}

function focusState(status) {
  for (const state of document.querySelectorAll('#graph .state')) {
    const wanted = state.dataset.state === status;
    state.setAttribute('tabindex', wanted ? 0 : -1);
    if (wanted) state.focus();
  }
}

function choose(status) {
  seen.chosen = status === seen.status || status === seen.chosen ? null : status;
  drawGraph();
}

function showWays(about) {
  const ways = new Map();
  for (const { from, to, label } of seen.graph.transitions) {
    if (from === about) ways.set(to, (ways.get(to) ?? new Set()).add(label));
  }
  byId('ways').hidden = ways.size === 0;
  byId('ways-title').textContent = about === seen.status ? 'What can happen next' : `What can happen in “${words(about)}”`;
  byId('ways-list').replaceChildren(...[...ways].map(([to, labels]) =>
    element('li', [element('b', `→ ${words(to)}`), [...labels].join('; ')])));
}

// ---- history, start, activity ------------------------------------------------------------------------------

function showHistory() {
  const newest = seen.transitions.at(-1);
  if (newest) {
    byId('latest').textContent = `Last: ${words(newest.from)} → ${words(newest.to)}, because: ${newest.label}.`;
  }
  byId('history').replaceChildren(...seen.transitions.map((transition) => {
    const clock = new Date(transition.time).toLocaleTimeString();
    const made = element('li', [
      element('strong', words(transition.to)), ` ${transition.label ?? ''}`,
      element('span', [element('time', clock, { datetime: transition.time }),
        ` · no. ${transition.seq} · after ${span(transition.lasted_ms)} of ${words(transition.from)}`], { class: 'quiet' }),
    ], { 'data-to': transition.to, 'data-seq': transition.seq });
    if (transition.error) made.append(element('span', transition.error, { class: 'bad' }));
    return made;
  }).reverse());
  byId('dropped').hidden = !seen.dropped;
  byId('dropped').textContent = `${seen.dropped} older ones are not kept.`;
}

// What /metrics.json may tell, in the order of a start.
const PHASES = [
  ['wait_for_spec_ms', 'wait for a spec', 1], ['sync_sk_check_ms', 'check safekeepers', 1], ['sync_safekeepers_ms', 'sync safekeepers', 1],
  ['pageserver_connect_micros', 'reach pageserver', 1000], ['basebackup_ms', 'base backup', 1], ['load_ext_ms', 'load extensions', 1],
  ['start_postgres_ms', 'start Postgres', 1], ['config_ms', 'apply the spec', 1],
];

async function startPhases() {
  const answer = await ask('/metrics.json');
  if (answer.ok) {
    const measured = await answer.json();
    const phases = PHASES.map(([key, name, unit]) => [name, (measured[key] ?? 0) / unit]).filter(([, ms]) => ms > 0);
    if (phases.length) return { phases, note: `${span(measured.total_startup_ms ?? 0)} in all` };
  }
  // Without them the history still knows how long each state took.
  const until = seen.transitions.findIndex((transition) => transition.to === 'running');
  const start = until < 0 ? [] : seen.transitions.slice(0, until + 1);
  const phases = start.map((transition) => [words(transition.from), transition.lasted_ms]);
  return { phases, note: phases.length ? 'States on the way to running.' : 'Not started yet.' };
}

async function showPhases() {
  const { phases, note } = await startPhases();
  const longest = Math.max(1, ...phases.map(([, ms]) => ms));
  byId('phases').replaceChildren(...phases.map(([name, ms]) => {
    const bar = element('div', [], { class: 'bar' });
    bar.style.width = `${100 * ms / longest}%`;
    return element('div', [element('dt', name), element('dd', element('div', bar, { class: 'track' }), { 'aria-hidden': 'true' }),
      element('dd', span(ms), { class: 'number' })]);
  }));
  byId('phases-note').textContent = note;
}

function facts(value, name = '') {
  if (value === null || value === undefined) return [];
  if (Array.isArray(value)) return value.length ? [[name, value.map((one) => (typeof one === 'object' ? JSON.stringify(one) : String(one))).join(', ')]] : [];
  if (typeof value === 'object') return Object.entries(value).flatMap(([key, inner]) => facts(inner, [name, words(key)].filter(Boolean).join(' ')));
  return [[name, String(value)]];
}

function showStatus(status) {
  const when = (time) => time && new Date(time).toLocaleString();
  const rows = [
    ['started', when(status.start_time)], ['last active', when(status.last_active) ?? 'not seen yet'],
    ['tenant', status.tenant], ['timeline', status.timeline],
    ...facts(status.activity), ...facts(status.storage, 'storage'), ...facts(status.settings, 'settings'),
  ];
  byId('activity').replaceChildren(...rows.filter(([, value]) => value).flatMap(([name, value]) =>
    [element('dt', name), element('dd', value)]));
  // An answer may come after what has happened since; the end has the last word.
  if (seen.ended) return;
  if (status.status === 'failed' || status.error) trouble(status.error ?? 'The compute has failed.');
  else trouble(null);
}

let looking = false;

async function lookAround() {
  if (looking) return;
  looking = true;
  try {
    showStatus(await read('/status'));
    await showPhases();
  } catch { /* The stream finds out what is wrong, and says it. */ } finally {
    looking = false;
  }
}

// ---- actions -----------------------------------------------------------------------------------------------

function outcome(text, kind = '') {
  byId('outcome').textContent = text;
  byId('outcome').dataset.tone = kind;
}

async function act(name, well, button, path, options) {
  button.disabled = true;
  outcome(`${name} …`);
  try {
    const answer = await ask(path, { method: 'POST', ...options });
    if (answer.ok) outcome(`${name}: ${well}.`, 'good');
    else outcome(`${name}: ${answer.status}, ${await reason(answer)}`, 'bad');
  } catch (error) {
    if (error instanceof NoToken) askForToken();
    outcome(`${name}: ${error instanceof NoToken ? 'a token is needed' : 'no answer'}`, 'bad');
  } finally {
    button.disabled = ENDING.has(seen.status);
  }
}

byId('configure-form').addEventListener('submit', (event) => {
  event.preventDefault();
  let body;
  try {
    body = JSON.parse(byId('spec').value);
    if (body === null || typeof body !== 'object' || Array.isArray(body)) throw new Error('it should be an object');
  } catch (error) {
    outcome(`This is no spec: ${error.message}`, 'bad');
    byId('spec').focus();
    return;
  }
  if (!('spec' in body)) body = { spec: body };
  body.compute_ctl_config ??= { jwks: { keys: [] } };
  act('Configure', 'applied', byId('configure'), '/configure', { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) });
});

byId('refresh').addEventListener('click', () => act('Refresh', 'accepted', byId('refresh'), '/refresh_configuration'));

const dialog = byId('terminate-dialog');
byId('terminate').addEventListener('click', () => dialog.showModal());
byId('terminate-cancel').addEventListener('click', () => dialog.close());
byId('terminate-confirm').addEventListener('click', () => {
  const mode = dialog.querySelector('input[name=mode]:checked').value;
  const idle = byId('if-idle').checked ? '&if_idle=true' : '';
  dialog.close();
  act('Terminate', 'done', byId('terminate'), `/terminate?mode=${mode}${idle}`);
});

// ---- begin -------------------------------------------------------------------------------------------------

new ResizeObserver(() => { if (Math.floor(byId('graph').clientWidth) !== size) drawGraph(); }).observe(byId('graph'));
setInterval(tick, 1000);
setInterval(() => { if (!document.hidden && byId('link').textContent === 'live') lookAround(); }, 3000);
live();
