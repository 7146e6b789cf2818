/**
 * The live page.
 *
 * Problem: thousands of strangers leave this page open for days, on phones that sleep, behind networks that drop a
 * connection without a word, while gateways are deployed under them. A page that reconnects in a loop, or that shows
 * yesterday's number as if it were today's, does harm: the first to the gateway, the second to whoever believes it.
 *
 * Idea: every decision is a pure function of what is known, what came in and what time it is.
 *   `parse` and `reduce`  a message of the wire becomes a picture (the number, its history, the feed, the themes);
 *   `step`                an event of the connection becomes the next state of the link and at most one effect;
 *   `sparkline`           the history becomes a line in the unit square.
 * The shell at the end owns the only socket, timer and document, and decides nothing. So all of it but the shell is
 * tested without a browser, on a clock that the test holds.
 *
 * Kept: what comes from the wire is shown as text, never parsed as HTML; each collection has a bound that stands
 * below (Inv. BOUND: FEED_MAX, SAMPLES_MAX, THEMES_MAX); a number is never shown as live once it is old.
 *
 * Deliberately absent: storage, cookies, an identity (the gateway counts an open page by itself), and a replay of
 * what was missed: a feed of "now" has no use for the past.
 */

// ── the wire's times, in milliseconds ──────────────────────────────────────
/** Snapshots come this often. */
export const TICK_MS = 5_000;
/** Three ticks and a second without a word: what is shown is old. */
export const STALE_AFTER_MS = 3 * TICK_MS + 1_000;
/** That much longer, and the connection is taken for dead. */
export const DEAD_AFTER_MS = STALE_AFTER_MS + 12_000;
/** A connection that lived that long was a good one: the next failure starts from the shortest delay again. */
export const STABLE_AFTER_MS = 5_000;
export const BACKOFF_BASE_MS = 1_000;
export const BACKOFF_MAX_MS = 30_000;
/** Back from offline, pages of one network do not all come in the same millisecond. */
export const ONLINE_JITTER_MS = 500;
/** A gateway never asks for more than 3 s; a longer wish than this is a mistake, not an order. */
export const RETRY_AFTER_MAX_MS = 60_000;

// ── bounds ─────────────────────────────────────────────────────────────────
export const FEED_MAX = 50;
export const SAMPLES_MAX = 120;
export const THEMES_MAX = 201;
export const THEMES_SHOWN = 8;
export const MESSAGE_CHARS_MAX = 64 * 1024;
export const TEXT_CHARS_MAX = 512;
/** The chart's shortest and longest span. */
export const SPAN_MIN_MS = 60_000;
export const SPAN_MAX_MS = SAMPLES_MAX * TICK_MS;

// ── messages ───────────────────────────────────────────────────────────────
const text = (value) => (typeof value === 'string' ? value.slice(0, TEXT_CHARS_MAX) : '');
const count = (value) => (Number.isFinite(value) && value >= 0 ? Math.floor(value) : null);
const instant = (value) => {
  const at = Date.parse(text(value));
  return Number.isNaN(at) ? null : at;
};

const readers = {
  init: snapshot,
  realtime_update: snapshot,
  new_event: (data) => {
    const type = text(data.event_type);
    return type && { kind: 'event', type, where: text(data.page_url), at: instant(data.timestamp) };
  },
  letter_generated: (data) => ({ kind: 'letter', type: text(data.letter_type), at: instant(data.timestamp) }),
  theme_stats: (data) => {
    const [theme, views, percentage] = [text(data.theme), count(data.count), data.percentage];
    const plausible = theme && views !== null && percentage >= 0 && percentage <= 100;
    return plausible && { kind: 'theme', theme, views, percentage };
  },
};

function snapshot(data) {
  const [visitors, at] = [count(data.active_visitors), instant(data.timestamp)];
  return visitors !== null && at !== null && { kind: 'snapshot', visitors, at, stale: data.stale === true };
}

/**
 * One frame of the wire, or null for what this page does not know or cannot believe (the contract says that
 * clients ignore both).
 */
export function parse(frame) {
  if (typeof frame !== 'string' || frame.length > MESSAGE_CHARS_MAX) return null;
  let message;
  try {
    message = JSON.parse(frame);
  } catch {
    return null;
  }
  if (message?.type === 'ping') return { kind: 'ping', timestamp: text(message.timestamp) };
  if (!Object.hasOwn(readers, message?.type ?? '') || typeof message.data !== 'object' || !message.data) return null;
  return readers[message.type](message.data) || null;
}

/** The answer to a ping: it says which one it answers, if that one had a name. */
export const pong = (timestamp) => JSON.stringify(timestamp ? { type: 'pong', timestamp } : { type: 'pong' });

// ── the picture ────────────────────────────────────────────────────────────
export const emptyPicture = () => ({
  visitors: null,
  at: null,
  stale: false,
  samples: [],
  feed: [],
  events: 0,
  letters: 0,
  themes: [],
  themeViews: 0,
});

/** The picture after a message; `now` (ms) is the viewer's wall clock, needed only while the wire has told no time. */
export function reduce(picture, message, now) {
  const at = message.at ?? newestTime(picture) ?? now;
  switch (message.kind) {
    case 'snapshot':
      return {
        ...picture,
        visitors: message.visitors,
        at: message.at,
        stale: message.stale,
        samples: message.stale ? picture.samples : withSample(picture.samples, message),
      };
    case 'event':
      return withRow(picture, { kind: rowKind(message.type), what: spoken(message.type), where: message.where, at });
    case 'letter': {
      const what = message.type ? `${spoken(message.type)} letter written` : 'Letter written';
      return withRow({ ...picture, letters: picture.letters + 1 }, { kind: 'letter', what, where: '', at });
    }
    case 'theme': {
      const themeViews = viewsOfAll(picture.themeViews, message);
      const seen = { ...picture, themeViews, themes: withTheme(picture.themes, message) };
      return withRow(seen, { kind: 'theme', what: 'Theme viewed', where: message.theme, at });
    }
    default:
      return picture;
  }
}

/** `theme_stats` has no time. The wire's own newest one is near, and fits the rows around it on a phone whose clock is off. */
function newestTime({ at, feed }) {
  const known = [at, feed[0]?.at].filter((time) => Number.isFinite(time));
  return known.length > 0 ? Math.max(...known) : null;
}

/** Newest first. `seq` names a row for ever, so that the shell draws each one once. */
function withRow(picture, row) {
  const seq = picture.events + 1;
  return { ...picture, events: seq, feed: [{ ...row, seq }, ...picture.feed].slice(0, FEED_MAX) };
}

/** One sample per instant, in order. A clock that went back (a new Redis) takes the future it contradicts with it. */
function withSample(samples, { at, visitors }) {
  return [...samples.filter((sample) => sample.at < at), { at, visitors }].slice(-SAMPLES_MAX);
}

function withTheme(themes, { theme, views }) {
  const others = themes.filter((known) => known.theme !== theme);
  return [...others, { theme, views }].sort((a, b) => b.views - a.views || (a.theme < b.theme ? -1 : 1)).slice(0, THEMES_MAX);
}

/**
 * Views of all themes together. The wire tells one theme's count and its share, rounded to a tenth; the shares of the
 * other themes have changed with it, and showing their last ones would let the bars add up to more than everything.
 * A share of p means a total between 100 views / (p + 0.05) and 100 views / (p - 0.05); each message stands for one
 * more view; so the total is the last one plus one, moved into those bounds: exact once one message pinned it down.
 */
export function viewsOfAll(before, { views, percentage }) {
  if (views === 0) return before;
  const least = Math.max(views, Math.ceil((100 * views) / (percentage + 0.05)));
  const most = percentage > 0.05 ? Math.max(least, Math.floor((100 * views) / (percentage - 0.05))) : Infinity;
  const guess = before > 0 ? before + 1 : percentage > 0 ? Math.round((100 * views) / percentage) : least;
  return Math.min(Math.max(guess, least), most);
}

/** What is drawn of the themes: the most viewed, each with its share of all views in percent. */
export const themeBars = ({ themes, themeViews }) =>
  themes.slice(0, THEMES_SHOWN).map(({ theme, views }) => ({ theme, views, share: themeViews > 0 ? Math.min(100, (100 * views) / themeViews) : 0 }));

/** `page_view` as a person would say it: `Page view`. */
export function spoken(name) {
  const words = name.replace(/[_.-]+/g, ' ').trim();
  return words ? words[0].toUpperCase() + words.slice(1) : '';
}

function rowKind(type) {
  if (type.includes('letter')) return 'letter';
  return type.includes('theme') ? 'theme' : 'event';
}

// ── the line ───────────────────────────────────────────────────────────────
/**
 * The history in the unit square, x to the right and y downwards: `runs` of points (a hole of more than two ticks in
 * the samples is a hole in the line: nothing is drawn where nothing is known), with the values at top and bottom.
 * The bottom is 0 unless the number is large and calm: then a change of a few would be invisible.
 */
export function sparkline(samples) {
  if (samples.length === 0) return null;
  const last = samples.at(-1);
  const span = Math.min(Math.max(last.at - samples[0].at, SPAN_MIN_MS), SPAN_MAX_MS);
  const shown = samples.filter((sample) => sample.at >= last.at - span);
  const values = shown.map((sample) => sample.visitors);
  const [least, peak] = [Math.min(...values), Math.max(...values)];
  const calm = peak - least < peak / 4;
  const room = Math.max(2, Math.ceil((peak - least) * 0.25), calm ? Math.ceil(peak * 0.02) : 0);
  const low = calm ? roundTo2(Math.max(0, least - room), Math.floor) : 0;
  const high = roundTo2(peak + room, Math.ceil);
  const runs = [];
  shown.forEach((sample, index) => {
    const point = { x: 1 - (last.at - sample.at) / span, y: (high - sample.visitors) / (high - low) };
    if (index === 0 || sample.at - shown[index - 1].at > 2.5 * TICK_MS) runs.push([]);
    runs.at(-1).push(point);
  });
  return { runs, low, high, least, peak, span, tip: runs.at(-1).at(-1) };
}

/** A scale reads better as 17,000 than as 16,057: two significant digits. */
function roundTo2(value, round) {
  const unit = 10 ** Math.max(0, Math.floor(Math.log10(Math.max(1, value))) - 1);
  return round(value / unit) * unit;
}

/** SVG path data for the runs; `floor` closes each down to the bottom edge, for the area under the line. */
export function pathData(runs, width, height, { floor }) {
  const place = ({ x, y }) => `${(x * width).toFixed(1)} ${(y * height).toFixed(1)}`;
  return runs
    .filter((run) => run.length > 1)
    .map((run) => {
      const line = `M${run.map(place).join('L')}`;
      return floor ? `${line}V${height}H${(run[0].x * width).toFixed(1)}Z` : line;
    })
    .join('');
}

// ── the link ───────────────────────────────────────────────────────────────
/** Same host, same scheme family: a page served over TLS never opens a plain socket. */
export function socketUrl({ protocol, host }) {
  return `${protocol === 'https:' ? 'wss:' : 'ws:'}//${host}/ws/analytics`;
}

/** A loopback gateway is reachable without a network: there, the browser's `offline` says nothing. */
export const isLoopback = (hostname) => /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(hostname);

/** Full jitter: anywhere between nothing and the cap, so that a fleet of pages spreads over the whole interval. */
export function backoffDelay(attempt, random) {
  return random * Math.min(BACKOFF_MAX_MS, BACKOFF_BASE_MS * 2 ** Math.min(attempt, 16));
}

/**
 * What a close code means for this page; the table stands in docs/PROTOCOL.md.
 *   after    the node is draining (1012) and gave us our own moment to come back;
 *   stop     it found fault with us (1002, 1003, 1007, 1008, 1009, a 44xx unknown here): the same page would repeat
 *            the fault, so only a person brings it back;
 *   backoff  anything else. 4408 (no pong in time) too: a laptop that slept is the usual cause, and it is awake now.
 */
export function closePolicy(code, reason = '') {
  if (code === 1012) {
    const afterMs = retryAfter(reason);
    return afterMs === null ? { kind: 'backoff' } : { kind: 'after', afterMs };
  }
  const ourFault = [1002, 1003, 1007, 1008, 1009].includes(code) || (code >= 4400 && code < 4500 && code !== 4408);
  return { kind: ourFault ? 'stop' : 'backoff' };
}

function retryAfter(reason) {
  try {
    const wish = JSON.parse(reason)?.retry_after_ms;
    return Number.isFinite(wish) && wish >= 0 ? Math.min(wish, RETRY_AFTER_MAX_MS) : null;
  } catch {
    return null;
  }
}

/**
 * A link at its birth: a socket is being opened at `now` (ms, a clock that never goes back).
 * phase: connecting → live ⇄ stale → waiting (until `retryAt`) → connecting …, and offline, stopped.
 * `failures` counts since the last stable connection.
 */
export const newLink = (now) => ({ phase: 'connecting', failures: 0, openedAt: null, heardAt: now, retryAt: null });

const hasSocket = ({ phase }) => phase === 'connecting' || phase === 'live' || phase === 'stale';

/**
 * The next state of the link, and what is to be done: `open` a socket, `drop` the one there is, or nothing.
 * `input.kind` is open | message | close (with code, reason) | time | offline | online | retry (a person asks);
 * `random` is in [0, 1).
 */
export function step(link, input, now, random) {
  const stay = { link, effect: null };
  switch (input.kind) {
    case 'open':
      return hasSocket(link) ? { link: { ...link, openedAt: now, heardAt: now }, effect: null } : stay;
    case 'message':
      return hasSocket(link) ? { link: { ...link, phase: 'live', heardAt: now }, effect: null } : stay;
    case 'close':
      return hasSocket(link) ? { link: closed(link, closePolicy(input.code, input.reason), now, random), effect: null } : stay;
    case 'time':
      return onTime(link, now, random);
    case 'offline':
      return link.phase === 'stopped' ? stay : { link: idle(link, 'offline'), effect: hasSocket(link) ? 'drop' : null };
    case 'online': {
      const held = link.phase === 'offline' || link.phase === 'waiting';
      return held ? { link: { ...idle(link, 'waiting'), failures: 0, retryAt: now + random * ONLINE_JITTER_MS }, effect: null } : stay;
    }
    case 'retry':
      return hasSocket(link) ? stay : connect(link, now);
    default:
      return stay;
  }
}

function onTime(link, now, random) {
  if (link.phase === 'waiting' && now >= link.retryAt) return connect(link, now);
  if (!hasSocket(link)) return { link, effect: null };
  const silence = now - link.heardAt;
  if (silence >= DEAD_AFTER_MS) return { link: closed(link, { kind: 'backoff' }, now, random), effect: 'drop' };
  const old = link.phase === 'live' && silence >= STALE_AFTER_MS;
  return { link: old ? { ...link, phase: 'stale' } : link, effect: null };
}

const connect = (link, now) => ({ link: { ...newLink(now), failures: link.failures }, effect: 'open' });
const idle = (link, phase) => ({ ...link, phase, openedAt: null, retryAt: null });

/** After a close. The counter forgets only what a connection proved by lasting: a flapping gateway is not hammered. */
function closed(link, policy, now, random) {
  if (policy.kind === 'stop') return idle(link, 'stopped');
  const proved = link.openedAt !== null && now - link.openedAt >= STABLE_AFTER_MS;
  const failures = proved ? 0 : link.failures;
  const delay = policy.kind === 'after' ? policy.afterMs : backoffDelay(failures, random);
  return { ...idle(link, 'waiting'), failures: failures + 1, retryAt: now + delay };
}

/** When `time` must next be told to the link (same clock), or null while only an event can move it. */
export function deadline(link) {
  if (link.phase === 'waiting') return link.retryAt;
  if (!hasSocket(link)) return null;
  return link.heardAt + (link.phase === 'live' ? STALE_AFTER_MS : DEAD_AFTER_MS);
}

const LOST = 'Connection lost, reconnecting';

/** What the page says of the link and the number: `shown` is what people see, `said` what is read out once. */
export function status(link, picture, now, clock) {
  const since = picture.at === null ? '' : ` since ${clock(picture.at)}`;
  switch (link.phase) {
    case 'connecting':
      // Every further attempt is the same news: it is not read out again.
      return link.failures > 0
        ? { phase: 'connecting', shown: 'Reconnecting…', said: LOST }
        : { phase: 'connecting', shown: 'Connecting…', said: 'Connecting' };
    case 'waiting': {
      const seconds = Math.max(1, Math.ceil((link.retryAt - now) / 1000));
      return { phase: 'waiting', shown: `Reconnecting in ${seconds} s`, said: LOST };
    }
    case 'offline':
      return { phase: 'offline', shown: 'Offline', said: 'This device is offline' };
    case 'stopped':
      return { phase: 'stopped', shown: 'Closed by the gateway', said: 'The gateway closed the connection' };
    case 'stale':
      return { phase: 'stale', shown: `No news${since}`, said: `No news${since}` };
    default:
      return picture.stale
        ? { phase: 'stale', shown: `Stale${since}`, said: `The number is stale${since}` }
        : { phase: 'live', shown: 'Live', said: 'Live' };
  }
}

// ── the shell: the only socket, timer and document ─────────────────────────
const SVG_WIDTH = 1000;
const SVG_HEIGHT = 200;
/** A countdown is redrawn this often while it runs. */
const COUNTDOWN_MS = 1_000;

const clock = (at) => new Date(at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' });
const number = (value) => value.toLocaleString('en');

function element(name, className, content) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

/** Draws a picture into the document. Everything from the wire goes through `textContent`. */
class View {
  #byId = (id) => document.getElementById(id);
  #calm = matchMedia('(prefers-reduced-motion: reduce)');
  #drawnSeq = 0;
  #bars = new Map();
  #said = '';

  status({ phase, shown, said }) {
    document.body.dataset.phase = phase;
    this.#byId('state').textContent = shown;
    this.#byId('retry').hidden = !['waiting', 'offline', 'stopped'].includes(phase);
    // Read out once per change: a countdown that speaks each second would drown everything else.
    if (said !== this.#said) this.#byId('announce').textContent = said;
    this.#said = said;
  }

  picture(picture, { phase, shown }) {
    const { visitors, at } = picture;
    if (visitors !== null) {
      const digits = number(visitors);
      this.#byId('visitors').textContent = digits;
      this.#byId('visitors').dataset.digits = digits.length > 4 ? 'wide' : 'short';
      this.#byId('caption').textContent = `${visitors === 1 ? 'visitor' : 'visitors'}${phase === 'live' ? ' right now' : ', last we heard'}`;
      this.#byId('fresh').textContent = phase === 'live' ? `counted at ${clock(at)}` : `last counted at ${clock(at)}`;
      document.title = phase === 'live' ? `${digits} · Pulsegate` : `(${digits}) ${shown} · Pulsegate`;
    }
    this.#byId('events').textContent = number(picture.events);
    this.#byId('letters').textContent = number(picture.letters);
    this.#chart(picture.samples);
    this.#feed(picture.feed);
    this.#themes(themeBars(picture));
  }

  /** One beat of the dot per snapshot: the eye sees that the line is alive without reading. */
  beat() {
    if (this.#calm.matches) return;
    const glow = (spread, alpha) => ({ boxShadow: `0 0 0 ${spread}px color-mix(in srgb, currentColor ${alpha}%, transparent)` });
    this.#byId('dot').animate([glow(0, 60), glow(12, 0)], { duration: 900, easing: 'ease-out' });
  }

  #chart(samples) {
    const line = sparkline(samples);
    if (!line) return;
    const minutes = Math.round(line.span / 60_000);
    const span = minutes === 1 ? '1 minute' : `${minutes} minutes`;
    this.#byId('line').setAttribute('d', pathData(line.runs, SVG_WIDTH, SVG_HEIGHT, { floor: false }));
    this.#byId('area').setAttribute('d', pathData(line.runs, SVG_WIDTH, SVG_HEIGHT, { floor: true }));
    const tip = this.#byId('tip');
    tip.hidden = false;
    tip.style.left = `${line.tip.x * 100}%`;
    tip.style.top = `${line.tip.y * 100}%`;
    this.#byId('high').textContent = number(line.high);
    this.#byId('low').textContent = number(line.low);
    this.#byId('from').textContent = `${span} ago`;
    this.#byId('peak').textContent = number(line.peak);
    const now = samples.at(-1).visitors;
    this.#byId('chart').setAttribute('aria-label', `Visitors over the last ${span}: lowest ${line.least}, highest ${line.peak}, last ${now}`);
  }

  #feed(rows) {
    if (rows.length === 0) return;
    const list = this.#byId('feed');
    list.hidden = false;
    this.#byId('feed-empty').hidden = true;
    const fresh = rows.filter((row) => row.seq > this.#drawnSeq).reverse();
    for (const row of fresh) {
      const item = element('li', 'fresh-row');
      item.dataset.kind = row.kind;
      const time = element('time', '', clock(row.at));
      time.dateTime = new Date(row.at).toISOString();
      item.append(element('span', 'what', row.what), element('span', 'where', row.where), time);
      list.prepend(item);
    }
    while (list.children.length > FEED_MAX) list.lastElementChild.remove();
    this.#drawnSeq = rows[0].seq;
  }

  #themes(bars) {
    if (bars.length === 0) return;
    const list = this.#byId('themes');
    list.hidden = false;
    this.#byId('themes-empty').hidden = true;
    const shown = new Set(bars.map((bar) => bar.theme));
    for (const [theme, row] of this.#bars) {
      if (!shown.has(theme)) row.item.remove();
      if (!shown.has(theme)) this.#bars.delete(theme);
    }
    bars.forEach((bar, index) => {
      const row = this.#bars.get(bar.theme) ?? this.#themeRow(bar.theme);
      row.views.textContent = number(bar.views);
      row.share.textContent = `${bar.share.toFixed(1)} %`;
      row.fill.style.width = `${bar.share}%`;
      if (list.children[index] !== row.item) list.insertBefore(row.item, list.children[index] ?? null);
    });
  }

  #themeRow(theme) {
    const row = { item: element('li'), views: element('span', 'theme-count'), share: element('span', 'theme-share'), fill: element('i') };
    const track = element('div', 'track');
    track.append(row.fill);
    row.item.append(element('span', 'theme-name', theme), row.views, row.share, track);
    this.#bars.set(theme, row);
    return row;
  }
}

/** Wires link, picture and view to the browser. One socket at a time; what a dropped one still says is not heard. */
function start() {
  const view = new View();
  const url = socketUrl(location);
  let link = newLink(performance.now());
  let picture = emptyPicture();
  let socket = null;
  let timer = 0;
  let frame = 0;

  function open() {
    const mine = new WebSocket(url);
    const heard = (handle) => (event) => mine === socket && handle(event);
    mine.onopen = heard(() => feed({ kind: 'open' }));
    mine.onclose = heard(({ code, reason }) => feed({ kind: 'close', code, reason }));
    mine.onmessage = heard(({ data }) => {
      feed({ kind: 'message' });
      const message = parse(data);
      if (message?.kind === 'ping') mine.send(pong(message.timestamp));
      else if (message) picture = reduce(picture, message, Date.now());
      if (message?.kind === 'snapshot' && !message.stale) view.beat();
    });
    socket = mine;
  }

  function feed(input) {
    const next = step(link, input, performance.now(), Math.random());
    link = next.link;
    if (next.effect === 'drop') {
      socket?.close();
      socket = null;
    }
    if (next.effect === 'open') open();
    schedule();
    draw();
  }

  /** One timer: the link's next deadline, or the next second of a countdown. */
  function schedule() {
    clearTimeout(timer);
    const at = deadline(link);
    if (at === null) return;
    const due = Math.max(0, at - performance.now());
    timer = setTimeout(() => feed({ kind: 'time' }), link.phase === 'waiting' ? Math.min(due, COUNTDOWN_MS) : due);
  }

  /** At most once per frame, whatever the rate of messages; a hidden page draws when it is looked at. */
  function draw() {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      const now = status(link, picture, performance.now(), clock);
      view.status(now);
      view.picture(picture, now);
    });
  }

  document.getElementById('retry').addEventListener('click', () => feed({ kind: 'retry' }));
  document.addEventListener('visibilitychange', () => feed({ kind: 'time' }));
  if (!isLoopback(location.hostname)) {
    addEventListener('offline', () => feed({ kind: 'offline' }));
    addEventListener('online', () => feed({ kind: 'online' }));
  }
  open();
  schedule();
  draw();
}

if (typeof document !== 'undefined') start();
